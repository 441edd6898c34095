"""A slot for an attempt: take one at once, or wait in the queues of all backends of the route."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Hashable, Sequence

import msgspec

from aiaas.openai import paths
from aiaas.plan.model import RouteTarget
from aiaas.proxy.client.answers import position_line
from aiaas.proxy.request.admission import Ticket
from aiaas.proxy.request.classes import CLASS_WEIGHTS
from aiaas.proxy.telemetry.metrics import Metrics
from aiaas.proxy.upstream.backends import BackendState
from aiaas.proxy.upstream.connection import Failure, FailureKind
from aiaas.proxy.upstream.endpoint import EndpointState
from aiaas.proxy.upstream.refusals import failure_error, no_healthy_backend, overloaded
from aiaas.proxy.upstream.sessions import Stay
from aiaas.proxy.upstream.wait_estimate import Prediction, position_of, predict
from aiaas.proxy.upstream.waiter import Demand, Grant, Waiter

# A request whose wait would be more than HOPELESS times `max_wait` is refused at once: it would only fill the queue.
HOPELESS = 2.0
DEFAULT_WEIGHT = CLASS_WEIGHTS["default"]

Choice = tuple[RouteTarget, BackendState, EndpointState, Grant | Stay | None]


def take(
    backends: Sequence[tuple[RouteTarget, BackendState]], tried: Sequence[EndpointState], ticket: Ticket, now: float
) -> Choice | None:
    """A slot for the next attempt, or None: at an endpoint that was not tried yet, where there is one."""
    chosen: tuple[RouteTarget, BackendState, EndpointState, bool] | None = None
    tokens = _prompt(ticket)
    for target, backend in backends:
        if backend.fair.length or backend.resuming:
            continue  # a short prompt would overtake a long one that waits
        path = ticket.record.path if backend.mixed else ""
        endpoint, reserved = backend.pick(tried, ticket.visit, tokens, path), False
        if endpoint is None:
            endpoint, reserved = backend.pick_reserved(tried, _share_key(ticket), path), True
        if endpoint is not None and (chosen is None or endpoint not in tried):
            chosen = target, backend, endpoint, reserved
            if not tried or endpoint not in tried:
                break
    if chosen is None:
        return None
    target, backend, endpoint, reserved = chosen
    pool, bound, fair = endpoint.pool, endpoint.bound, backend.fair
    if bound is None:
        pool.inflight += 1
        return target, backend, endpoint, None if ticket.visit is None else _seated(backend, endpoint, ticket, None)
    key: Hashable = ticket.lease.key
    weight = DEFAULT_WEIGHT
    if ticket.priority_class != "default":
        key, weight = _share_key(ticket), CLASS_WEIGHTS[ticket.priority_class]
    output = ticket.reserved_output or _bound(ticket)
    if reserved or endpoint.backend is not backend:
        grant = backend.begin(endpoint, key, tokens, output, weight)
        grant = _timed(grant, ticket, now)
        return target, backend, endpoint, grant if ticket.visit is None else _seated(backend, endpoint, ticket, grant)
    # Nothing waits: nobody asks what has been charged, nor when the prompt has been read.
    grant = Grant(endpoint, fair, key, tokens, output, weight)
    fair.uncharged[grant] = math.inf if ticket.record.stream else now
    endpoint.pending += tokens
    pool.inflight += 1
    return target, backend, endpoint, grant if ticket.visit is None else _seated(backend, endpoint, ticket, grant)


def _share_key(ticket: Ticket) -> Hashable:
    """The key between which slots are fair: a request that its client made `batch` does not hold up the others."""
    return ticket.lease.key if ticket.priority_class == "default" else (ticket.lease.key, ticket.priority_class)


def _user(ticket: Ticket) -> str | None:
    """Whose turn it is among the requests of the key; None for a key whose users do not take turns."""
    return ticket.record.key_user or None


def _prompt(ticket: Ticket) -> int:
    """The tokens of its prompt, which others let the engine read first: none of a form, which may come for minutes."""
    return ticket.estimated_input if ticket.upload is None else 0


def _timed(grant: Grant | None, ticket: Ticket, now: float) -> Grant | None:
    if grant is not None and not ticket.record.stream:  # its first byte comes with its last one
        grant.start_timer(now)
    return grant


def _seated(backend: BackendState, endpoint: EndpointState, ticket: Ticket, grant: Grant | None) -> Grant | Stay | None:
    """The grant, and the visit to the endpoint where there was a choice."""
    visit = ticket.visit
    if visit is None or backend.plan.balance != "auto" or len(backend.endpoints) == 1:
        return grant
    stay = backend.sessions.begin(endpoint, visit, grant)
    if stay is None:
        return grant
    ticket.record.session_turn = visit.move
    return stay


def _bound(ticket: Ticket) -> int | None:
    """The most output tokens of a request that names no bound."""
    return None if ticket.record.path in paths.OUTPUT else 0


async def wait_for_slot(
    backends: Sequence[tuple[RouteTarget, BackendState]],
    tried: Sequence[EndpointState],
    ticket: Ticket,
    loop: asyncio.AbstractEventLoop,
    metrics: Metrics,
) -> tuple[Choice, float]:
    """Wait in the queues of all backends that are up, until a slot of one of them is this request's; and the loop's
    time.

    Raises UpstreamError: 503 `no_healthy_backend` as soon as nothing is up, 503 `overloaded` where the queues are
    full, the wait would be hopeless, or `max_wait` is over, 504 at the request's `deadline` (the loop's time).
    """
    while True:
        now = loop.time()
        choice = take(backends, tried, ticket, now)
        if choice is not None:
            return choice, now
        up = [at for at in backends if any(endpoint.up for endpoint in at[1].able(ticket.record.path))]
        if not up:
            raise no_healthy_backend(backends)
        waiter, endpoint = await _wait_in_queues([backend for _, backend in up], tried, ticket, loop, metrics)
        for target, backend in up:
            if endpoint is not None and backend is waiter.by:
                now = loop.time()
                grant = _timed(waiter.grant, ticket, now)
                return (target, backend, endpoint, _seated(backend, endpoint, ticket, grant)), now


async def _wait_in_queues(
    backends: Sequence[BackendState],
    tried: Sequence[EndpointState],
    ticket: Ticket,
    loop: asyncio.AbstractEventLoop,
    metrics: Metrics,
) -> tuple[Waiter, EndpointState | None]:
    """The waiter, and the endpoint whose slot is this request's, or None once nothing of these backends is up."""
    record, deadline = ticket.record, ticket.deadline
    key, user, began = _share_key(ticket), _user(ticket), loop.time()
    output = ticket.reserved_output or _bound(ticket)
    demand = Demand(key, _prompt(ticket), output, CLASS_WEIGHTS[ticket.priority_class], user)
    waiter = Waiter(demand, tried, ticket.visit, loop.create_future(), record.path)
    expected = predict(backends, key, began, user)
    if expected is not None:
        _refuse_hopeless(expected, max(backend.plan.queue.max_wait for backend in backends))
    position = position_of(backends, key, user)
    if ticket.visit is not None:
        ticket.visit.waits = True
    queues = [backend for backend in backends if backend.wait(waiter)]
    if not queues:
        raise overloaded("Too many requests wait for this model; try again shortly.", expected)
    record.phase = "queued"
    record.backend = queues[0].plan.name
    waits = not waiter.granted.done()
    if waits:
        record.queue_position = record.queue_position or position
    until = began + queues[0].plan.queue.max_wait - record.queue_seconds
    timer = loop.call_at(until if deadline is None else min(until, deadline), waiter.expire)
    try:
        endpoint = await waiter.granted
    except asyncio.CancelledError:
        for backend in queues:
            backend.leave(waiter)
        raise
    finally:
        timer.cancel()
        for backend in queues:
            backend.forget(waiter)
        waited = loop.time() - began
        record.queue_seconds += waited
        if record.trace is not None:
            record.trace.waits = (*record.trace.waits, (began, waited))
        if waits:
            metrics.timings.queue_wait.labels(ticket.priority_class).observe(waited)
    if waiter.displaced:
        message = "Too many requests of this key wait for this model; try again shortly."
        raise overloaded(message, predict(backends, key, loop.time(), user))
    if not waiter.expired:
        return waiter, endpoint
    if deadline is not None and deadline < until:
        raise failure_error(Failure(FailureKind.TIMEOUT, "the request took longer than total_timeout allows"))
    message = "No server for this model became free in time; try again shortly."
    raise overloaded(message, predict(backends, key, loop.time(), user))


def _refuse_hopeless(expected: Prediction, max_wait: float) -> None:
    if expected.own and expected.seconds > HOPELESS * max_wait:
        message = f"Requests of this key would wait for about {math.ceil(expected.seconds)} s; try again later."
        raise overloaded(message, expected)


async def slot_to_resume(
    backend: BackendState, tried: Sequence[EndpointState], ticket: Ticket, until: float
) -> tuple[EndpointState, Grant | None] | None:
    """A slot of an endpoint that was not tried, for a stream that broke off; None if there is none by `until`, the
    loop's time, or no such endpoint is up. It comes before all requests that wait: its client has begun to read."""
    loop = asyncio.get_running_loop()
    demand = Demand(_share_key(ticket), _prompt(ticket), _bound(ticket), CLASS_WEIGHTS[ticket.priority_class])
    waiter = Waiter(demand, tried, None, loop.create_future(), ticket.record.path)
    backend.catch_up()
    backend.serve_resumed(waiter)
    backend.resuming.append(waiter)
    timer = loop.call_at(until, waiter.expire)
    try:
        endpoint = await waiter.granted
    except asyncio.CancelledError:
        granted = waiter.granted
        endpoint = granted.result() if granted.done() and not granted.cancelled() else None
        if endpoint is not None:  # in the moment in which the client left
            if waiter.grant is not None:
                waiter.grant.settle(0, None)
            endpoint.give_back()
        raise
    finally:
        timer.cancel()
        backend.resuming.remove(waiter)
        if backend.fair.length:
            backend.hand_over()
    if endpoint is None:
        return None
    if waiter.grant is not None:
        waiter.grant.start_timer(loop.time())
    return endpoint, waiter.grant


def with_position(ticket: Ticket) -> Ticket:
    """The ticket, with the place in the queue among the answer's headers if the request had to wait."""
    line = position_line(ticket.record.queue_position)
    if not line or ticket.extra.endswith(line):
        return ticket
    return msgspec.structs.replace(ticket, extra=ticket.extra + line)
