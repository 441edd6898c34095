"""Waiting for several coroutines ends with the first, or in time; the tests' own waiting."""

import asyncio
import socket

from aiaas.waiting import first_of
from tests.waiting import closed


async def test_the_first_that_is_done_ends_the_waiting_for_all() -> None:
    """Or the timeout does."""
    event = asyncio.Event()
    event.set()
    async with asyncio.timeout(1):
        await first_of(event.wait(), asyncio.sleep(60), timeout=60)
        await first_of(asyncio.sleep(60), timeout=0.01)
    assert len(asyncio.all_tasks()) == 1


class Counting(socket.socket):
    """A listener that counts whom it lets in."""

    accepted = 0

    def accept(self) -> tuple[socket.socket, object]:
        """As always."""
        pair = super().accept()
        self.accepted += 1
        return pair


async def test_server_that_closes_loses_no_connection() -> None:
    """Of those that it has accepted, in whichever turn of the loop it closes."""
    accepted = []
    for turns in range(5):
        made: list[asyncio.StreamWriter] = []
        listener = Counting()
        listener.bind(("127.0.0.1", 0))
        server = await asyncio.start_server(lambda _, writer, made=made: made.append(writer), sock=listener)
        with socket.create_connection(listener.getsockname()):
            for _ in range(turns):
                await asyncio.sleep(0)
            await closed(server)
            assert not server.is_serving()
            assert len(made) == listener.accepted
        accepted.append(listener.accepted)
        for writer in made:
            writer.close()
            await writer.wait_closed()
    assert (accepted[0], accepted[-1]) == (0, 1)
