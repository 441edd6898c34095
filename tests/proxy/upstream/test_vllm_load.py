"""aiaas.proxy.upstream.vllm_load: the load that vLLM reports of itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.proxy.upstream.vllm_load import VllmLoad, vllm_load
from aiaas.simulator.metrics import SimulatorMetrics

# Rows of vLLM 0.32, shortened.
TEXT = b"""\
# HELP process_start_time_seconds Start time of the process since unix epoch in seconds.
# TYPE process_start_time_seconds gauge
process_start_time_seconds 1.79541814079e+09
# HELP vllm:num_requests_running Number of requests in model execution batches.
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:num_preemptions_total{engine="0",model_name="m"} 7.0
vllm:num_preemptions_created{engine="0",model_name="m"} 1.7954181653631642e+09
vllm:cache_config_info{block_size="128",engine="0",kv_cache_size_tokens="465920",num_gpu_blocks="3640"} 1.0
"""


def test_reads_the_gauges_and_counters() -> None:
    """Also the size of the cache, which stands in a label."""
    assert vllm_load(TEXT) == VllmLoad(3, 2, 0.25, 7, 465920, 1.79541814079e09)


def test_engines_of_one_server_add_up() -> None:
    """Requests and tokens add up, and the fullest cache counts."""
    second = TEXT.replace(b'engine="0"', b'engine="1"').replace(b"0.25", b"0.5")
    assert vllm_load(TEXT + second) == VllmLoad(6, 4, 0.5, 14, 931840, 1.79541814079e09)


@pytest.mark.parametrize("row", [b"running{", b"waiting{", b"perc{", b"preemptions_total{"])
def test_without_one_of_its_rows_it_is_not_vllms(row: bytes) -> None:
    """Another server may have metrics, too, and a bound must not be made of half of what is needed."""
    assert vllm_load(b"\n".join(line for line in TEXT.splitlines() if row not in line)) is None


@pytest.mark.parametrize("number", [b"many", b"NaN", b"+Inf"])
def test_an_unreadable_number_makes_the_load_unknown(number: bytes) -> None:
    """Nothing is made of it."""
    assert vllm_load(TEXT.replace(b"3.0", number)) is None


def test_size_and_start_may_be_unknown() -> None:
    """Older versions do not say them."""
    text = TEXT.replace(b"kv_cache_size_tokens", b"other").replace(b"process_start", b"other")
    assert vllm_load(text) == VllmLoad(3, 2, 0.25, 7, 0, 0.0)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(noise: bytes) -> None:
    """Never an exception: a backend's answer is not trusted."""
    vllm_load(noise)
    vllm_load(TEXT + noise)
    vllm_load(TEXT.replace(b"0.25", noise))


def test_the_simulator_is_read_like_vllm() -> None:
    """Tests with the simulator hold for vLLM only if both are read alike."""

    class Load:
        running, waiting, kv_usage = 5, 1, 0.125

    load = vllm_load(SimulatorMetrics("m").render(Load()))
    assert load is not None
    assert (load.running, load.waiting, load.kv_usage, load.preemptions) == (5, 1, 0.125, 0)
