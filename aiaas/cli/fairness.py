"""`aiaas loadtest --fairness`: what a light key sees beside a heavy one, and whether that is fair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from aiaas.cli.common import Output, print_json, read_duration
from aiaas.cli.loadoptions import (
    HEAVY_VARIABLE,
    KEY_VARIABLE,
    default_url,
    raise_descriptor_limit,
    read_asking,
    read_keys,
    unbounded_backends,
)
from aiaas.cli.outcome import EXIT_INTERRUPTED, note
from aiaas.errors import UsageError

if TYPE_CHECKING:
    from enum import StrEnum

    from aiaas.loadtest.fairness import FairnessReport
    from aiaas.loadtest.fairness_run import FairnessSettings
    from aiaas.loadtest.session import LabelledKey

DEFAULT_FLOOD: Final = "200"  # tokens of an answer
DEFAULT_DURATION: Final = "20s"  # of each part; with the flood's start and both drains at most 65 s
# Options of `loadtest` that a fairness test does not use, with their defaults.
CONFLICTS: Final[Mapping[str, object]] = {
    **dict.fromkeys(("requests", "warmup", "ramp", "sweep", "prompts", "slo", "preset", "metrics", "out")),
    **dict.fromkeys(("direct", "direct_model", "direct_key_file")),
    **{"shared_prefix": 0, "stream": True, "abort_share": "0%", "check_limits": False, "recommend": False},
}


@dataclass(frozen=True, slots=True)
class FairnessOptions:
    """The options of `loadtest` that a fairness test uses, under their names there."""

    fairness: bool
    url: str | None
    config: list[Path] | None
    api_key_file: list[Path] | None
    heavy_key_file: list[Path] | None
    model: str | None
    endpoint: StrEnum
    users: int | None
    rate: float | None
    arrival: StrEnum
    duration: str | None
    prompt_tokens: str | None
    output_tokens: str | None
    timeout: str
    seed: int
    ca: Path | None
    insecure: bool
    output: Output


def run_fairness(given: Mapping[str, Any]) -> None:
    """Run the test with the options of `loadtest` by name, and exit with 1 without the verdict "fair".

    Raises UsageError, and as `measure_fairness`.
    """
    import uvloop
    from msgspec import to_builtins
    from msgspec.structs import replace

    from aiaas.loadtest.fairness_run import measure_fairness

    options = FairnessOptions(**{field.name: given[field.name] for field in fields(FairnessOptions)})
    if not options.fairness:
        raise UsageError("--heavy-key-file needs --fairness")
    for name, default in CONFLICTS.items():
        if given[name] != default:
            option = "--no-stream" if name == "stream" else f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} has no effect with --fairness; leave it out")
    settings = _read(options)
    unbounded = unbounded_backends(options.config) if options.url is None else ()
    raise_descriptor_limit()
    report = uvloop.run(measure_fairness(settings, note))
    if unbounded:
        report = replace(report, remarks=(*report.remarks, _why_unbounded(unbounded)))
    if options.output == Output.json:
        print_json(to_builtins(report))
    else:
        _show(report)
    for remark in report.remarks:
        note(f"note: {remark}")
    if report.no_verdict:
        note(f"no verdict: {report.no_verdict}")
    if report.interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    if not report.fair:
        raise typer.Exit(1)


def _read(options: FairnessOptions) -> FairnessSettings:
    """Read the options. Raises UsageError, EnvironmentFault."""
    from aiaas.httpclient.target import parse_target
    from aiaas.loadtest.fairness import FEWEST_REQUESTS
    from aiaas.loadtest.fairness_run import RATE, USERS, FairnessSettings

    light, heavy = _two_keys(options)
    duration = read_duration("--duration", options.duration or DEFAULT_DURATION)
    if not duration:
        raise UsageError("--duration must be longer than 0")
    rate = options.rate or RATE
    if rate * duration < FEWEST_REQUESTS:
        expected = f"--rate {rate:g} for {duration:g} s gives about {rate * duration:.0f} requests of the light key"
        raise UsageError(f"{expected}, and a verdict takes {FEWEST_REQUESTS}; use a longer --duration")
    return FairnessSettings(
        target=parse_target(options.url or default_url(options.config), ca=options.ca, insecure=options.insecure),
        light=light,
        heavy=heavy,
        flood=read_asking(
            endpoint=options.endpoint.value,
            stream=True,
            prompt_tokens=options.prompt_tokens or "100",
            output_tokens=options.output_tokens or DEFAULT_FLOOD,
            shared_prefix=0,
            prompts=None,
        ),
        model=options.model,
        users=options.users or USERS,
        rate=rate,
        poisson=options.arrival.value == "poisson",
        duration=duration,
        timeout=read_duration("--timeout", options.timeout),
        seed=options.seed,
    )


def _two_keys(options: FairnessOptions) -> tuple[LabelledKey, tuple[LabelledKey, ...]]:
    """The light key and the heavy ones. Raises UsageError, EnvironmentFault."""
    light, *more = read_keys(options.api_key_file or [])
    heavy = read_keys(options.heavy_key_file or [], HEAVY_VARIABLE)
    if light.value is None:
        raise UsageError(f"--fairness needs a light key: --api-key-file or ${KEY_VARIABLE}")
    if heavy[0].value is None:
        raise UsageError(f"--fairness needs a heavy key: --heavy-key-file (repeat it for several) or ${HEAVY_VARIABLE}")
    if more:
        raise UsageError("--fairness takes one light key, so one --api-key-file; repeat --heavy-key-file instead")
    same = [key.label for key in heavy if key.value == light.value]
    if same:
        raise UsageError(f"the heavy key {same[0]} is the light key, so they cannot take turns; create two keys")
    return light, heavy


def _why_unbounded(names: tuple[str, ...]) -> str:
    fields_named = ", ".join(f"backends.{name}.max_inflight" for name in names)
    return (
        f"{fields_named} is not set, so requests do not wait in the gateway but in the engine, in order of arrival, "
        "and keys cannot take turns"
    )


def _show(report: FairnessReport) -> None:
    from aiaas.cli.loadtest import print_figures
    from aiaas.loadtest.fairness_report import fairness_tables

    for table in fairness_tables(report):
        print_figures(table)
