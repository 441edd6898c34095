"""aiaas.proxy.telemetry.cache_counters: hit rates and turns by backend."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from aiaas.proxy.telemetry.cache_counters import CacheCounters
from aiaas.proxy.telemetry.record import Record


def record(**facts: object) -> Record:
    """A finished request."""
    return Record("id", "/v1/chat/completions", 0.0, "1.2.3.4", **facts)  # type: ignore[arg-type]


def shown(counters: CacheCounters) -> set[str]:
    """The samples."""
    registry = CollectorRegistry()
    registry.register(counters)
    return {line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")}


def test_turns_and_tokens_are_summed_by_backend() -> None:
    """Tokens of an answer without a report count neither as hits nor as misses."""
    counters = CacheCounters()
    counters.finished(record(backend="a", session_turn="first", input_tokens=100, cached_tokens=0))
    counters.finished(record(backend="a", session_turn="stayed", input_tokens=150, cached_tokens=96))
    counters.finished(record(backend="a", session_turn="stayed", input_tokens=200))
    counters.finished(record(backend="b", input_tokens=7, cached_tokens=9))
    counters.finished(record(session_turn="stayed"))
    assert shown(counters) == {
        'aiaas_session_turns_total{backend="a",result="first"} 1.0',
        'aiaas_session_turns_total{backend="a",result="stayed"} 2.0',
        'aiaas_prefix_cache_tokens_total{backend="a",result="hit"} 96.0',
        'aiaas_prefix_cache_tokens_total{backend="a",result="miss"} 154.0',
        'aiaas_prefix_cache_tokens_total{backend="b",result="hit"} 7.0',
        'aiaas_prefix_cache_tokens_total{backend="b",result="miss"} 0.0',
    }
