"""Each request carries a mark of its own, and the backend puts it into its answer: a mark that turns up anywhere else
says that something crossed from one client's answer into another's.

    client sends  {"model": "m", "messages": [{"content": "mark-00000042"}]}
    script says   Marked(b'... "MARK-HERE-XX" ...')     of the same length, so that lengths stay right
    client gets   ... "mark-00000042" ...
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.fakes.vllm import _Connection
from tests.proxy.conftest import Got, Raw, Running

HERE: Final = b"MARK-HERE-XXX"
_MARK: Final = re.compile(rb"mark-\d{8}")
ERROR_FIELDS: Final = {"message", "type", "param", "code"}


@dataclass(frozen=True)
class Marked:
    """Write bytes in pieces that begin at `cuts`, with the request's mark wherever `HERE` stands."""

    data: bytes
    cuts: tuple[int, ...] = ()

    async def play(self, connection: _Connection) -> None:
        asked = _MARK.search(connection.received[-1].body)
        data = self.data.replace(HERE, asked[0] if asked else b"mark-of-nobod")
        for start, end in itertools.pairwise([0, *sorted(self.cuts), len(data)]):
            connection.write(data[start:end])
            await asyncio.sleep(0)


class Marks:
    """Gives out marks."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def next(self) -> str:
        """One that was never given out."""
        return f"mark-{next(self._numbers):08}"


def body_with(mark: str, *, stream: bool) -> dict[str, Any]:
    """A chat request that carries it."""
    return {"model": "m", "messages": [{"role": "user", "content": mark}], "stream": stream}


def strangers(data: bytes, own: Sequence[str]) -> set[bytes]:
    """The marks in `data` that are not in `own`."""
    return set(_MARK.findall(data)) - {mark.encode() for mark in own}


def assert_ours(got: Got) -> None:
    """One JSON object of docs/errors.md's shape."""
    told = json.loads(got.body)
    assert set(told) == {"error"}, got
    assert set(told["error"]) == ERROR_FIELDS, got
    assert all(isinstance(told["error"][name], str) for name in ("message", "type", "code")), got
    assert got.header("content-type") == "application/json"


async def assert_unharmed(running: Running, marks: Marks) -> None:
    """Nothing is under way, nothing was logged that should not be, and a good request is answered."""
    await running.quiet()
    assert [endpoint.pool.inflight for endpoint in running.endpoints()] == [0] * len(running.endpoints())
    assert not any(connection.listener for connection in running.open_side.connections)
    for event in ("internal_error", "library", "task_crashed"):
        assert not running.log_lines(event), running.log_lines(event)
    assert not any(b"Traceback" in line for line in running.lines)
    for endpoint in running.endpoints():
        # One that answered and is about to hang up could be met once more: its own 502.
        endpoint.pool.drop_idle()
    mark = marks.next()
    client = await Raw.connect(running.port, running.key)
    got = await client.post(body_with(mark, stream=False))
    client.close()
    assert (got.status, got.json["text"]) == (200, mark)
