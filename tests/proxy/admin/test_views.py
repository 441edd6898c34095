"""aiaas.proxy.admin.views: what the admin endpoint shows of requests and backends."""

from __future__ import annotations

import pytest

from aiaas.keys.model import Rejection
from aiaas.limits.headers import go_duration
from aiaas.proxy.admin.figures import Figures
from aiaas.proxy.admin.model import AttemptView, LimitView
from aiaas.proxy.admin.recent import RefusedRequest
from aiaas.proxy.admin.views import (
    Clock,
    attempts_of,
    backend_views,
    duration_in,
    limits_in,
    refusal_view,
    request_view,
    waiting_for,
)
from aiaas.proxy.telemetry.record import Attempt, Record
from tests.fakes.vllm import FakeVllm
from tests.proxy.conftest import StartGateway

CLOCK = Clock(monotonic=100.0, wall=5000.0)


def record(**facts: object) -> Record:
    """A request that began 10 s ago."""
    return Record("id", "/v1/chat/completions", 90.0, "127.0.0.1", **facts)  # type: ignore[arg-type]


def test_live_request_has_no_end() -> None:
    """Its duration grows, and nobody has ended it."""
    view = request_view(record(phase="waiting", stream=True), CLOCK, live=True, worker=2, message=None)
    assert (view.at, view.duration, view.phase, view.worker) == (4990.0, 10.0, "waiting", 2)
    assert (view.status, view.ended_by, view.limits, view.attempts) == (None, None, None, [])
    assert view.waiting_for == "the first token"


def test_ended_request_keeps_its_facts() -> None:
    """Also why its key was refused, with the id inside that key."""
    facts = record(status=401, error_code="invalid_api_key", rejection=Rejection("revoked", "abc"), duration=2.5)
    view = request_view(facts, CLOCK, live=False, worker=None, message="No.")
    assert (view.phase, view.duration, view.status, view.ended_by) == ("ended", 2.5, 401, "gateway")
    assert (view.reason, view.key_id, view.waiting_for, view.message) == ("revoked", "abc", None, "No.")
    refusal = refusal_view(RefusedRequest(facts, "No."), CLOCK, None)
    assert (refusal.status, refusal.error_code, refusal.message) == (401, "invalid_api_key", "No.")
    assert (refusal.key_id, refusal.reason) == ("abc", "revoked")


@pytest.mark.parametrize(
    ("facts", "what"),
    [
        ({"reading": True}, "the body"),
        ({}, "its key and limits to be checked"),
        ({"phase": "queued", "backend": "chat"}, "a slot of backend chat"),
        ({"phase": "waiting"}, "the answer"),
        ({"phase": "waiting", "stream": True}, "the first token"),
        ({"phase": "streaming", "streamed": True}, "the first token"),
        ({"phase": "streaming", "streamed": True, "ttft": 1.0}, None),
        ({"phase": "streaming"}, None),
    ],
)
def test_wait_is_named(facts: dict[str, object], what: str | None) -> None:
    """By the phase, and what has come of the answer."""
    assert waiting_for(record(**facts)) == what


def test_limits_are_those_of_the_headers() -> None:
    """Other header lines are not limits."""
    lines = (
        b"x-ratelimit-limit-requests: 60\r\nx-ratelimit-remaining-requests: 57\r\nx-ratelimit-reset-requests: 3s\r\n"
    )
    assert limits_in(lines) == [LimitView("requests", 60, 57, 3.0)]
    assert limits_in(b"retry-after: 1\r\n") == limits_in(b"") == []


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.12, 1.0, 8.64, 60.0, 61.5, 360.0, 3600.0, 3660.25, 86_399.0])
def test_duration_is_read_as_it_was_written(seconds: float) -> None:
    """Minutes and milliseconds begin with the same letter."""
    assert duration_in(go_duration(seconds).encode()) == seconds
    assert duration_in(b"soon") is None


def test_attempts_end_with_the_one_that_answered() -> None:
    """Without a retry there is one, and none where the request was never sent."""
    assert attempts_of(record(backend="b")) == []
    assert attempts_of(record(upstream="http://a", status=200)) == [
        AttemptView("http://a", 200, None, None, None, None)
    ]
    failed = Attempt("http://a", None, "connection refused", "connect", 0.25)
    retried = record(upstream="http://b", status=200, retries=1, attempts=[failed])
    assert attempts_of(retried) == [
        AttemptView("http://a", None, "connection refused", "connect", "the request was never sent", 0.25),
        AttemptView("http://b", 200, None, None, None, None),
    ]
    assert len(attempts_of(record(upstream="http://a", attempts=[failed]))) == 1


async def test_backend_shows_its_endpoints_as_they_are(gateway: StartGateway, fake_vllm: FakeVllm) -> None:
    """With the reason and the time of a fault, its bound, and the models that it does not list."""
    running = await gateway(fake_vllm, "http://127.0.0.1:9", backend={"max_inflight": 4, "balance": "round_robin"})
    up, down = running.endpoints()
    down.set_up(False, "connection refused")
    (view,) = backend_views([running.backend()], Figures([]))
    assert (view.name, view.balance, view.queued, view.models) == ("vllm", "round_robin", 0, ["m"])
    first, second = view.endpoints
    assert (first.up, first.reason, first.max_inflight, first.offered, first.missing) == (True, None, 4, None, [])
    assert (second.up, second.reason) == (False, "connection refused")
    assert second.since >= first.since
    assert (first.engine, second.url) == (None, "http://127.0.0.1:9")
    assert up.plan.url == first.url
