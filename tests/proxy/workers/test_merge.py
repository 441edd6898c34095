"""aiaas.proxy.workers.merge: the metrics of several workers as one, against real registries and Prometheus' own
parser."""

from __future__ import annotations

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from aiaas.proxy.telemetry.key_counters import KeySums
from aiaas.proxy.telemetry.metrics import Metrics
from aiaas.proxy.telemetry.record import Record
from aiaas.proxy.workers.merge import GAUGES, MetricFamily, MetricSample, Sums, exposition, of_supervisor, snapshot


def worker(*, requests: int = 0, in_flight: int = 0, up: bool = True, digest: str = "abc") -> list[MetricFamily]:
    """The report of a worker that has answered this many requests."""
    metrics = Metrics()
    for _ in range(requests):
        metrics.finished(
            Record("id", "/v1/x", 0.0, "a", model="m", status=200, key_id="k", input_tokens=3, output_tokens=2), 0.7
        )
    metrics.watch_in_flight(lambda: in_flight)
    metrics.watch_queued(lambda: 0)
    metrics.endpoint_up("vllm", "http://a", up)
    metrics.config(digest)
    # As it comes out of the channel.
    return msgspec.msgpack.decode(msgspec.msgpack.encode(snapshot(metrics.collect())), type=list[MetricFamily])


def values(sums: Sums) -> dict[str, float]:
    """The samples of the exposition, by name and labels as they are written."""
    text = exposition(sums.families(), sums.by_key).decode()
    assert list(text_string_to_metric_families(text))
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert len({line.rpartition(" ")[0] for line in lines}) == len(lines), "a series stands twice"
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_counters_and_histograms_are_summed() -> None:
    """Series by series; a series of only one worker stands as it is."""
    sums = Sums()
    for requests in (2, 0, 3):
        sums.add(worker(requests=requests))
    got = values(sums)
    assert got['inference_requests_total{endpoint="/v1/x",model="m",status="success"}'] == 5
    assert got['tokens_processed_total{model="m",type="input"}'] == 15
    assert got['inference_latency_seconds_bucket{endpoint="/v1/x",le="0.5",model="m"}'] == 0
    assert got['inference_latency_seconds_bucket{endpoint="/v1/x",le="1.0",model="m"}'] == 5
    assert got['inference_latency_seconds_count{endpoint="/v1/x",model="m"}'] == 5
    assert got['inference_latency_seconds_sum{endpoint="/v1/x",model="m"}'] == pytest.approx(3.5)


def test_one_worker_merged_is_what_it_exposes_itself() -> None:
    """To the byte: help, types, order and all."""
    metrics = Metrics()
    metrics.finished(Record("id", "/v1/x", 0.0, "a", model='m\n"\\', status=200, ttft=0.1), 0.7)
    metrics.watch_in_flight(lambda: 1)
    sums = Sums()
    sums.add(snapshot(metrics.collect()))
    assert without_process(exposition(sums.families())) == without_process(metrics.expose())


def without_process(text: bytes) -> list[bytes]:
    """The lines of an exposition without CPU and memory, which change between two reads."""
    return [line for line in text.splitlines() if not line.startswith(b"process_")]


def test_gauges_are_of_those_that_live_and_each_has_its_rule() -> None:
    """Requests in flight are summed; an endpoint is up where it is up for all; two configs in force both show."""
    sums = Sums()
    sums.retire(worker(in_flight=100, up=False, digest="old"))
    sums.add(worker(in_flight=2))
    sums.add(worker(in_flight=3, digest="new"))
    got = values(sums)
    assert got["aiaas_requests_in_flight"] == 5
    assert got['aiaas_endpoint_up{backend="vllm",endpoint="http://a"}'] == 1
    assert [key for key in got if key.startswith("aiaas_config_info")] == [
        'aiaas_config_info{digest="abc"}',
        'aiaas_config_info{digest="new"}',
    ]
    assert got['aiaas_config_info{digest="new"}'] == 1
    sums.add(worker(up=False))
    assert values(sums)['aiaas_endpoint_up{backend="vllm",endpoint="http://a"}'] == 0


def test_every_gauge_has_a_rule() -> None:
    """A new gauge needs a decision how several workers' values are merged."""
    store = {"aiaas_limit_store_up", "aiaas_limit_processes"}  # only where there is one
    dates = {f"aiaas_certificate_not_{word}_timestamp_seconds" for word in ("before", "after")}  # likewise
    gauges = {family.name for family in worker() if family.kind in ("gauge", "unknown")}
    assert gauges | store | dates == set(GAUGES)


def test_a_fault_of_one_worker_shows() -> None:
    """A file that one of them cannot use, and the process that is nearest to the end of its descriptors."""
    sums, good, bad = Sums(), Metrics(), Metrics()
    good.reloads.show("keys", ok=True)
    bad.reloads.show("keys", ok=False)
    for metrics, used in ((good, 0.1), (bad, 0.9)):
        families = [each for each in snapshot(metrics.collect()) if each.name != "aiaas_descriptors_used_ratio"]
        name = "aiaas_descriptors_used_ratio"
        sums.add([*families, MetricFamily(name, "gauge", "", [MetricSample(name, {}, used)])])
    got = values(sums)
    assert got['aiaas_reload_ok{what="keys"}'] == 0
    assert got["aiaas_descriptors_used_ratio"] == 0.9


def test_the_supervisor_adds_what_only_it_knows() -> None:
    """How many workers serve, how many had to be replaced, and how many of these hung."""
    sums = Sums()
    sums.add(of_supervisor(answering=3, ends=2, hangs=1))
    assert values(sums) == {"aiaas_workers": 3, "aiaas_worker_ends_total": 2, "aiaas_worker_hangs_total": 1}


def test_counts_of_a_worker_outlive_it() -> None:
    """A counter that went backwards would be a reset to Prometheus, and the rate a spike."""
    first, second = worker(requests=2), worker(requests=1)
    name = 'inference_requests_total{endpoint="/v1/x",model="m",status="success"}'
    before, after = Sums(), Sums()
    before.add(first)
    before.add(second)
    retired = Sums()
    retired.retire(first)
    after.add(retired.families())
    after.add(second)
    assert values(before)[name] == values(after)[name] == 3


def test_the_series_of_a_removed_key_go() -> None:
    """The last report of an ended worker is all that is left; sums over all keys stay."""
    name = 'aiaas_key_requests_total{key_id="k"}'
    total = 'inference_requests_total{endpoint="/v1/x",model="m",status="success"}'
    retired = Sums()
    retired.retire(worker(requests=2), {"k": KeySums(2, 6, 4)})
    retired.forget_removed(frozenset({"k"}))
    assert values(retired)[name] == 2
    retired.forget_removed(frozenset({"other"}))
    assert not any("aiaas_key" in series for series in values(retired))
    assert values(retired)[total] == 2
    retired.retire(worker(requests=1), {"k": KeySums(1, 3, 2)})
    assert values(retired)[name] == 1


def test_sums_by_key_are_summed() -> None:
    """Key by key; the reports of the workers stay as they are."""
    first, second = {"a": KeySums(1, 2, 3)}, {"a": KeySums(10, 20, 30), "b": KeySums(5, 6, 7)}
    for _ in range(2):
        sums = Sums()
        sums.add([], first)
        sums.add([], second)
        assert sums.by_key == {"a": KeySums(11, 22, 33), "b": KeySums(5, 6, 7)}


def process(
    *, cpu: float, resident: float = 0, fds: float = 0, most: float = 0, began: float = 0
) -> list[MetricFamily]:
    """prometheus_client's own metrics of a process, with these values."""
    told = {
        "process_cpu_seconds_total": cpu,
        "process_resident_memory_bytes": resident,
        "process_virtual_memory_bytes": 10 * resident,
        "process_open_fds": fds,
        "process_max_fds": most,
        "process_start_time_seconds": began,
    }
    return [
        MetricFamily(
            family.name,
            family.kind,
            family.help,
            [MetricSample(each.name, {}, told[each.name]) for each in family.samples],
        )
        for family in worker()
        if family.name.startswith("process_")
    ]


def test_processes_are_one_gateway() -> None:
    """CPU of the ended stays, memory and descriptors are of those that live; the limit is the nearest, the start the
    first one's."""
    retired = Sums()
    retired.retire(process(cpu=100, resident=100, fds=100, most=1, began=1))
    sums = Sums()
    sums.add(retired.families())
    sums.add(process(cpu=2, resident=30, fds=5, most=1024, began=900))
    sums.add(process(cpu=3, resident=40, fds=6, most=512, began=800))
    assert values(sums) == {
        "process_cpu_seconds_total": 105,
        "process_resident_memory_bytes": 70,
        "process_virtual_memory_bytes": 700,
        "process_open_fds": 11,
        "process_max_fds": 512,
        "process_start_time_seconds": 800,
    }
