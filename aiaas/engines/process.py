"""Helpers of `supervisor`: start and kill an asyncio process, read its output by lines."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Mapping
from typing import Final

from aiaas.waiting import first_of

LONGEST_LINE: Final = 8192  # characters; the rest of a longer line is dropped
KILL_PATIENCE: Final = 5.0  # seconds for the launcher to kill the tree before we kill the launcher


async def lines_of(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Yield non-empty lines without their line ends. A carriage return also ends a line, for progress bars.

    At most LONGEST_LINE characters of a line are kept, so that an endless line cannot fill the memory.
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
    """Start a process. Returns it, its output (stdout and stderr in one), and the pipe that the caller closes.

    The output goes through a pipe of our own: asyncio's `Process.wait` also waits for asyncio's pipes to close, and
    would never return while a left-over grandchild holds one.
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
    """Whether the process has ended and asyncio has its exit code."""
    return process.returncode is not None


async def kill(process: asyncio.subprocess.Process) -> None:
    """Kill the whole tree: the launcher does so at end of file on its stdin; if it fails, kill its process group."""
    assert process.stdin is not None
    process.stdin.close()
    await first_of(process.wait(), timeout=KILL_PATIENCE)
    if process.returncode is None or _launcher_was_killed(process.returncode):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _launcher_was_killed(returncode: int | None) -> bool:
    """Whether a signal killed the launcher itself: the engine's exit codes that it passes on are never negative."""
    return returncode is not None and returncode < 0
