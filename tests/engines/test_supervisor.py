"""aiaas.engines.supervisor and launch: small real processes that play vLLM."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import uvloop

from aiaas.engines.claim import Claim
from aiaas.engines.lifecycle import (
    AnswersAgain,
    Changed,
    Died,
    Event,
    GaveUp,
    Healthy,
    NotAnswering,
    Restarting,
    Starting,
    Stopped,
    Waiting,
)
from aiaas.engines.process import LONGEST_LINE
from aiaas.engines.supervisor import LAST_LINES, EngineSupervisor, find_vllm
from aiaas.errors import EnvironmentFault
from aiaas.plan.model import EnginePlan
from tests.engines.fake_vllm import alive, write_fake_vllm
from tests.ports import free_port
from tests.waiting import until


class Watched:
    """A supervisor with its log."""

    def __init__(self, supervisor: EngineSupervisor, events: list[Event], lines: list[str]) -> None:
        self.supervisor, self.events, self.lines = supervisor, events, lines

    def pids(self, word: str = "pid") -> list[int]:
        return [int(line.split()[1]) for line in self.lines if line.startswith(word + " ")]

    def kinds(self) -> list[type]:
        return [type(event) for event in self.events]


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    """A folder for PATH with a `vllm` that is a small fake."""
    return write_fake_vllm(tmp_path / "bin")


@pytest.fixture
async def watch(bin_folder: Path) -> AsyncIterator[Callable[..., Watched]]:
    """Make a supervisor of the fake vLLM; whatever still runs at the end is stopped."""
    made: list[Watched] = []

    def make(model: str, *, port: int | None = None, start_timeout: float = 20, drain: float = 5) -> Watched:
        events: list[Event] = []
        lines: list[str] = []
        plan = EnginePlan("vllm", model, model, (), {}, port or free_port(), start_timeout)
        supervisor = EngineSupervisor(
            "llama", plan, drain_timeout=drain, silence=0.5, on_event=events.append, on_line=lines.append,
            environ={"PATH": str(bin_folder)},
        )  # fmt: skip
        made.append(Watched(supervisor, events, lines))
        return made[-1]

    yield make
    for watched in made:
        await watched.supervisor.stop(0)


async def settled(events: list[Event]) -> bool:
    """Wait until the engine was healthy once (True), or was given up or stopped before it was (False)."""
    await until(lambda: any(isinstance(event, Healthy | GaveUp | Stopped) for event in events), within=30)
    return any(isinstance(event, Healthy) for event in events)


async def get(port: int, path: str) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    await writer.drain()
    writer.close()


async def test_engine_starts_becomes_healthy_and_stops_when_asked(watch):
    """SIGTERM reaches the engine, it leaves in its own way, and no process is killed."""
    engine = watch("plain")
    await engine.supervisor.start()
    assert await settled(engine.events)
    assert engine.supervisor.healthy
    await engine.supervisor.stop(10)
    assert engine.kinds() == [Starting, Healthy, Stopped]
    assert not engine.events[-1].killed
    assert engine.lines[-1] == "leaving"
    assert not psutil.pid_exists(engine.pids()[0])
    assert engine.supervisor.pid is None


async def test_one_that_ignores_sigterm_is_killed_after_the_grace(watch):
    """The caller chooses the grace; then the whole tree is killed, also a helper in a session of its own."""
    engine = watch("stubborn helper daemon", drain=60)
    await engine.supervisor.start()
    assert await settled(engine.events)
    started = time.monotonic()
    await engine.supervisor.stop(0.3)
    assert 0.3 <= time.monotonic() - started < 20
    assert engine.events[-1].killed
    assert len(engine.pids("helper")) == 2
    assert [pid for pid in engine.pids() + engine.pids("helper") if psutil.pid_exists(pid)] == []


async def test_sigterm_goes_to_the_root_alone(watch):
    """An engine core that got SIGTERM would drop its requests; the helper is left alone until the root has gone."""
    engine = watch("helper slow")
    await engine.supervisor.start()
    assert await settled(engine.events)
    await until(lambda: "helper-ready" in engine.lines)
    await engine.supervisor.stop(10)
    assert not engine.events[-1].killed
    assert engine.lines[-1] == "leaving"
    assert "helper-got-SIGTERM" not in engine.lines
    assert not psutil.pid_exists(engine.pids("helper")[0])


async def test_a_dead_engine_is_restarted_and_its_exit_code_told(watch):
    """A second process, after the first wait; the first one's helpers are gone by then."""
    engine = watch("helper")
    await engine.supervisor.start()
    assert await settled(engine.events)
    await get(engine.supervisor.engine.port, "/die")
    await until(lambda: engine.kinds().count(Healthy) == 2)
    assert engine.kinds() == [Starting, Healthy, Died, Restarting, Starting, Healthy]
    assert engine.events[2].exit_code == 3
    assert engine.events[3] == Restarting(1)
    assert (engine.supervisor.starts, engine.supervisor.deaths) == (2, 1)
    assert not psutil.pid_exists(engine.pids("helper")[0])


async def test_fault_of_our_own_restarts_the_engine(bin_folder: Path) -> None:
    """Any exception while it is watched: otherwise it would stay down until the gateway's next start."""
    events: list[Event] = []

    def on_event(event: Event) -> None:
        events.append(event)
        if [type(event) for event in events].count(Healthy) == 1 and isinstance(event, Healthy):
            raise ZeroDivisionError("oh")

    plan = EnginePlan("vllm", "helper", "helper", (), {}, free_port(), 20)
    supervisor = EngineSupervisor(
        "llama",
        plan,
        drain_timeout=5,
        silence=5,
        on_event=on_event,
        on_line=lambda _: None,
        environ={"PATH": str(bin_folder)},
    )
    await supervisor.start()
    try:
        await until(lambda: [type(event) for event in events].count(Healthy) == 2)
    finally:
        await supervisor.stop(0)
    assert [type(event) for event in events[:6]] == [Starting, Healthy, Died, Restarting, Starting, Healthy]
    assert isinstance(events[2], Died)
    assert events[2].cause == "internal error: ZeroDivisionError('oh')"


async def test_a_killed_engine_core_is_told_apart_by_its_signal(watch):
    """A root that dies of SIGKILL shows as 137."""
    engine = watch("plain")
    await engine.supervisor.start()
    assert await settled(engine.events)
    os.kill(engine.pids()[0], signal.SIGKILL)
    await until(lambda: Restarting in engine.kinds())
    assert engine.events[2].exit_code == 137


async def test_the_last_lines_of_a_failed_start_are_kept(watch, monkeypatch):
    """The reason is in the engine's own words; `stop` during the wait ends it at once."""
    monkeypatch.setattr("aiaas.engines.lifecycle.FIRST_WAIT", 60.0)
    engine = watch("crash")
    await engine.supervisor.start()
    await until(lambda: Restarting in engine.kinds())
    died = engine.events[1]
    assert died.exit_code == 1
    assert died.last_lines[-1] == died.cause == "ValueError: no such model"
    started = time.monotonic()
    await engine.supervisor.stop(60)
    assert time.monotonic() - started < 20
    assert not await settled(engine.events)


async def test_an_engine_that_never_gets_healthy_is_given_up(watch, monkeypatch):
    """A caller that waits for it gets the error."""
    monkeypatch.setattr("aiaas.engines.lifecycle.FIRST_WAIT", 0.0)
    engine = watch("crash")
    await engine.supervisor.start()
    assert not await settled(engine.events)
    assert engine.events[-1] == GaveUp(5)
    assert engine.kinds().count(Starting) == 5


@pytest.mark.parametrize("model", ["deaf", "sick"], ids=["does not listen", "answers 503"])
async def test_one_that_does_not_get_healthy_in_time_is_ended(watch, model):
    """A slow start counts as a death, without an exit code."""
    engine = watch(model, start_timeout=1)
    await engine.supervisor.start()
    await until(lambda: engine.supervisor.pid is not None)
    launcher = engine.supervisor.pid
    await until(lambda: Restarting in engine.kinds())
    assert engine.events[1].exit_code is None
    assert "if the model loads slowly, raise start_timeout" in engine.events[1].cause
    assert engine.events[1].seconds >= 1
    # The engine has said its own, unless the machine was so busy that it had not even begun.
    assert not [pid for pid in (launcher, *engine.pids()) if psutil.pid_exists(pid)]


async def test_vllm_too_old_for_shutdown_timeout_starts_without_it(watch):
    """Any vLLM on PATH is used."""
    engine = watch("old")
    await engine.supervisor.start()
    assert await settled(engine.events)
    starts = [event.argv for event in engine.events if isinstance(event, Starting)]
    assert ["--shutdown-timeout" in argv for argv in starts] == [True, False]


async def test_a_loud_engine_is_never_blocked_by_its_output(watch):
    """More than a pipe holds, in one line and in many; all of it arrives, the long line cut."""
    engine = watch("loud")
    await engine.supervisor.start()
    assert await settled(engine.events)
    await until(lambda: len(engine.lines) == 3002)
    assert len(engine.lines[1]) == LONGEST_LINE
    assert engine.lines[-1].startswith("line 2999 y")


async def test_a_taken_port_is_refused_before_anything_starts(watch):
    """Otherwise the other program's /health would pass for the engine's."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        engine = watch("plain", port=other.getsockname()[1])
        with pytest.raises(EnvironmentFault, match=r"backend llama: its engine's port \d+ is taken"):
            await engine.supervisor.start()
    assert engine.events == []


async def test_a_missing_vllm_is_one_clear_message(tmp_path):
    """The error comes from `start`, at once, and names the ways to fix it."""
    plan = EnginePlan("vllm", "m", "m", (), {}, free_port(), 10)
    supervisor = EngineSupervisor(
        "llama", plan, drain_timeout=1, silence=1, on_event=print, on_line=print, environ={"PATH": str(tmp_path)},
        python=str(tmp_path / "python"),
    )  # fmt: skip
    with pytest.raises(EnvironmentFault, match="backend llama: no `vllm` found"):
        await supervisor.start()
    await supervisor.stop(1)


async def test_stop_right_after_start_leaves_nothing(watch):
    """Also while the process is still being created."""
    engine = watch("stubborn")
    before = launchers()
    await engine.supervisor.start()
    await asyncio.sleep(0)
    await engine.supervisor.stop(5)
    assert engine.kinds()[-1] is Stopped
    assert engine.supervisor.pid is None
    assert launchers() <= before


def launchers() -> set[int]:
    """Launchers that this process has started, those of other fixtures included."""
    return {child.pid for child in psutil.Process().children() if "launch.py" in " ".join(child.cmdline())}


async def test_a_killed_launcher_takes_the_tree_with_it(watch):
    """The kernel kills the root, the supervisor the rest of the group, and a new engine starts."""
    engine = watch("stubborn helper")
    await engine.supervisor.start()
    assert await settled(engine.events)
    os.kill(engine.supervisor.pid, signal.SIGKILL)
    await until(lambda: Restarting in engine.kinds())
    await until(lambda: not any(map(alive, engine.pids() + engine.pids("helper"))))


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_it_works_on_both_event_loops(bin_folder, loop):
    """`aiaas serve` runs on uvloop, whose child processes are code of its own."""
    events: list[Event] = []

    async def life() -> None:
        plan = EnginePlan("vllm", "stubborn helper daemon", "m", (), {}, free_port(), 20)
        supervisor = EngineSupervisor(
            "m", plan, drain_timeout=5, silence=1, on_event=events.append, on_line=lines.append,
            environ={"PATH": str(bin_folder)},
        )  # fmt: skip
        await supervisor.start()
        assert await settled(events)
        await until(lambda: len(pids()) == 3)  # health may be quicker than the last line
        os.kill(pids()[0], signal.SIGKILL)
        await until(lambda: [type(event) for event in events].count(Healthy) == 2 and len(pids()) == 6)
        await supervisor.stop(0.1)

    def pids() -> list[int]:
        return [int(line.split()[1]) for line in lines if line.startswith(("pid", "helper "))]

    lines: list[str] = []
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(life())
    assert [type(event) for event in events] == [Starting, Healthy, Died, Restarting, Starting, Healthy, Stopped]
    assert len(pids()) == 6
    assert not any(map(alive, pids()))


async def test_vllm_is_found_on_path_first_then_beside_python(tmp_path):
    """An activated environment wins; without one, the environment that aiaas is installed in will do."""
    for name in ("on_path", "beside"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vllm").touch(0o755)
    path, python = str(tmp_path / "on_path"), str(tmp_path / "beside" / "python")
    assert find_vllm(path, python) == f"{path}/vllm"
    assert find_vllm(str(tmp_path), python) == str(tmp_path / "beside" / "vllm")
    assert find_vllm(str(tmp_path), str(tmp_path / "python")) is None


def test_enough_last_lines_are_kept_for_a_traceback():
    """vLLM's own cause stands some lines above the last one."""
    assert LAST_LINES >= 20


# -- frozen --------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at a healthy engine follow each other at once."""
    monkeypatch.setattr("aiaas.engines.looks.LOOK_INTERVAL", 0.05)
    monkeypatch.setattr("aiaas.engines.supervisor.LOOK_TIMEOUT", 0.3)


async def test_a_frozen_engine_is_restarted(watch, quick_looks):
    """The engine first gets no requests, and is killed after further looks; SIGSTOP resists SIGTERM only."""
    engine = watch("plain")
    await engine.supervisor.start()
    assert await settled(engine.events)
    os.kill(engine.pids()[0], signal.SIGSTOP)
    await until(lambda: engine.kinds().count(Healthy) == 2, 20)
    assert engine.kinds() == [Starting, Healthy, NotAnswering, Died, Restarting, Starting, Healthy]
    died = engine.events[3]
    assert died.exit_code is None
    assert died.cause.startswith("frozen: no answer to /health 6 times in a row")
    assert not alive(engine.pids()[0])


async def test_an_engine_that_is_only_slow_is_not_restarted(watch, quick_looks):
    """The engine gets no requests meanwhile, and then the next ones."""
    engine = watch("plain")
    await engine.supervisor.start()
    assert await settled(engine.events)
    os.kill(engine.pids()[0], signal.SIGSTOP)
    await until(lambda: NotAnswering in engine.kinds())
    os.kill(engine.pids()[0], signal.SIGCONT)
    await until(lambda: AnswersAgain in engine.kinds())
    assert engine.kinds() == [Starting, Healthy, NotAnswering, AnswersAgain]


async def test_an_engine_that_answers_503_for_long_is_restarted(watch, quick_looks):
    """A vLLM whose core has died may stay (VLLM_KEEP_ALIVE_ON_ENGINE_DEATH), and says so on /health."""
    engine = watch("plain")
    await engine.supervisor.start()
    assert await settled(engine.events)
    await get(engine.supervisor.engine.port, "/sicken")
    await until(lambda: engine.kinds().count(Healthy) == 2, 20)
    assert Died in engine.kinds()


async def test_engine_frozen_while_it_stops_is_killed_after_its_grace(watch, quick_looks):
    """A stopping engine is not restarted."""
    engine = watch("plain")
    await engine.supervisor.start()
    assert await settled(engine.events)
    os.kill(engine.pids()[0], signal.SIGSTOP)
    await engine.supervisor.stop(0.2)
    assert engine.kinds() == [Starting, Healthy, Stopped]
    assert engine.events[-1].killed
    assert not alive(engine.pids()[0])


@pytest.mark.parametrize(
    ("model", "is_frozen"),
    [("plain", False), ("core-frozen", True), ("core-frozen core-moves", False)],
    ids=["answers", "does nothing", "a slow prefill"],
)
async def test_a_request_that_timed_out_is_a_reason_to_look(watch, quick_looks, model, is_frozen):
    """/health says 200 whatever the engine core does; only a core that does nothing is frozen."""
    engine = watch(model)
    await engine.supervisor.start()
    assert await settled(engine.events)
    engine.supervisor.suspect()
    if is_frozen:
        await until(lambda: Died in engine.kinds())
        assert engine.events[2].cause == "frozen: requests time out, and it made no progress for 0.5 s"
    else:
        await until(lambda: "looked-at" in engine.lines)
        await asyncio.sleep(1)
        assert engine.kinds() == [Starting, Healthy]


# -- other settings ------------------------------------------------------------------------------------------------


async def test_a_crash_loop_ends_with_other_settings(watch):
    """At once and not after the wait, with a new row of deaths."""
    engine = watch("crash")
    await engine.supervisor.start()
    await until(lambda: engine.kinds().count(Restarting) == 2)
    mended = replace(engine.supervisor.engine, model="plain")
    assert engine.supervisor.offer(mended)
    await until(lambda: Healthy in engine.kinds())
    assert engine.kinds()[-3:] == [Changed, Starting, Healthy]
    assert engine.events[-2].attempt == 1
    assert engine.supervisor.deaths == 2, "a restart with other settings is not a death"
    assert "plain" in engine.events[-2].argv


async def test_an_engine_that_was_given_up_starts_with_other_settings(watch, monkeypatch):
    """An operator who has fixed the config need not restart the gateway; the same settings again change nothing."""
    monkeypatch.setattr("aiaas.engines.lifecycle.FIRST_WAIT", 0.0)
    engine = watch("crash")
    await engine.supervisor.start()
    await until(lambda: GaveUp in engine.kinds())
    assert engine.supervisor.offer(engine.supervisor.engine)
    assert engine.kinds()[-1] is GaveUp
    assert engine.supervisor.offer(replace(engine.supervisor.engine, model="plain", port=free_port()))
    await until(lambda: Healthy in engine.kinds())


async def test_an_engine_that_loads_starts_anew_with_other_settings(watch):
    """The engine may be loading the wrong model for an hour."""
    engine = watch("deaf")
    await engine.supervisor.start()
    await until(engine.pids)
    assert engine.supervisor.offer(replace(engine.supervisor.engine, model="plain"))
    assert await settled(engine.events)
    assert not alive(engine.pids()[0])
    assert Died not in engine.kinds()


async def test_a_healthy_engine_keeps_its_settings(watch):
    """And so do its streams."""
    engine = watch("plain")
    await engine.supervisor.start()
    assert await settled(engine.events)
    before = engine.supervisor.engine
    assert not engine.supervisor.offer(replace(before, model="other"))
    assert engine.supervisor.offer(before)
    assert engine.supervisor.engine is before
    assert alive(engine.pids()[0])


async def test_secrets_of_an_engine_are_not_shown(watch):
    """Neither on its command line nor in its output."""
    engine = watch("crash")
    secret = "hf_0123456789"
    engine.supervisor.engine = replace(
        engine.supervisor.engine, args=("--api-key", secret), env={"SAY": f"ValueError: {secret} is wrong"}
    )
    await engine.supervisor.start()
    await until(lambda: Restarting in engine.kinds())
    assert engine.events[1].cause == "ValueError: *** is wrong"
    assert secret not in repr(engine.events) + repr(engine.lines)


# -- its port ------------------------------------------------------------------------------------------------------


async def test_a_port_of_another_aiaas_is_waited_for(watch):
    """A draining predecessor keeps the port, with the GPU's memory; the engine starts once it has ended."""
    engine = watch("plain")
    claim = Claim()
    assert claim.take(engine.supervisor.engine.port)
    with socket.create_server(("127.0.0.1", engine.supervisor.engine.port)):
        await engine.supervisor.start()
        await until(lambda: engine.events)
    assert engine.events == [Waiting(engine.supervisor.engine.port)]
    await asyncio.sleep(0.3)
    assert len(engine.events) == 1
    claim.release()
    assert await settled(engine.events)


async def test_settings_that_change_while_it_waits_are_used(watch):
    """With another port the engine need not wait any longer."""
    engine = watch("crash")
    claim = Claim()
    assert claim.take(engine.supervisor.engine.port)
    await engine.supervisor.start()
    await until(lambda: engine.events)
    assert engine.supervisor.offer(replace(engine.supervisor.engine, model="plain", port=free_port()))
    assert await settled(engine.events)
    assert engine.kinds() == [Waiting, Starting, Healthy]
    claim.release()


async def test_stop_ends_the_wait_for_a_port(watch):
    """No process was started."""
    engine = watch("plain")
    claim = Claim()
    assert claim.take(engine.supervisor.engine.port)
    await engine.supervisor.start()
    await until(lambda: engine.events)
    await engine.supervisor.stop(5)
    assert engine.kinds() == [Waiting, Stopped]
    claim.release()


async def test_a_port_is_claimed_until_the_engine_has_ended(watch):
    """Also between two runs of the engine."""
    engine = watch("crash")
    await engine.supervisor.start()
    await until(lambda: Restarting in engine.kinds())
    other = Claim()
    assert not other.take(engine.supervisor.engine.port)
    await engine.supervisor.stop(5)
    assert other.take(engine.supervisor.engine.port)
    other.release()


async def test_a_port_taken_between_two_lives_is_the_cause(watch):
    """The other program's /health would pass for the engine's."""
    engine = watch("plain")
    await engine.supervisor.start()
    assert await settled(engine.events)
    os.kill(engine.pids()[0], signal.SIGKILL)
    await until(lambda: Restarting in engine.kinds())
    with socket.create_server(("127.0.0.1", engine.supervisor.engine.port)):
        await until(lambda: engine.kinds().count(Died) == 2)
    assert "is taken by another program" in engine.events[-2].cause
