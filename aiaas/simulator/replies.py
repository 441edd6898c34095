"""The two ways to answer a generation, and their faults.

A reply listens to the engine and writes to the exchange; when the client leaves, the reply aborts the generation.
"""

from __future__ import annotations

from collections.abc import Callable

from aiaas.simulator import errors
from aiaas.simulator.answers import Json, encode
from aiaas.simulator.engine import Generation, SimulatedEngine
from aiaas.simulator.events import EventWriter
from aiaas.simulator.faults import Act, ArmedFault, Fault, Point, Reach
from aiaas.simulator.http import SimulatedExchange

JSON_TYPE = "application/json"
VARY_ORIGIN = (("vary", "Origin"),)
HUGE_HEADER = "x" * 128 * 1024
# Sent after an answer: a client that reuses the connection would take it for the answer to its next request.
EXCESS_ANSWER = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 18\r\n\r\n{"excess": "yours"}'


class WholeReply:
    """A whole answer, sent after the last token."""

    def __init__(
        self,
        engine: SimulatedEngine,
        exchange: SimulatedExchange,
        armed: ArmedFault,
        whole: Callable[[], Json],
        died: errors.WireError,
    ) -> None:
        self.exchange = exchange
        self._died = died
        self._engine = engine
        self._armed = armed
        self._whole = whole
        self._generation: Generation | None = None

    def begin(self, generation: Generation) -> None:
        """The engine has taken it."""
        self._generation = generation
        self.exchange.on_gone = lambda: self._engine.abort(generation)

    def on_steps(self, first: int, last: int) -> None:  # noqa: ARG002  (the engine tells both)
        """Apply a fault with the first token, since a client does not see later tokens of a whole answer.

        The moment of a death of all is that of a stream, whose client can see it.
        """
        halfway = self._armed.strikes(Point.MID_STREAM) and self._armed.fault.reach is not Reach.ALL
        if self._generation is None or first > 0 or not (halfway or self._armed.strikes(Point.FIRST_EVENT)):
            return
        self._strike(self._generation, self._armed.fault, halfway=halfway)
        self._armed.take()

    def on_end(self) -> None:
        """Send the whole answer."""
        self.exchange.respond(200, encode(self._whole()), JSON_TYPE, after=VARY_ORIGIN)
        _exceed(self.exchange, self._armed)

    def on_struck(self, fault: Fault) -> None:
        """See StepListener: nothing of the answer has been sent."""
        if self._generation is not None:
            self._strike(self._generation, fault, halfway=False)

    def _strike(self, generation: Generation, fault: Fault, *, halfway: bool) -> None:
        if fault.act in (Act.DIE, Act.ABORT):
            self._engine.abort(generation)
            self.exchange.respond(self._died.status, self._died.body, JSON_TYPE, after=VARY_ORIGIN)
            return
        body = encode(self._whole())
        sent = len(body) // 2 if halfway else 0
        if fault.act is Act.FINISH:
            self._engine.abort(generation)
            self.exchange.respond(200, body[:sent], JSON_TYPE, after=VARY_ORIGIN)
            return
        if sent:
            self.exchange.respond_partly(200, body, JSON_TYPE, sent)
        _stop_half_way(self._engine, self.exchange, generation, fault)


class StreamReply:
    """A streamed answer: status and headers before the engine begins (130), then each token when it is generated."""

    def __init__(
        self, engine: SimulatedEngine, exchange: SimulatedExchange, armed: ArmedFault, writer: EventWriter
    ) -> None:
        self.exchange = exchange
        self._engine = engine
        self._armed = armed
        self._writer = writer
        self._generation: Generation | None = None
        self._strikes_at = 0

    def begin(self, generation: Generation) -> None:
        """The engine has taken it."""
        self._generation = generation
        self._strikes_at = self._armed.fault.tokens_before(generation.choices[0].deltas)
        self.exchange.on_gone = lambda: self._engine.abort(generation)
        self.exchange.start_stream()

    def on_steps(self, first: int, last: int) -> None:
        """Send the events of these tokens, up to the point where a fault strikes."""
        upto = last
        if self._armed.strikes(Point.FIRST_EVENT):
            upto = 0
        elif self._armed.strikes(Point.MID_STREAM):
            upto = max(first, min(last, self._strikes_at))
        events = self._writer.first() if first == 0 and upto > 0 else []
        for k in range(first, upto):
            events += self._writer.step(k)
        if events:
            self.exchange.send(events)
        if upto < last and self._generation is not None:
            self._strike(self._generation, upto, self._armed.fault)
            self._armed.take()

    def on_end(self) -> None:
        """Send the end mark and the last chunk."""
        self.exchange.send(self._writer.last())
        self.exchange.end_stream()
        _exceed(self.exchange, self._armed)

    def on_struck(self, fault: Fault) -> None:
        """See StepListener."""
        if self._generation is not None:
            self._strike(self._generation, self._generation.position, fault)

    def _strike(self, generation: Generation, k: int, fault: Fault) -> None:
        """Apply the fault instead of sending token `k`."""
        if fault.act in (Act.DIE, Act.FINISH, Act.ABORT):
            self._engine.abort(generation)
            last = self._last_events(k, fault.act)
            if last is None:
                self.exchange.close()
                return
            self.exchange.send(last)
            self.exchange.end_stream()
            return
        if fault.act is Act.HALVE:
            event = b"".join(self._writer.step(k))
            self.exchange.send([event[: len(event) // 2]])
        _stop_half_way(self._engine, self.exchange, generation, fault)

    def _last_events(self, k: int, act: Act) -> list[bytes] | None:
        if act is Act.DIE:
            return self._writer.error()
        if act is Act.ABORT:
            ended = self._writer.abort(k)
            return ended if k or ended is None else [*self._writer.first(), *ended]
        return []


def _exceed(exchange: SimulatedExchange, armed: ArmedFault) -> None:
    if armed.strikes(Point.END):
        armed.take()
        exchange.write_raw(EXCESS_ANSWER)


def _stop_half_way(engine: SimulatedEngine, exchange: SimulatedExchange, generation: Generation, fault: Fault) -> None:
    """Apply the fault to the unfinished answer: hang, RST, garbage or FIN."""
    if fault.act is Act.HANG:
        engine.freeze(generation)
        return
    engine.abort(generation)
    if fault.act is Act.RESET:
        exchange.reset()
    elif fault.act is Act.GARBAGE:
        exchange.garble(b"this is no chunk\r\n")
    else:
        exchange.close()


def strike_request(exchange: SimulatedExchange, fault: Fault) -> None:
    """Apply a fault that strikes before the engine. Raises WireError for the faults that are vLLM's own errors."""
    if fault.act is Act.HANG:
        return
    if fault.act is Act.RESET:
        exchange.reset()
    elif fault.act is Act.CLOSE:
        exchange.close()
    elif fault.act is Act.HALVE:
        exchange.write_raw(b"HTTP/1.1 200 OK\r\ndate: Mon, 23 Nov 2026 07:16:08 GMT\r\nserver: aiaas-si")
        exchange.close()
    elif fault.act is Act.GARBAGE:
        exchange.garble(b"\x16\x03\x01\x00\x05this is no HTTP\r\n\r\n")
    else:
        _answer_otherwise(exchange, fault)


def _answer_otherwise(exchange: SimulatedExchange, fault: Fault) -> None:
    name, status = fault.name, int(fault.arg) or 200
    refusals = {
        "busy": errors.engine_busy,
        "engine-dead": errors.engine_dead,
        "draining": errors.engine_gone,
        "unhandled-exception": errors.nested_too_deep,
        "unauthorized": errors.wire_unauthorized,
    }
    if name in refusals:
        raise refusals[name]()
    if name == "error":
        raise errors.told_to_fail(status)
    if name == "too-many":
        refusal = errors.too_many()
        exchange.respond(refusal.status, refusal.body, JSON_TYPE, after=(("retry-after", f"{fault.arg:g}"),))
    elif name == "redirect":
        location = f"http://{exchange.request.headers.get('host', '')}{exchange.request.path}"
        exchange.respond(307, b"", None, after=(("location", location), *VARY_ORIGIN))
    elif name == "huge-headers":
        exchange.respond(200, b"{}", JSON_TYPE, after=(("x-huge", HUGE_HEADER),))
    else:
        page = f"<html><head><title>{status}</title></head><body><h1>{status}</h1>aiaas simulator</body></html>\n"
        exchange.respond(status, page.encode(), "text/html")
