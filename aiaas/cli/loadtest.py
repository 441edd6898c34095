"""`aiaas loadtest`: run a load test against a gateway and report the results."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

import typer

from aiaas.cli.common import (
    CaOption,
    ConfigOption,
    InsecureOption,
    Output,
    OutputOption,
    console,
    new_app,
    print_json,
    read_duration,
)
from aiaas.cli.complete import complete_models, complete_presets
from aiaas.cli.loadoptions import (
    LoadShape,
    default_url,
    raise_descriptor_limit,
    read_asking,
    read_fleet,
    read_keys,
    read_kill,
    read_share,
    read_stages,
    say_preset,
)
from aiaas.cli.outcome import EXIT_INTERRUPTED, note
from aiaas.cli.smokeoptions import read_metrics
from aiaas.errors import CheckFailed, UsageError

if TYPE_CHECKING:
    from aiaas.httpclient.target import HttpTarget
    from aiaas.loadtest.recommend import SettingLine
    from aiaas.loadtest.report import Shown
    from aiaas.loadtest.session import LabelledKey, LoadOutcome, LoadSettings
    from aiaas.loadtest.table import ReportTable

app = new_app()


class Arrival(StrEnum):
    """How the requests of an open loop are spaced."""

    poisson = "poisson"
    constant = "constant"


class Endpoint(StrEnum):
    """The path that requests go to."""

    chat = "chat"
    completions = "completions"


_EPILOG = """Examples:

\b
  aiaas loadtest                                    8 users for 30 s on the gateway of ./aiaas.yaml
  aiaas loadtest https://api.example.com --users 100 --duration 2m --slo ttft=1s,e2e:p95=5s,error_rate=1%
  aiaas loadtest --rate 50 --arrival constant --warmup 5s --out samples.jsonl
  aiaas loadtest --sweep users=1-128 --duration 10s more users, until throughput stops growing
  aiaas loadtest --preset plan                      the integration plan's success criteria
  aiaas loadtest --users 50 --kill-replica 'kill -9 4242'   count what clients see of a replica's death
  aiaas loadtest --fairness --api-key-file light.key --heavy-key-file heavy.key

The key comes from --api-key-file (repeat it for several keys) or $AIAAS_API_KEY, never from the command line.
--fairness takes its heavy key from --heavy-key-file or $AIAAS_HEAVY_API_KEY.
Exit codes: 0 done, 1 an SLO missed, a stream lost, not fair or a key refused, 2 wrong usage, 3 unreachable, 130 Ctrl-C
(with the report so far).
"""


@app.command(epilog=_EPILOG)
def loadtest(
    url: Annotated[str | None, typer.Argument(help="The gateway. [default: the config's port on 127.0.0.1]")] = None,
    config: ConfigOption = None,
    api_key_file: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A file that holds one key; repeat it for several.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The model. [default: the first of GET /v1/models]", autocompletion=complete_models),
    ] = None,
    endpoint: Annotated[
        Endpoint, typer.Option(metavar="chat|completions", help="The endpoint to call.")
    ] = Endpoint.chat,
    users: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Closed loop: users at once. [default: 8]")
    ] = None,
    rate: Annotated[float | None, typer.Option(min=0.001, max=1e6, help="Open loop: requests per second.")] = None,
    arrival: Annotated[
        Arrival, typer.Option(metavar="poisson|constant", help="How the open loop's requests are spaced.")
    ] = Arrival.poisson,
    duration: Annotated[str | None, typer.Option(metavar="TIME", help="How long to measure. [default: 30s]")] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="Measure this many requests instead.")] = None,
    warmup: Annotated[str | None, typer.Option(metavar="TIME", help="Load before measuring. [default: 0s]")] = None,
    ramp: Annotated[
        str | None, typer.Option(metavar="TIME", help="Ramp up evenly over this time. [default: 0s]")
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(metavar="LEVELS", help="Level after level, to the knee: users=1-128, rate=5,10,20.")
    ] = None,
    prompt_tokens: Annotated[
        str | None, typer.Option(metavar="N|A-B", help="Length of generated prompts. [default: 100]")
    ] = None,
    output_tokens: Annotated[
        str | None, typer.Option(metavar="N|A-B", help="Exact length of answers. [default: 100]")
    ] = None,
    shared_prefix: Annotated[int, typer.Option(min=0, help="Words that start all generated prompts.")] = 0,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Use these prompts: JSON lines, or a text line each.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Ask for streams.")] = True,
    abort_share: Annotated[str, typer.Option(metavar="SHARE", help="Requests to abort midway, such as 10%.")] = "0%",
    slo: Annotated[
        str | None, typer.Option(metavar="BOUNDS", help="Bounds to meet: ttft=1s,e2e:p95=5s,error_rate=1%.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(metavar="plan", help="The integration plan's success criteria.", autocompletion=complete_presets),
    ] = None,
    direct: Annotated[
        str | None, typer.Option(metavar="URL", help="The engine's own URL, to measure the gateway's overhead.")
    ] = None,
    direct_model: Annotated[str | None, typer.Option(metavar="NAME", help="The model's name at the engine.")] = None,
    direct_key_file: Annotated[Path | None, typer.Option(metavar="FILE", help="A file with the engine's key.")] = None,
    metrics: Annotated[
        str | None, typer.Option(metavar="URL", help="The gateway's metrics port, to report its CPU time.")
    ] = None,
    check_limits: Annotated[
        bool, typer.Option("--check-limits", help="Instead of a load test, check that the key's limits hold.")
    ] = False,
    fairness: Annotated[
        bool, typer.Option("--fairness", help="Instead, measure a light key alone and beside a heavy one.")
    ] = False,
    heavy_key_file: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="The heavy key of --fairness; repeat it for several.")
    ] = None,
    recommend: Annotated[
        bool, typer.Option("--recommend", help="After a sweep, print recommended config lines.")
    ] = False,
    kill_replica: Annotated[
        str | None, typer.Option(metavar="CMD", help="Run this in the middle; no stream may be lost by it.")
    ] = None,
    kill_after: Annotated[
        str | None, typer.Option(metavar="TIME", help="Run it so long after the warm-up. [default: half of --duration]")
    ] = None,
    timeout: Annotated[str, typer.Option(metavar="TIME", help="The longest that a request may take.")] = "300s",
    seed: Annotated[int, typer.Option(help="Seed of prompts, lengths and arrivals.")] = 0,
    ca: CaOption = None,
    insecure: InsecureOption = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write every sample, as JSON lines.")] = None,
    output: OutputOption = Output.text,
) -> None:
    """Run a load test against a gateway and report latencies, rates, errors and goodput."""
    asked = dict(locals())
    from aiaas.cli.fairness import run_fairness
    from aiaas.httpclient.target import parse_target
    from aiaas.loadtest.session import LoadSettings
    from aiaas.loadtest.slo import parse_slo

    if fairness or heavy_key_file:
        run_fairness(asked)
        return
    given = {name: str(value) for name, value in asked.items() if name in _RECORDED and value is not None}
    chosen = say_preset(preset)
    if chosen is not None:
        users = users if users is not None or rate is not None or sweep is not None else chosen.users
        duration = duration or (None if requests is not None else chosen.duration)
        warmup, ramp = warmup or chosen.warmup, ramp or chosen.ramp
        prompt_tokens, output_tokens = prompt_tokens or chosen.prompt_tokens, output_tokens or chosen.output_tokens
        slo = slo or chosen.slo
    if recommend and sweep is None:
        raise UsageError("--recommend needs a sweep, such as --sweep users=1-128")
    target, keys = parse_target(url or default_url(config), ca=ca, insecure=insecure), read_keys(api_key_file or [])
    if check_limits:
        _check_limits(target, keys, model, endpoint, output)
        return
    load = LoadShape(users, rate, arrival == Arrival.poisson, duration, requests, warmup or "0s", ramp or "0s", sweep)
    parse_slo(slo or "")
    stages = read_stages(load)
    settings = LoadSettings(
        target=target,
        keys=keys,
        asking=read_asking(
            endpoint=endpoint.value,
            stream=stream,
            prompt_tokens=prompt_tokens or "100",
            output_tokens=output_tokens or "100",
            shared_prefix=shared_prefix,
            prompts=prompts,
        ),
        stages=stages,
        model=model,
        direct=None if direct is None else parse_target(direct, ca=ca, insecure=insecure),
        direct_model=direct_model,
        direct_key=None if direct_key_file is None else read_keys([direct_key_file])[0].value,
        metrics=read_metrics(metrics, ca, insecure),
        slo=slo or "",
        timeout=read_duration("--timeout", timeout),
        abort_share=read_share("--abort-share", abort_share),
        seed=seed,
        kill=read_kill(kill_replica, kill_after, stages, one_way=direct is None, stream=stream),
        out=out,
        options=given,
    )
    outcome = _measure(settings)
    _say(settings, outcome, output, _recommended(settings, outcome, config) if recommend else ())


# Options recorded in the file of samples: those that decide the load; of paths on this machine only the prompts'.
_RECORDED = frozenset(
    {
        *("endpoint", "users", "rate", "arrival", "duration", "requests", "warmup", "ramp", "sweep", "stream"),
        *("prompt_tokens", "output_tokens", "shared_prefix", "prompts", "abort_share", "preset", "timeout", "seed"),
        *("insecure", "direct", "metrics", "kill_after"),
    }
)


def _check_limits(
    target: HttpTarget, keys: tuple[LabelledKey, ...], model: str | None, endpoint: Endpoint, output: Output
) -> None:
    import uvloop
    from msgspec import to_builtins

    from aiaas.loadtest.limit_run import check_limits
    from aiaas.loadtest.report import check_table

    note(f"{target.url}: sending more than the limit of {keys[0].label} allows; this takes up to a few minutes")
    checks = uvloop.run(check_limits(target, keys[0].value, model, endpoint.value))
    if output == Output.json:
        print_json([to_builtins(check) for check in checks])
    else:
        print_figures(check_table(checks))
    if not all(check.held for check in checks):
        raise typer.Exit(1)


def _measure(settings: LoadSettings) -> LoadOutcome:
    import uvloop

    from aiaas.cli.loadview import LoadView
    from aiaas.loadtest.session import measure

    raise_descriptor_limit()
    with LoadView() as view:
        return uvloop.run(measure(settings, view))


def _recommended(settings: LoadSettings, outcome: LoadOutcome, config: list[Path] | None) -> tuple[SettingLine, ...]:
    """The config lines that the sweep supports; empty, with a note, if no level was good enough."""
    from aiaas.loadtest.recommend import recommend, why_no_cpu_target
    from aiaas.loadtest.slo import parse_slo

    what = "users" if settings.stages[0].rate is None else "rate"
    fleet = read_fleet(config, len(settings.keys), outcome.run.model)
    try:
        lines = recommend(outcome.summary.levels, what, parse_slo(settings.slo), fleet)
    except CheckFailed as error:
        note(error.message)
        return ()
    missing = why_no_cpu_target(outcome.summary.levels, fleet, settings.metrics is not None)
    if missing:
        note(f"note: {missing}")
    return lines


def _say(settings: LoadSettings, outcome: LoadOutcome, output: Output, lines: tuple[SettingLine, ...]) -> None:
    from msgspec import to_builtins

    from aiaas.loadtest.recommend import to_patch
    from aiaas.loadtest.report import Shown, passed, remarks, run_as_json

    shown = Shown("this run", outcome.run, outcome.summary, outcome.end, outcome.overhead, outcome.killed)
    if output == Output.json:
        print_json(run_as_json(shown) | {"recommended": to_builtins(lines)})
    else:
        show_run(shown)
        if lines:
            print(to_patch(lines))
    for remark in remarks(shown):
        note(f"note: {remark}")
    if settings.out is not None:
        note(f"samples are in {settings.out}; `aiaas report {settings.out}` shows them again")
    if outcome.end.interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    if outcome.end.stopped_by or not passed(shown) or not outcome.summary.total.ok:
        raise typer.Exit(1)


def show_run(shown: Shown) -> None:
    """A run's tables on stdout."""
    from aiaas.loadtest.report import tables

    for table in tables(shown):
        print_figures(table)


def print_figures(table: ReportTable) -> None:
    """One table on stdout: text to the left, figures to the right, as wide as it needs."""
    from rich.text import Text

    lines = [table.headers, *table.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.headers))]
    screen = console()
    screen.print(Text(table.title, style="bold"))
    for line in lines if any(table.headers) else table.rows:
        cells = [
            cell.ljust(width) if not place or table.headers[place] in _WORDS else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        screen.print(Text("  ".join(cells).rstrip(), style=_STYLES.get(line[-1], "")))
    screen.print()


_WORDS = frozenset({"for example", "expected"})  # columns of words
_STYLES = MappingProxyType({"missed": "red"})
