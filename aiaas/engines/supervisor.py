"""Keeps one engine running: start, watch /health, restart, stop. What to do is decided in `lifecycle`; this acts.

Rules:

1. One owned, named task does everything; `stop` ends it and waits for it, whatever state it is in.
2. The engine's output is read always, also while nobody listens: a full pipe would freeze the engine.
3. A process is never left behind: every way out of `_run_once` ends in `_end`, and the launcher covers our own death.
4. /health counts only while our own process lives, and the port is tried first: else another program's answer on that
   port would pass for the engine's.
5. An engine that was healthy and is frozen (`looks`) is ended and started again; one that loads is never frozen.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from aiaas.engines import launch
from aiaas.engines.cause import RECENT, CauseFinder, hide, secrets_of
from aiaas.engines.claim import Claim, port_is_free
from aiaas.engines.command import HOST, NO_VLLM, engine_argv, engine_environment, refused_shutdown_timeout
from aiaas.engines.lifecycle import (
    AnswersAgain,
    Changed,
    Died,
    Event,
    GaveUp,
    Life,
    NotAnswering,
    StillLoading,
    Stopped,
    Waiting,
)
from aiaas.engines.looks import FROZEN_AFTER, LOOK_TIMEOUT, Looks, answers_health, makes_progress, pause_before_look
from aiaas.engines.process import KILL_PATIENCE, has_ended, kill, lines_of, spawn
from aiaas.errors import EnvironmentFault
from aiaas.plan.model import EnginePlan
from aiaas.waiting import first_of

HEALTH_INTERVAL: Final = 0.1  # seconds between looks at /health while loading
POLL_TIMEOUT: Final = 2.0  # seconds for one look
REPORT_INTERVAL: Final = 5.0  # seconds between StillLoading events
CLAIM_INTERVAL: Final = 0.2  # seconds between looks at whether another aiaas still has the port
OUR_LOOK: Final = '"GET /health HTTP/1.1" 200'  # vLLM's line for each of our looks
LAST_LINES: Final = 20  # kept for Died: a traceback's end and the message before it


class EngineSupervisor:
    """One managed engine.

    name           for the task's name and for messages: the backend's
    engine         what to run; it listens on 127.0.0.1:engine.port
    drain_timeout  seconds that the engine may take, on SIGTERM, to finish what is in flight
    silence        seconds that a request may be silent; after a `suspect`, the engine is frozen if for as long again it
                   does nothing at all
    on_event       called with each `lifecycle.Event`, in order, on the event loop; must not block
    on_line        called with each line that the engine writes (stdout and stderr alike), without its newline;
                   must not block nor raise
    environ        the environment to inherit; os.environ when None
    python         and `python_options`: what a simulator runs under
    """

    def __init__(
        self,
        name: str,
        engine: EnginePlan,
        *,
        drain_timeout: float,
        silence: float,
        on_event: Callable[[Event], None],
        on_line: Callable[[str], None],
        environ: Mapping[str, str] | None = None,
        python: str = sys.executable,
        python_options: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.engine = engine
        self._drain_timeout = drain_timeout
        self._silence = silence
        self._on_event = on_event
        self._on_line = on_line
        self._environ = os.environ if environ is None else environ
        self._python = python
        self._python_options = python_options
        self._life = Life()
        self._knows_shutdown_timeout = True
        self._process: asyncio.subprocess.Process | None = None
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._causes = CauseFinder()
        self._claim = Claim()
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._hurried = asyncio.Event()
        self._changed = asyncio.Event()  # `engine` is another than what runs
        self._suspected = False

    def __repr__(self) -> str:
        state = "healthy" if self._life.healthy_at is not None else "not healthy"
        return f"<engine {self.name} ({self.engine.kind}) at {HOST}:{self.engine.port}, {state}>"

    @property
    def pid(self) -> int | None:
        """Process id of the launcher, which leads the engine's process group; None while nothing runs."""
        return self._process.pid if self._process is not None else None

    @property
    def healthy(self) -> bool:
        """Whether the present process has answered /health."""
        return self._life.healthy_at is not None

    async def start(self) -> None:
        """Start the engine and return at once; events tell the rest.

        Raises EnvironmentFault where there is no `vllm`, or where another program than aiaas has the port.
        """
        if self.engine.kind == "vllm" and self._vllm() is None:
            raise EnvironmentFault(f"backend {self.name}: {NO_VLLM}")
        if self._claim.take(self.engine.port) and not port_is_free(self.engine.port):
            self._claim.release()
            raise EnvironmentFault(
                f"backend {self.name}: its engine's port {self.engine.port} is taken by another program"
            )
        self._task = asyncio.create_task(self._keep_running(), name=f"engine {self.name}")

    def offer(self, engine: EnginePlan) -> bool:
        """Take other settings unless the engine is healthy; True if it runs, or starts, with them.

        A healthy engine keeps its settings, and so its streams. Any other engine is started with the new ones at once.
        """
        if engine == self.engine:
            return True
        if self.healthy or self._stopping.is_set():
            return False
        self.engine = engine
        self._changed.set()
        return True

    def suspect(self) -> None:
        """Check at the next look whether the engine does anything at all: a request has timed out in it."""
        self._suspected = True

    async def stop(self, grace: float) -> None:
        """Let the engine finish for up to `grace` seconds, then kill whatever of it is left. Idempotent."""
        if self._task is None or self._stopping.is_set():
            return
        started = _now()
        self._stopping.set()
        killed = False
        process = self._process
        if process is not None and not has_ended(process):
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            killed = not await self._left_in_time(process, grace)
            if killed:
                await kill(process)
        await asyncio.gather(self._task, return_exceptions=True)
        self._on_event(Stopped(_now() - started, killed))

    def hurry(self) -> None:
        """End the grace of a `stop` that is under way: whoever waits for it has lost patience."""
        self._hurried.set()

    async def _left_in_time(self, process: asyncio.subprocess.Process, grace: float) -> bool:
        await first_of(process.wait(), self._hurried.wait(), timeout=grace)
        return has_ended(process)

    async def _keep_running(self) -> None:
        try:
            while await self._port_is_ours():
                run = asyncio.create_task(self._run_once(), name=f"engine {self.name}: a run")
                (died,) = await asyncio.gather(run, return_exceptions=True)
                if isinstance(died, Exception):  # a fault of ours: the engine gets its next start, as after its own
                    died = self._died(launch.CANNOT_EXECUTE, f"internal error: {died!r}")
                elif isinstance(died, BaseException):
                    raise died
                if self._stopping.is_set():
                    return
                if self._changed.is_set():
                    self._start_over()
                    continue
                self._on_event(died)
                if self._knows_shutdown_timeout and refused_shutdown_timeout(died.last_lines):
                    self._knows_shutdown_timeout = False
                self._life, then = self._life.die(_now())
                self._on_event(then)
                await self._pause(None if isinstance(then, GaveUp) else then.in_seconds)
                if self._changed.is_set():
                    self._start_over()
        finally:
            self._claim.release()

    async def _port_is_ours(self) -> bool:
        """Wait until no other aiaas has the port; False if this one is stopped meanwhile."""
        port = None
        while not self._stopping.is_set():
            self._changed.clear()  # nothing runs yet that would have to start anew
            if self._claim.take(self.engine.port):
                return True
            if port != self.engine.port:
                port = self.engine.port
                self._on_event(Waiting(port))
            await self._pause(CLAIM_INTERVAL)
        return False

    def _start_over(self) -> None:
        """Begin a new life with the changed settings: the deaths under the old ones do not count."""
        self._changed.clear()
        self._life = Life()
        self._knows_shutdown_timeout = True
        self._on_event(Changed())

    async def _pause(self, seconds: float | None) -> None:
        """Wait `seconds` (None: for ever), at most until the engine is stopped or gets other settings."""
        await first_of(self._stopping.wait(), self._changed.wait(), timeout=seconds)

    def _environment(self) -> dict[str, str]:
        return engine_environment(self.engine, self._environ)

    def _vllm(self) -> str | None:
        return find_vllm(self._environment().get("PATH"), self._python)

    async def _run_once(self) -> Died:
        """One process, from its start to its end."""
        engine, vllm = self.engine, self._vllm()
        secrets = secrets_of(engine.args, engine.env)
        self._last_lines.clear()
        self._causes = CauseFinder()
        self._suspected = False
        if engine.kind == "vllm" and vllm is None:
            self._life, _ = self._life.start(_now(), ())
            return self._died(launch.CANNOT_EXECUTE, NO_VLLM)
        argv = engine_argv(
            engine,
            python=self._python,
            vllm=vllm,
            drain_timeout=self._drain_timeout,
            knows_shutdown_timeout=self._knows_shutdown_timeout,
            python_options=self._python_options,
        )
        self._life, starting = self._life.start(_now(), tuple(hide(arg, secrets) for arg in argv))
        if not port_is_free(engine.port):
            return self._died(launch.CANNOT_EXECUTE, f"its port {engine.port} is taken by another program")
        self._on_event(starting)
        try:
            process, output, pipe = await spawn((self._python, "-I", launch.__file__, *argv), self._environment())
        except OSError as error:  # no memory, or no process left for this user
            return self._died(launch.CANNOT_EXECUTE, f"cannot start {self._python}: {error.strerror}")
        self._process = process
        reader = asyncio.create_task(self._forward_lines(output, secrets), name=f"engine {self.name}: output")
        why = None
        try:
            if not self._stopping.is_set():  # `stop` may have come while the process was being made
                why = await self._until_healthy(process) or await self._while_healthy(process)
        finally:
            await kill(process)
            await asyncio.wait({reader}, timeout=KILL_PATIENCE)
            reader.cancel()
            pipe.close()
            self._process = None
        return self._died(process.returncode, why)

    def _died(self, code: int | None, why: str | None) -> Died:
        """Make the event; `why` is given if we ended the engine or could not start it."""
        now, healthy_at = _now(), self._life.healthy_at
        cause = why or self._causes.cause(0.0 if healthy_at is None else now - RECENT)
        ended_by_us = why is not None and code != launch.CANNOT_EXECUTE
        return Died(None if ended_by_us else code, cause, tuple(self._last_lines), now - self._life.started_at)

    async def _until_healthy(self, process: asyncio.subprocess.Process) -> str | None:
        """Return None once it is healthy, has ended or gets other settings; else the reason to end it."""
        started = self._life.started_at
        next_report = started + REPORT_INTERVAL
        while not has_ended(process) and not self._changed.is_set():
            answered = await answers_health(self.engine.port, POLL_TIMEOUT)
            now = _now()
            if answered and not has_ended(process) and not self._changed.is_set():
                self._life, healthy = self._life.become_healthy(now)
                self._on_event(healthy)
                return None
            if now - started >= self.engine.start_timeout:
                return (
                    f"not healthy within {self.engine.start_timeout:g} s; a model that loads longer needs start_timeout"
                )
            if now >= next_report:
                next_report = now + REPORT_INTERVAL
                self._on_event(StillLoading(now - started, self._last_lines[-1] if self._last_lines else ""))
            await first_of(process.wait(), self._changed.wait(), timeout=HEALTH_INTERVAL)
        return None

    async def _while_healthy(self, process: asyncio.subprocess.Process) -> str | None:
        """Watch a healthy engine. Return None once it has ended; else the reason to end it."""
        looks, began = Looks(_now(), _now()), _now()
        while not has_ended(process) and not self._changed.is_set():
            await first_of(process.wait(), self._stopping.wait(), timeout=pause_before_look(began, _now()))
            if self._stopping.is_set():  # a vLLM that drains stops answering at some point
                await process.wait()
                break
            if self._suspected:
                self._suspected = False
                if not await self._does_anything(process):
                    return f"frozen: requests time out, and for {self._silence:g} s it has done nothing"
                looks = Looks(_now(), looks.since, looks.failed)
            began, was_down = _now(), looks.is_down
            answered = await answers_health(self.engine.port, LOOK_TIMEOUT)
            if has_ended(process):
                break
            looks = looks.after(answered, began, now := _now())
            if looks.is_frozen:
                return f"frozen: no answer to /health {FROZEN_AFTER} times in a row, for {now - looks.since:.0f} s"
            if looks.is_down and not was_down:
                self._on_event(NotAnswering(now - looks.since))
            if was_down and not looks.is_down:
                self._on_event(AnswersAgain())
        return None

    async def _does_anything(self, process: asyncio.subprocess.Process) -> bool:
        """Check a suspected engine; True also if it ends meanwhile, or if our own loop was late."""
        began = _now()
        asking = asyncio.create_task(makes_progress(self.engine.port, self.engine.served_name, self._silence))
        try:
            await first_of(process.wait(), asyncio.wait({asking}))
            was_late = _now() - began > self._silence + 3 * LOOK_TIMEOUT
            return not asking.done() or asking.result() or was_late
        finally:
            asking.cancel()

    async def _forward_lines(self, output: asyncio.StreamReader, secrets: tuple[str, ...]) -> None:
        async for line in lines_of(output):
            if OUR_LOOK in line:
                continue
            shown = hide(line, secrets)
            self._last_lines.append(shown)
            self._causes.read(shown, _now())
            self._on_line(shown)


def find_vllm(path: str | None, python: str) -> str | None:
    """The `vllm` on `path` (a PATH value), else the one beside the interpreter `python`, else None."""
    return shutil.which("vllm", path=path) or shutil.which("vllm", path=str(Path(python).parent))


def _now() -> float:
    return asyncio.get_running_loop().time()
