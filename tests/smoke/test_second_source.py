"""The checks with a second source: they pass with the right one, and fail with a wrong one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from aiaas.httpclient.target import HttpTarget, parse_target
from aiaas.limits.model import Rate
from aiaas.smoke.ask import SmokeSettings
from tests.fakes.gateway import KEY, PROMPT_TOKENS, FakeGateway
from tests.fakes.vllm import FakeVllm, Hang, Send, answer, error_answer, json_answer
from tests.smoke.test_run import run

PLAN = (
    "# TYPE inference_requests counter\n# TYPE inference_latency_seconds histogram\n# TYPE tokens_processed counter\n"
)


class Scraped(FakeVllm):
    """A metrics port that serves texts one after another; the last one stays."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def script_for(self, method: str, path: str) -> tuple[Send, ...]:
        """The next text."""
        text = self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]
        return (Send(answer(200, text.encode(), content_type="text/plain")),)

    def at(self) -> HttpTarget:
        """Its URL, as an option names it."""
        return parse_target(self.url)


@pytest.fixture
async def good() -> AsyncIterator[FakeGateway]:
    """A gateway that does everything right."""
    made = await FakeGateway.start()
    assert isinstance(made, FakeGateway)
    yield made
    await made.stop()


@pytest.fixture
async def scraped() -> AsyncIterator[Scraped]:
    """See Scraped."""
    made = await Scraped.start()
    assert isinstance(made, Scraped)
    yield made
    await made.stop()


def known(good: FakeGateway) -> SmokeSettings:
    """With the key."""
    return SmokeSettings(target=parse_target(good.url), key=KEY, timeout=2.0, patience=0.5)


def tokens(taken: int, given: int) -> str:
    """The counts of a gateway."""
    name = "tokens_processed_total"
    return f'# TYPE tokens_processed counter\n{name}{{type="input"}} {taken}\n{name}{{type="output"}} {given}\n'


def engine(running: int, generated: int) -> str:
    """The counts of an engine."""
    return f"vllm:num_requests_running {running}\nvllm:generation_tokens_total {generated}\n"


def aborts(number: int) -> str:
    """The incidents of a gateway."""
    return f'# TYPE aiaas_aborts counter\naiaas_aborts_total{{phase="streaming"}} {number}\n'


@pytest.mark.parametrize(
    ("text", "outcome"), [(PLAN, "passed"), ("a 1\n", "failed")], ids=["the plan's three", "something other"]
)
async def test_metrics_are_there_to_be_scraped(good: FakeGateway, scraped: Scraped, text: str, outcome: str) -> None:
    """The required metrics, by name."""
    scraped.texts = [text]
    assert (await run(replace(known(good), metrics=scraped.at()), "metrics"))["metrics"].outcome == outcome


@pytest.mark.parametrize(
    ("texts", "outcome", "hint"),
    [
        pytest.param([tokens(5, 5), tokens(5, 5), tokens(5 + 2 * PROMPT_TOKENS, 15)], "passed", "", id="counted late"),
        pytest.param([tokens(5, 5)], "failed", "another replica", id="not counted"),
        pytest.param([tokens(0, 0), tokens(99, 99)], "failed", "counted twice", id="too much"),
        pytest.param(["<html>"], "failed", "metrics ports", id="no metrics"),
    ],
)
async def test_usage_adds_up(good: FakeGateway, scraped: Scraped, texts: list[str], outcome: str, hint: str) -> None:
    """The usage of answers against the metrics."""
    scraped.texts = texts
    result = (await run(replace(known(good), metrics=scraped.at()), "usage"))["usage"]
    assert result.outcome == outcome, result
    assert hint in result.hint


@pytest.mark.parametrize(
    ("texts", "outcome", "word"),
    [
        pytest.param([engine(0, 10), engine(1, 13), engine(0, 14)], "passed", "4 tokens generated", id="stops"),
        pytest.param([engine(0, 10), engine(1, 900)], "failed", "1 running", id="runs on"),
        pytest.param([engine(0, 10)], "skipped", "an engine other than", id="another engine"),
        pytest.param([engine(3, 10)], "skipped", "busy with 3", id="busy"),
        pytest.param(["a 1\n"], "failed", "the metrics cannot be read", id="no vLLM"),
    ],
)
async def test_an_abort_reaches_the_engine(
    good: FakeGateway, scraped: Scraped, texts: list[str], outcome: str, word: str
) -> None:
    """In the engine's metrics."""
    scraped.texts = texts
    result = (await run(replace(known(good), engine=scraped.at()), "abort"))["abort"]
    assert (result.outcome, word in result.seen) == (outcome, True), result


@pytest.mark.parametrize(
    ("texts", "outcome"), [([aborts(1), aborts(1), aborts(2)], "passed"), ([aborts(1)], "failed")], ids=["yes", "no"]
)
async def test_an_abort_is_counted_by_the_gateway(
    good: FakeGateway, scraped: Scraped, texts: list[str], outcome: str
) -> None:
    """In the gateway's metrics."""
    scraped.texts = texts
    result = (await run(replace(known(good), metrics=scraped.at()), "abort"))["abort"]
    assert result.outcome == outcome, result


@pytest.mark.parametrize(
    ("step", "texts", "outcome", "word"),
    [
        (Hang(), [aborts(1), aborts(1), aborts(2)], "passed", "1 counted"),
        (Hang(), [aborts(1)], "failed", "0 counted"),
        (Send(json_answer({"choices": [{}]})), [aborts(1)], "skipped", "too quick to leave"),
        (Send(error_answer(400, "max_tokens is too large", "BadRequestError")), [aborts(1)], "skipped", "too large"),
        (Send(error_answer(500, "No.")), [aborts(1)], "failed", "500"),
    ],
    ids=["noticed", "not noticed", "answered", "refused", "broken"],
)
async def test_leaving_before_the_answer_is_noticed(
    good: FakeGateway, scraped: Scraped, step: Send | Hang, texts: list[str], outcome: str, word: str
) -> None:
    """A proxy that writes nothing has to look whether its client is there."""
    scraped.texts = texts
    good.breaks["abort-early"] = (step,)
    settings = replace(known(good), metrics=scraped.at())
    result = (await run(settings, "abort-early"))["abort-early"]
    assert (result.outcome, word in result.seen) == (outcome, True), result


async def test_an_abort_waits_for_the_keys_own_limit(good: FakeGateway, scraped: Scraped) -> None:
    """The check before has used it up; after a 429 there is no stream to leave."""
    good.rate = Rate(600, 1)
    scraped.texts = [aborts(1), aborts(2)]
    results = await run(replace(known(good), metrics=scraped.at()), "stream-pace", "abort")
    assert results["abort"].outcome == "passed", results["abort"]


@pytest.mark.parametrize(
    ("step", "outcome", "word"),
    [
        (Send(error_answer(400, "max_tokens is too large", "BadRequestError")), "skipped", "max_tokens is too large"),
        (Hang(), "failed", "not complete within"),
    ],
    ids=["refused", "silent"],
)
async def test_a_stream_that_cannot_be_left_says_why(
    good: FakeGateway, scraped: Scraped, step: Send | Hang, outcome: str, word: str
) -> None:
    """It does not count as an abort."""
    scraped.texts = [aborts(1)]
    good.breaks["abort"] = (step,)
    result = (await run(replace(known(good), metrics=scraped.at(), timeout=0.2), "abort"))["abort"]
    assert (result.outcome, word in result.seen) == (outcome, True), result


async def test_the_direct_answer_is_that_of_the_model_there(good: FakeGateway) -> None:
    """Under the engine's own name, where the gateway's is an alias."""
    there = await FakeGateway.start()
    settings = replace(known(good), direct=parse_target(there.url), direct_key=KEY, model="other")
    result = (await run(settings, "direct"))["direct"]
    assert result.outcome == "passed", result
    assert there.posts[0].json["model"] == "other"
    named = await run(replace(settings, direct_model="m"), "direct")
    assert named["direct"].outcome == "passed"
    assert there.posts[-1].json["model"] == "m"
    await there.stop()
