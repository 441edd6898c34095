"""The checks that need a second source: the metrics of gateway and engine, or the engine itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import MappingProxyType
from typing import Final

from aiaas.httpclient.target import HttpTarget
from aiaas.keys.format import parse_key
from aiaas.openai.usage import TokenUsage
from aiaas.smoke.ask import Asker
from aiaas.smoke.judge import hint_for, models_in, says, usage_in
from aiaas.smoke.judge_metrics import (
    ABORT_TOKENS,
    ABORTS,
    GENERATED,
    RUNNING,
    Counts,
    join,
    judge_direct,
    judge_engine_abort,
    judge_gateway_abort,
    judge_metrics,
    judge_usage,
    total,
)
from aiaas.smoke.judge_stream import read_stream
from aiaas.smoke.result import Seen, Verdict, judged, skipped

TOKENS: Final = 5  # of a short answer
UNANSWERED: Final = 0.5  # seconds: the request reaches the engine through any ingress, and is far from its end
LOOK_EVERY: Final = 0.1  # seconds between two looks at metrics
WITH_USAGE: Final = MappingProxyType({"stream": True, "stream_options": {"include_usage": True}})
_NO_METRICS: Final = (
    "--metrics and --engine-metrics name the metrics ports of the gateway and of a vLLM; is one of them wrong?"
)


async def check_usage(asker: Asker) -> Verdict:
    """Send the same request streamed and not; compare the usage of both with the metrics."""
    metrics = asker.settings.metrics
    before = None if metrics is None else await _tokens(asker, metrics)
    whole = await asker.generate(max_tokens=TOKENS, ignore_eos=True)
    streamed = await asker.generate(max_tokens=TOKENS, ignore_eos=True, **WITH_USAGE)
    usages = read_stream(streamed).usages if streamed.status == 200 else ()
    both = usage_in(whole), usages[-1] if usages else None
    if metrics is None or before is None or None in both:
        verdict = judge_usage(*both, None, metrics is not None)
        unread = metrics is not None and before is None and verdict.held
        return (
            judged(False, verdict.expected, f"{verdict.seen}; the metrics cannot be read", _NO_METRICS)
            if unread
            else verdict
        )
    deadline = time.monotonic() + asker.settings.patience
    wanted = sum(usage.input_tokens + usage.output_tokens for usage in both if usage is not None)
    while True:  # the gateway counts an answer when its connection is done with it, a moment after we have it
        after = await _tokens(asker, metrics) or before
        counted = TokenUsage(after.input_tokens - before.input_tokens, after.output_tokens - before.output_tokens)
        if counted.input_tokens + counted.output_tokens >= wanted or time.monotonic() > deadline:
            return judge_usage(*both, counted, reads_metrics=True)
        await asyncio.sleep(LOOK_EVERY)


async def _tokens(asker: Asker, metrics: HttpTarget) -> TokenUsage | None:
    """The gateway's count for this key, or for all where the key does not contain its id; None where unreadable."""
    text = await _exposition(asker, metrics)
    if text is None:
        return None
    parsed = parse_key(asker.settings.key or "")
    name, labels = "tokens_processed_total", {}
    if parsed is not None:
        name, labels = "aiaas_key_tokens_total", {"key_id": parsed.key_id}
    found = [total(text, name, labels | {"type": kind}) or 0 for kind in ("input", "output")]
    return TokenUsage(int(found[0]), int(found[1]))


async def _exposition(asker: Asker, target: HttpTarget) -> str | None:
    seen = await asker.get("/metrics", target=target)
    text = seen.body.decode("utf-8", "replace")
    try:
        total(text, "")
    except ValueError:
        return None
    return text if seen.status == 200 else None


async def check_metrics(asker: Asker) -> Verdict:
    """Read what Prometheus would scrape."""
    metrics = asker.settings.metrics
    if metrics is None:
        return skipped("needs --metrics URL, the gateway's metrics port")
    return judge_metrics(await asker.get("/metrics", target=metrics))


async def check_abort(asker: Asker) -> Verdict:
    """Leave a long stream, and look whether gateway and engine noticed."""
    return await _watched(asker, lambda: asker.leave(3, max_tokens=ABORT_TOKENS, ignore_eos=True), "a stream to leave")


async def check_early_abort(asker: Asker) -> Verdict:
    """Leave a long request before its answer begins, and look whether gateway and engine noticed.

    Another matter than a stream: a proxy sees that a client is gone when it writes to it, unless it looks meanwhile.
    """
    expected = f"no answer within {UNANSWERED:g} s"
    return await _watched(asker, lambda: asker.hang_up(UNANSWERED, max_tokens=ABORT_TOKENS, ignore_eos=True), expected)


async def _watched(asker: Asker, leave: Callable[[], Awaitable[tuple[Seen, bool]]], expected: str) -> Verdict:
    """Leave a request of ABORT_TOKENS, and judge by the metrics that there are."""
    metrics, engine = asker.settings.metrics, asker.settings.engine
    if metrics is None and engine is None:
        return skipped("needs --engine-metrics URL or --metrics URL to see it")
    counts = None if engine is None else await _counts(asker, engine)
    aborts = None if metrics is None else await _aborts(asker, metrics)
    if (engine is not None and counts is None) or (metrics is not None and aborts is None):
        return judged(False, "metrics that show an abort", "the metrics cannot be read", _NO_METRICS)
    if counts is not None and counts.running and metrics is None:
        return skipped(f"the engine is busy with {counts.running:.0f} other requests, so an abort would not show")
    seen, left = await leave()
    if not left:
        if seen.status == 400:
            return skipped(f"the server refuses a request for {ABORT_TOKENS} tokens: {seen.detail}")
        if seen.status == 200:
            return skipped(f"{ABORT_TOKENS} tokens within {seen.seconds:.1f} s: too quick to leave")
        return judged(False, expected, says(seen), hint_for(seen, "see the check `stream`"))
    verdicts: list[Verdict] = []
    if engine is not None and counts is not None and not counts.running:
        verdicts.append(await _engine_stops(asker, engine, counts))
    if metrics is not None and aborts is not None:
        verdicts.append(await _gateway_counts(asker, metrics, aborts))
    return join(tuple(verdicts))


async def _engine_stops(asker: Asker, engine: HttpTarget, before: Counts) -> Verdict:
    began = time.monotonic()
    while True:
        after, seconds = await _counts(asker, engine) or before, time.monotonic() - began
        if seconds > asker.settings.patience or (
            after.running <= before.running and after.generated > before.generated
        ):
            return judge_engine_abort(before, after, seconds)
        await asyncio.sleep(LOOK_EVERY)


async def _gateway_counts(asker: Asker, metrics: HttpTarget, before: float) -> Verdict:
    deadline = time.monotonic() + asker.settings.patience
    while True:
        after = await _aborts(asker, metrics) or before
        if after > before or time.monotonic() > deadline:
            return judge_gateway_abort(before, after)
        await asyncio.sleep(LOOK_EVERY)


async def _counts(asker: Asker, engine: HttpTarget) -> Counts | None:
    text = await _exposition(asker, engine)
    running = None if text is None else total(text, RUNNING)
    if text is None or running is None:
        return None
    return Counts(running, total(text, GENERATED) or 0)


async def _aborts(asker: Asker, metrics: HttpTarget) -> float | None:
    text = await _exposition(asker, metrics)
    return None if text is None else total(text, ABORTS) or 0.0


async def check_direct(asker: Asker) -> Verdict:
    """The same question through the gateway and past it."""
    settings = asker.settings
    target = settings.direct
    if target is None:
        return skipped("needs --direct URL, the engine's own address")
    model = settings.direct_model
    if model is None:
        listed = models_in(await asker.get("/v1/models", settings.direct_key, target)) or ()
        model = asker.model if asker.model in listed or not listed else listed[0]
    same: dict[str, object] = {"max_tokens": TOKENS * 4, "temperature": 0, "seed": 0}
    verdict = skipped("")
    for _ in range(2):  # a busy engine's arithmetic depends on its batch, so one difference is not proof
        through = await asker.generate(**same)
        verdict = judge_direct(through, await asker.post(asker.body(model, **same), settings.direct_key, target))
        if verdict.held:
            break
    return verdict
