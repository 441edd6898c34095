"""A vLLM in a pod of its own."""

from __future__ import annotations

from typing import Any

import pytest

from tests.manifests.rendering import objects_of, plan_of

NAME = "api-router-engine-qwen"


def config(engine: str = "", backend: str = "", rest: str = "") -> str:
    """A config with one engine, and these further fields of it, of its backend, and of the whole."""
    return (
        f"backends: {{qwen: {{engine: {{kind: vllm, {engine}}}, models: [Qwen/Qwen3-8B, q], {backend}}}}}\n"
        f"kubernetes: {{host: a.b, env: {{T: {{secret: hf, key: token}}, K: {{secret: v, key: k}}}}}}\n{rest}"
    )


def pod(text: str) -> Any:
    """The engine's pod."""
    env = {"T": "hunter2", "K": "hunter2"}
    return objects_of(text, env)[f"Deployment/{NAME}"]["spec"]["template"]["spec"]


def container(text: str) -> Any:
    """Its container."""
    return pod(text)["containers"][0]


def environment(text: str) -> dict[str, Any]:
    """Its variables: the value, or secret and key."""
    found = {}
    for entry in container(text)["env"]:
        reference = entry.get("valueFrom", {}).get("secretKeyRef")
        found[entry["name"]] = entry.get("value", reference and (reference["name"], reference["key"]))
    return found


def test_the_gateway_is_given_its_service() -> None:
    """The config in the ConfigMap names the Service, and starts no engine."""
    plan = plan_of(config())
    assert plan.gateway.backends[0].endpoints[0].url == f"http://{NAME}.system:8000"
    assert plan.gateway.backends[0].engine is None
    service = objects_of(config())[f"Service/{NAME}"]["spec"]
    assert (service["selector"], service["ports"][0]["port"]) == ({"app": NAME}, 8000)


def test_the_command_line_holds_what_the_gateway_relies_on() -> None:
    """Drain on SIGTERM as long as the gateway's, the served name, a reachable address; our options come last."""
    text = config("args: {max-model-len: 2048, enforce-eager: true}", rest="server: {drain_timeout: 45s}\n")
    made = container(text)
    assert made["command"] == ["vllm", "serve"]
    assert made["args"] == [
        *("Qwen/Qwen3-8B", "--max-model-len", "2048", "--enforce-eager", "--shutdown-timeout", "45"),
        *("--served-model-name", "Qwen/Qwen3-8B", "--host", "0.0.0.0", "--port", "8000"),
    ]


def test_idle_connections_outlive_the_gateways() -> None:
    """vLLM's 5 s against our 4 s are one lost packet apart."""
    assert environment(config())["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"] == "75"


def test_the_operators_shutdown_timeout_holds_and_counts() -> None:
    """It stands once, and the grace period is long enough for it."""
    text = config("args: {shutdown_timeout: 600}")
    assert container(text)["args"].count("--shutdown-timeout") == 1
    assert pod(text)["terminationGracePeriodSeconds"] == 10 + 600 + 30


def test_a_loading_engine_is_not_killed() -> None:
    """The startup probe waits as long as start_timeout; the others wait until it has passed."""
    probe = container(config("start_timeout: 25m"))["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 25 * 60
    deployment = objects_of(config("start_timeout: 25m"))[f"Deployment/{NAME}"]["spec"]
    assert deployment["progressDeadlineSeconds"] > 25 * 60


@pytest.mark.parametrize(
    ("fields", "arguments", "gpus"),
    [
        pytest.param("", [], "1", id="one"),
        pytest.param("pod: {gpus: 4}", ["--tensor-parallel-size", "4"], "4", id="four"),
        pytest.param("pod: {gpus: 4}, args: {pipeline-parallel-size: 4}", [], "4", id="four, split otherwise"),
    ],
)
def test_gpus_are_asked_for_and_used(fields: str, arguments: list[str], gpus: str) -> None:
    """Request and limit are equal; several split the model unless the operator says how."""
    made = container(config(fields))
    for amounts in made["resources"].values():
        assert amounts["nvidia.com/gpu"] == gpus
    found = [made["args"][i : i + 2] for i, word in enumerate(made["args"]) if word == "--tensor-parallel-size"]
    assert found == ([arguments] if arguments else [])


def test_without_a_gpu_none_is_asked_for() -> None:
    """A vLLM for the CPU runs anywhere."""
    assert "nvidia.com/gpu" not in container(config("pod: {gpus: 0}"))["resources"]["limits"]


def test_shared_memory_and_a_volume_for_the_weights() -> None:
    """/dev/shm in memory; one pod at a time, since volume and GPU are its own."""
    made = objects_of(config("pod: {shared_memory: 8Gi, storage: 500Gi, storage_class: fast}"))
    volumes = {volume["name"]: volume for volume in pod(config("pod: {shared_memory: 8Gi}"))["volumes"]}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    assert volumes["cache"]["persistentVolumeClaim"] == {"claimName": NAME}
    claim = made[f"PersistentVolumeClaim/{NAME}"]["spec"]
    assert (claim["resources"]["requests"]["storage"], claim["storageClassName"]) == ("500Gi", "fast")
    assert made[f"Deployment/{NAME}"]["spec"]["strategy"] == {"type": "Recreate"}


def test_a_claim_of_others_is_used() -> None:
    """An existing claim is mounted; no claim is made."""
    text = config("pod: {claim: weights}")
    assert pod(text)["volumes"][0]["persistentVolumeClaim"] == {"claimName": "weights"}
    assert f"PersistentVolumeClaim/{NAME}" not in objects_of(text)


def test_variables_of_an_engine_never_show_a_value() -> None:
    """`${T}` alone is a reference, inside text it is Kubernetes' own; a literal dollar stays one."""
    text = config("env: {HF_TOKEN: '${T}', T: '${T}', MIXED: 'a-${K}-$5-$${x}'}")
    found = environment(text)
    assert (found["HF_TOKEN"], found["T"], found["K"]) == (("hf", "token"), ("hf", "token"), ("v", "k"))
    assert found["MIXED"] == "a-$(K)-$$5-$${x}"
    names = [entry["name"] for entry in container(text)["env"]]
    assert names.index("K") < names.index("MIXED")
    assert "hunter2" not in str(objects_of(text, {"T": "hunter2", "K": "hunter2"}))


def test_the_gateways_own_variables_hold_no_engines_secrets() -> None:
    """vLLM's own settings are not in the gateway's pod."""
    made = objects_of(config("env: {HF_TOKEN: '${T}'}"), {"T": "x", "K": "x"})
    gateway = made["Deployment/api-router-service"]["spec"]["template"]["spec"]["containers"][0]
    assert "env" not in gateway


def test_a_backends_key_is_the_engines_key() -> None:
    """The gateway sends the key that vLLM asks for."""
    assert environment(config(backend="api_key_env: K"))["VLLM_API_KEY"] == ("v", "k")


def test_the_operators_variable_wins() -> None:
    """Each variable is there once."""
    text = config("env: {HF_HOME: /weights}")
    assert environment(text)["HF_HOME"] == "/weights"
    names = [entry["name"] for entry in container(text)["env"]]
    assert len(names) == len(set(names))


def test_an_argument_is_not_expanded() -> None:
    """Kubernetes would replace `$(NAME)` in a command line."""
    text = config("args: {chat-template: '$(HOME) $5'}")
    assert "$$(HOME) $$5" in container(text)["args"]


def test_a_parked_engine_is_not_rendered() -> None:
    """enabled: false keeps the config valid and makes no object."""
    text = config(backend="enabled: false") + "x: 1\n"
    text = text.replace("backends: {", "backends: {on: {url: 'http://v.gpu', models: [n]}, ").removesuffix("x: 1\n")
    assert [name for name in objects_of(text) if NAME in name] == []


def test_a_simulator_stays_beside_the_gateway() -> None:
    """It is a process of the gateway's pod, and no Deployment."""
    text = "backends: {s: {engine: {kind: simulator}, models: [m]}}\nkubernetes: {host: a.b}\n"
    assert plan_of(text).gateway.backends[0].engine is not None
    assert [name for name in objects_of(text) if "engine" in name] == []


def test_openshift_assigns_an_engines_user() -> None:
    """The group of the volume is the namespace's."""
    spec = pod(config().replace("{host:", "{platform: openshift, host:"))
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
        "fsGroupChangePolicy": "OnRootMismatch",
    }
