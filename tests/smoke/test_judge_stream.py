"""The verdicts on a stream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.openai.usage import TokenUsage
from aiaas.smoke.judge_stream import judge_pace, judge_stream, read_stream
from aiaas.smoke.result import Seen, Verdict
from tests.fakes.vllm import DONE, error_stream_event, token_event, usage_event

SSE = {"content-type": "text/event-stream; charset=utf-8"}


def streamed(*events: bytes, arrivals: tuple[float, ...] = (), error: str = "") -> Seen:
    """A stream of these events."""
    seconds = arrivals[-1] if arrivals else 0.0
    return Seen(200, SSE, b"".join(events), error, "", "it broke" if error else "", arrivals, seconds)


PACED = tuple(0.01 * (1 + number) for number in range(20))


@pytest.mark.parametrize(
    "verdict",
    [
        pytest.param(judge_stream(streamed(token_event(), DONE), usage_asked=False), id="plain"),
        pytest.param(judge_stream(streamed(b": ping\n\n", token_event(), DONE), usage_asked=False), id="a comment"),
        pytest.param(judge_stream(streamed(token_event(), usage_event(), DONE), usage_asked=True), id="usage"),
        pytest.param(judge_pace(streamed(*[token_event()] * 20, DONE, arrivals=PACED)), id="paced"),
    ],
)
def test_a_right_stream_passes(verdict: Verdict) -> None:
    """Comments count as nothing."""
    assert verdict.held


@pytest.mark.parametrize(
    ("events", "fault"),
    [
        pytest.param((token_event(), DONE, token_event()), "an event after [DONE]", id="after the end"),
        pytest.param((token_event(), DONE, b"data: half"), "bytes after the last event", id="half an event"),
        pytest.param((token_event(),), "no [DONE] after 1 events", id="no end"),
        pytest.param((DONE,), "no event before [DONE]", id="empty"),
        pytest.param((b"data: [1]\n\n", DONE), "event 1 is not JSON", id="another JSON"),
        pytest.param((b'data: {"a":1}\n\n', DONE), "event 1 has no choices", id="no chunk"),
        pytest.param((error_stream_event(), DONE), "event 1 is an error", id="an error"),
    ],
)
def test_a_fault_is_named(events: tuple[bytes, ...], fault: str) -> None:
    """Only the first fault."""
    assert read_stream(streamed(*events)).fault.startswith(fault)


@pytest.mark.parametrize(
    ("verdict", "hint"),
    [
        pytest.param(judge_stream(Seen(200, {}), usage_asked=False), "rewrites answers", id="no stream"),
        pytest.param(judge_stream(Seen(500, {}), usage_asked=False), "refused it", id="no 200"),
        pytest.param(judge_stream(streamed(token_event(), error="cut"), usage_asked=False), "was cut off", id="cut"),
        pytest.param(
            judge_pace(streamed(*[token_event()] * 20, DONE, arrivals=(0.5,) * 20)), "buffers streams", id="buffered"
        ),
        pytest.param(judge_pace(streamed(token_event())), "timeout, or an engine that died", id="long one cut"),
        pytest.param(
            judge_stream(streamed(token_event(), error_stream_event(), DONE), usage_asked=False),
            "the engine failed in the middle",
            id="engine dies",
        ),
        pytest.param(
            judge_stream(streamed(token_event(), usage_event(3, 0), DONE), usage_asked=True),
            "`stream_options` did not reach",
            id="usage of nothing",
        ),
        pytest.param(
            judge_stream(streamed(token_event(), DONE), usage_asked=True), "`stream_options` did not", id="no usage"
        ),
    ],
)
def test_a_wrong_stream_fails(verdict: Verdict, hint: str) -> None:
    """With its usual cause."""
    assert verdict.held is False
    assert hint in verdict.hint


@pytest.mark.parametrize(
    ("events", "reads", "pause", "right"),
    [
        (65, 9, 0.2, False),
        (65, 9, 0.04, False),
        (65, 65, 0.2, True),
        (65, 33, 0.2, True),
        (65, 9, 0.02, True),
    ],
    ids=["lumps", "lumps at the least delay", "a slow engine", "pairs", "a quick engine"],
)
def test_events_in_lumps_fail(events: int, reads: int, pause: float, right: bool) -> None:
    """HAProxy waits for the client's acknowledgement, 40 to 200 ms, and then sends what came meanwhile."""
    arrivals = tuple(0.5 + pause * min(index * reads // events, reads - 1) for index in range(events))
    verdict = judge_pace(streamed(*[token_event()] * events, DONE, arrivals=arrivals))
    assert verdict.held is right
    assert right or "`option http-no-delay`" in verdict.hint


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (streamed(token_event(), DONE, arrivals=(1.0,)), "only 1 events"),
        (streamed(*[token_event()] * 20, DONE, arrivals=(0.05,)), "too quick to tell"),
    ],
    ids=["short", "quick"],
)
def test_a_pace_that_cannot_be_told_is_skipped(seen: Seen, reason: str) -> None:
    """Neither passed nor failed."""
    verdict = judge_pace(seen)
    assert verdict.held is None
    assert reason in verdict.seen


def test_failure_message_tells_the_answer() -> None:
    """Events, usage, the end; or the media type in place of a stream."""
    assert judge_stream(streamed(token_event(), DONE), usage_asked=False).seen == "1 events, [DONE]"
    assert judge_stream(Seen(200, {"content-type": "a/b"}), usage_asked=False).seen == "200 with a/b"
    assert judge_stream(Seen(200, {}), usage_asked=False).seen == "200 with no content type"


def test_usage_is_read_wherever_it_stands() -> None:
    """On every event, as vLLM does when forced."""
    read = read_stream(streamed(usage_event(3, 1), usage_event(3, 2), DONE))
    assert read.usages == (TokenUsage(3, 1), TokenUsage(3, 2))


@given(st.binary(max_size=200))
def test_no_bytes_break_it(data: bytes) -> None:
    """Whatever a server sends is a verdict."""
    assert judge_stream(streamed(data), usage_asked=False).held is False
