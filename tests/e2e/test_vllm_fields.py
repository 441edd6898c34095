"""The table of engine fields, compared with the request models of the installed vLLM, and what it keeps apart there."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.error
import urllib.request

import pytest

from aiaas.openai.engine_fields import on_path
from aiaas.openai.paths import GENERATE
from tests.e2e.conftest import StartGateway
from tests.e2e.processes import MODEL, VLLM_ENVIRONMENT, keys, metric
from tests.e2e.vllm.setup import HERE, Installation

pytestmark = pytest.mark.vllm

WHAT_TO_DO = (
    "read in vLLM what the field does, and give it a row in aiaas/openai/engine_fields.py: `pass` if it concerns its "
    "own request only; `reject` if it reaches other requests, other keys' data, hosts, files or code; `bound` if "
    "others wait for its work. Then `python -m tests.openai.engine_fields_page`"
)


def test_table_has_every_field_of_the_installed_vllm(vllm_installation: Installation) -> None:
    """A new field of vLLM needs a decision; a field that vLLM dropped is `known=False`, or goes."""
    done = subprocess.run(
        [vllm_installation.folder / "venv" / "bin" / "python", HERE / "request_fields.py"],
        capture_output=True,
        text=True,
        check=True,
        timeout=280,
        env=os.environ | VLLM_ENVIRONMENT,
    )
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    assert sorted(found) == sorted(GENERATE)
    unknown = [(path, name) for path, names in found.items() for name in names if name not in on_path(path)]
    assert unknown == [], WHAT_TO_DO
    table = {(path, name) for path in GENERATE for name, field in on_path(path).items() if field.known}
    gone = sorted(table - {(path, name) for path, names in found.items() for name in names})
    assert gone == [], "the installed vLLM does not have these fields: set known=False, or remove them from the table"


def ask(url: str, key: str, **fields: object) -> int:
    """The status of the answer to a completion."""
    body = json.dumps({"model": MODEL, "max_tokens": 1, **fields}).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/completions", body, headers), timeout=60) as got:
            got.read()
            return int(got.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.timeout(600)
def test_prompt_hits_the_cache_of_its_own_key_only(vllm_url: str, start_gateway: StartGateway) -> None:
    """The same prompt hits within a key, and misses across; without the salt it would hit."""
    backend = {"url": vllm_url, "isolate_cache": "key", "isolate_cache_secret_env": "CACHE_SECRET"}
    with start_gateway(backend, environment={"CACHE_SECRET": "s" * 32}) as gateway:
        other = keys(gateway.folder, "create", "other")
        hits: list[float] = []
        for key in (gateway.key, gateway.key, other, other):
            before = metric(f"{vllm_url}/metrics", "vllm:prefix_cache_hits_total")
            status = 401
            while status == 401:  # until the gateway has read the new key
                status = ask(gateway.url, key, prompt="a secret that only one of them asked " * 20)
            assert status == 200
            hits.append(metric(f"{vllm_url}/metrics", "vllm:prefix_cache_hits_total") - before)
        assert [hit > 0 for hit in hits] == [False, True, False, True], hits


def test_attacks_on_others_do_not_reach_the_engine(vllm_url: str, start_gateway: StartGateway) -> None:
    """The three that were measured: a place ahead of others, a host to fetch from, a grammar of 500 long choices."""
    attacks: list[dict[str, object]] = [
        {"priority": -99},
        {"kv_transfer_params": {"do_remote_prefill": True, "remote_host": "10.0.0.1", "remote_port": 1}},
        {"structured_outputs": {"choice": [f"{number:03}" + "x" * 997 for number in range(500)]}},
    ]
    with start_gateway({"url": vllm_url}) as gateway:
        for attack in attacks:
            before = metric(f"{vllm_url}/metrics", "vllm:prompt_tokens_total")
            assert ask(gateway.url, gateway.key, prompt="a", **attack) == 400
            assert metric(f"{vllm_url}/metrics", "vllm:prompt_tokens_total") == before
        schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
        assert ask(gateway.url, gateway.key, prompt="a", response_format=schema) == 200
