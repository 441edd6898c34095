"""Instructions that a request and a stream event cost: exact to about one in a hundred, whatever else the machine does.

    python -m tests.bench.instructions                # --write-docs: also writes docs/instructions.md

A gateway without its background tasks runs under valgrind's callgrind, and a client and a backend outside of it. Each
figure is a difference: (instructions of a run with many) - (of a run with few), divided by how many more there were. So
neither the start nor the end counts, and neither does the kernel.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import uvloop

from aiaas.keys.ring import KeyRing
from aiaas.keys.verifier import Verifier
from aiaas.limits.memory import MemoryStore
from aiaas.proxy.gateway import Gateway
from aiaas.proxy.telemetry.log import JsonLog
from aiaas.proxy.telemetry.metrics import Metrics
from aiaas.proxy.usage import UsageRecorder
from tests.bench import process, wire
from tests.bench.interpreter import described
from tests.bench.parts import CONFIG, KEY, measured_parts, run_parts
from tests.ports import free_port
from tests.proxy.conftest import let_in, plan_of

# Of each pair the first is the run with few. The first requests make caches.
REQUESTS: Final = (100, 600)
EVENTS: Final = (200, 1200)
PACE: Final = 400.0  # events a second: callgrind slows the gateway down some 50 times, and each is to be read alone
PATIENCE: Final = 120.0  # seconds

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "instructions.md"
PAGE_FORM: Final = """\
# Instructions of a request

Written by `python -m tests.bench.instructions --write-docs` on {date}, Python {python}.

CPU time is noisy on a machine that others use; the number of instructions is not (two runs differ by 0.1 %). The first
three figures are of a gateway under valgrind's callgrind with real sockets, between a client and a backend that are
not, without the kernel. The request is a short chat completion whose alias is rewritten; the third is with `resume`
([resume.md](resume.md)). The parts are called by themselves,
without sockets and event loop, so they do not add up to the whole. Parts in brackets are not of this request: most
requests and answers have a usual shape, which is read by one pattern, and the parsers read all others.

| what | instructions |
| --- | --- |
{lines}
A change that makes the first three grow says by how much, and for what.
"""


def serve(backend: str, resume: str) -> None:
    """The gateway under measurement: prints its port, and ends with its standard input."""

    async def life() -> None:
        config = {**CONFIG, "backends": {"vllm": {**CONFIG["backends"]["vllm"], "url": backend, "resume": resume}}}
        log, metrics = JsonLog(lambda _lines: True, time.time, "info"), Metrics()
        verifier = Verifier(KeyRing.from_records([KEY.record]))
        recorder = UsageRecorder(None, log, metrics)
        gateway = Gateway(plan_of(config), verifier, MemoryStore(), log, metrics, recorder)
        kept = let_in(gateway)
        print(kept[-1], flush=True)
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(sys.stdin, ended.set)
        await ended.wait()

    uvloop.run(life())


def instructions(backend: str, request: bytes, times: int, end: bytes, resume: str = "off") -> int:
    """Those of one life of the gateway, in which `request` is sent so often; an answer ends with `end`."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind"
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "-q", sys.executable]
        command += ["-m", "tests.bench.instructions", "serve", backend, resume]
        environment = os.environ | {"PYTHONHASHSEED": "0"}
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        ) as measured:
            assert measured.stdin is not None
            assert measured.stdout is not None
            port = int(measured.stdout.readline())
            with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
                for _ in range(times):
                    client.sendall(request)
                    answer = b""
                    while not answer.endswith(end):
                        data = client.recv(65536)
                        assert data, answer
                        answer += data
                    assert answer.startswith(b"HTTP/1.1 200 "), answer[:300]
            measured.stdin.close()
            measured.wait(PATIENCE)
        found = re.search(r"^(?:summary|totals): (\d+)", out.read_text(), re.MULTILINE)
        assert found is not None
        return int(found[1])


def measure() -> dict[str, int]:
    """The cost of one short request, and of one event in the middle of a stream."""
    port, ask = free_port(), wire.request(KEY.text)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        started = process.started(process.backend_command(port), process.OTHER_CORE, folder, "backend", {})
        process.wait_for_answer(port, ask, stack.enter_context(started), folder, "backend")
        url = f"http://127.0.0.1:{port}"
        instructions(url, ask, 1, wire.ANSWER[-40:])  # Python writes its bytecode
        few, many = (instructions(url, ask, times, wire.ANSWER[-40:]) for times in REQUESTS)
        streams = [wire.request(KEY.text, wire.Stream(events, PACE)) for events in EVENTS]
        short, long = (instructions(url, ask, 1, wire.END_OF_CHUNKS) for ask in streams)
        kept_short, kept_long = (instructions(url, ask, 1, wire.END_OF_CHUNKS, "exact") for ask in streams)
    return {
        "a short request": (many - few) // (REQUESTS[1] - REQUESTS[0]),
        "a stream event": (long - short) // (EVENTS[1] - EVENTS[0]),
        "a stream event that is kept": (kept_long - kept_short) // (EVENTS[1] - EVENTS[0]),
    }


def as_page(counts: dict[str, int]) -> str:
    """docs/instructions.md."""
    lines = "".join(f"| {what} | {count:,} |\n" for what, count in counts.items())
    return PAGE_FORM.format(date=datetime.now(UTC).date(), python=described(sys.executable), lines=lines)


def main(arguments: list[str]) -> None:
    """Print the figures; with `--write-docs` also write the page."""
    if arguments[:1] == ["serve"]:
        serve(arguments[1], arguments[2])
    elif arguments[:1] == ["parts"]:
        run_parts()
    elif shutil.which("valgrind") is None:
        print("not measured: there is no valgrind on this machine (Debian: apt-get install valgrind)")
    else:
        counts = measure() | measured_parts()
        for what, count in counts.items():
            print(f"{what:32} {count:>9,} instructions")
        if "--write-docs" in arguments:
            PAGE.write_text(as_page(counts))


if __name__ == "__main__":
    main(sys.argv[1:])
