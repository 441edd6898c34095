"""The headers that tell a client about its limits."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.errors import ClientError, LimitError
from aiaas.limits.headers import go_duration, limit_headers, refusal, retry_headers
from aiaas.limits.model import AdmissionResult, Decision, Lease, Limits

REQUESTS = Decision(True, 10, 9, 6.0, 0.0)
TOKENS = Decision(True, 1000, 400, 36.0, 0.0)
LEASE = Lease("alice", Limits(), 0, False)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (1e-9, "0s"),  # the noise of doubles
        (1e-6, "1ms"),
        (30.000000000004, "30s"),
        (0.12, "120ms"),
        (0.9991, "1s"),
        (1.0, "1s"),
        (8.64, "8.64s"),
        (59.9999, "1m0s"),
        (66.5, "1m6.5s"),
        (360.0, "6m0s"),
        (3600.0, "1h0m0s"),
        (90061.001, "25h1m1.001s"),
    ],
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    """As Go's time.Duration, rounded up to a millisecond."""
    assert go_duration(seconds) == text


def test_noise_of_doubles_adds_no_second() -> None:
    """A wait of 30 s that came out as 30.000000000004 s was once told as 31."""
    decision = Decision(False, 10, 0, 30.0, 30.000000000004)
    assert retry_headers(decision) == (("Retry-After", "30"), ("retry-after-ms", "30000"))


@given(st.floats(0, 3e6))
def test_a_duration_reads_back_as_the_time_rounded_up(seconds: float) -> None:
    """Never shorter than it is, and by less than a millisecond longer."""
    text = go_duration(seconds)
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(\d+(?:\.\d+)?)(ms|s)", text)
    assert match is not None
    last = float(match[3]) / (1000 if match[4] == "ms" else 1)
    read = int(match[1] or 0) * 3600 + int(match[2] or 0) * 60 + last
    assert seconds - 1e-6 <= read < seconds + 0.001 + 1e-6


def test_an_admitted_request_tells_both_limits() -> None:
    """Limit, remaining and reset, for requests and for tokens."""
    assert limit_headers(AdmissionResult(None, REQUESTS, TOKENS, None, LEASE)) == (
        ("x-ratelimit-limit-requests", "10"),
        ("x-ratelimit-remaining-requests", "9"),
        ("x-ratelimit-reset-requests", "6s"),
        ("x-ratelimit-limit-tokens", "1000"),
        ("x-ratelimit-remaining-tokens", "400"),
        ("x-ratelimit-reset-tokens", "36s"),
    )


@pytest.mark.parametrize(
    ("requests", "tokens", "names"),
    [(None, None, 0), (REQUESTS, None, 3), (None, TOKENS, 3)],
    ids=["no limit", "requests only", "tokens only"],
)
def test_only_limits_that_there_are_are_told(requests: Decision | None, tokens: Decision | None, names: int) -> None:
    """A key without a limit gets no header for it."""
    headers = limit_headers(AdmissionResult(None, requests, tokens, None, LEASE))
    assert len(headers) == names
    assert all(name.endswith("requests" if requests else "tokens") for name, _ in headers)


@pytest.mark.parametrize(
    ("wait", "seconds", "milliseconds"),
    [
        (5.991, "6", "5991"),
        (6.0, "6", "6000"),
        (0.0001, "1", "1"),
        (0.5, "1", "500"),
        (43200.0001, "43201", "43200001"),
    ],
)
def test_waits_are_rounded_up(wait: float, seconds: str, milliseconds: str) -> None:
    """Whole seconds of at least 1, and whole milliseconds."""
    headers = dict(retry_headers(Decision(False, 10, 0, 60.0, wait)))
    assert headers == {"Retry-After": seconds, "retry-after-ms": milliseconds}


@given(st.floats(1e-6, 1e7))
def test_no_wait_is_shortened(wait: float) -> None:
    """A client that waits as told in either header waits long enough."""
    headers = dict(retry_headers(Decision(False, 10, 0, 60.0, wait)))
    assert int(headers["Retry-After"]) >= wait
    assert int(headers["retry-after-ms"]) >= wait * 1000 * (1 - 1e-15)
    assert int(headers["retry-after-ms"]) <= math.ceil(wait * 1000)


@pytest.mark.parametrize(
    ("by", "code", "told"),
    [
        ("requests", "rate_limit_exceeded", "10 requests a minute. Try again in 6s."),
        ("tokens", "tokens_limit_exceeded", "10 tokens a minute. Try again in 6s."),
        ("concurrency", "concurrency_limit_exceeded", "10 requests at the same time."),
        ("quota", "quota_exceeded", "10 tokens. It starts anew in 6s."),
    ],
)
def test_each_limit_has_its_code(by: str, code: str, told: str) -> None:
    """429 with the limit, the wait and all headers."""
    decision = Decision(False, 10, 0, 60.0, 6.0)
    admission = AdmissionResult(by, REQUESTS, None, decision, None)
    error = refusal(admission)
    assert isinstance(error, LimitError)
    assert (error.status, error.code) == (429, code)
    assert told in error.message
    assert error.headers == limit_headers(admission) + retry_headers(decision)


def test_reservation_above_the_bucket_is_a_400() -> None:
    """A reservation larger than the bucket is a 400, without Retry-After, and names the field."""
    decision = Decision(False, 100, 100, 0.0, None)
    error = refusal(AdmissionResult("tokens", None, decision, decision, None), "max_tokens")
    assert isinstance(error, ClientError)
    assert (error.status, error.code, error.param) == (400, "invalid_request", "max_tokens")
    assert "100" in error.message
    assert [name for name, _ in error.headers] == [
        name for name, _ in limit_headers(AdmissionResult(None, None, TOKENS, None, LEASE))
    ]
    assert retry_headers(decision) == ()


@pytest.mark.parametrize("by", ["requests", "tokens", "concurrency", "quota"])
def test_limit_of_a_user_has_a_code_of_its_own(by: str) -> None:
    """And a message that says whose limit it is; everything else is as for the key's."""
    decision = Decision(False, 10, 0, 60.0, 6.0)
    error, whole = (refusal(AdmissionResult(by, REQUESTS, None, decision, None, of)) for of in (True, False))
    assert (error.status, error.code, error.headers) == (429, f"user_{whole.code}", whole.headers)
    assert error.message == whole.message.replace(" is 10 ", " of each user of this key is 10 ")
    never = refusal(AdmissionResult("tokens", None, None, Decision(False, 10, 10, 0.0, None), None, True))
    assert (never.status, never.code) == (400, "invalid_request")
    assert "the 10 tokens that a user of this key may use" in never.message


def test_an_admitted_request_has_no_refusal() -> None:
    """Asking for one is a mistake in the caller."""
    with pytest.raises(ValueError, match="was admitted"):
        refusal(AdmissionResult(None, REQUESTS, None, None, LEASE))


def test_refused_cheap_request_is_told_its_own_limit() -> None:
    """The same code; the message says that the number is of requests that only count tokens."""
    decision = Decision(False, 600, 0, 6.0, 6.0)
    error = refusal(AdmissionResult("requests", decision, None, decision, None), cheap=True)
    assert (error.status, error.code) == (429, "rate_limit_exceeded")
    assert error.message == "The limit is 600 requests a minute that only count tokens. Try again in 6s."
    full = Decision(False, 2, 0, 1.0, 1.0)
    assert refusal(AdmissionResult("concurrency", None, None, full, None), cheap=True).code == (
        "concurrency_limit_exceeded"
    )
