"""A client's view of its limits: response headers, and the error of a refused request.

Every answer carries OpenAI's six `x-ratelimit-*` headers, for the limits that the key has, with durations as Go writes
them (`6m0s`, `1.5s`, `120ms`). A 429 adds `Retry-After` (RFC 9110 section 10.2.3: whole seconds) and
`retry-after-ms`, which the OpenAI SDK prefers. All times are rounded up, so that a client that waits is not refused
again; up to NOISE beyond a whole number is the noise of doubles (30.000000000004 s is not 31).
"""

from __future__ import annotations

from math import ceil
from typing import Final

from aiaas.errors import ApiError, ClientError, LimitError
from aiaas.limits.gcra import EPSILON
from aiaas.limits.model import AdmissionResult, Decision

LimitHeaders = tuple[tuple[str, str], ...]
# Seconds. `decide` admits a request that comes EPSILON too early, so a wait may be half of that too short.
NOISE: Final = EPSILON / 2
# Formatting the digits for each answer would cost as much as the rest of a duration.
_MILLISECONDS: Final = tuple(f"{number}ms" for number in range(1000))


def limit_headers(admission: AdmissionResult) -> LimitHeaders:
    """The headers for every answer to a limited request; empty where neither requests nor tokens are limited."""
    requests, tokens = admission.requests, admission.tokens
    if tokens is None:
        return () if requests is None else _for(requests, _REQUESTS)
    return _for(tokens, _TOKENS) if requests is None else _for(requests, _REQUESTS) + _for(tokens, _TOKENS)


def limit_lines(admission: AdmissionResult) -> bytes:
    """`limit_headers` as complete header lines."""
    lines = ""
    decision = admission.requests
    if decision is not None:
        lines = (
            f"x-ratelimit-limit-requests: {decision.limit}\r\nx-ratelimit-remaining-requests: {decision.remaining}\r\n"
            f"x-ratelimit-reset-requests: {go_duration(decision.reset_after)}\r\n"
        )
    decision = admission.tokens
    if decision is not None:
        lines += (
            f"x-ratelimit-limit-tokens: {decision.limit}\r\nx-ratelimit-remaining-tokens: {decision.remaining}\r\n"
            f"x-ratelimit-reset-tokens: {go_duration(decision.reset_after)}\r\n"
        )
    return lines.encode()


def retry_headers(decision: Decision) -> LimitHeaders:
    """The further headers of a refusal; empty where waiting cannot help."""
    if decision.retry_after is None:
        return ()
    return (
        ("Retry-After", str(max(ceil(decision.retry_after - NOISE), 1))),
        ("retry-after-ms", str(max(ceil((decision.retry_after - NOISE) * 1000), 1))),
    )


def refusal(admission: AdmissionResult, param: str | None = None, *, cheap: bool = False) -> ApiError:
    """The error for a refused admission, with all its headers.

    param  the request field that makes the reservation too large, if there is one
    cheap  the limit on requests is that of cheap requests
    """
    decision = admission.refusal
    if decision is None or admission.refused_by is None:
        raise ValueError("this request was admitted")
    headers = limit_headers(admission)
    if decision.retry_after is None:
        message = (
            f"This request may need more than the {decision.limit} tokens that {_WHO[admission.of_user]} may use: "
            "shorten the prompt, or ask for fewer output tokens."
        )
        return ClientError(400, "invalid_request", message, param=param, headers=headers)
    code, what = _REFUSALS["cheap" if cheap and admission.refused_by == "requests" else admission.refused_by]
    message = what.format(
        whose=_WHOSE[admission.of_user], limit=decision.limit, wait=go_duration(max(decision.retry_after, 0.001))
    )
    return LimitError(429, _USER * admission.of_user + code, message, headers=headers + retry_headers(decision))


def go_duration(seconds: float) -> str:
    """Seconds, rounded up to a millisecond, as Go's `time.Duration` writes them: `1h0m0s`, `6m0s`, `8.64s`, `120ms`."""
    milliseconds = ceil((seconds - NOISE) * 1000)
    if milliseconds < 1000:
        return _MILLISECONDS[milliseconds] if milliseconds > 0 else "0s"
    if milliseconds < 60_000:
        return f"{milliseconds / 1000:g}s"
    minutes, milliseconds = divmod(milliseconds, 60_000)
    if minutes < 60:
        return f"{minutes}m{milliseconds / 1000:g}s"
    return f"{minutes // 60}h{minutes % 60}m{milliseconds / 1000:g}s"


_REQUESTS: Final = ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests")
_TOKENS: Final = ("x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens")

_USER: Final = "user_"  # before the code of a limit of a user
_WHO: Final = {False: "this key", True: "a user of this key"}
_WHOSE: Final = {False: "", True: " of each user of this key"}
_REFUSALS: Final = {
    "requests": ("rate_limit_exceeded", "The limit{whose} is {limit} requests a minute. Try again in {wait}."),
    "cheap": (
        "rate_limit_exceeded",
        "The limit{whose} is {limit} requests a minute that only count tokens. Try again in {wait}.",
    ),
    "tokens": ("tokens_limit_exceeded", "The limit{whose} is {limit} tokens a minute. Try again in {wait}."),
    "concurrency": (
        "concurrency_limit_exceeded",
        "The limit{whose} is {limit} requests at the same time. Try again when a request has ended.",
    ),
    "quota": ("quota_exceeded", "The quota{whose} is {limit} tokens. It starts anew in {wait}."),
}


def _for(decision: Decision, names: tuple[str, str, str]) -> LimitHeaders:
    return (
        (names[0], str(decision.limit)),
        (names[1], str(decision.remaining)),
        (names[2], go_duration(decision.reset_after)),
    )
