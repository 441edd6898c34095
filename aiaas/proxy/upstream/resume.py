"""An answer goes on at another endpoint when its own dies: what becomes of an attempt that ended as End.CUT.

    again     the client has no event yet: the same request once more
    continue  a chat's text becomes an open message of the assistant, and the engine writes on (`openai/resumable.py`)
    replay    a deterministic request is sent again; what the client has is compared and skipped (`openai/replay.py`)

The client sees one answer, or today's error event. Which requests can go on, and how exactly, is the table of
docs/resume.md.

Safety
- A request goes on once at the most, and spends the one further attempt of `forward.py`.
- Where a stream that has gone on dies, too, nothing of that backend goes on for BREAKER seconds: it may be what kills.
- Only an endpoint of the same backend is asked, within `resume_wait`, with a slot that comes before those of new
  requests; the slot at the dead endpoint has been given back.
- One ticket, one settlement: the counts of the joined answer. The second prefill is not the key's to pay.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import Final

import msgspec

from aiaas.openai import paths
from aiaas.openai.chat_cut import ChatCut, chat_cut
from aiaas.openai.joint import Joint
from aiaas.openai.replay import Replayed, is_deterministic
from aiaas.openai.resumable import Continuation, NotResumableError, continuation, counting, with_bounds
from aiaas.openai.sse import EventSplitter, event_data
from aiaas.plan.model import RouteTarget
from aiaas.proxy.client.connection import ClientConnection
from aiaas.proxy.client.handler import in_task
from aiaas.proxy.request.admission import Ticket
from aiaas.proxy.request.served_models import is_its_own
from aiaas.proxy.telemetry.metrics import Metrics
from aiaas.proxy.telemetry.record import Resumption
from aiaas.proxy.upstream.ask import ask
from aiaas.proxy.upstream.attempt import End, Outcome
from aiaas.proxy.upstream.backends import BackendState
from aiaas.proxy.upstream.connection import Failure
from aiaas.proxy.upstream.endpoint import EndpointState
from aiaas.proxy.upstream.kept_relay import Joiner, KeptRelay
from aiaas.proxy.upstream.slots import slot_to_resume

BREAKER: Final = 60.0  # seconds
TOKENIZE_MOST: Final = 5.0  # seconds for a count of tokens; on a busy box 50 at once took 0.9 s


class _Way(msgspec.Struct, frozen=True):
    """How an answer goes on.

    rest  with `continue`: the request, before its bounds are known
    """

    name: str
    relayed: bytes
    cut: ChatCut | None = None
    rest: Continuation | None = None


class _Passing:
    """The joiner of an answer of which the client has nothing."""

    def event(self, event: bytes) -> bytes:
        return event


async def go_on(
    ticket: Ticket,
    target: RouteTarget,
    backend: BackendState,
    dead: EndpointState,
    client: ClientConnection,
    metrics: Metrics,
) -> tuple[Outcome, EndpointState]:
    """Let another endpoint go on with the answer; its end, and the endpoint at which it ended. Cancelling ends the
    second request, too."""
    relay = client.listener
    assert isinstance(relay, KeptRelay)  # in its gap
    resumption = ticket.record.resumption = Resumption(dead.plan.url)
    endpoint = None
    try:
        await in_task(client.handler)
        if relay.in_gap and relay.is_finished:
            relay.finish()
            resumption.outcome = "finished"
        elif relay.in_gap:
            way = _way(relay, ticket, target, backend)
            resumption.way = way.name
            endpoint = await _elsewhere(relay, way, ticket, target, backend, dead, client)
        if relay.in_gap:
            resumption.outcome = "nobody"
            relay.give_up()
        return relay.outcome, endpoint or dead
    except NotResumableError as error:
        resumption.outcome, resumption.reason = "not_resumable", str(error)
        if relay.in_gap:  # else the drain deadline has ended it while the tokens were counted
            relay.give_up()
        return relay.outcome, dead
    finally:
        relay.leave()
        resumption.gap = relay.gap
        metrics.resumes.count(ticket.route.model, resumption)


def may_move(ticket: Ticket, target: RouteTarget, backend: BackendState, relay: KeptRelay) -> bool:
    """Whether another endpoint that is up can continue a stream. One that would have to be generated again stays where
    it is: that costs less."""
    if not any(endpoint.up and relay not in endpoint.streams for endpoint in backend.endpoints):
        return False
    try:
        return not relay.is_finished and _way(relay, ticket, target, backend).name == "continue"
    except NotResumableError:
        return False


def _way(relay: KeptRelay, ticket: Ticket, target: RouteTarget, backend: BackendState) -> _Way:
    """Raises NotResumableError."""
    if asyncio.get_running_loop().time() < backend.no_resume_until:
        raise NotResumableError("another answer that went on has just died, too")
    relayed = relay.relayed()
    if not _has_event(relayed):
        return _Way("again", relayed)
    if not relay.is_safe:
        raise NotResumableError("it had less than 8 events, or less than a second")
    body = _body(ticket, target)
    try:
        if ticket.record.path != paths.CHAT:
            raise NotResumableError("only a chat can be continued")
        cut = chat_cut(relayed)
        if cut is None:
            raise NotResumableError("its events cannot be read")
        return _Way("continue", relayed, cut, continuation(body, cut, backend.plan.resume))
    except NotResumableError:
        if not is_deterministic(body, ticket.record.path):
            raise
    if relay.decoding > backend.plan.resume_wait:
        raise NotResumableError("to generate it again would take longer than resume_wait")
    return _Way("replay", relayed)


def _has_event(relayed: bytes) -> bool:
    return any(event_data(event) is not None for event in EventSplitter(limit=len(relayed) + 1).feed(relayed))


def _body(ticket: Ticket, target: RouteTarget) -> bytes:
    return ticket.asking if target.backend.ask_for_usage else ticket.body


async def _elsewhere(
    relay: KeptRelay,
    way: _Way,
    ticket: Ticket,
    target: RouteTarget,
    backend: BackendState,
    dead: EndpointState,
    client: ClientConnection,
) -> EndpointState | None:
    """Ask one endpoint after another until one takes the request, and wait for the end of the answer; None if none
    does. An endpoint that is busy, or cannot be reached, has not run it."""
    loop, record = client.loop, ticket.record
    tried = [dead]
    deadline = math.inf if ticket.deadline is None else ticket.deadline
    until = min(loop.time() + backend.plan.resume_wait, deadline)
    while relay.in_gap:
        slot = await slot_to_resume(backend, tried, ticket, until)
        if slot is None:
            return None
        endpoint, grant = slot
        tried.append(endpoint)
        began = record.events
        try:
            done = await _attempt(relay, way, ticket, target, endpoint, until)
        finally:
            if grant is not None:
                grant.settle(0, record.events - began)
            endpoint.give_back()
        if done:
            _judge(relay, ticket, backend)
            return endpoint
    return None


async def _attempt(
    relay: KeptRelay, way: _Way, ticket: Ticket, target: RouteTarget, endpoint: EndpointState, until: float
) -> bool:
    """Send the rest of the request to `endpoint`; False if it has not taken it. Raises NotResumableError."""
    record = ticket.record
    joiner: Joiner = _Passing()
    if way.rest is not None and way.cut is not None:
        delivered = await _delivered(way.rest, ticket, target, endpoint)
        body = with_bounds(way.rest.body, delivered)
        ticket = msgspec.structs.replace(ticket, body=body, asking=body)
        joiner = Joint(way.cut, way.rest, delivered)
    elif way.name == "replay":
        joiner = Replayed(record.path, way.relayed)
    connection = await endpoint.pool.connect(until)
    if isinstance(connection, Failure):
        endpoint.report_failure(connection.detail)
        return False
    if not relay.in_gap:  # the drain deadline has come
        connection.abort()
        return False
    record.upstream = endpoint.plan.url
    if (trace := record.trace) is not None:
        if trace.failed:
            ticket = msgspec.structs.replace(ticket, passed=trace.retry(ticket.passed))
        trace.began, trace.endpoint, trace.model = time.monotonic(), endpoint.plan, target.served_name
    endpoint.streams.add(relay)
    try:
        relay.go_on_with(connection, *ticket.upstream_request(endpoint.plan, target, endpoint.listed), joiner)
        outcome: Outcome = await relay
    finally:
        endpoint.streams.discard(relay)
        relay.abort()
    return outcome.end is not End.REFUSED


async def _delivered(rest: Continuation, ticket: Ticket, target: RouteTarget, endpoint: EndpointState) -> int:
    """LLM tokens of the text that the engine reads as a part of its prompt, as it counts them itself; where it does not
    tell, the events, which are fewer under load."""
    record = ticket.record
    model = ticket.peek.model or target.served_name
    if target.rewrite is not None and not is_its_own(model, target.served_name, endpoint.listed):
        model = target.served_name
    asked = counting(_body(ticket, target), rest.body, model)
    if asked is None:
        return 0
    prompt, whole = await asyncio.gather(*(_count(endpoint, body) for body in asked))
    if prompt is not None and whole is not None and whole >= prompt:
        return whole - prompt
    if record.resumption is not None:
        record.resumption.counted = False
    return record.events


class _Count(msgspec.Struct):
    count: int


async def _count(endpoint: EndpointState, body: bytes) -> int | None:
    answer = await ask(endpoint.pool, paths.TOKENIZE, TOKENIZE_MOST, body)
    if isinstance(answer, Failure) or answer.status != 200:
        return None
    try:
        return msgspec.json.decode(answer.body, type=_Count).count
    except msgspec.DecodeError:
        return None


def _judge(relay: KeptRelay, ticket: Ticket, backend: BackendState) -> None:
    """Note how an answer that went on has ended, and keep what kills engines from doing so again."""
    resumption, outcome = ticket.record.resumption, relay.outcome
    assert resumption is not None
    if outcome.end is End.SENT:
        resumption.outcome = "resumed"
    elif relay.differs:
        resumption.outcome, resumption.reason = "differs", relay.differs
    elif ticket.record.error_code is None:  # else the client was too slow, or the gateway drains
        resumption.outcome = "died_again"
        resumption.reason = "" if outcome.failure is None else outcome.failure.detail
        open_breaker(backend, asyncio.get_running_loop().time())


def open_breaker(backend: BackendState, now: float) -> None:
    """From `now` on, the loop's time, nothing of this backend goes on, for a while."""
    backend.no_resume_until = now + BREAKER
