"""aiaas.cli.prioritytrial: `aiaas validate --connect` tries whether a backend takes a priority, over real sockets."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiaas.cli.prioritytrial import judge_trial
from aiaas.proxy.upstream.ask import Fetched
from aiaas.proxy.upstream.connection import Failure, FailureKind
from aiaas.simulator.options import SimulatorOptions
from aiaas.simulator.server import running_simulator
from tests.cli.test_askbackends import fake, validate
from tests.fakes.vllm import FakeVllm, Send, answer, error_answer, json_answer

__all__ = ["fake"]

# The answer of vLLM 0.8, whose errors have no `error` around them.
OLD_REFUSAL = {
    "object": "error",
    "message": "Got priority 20 but Priority scheduling is not enabled.",
    "type": "BadRequestError",
    "param": None,
    "code": 400,
}


def backend(fake: FakeVllm, more: str = "scheduling: priority") -> str:
    """One backend of a config."""
    return f"  vllm: {{url: '{fake.url}', models: [base], {more}}}\n"


async def test_engine_that_refuses_a_priority_is_an_error(
    fake: FakeVllm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every request would fail: the message has both ways out. One request, of one token, after all others."""
    fake.default = (Send(json_answer(OLD_REFUSAL, status=400)),)
    assert await validate(tmp_path, backend(fake), "--connect") == 1
    out, err = capsys.readouterr()
    [line] = out.splitlines()
    assert "error AIA604 backends.vllm.scheduling" in line
    assert "Got priority 20" in line
    assert "--scheduling-policy priority, or write scheduling: fcfs" in line
    assert "takes `priority`" not in err
    [sent] = fake.posts
    assert (sent.path, sent.json) == (
        "/v1/completions",
        {"model": "base", "prompt": "a", "max_tokens": 1, "priority": 20},
    )


async def test_engine_that_takes_a_priority_may_still_ignore_it(
    fake: FakeVllm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Valid also with --strict; a note says where the engine shows its policy."""
    assert await validate(tmp_path, backend(fake), "--connect", "--strict") == 0
    assert f"backends.vllm.scheduling: {fake.url} takes `priority`; whether it also obeys it" in capsys.readouterr().err


async def test_other_backends_are_not_tried(fake: FakeVllm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With fcfs, without --connect, and where the list of models fails already."""
    assert await validate(tmp_path, backend(fake, "scheduling: fcfs"), "--connect") == 0
    assert await validate(tmp_path, backend(fake)) == 0
    fake.gets["/v1/models"] = (Send(answer(500, b"")),)
    assert await validate(tmp_path, backend(fake), "--connect") == 1
    assert fake.posts == []
    assert "AIA604" not in capsys.readouterr().out


async def test_trial_takes_the_next_path_after_a_404(
    fake: FakeVllm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An engine for embeddings has no completions; then nothing is generated."""
    fake.play(Send(error_answer(404, "Not Found")))
    offered = "scheduling: priority, endpoints: [/v1/completions, /v1/embeddings]"
    assert await validate(tmp_path, backend(fake, offered), "--connect") == 0
    assert [sent.path for sent in fake.posts] == ["/v1/completions", "/v1/embeddings"]
    offered = "scheduling: priority, endpoints: [/v1/messages]"
    assert await validate(tmp_path, backend(fake, offered), "--connect") == 0
    assert len(fake.posts) == 2
    capsys.readouterr()


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
async def test_simulator_takes_a_priority_as_vllm_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], policy: str
) -> None:
    """vLLM 0.32 takes it under both policies (the wire tests hold the simulator to that)."""
    options = SimulatorOptions(models=("base",), scheduling_policy=policy, ttft=0.001)  # type: ignore[arg-type]
    async with running_simulator(options) as simulator:
        written = f"  vllm: {{url: '{simulator.url}', models: [base], scheduling: priority}}\n"
        assert await validate(tmp_path, written, "--connect") == 0
    assert "takes `priority`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("got", "severity", "says"),
    [
        (Fetched(400, b"", b'{"error":{"message":"no PRIORITY here"}}'), "error", "(no PRIORITY here); start it with"),
        (Fetched(422, b"", b"priority:\n  not allowed"), "error", "(priority: not allowed)"),
        (Fetched(400, b"", b'{"error":{"message":"no chat template"}}'), "warning", "tried: 400 no chat template"),
        (Fetched(500, b"", b'{"error":{"message":"priority queue broke"}}'), "warning", "tried: 500 priority queue"),
        (Fetched(404, b"", b""), "warning", "could not be tried: 404"),
        (Fetched(400, b"", b"[1]"), "warning", "tried: 400 [1]"),
        (Fetched(400, b"", b'{"error":{"message":5},"message":null}'), "warning", "tried: 400 {"),
        (Failure(FailureKind.TIMEOUT, "no answer within 30 s"), "warning", "no answer within 30 s"),
        (Fetched(200, b"", b"anything with priority"), None, ""),
    ],
)
def test_answer_to_the_trial_is_judged(got: Fetched | Failure, severity: str | None, says: str) -> None:
    """Only a refusal that names the field is an error; whatever else hinders the trial is a warning."""
    verdict = judge_trial(got)
    assert (verdict is None) == (severity is None)
    if verdict is not None:
        assert verdict[0] == severity
        assert says in verdict[1]
        assert len(verdict[1]) < 400
