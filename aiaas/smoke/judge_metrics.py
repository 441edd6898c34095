"""The verdicts that need a second source: the metrics of gateway and engine, or the engine's own answer. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from aiaas.loadtest.limit_check import LimitCheck
from aiaas.openai.usage import TokenUsage
from aiaas.smoke.judge import hint_for, says
from aiaas.smoke.result import Seen, Verdict, judged, skipped

ABORT_TOKENS: Final = 1000  # of the request that the client leaves: takes seconds, and fits into a context of 2048
PLAN_METRICS: Final = ("inference_requests", "inference_latency_seconds", "tokens_processed")
RUNNING: Final = "vllm:num_requests_running"
GENERATED: Final = "vllm:generation_tokens_total"
ABORTS: Final = "aiaas_aborts_total"
_HAPROXY: Final = "HAProxy: `option abortonclose` in its `defaults` section"
# These fields differ from one answer to the next, or depend on the engine's cache.
UNLIKE: Final = frozenset({"id", "created", "system_fingerprint", "prompt_tokens_details"})


class Counts(msgspec.Struct, frozen=True):
    """An engine at one moment: running requests, and LLM tokens generated since its start."""

    running: float
    generated: float


def families(text: str) -> frozenset[str]:
    """The names of the metrics in an exposition. Raises ValueError where `text` is not one."""
    return frozenset(family.name for family in text_string_to_metric_families(text))


def total(text: str, name: str, labels: Mapping[str, str] | None = None) -> float | None:
    """Sum of a metric's samples with these labels; None where there is no such sample. Raises ValueError."""
    wanted = dict(labels or {}).items()
    values = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and wanted <= sample.labels.items()
    ]
    return sum(values) if values else None


def judge_metrics(seen: Seen) -> Verdict:
    """Check that the metrics port has the plan's three metrics."""
    expected = "200 with " + ", ".join(PLAN_METRICS)
    hint = "check `monitoring.metrics_port`, and that `monitoring.prometheus` is on"
    if seen.status != 200:
        return judged(False, expected, says(seen), hint if seen.status is None else hint_for(seen, hint))
    try:
        found = families(seen.body.decode("utf-8", "replace"))
    except ValueError:
        return judged(False, expected, "200 with something other than metrics", hint)
    missing = [name for name in PLAN_METRICS if name not in found]
    return judged(not missing, expected, f"without {', '.join(missing)}" if missing else f"{len(found)} metrics", hint)


def judge_usage(
    whole: TokenUsage | None, streamed: TokenUsage | None, counted: TokenUsage | None, reads_metrics: bool
) -> Verdict:
    """Check that a request costs the same streamed or not, and that the gateway counted both.

    counted   the growth of the gateway's metrics meanwhile; None where they are not read
    """
    expected = "the same usage, whole and streamed" + (", and both in the metrics" if reads_metrics else "")
    if whole is None or streamed is None:
        missing = "whole" if whole is None else "streamed"
        return judged(False, expected, f"no usage in the {missing} answer", "see `completion` and `stream-usage`")
    text = f"{_tokens(whole)} whole, {_tokens(streamed)} streamed"
    if whole != streamed:
        return judged(
            False,
            expected,
            text,
            "the engine counts streams in another way, or another engine answered the second request",
        )
    if counted is None:
        return judged(True, expected, text, "")
    wanted = TokenUsage(whole.input_tokens + streamed.input_tokens, whole.output_tokens + streamed.output_tokens)
    more = counted.input_tokens >= wanted.input_tokens and counted.output_tokens >= wanted.output_tokens
    hint = "another client used the gateway meanwhile, or something is counted twice"
    if not more:
        hint = "--metrics is the port of another replica, or the gateway misses usage"
    return judged(counted == wanted, expected, f"{text}; counted {_tokens(counted)}", hint)


def _tokens(usage: TokenUsage) -> str:
    return f"{usage.input_tokens}+{usage.output_tokens} tokens"


def judge_engine_abort(before: Counts, after: Counts, seconds: float) -> Verdict:
    """Check that the engine stopped after a client left a request of ABORT_TOKENS early, `seconds` ago."""
    expected = f"the engine stops, far below {ABORT_TOKENS} tokens"
    generated = after.generated - before.generated
    if generated <= 0 and after.running <= before.running:
        return skipped("the request went to an engine other than that of --engine-metrics")
    text = f"{generated:.0f} tokens generated, {after.running:.0f} running after {seconds:.1f} s"
    hint = f"a proxy on the way keeps the request open after its client disconnects ({_HAPROXY})"
    return judged(after.running <= before.running and generated < ABORT_TOKENS / 2, expected, text, hint)


def judge_gateway_abort(before: float, after: float) -> Verdict:
    """Check that the gateway noticed that its client left."""
    hint = f"a proxy keeps the request open ({_HAPROXY}), or --metrics is the port of another replica"
    return judged(after > before, "the gateway counts an abort", f"{after - before:.0f} counted", hint)


def join(verdicts: tuple[Verdict, ...]) -> Verdict:
    """Join verdicts: failed where any of them failed, skipped where all of them were skipped."""
    made = tuple(verdict for verdict in verdicts if verdict.held is not None)
    if not made:
        return skipped("; ".join(verdict.seen for verdict in verdicts))
    failed = tuple(verdict for verdict in made if not verdict.held)
    return Verdict(
        not failed,
        "; ".join(verdict.expected for verdict in made),
        "; ".join(verdict.seen for verdict in verdicts),
        "; ".join(verdict.hint for verdict in failed),
    )


def judge_direct(through: Seen, direct: Seen) -> Verdict:
    """Check that gateway and engine give the same answer to the same request, ids and times aside."""
    expected = "the answer of --direct, ids and times aside"
    for seen, where in ((direct, "direct"), (through, "through the gateway")):
        if seen.status != 200 or seen.error:
            return judged(False, expected, f"{where}: {says(seen)}", hint_for(seen, "the engine refused it"))
    try:
        here, there = msgspec.json.decode(through.body), msgspec.json.decode(direct.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return judged(False, expected, f"not JSON: {error}", "something other than the engine answers there")
    place = first_difference(here, there)
    hint = (
        "another model or engine is behind the gateway, a proxy rewrites answers, or the engine is not deterministic "
        "(other load in its batch); run it again when the engine is idle"
    )
    return judged(place is None, expected, "the same" if place is None else f"they differ at {place}", hint)


def first_difference(here: Any, there: Any, place: str = "") -> str | None:
    """The first place where two JSON values differ, as `choices[0].message.content`; None where they are equal."""
    if isinstance(here, dict) and isinstance(there, dict):
        for name in [*here, *(name for name in there if name not in here)]:
            below = f"{place}.{name}" if place else name
            if name in UNLIKE:
                continue
            if (name in here) != (name in there):
                return below
            found = first_difference(here[name], there[name], below)
            if found is not None:
                return found
        return None
    if isinstance(here, list) and isinstance(there, list) and len(here) == len(there):
        pairs = enumerate(zip(here, there, strict=True))
        return next((found for at, (a, b) in pairs if (found := first_difference(a, b, f"{place}[{at}]"))), None)
    return None if here == there and type(here) is type(there) else place or "the top"


def judge_limit(checks: tuple[LimitCheck, ...]) -> Verdict:
    """The statements of the limit check as one verdict."""
    hint = (
        "several gateways each count alone (`rate_limit.store: memory`), or a proxy answers; "
        "`aiaas loadtest --check-limits` shows more"
    )
    shown = [check for check in checks if not check.held] or list(checks)
    return judged(
        all(check.held for check in checks),
        "; ".join(f"{check.name}: {check.expected}" for check in shown),
        "; ".join(f"{check.name}: {check.seen}" for check in shown),
        hint,
    )
