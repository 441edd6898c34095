"""Lines of a config out of a sweep, each with its reason."""

from __future__ import annotations

import pytest
import yaml

from aiaas.config.kubernetes import Kubernetes
from aiaas.errors import CheckFailed
from aiaas.loadtest.recommend import AdvisedFleet, Pod, SettingLine, recommend, to_patch, why_no_cpu_target
from aiaas.loadtest.sample import GatewayUse, RunEnd, Window
from aiaas.loadtest.slo import parse_slo
from aiaas.loadtest.summary import Summary, summarize
from tests.loadtest.samples import sample
from tests.proxy.conftest import plan_of

SLO = "ttft=500ms"


def level(load: float, answers: int, ttft: float, gateway: GatewayUse | None = None) -> Summary:
    """A level of one second with a number of answers of 10 tokens, and the gateway's use."""
    samples = [sample(0.0, ttft=ttft, e2e=0.9, output_tokens=10)] * answers
    return summarize(samples, RunEnd(windows=(Window(0.0, 1.0, load, gateway),)), parse_slo(SLO)).total


SWEEP = [level(8, 10, 0.1), level(16, 20, 0.12), level(32, 21, 0.4), level(64, 20, 0.9)]


def values(lines: tuple[SettingLine, ...]) -> dict[str, str]:
    """Path -> value."""
    return {".".join(line.path): line.value for line in lines}


def test_each_line_follows_from_a_figure_and_says_which() -> None:
    """The knee lies at 16 users, with 20 answers a second."""
    lines = recommend(SWEEP, "users", parse_slo(SLO), AdvisedFleet("sim", keys=2))
    assert values(lines) == {
        "backends.sim.max_inflight": "16",
        "backends.sim.queue": "{size: 7, max_wait: 380ms}",
        "rate_limit.requests_per_minute": "600",
        "rate_limit.burst": "8",
    }
    reasons = [line.reason for line in lines]
    assert reasons[0].startswith("16 at once gave 200 tokens/s; users 32 gave +5 %; with several gateways")
    assert reasons[1] == (
        "at 20.0 answers/s, 7 requests take 380 ms; ttft=500 ms leaves that long after 120 ms (p99) at the knee"
    )
    assert "20.0 answers/s at the knee, shared by the 2 keys" in reasons[2]


def test_a_sweep_of_rates_counts_those_at_once_by_littles_law() -> None:
    """20 answers a second of 0.9 s each are 18 at once, 9 for each of two endpoints."""
    levels = [level(10, 10, 0.1), level(20, 20, 0.12), level(40, 21, 0.9)]
    lines = recommend(levels, "rate", (), AdvisedFleet(endpoints=2, has_engine=True))
    assert values(lines)["backends.vllm.max_inflight"] == "9"
    assert values(lines)["backends.vllm.engine.args.max-num-queued-reqs"] == "12"
    assert values(lines)["backends.vllm.queue"] == "{size: 600, max_wait: 30000ms}"


def test_no_queue_where_the_slo_leaves_no_time_to_wait() -> None:
    """The knee's own TTFT uses it up."""
    levels = [level(8, 10, 0.45)]
    assert "backends.vllm.queue" not in values(recommend(levels, "users", parse_slo(SLO), AdvisedFleet()))


def test_nothing_good_enough_recommends_nothing() -> None:
    """With advice."""
    with pytest.raises(CheckFailed, match="start lower"):
        recommend([level(8, 10, 0.9)], "users", parse_slo(SLO), AdvisedFleet())


def test_the_patch_is_a_valid_part_of_a_config() -> None:
    """Merged into one, it compiles; the reasons are comments."""
    text = to_patch(recommend(SWEEP, "users", parse_slo(SLO), AdvisedFleet("sim")))
    assert text.count("# ") == 4
    patch = yaml.safe_load(text)
    patch["backends"]["sim"] |= {"url": "http://127.0.0.1:9", "models": ["m"]}
    (backend,) = plan_of(patch).backends
    assert (backend.max_inflight, backend.queue.size, backend.queue.max_wait) == (16, 7, 0.38)
    engine = to_patch(recommend(SWEEP, "users", (), AdvisedFleet("sim", has_engine=True)))
    assert yaml.safe_load(engine)["backends"]["sim"]["engine"]["args"] == {"max-num-queued-reqs": 20}


def sweep_with_cpu(cores: float, *, requests: float = 20, beyond: bool = True) -> list[Summary]:
    """The knee lies at 16 users with 20 answers a second, of which the gateway counted `requests`."""
    levels = [level(8, 10, 0.1, GatewayUse(cores / 2, 10)), level(16, 20, 0.12, GatewayUse(cores, requests))]
    return [*levels, level(32, 21, 0.4, GatewayUse(cores * 2, requests))] if beyond else levels


@pytest.mark.parametrize(
    ("levels", "pod", "value", "reason"),
    [
        pytest.param(
            sweep_with_cpu(0.31),
            Pod(),
            "45",
            "at the knee, users 16, one gateway used 0.31 cores, 62 % of the 500m that a pod requests; "
            "45 adds a gateway at 0.23 cores, before that",
            id="a part of the request",
        ),
        pytest.param(
            sweep_with_cpu(0.04),
            Pod(cpu_target=60),
            "60",
            "at the knee, users 16, one gateway used 0.04 cores, 8 % of the 500m that a pod requests, "
            "so the engine is the limit, not the gateway; leave this as it is",
            id="the engine limits",
        ),
        pytest.param(
            sweep_with_cpu(0.04, beyond=False),
            Pod(),
            "70",
            "at the highest level tried, users 16, one gateway used 0.04 cores, 8 % of the 500m that a pod requests, "
            "and no higher level was tried; leave this as it is",
            id="nothing limited",
        ),
        pytest.param(
            sweep_with_cpu(0.97),
            Pod(),
            "100",
            "at the knee, users 16, one gateway used 0.97 cores, 194 % of the 500m that a pod requests and nearly "
            "all of the 1.00 that it can use, so the gateway itself is the limit; 100 adds a gateway at 0.50 cores, "
            "before that",
            id="the gateway limits",
        ),
        pytest.param(
            sweep_with_cpu(0.95),
            Pod(request="2", limit="4"),
            "35",
            "at the knee, users 16, one gateway used 0.95 cores, 48 % of the 2 that a pod requests and nearly all "
            "of the 1.00 that it can use, so the gateway itself is the limit; 35 adds a gateway at 0.70 cores, "
            "before that",
            id="one worker cannot use the request",
        ),
        pytest.param(
            sweep_with_cpu(0.95),
            Pod(request="1", limit=None, workers=2),
            "65",
            "at the knee, users 16, one gateway used 0.95 cores, 95 % of the 1 that a pod requests; "
            "65 adds a gateway at 0.65 cores, before that",
            id="two workers",
        ),
        pytest.param(
            sweep_with_cpu(0.31, requests=5),
            Pod(),
            "45",
            "at the knee, users 16, one gateway used 0.31 cores (it counted 25.0 % of this test's requests), 62 % of "
            "the 500m that a pod requests; 45 adds a gateway at 0.23 cores, before that",
            id="one of four gateways",
        ),
    ],
)
def test_the_autoscalers_target_follows_from_the_gateways_cpu(
    levels: list[Summary], pod: Pod, value: str, reason: str
) -> None:
    """Scale before one gateway uses as much as at the knee; unchanged where its request is far from that."""
    line = recommend(levels, "users", (), AdvisedFleet(pod=pod))[-1]
    assert line == SettingLine(("kubernetes", "cpu_target"), value, reason)
    assert why_no_cpu_target(levels, AdvisedFleet(pod=pod), looked=True) == ""


@pytest.mark.parametrize(
    ("levels", "pod", "looked", "why"),
    [
        pytest.param(SWEEP, Pod(), False, "give the URL of its metrics port with --metrics", id="nobody looked"),
        pytest.param(SWEEP, Pod(), True, "gave no CPU figure for the level at the knee", id="nothing seen"),
        pytest.param(sweep_with_cpu(0.3), Pod(request=None), True, "the config does not set", id="no request"),
        pytest.param(sweep_with_cpu(0.3), Pod(request="0"), True, "the config does not set", id="a request of nothing"),
    ],
)
def test_no_line_for_the_autoscaler_says_what_is_missing(
    levels: list[Summary], pod: Pod, looked: bool, why: str
) -> None:
    """Only measured values are recommended."""
    assert "kubernetes.cpu_target" not in values(recommend(levels, "users", (), AdvisedFleet(pod=pod)))
    assert why in why_no_cpu_target(levels, AdvisedFleet(pod=pod), looked)


def test_without_a_config_the_pod_has_the_default_resources() -> None:
    """The same request, limit and target."""
    default = Kubernetes()
    amounts = default.resources
    assert Pod(amounts.requests.cpu, amounts.limits.cpu, 1, default.cpu_target) == Pod()


def test_the_autoscalers_line_is_a_valid_part_of_a_config() -> None:
    """Beside the other lines."""
    patch = yaml.safe_load(to_patch(recommend(sweep_with_cpu(0.31), "users", (), AdvisedFleet("sim"))))
    assert Kubernetes(**patch["kubernetes"]).cpu_target == 45
