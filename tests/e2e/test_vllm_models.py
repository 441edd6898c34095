"""A real vLLM with a LoRA adapter and two served names: which model answers, and what lists and log say."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import StartGateway
from tests.e2e.processes import Gateway, eventually, running_vllm
from tests.e2e.vllm.setup import Installation

pytestmark = pytest.mark.vllm

BASE, SECOND, ADAPTER = "base", "second", "sql-lora"
RANK = 8


@pytest.fixture(scope="module")
def lora_url(vllm_installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """It serves one model under two names, and an adapter that changes every answer."""
    folder = tmp_path_factory.mktemp("lora")
    write_adapter(folder / "adapter", json.loads((vllm_installation.model / "config.json").read_text()))
    options = ["--served-model-name", BASE, SECOND, "--enable-lora", "--max-lora-rank", str(RANK)]
    adapter = ["--lora-modules", f"{ADAPTER}={folder / 'adapter'}"]
    with running_vllm(folder / "log", vllm_installation.model, vllm_installation.vllm, *options, *adapter) as url:
        yield url


def write_adapter(folder: Path, model: dict[str, Any]) -> None:
    """Random weights in the safetensors format: the length of a JSON header (8 bytes), the header, the numbers."""
    folder.mkdir()
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 64, "bias": "none",
              "target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": BASE}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    numbers, header, data = random.Random(0), {}, bytearray()
    width = model["hidden_size"]
    for layer in range(model["num_hidden_layers"]):
        for projection in ("q_proj", "v_proj"):
            for part, shape in (("lora_A", (RANK, width)), ("lora_B", (width, RANK))):
                begin = len(data)
                data += b"".join(struct.pack("<f", numbers.gauss(0, 1)) for _ in range(RANK * width))
                name = f"base_model.model.model.layers.{layer}.self_attn.{projection}.{part}.weight"
                header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, len(data)]}
    encoded = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)


def ask(url: str, body: dict[str, Any] | None, key: str | None) -> Any:
    """GET, or POST of `body`."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def text_of(url: str, model: str, key: str | None = None) -> str:
    """The same prompt, decoded greedily."""
    body = {"model": model, "prompt": "import os", "max_tokens": 12, "temperature": 0}
    return str(ask(f"{url}/v1/completions", body, key)["choices"][0]["text"])


def events(gateway: Gateway, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (gateway.folder / "stdout.log").read_text().splitlines()]
    return [line for line in lines if line["event"] == name]


def test_an_adapter_written_as_an_alias_answers_itself(lora_url: str, start_gateway: StartGateway) -> None:
    """The log and the metrics report it; a second served name and an alias of the config are the base."""
    base, adapter = text_of(lora_url, BASE), text_of(lora_url, ADAPTER)
    assert base != adapter
    with start_gateway({"url": lora_url, "models": [BASE, SECOND, ADAPTER, "ours"]}) as gateway:
        eventually(lambda: events(gateway, "models_disagree"), 10)
        assert text_of(gateway.url, ADAPTER, gateway.key) == adapter
        assert [text_of(gateway.url, name, gateway.key) for name in (BASE, SECOND, "ours")] == [base] * 3
        (line,) = events(gateway, "models_disagree")
        assert (line["own_models"], line["configured_but_not_served"]) == ([ADAPTER], [])
        assert gateway.metric("aiaas_models_wrong", backend="vllm") == 1
        listed = ask(f"{gateway.url}/v1/models", None, gateway.key)["data"]
        assert {entry["id"]: (entry["root"], entry["max_model_len"]) for entry in listed} == {
            BASE: (BASE, 2048), SECOND: (BASE, 2048), ADAPTER: (ADAPTER, 2048), "ours": (BASE, 2048),
        }  # fmt: skip
        assert all(entry["created"] > 1_700_000_000 for entry in listed)
        said = subprocess.run(
            [sys.executable, "-m", "aiaas", "validate", "--connect"], cwd=gateway.folder, capture_output=True, text=True
        )
        assert (said.returncode, said.stdout.count("\n")) == (0, 1)
        assert "warning AIA603 backends.vllm.models" in said.stdout


def test_entry_for_each_model_gives_no_finding(lora_url: str, start_gateway: StartGateway) -> None:
    """Written as the message says; and a name that vLLM does not serve is a finding."""
    models = [{"name": BASE, "aliases": [SECOND]}, {"name": ADAPTER}, {"name": "gone"}]
    with start_gateway({"url": lora_url, "models": models}) as gateway:
        eventually(lambda: events(gateway, "models_disagree"), 10)
        (line,) = events(gateway, "models_disagree")
        assert (line["own_models"], line["configured_but_not_served"]) == ([], ["gone"])
        assert text_of(gateway.url, ADAPTER, gateway.key) == text_of(lora_url, ADAPTER)
