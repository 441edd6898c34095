"""A load test from the first look to the last line of its file."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aiaas.errors import CheckFailed, EnvironmentFault
from aiaas.httpclient.target import parse_target
from aiaas.loadtest.files import read_run
from aiaas.loadtest.kill_run import KillOrder
from aiaas.loadtest.killed import killed
from aiaas.loadtest.prompts import Asking
from aiaas.loadtest.runner import Stage
from aiaas.loadtest.sample import GatewayUse, Kill, Run, Sample
from aiaas.loadtest.session import INTERRUPTED, LabelledKey, LoadSettings, measure
from aiaas.loadtest.summary import Summary, summarize_recorded
from tests.fakes.vllm import FakeVllm, Hang, Send, Sleep, answer, error_answer, json_answer
from tests.loadtest.conftest import ANSWER


class Watcher:
    """A listener that records its calls."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.samples: list[Sample] = []
        self.interrupt_at: int | None = None

    def begun(self, run: Run) -> None:
        self.heard.append(f"begun {run.model}")

    def sample(self, sample: Sample) -> None:
        self.samples.append(sample)
        if len(self.samples) == self.interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)

    def tick(self, now: float, elapsed: float, inflight: int, stage: Stage) -> None:
        if self.heard[-1] != "tick":
            self.heard.append("tick")

    def level_done(self, summary: Summary) -> None:
        self.heard.append(f"level {summary.level:g}")

    def killed(self, kill: Kill) -> None:
        self.heard.append(f"killed {kill.code}")


def settings(fake: FakeVllm, *stages: Stage, **more: Any) -> LoadSettings:
    """A short test of the fake."""
    base = LoadSettings(
        target=parse_target(fake.url),
        keys=(LabelledKey("alice", "sk-alice"),),
        asking=Asking(prompt_tokens=(5, 5)),
        stages=stages or (Stage(users=2, requests=6),),
    )
    return replace(base, **more)


async def test_a_run_is_looked_at_measured_and_written_down(fake: FakeVllm, tmp_path: Path) -> None:
    """The file holds the run, each request and the end; it folds to the same numbers."""
    out, watcher = tmp_path / "a.jsonl", Watcher()
    outcome = await measure(settings(fake, out=out, slo="ttft=5s", options={"users": "2"}), watcher)
    assert watcher.heard == ["begun m", "tick", "level 0"]
    recorded = read_run(out)
    assert recorded.run == outcome.run
    assert (recorded.run.model, recorded.run.loop, recorded.run.keys) == ("m", "closed", ("alice",))
    assert recorded.samples == tuple(watcher.samples)
    assert recorded.end == outcome.end
    assert summarize_recorded(recorded).total.e2e == outcome.summary.total.e2e
    assert outcome.summary.total.requests == 6
    assert "sk-alice" not in out.read_text()


async def test_ctrl_c_keeps_and_reports_what_was_measured(fake: FakeVllm, tmp_path: Path) -> None:
    """The file has an end that says so; no request goes on."""
    watcher = Watcher()
    watcher.interrupt_at = 3
    fake.default = (Sleep(0.01), Send(ANSWER))
    out = tmp_path / "a.jsonl"
    outcome = await measure(settings(fake, Stage(users=2, duration=60.0), out=out), watcher)
    assert outcome.end.interrupted
    assert outcome.end.stopped_by == INTERRUPTED
    assert outcome.summary.total.requests == len(watcher.samples) >= 3
    assert read_run(out).end == outcome.end
    assert signal.getsignal(signal.SIGINT) is not None


async def test_samples_are_in_the_file_during_the_run(fake: FakeVllm, tmp_path: Path) -> None:
    """A crash would lose the last half second only."""
    out = tmp_path / "a.jsonl"
    seen: list[int] = []

    class Reader(Watcher):
        def tick(self, now: float, elapsed: float, inflight: int, stage: Stage) -> None:
            seen.append(len(read_run(out).samples) if out.stat().st_size else 0)

    fake.play(Send(ANSWER))
    fake.default = (Sleep(1.2), Send(ANSWER))
    await measure(settings(fake, Stage(users=1, requests=2), out=out), Reader())
    assert 1 in seen


async def test_a_sweep_ends_when_more_load_brings_nothing(fake: FakeVllm) -> None:
    """Its levels are summed up one by one."""
    fake.default = (Sleep(0.02), Send(error_answer(503, "busy")))
    watcher = Watcher()
    stages = tuple(Stage(users=users, requests=4, level=users) for users in (1, 2, 4))
    outcome = await measure(settings(fake, *stages), watcher)
    assert [heard for heard in watcher.heard if heard.startswith("level")] == ["level 1"]
    assert outcome.summary.total.requests == 4


@pytest.mark.parametrize(
    ("get", "kind", "message"),
    [
        pytest.param(error_answer(401, "No such key."), CheckFailed, "refuses the key", id="key"),
        pytest.param(json_answer({"data": [{"id": "x"}]}), CheckFailed, "has no model 'm'", id="model"),
        pytest.param(error_answer(500, "boom"), EnvironmentFault, "returned 500: boom", id="server"),
    ],
)
async def test_fault_at_the_first_look_sends_no_load_writes_no_file(
    fake: FakeVllm, tmp_path: Path, get: bytes, kind: type[Exception], message: str
) -> None:
    """One clear line instead of ten thousand failures."""
    fake.gets["/v1/models"] = (Send(get),)
    with pytest.raises(kind, match=message):
        await measure(settings(fake, model="m", out=tmp_path / "a.jsonl"), Watcher())
    assert fake.posts == []
    assert list(tmp_path.iterdir()) == []


async def test_each_key_is_looked_at(fake: FakeVllm) -> None:
    """And used."""
    keys = (LabelledKey("a", "sk-a"), LabelledKey("b", "sk-b"))
    outcome = await measure(settings(fake, keys=keys), Watcher())
    assert [got.headers["authorization"] for got in fake.got if got.method == "GET"] == ["Bearer sk-a", "Bearer sk-b"]
    assert [key.requests for key in outcome.summary.keys] == [3, 3]


async def test_with_a_direct_address_the_gateways_own_part_is_found(fake: FakeVllm, tmp_path: Path) -> None:
    """Both ways to one server: the interval holds 0. Each way is asked for its own model."""
    target = parse_target(fake.url)
    more = {"direct": target, "direct_model": "other", "direct_key": "sk-direct", "out": tmp_path / "a"}
    outcome = await measure(settings(fake, Stage(users=1, requests=60), **more), Watcher())
    assert outcome.overhead is not None
    assert outcome.overhead.pairs == 30
    assert outcome.overhead.e2e.low < 0.002
    assert outcome.overhead.e2e.high > -0.002
    assert outcome.run.direct == target.url
    assert outcome.summary.total.requests == 30
    asked = {(post.headers["authorization"], post.json["model"]) for post in fake.posts}
    assert asked == {("Bearer sk-alice", "m"), ("Bearer sk-direct", "other")}


async def test_with_a_metrics_port_each_level_tells_the_gateways_cpu(fake: FakeVllm, tmp_path: Path) -> None:
    """In the file as well; a level that is too short for it tells nothing."""
    text = b"process_cpu_seconds_total 1.5\nprocess_start_time_seconds 9\ninference_requests_total 4\n"
    fake.gets["/metrics"] = (Send(answer(200, text)),)
    fake.default = (Sleep(0.02), Send(ANSWER))
    out, stages = tmp_path / "a", (Stage(users=1, duration=0.6, level=1), Stage(users=2, requests=4, level=2))
    outcome = await measure(settings(fake, *stages, metrics=parse_target(fake.url), out=out), Watcher())
    assert [window.gateway for window in outcome.end.windows] == [GatewayUse(0.0, 0.0), None]
    assert read_run(out).end == outcome.end
    assert [level.cpu is None for level in outcome.summary.levels] == [False, True]


async def test_metrics_port_without_cpu_time_stops_before_the_load(fake: FakeVllm, tmp_path: Path) -> None:
    """And before a file is made."""
    with pytest.raises(CheckFailed, match="process_cpu_seconds_total is missing"):
        await measure(settings(fake, metrics=parse_target(fake.url), out=tmp_path / "a"), Watcher())
    assert fake.posts == []
    assert list(tmp_path.iterdir()) == []


async def test_a_file_that_is_there_already_stops_it_before_the_load(fake: FakeVllm, tmp_path: Path) -> None:
    """No measurement is wasted."""
    (tmp_path / "a").write_text("x")
    with pytest.raises(EnvironmentFault, match="already exists"):
        await measure(settings(fake, out=tmp_path / "a"), Watcher())
    assert fake.posts == []


async def test_a_disk_that_fills_up_ends_the_run(
    fake: FakeVllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cleanly, without waiting for open requests."""
    fake.default = (Hang(),)

    def full(_path: Path, _mode: str) -> Any:
        return open("/dev/full", "wb")

    monkeypatch.setattr(Path, "open", full)
    outcome = await measure(settings(fake, Stage(users=1, requests=2), out=tmp_path / "a"), Watcher())
    assert outcome.end.stopped_by.endswith("cannot be written: No space left on device")


def test_a_key_is_never_shown() -> None:
    """Only its label is shown."""
    assert repr(LabelledKey("alice", "sk-secret")) == "LabelledKey(label='alice')"


async def test_a_killed_replica_is_told_and_in_the_file(fake: FakeVllm, tmp_path: Path) -> None:
    """The figures are those of the recorded samples; the fake's streams lack a role and have two tokens of five."""
    out, watcher = tmp_path / "a.jsonl", Watcher()
    fake.default = (Sleep(0.2), Send(ANSWER))
    order = KillOrder("exit 3", 0.1)
    asking = Asking(prompt_tokens=(5, 5), output_tokens=(5, 5))
    outcome = await measure(settings(fake, Stage(users=2, duration=0.5), out=out, kill=order, asking=asking), watcher)
    found, recorded = outcome.killed, read_run(out)
    assert found is not None
    assert recorded.end is not None
    assert recorded.end.kill == found.kill
    assert (found.kill.command, found.kill.code, found.in_flight.requests) == ("exit 3", 3, 2)
    assert found.spoiled_by.items() >= {"role": 2, "completion_tokens": 2}.items()
    assert killed(recorded.samples, recorded.end.kill) == found
    assert "killed 3" in watcher.heard


async def test_a_run_without_a_kill_has_no_counts(fake: FakeVllm, tmp_path: Path) -> None:
    """They cost time and space in the file."""
    out = tmp_path / "a.jsonl"
    outcome = await measure(settings(fake, out=out), Watcher())
    assert outcome.killed is None
    assert b"parts" not in out.read_bytes()
