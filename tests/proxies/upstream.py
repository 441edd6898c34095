"""Scripts for the engine of `tests/fakes/vllm.py`: events that say when they were written."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any, Final

from tests.fakes.vllm import DONE, LAST_CHUNK, STREAM_HEAD, chunk

STAMP: Final = rb"@(\d+)@"


@dataclass(frozen=True)
class Stamped:
    """A whole stream of `count` events, `interval` seconds apart, each with its time in nanoseconds."""

    count: int
    interval: float

    async def play(self, connection: Any) -> None:
        """Write them; one that is late does not make those behind it late."""
        connection.write(STREAM_HEAD)
        loop = asyncio.get_running_loop()
        begin = loop.time()
        for number in range(self.count):
            connection.write(chunk(event(f"@{time.monotonic_ns()}@")))
            await asyncio.sleep(max(0.0, begin + (number + 1) * self.interval - loop.time()))
        connection.write(chunk(DONE) + LAST_CHUNK)


@dataclass(frozen=True)
class AsAsked:
    """A stream or a whole answer, as the request wants it."""

    stream: Stamped
    whole: bytes

    async def play(self, connection: Any) -> None:
        """Write it."""
        if connection.received[-1].json.get("stream"):
            await self.stream.play(connection)
        else:
            connection.write(self.whole)


def event(content: str) -> bytes:
    """One event of a chat stream."""
    choice = {"index": 0, "delta": {"content": content}, "logprobs": None, "finish_reason": None}
    made = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(made).encode() + b"\n\n"
