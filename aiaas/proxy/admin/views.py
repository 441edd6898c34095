"""Make the views of the admin endpoint from the state of one gateway. Pure: time comes in."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from aiaas.proxy.admin.figures import Figures
from aiaas.proxy.admin.model import (
    AttemptView,
    BackendView,
    EndpointView,
    LimitView,
    RefusalView,
    RequestView,
    ResumeView,
)
from aiaas.proxy.admin.recent import RefusedRequest
from aiaas.proxy.request.served_models import compare
from aiaas.proxy.telemetry.record import Record, Resumption
from aiaas.proxy.upstream.attempt import WHY_SAFE
from aiaas.proxy.upstream.backends import BackendState
from aiaas.proxy.upstream.endpoint import EndpointState

# A duration as `limits/headers.py` writes it.
_DURATION: Final = re.compile(rb"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:([\d.]+)s)?(?:(\d+)ms)?")
_UNITS: Final = (3600.0, 60.0, 1.0, 0.001)
_KINDS: Final = ("requests", "tokens")


class Clock:
    """Turns moments of the monotonic clock into POSIX seconds."""

    def __init__(self, monotonic: float, wall: float) -> None:
        self.monotonic = monotonic
        self.wall = wall

    def at(self, moment: float) -> float:
        """The POSIX time of `moment`."""
        return round(self.wall - (self.monotonic - moment), 3)


# -- requests ---------------------------------------------------------------------------------------------------------


def request_view(record: Record, clock: Clock, *, live: bool, worker: int | None, message: str | None) -> RequestView:
    """One request; `message` is that of the error that it was answered with."""
    rejection = record.rejection
    return RequestView(
        id=record.request_id,
        worker=worker,
        at=clock.at(record.started),
        path=record.path,
        user=record.user,
        key_id=record.key_id if rejection is None else rejection.key_id,
        model=record.model,
        backend=record.backend,
        upstream=record.upstream,
        priority_class=record.priority_class,
        stream=record.stream,
        phase=record.phase if live else "ended",
        waiting_for=waiting_for(record) if live else None,
        status=record.status or None,
        error_code=record.error_code,
        reason=None if rejection is None else rejection.reason,
        message=message,
        ended_by=None if live else record.ended_by,
        ended_in=None if live else record.phase,
        duration=_seconds(clock.monotonic - record.started if live else record.duration),
        body_seconds=_seconds(record.body_seconds),
        queue_seconds=_seconds(record.queue_seconds),
        queue_position=record.queue_position,
        overhead=None if record.overhead is None else _seconds(record.overhead),
        ttft=None if record.ttft is None else _seconds(record.ttft),
        retries=record.retries,
        turn=record.session_turn,
        input_tokens=record.input_tokens,
        output_tokens=record.output_tokens,
        cached_tokens=record.cached_tokens,
        estimated=record.estimated,
        events=record.events,
        request_bytes=record.request_bytes,
        response_bytes=record.sent,
        client_address=record.client_address,
        limits=limits_in(record.limit_lines) or None,
        attempts=attempts_of(record),
        resume=None if record.resumption is None else resume_view(record.resumption),
    )


def resume_view(resumption: Resumption) -> ResumeView:
    """The end of a stream that broke off."""
    return ResumeView(
        first=resumption.first,
        way=resumption.way or None,
        outcome=resumption.outcome or None,
        reason=resumption.reason or None,
        gap=None if resumption.gap is None else _seconds(resumption.gap),
        counted=resumption.counted,
    )


def waiting_for(record: Record) -> str | None:
    """Name the thing that a request under way waits for; None where its answer flows."""
    match record.phase:
        case "admission":
            return "the body" if record.reading else "its key and limits to be checked"
        case "queued":
            return f"a slot of backend {record.backend}"
        case "waiting":
            return "the first token" if record.stream else "the answer"
    return "the first token" if record.streamed and record.ttft is None else None


def limits_in(lines: bytes) -> list[LimitView]:
    """The limits that an answer's header lines state."""
    if not lines:
        return []
    headers = dict(line.lower().split(b": ", 1) for line in lines.split(b"\r\n") if b": " in line)
    found = []
    for kind in _KINDS:
        of, remaining, reset = (headers.get(b"x-ratelimit-%b-%b" % (what, kind.encode())) for what in _WHAT)
        if of is not None and remaining is not None:
            found.append(LimitView(kind, int(of), int(remaining), None if reset is None else duration_in(reset)))
    return found


_WHAT: Final = (b"limit", b"remaining", b"reset")


def duration_in(text: bytes) -> float | None:
    """Seconds in a duration such as `6m0s` or `120ms`; None if it is not one."""
    found = _DURATION.fullmatch(text)
    if found is None or not text:
        return None
    return round(sum(float(part) * unit for part, unit in zip(found.groups(), _UNITS, strict=True) if part), 3)


def attempts_of(record: Record) -> list[AttemptView]:
    """All attempts, the first one first; the last one may be under way."""
    views = [
        AttemptView(
            attempt.endpoint,
            attempt.status,
            attempt.failure,
            attempt.again,
            WHY_SAFE.get(attempt.again or ""),
            _seconds(attempt.seconds),
        )
        for attempt in record.attempts or ()
    ]
    went_on = record.resumption is not None and record.upstream != record.resumption.first
    if record.upstream is not None and len(views) <= record.retries + went_on:
        views.append(AttemptView(record.upstream, record.status or None, None, None, None, None))
    return views


def refusal_view(refused: RefusedRequest, clock: Clock, worker: int | None) -> RefusalView:
    """One error that aiaas answered with."""
    record, rejection = refused.record, refused.record.rejection
    return RefusalView(
        id=record.request_id,
        worker=worker,
        at=clock.at(record.started),
        path=record.path,
        status=record.status,
        error_code=record.error_code or "",
        message=refused.message,
        reason=None if rejection is None else rejection.reason,
        user=record.user,
        key_id=record.key_id if rejection is None else rejection.key_id,
        model=record.model,
        client_address=record.client_address,
    )


def _seconds(value: float) -> float:
    return round(value, 6)


# -- backends ---------------------------------------------------------------------------------------------------------


def backend_views(backends: Iterable[BackendState], counts: Figures) -> list[BackendView]:
    """The backends in force, in the config's order."""
    return [
        BackendView(
            name=state.plan.name,
            balance=state.plan.balance,
            queued=state.waiting,
            models=list(state.plan.served_models),
            endpoints=[endpoint_view(endpoint, state) for endpoint in state.endpoints],
            cached_tokens=counts.cached[state.plan.name],
            turns=counts.turns[state.plan.name],
        )
        for state in backends
    ]


def endpoint_view(endpoint: EndpointState, state: BackendState) -> EndpointView:
    """One endpoint of a backend."""
    is_ours = state.plan.engine is not None
    reason = None if endpoint.healthy else endpoint.reason or ("the engine is starting" if is_ours else "not known")
    return EndpointView(
        url=endpoint.plan.url,
        up=endpoint.up,
        reason=reason,
        since=round(endpoint.since, 3),
        in_flight=endpoint.pool.inflight,
        max_inflight=endpoint.bound,
        offered=sorted(endpoint.listed) or None,
        missing=list(compare(state.plan, endpoint.listed).missing) if endpoint.listed else [],
        problem=endpoint.problem or None,
        lacks=sorted(endpoint.lacks),
        engine=None if not is_ours else "running" if endpoint.up else "down",
        draining=endpoint.draining,
    )
