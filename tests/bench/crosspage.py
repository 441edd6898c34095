"""The cross-check's tables: on the terminal, and as docs/loadtest-crosscheck.md with the reasons of the differences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

from tests.bench.crossrun import KEPT_UP, PACED_SECONDS, STREAMS, Outcome, Received
from tests.bench.differences import READ, REASONS
from tests.bench.page import without_paths
from tests.bench.report import processor
from tests.bench.script import KEYS, Script, truth

NOT_MEASURED: Final = "not measured"
LABELS: Final = {
    "ttft_p50": "TTFT p50, ms",
    "ttft_p99": "TTFT p99, ms",
    "itl_mean": "ITL mean, ms",
    "itl_p50": "ITL p50, ms",
    "itl_p99": "ITL p99, ms",
    "tpot_p50": "TPOT p50, ms",
    "tpot_p99": "TPOT p99, ms",
    "e2e_p50": "E2E p50, ms",
    "e2e_p99": "E2E p99, ms",
    "tokens_per_second": "output tokens/s",
    "requests_per_second": "requests/s",
}
RATES: Final = ("tokens_per_second", "requests_per_second")

Table = list[list[str]]

PAGE: Final = """\
# Do load generators agree?

Written by `python -m tests.bench.crosscheck --write-docs` on {date}: `aiaas loadtest`, `vllm bench serve` and guidellm,
one after the other, on one `aiaas simulate` whose every figure is known. Same number of requests, same users or rate,
same length of prompts and answers. A record and no promise.

## Beside the truth

"script" is what follows from the simulator's options, with nothing taking time but them. Each figure is the median of
{rounds}; in brackets its difference from the script.

{scripts}

## Why they differ

Read in the tools' own code: {read}.

{reasons}
## How many events on one core

{streams} streams of {seconds} s, from a scripted backend on the other core, whose timers count whole milliseconds.
Received is what the tool itself reports, over its whole run; less than {kept_up:.0%} of what was offered is "did not
keep up". CPU an event is user and system time of all its processes, less that of the same run with two events a
stream; it falls where one read brings several events, whose gaps then are 0. "says" is the tool's own word that it was
too slow.

{events}

{problems}- {machine}; load average before the run: {before}. {versions}.

## Run it again

```
nox -s bench                            # the gateway's benchmark, then this
python -m tests.bench.crosscheck        # this alone; --quick for one round, --only aiaas,vllm for some
```

The vLLM is that of the end-to-end tests ([vllm.md](vllm.md)), guidellm gets an environment of its own from the versions
pinned in `tests/bench/locks` (1.5 GB, torch for the CPU included); neither needs a network, a GPU or a model from
elsewhere when it runs. A tool that cannot be installed is left out, and a line says why.
"""


def as_page(scripts: Sequence[Script], outcomes: Sequence[Outcome], before: str) -> str:
    """The whole page."""
    rounds = max((len(each) for outcome in outcomes for each in outcome.reports.values()), default=0)
    return PAGE.format(
        date=datetime.now(UTC).date().isoformat(),
        rounds=f"{rounds} rounds" if rounds > 1 else "one round",
        scripts="\n\n".join(f"**{_title(each)}**\n\n{_markdown(script_table(each, outcomes))}" for each in scripts),
        read=", ".join(f"{name} {version}" for name, version in READ.items()),
        reasons=REASONS,
        streams=STREAMS,
        seconds=PACED_SECONDS,
        kept_up=KEPT_UP,
        events=_markdown(event_table(outcomes)),
        problems="".join(f"- {without_paths(line)}.\n" for line in problems(outcomes)),
        machine=processor(),
        before=before,
        versions=", ".join(f"{outcome.tool.name} {outcome.tool.version}" for outcome in outcomes),
    )


def as_text(scripts: Sequence[Script], outcomes: Sequence[Outcome]) -> str:
    """For the terminal."""
    tables = [(_title(each), script_table(each, outcomes)) for each in scripts]
    tables.append((f"{STREAMS} streams of more and more events a second", event_table(outcomes)))
    return "\n\n".join([*(f"{title}\n{_columns(table)}" for title, table in tables), *problems(outcomes)])


def script_table(script: Script, outcomes: Sequence[Outcome]) -> Table:
    """A row for each figure: the script's own, then each tool's with its difference."""
    true, measured = truth(script), [outcome.figures(script) for outcome in outcomes]
    lines = [["what", "script", *(outcome.tool.name for outcome in outcomes)]]
    for key in KEYS:
        cells = [_compared(key, figures.get(key), true[key]) for figures in measured]
        lines.append([LABELS[key], _number(key, true[key]), *cells])
    return lines


def event_table(outcomes: Sequence[Outcome]) -> Table:
    """A row for each tool and pace."""
    head = ["tool", "offered a second", "received a second", "CPU an event", "ITL p50 (true)", "ITL p99", "says"]
    return [head, *(_received(outcome.tool.name, each) for outcome in outcomes for each in outcome.received.values())]


def problems(outcomes: Sequence[Outcome]) -> list[str]:
    """The tools that were not measured and why; each a line."""
    return [f"{each.tool.name}: {what}: {why}" for each in outcomes for what, why in each.problems.items()]


def _received(name: str, each: Received) -> list[str]:
    kept = "" if each.kept_up else ": did not keep up"
    itl = f"{each.report.figures['itl_p50'] * 1e3:.2f} ({each.true_itl * 1e3:g}) ms"
    return [name, f"{each.offered:,.0f}", f"{each.rate:,.0f}{kept}", f"{each.cpu * 1e6:.1f} us", itl,
            f"{each.report.figures['itl_p99'] * 1e3:.2f} ms", each.report.says or "nothing"]  # fmt: skip


def _title(script: Script) -> str:
    times = f"first token after {script.ttft * 1e3:g} ms, then one every {script.itl * 1e3:g} ms"
    return f"{script.title}; {script.requests} requests of {script.tokens} tokens, {times}"


def _compared(key: str, value: float | None, true: float) -> str:
    if value is None:
        return NOT_MEASURED
    return f"{_number(key, value)} ({value / true - 1:+.1%})"


def _number(key: str, value: float) -> str:
    value = value if key in RATES else value * 1e3
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def _markdown(table: Table) -> str:
    head, *lines = table
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def _columns(table: Table) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(_padded(line, widths) for line in table)


def _padded(line: Iterable[str], widths: Iterable[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
