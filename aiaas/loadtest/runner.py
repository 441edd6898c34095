"""Run load: users or a schedule, a clock, and the client produce samples.

    async with Runner(job, observe) as runner:        # observe: called with each sample as its request ends
        window = await runner.stage(Stage(users=8, duration=30.0))
        ...                                           # further stages in a sweep
    runner.end()

Rules
- A stage is a ramp, a warm-up, the measured part, and a drain that only waits for the requests in flight.
- In a closed loop a user pauses for ERROR_PAUSE after an error, so that a dead server does not make the loop spin.
- A refused key (401, 403) stops the run at once: further refusals would add no information.
- `stop` ends the run early: it sends nothing more and cancels the requests in flight, which are only counted.
- The generator monitors itself: timer lateness, CPU seconds, late sends.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from types import TracebackType
from typing import Final, Self

import msgspec

from aiaas.httpclient.answer import Answer
from aiaas.httpclient.client import BrokenError, Exchange, HttpClient
from aiaas.httpclient.counted import CountedAnswer
from aiaas.httpclient.target import HttpTarget
from aiaas.loadtest import pacer
from aiaas.loadtest.prompts import PATHS, Asking, next_body
from aiaas.loadtest.sample import Generator, RunEnd, Sample, StreamParts, Window
from aiaas.loadtest.stats import percentile
from aiaas.loadtest.summary import LATE_SEND

ERROR_PAUSE: Final = 0.1  # seconds
WATCH: Final = 0.02  # seconds between two measurements of the event loop's lateness
LONGEST_LEAVE: Final = 20  # output events after which a user who leaves on purpose has left at the latest
KEY_REFUSED: Final = frozenset({401, 403})


@dataclass(frozen=True, slots=True)
class LoadJob:
    """The settings that all stages share.

    ways     name -> target: "gateway", and "direct" for a comparison; they take turns, each pair in random order
    models   name of a way -> model to request there
    keys     API keys, used in turn; None sends no key. Never shown
    timeout  seconds that a request may take after it is sent
    counted  whether to count the parts of each stream (`StreamParts`)
    """

    ways: tuple[tuple[str, HttpTarget], ...]
    asking: Asking
    models: dict[str, str]
    keys: tuple[str | None, ...] = field(repr=False)
    direct_key: str | None = field(default=None, repr=False)
    timeout: float = 300.0
    abort_share: float = 0.0
    seed: int = 0
    counted: bool = False


class _AskedTokens(msgspec.Struct):
    """The fields of a request that decide an answer's exact length."""

    max_tokens: int = 0
    ignore_eos: bool = False


_ASKED_TOKENS: Final[msgspec.json.Decoder[_AskedTokens]] = msgspec.json.Decoder(_AskedTokens)


@dataclass(frozen=True, slots=True)
class Stage:
    """One level of load: either `users` (closed loop) or `rate` (open loop), for `duration` seconds or `requests`.

    level   in a sweep, the varied value (users or rate); otherwise 0
    """

    users: int | None = None
    rate: float | None = None
    poisson: bool = True
    ramp: float = 0.0
    warmup: float = 0.0
    duration: float | None = None
    requests: int | None = None
    level: float = 0


@dataclass(slots=True)
class _Progress:
    """A running stage. Times are the run's seconds; `left` counts measured requests down, None without a limit."""

    stage: Stage
    began: float
    measured_from: float
    until: float
    left: int | None


class Runner:
    """A running load test.

    cut_off     called with each request that an early end cut off, as a sample marked as aborted; its tokens are its
                events
    inflight    requests that have begun and not ended
    stopped_by  why the run ended early, or ""
    """

    def __init__(
        self, job: LoadJob, observe: Callable[[Sample], None], cut_off: Callable[[Sample], None] | None = None
    ) -> None:
        self._job = job
        self._observe = observe
        self._cut_off = cut_off
        self._clients = {name: HttpClient(target) for name, target in job.ways}
        self._heads = self._make_heads()
        self._started = time.perf_counter()
        self._cpu = time.process_time()
        self._lags: list[float] = []
        self._watching: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._working: asyncio.Task[None] | None = None
        self._number = 0
        self._late_sends = self._events = self._unfinished = 0
        self._windows: list[Window] = []
        self.inflight = 0
        self.stopped_by = ""

    async def __aenter__(self) -> Self:
        self._started = time.perf_counter()
        self._cpu = time.process_time()
        self._watching = asyncio.create_task(self._watch(), name="loadtest-watch")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
        for client in self._clients.values():
            client.close()

    def now(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self._started

    def stop(self, why: str) -> None:
        """End the run early; the first reason counts."""
        if not self.stopped_by:
            self.stopped_by = why
        self._stopping.set()
        if self._working is not None:
            self._working.cancel()

    async def stage(self, stage: Stage) -> Window:
        """Run one level to its end, drain included; returns early after `stop`."""
        began = self.now()
        measured_from = began + stage.ramp + stage.warmup
        until = float("inf") if stage.duration is None else measured_from + stage.duration
        progress = _Progress(stage, began, measured_from, until, stage.requests)
        if not self._stopping.is_set():
            self._working = asyncio.create_task(self._work(progress), name="loadtest-stage")
            try:
                await self._working
            except asyncio.CancelledError:
                if not self._stopping.is_set():
                    raise
            finally:
                self._working = None
        stop = min(self.now(), until)
        window = Window(round(min(measured_from, stop), 6), round(stop, 6), stage.level)
        self._windows.append(window)
        return window

    def end(self, *, interrupted: bool = False) -> RunEnd:
        """Describe how the run ended, for the last line of the file."""
        lags = sorted(self._lags)
        generator = Generator(
            cpu_share=round((time.process_time() - self._cpu) / max(self.now(), 1e-9), 4),
            lag_p99=round(percentile(lags, 99), 6) if lags else 0,
            lag_max=round(lags[-1], 6) if lags else 0,
            late_sends=self._late_sends,
            events=self._events,
        )
        return RunEnd(tuple(self._windows), interrupted, self.stopped_by, self._unfinished, generator)

    # -- the two loops --------------------------------------------------------------------------------------------

    async def _work(self, progress: _Progress) -> None:
        async with asyncio.TaskGroup() as group:
            if progress.stage.rate is not None:
                await self._on_schedule(progress, group)
            else:
                starts = pacer.user_starts(progress.stage.users or 1, progress.stage.ramp)
                for number, start in enumerate(starts):
                    group.create_task(self._user(progress, progress.began + start), name=f"loadtest-user-{number}")

    async def _user(self, progress: _Progress, start: float) -> None:
        await self._sleep_until(start)
        while self._may_begin(progress, self.now()):
            sample = await self._one(progress, self.now())
            if sample.error:
                await asyncio.sleep(ERROR_PAUSE)

    async def _on_schedule(self, progress: _Progress, group: asyncio.TaskGroup) -> None:
        stage = progress.stage
        draw = random.Random(f"{self._job.seed} arrivals {stage.rate}").random if stage.poisson else None
        for moment in pacer.arrivals(stage.rate or 1.0, draw=draw, ramp=stage.ramp):
            due = progress.began + moment
            if due >= progress.until or progress.left == 0:
                break
            await self._sleep_until(due)
            if not self._may_begin(progress, due):
                break
            group.create_task(self._one(progress, min(due, self.now())), name="loadtest-request")

    def _may_begin(self, progress: _Progress, due: float) -> bool:
        """Whether one more request may begin; if so, count it."""
        if self._stopping.is_set() or due >= progress.until or progress.left == 0:
            return False
        if progress.left is not None and due >= progress.measured_from:
            progress.left -= 1
        return True

    async def _sleep_until(self, moment: float) -> None:
        """Sleep until a time of the run. If that time has passed, still yield to other tasks: a rate that the generator
        cannot keep up with must not starve the answers."""
        await asyncio.sleep(max(moment - self.now(), 0.0))

    # -- one request ----------------------------------------------------------------------------------------------

    async def _one(self, progress: _Progress, due: float) -> Sample:
        began = self.now()
        number, self._number = self._number, self._number + 1
        if progress.stage.rate is not None and began - due > LATE_SEND:
            self._late_sends += 1
        draw = random.Random(f"{self._job.seed} request {number}").random
        via = self._way_of(number)
        key = number // len(self._clients) % len(self._job.keys)
        body = self._body(via, number, draw)
        request = self._heads[via, key] + b"%d\r\n\r\n%b" % (len(body), body)
        answer = (CountedAnswer if self._job.counted else Answer)(self._job.asking.stream)
        exchange: Exchange | None = None
        level, warmup = progress.stage.level, due < progress.measured_from
        self.inflight += 1
        try:
            exchange = await self._clients[via].send(request, answer, self._job.timeout, self._leave_after(draw))
        except BrokenError as error:
            answer.fail(error.kind, str(error))
        except asyncio.CancelledError:
            self._unfinished += 1
            if self._cut_off is not None:
                cut = self._sample(number, due, began, answer, exchange, key, via, level, warmup)
                self._cut_off(msgspec.structs.replace(cut, aborted=True))
            raise
        finally:
            self.inflight -= 1
        sample = self._sample(number, due, began, answer, exchange, key, via, level, warmup)
        if isinstance(answer, CountedAnswer) and answer.status == 200:
            sample = msgspec.structs.replace(sample, parts=_parts(answer, body))
        self._events += sample.events
        self._observe(sample)
        if answer.status in KEY_REFUSED:
            self.stop(f"the server refuses the key: {answer.detail or f'HTTP {answer.status}'}")
        return sample

    def _way_of(self, number: int) -> str:
        names = list(self._clients)
        if len(names) == 1:
            return names[0]
        first = random.Random(f"{self._job.seed} pair {number // 2}").random() < 0.5
        return names[number % 2 ^ first]

    def _leave_after(self, draw: pacer.Draw) -> int | None:
        """Draw after how many output events to abort this request on purpose; None to wait for the whole answer."""
        share = self._job.abort_share
        if not share or draw() >= share:
            return None
        return int(draw() * LONGEST_LEAVE) if self._job.asking.stream else 0

    def _make_heads(self) -> dict[tuple[str, int], bytes]:
        """Map each way and key to the head of its requests, up to the content length."""
        path = PATHS[self._job.asking.endpoint]
        return {
            (name, number): target.head("POST", path, self._job.direct_key if name == "direct" else key)
            + b"Content-Type: application/json\r\nContent-Length: "
            for name, target in self._job.ways
            for number, key in enumerate(self._job.keys)
        }

    def _body(self, via: str, number: int, draw: pacer.Draw) -> bytes:
        turn = number // len(self._clients)
        sizes = random.Random(f"{self._job.seed} sizes {turn}").random
        return next_body(self._job.asking, self._job.models[via], number, turn, draw, sizes)

    def _sample(
        self,
        number: int,
        due: float,
        began: float,
        answer: Answer,
        exchange: Exchange | None,
        key: int,
        via: str,
        level: float,
        warmup: bool,
    ) -> Sample:
        start = self._started
        moments = answer.moments
        left = exchange is not None and exchange.left
        return Sample(
            number=number,
            due=round(due, 6),
            began=round(began, 6),
            sent=None if exchange is None else round(exchange.sent - start, 6),
            first=round(moments[0] - start, 6) if moments else None,
            end=round(self.now() if exchange is None else exchange.ended - start, 6),
            status=answer.status,
            error=answer.error,
            code=answer.code,
            detail=answer.detail,
            prompt_tokens=answer.prompt_tokens,
            output_tokens=answer.output_tokens or len(moments),
            events=len(moments),
            gaps=tuple(round((after - before) * 1e6) for before, after in pairwise(moments)),
            key=key,
            via=via,
            level=level,
            warmup=warmup,
            aborted=left,
        )

    # -- the generator itself -------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Record how late a timer fires."""
        while True:
            due = time.perf_counter() + WATCH
            await asyncio.sleep(WATCH)
            self._lags.append(max(time.perf_counter() - due, 0.0))


def _parts(answer: CountedAnswer, body: bytes) -> StreamParts:
    asked = _ASKED_TOKENS.decode(body)
    return StreamParts(
        ids=answer.ids,
        roles=answer.roles if answer.chat else 1,  # only a chat has roles
        finishes=answer.finishes,
        usages=answer.usages,
        dones=answer.dones,
        finish=answer.finish,
        asked=asked.max_tokens if asked.ignore_eos else 0,
    )
