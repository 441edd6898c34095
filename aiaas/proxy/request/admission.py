"""Admit a request: key, route, limits -> a Ticket, or an ApiError.

The order: key, size and media type, parse, model and scope, all limits at once (path and method come before, in
`gateway.py`). Nothing is charged until the last step, so a refusal by the gateway costs the key nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import msgspec
from aiohttp.http import HttpVersion11
from aiohttp.streams import EMPTY_PAYLOAD

from aiaas.errors import ApiError, ClientError, UpstreamError
from aiaas.keys.model import KeyLimits, Principal, PriorityClass, Rejection
from aiaas.keys.throttle import source_of
from aiaas.keys.users import user_of
from aiaas.keys.verifier import TooManyWrongKeys, Verifier, VerifierBusy
from aiaas.limits.headers import limit_lines, refusal
from aiaas.limits.model import Lease, Limits, Store
from aiaas.openai import paths
from aiaas.openai.guard import PRIORITY_FIELD, SALT, SALTED, Guard, is_used, salt_of
from aiaas.openai.lenient import as_utf8
from aiaas.openai.peek import Peek, estimate_input_tokens, peek
from aiaas.openai.session import session_in_headers
from aiaas.openai.splice import ask_for_usage, insert_field, replace_model, set_field
from aiaas.plan.model import EndpointPlan, Plan, Route, RouteTarget
from aiaas.proxy.client.connection import ClientConnection
from aiaas.proxy.client.handler import in_task
from aiaas.proxy.client.identity import Unauthorized, presented_key, too_many_wrong_keys, unauthorized
from aiaas.proxy.client.incoming import HttpRequest
from aiaas.proxy.client.places import Places
from aiaas.proxy.request.body import arriving_body, bound_output, output_field, refuse_harm, whole_body
from aiaas.proxy.request.body_budget import SMALL_BODY, BodyBudget
from aiaas.proxy.request.classes import CLASS_LINES, ENGINE_PRIORITIES, class_of_request
from aiaas.proxy.request.examiner import ON_LOOP, Examiner
from aiaas.proxy.request.guards import guards_of
from aiaas.proxy.request.key_limits import cheap_limits, effective_limits
from aiaas.proxy.request.models import model_not_found
from aiaas.proxy.request.passed import ANTHROPIC_HEADERS, header_values, passed_headers
from aiaas.proxy.request.served_models import Listed, is_its_own
from aiaas.proxy.request.upload import Upload, no_model
from aiaas.proxy.request.visit import Visit, visit_of
from aiaas.proxy.telemetry.record import NO_KEY, Record


class Ticket(msgspec.Struct, frozen=True, gc=False):
    """An admitted request: the request to send, the form of its answer, and the reservation to settle when it ends.

    body             as it came, in UTF-8, or with fields spliced (all but `model`, which depends on the target)
    asking           the body for a target that is asked for usage
    strip_usage      whether the two bodies differ: the client did not ask for the usage of its stream
    passed           complete header lines that go upstream, to any target
    estimated_input  LLM tokens, for a request that ends without usage; 0 of a cheap one
    reserved_output  the most LLM tokens that its answer may have; 0 where it generates none
    extra            complete header lines for the answer: request id, limits
    close            the connection ends with this answer
    chunked          the client speaks HTTP/1.1; else `close` is set too, as an answer without a length ends with the
                     connection
    heartbeat        seconds of silence on a stream after which a comment is written; 0 is off
    deadline         the loop's time at which the whole request ends, or None
    priority_class   which requests it goes before, here and in vLLM
    engine_priority  vLLM's `priority` for it, for engines with priority scheduling; None to leave the field alone
    upload           the form that comes in place of a body, which then only tells this request from others
    visit            its session, where there are several endpoints to choose from
    """

    record: Record
    principal: Principal
    route: Route
    peek: Peek
    headers: Mapping[str, str]
    body: bytes
    asking: bytes
    strip_usage: bool
    passed: bytes
    estimated_input: int
    reserved_output: int
    lease: Lease
    extra: bytes
    close: bool
    chunked: bool
    heartbeat: float
    deadline: float | None
    priority_class: PriorityClass
    engine_priority: bytes | None
    upload: Upload | None = None
    visit: Visit | None = None

    @property
    def can_repeat(self) -> bool:
        """Whether the whole request is still there, to be sent again."""
        return self.upload is None or not self.upload.spent

    @property
    def input_read(self) -> int:
        """The input tokens that an engine may have read by now: none of a form that is still coming."""
        return self.estimated_input if self.upload is None or self.upload.ended else 0

    @property
    def closes(self) -> bool:
        """Whether the connection ends with an answer that is given now: the rest of a form would follow it."""
        return self.close or (self.upload is not None and not self.upload.ended)

    def upstream_request(self, endpoint: EndpointPlan, target: RouteTarget, listed: Listed) -> tuple[bytes, bytes]:
        """The request for `endpoint`, which lists these models: its prepared head, the few headers that go along, and
        the body.

        In two parts, to be sent one after the other: a large body is not copied, the second part of a small one is
        empty.
        """
        body = self.asking if target.backend.ask_for_usage else self.body
        model = self.peek.model
        if target.rewrite is not None and model is not None and not is_its_own(model, target.served_name, listed):
            body = replace_model(body, model, target.rewrite, plain=self.peek.plain)
        secret = target.backend.cache_secret
        if secret is not None and self.record.path in SALTED:
            body = insert_field(body, SALT, salt_of(secret, store_key_of(self.principal)))
        if self.engine_priority is not None and target.backend.scheduling == "priority":
            body = set_field(body, PRIORITY_FIELD, self.engine_priority)
        named = target.backend.forward_headers
        if named and self.record.path in paths.ANTHROPIC:
            named = tuple(name for name in named if name not in ANTHROPIC_HEADERS)  # they are in `passed`
        if named and self.principal.users_header is not None:
            users = self.principal.users_header  # it names a person: never for the engine and its log
            named = tuple(name for name in named if name != users)
        passed = self.passed + header_values(self.headers, named) if named else self.passed
        head = endpoint.heads[self.record.path]
        length = f"content-length: {len(body)}\r\n\r\n".encode()
        if len(body) > SMALL_BODY:
            return b"".join((head, passed, length)), body
        return b"".join((head, passed, length, body)), b""


class Admission:
    """The gate of one Plan. Replaced as a whole on reload; `verifier` and `store` live on."""

    def __init__(
        self,
        plan: Plan,
        verifier: Verifier,
        store: Store,
        places: Places,
        bodies: BodyBudget,
        examiner: Examiner,
        loop: asyncio.AbstractEventLoop,
        wall: Callable[[], float],
    ) -> None:
        self._plan = plan
        self._verifier = verifier
        self._store = store
        self._places = places
        self._bodies = bodies
        self._examiner = examiner
        self._loop = loop
        self._wall = wall
        self._limits: dict[str, tuple[Principal, Limits, Limits]] = {}
        self._prioritizes = any(backend.scheduling == "priority" for backend in plan.backends)
        self._seats_sessions = any(backend.seats_sessions for backend in plan.backends)
        self._isolates = any(backend.isolate_cache for backend in plan.backends)
        self._guards = guards_of(plan.request)

    async def admit(self, request: HttpRequest, client: ClientConnection, record: Record, *, close: bool) -> Ticket:
        """Admit one request to a path that generates, and charge it; `close`: its connection ends with its answer.

        Raises ApiError; then nothing is charged.
        """
        principal = self.known(request, client, record) or await self.verified(request, client, record)
        limits = self.limits_of(principal, record.path)
        try:
            if limits.concurrent is not None:
                self._bodies.begin(record, limits.concurrent)
            if request.body or request.content.is_eof():
                body = whole_body(request, client, self._plan.server, self._bodies, record)
            else:
                body = await arriving_body(request, client, self._plan.server, self._bodies, record)
            request.content, request.body = EMPTY_PAYLOAD, b""  # a reader takes a kilobyte
            record.request_bytes = len(body)
            large = len(body) > ON_LOOP
            named, look = self._session_name(request, record.path) if self._seats_sessions else (None, False)
            if large:
                body, peeked = await self._examiner.run(_read, body, record.path, look)
                if len(body) > record.request_bytes:  # it came as UTF-16, and Chinese is longer in UTF-8
                    self._bodies.take(record, len(body))
            else:
                body, peeked = _read(body, record.path, look)
            record.stream = peeked.stream
            record.priority_class = priority_class = class_of_request(principal.priority_class, peeked.service_tier)
            route = self.route_of(record.path, peeked.model, principal)
            record.model = route.model
            refuse_harm(peeked, self._plan.request, record.path)
            self._bodies.refuse_beyond(record)
            strip_usage = peeked.stream and not peeked.include_usage and record.path in paths.USAGE_ON_REQUEST
            guard = self.guard_of(principal)
            salted = self._isolates and any(target.backend.isolate_cache for target in route.targets)
            if large:
                body = await self._examiner.run(guard.check, body, peeked, record.path, salted=salted)
                body, asking, output = await self._examiner.run(_fit, body, peeked, route, record.path, strip_usage)
            else:
                body = guard.check(body, peeked, record.path, salted=salted)
                body, asking, output = _fit(body, peeked, route, record.path, strip_usage)
        except ApiError:
            record.limit_lines = await self.look(principal, limits, record.key_user)
            raise
        estimated_input = 0 if limits.cheap else estimate_input_tokens(len(body))
        reserved_output = (output or 0) * peeked.choices * peeked.prompts
        key, now, reserved = store_key_of(principal), self._loop.time(), estimated_input + reserved_output
        result = await self._store.admit(key, limits, reserved, now, self._wall(), record.key_user)
        if result.lease is None:
            param = output_field(peeked, record.path) if record.path in paths.OUTPUT else None
            raise refusal(result, param, cheap=limits.cheap)
        record.limit_lines = limit_lines(result)
        return Ticket(
            record, principal, route, peeked, request.headers, body, asking, strip_usage,
            passed_headers(request.headers, record), estimated_input, reserved_output, result.lease,
            b"".join((record.own_lines, record.limit_lines, CLASS_LINES[priority_class])),
            close, request.version >= HttpVersion11, self._plan.server.heartbeat,
            deadline_of(record, route), priority_class,
            _engine_priority(peeked, record.path, priority_class, guard) if self._prioritizes else None, None,
            visit_of(record, route, named, peeked, body, estimated_input) if self._seats_sessions else None,
        )  # fmt: skip

    def _session_name(self, request: HttpRequest, path: str) -> tuple[str | None, bool]:
        """The session that a header names, and whether the body has to be read for one."""
        named = session_in_headers(request.headers) if path in paths.OUTPUT else None
        return named, named is None and path in paths.OUTPUT

    def known(self, request: HttpRequest, client: ClientConnection, record: Record) -> Principal | None:
        """The owner of the key, if this process has verified it before; else `verified` has to be asked.

        Raises Unauthorized 401; ClientError 400 where there are two keys; UpstreamError 503 where members have all
        their places.
        """
        if not self._plan.auth.enabled:
            principal = Principal(key_id=NO_KEY, name=record.client_address, models=None, limits=KeyLimits())
        else:
            try:
                presented = presented_key(request, record.path)
            except Unauthorized as error:
                record.rejection = error.rejection
                raise
            known = self._verifier.lookup(presented.encode("utf-8", "surrogateescape"), self._wall())
            if known is None:
                return None
            principal = known
        self._welcome(principal, request, client, record)
        return principal

    async def verified(self, request: HttpRequest, client: ClientConnection, record: Record) -> Principal:
        """The owner of the key, which this process has not seen before.

        Raises as `known`; LimitError 429 where too many wrong keys came from this address; UpstreamError 503 where too
        many unknown keys wait to be checked.
        """
        await in_task(client.handler)
        try:
            presented = presented_key(request, record.path)
            found = await self._verifier.verify(presented, self._wall(), record.client_address)
        except TooManyWrongKeys as error:
            raise too_many_wrong_keys(error.retry_after) from None
        except VerifierBusy as error:
            raise UpstreamError(
                503,
                "overloaded",
                "Too many unknown keys are being checked; try again shortly.",
                headers=(("retry-after", str(error.retry_after)),),
            ) from None
        if isinstance(found, Rejection):
            record.rejection = found
            raise unauthorized(found)
        self._welcome(found, request, client, record)
        return found

    def _welcome(self, principal: Principal, request: HttpRequest, client: ClientConnection, record: Record) -> None:
        """Note whose request it is. From then on the connection is a member's."""
        record.user, record.key_id = principal.name, principal.key_id
        if principal.users_header is not None:
            record.key_user = user_of(principal.key_id, request.headers.get(principal.users_header))
        guest = client.guest
        if guest is not None and guest.is_stranger:
            self._places.welcome(guest)

    async def look(self, principal: Principal, limits: Limits, user: str) -> bytes:
        """Header lines that say how the limits stand, for an answer to a request that was not charged."""
        if limits.requests is None and limits.tokens is None and limits.user is None:
            return b""
        state = await self._store.look(store_key_of(principal), limits, self._loop.time(), user)
        return limit_lines(state)

    def route_of(self, path: str, model: str | None, principal: Principal) -> Route:
        """The route of a model at a path. Raises ClientError 400 without a model, 404 if this client has none of it."""
        if model is None:
            raise no_model()
        route = self._plan.routes[path].get(model)
        if route is None or (principal.models is not None and route.model not in principal.models):
            raise self._no_route(model, path, principal)
        return route

    def guard_of(self, principal: Principal) -> Guard:
        """The rules of the engine's fields for a client."""
        guard = self._guards[principal.priority_class]
        return guard if principal.allow_fields is None else guard.allowing(principal.allow_fields)

    def _no_route(self, model: str, path: str, principal: Principal) -> ClientError:
        """The error of a model that is not at this path, whether or not it is at another one."""
        allowed = principal.models is None or model in principal.models
        if not allowed or not any(model in table for table in self._plan.routes.values()):
            return model_not_found(model)
        message = f"{path} is not offered for this model; the operator can add it to `backends.NAME.endpoints`."
        return ClientError(404, "not_offered", message)

    @property
    def known_limits(self) -> list[tuple[Principal, Limits]]:
        """The keys that have sent a request under this Plan, with their limits; none without authentication."""
        return [(principal, limits) for principal, limits, _ in list(self._limits.values())]

    def limits_of(self, principal: Principal, path: str) -> Limits:
        """The key's own limits where it has them, else the config's; made once for each principal."""
        cached = self._limits.get(principal.key_id)
        if cached is None or cached[0] is not principal:
            limits = effective_limits(self._plan, principal.limits, principal.user_limits)
            cached = principal, limits, cheap_limits(limits)
            if self._plan.auth.enabled:
                self._limits[principal.key_id] = cached
        return cached[2] if path in paths.CHEAP else cached[1]


def deadline_of(record: Record, route: Route) -> float | None:
    """The loop's time at which a request on this route ends, or None."""
    total_timeout = route.targets[0].backend.total_timeout
    return None if total_timeout is None else record.started + total_timeout


def store_key_of(principal: Principal) -> str:
    """The name under which a client is counted: its key's id, or its address where authentication is off.

    An IPv6 client has 64 bits of addresses: limits for each address would not limit it.
    """
    return f"address:{source_of(principal.name)}" if principal.key_id == NO_KEY else principal.key_id


def _engine_priority(peeked: Peek, path: str, priority_class: PriorityClass, guard: Guard) -> bytes | None:
    if path not in paths.PRIORITIZED:
        return None
    own = None if peeked.guarded is None else peeked.guarded.get(PRIORITY_FIELD)
    if own is not None and guard.lets(PRIORITY_FIELD, path) and is_used(bytes(own), "zero"):
        return None  # the operator lets this client set it
    return ENGINE_PRIORITIES[priority_class]


def _read(body: bytes, path: str, session: bool) -> tuple[bytes, Peek]:
    body = as_utf8(body)
    return body, peek(body, path, session=session)


def _fit(body: bytes, peeked: Peek, route: Route, path: str, strip_usage: bool) -> tuple[bytes, bytes, int | None]:
    """`body` and `asking` of Checked, and the output bound of one choice in LLM tokens.

    They are one object where the route's targets agree, so that a large body is not there twice.
    """
    body, output = bound_output(body, peeked, route, path)
    if not strip_usage:
        return body, body, output
    asked = {target.backend.ask_for_usage for target in route.targets}
    asking = ask_for_usage(body, has_options=peeked.has_stream_options) if True in asked else body
    return (body if False in asked else asking), asking, output
