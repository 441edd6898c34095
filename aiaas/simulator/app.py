"""Answer requests: the route table, the order of the checks, and the answer of each path.

The order is vLLM's: key (401), path (404), method (405), then the checks in `requests`, then the engine (500, 503).
"""

from __future__ import annotations

import asyncio
import binascii
import functools
import json
import os
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from aiaas.simulator import answers, errors
from aiaas.simulator.answers import Json, Stamp, encode
from aiaas.simulator.checks import check_model
from aiaas.simulator.directions import directed
from aiaas.simulator.engine import EngineFullError, Generation, SimulatedEngine
from aiaas.simulator.errors import WireError
from aiaas.simulator.faults import STAYS_DEAD, Act, ArmedFault, Fault, Point
from aiaas.simulator.forms import DetokenizeForm, fill_form, parse_json
from aiaas.simulator.generate import WORD_TOKENS, SimulatedChoice, make_pace
from aiaas.simulator.http import SimulatedExchange, WireRequest
from aiaas.simulator.metrics import CONTENT_TYPE, SimulatorMetrics
from aiaas.simulator.options import SimulatorOptions
from aiaas.simulator.pooled import PARSERS
from aiaas.simulator.replies import JSON_TYPE, VARY_ORIGIN, StreamReply, WholeReply, strike_request
from aiaas.simulator.requests import (
    ApiFamily,
    GenerationJob,
    count_messages_tokens,
    parse_invocation,
    parse_job,
    pieces_to_tokenize,
)
from aiaas.simulator.sound import SOUND_PATHS, SoundWriter, Task, hear
from aiaas.simulator.toolevents import make_writer

RECORDED_BODY = 1024 * 1024  # bytes kept of a recorded request's body
LEARNED_PIECES = 10_000  # token texts kept for /detokenize

_STORED_RESPONSE = re.compile(r"/v1/responses/([^/]+)(?:/cancel)?")
_GUARDED = ("/v1", "/v2", "/inference")
_PREFLIGHT_VARY = (
    "Origin, Access-Control-Request-Method, Access-Control-Request-Headers, Access-Control-Request-Private-Network"
)


@dataclass(frozen=True, slots=True)
class Received:
    """One request as the simulator received it; the body up to RECORDED_BODY bytes."""

    method: str
    path: str
    target: str
    headers: dict[str, str]
    body: bytes = field(repr=False)
    body_size: int = 0


Answerer = Callable[[SimulatedExchange], None]


class App:
    """Routes and answers one simulator's requests.

    received  the last requests, newest last, if recording is on
    close_port   called when a fault takes the whole process: no connection is accepted after it
    draining  True after SIGTERM with a shutdown timeout: generate paths answer 500, /health stays 200 (140)
    """

    def __init__(self, options: SimulatorOptions, loop: asyncio.AbstractEventLoop, *, record: int) -> None:
        self.options = options
        self.close_port: Callable[[], None] = lambda: None
        self._loop = loop
        self.fault = options.fault
        self.draining = False
        self.metrics = SimulatorMetrics(options.models[0])
        by_priority = options.scheduling_policy == "priority"
        self.engine = SimulatedEngine(
            loop, self.metrics, options.max_num_seqs, options.max_num_queued_reqs, by_priority=by_priority
        )
        self.received: deque[Received] = deque(maxlen=record)
        self._record = record > 0
        self._pieces: dict[int, str] = {_token_id(piece): piece for piece in WORD_TOKENS}
        self._routes = self._make_routes()

    @property
    def fault(self) -> Fault:
        """How the simulator misbehaves, from the next request on."""
        return self._armed.fault

    @fault.setter
    def fault(self, fault: Fault) -> None:
        self._armed = ArmedFault(fault, self._strike_soon)

    def _strike_soon(self, fault: Fault) -> None:
        self._loop.call_soon(self.strike_all, fault)  # not inside of the engine's step

    def strike_all(self, fault: Fault) -> None:
        """Apply a fault to every request in flight, as when the process dies or hangs, and stay like that."""
        self.engine.strike_all(fault)
        if fault.act is Act.DIE:
            self.fault = STAYS_DEAD
        elif fault.act is not Act.HANG:
            self.close_port()

    def handle(self, exchange: SimulatedExchange) -> None:
        """Answer one request, at once or later, when the engine has generated tokens."""
        request = exchange.request
        if self._record:
            body = request.body[:RECORDED_BODY]
            headers = dict(request.headers)
            self.received.append(
                Received(request.method, request.path, request.target, headers, body, len(request.body))
            )
        if self.options.request_id_headers:
            request_id = request.headers.get("x-request-id") or _random_hex(16)
            exchange.extra_headers = (("x-request-id", request_id),)
        try:
            self._route(exchange)
        except WireError as error:
            self._refuse(exchange, error)
        if exchange.status:
            self._count_http(exchange)

    def _route(self, exchange: SimulatedExchange) -> None:
        request = exchange.request
        if request.method == "OPTIONS" and {"origin", "access-control-request-method"} <= request.headers.keys():
            self._refuse_preflight(exchange)
            return
        key = self.options.api_key
        guarded = key is not None and request.path.startswith(_GUARDED) and request.method != "OPTIONS"
        if guarded and request.headers.get("authorization") != f"Bearer {key}":
            raise errors.wire_unauthorized()
        methods = self._routes.get(request.path)
        if methods is None:
            stored = _STORED_RESPONSE.fullmatch(request.path)
            if stored is not None and self.options.runner == "text":
                raise errors.unknown_response(stored[1])
            if request.path.endswith("/") and request.path.rstrip("/") in self._routes:
                location = f"http://{request.headers.get('host', '')}{request.path.rstrip('/')}"
                exchange.respond(307, b"", None, after=(("location", location), *VARY_ORIGIN))
                return
            raise errors.wire_not_found()
        answer = methods.get(request.method)
        if answer is None:
            # Starlette names only the first of several methods.
            raise errors.wire_method_not_allowed(next(iter(methods)))
        answer(exchange)

    def _make_routes(self) -> dict[str, dict[str, Answerer]]:
        """Map path -> method -> answer, for the routes of a text, a pooling or an audio vLLM (00-routes). Routes that a
        gateway should never forward (elastic scaling, rendering, docs) are left out."""
        routes: dict[str, dict[str, Answerer]] = {
            "/health": {"GET": self._health},
            "/ping": {"GET": self._health, "POST": self._health},
            "/load": {"GET": lambda exchange: self._json(exchange, {"server_load": 0})},
            "/version": {"GET": lambda exchange: self._json(exchange, {"version": answers.FINGERPRINT})},
            "/metrics": {"GET": self._metrics},
            "/v1/models": {"GET": self._models},
            "/tokenize": {"POST": self._tokenize},
            "/detokenize": {"POST": self._detokenize},
            "/invocations": {"POST": self._invocations},
            "/openapi.json": {"GET": self._openapi},
        }
        if self.options.runner == "text":
            families: dict[str, ApiFamily] = {
                "/v1/chat/completions": "chat",
                "/v1/completions": "completions",
                "/v1/responses": "responses",
                "/v1/messages": "messages",
            }
            for path, family in families.items():
                routes[path] = {"POST": functools.partial(self._generate, family=family)}
            routes["/v1/messages/count_tokens"] = {"POST": self._count_tokens}
            return routes
        if self.options.runner == "audio":
            return routes | {
                path: {"POST": functools.partial(self._hear, task=task)} for path, task in SOUND_PATHS.items()
            }
        for path in PARSERS[self.options.runner]:
            routes[path] = {"POST": functools.partial(self._pooled, path=path)}
        return routes

    # paths that answer at once

    def _json(self, exchange: SimulatedExchange, body: object) -> None:
        exchange.respond(200, encode(body), JSON_TYPE, after=VARY_ORIGIN)

    def _refuse(self, exchange: SimulatedExchange, error: WireError) -> None:
        before = (("allow", error.allow),) if error.allow else ()
        exchange.respond(error.status, error.body, JSON_TYPE, before=before, after=VARY_ORIGIN if error.varies else ())
        if error.unhandled:
            exchange.hang_up()

    def _refuse_preflight(self, exchange: SimulatedExchange) -> None:
        before = (
            ("vary", _PREFLIGHT_VARY),
            ("access-control-allow-methods", "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT, QUERY"),
            ("access-control-max-age", "600"),
        )
        exchange.respond(400, b"Disallowed CORS origin", "text/plain; charset=utf-8", before=before)

    def _health(self, exchange: SimulatedExchange) -> None:
        exchange.respond(503 if self.fault.name == "engine-dead" else 200, b"", None, after=VARY_ORIGIN)

    def _metrics(self, exchange: SimulatedExchange) -> None:
        exchange.respond(200, self.metrics.render(self.engine), CONTENT_TYPE, after=VARY_ORIGIN)

    def _openapi(self, exchange: SimulatedExchange) -> None:
        """The routes, as FastAPI lists them, without their schemas."""
        paths: Json = {
            path: {method.lower(): {} for method in methods}
            for path, methods in self._routes.items()
            if path not in ("/metrics", "/openapi.json")
        }
        info = {"title": answers.OWNER, "version": answers.FINGERPRINT}
        self._json(exchange, {"openapi": "3.1.0", "info": info, "paths": paths})

    def _models(self, exchange: SimulatedExchange) -> None:
        names = self.options.models
        ids = [_random_hex(8) for _ in names]
        self._json(exchange, answers.models(names, self.options.max_model_len, int(time.time()), ids))

    def _count_tokens(self, exchange: SimulatedExchange) -> None:
        tokens = count_messages_tokens(_decode(exchange.request), self.options)
        self._json(exchange, {"input_tokens": tokens, "context_management": {"original_input_tokens": tokens}})

    def _tokenize(self, exchange: SimulatedExchange) -> None:
        pieces, with_texts = pieces_to_tokenize(_decode(exchange.request), self.options)
        ids = [self._learn(piece) for piece in pieces]
        body = {
            "count": len(ids),
            "max_model_len": self.options.max_model_len,
            "tokens": ids,
            "token_strs": pieces if with_texts else None,
        }
        self._json(exchange, body)

    def _detokenize(self, exchange: SimulatedExchange) -> None:
        form = fill_form(DetokenizeForm, _decode(exchange.request))
        check_model(form.model, self.options)
        self._json(
            exchange,
            {"prompt": "".join(self._pieces.get(number, "\N{REPLACEMENT CHARACTER}") for number in form.tokens)},
        )

    def _learn(self, piece: str) -> int:
        number = _token_id(piece)
        if len(self._pieces) < LEARNED_PIECES:
            self._pieces.setdefault(number, piece)
        return number

    def _invocations(self, exchange: SimulatedExchange) -> None:
        """Answer SageMaker's single path for everything: the body decides which kind of request it is."""
        if self.options.runner != "text":
            self._pooled(exchange, next(iter(PARSERS[self.options.runner])))
            return
        try:
            data = _decode(exchange.request)
        except WireError as error:
            if isinstance(error.__cause__, json.JSONDecodeError):
                raise errors.undecodable_invocation(str(error.__cause__)) from error
            raise
        self._answer(exchange, parse_invocation(data, self.options))

    # paths that need the engine

    def _generate(self, exchange: SimulatedExchange, family: ApiFamily) -> None:
        data = _decode(exchange.request)
        job = parse_job(family, data, self.options)
        self._answer(exchange, directed(job, data) if self.options.auto_tool_choice else job)

    def _answer(self, exchange: SimulatedExchange, job: GenerationJob) -> None:
        try:
            self._begin(exchange, job)
        except WireError as error:
            if job.family != "messages":
                raise
            raise errors.anthropic(error) from error

    def _begin(self, exchange: SimulatedExchange, job: GenerationJob) -> None:
        family = job.family
        stamp = self._job_stamp(exchange.request, job)
        message_id = f"msg_{_random_hex(8)}"
        if job.stream:
            writer = make_writer(stamp, job, message_id)
            self._submit(StreamReply(self.engine, exchange, self._armed, writer), job)
            return

        def whole() -> Json:
            if family == "chat":
                return answers.chat(stamp, job.prompt_tokens, job.choices)
            if family == "completions":
                return answers.completion(stamp, job.prompt_tokens, job.choices)
            if family == "responses":
                return answers.response(stamp, job.echo, message_id, job.prompt_tokens, job.choices[0])
            return answers.message(stamp, job.prompt_tokens, job.choices[0])

        died = errors.anthropic(errors.engine_dead()) if family == "messages" else errors.engine_dead()
        self._submit(WholeReply(self.engine, exchange, self._armed, whole, died), job)

    def _hear(self, exchange: SimulatedExchange, task: Task) -> None:
        heard = hear(task, exchange.request, self.options)
        stamp = self._stamp(exchange.request, f"{task}-")
        if heard.job.stream:
            self._submit(StreamReply(self.engine, exchange, self._armed, SoundWriter(stamp, heard)), heard.job)
        else:
            self._submit(WholeReply(self.engine, exchange, self._armed, heard.whole, errors.engine_dead()), heard.job)

    def _pooled(self, exchange: SimulatedExchange, path: str) -> None:
        parse = PARSERS[self.options.runner][path]
        tokens, whole = parse(_decode(exchange.request), self.options, functools.partial(self._stamp, exchange.request))
        job = GenerationJob("chat", False, (tokens,), (SimulatedChoice(("",), "stop"),), self.options.seed)
        self._submit(WholeReply(self.engine, exchange, self._armed, whole, errors.engine_dead()), job)

    def _submit(self, answer: StreamReply | WholeReply, job: GenerationJob) -> None:
        """Submit a job to the engine, unless the shutdown or a fault comes first."""
        if self.draining:
            raise errors.engine_gone()
        if self._armed.strikes(Point.REQUEST):
            self._armed.take()
            strike_request(answer.exchange, self.fault)
            return
        itl = self.fault.arg if self._armed.strikes(Point.PACE) else self.options.itl
        steps = max(len(choice.deltas) for choice in job.choices)
        pace = make_pace(steps, self.options.ttft, itl, self.options.jitter, job.seed)
        generation = Generation(job.choices, job.prompt_tokens, pace, answer, job.priority)
        try:
            self.engine.submit(generation)
        except EngineFullError as error:
            raise errors.engine_busy() from error
        answer.begin(generation)

    def _stamp(self, request: WireRequest, prefix: str, request_id: str | None = None) -> Stamp:
        own = request.headers.get("x-request-id") or request_id or _random_hex(8)
        return Stamp(prefix + own, int(time.time()), self.options.models[0])

    def _job_stamp(self, request: WireRequest, job: GenerationJob) -> Stamp:
        if job.family == "responses":
            response_id = job.request_id or f"resp_{_random_hex(8)}"
            return Stamp(response_id, int(time.time()), self.options.models[0])
        prefix = "cmpl-" if job.family == "completions" else "chatcmpl-"
        return self._stamp(request, prefix, job.request_id)

    def _count_http(self, exchange: SimulatedExchange) -> None:
        request = exchange.request
        handler = request.path if request.path in self._routes else "none"
        self.metrics.http.labels(handler, request.method, f"{exchange.status // 100}xx").inc()


def _decode(request: WireRequest) -> object:
    return parse_json(request.headers.get("content-type", ""), request.body)


def _random_hex(count: int) -> str:
    return os.urandom(count).hex()


def _token_id(piece: str) -> int:
    return 256 + binascii.crc32(piece.encode(errors="surrogatepass")) % 0xFF_FFFF
