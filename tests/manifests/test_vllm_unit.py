"""aiaas.manifests.vllm_unit: the service of an engine, and the shell that exports its credentials."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from aiaas.manifests.engine import arguments
from aiaas.manifests.vllm_unit import EXPORT
from aiaas.plan.deployed import ENGINE_PORT
from tests.manifests.rendering import plan_of as kubernetes_plan_of
from tests.manifests.services import ENGINE, plan_of, values_of

UNIT = "vllm-qwen.service"


def engine(fields: str) -> str:
    """A config with one engine with these further fields."""
    return f"backends: {{qwen: {{models: [m], engine: {{kind: vllm, port: 18200, {fields}}}}}}}\n"


def test_command_is_that_of_the_pod_but_for_the_address() -> None:
    """One function decides the arguments of both."""
    text = engine("args: {max-model-len: 2048}, pod: {gpus: 2}")
    pods = kubernetes_plan_of(f"{text}kubernetes: {{image: 'r/aiaas:1', host: api.example.com}}\n")
    in_pod = arguments(pods.gateway, pods.engines[0])
    here = ["127.0.0.1" if word == "0.0.0.0" else "18200" if word == str(ENGINE_PORT) else word for word in in_pod]
    assert values_of(text, "ExecStart", UNIT) == [" ".join(("/opt/vllm/current/bin/vllm", "serve", *here))]
    assert "--tensor-parallel-size 2" in values_of(text, "ExecStart", UNIT)[0]


def test_gateway_finds_the_engine_on_this_machine() -> None:
    """At the port of its service."""
    [backend] = plan_of(ENGINE).gateway.backends
    assert [(each.host, each.port) for each in backend.endpoints] == [("127.0.0.1", 18200)]
    assert backend.engine is None


def test_drain_decides_the_time_to_stop() -> None:
    """vLLM finishes its requests, and then frees the GPU."""
    assert values_of(f"server: {{drain_timeout: 90s}}\n{ENGINE}", "TimeoutStopSec", UNIT) == ["120"]
    assert values_of(engine("args: {shutdown-timeout: 400}"), "TimeoutStopSec", UNIT) == ["430"]


def test_secrets_are_credentials_by_the_names_that_vllm_reads() -> None:
    """The shell exports them; a plain value stays a variable."""
    values = "env: {HF_TOKEN: '${TOKEN}', A: b}"
    text = f"backends: {{qwen: {{models: [m], api_key_env: QWEN_KEY, engine: {{kind: vllm, {values}}}}}}}\n"
    env = {"QWEN_KEY": "k", "TOKEN": "t"}
    folder = "/etc/aiaas/credentials"
    found = values_of(text, "LoadCredential", UNIT, env)
    assert found == [f"HF_TOKEN:{folder}/TOKEN", f"VLLM_API_KEY:{folder}/QWEN_KEY"]
    variables = values_of(text, "Environment", UNIT, env)
    assert "A=b" in variables
    assert [each for each in variables if each.startswith(("HF_TOKEN=", "VLLM_API_KEY="))] == []
    [start] = values_of(text, "ExecStart", UNIT, env)
    assert start.startswith("/bin/sh -c ")


def test_shell_exports_each_credential_and_keeps_the_arguments(tmp_path: Path) -> None:
    """Values and arguments with spaces and quotes, too."""
    (tmp_path / "HF_TOKEN").write_text('a "b" $c\n')
    script = 'printf "%s|" "$HF_TOKEN" "$@"'
    command = ["/bin/sh", "-c", EXPORT, "sh", "/bin/sh", "-c", script, "sh", "x y", "$z"]
    env = os.environ | {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == 'a "b" $c|x y|$z|'


def test_weights_stay_in_the_cache_folder() -> None:
    """The config's own folder wins."""
    assert "HF_HOME=/var/cache/vllm/huggingface" in values_of(ENGINE, "Environment", UNIT)
    assert "HF_HOME=/models" in values_of(engine("env: {HF_HOME: /models}"), "Environment", UNIT)


def test_literal_reference_stays_a_text() -> None:
    """`$${NAME}` stands for `${NAME}`."""
    assert '"A=${B}"' in values_of(engine("env: {A: '$${B}'}"), "Environment", UNIT)


def test_memory_is_bounded_where_the_config_says_so() -> None:
    """A default would kill a large model."""
    assert values_of(ENGINE, "MemoryMax", UNIT) == []
    limited = engine("pod: {resources: {limits: {memory: 64Gi}}}")
    assert values_of(limited, "MemoryMax", UNIT) == ["65536M"]


def test_engines_on_one_machine_have_gpus_of_their_own() -> None:
    """One engine alone sees all of them, and takes the first."""
    text = (
        "backends:\n"
        "  a: {models: [a], engine: {kind: vllm, pod: {gpus: 2}}}\n"
        "  b: {models: [b], engine: {kind: vllm, pod: {gpus: 0}}}\n"
        "  c: {models: [c], engine: {kind: vllm}}\n"
    )
    devices = [
        [each for each in values_of(text, "Environment", f"vllm-{name}.service") if "CUDA" in each] for name in "abc"
    ]
    assert devices == [["CUDA_VISIBLE_DEVICES=0,1"], [], ["CUDA_VISIBLE_DEVICES=2"]]
    assert [each for each in values_of(ENGINE, "Environment", UNIT) if "CUDA" in each] == []
    assert values_of(text, "ExecStartPre", "vllm-b.service") == []
