"""Engines that `aiaas serve` starts itself, from one YAML file: the simulator, and a real vLLM found on PATH."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import psutil
import pytest
from openai import InternalServerError, OpenAI

from tests.e2e.conftest import StartGateway
from tests.e2e.processes import ALIAS, MODEL, VLLM_ENVIRONMENT, Gateway, eventually
from tests.e2e.vllm.setup import Installation
from tests.ports import free_port

HELLO = [{"role": "user", "content": "Say hello."}]

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(params=["simulator", pytest.param("vllm", marks=pytest.mark.vllm)])
def managed(request: pytest.FixtureRequest) -> tuple[dict[str, object], dict[str, str]]:
    """(engine section, environment of the gateway)."""
    if request.param == "simulator":
        return {"kind": "simulator", "port": free_port(), "args": {"itl": "2ms", "max-model-len": 2048}}, {}
    installation: Installation = request.getfixturevalue("vllm_installation")
    section = {
        "kind": "vllm",
        "port": free_port(),
        "model": str(installation.model),
        "args": {"dtype": "bfloat16", "max-model-len": 2048, "enforce-eager": True},
        "env": VLLM_ENVIRONMENT,
    }
    return section, {"PATH": f"{installation.bin}:{os.environ['PATH']}"}


def engine_processes(gateway: Gateway) -> list[psutil.Process]:
    """Every process below the gateway."""
    return psutil.Process(gateway.pid).children(recursive=True)


def test_it_answers_restarts_and_leaves_nothing_behind(managed, start_gateway: StartGateway) -> None:
    """Start, answer, the engine's death, a second life, and a clean end with the stream in flight finished."""
    section, environment = managed
    with start_gateway({"engine": section}, environment=environment, ready_within=60) as gateway:
        with OpenAI(base_url=gateway.url + "/v1", api_key=gateway.key, max_retries=0) as client:
            eventually(lambda: answers(client), 250)
            eventually(lambda: "healthy after" in stderr(gateway), 20)
            for process in engine_processes(gateway):
                if "launch.py" not in " ".join(process.cmdline()):
                    process.send_signal(signal.SIGKILL)
                    break
            eventually(lambda: "restarting in 1 s" in stderr(gateway), 60)
            eventually(lambda: answers(client), 250)

            everything = engine_processes(gateway)
            assert everything
            stream = client.chat.completions.create(
                model=ALIAS, messages=HELLO, max_tokens=300, stream=True, extra_body={"ignore_eos": True}
            )
            next(iter(stream))
            stopping = threading.Thread(target=gateway.process.terminate)
            stopping.start()
            finished = [event.choices[0].finish_reason for event in stream]
            stopping.join()
            assert finished[-1] == "length"
            assert gateway.process.wait(30) == 0
            eventually(lambda: not [process for process in everything if process.is_running()], 20)


def test_a_killed_gateway_takes_its_engine_with_it(start_gateway: StartGateway) -> None:
    """Also by SIGKILL, when the gateway can do nothing any more."""
    section = {"kind": "simulator", "port": free_port()}
    with start_gateway({"engine": section}) as gateway:
        eventually(lambda: "healthy after" in stderr(gateway), 60)
        everything = engine_processes(gateway)
        assert len(everything) == 2  # the launcher and the simulator
        os.kill(gateway.pid, signal.SIGKILL)
        eventually(lambda: not [process for process in everything if process.is_running()], 20)


def test_a_missing_vllm_is_a_clear_message(tmp_path: Path, start_gateway: StartGateway) -> None:
    """Exit code 3 and advice, no traceback; nothing is left listening."""
    section = {"kind": "vllm", "model": "some/model", "port": free_port()}
    with (
        pytest.raises(AssertionError, match="ended with 3"),
        start_gateway({"engine": section}, environment={"PATH": str(tmp_path)}),
    ):
        pass
    said = (tmp_path / "stderr.log").read_text()
    assert "no `vllm` found" in said
    assert "kind: simulator" in said
    assert "Traceback" not in said


def answers(client: OpenAI) -> bool:
    """Whether a request is answered; before that it is refused, never left hanging."""
    try:
        client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1)
    except InternalServerError:  # 502 or 503; anything else fails the test
        return False
    return True


def stderr(gateway: Gateway) -> str:
    return (gateway.folder / "stderr.log").read_text()
