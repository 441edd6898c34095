"""aiaas.proxy.telemetry.key_counters: what Prometheus reads of many keys, and what a worker reports of them."""

from __future__ import annotations

import gc

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from aiaas.proxy.telemetry.key_counters import KeyCounters, KeySums, exposed
from aiaas.proxy.telemetry.record import NO_KEY


def counted(keys: int) -> KeyCounters:
    """Counters of this many keys, each with other sums."""
    counters = KeyCounters()
    for number in range(keys):
        counters.count(f"key{number:05d}", number + 1, 10 * number, 100 * number)
    return counters


def test_prometheus_reads_every_key_once() -> None:
    """Also where the keys are written out in several pieces, of which the last is not full."""
    families = {
        f.name: f for f in text_string_to_metric_families(exposed(CollectorRegistry(), counted(2500).sums).decode())
    }
    requests = {s.labels["key_id"]: s.value for s in families["aiaas_key_requests"].samples}
    tokens = {(s.labels["key_id"], s.labels["type"]): s.value for s in families["aiaas_key_tokens"].samples}
    assert requests == {f"key{number:05d}": number + 1 for number in range(2500)}
    assert len(families["aiaas_key_tokens"].samples) == len(tokens) == 5000
    assert tokens["key00007", "input"] == 70
    assert tokens["key00007", "output"] == 700
    assert {family.type for family in families.values()} == {"counter"}


def test_no_keys_give_no_family() -> None:
    """A gateway that has served no key shows nothing by key."""
    assert exposed(CollectorRegistry(), {}) == b""


def test_requests_that_end_alike_add_up() -> None:
    """A key's sums grow with each batch."""
    counters = KeyCounters()
    for _ in range(2):
        counters.count("a", 1, 2, 3)
    assert counters.sums == {"a": KeySums(2, 4, 6)}


def test_removed_keys_go_once_the_keys_are_known() -> None:
    """Requests without a key stay, and before the first key file was read nothing goes."""
    counters = KeyCounters()
    for key_id in ("gone", "kept", NO_KEY):
        counters.count(key_id, 1, 1, 1)
    counters.forget_removed()
    assert set(counters.sums) == {"gone", "kept", NO_KEY}
    counters.keep(frozenset({"kept"}))
    counters.forget_removed()
    assert set(counters.sums) == {"kept", NO_KEY}


def test_sums_come_through_the_channel_as_they_are() -> None:
    """A worker reports them in msgpack."""
    sums = counted(10).sums
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sums), type=dict[str, KeySums]) == sums


def test_the_collector_does_not_visit_the_sums() -> None:
    """A collection of 50,000 of them would stop all streams."""
    assert not any(gc.is_tracked(sums) for sums in counted(10).sums.values())
