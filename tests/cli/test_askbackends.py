"""`aiaas validate --connect`: the backends' answers, over real sockets."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aiaas.cli.askbackends import seconds_ahead
from aiaas.cli.main import run
from aiaas.openai.paths import GENERATE
from tests.certificate import self_signed
from tests.fakes.vllm import FakeVllm, Hang, Send, Step, answer, json_answer


@pytest.fixture
async def fake() -> AsyncIterator[FakeVllm]:
    """A backend that lists `base` and the adapter `sql`."""
    fake = await FakeVllm.start()
    fake.gets["/v1/models"] = lists({"id": "base", "root": "/m"}, {"id": "sql", "root": "/a", "parent": "base"})
    yield fake
    await fake.stop()


def lists(*models: dict[str, Any]) -> tuple[Step, ...]:
    return (Send(json_answer({"data": list(models)})),)


async def validate(folder: Path, backends: str, *options: str) -> int:
    """Run it in a thread: the fake answers on this loop."""
    (folder / "aiaas.yaml").write_text(f"backends:\n{backends}auth: {{keys_file: keys.yaml}}\n")
    (folder / "keys.yaml").write_text("version: 1\nkeys: []\n")
    return await asyncio.to_thread(run, ["validate", "-c", str(folder / "aiaas.yaml"), *options])


async def test_backend_as_configured_passes(
    fake: FakeVllm, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backend is asked once, with its own key; without --connect it is not asked."""
    monkeypatch.setenv("VLLM_KEY", "backend-secret")
    vllm = f"  vllm: {{url: '{fake.url}', models: [{{name: base}}, {{name: sql}}], api_key_env: VLLM_KEY}}\n"
    assert await validate(tmp_path, vllm) == 0
    assert fake.got == []
    assert await validate(tmp_path, vllm, "--connect") == 0
    assert [(got.path, got.headers["authorization"]) for got in fake.got] == [
        ("/v1/models", "Bearer backend-secret"),
        ("/openapi.json", "Bearer backend-secret"),
    ]
    assert capsys.readouterr().out == ""


async def test_an_alias_that_is_a_model_there_is_a_warning(
    fake: FakeVllm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The warning says what to write; with --strict it is an error."""
    vllm = f"  vllm: {{url: '{fake.url}', models: [base, sql]}}\n"
    assert await validate(tmp_path, vllm, "--connect") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "warning AIA603 backends.vllm.models" in line
    assert "models: [{name: base}, {name: sql}]" in line
    assert await validate(tmp_path, vllm, "--connect", "--strict") == 1


async def test_each_address_has_its_own_problem(
    fake: FakeVllm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing model, an address where nobody listens, an unknown host name; exit code 1, and JSON as well."""
    backends = (
        f"  gone: {{url: '{fake.url}', models: [other]}}\n"
        "  away: {urls: ['http://127.0.0.1:1'], models: [a]}\n"
        "  nameless: {dns: 'nowhere.invalid:1', models: [b]}\n"
        "  engine: {engine: {kind: simulator}, models: [c]}\n"
    )
    assert await validate(tmp_path, backends, "--connect", "-o", "json") == 1
    out, err = capsys.readouterr()
    problems = json.loads(out)["problems"]
    assert [(problem["severity"], problem["code"], problem["path"]) for problem in problems] == [
        ("error", "AIA603", "backends.gone.models"),
        ("error", "AIA601", "backends.away"),
        ("error", "AIA601", "backends.nameless"),
    ]
    assert "other: not served there; the backend lists base, sql" in problems[0]["message"]
    assert problems[1]["message"] == (
        "http://127.0.0.1:1: connection refused; nothing listens on that port: start vLLM there, or fix the port"
    )
    assert "no such host: fix the name" in problems[2]["message"]
    assert "backends.engine: not asked, since `aiaas serve` starts its engine" in err


async def test_draining_replica_is_not_asked(
    fake: FakeVllm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its server may be gone already, as its operator knows."""
    replicas = f"[{{url: 'http://127.0.0.1:1', drain: true}}, '{fake.url}']"
    assert await validate(tmp_path, f"  vllm: {{urls: {replicas}, models: [base]}}\n", "--connect") == 0
    assert "AIA601" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("step", "code", "message"),
    [
        (Send(answer(200, b"<html>", content_type="text/html")), "AIA602", "is this a vLLM?"),
        (Send(json_answer({"error": "Unauthorized"}, status=401)), "AIA602", "api_key_env"),
        (Send(json_answer({"error": {"code": "missing_api_key"}}, status=401)), "AIA602", "an aiaas gateway"),
        (Hang(), "AIA601", "no answer within 0.05 s; it accepts connections and is silent"),
    ],
    ids=["a page", "a key", "a gateway", "silence"],
)
async def test_an_address_without_a_list_is_an_error(
    fake: FakeVllm, tmp_path: Path, capsys: pytest.CaptureFixture[str], step: Step, code: str, message: str
) -> None:
    """Whatever server stands there instead of a vLLM."""
    fake.gets["/v1/models"] = (step,)
    vllm = f"  vllm: {{url: '{fake.url}', models: [base], health: {{timeout: 50ms}}}}\n"
    assert await validate(tmp_path, vllm, "--connect") == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert f"error {code} backends.vllm" in line
    assert message in line


@pytest.mark.parametrize(
    ("date", "ahead"),
    [(b"Mon, 23 Nov 2026 07:16:08 GMT", 10.0), (b"", None), (b"yesterday", None), (b"\xff", None)],
    ids=["a date", "nothing", "a word", "not text"],
)
def test_a_date_is_compared_with_our_clock(date: bytes, ahead: float | None) -> None:
    """It is cut to a whole second."""
    assert seconds_ahead(date, 1_795_418_158.5) == ahead


async def test_paths_that_the_engine_lacks_are_shown(
    fake: FakeVllm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A note where all paths are offered by default; a warning where the config names the path."""
    have = {path: {"post": {}} for path in GENERATE if path not in ("/v1/score", "/score")}
    fake.gets["/openapi.json"] = (Send(json_answer({"paths": have})),)
    vllm = f"  vllm: {{url: '{fake.url}', models: [{{name: base}}, {{name: sql}}]}}\n"
    assert await validate(tmp_path, vllm, "--connect", "--strict") == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert f"backends.vllm: {fake.url} does not have /v1/score, /score, so requests to them are 404" in err
    named = vllm.replace("}]}", "}], endpoints: [/v1/embeddings, /v1/score]}")
    assert await validate(tmp_path, named, "--connect") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "warning AIA206 backends.vllm.endpoints: " in line
    assert line.endswith(f"{fake.url} does not have /v1/score; remove it")


async def test_a_backend_is_verified_with_its_own_authorities(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the gateway does; without them, the answer says what to write."""
    certificate, key = self_signed(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    fake = await FakeVllm.start(context)
    fake.gets["/v1/models"] = lists({"id": "base", "root": "/m"})
    url = f"https://127.0.0.1:{fake.port}"
    try:
        assert (
            await validate(
                tmp_path, f"  v: {{url: '{url}', models: [base], tls: {{ca_file: cert.pem}}}}\n", "--connect"
            )
            == 0
        )
        assert capsys.readouterr().out == ""
        assert await validate(tmp_path, f"  v: {{url: '{url}', models: [base]}}\n", "--connect") == 1
        out = capsys.readouterr().out
        assert "AIA601 backends.v: https://127.0.0.1:" in out
        assert "signed by an unknown authority, self-signed certificate; name a file with" in out
        assert out.endswith("in backends.v.tls.ca_file\n")
    finally:
        await fake.stop()
