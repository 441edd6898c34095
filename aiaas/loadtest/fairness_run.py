"""Run the fairness test: a light key alone, then the same light load beside the flood of the heavy keys.

    check the server and each key -> the light key alone -> start the flood, and measure it alone -> the light key
    again, beside the flood -> end the flood

- Both keys have a runner of their own: the light key an open loop, so that a slow gateway cannot slow down its
  requests; the heavy keys a closed loop that goes on until the light key's last answer.
- A part's last requests have PART_DRAIN to complete; then they are cut off.
- The end of the test, Ctrl-C included, cancels every request in flight: the gateway sees its clients leave.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import msgspec

from aiaas.errors import CheckFailed
from aiaas.httpclient.client import HttpClient
from aiaas.httpclient.target import HttpTarget
from aiaas.loadtest.fairness import (
    FairnessReport,
    KeyFigures,
    count_refusals,
    judge_fairness,
    key_figures,
    why_no_verdict,
)
from aiaas.loadtest.fairness_report import fairness_remarks
from aiaas.loadtest.probe import choose_model, models_of
from aiaas.loadtest.prompts import Asking
from aiaas.loadtest.runner import LoadJob, Runner, Stage
from aiaas.loadtest.sample import Sample, Window
from aiaas.loadtest.session import INTERRUPTED, LabelledKey, stopped_by_ctrl_c

PART_DRAIN: Final = 10.0  # seconds
LONGEST_START: Final = 5.0  # seconds of the flood alone, of which the last four fifths are measured
OVERDUE: Final = "requests of the light key were unfinished after the drain"
FLOOD_OVER: Final = "done"
USERS: Final = 64
# Short prompts and answers, seldom: far below an equal share, also beside many keys before a slow engine.
RATE: Final = 1.0
LIGHT_PROMPT: Final = (10, 10)
LIGHT_TOKENS: Final = (8, 8)


@dataclass(frozen=True, slots=True)
class FairnessSettings:
    """The settings of one fairness test.

    flood     what the heavy keys ask for
    users     clients of all heavy keys together
    rate      requests per second of the light key
    duration  seconds that each of the light key's parts is measured
    timeout   seconds that a request may take after it is sent
    """

    target: HttpTarget
    light: LabelledKey
    heavy: tuple[LabelledKey, ...]
    flood: Asking
    model: str | None = None
    users: int = USERS
    rate: float = RATE
    poisson: bool = True
    duration: float = 20.0
    timeout: float = 300.0
    seed: int = 0

    @property
    def start(self) -> float:
        """Seconds of the flood before the light key joins."""
        return min(self.duration / 3, LONGEST_START)

    @property
    def load(self) -> str:
        """The load of both keys in words."""
        low, high = self.flood.output_tokens or (0, 0)
        tokens = f"{low}" if low == high else f"{low}-{high}"
        light = f"light key {self.rate:g} requests/s of {LIGHT_TOKENS[0]} tokens"
        return f"{light}, {self.flooding_keys} with {self.users} clients of {tokens} tokens"

    @property
    def flooding_keys(self) -> str:
        """How many heavy keys there are, in words."""
        return "1 heavy key" if len(self.heavy) == 1 else f"{len(self.heavy)} heavy keys"


async def measure_fairness(settings: FairnessSettings, say: Callable[[str], None]) -> FairnessReport:
    """Run the test; `say` is called with a line when a part begins.

    Raises:
        EnvironmentFault: the server is unreachable.
        CheckFailed: a key is refused, or the model is unknown to the server.
    """
    model = await _look_at_keys(settings)
    light, heavy = _KeyRun(settings, model, settings.light), _KeyRun(settings, model, *settings.heavy)
    parts: dict[str, KeyFigures] = {}
    async with light.runner, heavy.runner:

        def stop(why: str) -> None:
            light.runner.stop(why)
            heavy.runner.stop(why)

        with stopped_by_ctrl_c(stop):
            say(f"{settings.target.url}, model {model}: the light key alone for {settings.duration:g} s")
            parts["light_alone"] = light.figures(await _light_part(settings, light.runner))
            if parts["light_alone"].answered and not light.runner.stopped_by:
                await _beside(settings, light, heavy, parts, say)
    for name, run in (("heavy", heavy), ("light", light)):  # the end of the flood stops the light key, too
        if run.runner.stopped_by not in ("", INTERRUPTED, OVERDUE, FLOOD_OVER):
            raise CheckFailed(f"the {name} key was refused during the test: {run.runner.stopped_by}")
    return _report(settings, model, light, heavy, parts)


class _KeyRun:
    """The runner of the light key or of the heavy ones, and its samples so far."""

    def __init__(self, settings: FairnessSettings, model: str, *keys: LabelledKey) -> None:
        self.labels = tuple(key.label for key in keys)
        self.samples: list[Sample] = []
        is_light = keys == (settings.light,)
        asking = settings.flood
        if is_light:
            asking = Asking(endpoint=asking.endpoint, prompt_tokens=LIGHT_PROMPT, output_tokens=LIGHT_TOKENS)
        job = LoadJob(
            ways=(("gateway", settings.target),),
            asking=asking,
            models={"gateway": model},
            keys=tuple(key.value for key in keys),
            timeout=settings.timeout,
            seed=settings.seed if is_light else settings.seed + 1,  # or both would send the same prompts
        )
        self.runner = Runner(job, self.samples.append, self.samples.append)

    def figures(self, window: Window, ended_by: float | None = None) -> KeyFigures:
        """Return the figures of one part; see `key_figures`."""
        return key_figures(self.samples, window, ended_by=ended_by)


async def _beside(
    settings: FairnessSettings, light: _KeyRun, heavy: _KeyRun, parts: dict[str, KeyFigures], say: Callable[[str], None]
) -> None:
    """Measure the flood alone, then both together; add the parts that were measured."""
    clients = f"{settings.users} clients of {settings.flooding_keys}"
    say(f"{clients}, then the light key beside them for {settings.duration:g} s")
    async with _flooding(settings, light.runner, heavy.runner) as flood:
        began = heavy.runner.now()
        await asyncio.wait({flood}, timeout=settings.start)
        if heavy.runner.stopped_by:
            return
        joined = heavy.runner.now()
        window = await _light_part(settings, light.runner)
    # The flood has ended, so its samples are complete, including those that were cut off.
    alone = heavy.figures(Window(began + settings.start / 5, joined), joined)
    # Its longest waits had not ended, so its TTFT would be too short.
    parts["heavy_alone"] = msgspec.structs.replace(alone, ttft=None)
    parts["light_beside"] = light.figures(window)
    parts["heavy_beside"] = heavy.figures(Window(joined, joined + window.stop - window.start), heavy.runner.now())


@asynccontextmanager
async def _flooding(settings: FairnessSettings, light: Runner, heavy: Runner) -> AsyncIterator[asyncio.Task[Window]]:
    """Run the flood; if it ends early, stop the light key's runner, too."""
    flood = asyncio.create_task(heavy.stage(Stage(users=settings.users)), name="fairness-flood")
    flood.add_done_callback(lambda _: light.stop(heavy.stopped_by))
    try:
        yield flood
    finally:
        heavy.stop(FLOOD_OVER)
        await flood


async def _light_part(settings: FairnessSettings, light: Runner) -> Window:
    """Send the light key's requests for one part, and wait up to PART_DRAIN for the last answers."""
    stage = Stage(rate=settings.rate, poisson=settings.poisson, duration=settings.duration)
    part = asyncio.create_task(light.stage(stage), name="fairness-light")
    try:
        await asyncio.wait({part}, timeout=settings.duration + PART_DRAIN)
        if not part.done():
            light.stop(OVERDUE)
    except asyncio.CancelledError:
        part.cancel()
        raise
    return await part


async def _look_at_keys(settings: FairnessSettings) -> str:
    """Check the server and each key, and return the model. Raises as `measure_fairness`."""
    client, url = HttpClient(settings.target), settings.target.url
    model = settings.model
    try:
        for kind, key in (("light", settings.light), *(("heavy", key) for key in settings.heavy)):
            try:
                model = choose_model(url, model, await models_of(client, key.value))
            except CheckFailed as error:
                raise CheckFailed(f"the {kind} key ({key.label}): {error.message}") from error
    finally:
        client.close()
    if model is None:
        raise CheckFailed(f"{url} lists no models; choose a model with --model")
    return model


def _report(
    settings: FairnessSettings, model: str, light: _KeyRun, heavy: _KeyRun, parts: dict[str, KeyFigures]
) -> FairnessReport:
    interrupted = INTERRUPTED in (light.runner.stopped_by, heavy.runner.stopped_by)
    alone, beside, flood = (parts.get(name) for name in ("light_alone", "light_beside", "heavy_beside"))
    no_verdict = "Ctrl-C ended the test" if interrupted else why_no_verdict(alone, beside, flood)
    checks = judge_fairness(alone, beside) if not no_verdict and alone is not None and beside is not None else ()
    report = FairnessReport(
        url=settings.target.url,
        model=model,
        load=settings.load,
        light_alone=alone,
        light_beside=beside,
        heavy_alone=parts.get("heavy_alone"),
        heavy_beside=flood,
        refusals=count_refusals(light.labels, light.samples) + count_refusals(heavy.labels, heavy.samples),
        checks=checks,
        fair=None if no_verdict else all(check.held for check in checks),
        no_verdict=no_verdict,
        interrupted=interrupted,
    )
    remarks = fairness_remarks(report, 1 + len(settings.heavy), light.runner.end().generator)
    return msgspec.structs.replace(report, remarks=remarks)
