"""Which events count as output, and which as an error."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.httpclient.answer import DETAIL, Answer, PlainAnswer

STREAM = {"content-type": "text/event-stream; charset=utf-8"}
JSON = {"content-type": "application/json"}
ROLE = b'data: {"id":"c","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
TOKEN = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":" a"},"finish_reason":null,"token_ids":null}]}\n\n'
LAST = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":""},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":18,"total_tokens":23,"completion_tokens":5}}\n\n'
DONE = b"data: [DONE]\n\n"
ERROR = (
    b'data: {"error": {"message": "EngineCore died", "type": "InternalServerError", "param": null, "code": 500}}\n\n'
)
HTML = b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"


def streamed(*parts: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    """A whole answer to a request for a stream; part number k comes at k."""
    answer = Answer(wants_stream=True)
    answer.head(status, STREAM if headers is None else headers)
    for moment, part in enumerate(parts):
        answer.body(part, float(moment))
    answer.end()
    return answer


def whole(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    """A whole answer to a request for none."""
    answer = Answer(wants_stream=False)
    answer.head(status, JSON if headers is None else headers)
    answer.body(body, 1.0)
    answer.end()
    return answer


def test_output_events_are_those_that_add_something() -> None:
    """Not the role, a comment, an empty last one, the usage or [DONE]."""
    answer = streamed(ROLE, TOKEN, b": ping\n\n", TOKEN, LAST, USAGE, DONE)
    assert (answer.moments, answer.error) == ([1.0, 3.0], "")
    assert (answer.prompt_tokens, answer.output_tokens) == (18, 5)


@pytest.mark.parametrize(
    "choice",
    [
        pytest.param(b'{"text":" a"}', id="completion"),
        pytest.param(b'{"delta":{"reasoning":"hm"}}', id="reasoning"),
        pytest.param(b'{"delta":{"reasoning_content":"hm"}}', id="reasoning of older servers"),
        pytest.param(b'{"delta":{"refusal":"no"}}', id="refusal"),
        pytest.param(b'{"delta":{"tool_calls":[{"index":0}]}}', id="tool call"),
    ],
)
def test_reasoning_text_and_tool_calls_are_output(choice: bytes) -> None:
    """Whatever the model gave first is the first output."""
    assert streamed(b'data: {"choices":[%b]}\n\n' % choice, DONE).moments == [0.0]


@pytest.mark.parametrize("end", [LAST, LAST + USAGE, DONE, b"data:[DONE]\n\n"], ids=["finish", "usage", "done", "bare"])
def test_stream_with_an_end_is_whole(end: bytes) -> None:
    """Not every server writes [DONE]."""
    assert streamed(ROLE, TOKEN, end).error == ""


def test_events_are_counted_where_the_server_counts_no_tokens() -> None:
    """An estimate: an event may hold several."""
    assert streamed(TOKEN, TOKEN, DONE).output_tokens == 2


@given(cuts=st.lists(st.integers(1, 600), max_size=8))
def test_cuts_of_a_stream_change_its_times_and_not_its_content(cuts: list[int]) -> None:
    """Any split of the bytes gives the same events, usage and verdict."""
    data = ROLE + TOKEN * 3 + USAGE + DONE
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    answer = streamed(*(data[low:high] for low, high in pairwise(edges)))
    assert (len(answer.moments), answer.output_tokens, answer.error) == (3, 5, "")


@pytest.mark.parametrize(
    ("answer", "error", "code", "detail"),
    [
        pytest.param(streamed(TOKEN), "cut", "", "without [DONE] or a finish_reason", id="no end"),
        pytest.param(streamed(TOKEN, ERROR, DONE), "in_stream", "500", "EngineCore died", id="error event"),
        pytest.param(streamed(TOKEN, b"data: {oops\n\n"), "garbage", "", "not a chat or", id="garbage event"),
        pytest.param(streamed(b"data: [1]\n\n"), "garbage", "", "not a chat or", id="another shape"),
        pytest.param(streamed(HTML, headers={"content-type": "text/html"}), "garbage", "", "502 Bad", id="html, 200"),
        pytest.param(streamed(b"{}", headers=JSON), "garbage", "", "asked for a stream", id="no stream"),
        pytest.param(
            streamed(HTML, status=502, headers={"content-type": "text/html"}),
            "http_502",
            "html",
            "text/html: 502 Bad Gateway",
            id="html error page",
        ),
        pytest.param(
            streamed(
                b'{"error":{"message":"The limit is 10.","type":"rate_limit_error","code":"rate_limit_exceeded"}}',
                status=429,
                headers=JSON,
            ),
            "http_429",
            "rate_limit_exceeded",
            "The limit is 10.",
            id="limit",
        ),
        pytest.param(whole(b"{"), "garbage", "", "not JSON", id="broken JSON"),
        pytest.param(whole(b"{}"), "garbage", "", "no choices", id="no choices"),
        pytest.param(whole(b'{"error":{"message":"no"}}'), "in_stream", "", "no", id="error behind a 200"),
        pytest.param(whole(b"", status=307, headers={}), "http_307", "", "no content type", id="redirect"),
    ],
)
def test_each_failure_has_its_kind(answer: Answer, error: str, code: str, detail: str) -> None:
    """With the server's own code, and one clause for people."""
    assert (answer.error, answer.code) == (error, code)
    assert detail in answer.detail


def test_an_answer_without_a_stream_tells_its_usage() -> None:
    """And no times of events."""
    answer = whole(b'{"choices":[{}],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}')
    assert (answer.error, answer.prompt_tokens, answer.output_tokens, answer.moments) == ("", 3, 4, [])


def test_an_endless_event_is_garbage() -> None:
    """And the client's memory stays bounded."""
    answer = streamed(*[b"data: " + b"x" * (4 << 20)] * 5)
    assert answer.error == "garbage"


def test_the_first_fault_counts_and_its_detail_is_one_short_line() -> None:
    """The error after these bytes."""
    answer = Answer(wants_stream=True)
    answer.fail("cut", "a\nb " + "x" * 500)
    answer.fail("timeout", "late")
    assert answer.error == "cut"
    assert answer.detail.startswith("a b x")
    assert len(answer.detail) == DETAIL


def test_a_plain_answer_is_good_whatever_it_holds() -> None:
    """The caller judges it."""
    answer = PlainAnswer()
    answer.head(200, {})
    answer.body(b"x", 0.0)
    answer.end()
    assert (answer.error, answer.content) == ("", b"x")
