"""The two ways to answer a generation, and where a fault strikes them.

A reply listens to the engine on one side and writes to the exchange on the other; when the client leaves, it takes the
generation out of the engine.
"""

from __future__ import annotations

from collections.abc import Callable

from aiaas.engines.simulator import errors
from aiaas.engines.simulator.answers import Json, encode
from aiaas.engines.simulator.engine import Engine, Generation
from aiaas.engines.simulator.events import EventWriter
from aiaas.engines.simulator.faults import Fault, Point
from aiaas.engines.simulator.http import Exchange

JSON_TYPE = "application/json"
VARY = (("vary", "Origin"),)


class WholeReply:
    """Not streamed: nothing is sent until the last token."""

    def __init__(self, engine: Engine, exchange: Exchange, fault: Fault, whole: Callable[[], Json]) -> None:
        self.exchange = exchange
        self._engine = engine
        self._fault = fault
        self._whole = whole
        self._generation: Generation | None = None

    def begin(self, generation: Generation) -> None:
        """The engine has taken it."""
        self._generation = generation
        self.exchange.on_gone = lambda: self._engine.abort(generation)

    def on_steps(self, first: int, last: int) -> None:  # noqa: ARG002  (the engine tells both)
        """A fault strikes with the first token, if at all: there is nothing else to see of a whole answer's middle."""
        fault, generation = self._fault, self._generation
        if generation is None or first > 0 or fault.kind.point not in (Point.FIRST_EVENT, Point.MID_STREAM):
            return
        if fault.name == "engine-dies-mid-stream":
            self._engine.abort(generation)
            dead = errors.engine_dead()
            self.exchange.respond(dead.status, dead.body, JSON_TYPE, after=VARY)
            return
        if fault.strikes(Point.MID_STREAM):
            body = encode(self._whole())
            self.exchange.respond_partly(200, body, JSON_TYPE, len(body) // 2)
        _stop_half_way(self._engine, self.exchange, generation, fault)

    def on_end(self) -> None:
        """The whole answer."""
        self.exchange.respond(200, encode(self._whole()), JSON_TYPE, after=VARY)


class StreamReply:
    """Streamed: status and headers before the engine has begun (130), then each token as it comes."""

    def __init__(self, engine: Engine, exchange: Exchange, fault: Fault, writer: EventWriter) -> None:
        self.exchange = exchange
        self._engine = engine
        self._fault = fault
        self._writer = writer
        self._generation: Generation | None = None

    def begin(self, generation: Generation) -> None:
        """The engine has taken it."""
        self._generation = generation
        self.exchange.on_gone = lambda: self._engine.abort(generation)
        self.exchange.start_stream()

    def on_steps(self, first: int, last: int) -> None:
        """Send what these tokens add, up to where a fault strikes."""
        upto = last
        if self._fault.strikes(Point.FIRST_EVENT):
            upto = 0
        elif self._fault.strikes(Point.MID_STREAM):
            upto = min(last, int(self._fault.arg))
        events = self._writer.first() if first == 0 and upto > 0 else []
        for k in range(first, upto):
            events += self._writer.step(k)
        if events:
            self.exchange.send(events)
        if upto < last and self._generation is not None:
            self._strike(self._generation)

    def on_end(self) -> None:
        """The end mark, and the last chunk."""
        self.exchange.send(self._writer.last())
        self.exchange.end_stream()

    def _strike(self, generation: Generation) -> None:
        if self._fault.name == "engine-dies-mid-stream":
            self._engine.abort(generation)
            self.exchange.send(self._writer.error())
            self.exchange.end_stream()
        else:
            _stop_half_way(self._engine, self.exchange, generation, self._fault)


def _stop_half_way(engine: Engine, exchange: Exchange, generation: Generation, fault: Fault) -> None:
    """RST, FIN, or silence."""
    if fault.name == "reset-mid-stream":
        engine.abort(generation)
        exchange.reset()
    elif fault.name == "close-mid-stream":
        engine.abort(generation)
        exchange.close()
    else:
        engine.freeze(generation)


def strike_request(exchange: Exchange, fault: Fault) -> bool:
    """The faults that stand before the engine; true where the exchange is dealt with. Raises WireError."""
    if fault.name == "busy":
        raise errors.engine_busy()
    if fault.name == "engine-dead":
        raise errors.engine_dead()
    if fault.name == "garbage":
        exchange.write_raw(b"\x16\x03\x01\x00\x05this is no HTTP\r\n\r\n")
        exchange.close()
    elif fault.name == "html-error":
        status = int(fault.arg)
        page = f"<html><head><title>{status}</title></head><body><h1>{status}</h1>aiaas simulator</body></html>\n"
        exchange.respond(status, page.encode(), "text/html")
    return True
