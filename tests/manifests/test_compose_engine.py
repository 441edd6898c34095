"""A vLLM as a service of a compose file."""

from __future__ import annotations

from typing import Any

import pytest

from tests.manifests.composing import ENGINE, compose_plan, engine, services
from tests.manifests.rendering import objects_of

CLUSTER = "kubernetes: {image: 'r/aiaas:1', host: a.b, env: {T: {secret: hf, key: t}, K: {secret: v, key: k}}}\n"
ENV = {"T": "hunter2", "K": "hunter2"}
TWO = """backends:
  big: {engine: {kind: vllm, pod: {gpus: 2}}, models: [a]}
  cpu: {engine: {kind: vllm, pod: {gpus: 0}}, models: [b]}
  small: {engine: {kind: vllm, pod: {gpus: 1}}, models: [c]}
"""


def made(text: str) -> Any:
    """The engine's service."""
    return services(text, ENV)["engine-qwen"]


def pod(text: str) -> Any:
    """The engine's pod in a cluster."""
    return objects_of(text, ENV)["Deployment/api-router-engine-qwen"]["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(ENGINE, id="the least"),
        pytest.param(engine(args="{max-model-len: 2048}", pod="{gpus: 4}"), id="arguments and several GPUs"),
        pytest.param(engine(args="{shutdown-timeout: 600}"), id="the operator's own time to end"),
        pytest.param(ENGINE + "server: {drain_timeout: 45s}\n", id="another drain"),
    ],
)
def test_engine_is_started_and_stopped_as_in_a_cluster(text: str) -> None:
    """The same command line; the same time to end, less the cluster's preStop."""
    service, in_cluster = made(text + CLUSTER), pod(text + CLUSTER)
    [container] = in_cluster["containers"]
    assert service["entrypoint"] == container["command"]
    assert service["command"] == container["args"]
    pre_stop = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert service["stop_grace_period"] == f"{in_cluster['terminationGracePeriodSeconds'] - pre_stop}s"


def test_variables_are_the_pods() -> None:
    """Values as written, with variables from .env, and vLLM's key under vLLM's own name."""
    text = engine(env="{A: plain, B: 'x-${T}-$1', C: '$${D}'}").replace("models", "api_key_env: K, models")
    plain = {entry["name"]: entry.get("value") for entry in pod(text + CLUSTER)["containers"][0]["env"]}
    environment = made(text)["environment"]
    assert environment.keys() == plain.keys() - {"T"}  # Kubernetes needs T by itself for $(T)
    assert environment["HOME"] == plain["HOME"] == "/cache"
    assert environment["A"] == "plain"
    assert environment["B"] == "x-${T:?write it into .env (.env.example lists all variables)}-$$1"
    assert environment["C"] == "$${D}"
    assert environment["VLLM_API_KEY"].startswith("${K:?")


def test_token_of_hugging_face_is_a_file() -> None:
    """A file does not show in `docker inspect`, as a variable does."""
    service = made(engine(env="{HF_TOKEN: '${T}'}"))
    assert service["secrets"] == ["T"]
    assert service["environment"]["HF_TOKEN_PATH"] == "/run/secrets/T"
    assert "HF_TOKEN" not in service["environment"]
    assert "secrets" not in made(ENGINE)


def test_one_engine_has_the_first_gpus() -> None:
    """`count` is what people write, and enough for one."""
    [device] = made(engine(pod="{gpus: 2}"))["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 2, "capabilities": ["gpu"]}


def test_several_engines_do_not_share_gpus() -> None:
    """With `count` each would get GPU 0. An engine without GPUs takes none."""
    resources = {name: each["deploy"]["resources"] for name, each in services(TWO).items() if name.startswith("engine")}
    assert resources["engine-big"]["reservations"]["devices"][0]["device_ids"] == ["0", "1"]
    assert resources["engine-small"]["reservations"]["devices"][0]["device_ids"] == ["2"]
    assert "reservations" not in resources["engine-cpu"]


def test_gpu_of_another_maker_is_not_reserved() -> None:
    """Docker knows only NVIDIA's driver by name."""
    assert "reservations" not in made(engine(pod="{gpu_resource: amd.com/gpu}"))["deploy"]["resources"]


def test_loading_engine_is_not_unhealthy() -> None:
    """A first start fetches the weights."""
    check = made(engine(start_timeout="40m"))["healthcheck"]
    assert check["start_period"] == "2400s"
    assert check["test"][:3] == ["CMD", "python3", "-c"]
    compile(check["test"][3], "healthcheck", "exec")


def test_amounts_are_written_for_docker() -> None:
    """Memory in Docker's binary units, CPUs as a number, /dev/shm by its own field."""
    pods = "{shared_memory: 8Gi, resources: {limits: {memory: 64000Mi, cpu: 1500m}}}"
    service = made(engine(pod=pods))
    assert service["shm_size"] == "8g"
    assert service["deploy"]["resources"]["limits"] == {"cpus": "1.5", "memory": "64000m"}
    assert made(engine(pod="{shared_memory: 1G}"))["shm_size"] == "1000000000b"


def test_dollar_in_an_argument_stays() -> None:
    """Compose expands `$`, vLLM must not see that."""
    assert "a$$b" in made(engine(args="{chat-template: 'a$b'}"))["command"]


def test_names_of_engines_are_names_of_hosts() -> None:
    """Whatever the backend is called."""
    text = ENGINE.replace("qwen:", "Qwen.3:", 1)
    [each] = compose_plan(text).engines
    assert each.name.startswith("engine-qwen-3-")
    assert each.name in services(text)
