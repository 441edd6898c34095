"""Keep one engine running: start it, watch /health, restart it, stop it. `lifecycle` decides; this module acts.

Rules:

1. One owned, named task does everything; `stop` ends the task and waits for it, in every state.
2. Always read the engine's output: a full pipe would freeze the engine.
3. Never leave a process behind: `_run_once` always kills the tree at its end, and the launcher does so if we die.
4. Trust /health only while our own process lives, and check first that the port is free: otherwise another program's
   answer on that port could pass for the engine's.
5. Restart a frozen engine (`looks`). Only an engine that was healthy can be frozen, not one that is loading.
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
CLAIM_INTERVAL: Final = 0.2  # seconds between attempts to claim a port that another aiaas has
OUR_LOOK: Final = '"GET /health HTTP/1.1" 200'  # vLLM's line for each of our looks
LAST_LINES: Final = 20  # lines kept for Died: a traceback's end and the message before it


class EngineSupervisor:
    """One managed engine.

    name           the backend's name, for the task's name and for messages
    engine         the engine to run; it listens on 127.0.0.1:engine.port
    drain_timeout  seconds that the engine may take, on SIGTERM, to finish requests in flight
    silence        seconds that a request may be silent; after a `suspect`, the engine is frozen if it makes no progress
                   for as long again
    on_event       called with each `lifecycle.Event`, in order, on the event loop; must not block
    on_line        called with each line that the engine writes (stdout and stderr alike), without its newline;
                   must not block or raise
    environ        the environment to inherit; os.environ if None
    python         with `python_options`, the interpreter that runs a simulator

    starts, deaths  how often its process was started, and ended without being stopped or restarted with new settings
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
        self._changed = asyncio.Event()  # `engine` differs from the running engine
        self._suspected = False
        self.starts = 0
        self.deaths = 0

    def __repr__(self) -> str:
        state = "healthy" if self._life.healthy_at is not None else "not healthy"
        return f"<engine {self.name} ({self.engine.kind}) at {HOST}:{self.engine.port}, {state}>"

    @property
    def pid(self) -> int | None:
        """Process id of the launcher, which leads the engine's process group; None while the engine does not run."""
        return self._process.pid if self._process is not None else None

    @property
    def healthy(self) -> bool:
        """Whether the present process has answered /health."""
        return self._life.healthy_at is not None

    async def start(self) -> None:
        """Start the engine and return at once; events report its progress.

        Raises EnvironmentFault if `vllm` is not installed, or if a program other than aiaas uses the port.
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
        """Use new settings unless the engine is healthy. Returns True if the engine runs, or starts, with them.

        A healthy engine keeps its settings, and so its streams. Any other engine restarts with them at once.
        """
        if engine == self.engine:
            return True
        if self.healthy or self._stopping.is_set():
            return False
        self.engine = engine
        self._changed.set()
        return True

    def suspect(self) -> None:
        """Check at the next look whether the engine makes any progress; call this after a request has timed out."""
        self._suspected = True

    async def stop(self, grace: float) -> None:
        """Let the engine finish for up to `grace` seconds, then kill its remaining processes. Idempotent."""
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
        """End the grace of a running `stop`, so that it kills the engine now."""
        self._hurried.set()

    async def _left_in_time(self, process: asyncio.subprocess.Process, grace: float) -> bool:
        await first_of(process.wait(), self._hurried.wait(), timeout=grace)
        return has_ended(process)

    async def _keep_running(self) -> None:
        try:
            while await self._port_is_ours():
                run = asyncio.create_task(self._run_once(), name=f"engine {self.name}: a run")
                (died,) = await asyncio.gather(run, return_exceptions=True)
                if isinstance(died, Exception):  # a bug in this module: restart the engine, as if it had died
                    died = self._died(launch.CANNOT_EXECUTE, f"internal error: {died!r}")
                elif isinstance(died, BaseException):
                    raise died
                if self._stopping.is_set():
                    return
                if self._changed.is_set():
                    self._start_over()
                    continue
                self.deaths += 1
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
        """Wait until no other aiaas has the port; False if this engine is stopped meanwhile."""
        port = None
        while not self._stopping.is_set():
            self._changed.clear()  # the engine does not run yet, so new settings need no restart
            if self._claim.take(self.engine.port):
                return True
            if port != self.engine.port:
                port = self.engine.port
                self._on_event(Waiting(port))
            await self._pause(CLAIM_INTERVAL)
        return False

    def _start_over(self) -> None:
        """Begin a new life with the changed settings; deaths under the old settings do not count."""
        self._changed.clear()
        self._life = Life()
        self._knows_shutdown_timeout = True
        self._on_event(Changed())

    async def _pause(self, seconds: float | None) -> None:
        """Wait `seconds` (None: for ever), at most until the engine is stopped or gets new settings."""
        await first_of(self._stopping.wait(), self._changed.wait(), timeout=seconds)

    def _environment(self) -> dict[str, str]:
        return engine_environment(self.engine, self._environ)

    def _vllm(self) -> str | None:
        return find_vllm(self._environment().get("PATH"), self._python)

    async def _run_once(self) -> Died:
        """Run one process from its start to its end."""
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
        self.starts += 1
        self._on_event(starting)
        try:
            process, output, pipe = await spawn((self._python, "-I", launch.__file__, *argv), self._environment())
        except OSError as error:  # out of memory, or at this user's limit of processes
            return self._died(launch.CANNOT_EXECUTE, f"cannot start {self._python}: {error.strerror}")
        self._process = process
        reader = asyncio.create_task(self._forward_lines(output, secrets), name=f"engine {self.name}: output")
        why = None
        try:
            if not self._stopping.is_set():  # `stop` may have been called while the process was starting
                why = await self._until_healthy(process) or await self._while_healthy(process)
        finally:
            await kill(process)
            await asyncio.wait({reader}, timeout=KILL_PATIENCE)
            reader.cancel()
            pipe.close()
            self._process = None
        return self._died(process.returncode, why)

    def _died(self, code: int | None, why: str | None) -> Died:
        """Make the event. `why` is our reason if we ended the engine or could not start it, otherwise None."""
        now, healthy_at = _now(), self._life.healthy_at
        cause = why or self._causes.cause(0.0 if healthy_at is None else now - RECENT)
        ended_by_us = why is not None and code != launch.CANNOT_EXECUTE
        return Died(None if ended_by_us else code, cause, tuple(self._last_lines), now - self._life.started_at)

    async def _until_healthy(self, process: asyncio.subprocess.Process) -> str | None:
        """Return None once the engine is healthy, has ended or gets new settings; otherwise the reason to end it."""
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
                limit = f"{self.engine.start_timeout:g} s"
                return f"not healthy within {limit}; if the model loads slowly, raise start_timeout"
            if now >= next_report:
                next_report = now + REPORT_INTERVAL
                self._on_event(StillLoading(now - started, self._last_lines[-1] if self._last_lines else ""))
            await first_of(process.wait(), self._changed.wait(), timeout=HEALTH_INTERVAL)
        return None

    async def _while_healthy(self, process: asyncio.subprocess.Process) -> str | None:
        """Watch a healthy engine. Return None once it has ended; otherwise the reason to end it."""
        looks, began = Looks(_now(), _now()), _now()
        while not has_ended(process) and not self._changed.is_set():
            await first_of(process.wait(), self._stopping.wait(), timeout=pause_before_look(began, _now()))
            if self._stopping.is_set():  # a draining vLLM stops answering at some point
                await process.wait()
                break
            if self._suspected:
                self._suspected = False
                if not await self._does_anything(process):
                    return f"frozen: requests time out, and it made no progress for {self._silence:g} s"
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
        """Check a suspected engine; True also if the engine ends meanwhile, or if our own event loop was late."""
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
    """The `vllm` on `path` (a PATH value), otherwise the `vllm` beside the interpreter `python`, otherwise None."""
    return shutil.which("vllm", path=path) or shutil.which("vllm", path=str(Path(python).parent))


def _now() -> float:
    return asyncio.get_running_loop().time()
