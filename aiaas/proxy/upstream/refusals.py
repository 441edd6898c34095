"""The errors that a client gets instead of a model server's answer."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from aiaas.errors import ApiError, UpstreamError
from aiaas.plan.model import RouteTarget
from aiaas.proxy.client.refusal import internal_error
from aiaas.proxy.upstream.attempt import Outcome, retry_after
from aiaas.proxy.upstream.backends import BackendState
from aiaas.proxy.upstream.connection import Failure, FailureKind
from aiaas.proxy.upstream.wait_estimate import Prediction

# The SDKs retry twice by themselves on 429 and 5xx; this header is their word for "do not" (openai-python,
# `_should_retry`).
NO_SDK_RETRY = b"x-should-retry: false\r\n"
NO_SDK_RETRY_HEADER = ("x-should-retry", "false")
# Seconds after which a client may come back where nothing says how long the wait would be, and the most that is told:
# the SDKs do not wait for longer.
OVERLOADED_RETRY_AFTER = 5
OVERLOADED_MOST = 60


def overloaded(message: str, expected: Prediction | None = None) -> UpstreamError:
    """503: endpoints are up, but all are busy. The client may come back after the wait that is `expected`."""
    seconds = OVERLOADED_RETRY_AFTER if expected is None else min(max(1, ceil(expected.seconds)), OVERLOADED_MOST)
    return UpstreamError(503, "overloaded", message, headers=(("retry-after", str(seconds)),))


def draining() -> UpstreamError:
    """503 for requests that arrive while the gateway is shutting down."""
    return UpstreamError(
        503, "draining", "The gateway is shutting down; send the request again.", headers=(("retry-after", "1"),)
    )


def no_healthy_backend(backends: Sequence[tuple[RouteTarget, BackendState]]) -> UpstreamError:
    """503, to be tried again after the next round of probes."""
    seconds = max(1, round(max(backend.plan.health.interval for _, backend in backends)))
    return UpstreamError(
        503,
        "no_healthy_backend",
        "No server for this model is reachable right now; try again shortly.",
        headers=(("retry-after", str(seconds)),),
    )


def error_from_between(outcome: Outcome) -> UpstreamError:
    """A balancer's status as an error of the gateway."""
    if outcome.status == 503:
        seconds = str(retry_after(outcome.headers) or OVERLOADED_RETRY_AFTER)
        return UpstreamError(
            503,
            "no_healthy_backend",
            "A proxy in front of the model server reports that the server cannot be reached.",
            headers=(("retry-after", seconds), NO_SDK_RETRY_HEADER),
        )
    if outcome.status == 504:
        message = "A proxy in front of the model server reports that the server did not answer in time."
        return UpstreamError(504, "upstream_timeout", message, headers=(NO_SDK_RETRY_HEADER,))
    message = "A proxy in front of the model server reports that the server did not answer."
    return UpstreamError(502, "upstream_error", message, headers=(NO_SDK_RETRY_HEADER,))


def failure_error(failure: Failure) -> ApiError:
    """The client's error for an exchange that broke before the client received a byte."""
    if failure.kind is FailureKind.CONNECT:
        return UpstreamError(
            503,
            "no_healthy_backend",
            "The model server cannot be reached right now; try again shortly.",
            headers=(("retry-after", "5"),),
        )
    if failure.kind is FailureKind.NO_RESOURCES:
        return overloaded("The gateway has no room for another connection right now; try again shortly.")
    headers = (NO_SDK_RETRY_HEADER,)
    if failure.kind is FailureKind.TIMEOUT:
        return UpstreamError(
            504, "upstream_timeout", f"The model server did not answer in time: {failure.detail}.", headers=headers
        )
    if failure.kind is FailureKind.MALFORMED:
        return UpstreamError(502, "upstream_error", "The model server sent an invalid answer.", headers=headers)
    if failure.kind is FailureKind.INTERNAL:
        fault = internal_error()
        return UpstreamError(fault.status, fault.code, fault.message, headers=headers)
    if failure.kind is FailureKind.ENGINE:
        return UpstreamError(502, "upstream_error", "The model server is going down.", headers=headers)
    return UpstreamError(502, "upstream_error", "The model server broke off before it answered.", headers=headers)
