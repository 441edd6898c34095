"""The fairness test against scripted servers, which treat the two keys differently."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from aiaas.errors import CheckFailed, EnvironmentFault
from aiaas.httpclient.target import parse_target
from aiaas.loadtest import fairness, fairness_run
from aiaas.loadtest.fairness import FairnessReport, KeyRefusals
from aiaas.loadtest.fairness_run import FairnessSettings, measure_fairness
from aiaas.loadtest.prompts import Asking
from aiaas.loadtest.session import LabelledKey
from tests.fakes.vllm import FakeVllm, Hang, Send, Sleep, Step, error_answer, json_answer
from tests.loadtest.conftest import ANSWER, MODELS

LIMITED = error_answer(429, "10 a minute")
QUICK: tuple[Step, ...] = (Sleep(0.005), Send(ANSWER))
SLOW: tuple[Step, ...] = (Sleep(0.1), Send(ANSWER))


@dataclass(frozen=True)
class ByKey:
    """Play one script for the light key and another for the heavy one."""

    light: tuple[Step, ...] = QUICK
    heavy: tuple[Step, ...] = SLOW

    async def play(self, connection: Any) -> None:
        is_light = connection.received[-1].headers["authorization"] == "Bearer sk-light"
        for step in self.light if is_light else self.heavy:
            await step.play(connection)


@dataclass(frozen=True)
class Beside:
    """Play `steps` once a heavy request has come, and a quick answer before."""

    steps: tuple[Step, ...]

    async def play(self, connection: Any) -> None:
        flooded = any(post.headers["authorization"] != "Bearer sk-light" for post in connection.fake.posts)
        for step in self.steps if flooded else QUICK:
            await step.play(connection)


@dataclass(frozen=True)
class After:
    """Play `steps` once there were `count` requests of heavy keys, and a slow answer before."""

    count: int
    steps: tuple[Step, ...]

    async def play(self, connection: Any) -> None:
        heavy = sum(post.headers["authorization"] != "Bearer sk-light" for post in connection.fake.posts)
        for step in self.steps if heavy > self.count else SLOW:
            await step.play(connection)


@dataclass(frozen=True)
class Call:
    """Call a function."""

    function: Callable[[], object]

    async def play(self, connection: Any) -> None:
        self.function()


def settings(fake: FakeVllm, **more: Any) -> FairnessSettings:
    """20 light requests in each part."""
    base = FairnessSettings(
        target=parse_target(fake.url),
        light=LabelledKey("light", "sk-light"),
        heavy=(LabelledKey("heavy", "sk-heavy"),),
        flood=Asking(prompt_tokens=(5, 5)),
        users=4,
        rate=40.0,
        poisson=False,
        duration=0.5,
    )
    return replace(base, **more)


async def run(fake: FakeVllm, light: tuple[Step, ...], heavy: tuple[Step, ...], **more: Any) -> FairnessReport:
    """One test of a server with these two scripts: the first in which this process did not stand still."""
    fake.default = (ByKey(light, heavy),)
    for _ in range(5):
        fake.posts.clear()  # of which the scripts take what has happened so far
        report = await measure_fairness(settings(fake, **more), lambda line: None)
        if "the load generator itself was the bottleneck" not in report.no_verdict:
            break
    return report


async def test_a_light_key_is_measured_alone_and_beside(fake: FakeVllm) -> None:
    """A server that does not let it wait is fair; the light load is the same in both parts."""
    said: list[str] = []
    fake.default = (ByKey(),)
    report = await measure_fairness(settings(fake, duration=2.0, rate=10.0), said.append)
    assert (report.fair, report.no_verdict, report.interrupted, report.model) == (True, "", False, "m")
    assert report.load == "light key 10 requests/s of 8 tokens, 1 heavy key with 4 clients of 100 tokens"
    assert report.light_alone is not None
    assert report.light_beside is not None
    assert (report.light_alone.answered, report.light_beside.answered) == (20, 20)
    assert report.heavy_alone is not None
    assert report.heavy_beside is not None
    assert report.heavy_alone.tokens_per_second > 0
    assert report.heavy_alone.ttft is None
    assert report.heavy_beside.tokens_per_second > 0
    assert report.heavy_beside.ttft is not None
    assert report.refusals == ()
    assert len(said) == 2
    lengths = {post.headers["authorization"]: post.json["max_tokens"] for post in fake.posts}
    assert lengths == {"Bearer sk-light": 8, "Bearer sk-heavy": 100}


async def test_each_heavy_key_takes_part_in_the_flood(fake: FakeVllm) -> None:
    """And is checked before."""
    heavy = tuple(LabelledKey(f"h{number}", f"sk-{number}") for number in range(3))
    fake.default = (ByKey(),)
    report = await measure_fairness(settings(fake, heavy=heavy), lambda line: None)
    assert "3 heavy keys" in report.load
    flooded = {post.headers["authorization"] for post in fake.posts} - {"Bearer sk-light"}
    assert flooded == {"Bearer sk-0", "Bearer sk-1", "Bearer sk-2"}


async def test_a_key_that_waits_beside_the_flood_is_unfair(fake: FakeVllm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the bound, which is lower here so that the test is quick."""
    monkeypatch.setattr(fairness, "MOST_TTFT", 0.05)
    monkeypatch.setattr(fairness, "MOST_GROWTH", 1.0)
    report = await run(fake, (Beside((Sleep(0.3), Send(ANSWER))),), SLOW)
    assert report.fair is False
    assert [check.held for check in report.checks] == [False, True]


async def test_a_key_that_is_never_served_beside_the_flood_is_unfair(
    fake: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its requests are cut off after the drain and count with their waits."""
    monkeypatch.setattr(fairness, "MOST_TTFT", 0.05)
    monkeypatch.setattr(fairness, "MOST_GROWTH", 1.0)
    monkeypatch.setattr(fairness_run, "PART_DRAIN", 1.0)
    report = await run(fake, (Beside((Hang(),)),), SLOW)
    assert report.fair is False
    assert report.light_beside is not None
    assert (report.light_beside.answered, report.light_beside.unfinished) == (0, 20)
    assert report.light_beside.ttft is not None
    assert 1.0 < report.light_beside.ttft.maximum < 3
    assert "20 of the light key's requests were unfinished" in report.remarks[0]


async def test_a_light_key_refused_as_overloaded_is_unfair(fake: FakeVllm) -> None:
    """However short its other waits are."""
    report = await run(fake, (Beside((Send(error_answer(503, "full")),)),), SLOW)
    assert report.fair is False
    assert [check.held for check in report.checks] == [False, False]
    assert report.refusals == (KeyRefusals("light", 0, 20),)


async def test_a_light_key_refused_by_its_own_limits_is_not_judged(fake: FakeVllm) -> None:
    """Alone it gets no answer at all, and no flood is sent."""
    report = await run(fake, (Send(LIMITED),), SLOW)
    assert (report.fair, report.checks, report.light_beside is None) == (None, (), True)
    assert "the light key got no answer even alone (http_429" in report.no_verdict
    assert "refused by its own limits, which is not unfair" in report.remarks[0]


async def test_a_flood_refused_by_its_own_limits_is_not_judged(fake: FakeVllm) -> None:
    """There was nothing to protect the light key from."""
    report = await run(fake, QUICK, (Send(LIMITED),))
    assert report.fair is None
    assert "the heavy key got no answer (http_429" in report.no_verdict
    assert [(one.key, one.limited > 0) for one in report.refusals] == [("heavy", True)]


async def test_a_server_too_slow_for_the_light_key_alone_is_not_judged(
    fake: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flood is not sent."""
    monkeypatch.setattr(fairness_run, "PART_DRAIN", 0.1)
    fake.play(*QUICK)
    report = await run(fake, (Hang(),), SLOW)
    assert report.fair is None
    assert "even alone, 19 of the light key's requests were unfinished" in report.no_verdict
    assert {post.headers["authorization"] for post in fake.posts} == {"Bearer sk-light"}


@pytest.mark.parametrize("which", ["light", "heavy"])
async def test_a_refused_key_is_named_before_the_load(fake: FakeVllm, which: str) -> None:
    """With its label, never with the key."""
    models: dict[str, tuple[Step, ...]] = dict.fromkeys(("light", "heavy"), (Send(json_answer(MODELS)),))
    fake.gets["/v1/models"] = (ByKey(**(models | {which: (Send(error_answer(401, "No such key.")),)})),)
    with pytest.raises(CheckFailed, match=rf"^the {which} key \({which}\): .* refuses the key: No such key.$"):
        await run(fake, QUICK, SLOW)
    assert fake.posts == []


REVOKED: tuple[Step, ...] = (Send(error_answer(401, "revoked")),)


@pytest.mark.parametrize(
    ("which", "script"),
    [
        pytest.param("light", Beside(REVOKED), id="light"),
        pytest.param("heavy", After(0, REVOKED), id="heavy, before the light key joins"),
        pytest.param("heavy", After(4 * 8, REVOKED), id="heavy, beside the light key"),  # the eighth request of 0.1 s
    ],
)
async def test_a_key_revoked_during_the_test_is_named(fake: FakeVllm, which: str, script: Step) -> None:
    """The test ends at once, without waiting for the other key."""
    scripts: dict[str, tuple[Step, ...]] = {"light": QUICK, "heavy": SLOW, which: (script,)}
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(CheckFailed, match=rf"^the {which} key was refused during the test: .*revoked$"):
        await run(fake, **scripts, duration=3.0)
    assert loop.time() - began < 5.5  # the light key alone takes 3 s, and both together 3 s more


async def test_a_server_that_is_down_is_said_before_the_load(fake: FakeVllm) -> None:
    """As in other load tests."""
    await fake.down()
    with pytest.raises(EnvironmentFault, match="connection refused; is the server running"):
        await run(fake, QUICK, SLOW)


async def test_a_server_that_goes_down_beside_the_flood_is_unfair(fake: FakeVllm) -> None:
    """Its failures are counted; the test ends on its own."""

    def down() -> None:
        for connection in fake.connections:
            connection.end()

    report = await run(fake, (Beside((Call(down),)),), SLOW)
    assert report.fair is not True
    assert report.light_beside is not None
    assert report.light_beside.errors > 0


@pytest.mark.parametrize("part", ["alone", "beside"])
async def test_ctrl_c_ends_every_request_and_gives_no_verdict(fake: FakeVllm, part: str) -> None:
    """In each part; the figures so far are kept, and no connection stays open."""
    ctrl_c = Call(lambda: os.kill(os.getpid(), signal.SIGINT))
    light = (Beside((ctrl_c, Hang())),) if part == "beside" else (ctrl_c, Hang())
    report = await asyncio.wait_for(run(fake, light, (Hang(),), duration=1.0), 8)
    assert (report.interrupted, report.fair, report.checks) == (True, None, ())
    assert report.no_verdict == "Ctrl-C ended the test"
    assert report.light_alone is not None
    assert (report.heavy_beside is None) == (part == "alone")
    for connection in fake.connections:
        await asyncio.wait_for(connection.gone.wait(), 2)
    assert fake.open_connections == 0
