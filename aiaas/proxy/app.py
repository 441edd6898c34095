"""The running gateway: the route table, and the order of everything on one screen (`Gateway.handle`).

State by lifetime: `Gateway` lives as long as the server; `Active` as long as a Plan is in force (a reload swaps one
reference, and a request keeps the one that it began with); `Record`, `Ticket` and `Relay` as long as a request.
"""

from __future__ import annotations

import asyncio
import os
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from itertools import count
from typing import Any, cast

import msgspec
from aiohttp.web_request import BaseRequest

from aiaas.errors import ApiError, ClientError, LimitError, UpstreamError
from aiaas.keys.model import Principal
from aiaas.keys.verifier import Verifier
from aiaas.limits.model import Store
from aiaas.openai import paths
from aiaas.plan.model import Plan, PublicModel, Route, Target
from aiaas.proxy.admission import Admission, Ticket, client_address, is_trusted, model_id, sane_request_id
from aiaas.proxy.backends import BackendState, EndpointState, all_endpoints
from aiaas.proxy.connection import Connection
from aiaas.proxy.forward import forward, write
from aiaas.proxy.log import JsonLog
from aiaas.proxy.metrics import Metrics
from aiaas.proxy.record import Record
from aiaas.proxy.relay import Relay, Shape
from aiaas.proxy.respond import Answered, answer, date_header, error_answer

# Refusals of ours after the limits: no backend saw the request, so it costs nothing.
NEVER_RAN = frozenset({"no_healthy_backend", "overloaded"})
# nginx's word for "the client left before there was an answer"; never on the wire.
CLIENT_LEFT = 499


@dataclass(frozen=True, slots=True)
class Active:
    """A Plan in force, and what was made from it."""

    plan: Plan
    admission: Admission
    backends: Mapping[str, BackendState]
    targets: Mapping[str, Mapping[str, Sequence[tuple[Target, BackendState]]]]  # by path, by model
    trusted: tuple[IPv4Network | IPv6Network, ...]


class Gateway:
    """Everything that outlives a request. `handle` is what the open side calls."""

    def __init__(
        self,
        plan: Plan,
        verifier: Verifier,
        store: Store,
        log: JsonLog,
        metrics: Metrics,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._wall = wall
        self.verifier = verifier
        self.store = store
        self.log = log
        self.metrics = metrics
        self.draining = False  # answers end their connections, /ready says no
        self.refusing = False  # and new inference requests are refused
        self.in_flight = 0
        self.relays: set[Relay] = set()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._id_prefix = os.urandom(8).hex()
        self._ids = count(1)
        self._date = (0, b"")
        self.active = self._activate(plan, {})
        metrics.config(plan.digest)

    # -- a request ------------------------------------------------------------------------------------------------

    async def handle(self, request: BaseRequest) -> Answered:
        """Answer one request, in contract section 3's order: path, method, key, then what the path does."""
        client = cast(Connection, request.protocol)
        active = self.active
        raw_path = request.raw_path
        path = raw_path.partition("?")[0]
        if path in (paths.HEALTH, paths.READY):
            return self._health(request, client, path)
        record = self._record(request, active, path)
        try:
            if path in active.plan.routes:
                require_method(request, ("POST",))
                return await self._generate(request, client, active, record)
            if active.plan.serves_models and (path == paths.MODELS or path.startswith(paths.MODELS + "/")):
                require_method(request, ("GET", "HEAD"))
                return await self._models(request, client, active, record)
            raise ClientError(404, "not_found", "There is nothing at this path.")
        except ApiError as error:
            return self._refuse(request, client, record, error)

    async def _generate(self, request: BaseRequest, client: Connection, active: Active, record: Record) -> Answered:
        self._enter()
        try:
            if self.refusing:
                raise draining()
            principal = await active.admission.principal(request, record.path, record.client_address)
            record.user, record.key_id = principal.name, principal.key_id
            ticket = await active.admission.admit(request, client, record.path, principal, record)
            try:
                shape = self._shape(request, active, ticket)
                targets = active.targets[record.path][ticket.route.model]
                return await forward(ticket, targets, client, shape, self.metrics, self.relays)
            except ApiError as error:
                record.error_code = error.code
                raise
            finally:
                await self._settle(ticket)
        except ApiError as error:
            record.status, record.error_code = error.status, error.code
            raise
        except asyncio.CancelledError:
            record.ended_by = "client"
            record.status = record.status or CLIENT_LEFT
            record.error_code = record.error_code or "client_left"
            raise
        finally:
            self._leave(record)

    def _shape(self, request: BaseRequest, active: Active, ticket: Ticket) -> Shape:
        backend = ticket.route.targets[0].backend
        started = ticket.record.started
        return Shape(
            path=ticket.route.path,
            extra=ticket.extra,
            close=self._must_close(request),
            chunked=request.version >= (1, 1),
            strip_usage=ticket.strip_usage,
            silence=backend.timeout,
            heartbeat=active.plan.server.heartbeat,
            deadline=None if backend.total_timeout is None else started + backend.total_timeout,
        )

    async def _settle(self, ticket: Ticket) -> None:
        """Replace the reservation by what was used (contract section 5), on every way out.

        Also while being cancelled: the memory store never suspends, so nothing can come in between.
        """
        record = ticket.record
        if record.input_tokens is None:
            self._estimate(ticket)
        if ticket.lease is not None:
            used = (record.input_tokens or 0) + (record.output_tokens or 0)
            ran = not (record.ended_by == "gateway" and record.error_code in NEVER_RAN)
            await self.store.settle(ticket.lease, used, self._loop.time(), self._wall(), ran=ran)

    def _estimate(self, ticket: Ticket) -> None:
        """No usage came: a cut stream counts what was streamed, a cut answer its input, a refusal nothing."""
        record = ticket.record
        reached = record.upstream is not None and (record.ended_by == "client" or record.phase == "streaming")
        if reached and record.status in (0, 200, CLIENT_LEFT):
            record.estimated = True
            record.input_tokens = ticket.estimated_input
            record.output_tokens = record.events if record.stream else 0

    def _enter(self) -> None:
        self.in_flight += 1
        self.metrics.in_flight.inc()
        self._quiet.clear()

    def _leave(self, record: Record) -> None:
        self.in_flight -= 1
        self.metrics.in_flight.dec()
        if not self.in_flight:
            self._quiet.set()
        if record.status == 0:  # an exception of ours is on its way to `internal_error`
            record.status, record.error_code = 500, "internal_error"
        duration = time.monotonic() - record.started
        self.metrics.finished(record, duration)
        self.log.request(record, duration)

    # -- answers of our own ---------------------------------------------------------------------------------------

    def _health(self, request: BaseRequest, client: Connection, path: str) -> Answered:
        close = self._must_close(request)
        head_only = request.method == "HEAD"
        if request.method not in ("GET", "HEAD"):
            error = method_not_allowed(("GET", "HEAD"))
            write(client, error_answer(error, extra=self._date_line(), close=close))
        elif path == paths.READY and self.draining:
            body = b'{"status":"draining"}\n'
            write(
                client,
                answer(503, b"application/json", body, extra=self._date_line(), close=close, head_only=head_only),
            )
        else:
            body = b'{"status":"ok"}\n'
            write(
                client,
                answer(200, b"application/json", body, extra=self._date_line(), close=close, head_only=head_only),
            )
        return Answered(keep_alive=not close)

    async def _models(self, request: BaseRequest, client: Connection, active: Active, record: Record) -> Answered:
        principal = await active.admission.principal(request, record.path, record.client_address)
        visible = [model for model in active.plan.models if may_use(principal, model)]
        if record.path == paths.MODELS:
            body = msgspec.json.encode({"object": "list", "data": [model_entry(model) for model in visible]})
        else:
            wanted = model_id(record.path)
            found = next((model for model in visible if model.name == wanted), None)
            if found is None:
                raise ClientError(
                    404, "model_not_found", f"The model `{wanted[:100]}` does not exist or this key may not use it."
                )
            body = msgspec.json.encode(model_entry(found))
        close = self._must_close(request)
        extra = self._date_line() + b"x-request-id: %b\r\n" % record.request_id.encode()
        self.metrics.responded(200, None)
        write(
            client,
            answer(200, b"application/json", body, extra=extra, close=close, head_only=request.method == "HEAD"),
        )
        return Answered(keep_alive=not close)

    def _refuse(self, request: BaseRequest, client: Connection, record: Record, error: ApiError) -> Answered:
        # A body that was not read: what follows on this connection would be taken for a request.
        close = self._must_close(request) or not request.content.is_eof()
        if isinstance(error, LimitError):
            self.metrics.refused(error.code)
        if record.status == 0:  # refused before it counted as an inference request
            self.metrics.responded(error.status, error.code)
        extra = self._date_line() + b"x-request-id: %b\r\n" % record.request_id.encode()
        write(client, error_answer(error, extra=extra, close=close))
        return Answered(keep_alive=not close)

    def _must_close(self, request: BaseRequest) -> bool:
        """Whether the connection ends with this answer: asked for, HTTP/1.0, an upgrade (never taken), draining."""
        return not request.keep_alive or request.version < (1, 1) or self.draining or "upgrade" in request.headers

    def _date_line(self) -> bytes:
        second = int(self._wall())
        if self._date[0] != second:
            self._date = (second, date_header(second))
        return self._date[1]

    def _record(self, request: BaseRequest, active: Active, path: str) -> Record:
        peer = request.transport.get_extra_info("peername") if request.transport is not None else None
        address = peer[0] if isinstance(peer, tuple) else "local"
        request_id = None
        if active.trusted and is_trusted(address, active.trusted):
            request_id = sane_request_id(request.headers.get("x-request-id"))
            forwarded = request.headers.getall("x-forwarded-for", ())
            address = client_address(address, ",".join(forwarded) or None, active.trusted)
        return Record(
            request_id=request_id or f"{self._id_prefix}{next(self._ids):08x}",
            path=path,
            started=time.monotonic(),
            client_address=address,
        )

    # -- life -----------------------------------------------------------------------------------------------------

    def replace_plan(self, plan: Plan) -> None:
        """Put a new Plan in force; requests in flight finish under the one that they began with."""
        before = self.active
        self.active = self._activate(plan, before.backends)
        kept = {id(backend) for backend in self.active.backends.values()}
        for backend in before.backends.values():
            if id(backend) not in kept:
                backend.close()
        self._forget_endpoints(before.backends.values())
        self.metrics.config(plan.digest)

    def _activate(self, plan: Plan, before: Mapping[str, BackendState]) -> Active:
        backends: dict[str, BackendState] = {}
        for backend_plan in plan.backends:
            known = before.get(backend_plan.name)
            backends[backend_plan.name] = (
                known if known is not None and known.plan == backend_plan else BackendState(backend_plan, self._turned)
            )
        for backend in backends.values():
            for endpoint in backend.endpoints:
                self.metrics.endpoint_up(backend.plan.name, endpoint.plan.url, endpoint.up)
        return Active(
            plan=plan,
            admission=Admission(plan, self.verifier, self.store, self._loop, self._wall),
            backends=backends,
            targets={
                path: {model: _targets(route, backends) for model, route in by_model.items()}
                for path, by_model in plan.routes.items()
            },
            trusted=tuple(ip_network(cidr) for cidr in plan.server.trusted_proxies),
        )

    def _turned(self, endpoint: EndpointState, up: bool, reason: str) -> None:
        self.metrics.endpoint_up(endpoint.backend_name, endpoint.plan.url, up)
        self.log.event(
            "info" if up else "warning",
            "endpoint_up" if up else "endpoint_down",
            backend=endpoint.backend_name,
            upstream=endpoint.plan.url,
            reason=reason,
        )

    def _forget_endpoints(self, before: Iterable[BackendState]) -> None:
        now = {(e.backend_name, e.plan.url) for e in all_endpoints(self.active.backends.values())}
        for endpoint in all_endpoints(before):
            if (endpoint.backend_name, endpoint.plan.url) not in now:
                self.metrics.endpoint_gone(endpoint.backend_name, endpoint.plan.url)

    def internal_error(self, error: BaseException | None) -> None:
        """An exception that no code expected reached aiohttp: log it whole, once."""
        self.log.event(
            "error", "internal_error", error=repr(error), traceback="".join(traceback.format_exception(error))
        )

    def refused_head(self, status: int, code: str) -> None:
        """The HTTP parser refused a request."""
        self.metrics.responded(status, code)
        self.log.event("info", "request_refused", status=status, error_code=code)

    async def quiet(self) -> None:
        """Wait until no inference request is being answered."""
        await self._quiet.wait()

    def end_streams(self) -> None:
        """The drain deadline: what is still open ends with an error event, or breaks off."""
        error = UpstreamError(503, "draining", "The gateway is shutting down; send the request again.")
        for relay in list(self.relays):
            relay.end_with_error(error)


def _targets(route: Route, backends: Mapping[str, BackendState]) -> Sequence[tuple[Target, BackendState]]:
    return [(target, backends[target.backend.name]) for target in route.targets]


def draining() -> UpstreamError:
    """503 for what arrives while the gateway is shutting down."""
    return UpstreamError(
        503, "draining", "The gateway is shutting down; send the request again.", headers=(("retry-after", "1"),)
    )


def require_method(request: BaseRequest, allowed: tuple[str, ...]) -> None:
    """Raises ClientError 405 with `Allow`."""
    if request.method not in allowed:
        raise method_not_allowed(allowed)


def method_not_allowed(allowed: tuple[str, ...]) -> ClientError:
    """405 that says what is allowed."""
    methods = ", ".join(allowed)
    return ClientError(405, "method_not_allowed", f"This path takes {methods}.", headers=(("allow", methods),))


def may_use(principal: Principal, model: PublicModel) -> bool:
    """Whether the key may use (and so see) the model."""
    return principal.models is None or model.name in principal.models


def model_entry(model: PublicModel) -> dict[str, Any]:
    """One entry of the models list, in OpenAI's shape. vLLM's own names the model's path on disk: not to be shown."""
    return {
        "id": model.name,
        "object": "model",
        "created": 0,
        "owned_by": "aiaas",
        "root": model.alias_of or model.name,
    }
