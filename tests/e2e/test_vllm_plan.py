"""The six test cases of the integration plan's phase 5, run by curl as they are written there, but for the host.

Against the simulator and a real vLLM, with the plan's own key `sk-test-key` and its 10 requests a minute.
Case 6 (`ab -n 100 -c 10`) is run with what there is here: curl's own parallel transfers.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import ALIAS, MODEL, Engine, Gateway, eventually, keys, running_gateway

HOST = "https://api.yourdomain.com"

CHAT = """
curl -X POST https://api.yourdomain.com/v1/chat/completions \\
  -H "Authorization: Bearer sk-test-key" \\
  -H "Content-Type: application/json" \\
  -d '{
    "model": "gpt-oss-20b",
    "messages": [{"role": "user", "content": "Hello!"}],
    "max_tokens": 50
  }'
"""

NO_KEY = """
curl -X POST https://api.yourdomain.com/v1/chat/completions \\
  -H "Content-Type: application/json" \\
  -d '{"model": "gpt-oss-20b", "messages": [{"role": "user", "content": "Test"}]}'
"""

PACED = """
for i in {1..15}; do
  curl -X POST https://api.yourdomain.com/v1/chat/completions \\
    -H "Authorization: Bearer sk-test-key" \\
    -H "Content-Type: application/json" \\
    -d '{"model": "gpt-oss-20b", "messages": [{"role": "user", "content": "Test"}]}'
  sleep 1
done
"""

MODELS = """
curl https://api.yourdomain.com/v1/models \\
  -H "Authorization: Bearer sk-test-key"
"""

INVALID_MODEL = """
curl -X POST https://api.yourdomain.com/v1/chat/completions \\
  -H "Authorization: Bearer sk-test-key" \\
  -H "Content-Type: application/json" \\
  -d '{"model": "invalid-model", "messages": [{"role": "user", "content": "Test"}]}'
"""

# Case 6, `ab`, whose request.json the plan does not show.
LOAD_BODY = {"model": "gpt-oss-20b", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 5}


@pytest.fixture
def plan_gateway(engine: Engine, tmp_path: Path) -> Iterator[Gateway]:
    """The plan's limit of 10 a minute and burst of 10, and its key; each test begins with a full bucket."""
    limit = {"requests_per_minute": 10, "burst": 10}
    # The plan's requests of case 2, 3 and 5 name no bound, and the tiny model talks until its context is full.
    models = [{"name": MODEL, "aliases": [ALIAS], "max_output_tokens": 50}]
    backend = {"url": engine.url, "models": models}
    with running_gateway(tmp_path, backend, sections={"rate_limit": limit}) as gateway:
        import_key(gateway)
        yield gateway


def import_key(gateway: Gateway, *limits: str) -> None:
    """`sk-test-key` is taken over; the gateway sees the key file change within 2 s."""
    keys(gateway.folder, "import", "plan", "--weak", *limits, stdin="sk-test-key")
    eventually(lambda: run(MODELS, gateway)[0][0] == 200, within=20)


def run(script: str, gateway: Gateway) -> list[tuple[int, str]]:
    """(status, body) of each answer of one of the plan's scripts, run by bash with only the host replaced."""
    mark = "\n%{http_code}\x1e"
    shown = f"curl() {{ command curl -s --max-time 60 -w '{mark}' \"$@\"; }}\n"
    answers = gateway.folder / "answers"
    answers.mkdir(exist_ok=True)
    done = subprocess.run(
        ["bash", "-c", shown + script.replace(HOST, gateway.url)],
        env=os.environ | {"FOLDER": str(answers)}, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    parts = [part.rpartition("\n") for part in done.stdout.split("\x1e")[:-1]]
    return [(int(status), body) for body, _, status in parts]


def test_1_basic_functionality(plan_gateway: Gateway) -> None:
    """A chat completion of at most 50 tokens."""
    [(status, text)] = run(CHAT, plan_gateway)
    answer = json.loads(text)
    assert status == 200
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert 1 <= answer["usage"]["completion_tokens"] <= 50


def test_2_authentication(plan_gateway: Gateway) -> None:
    """Without a key, 401."""
    [(status, text)] = run(NO_KEY, plan_gateway)
    assert status == 401
    assert json.loads(text)["error"]["code"] == "missing_api_key"


def test_3_rate_limiting_of_eleven_at_once(plan_gateway: Gateway) -> None:
    """Ten pass, one is refused with 429."""
    one = PACED.split("do\n")[1].split("  sleep")[0].strip()
    answers = run(f'for i in {{1..11}}; do {one} > "$FOLDER/$i" & done; wait; cat "$FOLDER"/*', plan_gateway)
    assert Counter(status for status, _ in answers) == {200: 10, 429: 1}
    [refusal] = [json.loads(text) for status, text in answers if status == 429]
    assert refusal["error"]["code"] == "rate_limit_exceeded"


@pytest.mark.vllm
@pytest.mark.timeout(120)
def test_3_rate_limiting_as_the_plan_paces_it(plan_gateway: Gateway) -> None:
    """A bucket of 10 that refills every 6 s admits 12 of 15 requests a second apart."""
    started = time.monotonic()
    statuses = [status for status, _ in run(PACED, plan_gateway)]
    refills = (time.monotonic() - started) // 6  # 2, unless this machine is so slow that the loop takes 18 s
    assert statuses[:11] == [200] * 11  # the twelfth comes at the second refill: before it where curl is quick
    assert 429 in statuses
    assert 12 <= Counter(statuses)[200] <= 10 + refills


def test_4_model_listing(plan_gateway: Gateway) -> None:
    """Both names, in OpenAI's shape, without the model's path on vLLM's disk."""
    [(status, text)] = run(MODELS, plan_gateway)
    assert status == 200
    models = json.loads(text)["data"]
    assert [model["id"] for model in models] == ["unsloth/gpt-oss-20b", "gpt-oss-20b"]
    assert {model.get("root", "gpt-oss-20b") for model in models} <= {"unsloth/gpt-oss-20b", "gpt-oss-20b"}


def test_5_error_handling(plan_gateway: Gateway) -> None:
    """An unknown model is a 404 that names it."""
    [(status, text)] = run(INVALID_MODEL, plan_gateway)
    assert status == 404
    assert json.loads(text)["error"]["code"] == "model_not_found"
    assert "invalid-model" in json.loads(text)["error"]["message"]


def test_6_load(engine: Engine, tmp_path: Path) -> None:
    """100 requests, 10 at a time, with a key whose limit allows it; all of them succeed."""
    with running_gateway(tmp_path, {"url": engine.url}) as gateway:
        import_key(gateway, "--rpm", "100000")
        (tmp_path / "request.json").write_text(json.dumps(LOAD_BODY))
        command = [
            "curl", "-s", "--parallel", "--parallel-max", "10", "-o", "/dev/null", "-w", "%{http_code}\n",
            "-H", "Authorization: Bearer sk-test-key", "-H", "Content-Type: application/json",
            "-d", f"@{tmp_path}/request.json", f"{gateway.url}/v1/chat/completions?[1-100]",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=50)
        assert Counter(done.stdout.split()) == {"200": 100}
        assert gateway.metric("inference_requests_total", status="success") == 100
