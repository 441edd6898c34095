"""Rules about pods. Their messages are in cases/cluster-engine-that-* and cluster-images-*; here are their bounds."""

from __future__ import annotations

import pytest

from aiaas.config.check import check
from aiaas.config.load import load_text

TEXT = "backends:\n  v: {engine: {kind: vllm, ENGINE}, models: [m]}\nkubernetes: {expose: none, image: 'r/a:1'}\n"


def codes_of(engine: str, text: str = TEXT) -> set[str]:
    """The codes of a config whose engine has these fields."""
    loaded = load_text(text.replace("ENGINE", engine), file="f", env={})
    assert loaded.config is not None, loaded.problems
    return {problem.code for problem in check(loaded, {})}


@pytest.mark.parametrize(
    ("engine", "fits"),
    [
        pytest.param("args: {tensor-parallel-size: 2}, pod: {gpus: 2}", True, id="as many GPUs"),
        pytest.param("args: {tensor-parallel-size: 2}, pod: {gpus: 3}", True, id="more"),
        pytest.param("args: {tensor-parallel-size: 2}, pod: {gpus: 1}", False, id="fewer"),
        pytest.param("args: {data-parallel-size: 2, pipeline-parallel-size: 2}, pod: {gpus: 3}", False, id="product"),
        pytest.param("args: {tensor-parallel-size: two}, pod: {gpus: 1}", True, id="a value that vLLM refuses"),
        pytest.param("pod: {shared_memory: 32Gi, resources: {limits: {memory: 33Gi}}}", True, id="shared below"),
        pytest.param("pod: {shared_memory: 32Gi, resources: {limits: {memory: 32Gi}}}", False, id="at the limit"),
        pytest.param("pod: {shared_memory: 99Gi, resources: {limits: {memory: null}}}", True, id="without a limit"),
    ],
)
def test_an_engine_has_to_fit_its_pod(engine: str, fits: bool) -> None:
    """Both bounds are exact."""
    assert ("AIA521" not in codes_of(engine)) is fits


@pytest.mark.parametrize(("seconds", "warned"), [(299, True), (300, False), ("null", False)])
def test_an_engine_finishes_what_the_gateway_waits_for(seconds: object, warned: bool) -> None:
    """The drain takes five minutes by default; without the argument aiaas sets it."""
    assert ("AIA504" in codes_of(f"args: {{shutdown-timeout: {seconds}}}")) is warned


def test_a_disabled_engine_has_no_pod() -> None:
    """It is not rendered."""
    text = TEXT.replace("{engine", "{enabled: false, engine")
    assert "AIA521" not in codes_of("args: {tensor-parallel-size: 9}", text)
