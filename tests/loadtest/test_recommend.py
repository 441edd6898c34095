"""Lines of a config out of a sweep, each with its reason."""

from __future__ import annotations

import pytest
import yaml

from aiaas.errors import NotHeldError
from aiaas.loadtest.recommend import Fleet, Line, recommend, to_patch
from aiaas.loadtest.sample import End, Window
from aiaas.loadtest.slo import parse_slo
from aiaas.loadtest.summary import Summary, summarize
from tests.loadtest.samples import sample
from tests.proxy.conftest import plan_of

SLO = "ttft=500ms"


def level(load: float, answers: int, ttft: float) -> Summary:
    """A level of one second with so many answers of 10 tokens."""
    samples = [sample(0.0, ttft=ttft, e2e=0.9, output_tokens=10)] * answers
    return summarize(samples, End(windows=(Window(0.0, 1.0, load),)), parse_slo(SLO)).total


SWEEP = [level(8, 10, 0.1), level(16, 20, 0.12), level(32, 21, 0.4), level(64, 20, 0.9)]


def values(lines: tuple[Line, ...]) -> dict[str, str]:
    """Path -> value."""
    return {".".join(line.path): line.value for line in lines}


def test_each_line_follows_from_a_figure_and_says_which() -> None:
    """The knee lies at 16 users, with 20 answers a second."""
    lines = recommend(SWEEP, "users", parse_slo(SLO), Fleet("sim", keys=2))
    assert values(lines) == {
        "backends.sim.max_inflight": "16",
        "backends.sim.queue": "{size: 7, max_wait: 380ms}",
        "rate_limit.requests_per_minute": "600",
        "rate_limit.burst": "8",
    }
    reasons = [line.reason for line in lines]
    assert reasons[0].startswith("16 at once gave 200 tokens/s; users 32 gave +5 %; with several gateways")
    assert reasons[1] == "20.0 answers/s work off 7 in 380 ms, which ttft=500 ms leaves beside 120 ms (p99) at the knee"
    assert "20.0 answers/s at the knee, shared by the 2 keys" in reasons[2]


def test_a_sweep_of_rates_counts_those_at_once_by_littles_law() -> None:
    """20 answers a second of 0.9 s each are 18 at once, 9 for each of two endpoints."""
    levels = [level(10, 10, 0.1), level(20, 20, 0.12), level(40, 21, 0.9)]
    lines = recommend(levels, "rate", (), Fleet(endpoints=2, has_engine=True))
    assert values(lines)["backends.vllm.max_inflight"] == "9"
    assert values(lines)["backends.vllm.engine.args.max-num-queued-reqs"] == "12"
    assert values(lines)["backends.vllm.queue"] == "{size: 600, max_wait: 30000ms}"


def test_no_queue_where_the_slo_leaves_no_time_to_wait() -> None:
    """The knee's own TTFT takes it all."""
    levels = [level(8, 10, 0.45)]
    assert "backends.vllm.queue" not in values(recommend(levels, "users", parse_slo(SLO), Fleet()))


def test_nothing_good_enough_recommends_nothing() -> None:
    """With what to do."""
    with pytest.raises(NotHeldError, match="begin lower"):
        recommend([level(8, 10, 0.9)], "users", parse_slo(SLO), Fleet())


def test_the_patch_is_a_valid_part_of_a_config() -> None:
    """Merged into one, it compiles; the reasons are comments."""
    text = to_patch(recommend(SWEEP, "users", parse_slo(SLO), Fleet("sim")))
    assert text.count("# ") == 4
    patch = yaml.safe_load(text)
    patch["backends"]["sim"] |= {"url": "http://127.0.0.1:9", "models": ["m"]}
    (backend,) = plan_of(patch).backends
    assert (backend.max_inflight, backend.queue.size, backend.queue.max_wait) == (16, 7, 0.38)
    engine = to_patch(recommend(SWEEP, "users", (), Fleet("sim", has_engine=True)))
    assert yaml.safe_load(engine)["backends"]["sim"]["engine"]["args"] == {"max-num-queued-reqs": 20}
