"""One request: pick an endpoint, send, and try again only while it is safe.

A request is retried in these cases, and only while the client has not received a byte:

    connect failure                          the request was never sent           up to max_retries
    a used connection closes without a byte  the backend had closed it            once
    429 or 503 from the engine               refused, not run                     up to max_retries
    the engine does not have the path        not run; only where another may      up to max_retries
    503 that is not vLLM's own               a balancer has no backend for it     once
    a 500 of a dying or draining engine      not run, or lost                     once
    an error event as a stream's first       the engine died before a token       once
    a stream is lost before its first event  only with `resume` (`resume.py`)     once

"Once" is one further attempt for all of these reasons together, however many others lie between: the request itself
may be what closes connections and kills engines. `max_retries: 0` allows not even that one. A new connection that
closes without a byte is not tried again, nor is a used one that closes later than STALE_AT_ONCE after the request. A
form of which a part is not held any more (`upload.py`) is not tried again.

Another endpoint comes first where there is one. Between attempts: exponential backoff with full jitter; none before a
fresh endpoint, and none where the connection was at fault and not the endpoint. An endpoint's `Retry-After` replaces
the backoff; if it asks for more than RETRY_AFTER_MOST, its answer goes to the client, which may wait for as long.

A 502 or 504 of a balancer in between is not retried, since the engine may have been at work. The client gets a JSON
error of the gateway instead of the balancer's HTML. Like the balancer's 503, both count against the endpoint.

Where the endpoints have a bound, each attempt needs a slot, and waits for it in the backend's queue. An attempt gives
its slot back before the next one asks for one: two requests that each held one and wanted another would wait forever.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Sequence
from functools import partial

import msgspec

from aiaas.errors import UpstreamError
from aiaas.openai.errors import is_unknown_path
from aiaas.plan.model import RouteTarget
from aiaas.proxy.client.answers import relayed_head
from aiaas.proxy.client.connection import ClientConnection
from aiaas.proxy.request.admission import Ticket
from aiaas.proxy.request.price import used_by
from aiaas.proxy.telemetry.metrics import Metrics
from aiaas.proxy.telemetry.record import Attempt, Record
from aiaas.proxy.upstream.attempt import (
    LACKS_PATH,
    LOST,
    WHOLE,
    Again,
    End,
    Outcome,
    error_of_break,
    is_from_between,
    retry_after,
)
from aiaas.proxy.upstream.backends import BackendState
from aiaas.proxy.upstream.connection import Failure, FailureKind
from aiaas.proxy.upstream.endpoint import EndpointState
from aiaas.proxy.upstream.kept_relay import KeptRelay
from aiaas.proxy.upstream.lacking import engine_lacks, try_again
from aiaas.proxy.upstream.refusals import NO_SDK_RETRY, NO_SDK_RETRY_HEADER, error_from_between, failure_error
from aiaas.proxy.upstream.relay import Relay
from aiaas.proxy.upstream.resume import go_on, may_move, open_breaker
from aiaas.proxy.upstream.send_form import send_form
from aiaas.proxy.upstream.slots import take, wait_for_slot, with_position

BACKOFF_FIRST = 0.1
BACKOFF_MOST = 2.0
# A waiting request holds its slot of the key's limits, and its client a connection.
RETRY_AFTER_MOST = 5


async def forward(
    ticket: Ticket,
    backends: Sequence[tuple[RouteTarget, BackendState]],
    client: ClientConnection,
    metrics: Metrics,
) -> bool:
    """Send the request to one of `backends`, the first preferred; return whether the client's connection stays open.

    Raises ApiError if nothing was sent to the client; the caller answers with it. Cancelling ends the upstream request
    at once.
    """
    record = ticket.record
    tried: list[EndpointState] = []
    once_spent = False
    reached: tuple[Outcome, Again] | None = None
    while True:
        choice = take(backends, tried, ticket, now := client.loop.time())
        if choice is None:
            try:
                choice, now = await wait_for_slot(backends, tried, ticket, client.loop, metrics)
            except UpstreamError as error:
                if reached is None or error.status == 504:
                    raise
                return _conclude(*reached, client, with_position(ticket))  # an engine had it: its result stands
            ticket = with_position(ticket)
        if reached is not None:
            record.retries += 1
            metrics.retries(reached[1].reason)
        target, backend, endpoint, grant = choice
        if record.stream and grant is not None:
            record.on_first_text = grant.prompt_read
        ended = False
        try:
            outcome = await _attempt(ticket, target, backend, endpoint, client, metrics, now)
            ended = True
        finally:
            if grant is not None:  # its key pays what it used, before its slot goes to the next request
                used, written = record.input_tokens, record.output_tokens
                if used is None or written is None:
                    used, written = used_by(record, ticket.input_read, ended=ended)
                grant.settle(used, written)
            endpoint.give_back()
        if outcome is WHOLE:  # nearly always
            endpoint.report_success(probe=False)
            record.ended_by = "upstream"
            return not ticket.close
        again = try_again(outcome, endpoint, backends, record.path) or _lost(outcome, ticket, backend, once_spent, now)
        _report(record, endpoint, outcome, again, client.loop.time() - now)
        if outcome.end is End.CUT:
            return await _gone_on(ticket, target, backend, endpoint, client, metrics)
        if again is not None and ticket.can_repeat:
            tried.append(endpoint)
            left = record.retries < target.backend.max_retries and not (again.once and once_spent)
            pause = 0.0 if _untried(backends, tried) else pause_before(len(tried), outcome)
            if left and _somewhere_up(backends) and _in_time(ticket, client.loop.time() + pause):
                once_spent, reached = once_spent or again.once, (outcome, again)
                await asyncio.sleep(pause)
                continue
        return _conclude(outcome, again, client, ticket)


async def _gone_on(
    ticket: Ticket,
    target: RouteTarget,
    backend: BackendState,
    dead: EndpointState,
    client: ClientConnection,
    metrics: Metrics,
) -> bool:
    """A stream broke off, and nobody has told the client: end it, at another endpoint if that is possible."""
    began = client.loop.time()
    outcome, last = await go_on(ticket, target, backend, dead, client, metrics)
    if last is not dead and outcome is not WHOLE:
        _report(ticket.record, last, outcome, None, client.loop.time() - began)
    return _conclude(outcome, None, client, ticket)


def _lost(outcome: Outcome, ticket: Ticket, backend: BackendState, spent: bool, now: float) -> Again | None:
    """A stream of a backend with `resume` that was lost before its first event. The second such loss of one request
    opens the breaker: it may be what kills."""
    failure = outcome.failure
    if backend.plan.resume == "off" or not ticket.record.stream or outcome.end is not End.FAILED or failure is None:
        return None
    if failure.kind is not FailureKind.RESET or now < backend.no_resume_until:
        return None
    if spent:
        open_breaker(backend, now)
    return LOST


def _in_time(ticket: Ticket, at: float) -> bool:
    return at < (math.inf if ticket.deadline is None else ticket.deadline)


def _somewhere_up(backends: Sequence[tuple[RouteTarget, BackendState]]) -> bool:
    return any(endpoint.up for _, backend in backends for endpoint in backend.endpoints)


def _untried(backends: Sequence[tuple[RouteTarget, BackendState]], tried: Sequence[EndpointState]) -> bool:
    return any(e.up and e not in tried for _, backend in backends for e in backend.endpoints)


def longest_backoff(retry: int) -> float:
    """The most seconds to wait before retry number `retry`, which counts from 1."""
    return min(BACKOFF_MOST, BACKOFF_FIRST * 2.0 ** (retry - 1))


def pause_before(retry: int, outcome: Outcome) -> float:
    """Seconds until retry number `retry` at an endpoint whose last answer was `outcome`; infinite: not at all."""
    if outcome.failure is not None and outcome.failure.kind is FailureKind.STALE:
        return 0.0
    asked = retry_after(outcome.headers) or 0
    return math.inf if asked > RETRY_AFTER_MOST else asked + random.uniform(0, longest_backoff(retry))


async def _attempt(
    ticket: Ticket,
    target: RouteTarget,
    backend: BackendState,
    endpoint: EndpointState,
    client: ClientConnection,
    metrics: Metrics,
    now: float,
) -> Outcome:
    record = ticket.record
    record.backend = backend.plan.name
    record.upstream = endpoint.plan.url
    record.phase = "waiting"
    record.events = 0
    if (trace := record.trace) is not None:
        if trace.failed:
            ticket = msgspec.structs.replace(ticket, passed=trace.retry(ticket.passed))
        trace.began, trace.endpoint, trace.model = time.monotonic(), endpoint.plan, target.served_name
    pool = endpoint.pool
    # A retry gets a connection of its own: what closed one idle connection may have closed more.
    connection = None if record.retries else pool.take_idle(now)
    if connection is None:
        opened = await pool.connect(math.inf if ticket.deadline is None else ticket.deadline)
        if isinstance(opened, Failure):
            return Outcome(End.FAILED, failure=opened)
        connection = opened
    gaps = metrics.timings.gaps
    if ticket.upload is not None:
        return await send_form(ticket, ticket.upload, target, endpoint, client, connection, gaps)
    relay: Relay
    if record.stream and backend.plan.resume != "off":
        relay = KeptRelay(client, connection, ticket, target.backend, gaps, pool.fingerprints, backend.kept)
        relay.may_move = partial(may_move, ticket, target, backend)
    else:
        relay = Relay(client, connection, ticket, target.backend, gaps, pool.fingerprints)
    endpoint.streams.add(relay)
    try:
        relay.begin(*ticket.upstream_request(endpoint.plan, target, endpoint.listed))
        return await relay
    finally:
        endpoint.streams.discard(relay)
        relay.abort()


def _report(record: Record, endpoint: EndpointState, outcome: Outcome, again: Again | None, seconds: float) -> None:
    """Report the endpoint's own faults to its health. Being busy is not a fault (vLLM's 503: try another replica)."""
    failure = outcome.failure
    detail, reason = None if failure is None else failure.detail, None if again is None else again.reason
    attempt = Attempt(endpoint.plan.url, outcome.status or None, detail, reason, seconds)
    record.attempts = [*(record.attempts or ()), attempt]
    if record.trace is not None:
        error = str(outcome.status) if failure is None else record.error_code or failure.kind.value
        record.trace.attempt_failed(record.backend, outcome.status, error, time.monotonic())
    if is_from_between(outcome):
        endpoint.report_failure(f"status {outcome.status} from a proxy in front of vLLM")
    elif failure is not None and failure.kind is FailureKind.ENGINE:
        endpoint.report_failure("the engine is dying or draining")
    elif (outcome.end is End.SENT and failure is None) or (
        outcome.end is End.REFUSED and (again is None or again.reason in ("busy", LACKS_PATH))
    ):
        endpoint.report_success(probe=False)
    elif again is not None and again.reason == "engine":
        endpoint.report_failure("the engine is dying or draining")
        endpoint.empty("its engine takes no new requests")
    elif failure is not None and failure.kind in (FailureKind.CONNECT, FailureKind.RESET, FailureKind.MALFORMED):
        endpoint.report_failure(failure.detail)
    elif failure is not None and failure.kind is FailureKind.TIMEOUT:
        endpoint.report_timeout()


def _conclude(outcome: Outcome, again: Again | None, client: ClientConnection, ticket: Ticket) -> bool:
    """Make the last attempt's end the client's answer, or raise it."""
    record = ticket.record
    if outcome.end is End.SENT:
        record.ended_by = "upstream"
        if outcome.failure is not None:
            record.error_code = "upstream_error"
        return not ticket.close
    if outcome.end is End.BROKEN:
        assert outcome.failure is not None
        record.error_code = record.error_code or error_of_break(outcome.failure).code
        if outcome.failure.kind not in (FailureKind.TIMEOUT, FailureKind.INTERNAL):
            record.ended_by = "upstream"
        client.close()
        return False
    if outcome.end is End.REFUSED:
        return _pass_refusal(outcome, again, client, ticket)
    assert outcome.failure is not None
    raise failure_error(outcome.failure)


def _pass_refusal(outcome: Outcome, again: Again | None, client: ClientConnection, ticket: Ticket) -> bool:
    """Pass the backend's error on, unless it is about the gateway's key (401) or the backend is shutting down."""
    if outcome.status == 401:
        raise UpstreamError(
            502, "upstream_error", "The model server refused the gateway's own key.", headers=(NO_SDK_RETRY_HEADER,)
        )
    if again is not None and again.reason == "engine":
        raise UpstreamError(502, "upstream_error", "The model server is going down.", headers=(NO_SDK_RETRY_HEADER,))
    if is_from_between(outcome):
        raise error_from_between(outcome)
    if is_unknown_path(outcome.status, outcome.body):
        raise engine_lacks(ticket.record.path)
    # If the backend asks for a longer wait than ours, we have not retried yet, and the SDK may retry.
    spent = again is not None and ticket.can_repeat and pause_before(1, outcome) < math.inf
    extra = ticket.extra + (NO_SDK_RETRY if spent else b"")
    framing = b"content-length: %d\r\n" % len(outcome.body)
    head = relayed_head(outcome.status, outcome.headers, framing=framing, extra=extra, close=ticket.closes)
    record = ticket.record
    record.status = outcome.status
    record.ended_by = "upstream"
    record.sent += len(outcome.body)
    write(client, head + outcome.body)
    return not ticket.closes


def write(client: ClientConnection, data: bytes) -> None:
    """Put an answer on the wire; a client that has left is not an error."""
    if client.transport is not None:
        client.transport.write(data)
