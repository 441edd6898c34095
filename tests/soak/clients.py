"""Clients that misbehave: each is one connection that asks for something, in one of many wrong ways, and leaves."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

from tests.proxy.conftest import CHAT, Raw

_MODELS: Final = ("unsloth/gpt-oss-20b", "gpt-oss-20b")
_GARBAGE: Final = (
    b"\x16\x03\x01\x02\x00",
    b"GET / HTTP/9.9\r\n\r\n",
    b"\r\n\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
)
# Nothing that a client waits for takes longer; one that does is a gateway that hangs. Seconds.
_LONGEST: Final = 20.0


class HungError(Exception):
    """An exchange did not end within the bound; says which way it was."""


class Clients:
    """Makes clients for the gateway at `port`; `ways` counts their behaviour, `statuses` their answers."""

    def __init__(self, port: int, key: str, dice: random.Random) -> None:
        self._port = port
        self._key = key
        self.dice = dice
        self.ways: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()

    async def misbehave(self) -> None:
        """One client from its connect to its end. Raises HungError."""
        way = self.dice.choice(_WAYS)
        name = way.__name__.strip("_")
        buffer = 4096 if way in _SLOW else None
        try:
            async with asyncio.timeout(_LONGEST):
                client = await Raw.connect(self._port, self._key, receive_buffer=buffer)
                # The answer may be cut, or break off: this client provokes it.
                with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                    await way(self, client)
                how = await self._leave(client)
        except TimeoutError:
            raise HungError(f"{name} did not end within {_LONGEST:g} s") from None
        self.ways[f"{name}, {how}"] += 1

    async def _leave(self, client: Raw) -> str:
        how = self.dice.choice(["FIN", "FIN", "RST", "RST", "half close"])
        if how == "RST":
            client.reset()
            return how
        with contextlib.suppress(OSError):
            if how == "half close" and not client.writer.transport.is_closing():
                client.half_close()
                await client.ended()
        client.close()
        return how

    def body(self) -> dict[str, Any]:
        """A random chat request."""
        message = {"role": "user", "content": "x" * self.dice.choice([1, 100, 5000])}
        return {"model": self.dice.choice(_MODELS), "messages": [message], "stream": self.dice.random() < 0.7}

    def request(self, client: Raw) -> bytes:
        """The whole request of one."""
        return client.request(self.body(), version=self.dice.choice(["1.1", "1.1", "1.1", "1.0"]))

    async def take(self, client: Raw) -> None:
        """Read an answer, and count it."""
        self.statuses[(await client.answer()).status] += 1


async def _whole_answers(clients: Clients, client: Raw) -> None:
    for _ in range(clients.dice.randint(1, 3)):
        client.send(clients.request(client))
        await clients.take(client)


async def _before_the_first_byte(clients: Clients, client: Raw) -> None:
    client.send(clients.request(client))
    await asyncio.sleep(clients.dice.random() * 0.03)


async def _at_once(clients: Clients, client: Raw) -> None:
    client.send(clients.request(client))


async def _within_the_head(clients: Clients, client: Raw) -> None:
    request = clients.request(client)
    client.send(request[: clients.dice.randrange(request.index(b"\r\n\r\n"))])
    await asyncio.sleep(clients.dice.random() * 0.02)


async def _within_the_body(clients: Clients, client: Raw) -> None:
    request = clients.request(client)
    client.send(request[: clients.dice.randrange(request.index(b"\r\n\r\n"), len(request))])
    await asyncio.sleep(clients.dice.random() * 0.02)


async def _after_the_head(clients: Clients, client: Raw) -> None:
    client.send(clients.request(client))
    clients.statuses[(await client.head()).status] += 1


async def _mid_stream(clients: Clients, client: Raw) -> None:
    client.send(client.request(clients.body() | {"stream": True}))
    got = await client.head()
    clients.statuses[got.status] += 1
    for _ in range(clients.dice.randint(1, 5) if got.header("transfer-encoding") else 0):
        if not await client.chunk():
            return


async def _slow_reader(clients: Clients, client: Raw) -> None:
    client.send(client.request(clients.body() | {"stream": True}, headers={"Connection": "close"}))
    for _ in range(clients.dice.randint(1, 20)):
        if not await client.reader.read(2000):
            return
        await asyncio.sleep(0.01)


async def _never_reads(clients: Clients, client: Raw) -> None:
    client.send(clients.request(client))
    await asyncio.sleep(clients.dice.random() * 0.6)  # the gateway drops it after its `timeout`, 0.3 s


async def _runs_ahead(clients: Clients, client: Raw) -> None:
    client.send(clients.request(client) * clients.dice.randint(2, 4))
    if clients.dice.random() < 0.5:
        await clients.take(client)


async def _expects_to_continue(clients: Clients, client: Raw) -> None:
    request = client.request(clients.body(), headers={"Expect": "100-continue"})
    head = request.index(b"\r\n\r\n") + 4
    client.send(request[:head])
    await client.head()
    if clients.dice.random() < 0.5:
        client.send(request[head:])
        await clients.take(client)


async def _garbage(clients: Clients, client: Raw) -> None:
    client.send(clients.dice.choice(_GARBAGE))


async def _refused(clients: Clients, client: Raw) -> None:
    wrong = clients.dice.choice(["key", "model", "path", "media type"])
    if wrong == "key":
        client.send(client.request(clients.body(), key="sk-wrong"))
    elif wrong == "model":
        client.send(client.request(clients.body() | {"model": "another"}))
    elif wrong == "path":
        client.send(client.request(clients.body(), path=CHAT + "/"))
    else:
        client.send(client.request(clients.body(), headers={"Content-Type": "text/plain"}))
    await clients.take(client)


_WAYS: Final[tuple[Callable[[Clients, Raw], Awaitable[None]], ...]] = (
    _whole_answers, _whole_answers, _before_the_first_byte, _at_once, _within_the_head, _within_the_body,
    _after_the_head, _mid_stream, _mid_stream, _slow_reader, _never_reads, _runs_ahead, _expects_to_continue, _garbage,
    _refused,
)  # fmt: skip
_SLOW: Final = frozenset({_slow_reader, _never_reads})
