"""Processes as asyncio has them, and the output of one: what `supervisor` is made from."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Mapping
from typing import Final

from aiaas.waiting import first_of

LONGEST_LINE: Final = 8192  # characters; longer ones are cut, the rest is dropped
KILL_PATIENCE: Final = 5.0  # seconds for the launcher to kill the tree before it is killed itself


async def lines_of(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Lines without their end, empty ones left out; a carriage return ends one too, as progress bars use it.

    At most LONGEST_LINE characters of a line are kept, so that a process that never ends one cannot fill the memory.
    """
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    rest = ""
    while chunk := await stream.read(65536):
        *whole, rest = (rest + decode(chunk)).replace("\r", "\n").split("\n")
        rest = rest[:LONGEST_LINE]
        for line in whole:
            if line.strip():
                yield line[:LONGEST_LINE].rstrip()
    if rest.strip():
        yield rest.rstrip()


async def spawn(
    argv: tuple[str, ...], environment: Mapping[str, str]
) -> tuple[asyncio.subprocess.Process, asyncio.StreamReader, asyncio.ReadTransport]:
    """A process, its output (stdout and stderr in one), and the pipe to close in the end.

    The output goes through a pipe of our own: asyncio's `Process.wait` also waits for its pipes to close, and so would
    never return while a left-over grandchild holds one.
    """
    loop = asyncio.get_running_loop()
    output = asyncio.StreamReader()
    read_end, write_end = os.pipe()
    pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(output), os.fdopen(read_end, "rb", 0))
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=write_end,
            stderr=write_end,
            env=dict(environment),
            start_new_session=True,
        )
    except BaseException:
        pipe.close()
        raise
    finally:
        os.close(write_end)
    return process, output, pipe


def has_ended(process: asyncio.subprocess.Process) -> bool:
    """Whether the process has ended and was waited for."""
    return process.returncode is not None


async def kill(process: asyncio.subprocess.Process) -> None:
    """End the whole tree now. The launcher does it at end of file; where it cannot, the process group is killed."""
    assert process.stdin is not None
    process.stdin.close()
    await first_of(process.wait(), timeout=KILL_PATIENCE)
    if process.returncode is None or _launcher_was_killed(process.returncode):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _launcher_was_killed(returncode: int | None) -> bool:
    """Whether the launcher itself died of a signal: what it passes on of the engine's is 128 + N, never negative."""
    return returncode is not None and returncode < 0
