"""The backend of the soak: a scripted vLLM in a process of its own, so that it can be killed.

    python -m tests.soak.backend PORT SEED

A chat completion meets a random fault, a completion gets a stream that drips for 20 s.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import uvloop

from tests.fakes.faults import FAULTS
from tests.fakes.vllm import (
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    FakeVllm,
    Flood,
    Hang,
    Reset,
    Send,
    SendSlowly,
    Sleep,
    Step,
    chunk,
    json_answer,
    stream,
    token_event,
)
from tests.ports import free_port

DRIPS: Final = "/v1/completions"

_TOKEN: Final = chunk(token_event())
_DRIP: Final = SendSlowly(_TOKEN * 400, size=len(_TOKEN), pause=0.05)
_LONG: Final = chunk(token_event("x" * 1000))
# Scripts that the gateway's own tests play one by one, and scripts long enough for a client to leave in the middle.
_SCRIPTS: Final[tuple[tuple[Step, ...], ...]] = (
    *FAULTS,
    (SendSlowly(stream(*[token_event()] * 50, DONE), size=250, pause=0.002),),
    (Send(STREAM_HEAD), Flood(_LONG, 300), Send(chunk(DONE) + LAST_CHUNK)),
    (Send(STREAM_HEAD), Flood(_LONG, 300), Reset()),
    (Sleep(0.02), Send(json_answer({"text": "x" * 200_000}))),
    (Send(json_answer({"text": "x" * 200_000})[:-1]), Hang()),
    (Send(STREAM_HEAD + b"zzz\r\n"),),
    (Send(STREAM_HEAD + chunk(token_event()) + b"-5\r\n"),),
    (Send(b"HTTP/1.1 100 Continue\r\n\r\n" * 50), Send(json_answer({}))),
)


class _Faulty(FakeVllm):
    """One endpoint that forgets what it received."""

    dice: random.Random

    def script_for(self, method: str, path: str) -> Sequence[Step]:
        self.posts.clear()
        self.got.clear()
        if method == "POST" and path == DRIPS:
            return (Send(STREAM_HEAD), _DRIP)
        return super().script_for(method, path) if method == "GET" else self.dice.choice(_SCRIPTS)


async def _answer(port: int, seed: int) -> None:
    fake = _Faulty()
    fake.port, fake.dice = port, random.Random(seed)
    await fake.up()
    await asyncio.get_running_loop().create_future()


class BackendProcess:
    """The backend as a process: started, killed by SIGKILL, and started again on the same port."""

    def __init__(self, log: Path, seed: int) -> None:
        self.port = free_port()
        self._log = log
        self._seed = seed
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """As a config writes it."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it; it listens a moment later."""
        self._seed += 1
        command = [sys.executable, "-m", "tests.soak.backend", str(self.port), str(self._seed)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def is_up(self) -> bool:
        """Whether it takes connections."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def kill(self) -> None:
        """End it at once, with all its connections."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


if __name__ == "__main__":
    uvloop.run(_answer(int(sys.argv[1]), int(sys.argv[2])))
