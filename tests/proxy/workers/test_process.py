"""aiaas.proxy.workers.process: a worker as its supervisor sees it, acted by small programs."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest

from aiaas.proxy.admin.port import Query
from aiaas.proxy.workers.channel import Begin, Report
from aiaas.proxy.workers.process import WorkerProcess, ended_by

# The beginning of every scripted worker: its channel, in blocking calls.
PLAYER = """
import os, signal, socket, sys, time
import msgspec
from aiaas.proxy.workers.channel import *
from aiaas.proxy.workers.merge import MetricFamily, MetricSample
number, channel, listener, lock = map(int, sys.argv[1:])
sock = socket.socket(fileno=channel)
sock.setblocking(True)
def hear():
    size = int.from_bytes(sock.recv(4, socket.MSG_WAITALL))
    return msgspec.msgpack.decode(sock.recv(size, socket.MSG_WAITALL), type=Message)
def say(message):
    data = msgspec.msgpack.encode(message)
    sock.sendall(len(data).to_bytes(4) + data)
def counted(value, asked):
    return Counted([MetricFamily("a", "counter", "help", [MetricSample("a_total", {}, value)])], asked)
begin = hear()
"""
Play = Callable[..., Awaitable[tuple[WorkerProcess, asyncio.Task[str]]]]


@pytest.fixture
async def play() -> AsyncIterator[Play]:
    """Start a worker that does what the given Python lines say; `stdout` is /dev/null."""
    started: list[tuple[WorkerProcess, asyncio.Task[str]]] = []
    nowhere = os.open(os.devnull, os.O_WRONLY)

    async def start(
        lines: str, on_suspect: Callable[[str], None] = lambda _backend: None
    ) -> tuple[WorkerProcess, asyncio.Task[str]]:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            begin = Begin(("aiaas.yaml",), ("text",), ("before",), None)
            command = (sys.executable, "-c", PLAYER + lines)
            worker = await WorkerProcess.start(command, 7, begin, listener, (nowhere, nowhere), os.environ)
        started.append((worker, asyncio.create_task(worker.run(on_suspect))))
        return started[-1]

    yield start
    for worker, task in started:
        worker.kill()
        await task
    os.close(nowhere)


async def test_it_is_given_what_it_needs_and_says_when_it_serves(play: Play) -> None:
    """A worker gets its number, its config and a listening socket that accepts; it leads a session of its own."""
    worker, task = await play("""
assert number == 7 and begin == Begin(("aiaas.yaml",), ("text",), ("before",), None)
assert socket.socket(fileno=listener).getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
assert os.getsid(0) == os.getpid()
say(Serving(keys=5))
hear()
""")
    async with asyncio.timeout(10):
        await worker.serving.wait()
        assert worker.keys == 5
        assert f"process {worker.pid}, serving" in repr(worker)
        worker.kill()
        assert await task == "SIGKILL"
    assert worker.gone.is_set()


async def test_looks_are_answered_by_their_numbers(play: Play) -> None:
    """In any order; those that the worker leaves open at its end are cancelled, and so are later ones."""
    worker, task = await play("""
looks = [hear(), hear(), hear()]
assert [look.worker for look in looks] == [7, 7, 7] and looks[1].query.limit == 5
for look in (looks[1], looks[0]):
    say(Description(look.number, msgspec.Raw(msgspec.msgpack.encode(look.what))))
""")
    asked = [("status", Query()), ("requests", Query(limit=5)), ("refusals", Query())]
    async with asyncio.timeout(20):
        found = await asyncio.gather(*[worker.look(*each) for each in asked], return_exceptions=True)
        await task
        (later,) = await asyncio.gather(worker.look("status", Query()), return_exceptions=True)
    assert [msgspec.msgpack.decode(each) for each in found if isinstance(each, msgspec.Raw)] == ["status", "requests"]
    assert isinstance(found[2], asyncio.CancelledError)
    assert isinstance(later, asyncio.CancelledError)


async def test_counts_are_kept_beyond_the_workers_end(play: Play) -> None:
    """A report is answered once for all who ask meanwhile; a worker that has ended needs none."""
    worker, task = await play("""
say(counted(1.0, False))
say(Serving(keys=0))
assert isinstance(hear(), Report)
say(counted(2.0, True))
say(counted(3.0, False))
""")
    async with asyncio.timeout(10):
        await worker.serving.wait()
        assert worker.families[0].samples[0].value == 1
        await asyncio.gather(worker.report(), worker.report())
        assert worker.families[0].samples[0].value >= 2
        assert await task == "exit code 0"
        assert worker.families[0].samples[0].value == 3
        await worker.report()


async def test_report_of_a_hung_worker_is_waited_for_until_its_end(play: Play) -> None:
    """A caller that waits for it can give up, and ask again."""
    worker, task = await play("time.sleep(60)")
    for _ in range(2):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await worker.report()
    asking = asyncio.create_task(worker.report())
    await asyncio.sleep(0)
    worker.kill()
    async with asyncio.timeout(10):
        await asking
        await task


async def test_an_engine_that_it_suspects_is_told(play: Play) -> None:
    """To each caller that waits for it."""
    suspected: list[str] = []
    _, task = await play("say(EngineSuspected('own'))", suspected.append)
    async with asyncio.timeout(10):
        await task
    assert suspected == ["own"]


async def test_when_it_last_spoke_is_known(play: Play) -> None:
    """Before its first message, the time when it was started."""
    worker, _ = await play("hear(); say(Alive()); hear()")
    started = worker.heard
    assert not worker.has_spoken
    async with asyncio.timeout(10):
        worker.send(Report())
        while not worker.has_spoken:
            await asyncio.sleep(0.001)
    assert started < worker.heard <= asyncio.get_running_loop().time()


async def test_one_that_leaves_is_gone_before_it_has_ended(play: Play) -> None:
    """Its replacement need not wait for its last stream."""
    worker, task = await play("say(Serving(keys=0)); say(Leaving()); hear()")
    async with asyncio.timeout(10):
        await worker.gone.wait()
    assert not task.done()


async def test_one_that_only_closes_its_channel_is_killed(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody could send it a message any more."""
    monkeypatch.setattr("aiaas.proxy.workers.process.EXIT_PATIENCE", 0.1)
    _, task = await play("sock.close(); time.sleep(60)")
    async with asyncio.timeout(10):
        assert await task == "SIGKILL"


async def test_a_command_that_cannot_be_run_leaves_nothing_open() -> None:
    """OSError, without a leaked socket."""
    before = len(os.listdir("/proc/self/fd"))
    with socket.socket() as listener:
        with pytest.raises(OSError):
            await WorkerProcess.start(("/no/such/program",), 1, Begin((), (), (), None), listener, (1, 2), os.environ)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("code", "words"), [(0, "exit code 0"), (3, "exit code 3"), (-signal.SIGSEGV, "SIGSEGV"), (-99, "signal 99")]
)
def test_how_a_process_ended_is_said_in_words(code: int, words: str) -> None:
    """In the words that an operator would look up."""
    assert ended_by(code) == words
