"""tests/bench/tools.py: what the load generators are asked for, and how their results are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bench import tools
from tests.bench.script import KEYS
from tests.bench.tools import Load, NotAnsweredError, Report

CLOSED = Load("http://127.0.0.1:1", "m", requests=60, tokens=50, users=20)
OPEN = Load("http://127.0.0.1:1", "m", requests=60, tokens=50, rate=12.5)

SPREAD = {"count": 60, "mean": 0.5, "p50": 0.25, "p99": 0.75}
OURS = {
    "total": {
        **{"requests": 60, "ok": 60, "output_tokens_per_second": 844.4, "requests_per_second": 16.9},
        **{"ttft": SPREAD, "itl": SPREAD, "tpot": SPREAD, "e2e": SPREAD},
    },
    "remarks": ["it was late"],
}
VLLM = {
    **{"duration": 3.6, "completed": 60, "failed": 0, "request_throughput": 16.9, "output_throughput": 844.4},
    **{f"{at}_{name}_ms": 250.0 if at == "p50" else 750.0
       for name in ("ttft", "itl", "tpot", "e2el") for at in ("p50", "p99")},
    "mean_itl_ms": 500.0,
}  # fmt: skip


def successful(mean: float, p50: float, p99: float) -> dict[str, Any]:
    """One of guidellm's distributions."""
    return {"successful": {"mean": mean, "percentiles": {"p50": p50, "p99": p99}}, "errored": {}}


GUIDELLM = {
    "benchmarks": [
        {
            "duration": 3.7,
            "warnings": [{"code": "root_late", "message": "it was late"}],
            "metrics": {
                "request_totals": {"successful": 60, "errored": 0, "incomplete": 0, "total": 60},
                "request_dispatch_delay": None,
                "time_to_first_token_ms": successful(500.0, 250.0, 750.0),
                "inter_token_latency_ms": successful(500.0, 250.0, 750.0),
                "time_per_output_token_ms": successful(500.0, 250.0, 750.0),
                "request_latency": successful(0.5, 0.25, 0.75),
                "output_tokens_per_second": successful(844.4, 1.0, 2.0),
                "requests_per_second": successful(16.9, 1.0, 2.0),
            },
        }
    ]
}
READERS: list[Any] = [
    pytest.param(tools.read_ours, tools.OUT, OURS, "it was late", id="ours"),
    pytest.param(tools.read_vllm, "vllm.json", VLLM, "", id="vllm"),
    pytest.param(tools.read_guidellm, "guidellm.json", GUIDELLM, "it was late", id="guidellm"),
]


@pytest.mark.parametrize(("read", "file", "answer", "says"), READERS)
def test_results_are_read_in_seconds(
    read: Callable[[Path], Report], file: str, answer: object, says: str, tmp_path: Path
) -> None:
    """Whatever the tool's own unit; and what it says of itself."""
    (tmp_path / file).write_text(json.dumps(answer))
    report = read(tmp_path)
    assert sorted(report.figures) == sorted(KEYS)
    assert {report.figures[f"{name}_p50"] for name in ("ttft", "itl", "tpot", "e2e")} == {0.25}
    assert {report.figures[f"{name}_p99"] for name in ("ttft", "itl", "tpot", "e2e")} == {0.75}
    assert report.figures["itl_mean"] == 0.5
    assert (report.figures["tokens_per_second"], report.figures["requests_per_second"]) == (844.4, 16.9)
    assert report.says == says


@pytest.mark.parametrize(("read", "file", "answer", "_says"), READERS)
def test_request_without_an_answer_has_no_result(
    read: Callable[[Path], Report], file: str, answer: object, _says: str, tmp_path: Path
) -> None:
    """The figures would be of fewer requests than the others'."""
    fewer = json.dumps(answer).replace('"ok": 60', '"ok": 58').replace('"total": 60', '"total": 62')
    (tmp_path / file).write_text(fewer.replace('"failed": 0', '"failed": 2'))
    with pytest.raises(NotAnsweredError, match=r"2 of 6[02] requests had no whole answer"):
        read(tmp_path)


def test_all_are_asked_for_the_same() -> None:
    """Requests, length of answers, and users or an even rate."""
    folder, tokenizer = Path("folder"), Path("tokenizer")
    for load, ours, vllm, guidellm in (
        (CLOSED, "--users 20", "--max-concurrency 20", "kind=concurrent,streams=20"),
        (OPEN, "--rate 12.5 --arrival=constant", "--request-rate 12.5 --burstiness inf", "kind=constant,rate=12.5"),
    ):
        own = " ".join(tools.our_command(load, folder))
        assert f"--requests 60 {ours} --prompt-tokens 100 --output-tokens 50" in own
        peer = " ".join(tools.vllm_arguments(load, folder, tokenizer))
        assert f"--random-output-len 50 --ignore-eos --num-prompts 60 {vllm} " in peer
        other = " ".join(tools.guidellm_arguments(load, folder, tokenizer))
        assert f"output_tokens=50 --profile {guidellm} --constraint kind=max_requests,count=60" in other
