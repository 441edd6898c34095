"""docs/bench.md, written from the results of a whole run."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from tests.bench import wire
from tests.bench.measure import Results
from tests.bench.report import OURS, Row, busy, problems, rows, slower, unproxied, versions
from tests.bench.subjects import FAST

PAGE: Final = """\
# What a request costs

Written by `python -m tests.bench --write-docs` on {date}; the figures are a record and not a promise. Absolute ones
vary by machine; what should hold elsewhere is their ratio.

The measured programs do not all do the same. nginx, haproxy and envoy pass bytes, and check nothing. vllm-router and
smg check one key that everybody shares and keep metrics; smg, the successor of sglang-router, also maps the alias.
LiteLLM checks one key, maps the alias, and decodes and encodes again every answer and every event. aiaas checks a key
of its own for each client, computes that key's limits, rewrites the alias, keeps metrics, writes a log line for each
request, and for a stream asks for the usage and takes it out again.

envoy-keys comes nearer to that job: Envoy with its API key filter, its local rate limit with a bucket for each client
and the limit in the answer's headers, and a log line for each request. It knows no tokens, no alias and no limit of
concurrency. smg has limits for each tenant, too, but they did not hold when tried: with 3 requests a minute allowed,
1.13.0 passed 6 on to a backend that speaks HTTP. They are not measured.

## Figures

min / median / max of {rounds} rounds ({starts} starts, {memory_repeats} times {open_streams:,} streams).

{figures}

## aiaas beside the others

The median of aiaas divided by the median of the other; for requests a second more is better, for all else less.
"Equal" is where the ranges of the two, min to max, overlap: the difference is within the spread.

{ratios}

{notes}

## How it was measured

- {versions}.
- Each is one process on one core, the same for all; the load generator and the scripted backend share another. Load
  average before the run: {before}; after it: {after}.
- In turns: one round measures each of them once, and each round begins with another. The backend alone is measured in
  each round, too; added latency is a percentile through the proxy less the same percentile without one. Where that
  is next to nothing it may come out below zero, and is then compared with nothing. p99.9 is that of {paced_count:,}
  requests at the slower rate and of {brisk_count:,} at the faster, the second or third slowest of them: look at the
  spread.
- CPU is user and system time of the whole process by its CPU clock, divided by the requests answered, or events
  received by the clients, between two marks; warm-up left out.
- Short requests: a chat completion with a prompt of about 150 bytes and an answer of {answer} bytes. Closed loop:
  {connections} keep-alive connections, the next request after the answer, {short_seconds:g} s. Fixed rates:
  {requests:g} and {brisk:,g} requests a second whatever the answers do, for {paced_seconds:g} s each; one that has to
  wait for a free connection waits at the proxy's expense.
- "Each with a request id of its own": the same closed loop with two more headers, an `x-request-id` and a
  `traceparent` with a new value in each request, as an ingress adds them. A proxy that remembers heads finds none.
- Streams: {streams} at once, {events:g} events of {event} bytes a second each, measured over {stream_seconds:g} s in
  which all of them run; then {probes:g} short streams a second among them, from the request to the first event. Every
  stream is read to its end, and its events are counted.
- Clients that arrive at once: {arrivals} new connections as fast as the generator can open them, each with a request
  for a stream; from the request to the first byte, {arrival_times} times in each round. The backend's own part is left
  in, and stands above for the backend alone.
- Memory: resident, after the first request and the first stream; then with {open_streams:,} streams open, of which
  each has had an event and none was refused, less that.
- Start: from starting the process to its first answered inference request with the backend up, for aiaas the slow hash
  of the key included; and the CPU time of that, which other work on the machine does not change much.
- An answer that is not a whole 200, an event too few or too many, or a closed connection ends that measure, and stands
  above with its reason.
- Two workers against one are not measured: they need two cores, and the generator with the backend a third.

The programs, in `tests/bench/subjects.py`: nginx with `proxy_buffering off` and keep-alive on both sides, no access
log; haproxy with one thread, `http-reuse always` and `option http-no-delay`, no log; Envoy with `--concurrency 1`;
vllm-router and smg with `--policy round_robin`, `--api-key`, metrics, and logs of warnings only; LiteLLM with a config
file, one worker, a master key, no database, its access log off, and its switch for Rust (`LITELLM_RUST`) off: version
1.110.2 keeps chat completions in Python whatever the switch says (`litellm/rust_bridge/catalog.py`), and
`--only litellm,litellm-rust` measures both; `aiaas serve` with authentication, limits on requests, tokens and
concurrency, metrics, and its log to a file.

## Run it again

```
apt-get install nginx-light haproxy     # Debian's own; without them the tables say that they were not measured
nox -s bench                            # or: python -m tests.bench
nox -s bench -- --write-docs            # writes this page
nox -s bench -- --only aiaas,nginx --quick
python -m tests.bench --only aiaas,nginx --python ~/debian/bin/python   # aiaas under another interpreter
```

For the last, `/usr/bin/python3 -m venv ~/debian` and `~/debian/bin/pip install -c constraints.txt .` make one.

vllm-router, smg, Envoy and LiteLLM are installed on the first run, each into an environment of its own below
`${{AIAAS_CACHE:-~/.cache/aiaas}}`, from the pinned versions in `tests/bench/locks` (about 1.2 GB and two
minutes; `python -m tests.bench.setup` does only that, and installs guidellm for
[the load test's cross-check](loadtest-crosscheck.md), 1.5 GB more). A whole run takes about {minutes:.0f} minutes and
needs two cores that do nothing else.
"""


def as_page(results: Results) -> str:
    """The whole page."""
    found, names = rows(results), [each.name for each in results.findings]
    others = [name for name in names if name != OURS]
    said = (*slower(results), *problems(results), *busy(results), *unproxied(results))
    notes = [without_paths(line) for line in said]
    settings = results.settings
    return PAGE.format(
        date=datetime.now(UTC).date().isoformat(),
        figures=_table(["what", "unit", *names], ((row.what, row.unit, *map(row.cell, names)) for row in found)),
        ratios=_table(["what", *others], ((row.what, *_ratios(row, others)) for row in found)),
        notes="\n".join(
            f"- {line.replace('* ', 'With a star: ', 1) if line.startswith('* ') else line}." for line in notes
        ),
        versions=", ".join(f"{name} {value}" for name, value in versions(results).items()),
        before=results.load_before,
        after=results.load_after,
        rounds=settings.rounds,
        starts=settings.starts,
        memory_repeats=settings.memory_repeats,
        open_streams=settings.open_streams,
        answer=len(wire.ANSWER.partition(b"\r\n\r\n")[2]),
        event=len(wire.TOKEN_EVENT),
        connections=settings.connections,
        short_seconds=settings.short_seconds,
        paced_seconds=settings.paced_seconds,
        streams=settings.streams,
        stream_seconds=settings.stream_seconds,
        requests=FAST.requests,
        brisk=FAST.brisk,
        paced_count=int(FAST.requests * settings.paced_seconds),
        brisk_count=int(FAST.brisk * settings.paced_seconds),
        arrivals=settings.arrivals,
        arrival_times=settings.arrival_times,
        events=FAST.events,
        probes=FAST.probes,
        minutes=results.seconds / 60,
    )


def without_paths(text: str) -> str:
    """The text of a problem may name a folder of the machine that it was measured on."""
    return re.sub(r"(?<![\w.])/[\w.\-]+(/[\w.\-]+)+", "...", text)


def _ratios(row: Row, names: Iterable[str]) -> list[str]:
    return [row.compared(name) or "not compared" for name in names]


def _table(head: list[str], lines: Iterable[Iterable[str]]) -> str:
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))
