"""aiaas.cli.requeststory: one request, decision by decision."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from aiaas.cli.requeststory import KEY_REASONS, RESUME_ENDS, TURNS, WAYS, headline, story
from aiaas.keys.model import Rejection
from aiaas.proxy.admin.model import RequestView, Status
from aiaas.proxy.admin.views import Clock, request_view
from aiaas.proxy.telemetry.record import Attempt, Record, Resumption
from tests.proxy.admin.test_merge import UP, backend, status

TWO = [backend(UP, msgspec.structs.replace(UP, url="http://b"))]
LIMITS = b"x-ratelimit-limit-requests: 60\r\nx-ratelimit-remaining-requests: 57\r\nx-ratelimit-reset-requests: 3s\r\n"


def request(live: bool = False, message: str | None = None, **facts: Any) -> RequestView:
    """A request of alice's for the model m."""
    known = {"user": "alice", "key_id": "k1", "model": "m", "priority_class": "default", "status": 200, **facts}
    record = Record("abc123", "/v1/chat/completions", 90.0, "10.0.0.7", **known)  # type: ignore[arg-type]
    return request_view(record, Clock(100.0, 5000.0), live=live, worker=None, message=message)


def told(view: RequestView, **facts: Any) -> str:
    """Its story."""
    found: Status = status(**{"backends": TWO, **facts})
    return story(view, found)


def test_story_of_an_answered_request_names_each_decision() -> None:
    """Key, limits, queue, endpoint, times, tokens, and who ended it."""
    text = told(
        request(
            backend="chat", upstream="http://b", queue_seconds=1.5, queue_position=3, session_turn="full",
            overhead=0.001, ttft=1.9, duration=2.41, ended_by="upstream", input_tokens=120, cached_tokens=80,
            output_tokens=30, limit_lines=LIMITS, request_bytes=1200, stream=True,
        )
    )  # fmt: skip
    for part in (
        "request   abc123",
        "from 10.0.0.7: /v1/chat/completions, 1.2 kB, a stream",
        "key       alice (k1), class default",
        "limits    requests: 57 left then, of 60 a minute; whole again in 3 s",
        "queue     waited 1.5 s for a slot of backend chat, as number 3 of its key",
        "sent      to http://b: 200",
        f"chosen: {TURNS['full']}",
        "times     aiaas 1 ms, queue 1.5 s, first text after 1.9 s, in all 2.41 s",
        "ended     200, by vLLM",
        "tokens    vLLM counted 120 input (80 of them cached), 30 output",
    ):
        assert part in text, text


def test_retry_is_told_with_why_it_was_safe() -> None:
    """Each attempt in its line."""
    first = Attempt("http://a", 503, None, "busy", 0.004)
    text = told(request(backend="chat", upstream="http://b", retries=1, attempts=[first]))
    assert "sent      to http://a: 503 after 4 ms (busy; safe to try again: the engine refused the request" in text
    assert "again to http://b: 200" in text
    assert "one that was not tried before goes first" in text


@pytest.mark.parametrize(
    ("failure", "again", "said"),
    [
        ("the connection was reset", None, "not tried again: the engine may have run the request"),
        ("connection refused", "connect", "not tried again: max_retries, total_timeout or no endpoint left"),
    ],
)
def test_last_failure_says_why_it_was_the_last(failure: str, again: str | None, said: str) -> None:
    """Not of a request that is under way: it may be tried again."""
    attempts = [Attempt("http://a", None, failure, again, 0.1)]
    assert said in told(request(upstream="http://a", status=502, attempts=attempts))
    assert said not in told(request(live=True, upstream="http://a", phase="queued", attempts=attempts))


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"way": "continue", "outcome": "resumed", "gap": 0.4}, f"went on after 400 ms: {WAYS['continue']}"),
        ({"way": "replay", "outcome": "resumed", "gap": 2.0}, f"went on after 2 s: {WAYS['replay']}"),
        (
            {"way": "continue", "outcome": "resumed", "gap": 2.0, "counted": False},
            f"{WAYS['continue']}; its tokens were counted by events",
        ),
        ({"outcome": "not_resumable", "reason": "a tool call has begun"}, "it could not go on: a tool call has begun"),
        ({"way": "continue", "outcome": "nobody"}, RESUME_ENDS["nobody"]),
    ],
)
def test_stream_that_broke_off_says_how_it_went_on(facts: dict[str, Any], said: str) -> None:
    """Both endpoints, the pause, and the reason where it did not."""
    dead = Attempt("http://a", None, "the connection was closed", None, 3.0)
    went_on = facts["outcome"] == "resumed"
    upstream = "http://b" if went_on else "http://a"
    resumption = Resumption("http://a", **facts)
    text = told(request(stream=True, upstream=upstream, attempts=[dead], resumption=resumption))
    assert f"broke off {said}" in text or said in text
    assert ("again to http://b" in text) == went_on
    assert "not tried again" not in text


@pytest.mark.parametrize("reason", KEY_REASONS)
def test_refused_key_is_explained(reason: Any) -> None:
    """With the id inside it, and the words that the client got."""
    text = told(request(user=None, status=401, rejection=Rejection(reason, "k9"), message="Not valid."))
    assert f"key       refused (k9): {KEY_REASONS[reason]}" in text
    assert "sent      never" in text
    assert "the client was told: Not valid." in text


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"phase": "queued", "backend": "chat"}, "now       queued, for 10 s in all; waits for a slot of backend chat"),
        ({"phase": "streaming"}, "now       streaming, for 10 s in all"),
    ],
)
def test_request_under_way_says_what_it_waits_for(facts: dict[str, Any], said: str) -> None:
    """And has no end yet."""
    text = told(request(live=True, **facts))
    assert text.endswith(said)
    assert "ended" not in text


def test_client_that_left_is_named_with_the_phase() -> None:
    """A wait in the queue that was too long, or an answer that was."""
    assert "499 client_left, by the client, which left, while it waited in the queue" in told(
        request(status=499, error_code="client_left", ended_by="client", phase="queued")
    )


@pytest.mark.parametrize(
    ("balance", "endpoints", "said"),
    [
        ("auto", 1, "the only endpoint of backend chat"),
        ("auto", 2, "the fewest requests in flight (balance: auto, and the request shows no session)"),
        ("round_robin", 2, "each endpoint in turn"),
        ("least_inflight", 2, "the fewest requests in flight (balance: least_inflight)"),
    ],
)
def test_endpoint_of_a_request_without_a_session_is_explained(balance: str, endpoints: int, said: str) -> None:
    """By the backend's balance, where there was a choice."""
    found = msgspec.structs.replace(TWO[0], balance=balance, endpoints=TWO[0].endpoints[:endpoints])
    assert said in told(request(backend="chat", upstream="http://a"), backends=[found])
    assert "chosen" not in told(request(backend="gone", upstream="http://a"))


def test_headline_names_request_moment_and_status() -> None:
    """For a list of requests whose ids begin alike."""
    assert headline(request()).startswith("abc123  1970-")
    assert "  200  /v1/chat/completions  alice" in headline(request())
    assert "  waiting  " in headline(request(live=True, phase="waiting"))
