"""The running gateway: the route table, and the order of everything on one screen (`Gateway.handle`).

State by lifetime: `Gateway` lives as long as the server; `Active` as long as a Plan is in force (a reload swaps one
reference, and a request keeps the one that it began with); `Record`, `Ticket` and `Relay` as long as a request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network

from aiohttp.http import HttpVersion11

from aiaas.errors import ApiError, LimitError
from aiaas.keys.verifier import Verifier
from aiaas.limits.model import Store
from aiaas.openai import paths
from aiaas.openai.errors import error_body
from aiaas.plan.model import Plan, Route, RouteTarget
from aiaas.proxy.admin.recent import LastRequests
from aiaas.proxy.client.answers import answer, date_header, header_lines, position_line
from aiaas.proxy.client.connection import ClientConnection
from aiaas.proxy.client.cors import Cors, preflight_lines
from aiaas.proxy.client.identity import Networks, believed, error_path, method_not_allowed, not_found, require_method
from aiaas.proxy.client.incidents import Incidents
from aiaas.proxy.client.incoming import HttpRequest
from aiaas.proxy.client.places import Places
from aiaas.proxy.client.request_ids import RequestIds
from aiaas.proxy.client.request_target import path_of
from aiaas.proxy.request.admission import Admission, Ticket
from aiaas.proxy.request.body_budget import BodyBudget
from aiaas.proxy.request.examiner import Examiner
from aiaas.proxy.request.models import ModelLists
from aiaas.proxy.request.price import price_of
from aiaas.proxy.request.upload_admission import UploadAdmission, input_of_form
from aiaas.proxy.telemetry.log import OTHER, JsonLog
from aiaas.proxy.telemetry.metrics import Metrics
from aiaas.proxy.telemetry.record import CLIENT_LEFT, Record
from aiaas.proxy.traces import Tracing
from aiaas.proxy.upstream.backends import BackendState
from aiaas.proxy.upstream.dial import ClientTls
from aiaas.proxy.upstream.fleet import Fleet
from aiaas.proxy.upstream.forward import forward, write
from aiaas.proxy.upstream.lacking import offering
from aiaas.proxy.upstream.refusals import draining
from aiaas.proxy.upstream.token_rates import EventRates
from aiaas.proxy.usage import UsageRecorder

# Characters of an unknown path in the log.
LOGGED_PATH = 200
_PROBES = frozenset({paths.HEALTH, paths.READY})


@dataclass(frozen=True, slots=True)
class Active:
    """A Plan in force, and what was made from it: a reload replaces it as a whole."""

    plan: Plan
    admission: Admission
    uploads: UploadAdmission
    backends: Mapping[str, BackendState]
    targets: Mapping[str, Targets]  # by path
    models: ModelLists
    trusted: Networks
    cors: Cors | None


class Targets(dict[str, Sequence[tuple[RouteTarget, BackendState]]]):
    """`targets_of` by model. Filled at a model's first request: for thousands of models at once, a reload would stop
    streams for milliseconds."""

    def __init__(self, routes: Mapping[str, Route], backends: Mapping[str, BackendState]) -> None:
        self._routes = routes
        self._backends = backends

    def __missing__(self, model: str) -> Sequence[tuple[RouteTarget, BackendState]]:
        found = self[model] = targets_of(self._routes[model], self._backends)
        return found


def targets_of(route: Route, backends: Mapping[str, BackendState]) -> Sequence[tuple[RouteTarget, BackendState]]:
    """Where a route's requests can go, each target with the state of its backend."""
    return [(target, backends[target.backend.name]) for target in route.targets]


class Gateway:
    """Everything that outlives a request. Client connections call `handle`."""

    def __init__(
        self,
        plan: Plan,
        verifier: Verifier,
        store: Store,
        log: JsonLog,
        metrics: Metrics,
        usage: UsageRecorder,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._wall = wall
        self.verifier = verifier
        self.store = store
        self.log = log
        self.metrics = metrics
        self._usage = usage
        self.draining = False  # answers end their connections, /ready says no
        self.refusing = False  # and new inference requests are refused
        self._rates = EventRates()
        self._requests: dict[ClientConnection, Record] = {}
        self.examiner = Examiner(self._loop)
        self._ending = False  # the drain deadline has come
        self._quiet: asyncio.Event | None = None  # set with the last request's end, while somebody waits for that
        self._new_id = RequestIds().new
        self.recent = LastRequests()
        self.incidents = Incidents(log, metrics, self._new_id)
        self.places = Places(plan.server, self.incidents.turned_away)
        self.bodies = BodyBudget(plan.server, self.places)
        self._date = (0, b"")
        self.tls = tls = ClientTls()
        self.fleet = Fleet(log, metrics, tls)
        self.traces = Tracing(log, tls, wall)
        self.active = self._activate(plan)
        metrics.follow(plan)
        metrics.watch_door(lambda: len(self.places), lambda: self.places.held, lambda: self.places.accepted)
        metrics.watch_in_flight(lambda: len(self._requests))
        metrics.watch_queued(lambda: sum(record.phase == "queued" for record in self.live))

    # -- a request ------------------------------------------------------------------------------------------------

    async def handle(self, request: HttpRequest, client: ClientConnection) -> bool:
        """Answer one request, in this order: path, method, key, then what the path does. Returns whether its connection
        stays open."""
        path = path_of(request.raw_path) or request.raw_path
        if path in _PROBES:
            return self._health(request, client, path)
        active = self.active
        record = self._record(request, client, active, path)
        client.extra = record.own_lines
        try:
            if active.cors is not None and active.cors.is_preflight(request.method, request.headers):
                return self._preflight(request, client, active, record)
            if path in active.plan.routes:
                if request.method != "POST":
                    raise method_not_allowed(("POST",))
                return await self._inference(request, client, active, record)
            if active.plan.serves_models and paths.is_models_path(path):
                require_method(request, ("GET", "HEAD"))
                return await self._models(request, client, active, record)
            raise not_found(path, active.plan.server.path_prefix)
        except ApiError as error:
            return self._refuse(request, client, record, error)
        except Exception as error:
            error.add_note(f"request {record.request_id} at {path[:100]!a}")
            raise

    async def _inference(self, request: HttpRequest, client: ClientConnection, active: Active, record: Record) -> bool:
        """Everything that counts as an inference request: in flight, in the metrics, in the log, whatever its end.

        First its status is known, then its price, then it is told.
        """
        self._requests[client] = record
        if (traces := self.traces.plan) is not None:
            record.trace = self.traces.begin(traces, request, client.peer, active.trusted)
        ticket = None
        try:
            if self.refusing:
                raise draining()
            gate = active.uploads if record.path in paths.UPLOADS else active.admission
            ticket = await gate.admit(request, client, record, close=self._must_close(request))
            targets = active.targets[record.path][ticket.route.model]
            if len(targets) > 1:
                targets = offering(targets, record.path)
            return await forward(ticket, targets, client, self.metrics)
        except ApiError as error:
            record.status, record.error_code = error.status, error.code
            raise
        except asyncio.CancelledError:
            if not self._is_cut(client, record):
                record.ended_by = "client"
                record.status = record.status or CLIENT_LEFT
                record.error_code = record.error_code or "client_left"
                raise
            record.ended_by = "gateway"
            raise _cut(record) from None  # in no variable of this frame, to which its traceback refers
        except Exception:  # an exception of ours, on its way to `internal_error`
            record.error_code, record.ended_by = "internal_error", "gateway"
            raise
        finally:
            client.begun = record.status != 0
            if record.status == 0:  # no answer has begun; `internal_error` gives one
                record.status, record.error_code = 500, "internal_error"
            try:
                if ticket is not None:
                    self._settle(ticket)
            finally:
                self._leave(client, record)

    def _is_cut(self, client: ClientConnection, record: Record) -> bool:
        """Whether a cancelled request is one that draining ended, and not one whose client has left."""
        ended = self._ending or (self.refusing and record.phase == "queued")
        return ended and client.transport is not None

    def _settle(self, ticket: Ticket) -> None:
        """Replace the reservation by what was used, on every way out."""
        record = ticket.record
        streamed = self._rates.streamed(record, ticket.peek, ticket.route.model) if record.streamed else 0
        estimated = ticket.estimated_input if ticket.upload is None else input_of_form(ticket.upload)
        charge = price_of(record, estimated, ticket.reserved_output, streamed)
        if charge.estimated:
            record.estimated = True
            record.input_tokens, record.output_tokens = charge.input_tokens, charge.output_tokens
        used = charge.input_tokens + charge.output_tokens
        self._usage.settled(record, charge, ticket.lease.admitted_wall)
        self.store.settle(ticket.lease, used, self._loop.time(), self._wall(), ran=charge.ran)

    @property
    def in_flight(self) -> int:
        """Inference requests that are being answered."""
        return len(self._requests)

    @property
    def live(self) -> list[Record]:
        """The inference requests that are being answered, the oldest first."""
        return list(self._requests.values())

    def _leave(self, client: ClientConnection, record: Record) -> None:
        del self._requests[client]
        if self._quiet is not None and not self._requests:
            self._quiet.set()
        if record.share is not None:
            self.bodies.leave(record)
        duration = time.monotonic() - record.started
        self.metrics.finished(record, duration)
        self.log.request(record, duration)
        if record.trace is not None:
            self.traces.ended(record, record.trace, duration)
        self.recent.end(record, duration)

    # -- answers of our own ---------------------------------------------------------------------------------------

    def _health(self, request: HttpRequest, client: ClientConnection, path: str) -> bool:
        cors = self.active.cors
        extra = cors.lines(request.headers.get("origin")) if cors is not None else b""
        if cors is not None and cors.is_preflight(request.method, request.headers):
            return self._answer(request, client, 204, b"", extra + _preflight_lines(request, ("GET", "HEAD")))
        if request.method not in ("GET", "HEAD"):
            error = method_not_allowed(("GET", "HEAD"))
            extra += header_lines(error.headers)
            return self._answer(request, client, error.status, error_body(error, path), extra)
        if path == paths.READY and self.draining:
            return self._answer(request, client, 503, b'{"status":"draining"}\n', extra)
        return self._answer(request, client, 200, b'{"status":"ok"}\n', extra)

    def _preflight(self, request: HttpRequest, client: ClientConnection, active: Active, record: Record) -> bool:
        """A browser asks whether a page may send its request; it has no key yet.

        It may, at any path: only the answer to the request itself tells the page that nothing is there.
        """
        if record.path in active.plan.routes:
            methods: tuple[str, ...] = ("POST",)
        else:
            methods = ("GET", "HEAD") if paths.is_models_path(record.path) else ("GET", "HEAD", "POST")
        self._log_other(record, 204, None)
        return self._answer(request, client, 204, b"", client.extra + _preflight_lines(request, methods))

    async def _models(self, request: HttpRequest, client: ClientConnection, active: Active, record: Record) -> bool:
        admission = active.admission
        principal = admission.known(request, client, record) or await admission.verified(request, client, record)
        listed = {name: [e.listed for e in state.endpoints] for name, state in active.backends.items()}
        body = active.models.body(principal, record.path, listed)
        self._log_other(record, 200, None)
        return self._answer(request, client, 200, body, client.extra)

    def _refuse(self, request: HttpRequest, client: ClientConnection, record: Record, error: ApiError) -> bool:
        if isinstance(error, LimitError):
            self.metrics.refused(error.code)
        if record.status == 0:  # refused before it counted as an inference request
            self._log_other(record, error.status, error.code)
        position = position_line(record.queue_position)
        extra = header_lines(error.headers) + record.limit_lines + client.extra + position
        self.recent.refuse(record, error)
        body = error_body(error, error_path(request, record.path))
        return self._answer(request, client, error.status, body, extra)

    def _answer(self, request: HttpRequest, client: ClientConnection, status: int, body: bytes, extra: bytes) -> bool:
        """Give an answer of our own. `extra` is complete header lines."""
        # A body that was not read: what follows on this connection would be taken for a request.
        unread = not request.content.is_eof() or client.body_broken
        close = unread or self._must_close(request)
        head_only = request.method == "HEAD"
        extra = self._date_line() + extra
        write(client, answer(status, b"application/json", body, extra=extra, close=close, head_only=head_only))
        if unread:
            client.linger()
        else:
            request.content.read_nowait(-1)  # else a body that nobody wanted stays until the next request comes
        return not close

    def _log_other(self, record: Record, status: int, code: str | None) -> None:
        """Count and log any other request than one for inference."""
        record.status, record.error_code = status, code
        record.path = record.path[:LOGGED_PATH]
        self.metrics.responded(status, code)
        self.log.request(record, time.monotonic() - record.started, OTHER)

    def _must_close(self, request: HttpRequest) -> bool:
        """Whether the connection ends with this answer: asked for, HTTP/1.0, draining, or something other than HTTP
        was to follow (an upgrade or a tunnel, neither of which is ever taken)."""
        if request.body:  # a plain request
            return self.draining
        if not request.keep_alive or self.draining or request.version < HttpVersion11:
            return True
        return "upgrade" in request.headers or request.method == "CONNECT"

    def _date_line(self) -> bytes:
        second = int(self._wall())
        if self._date[0] != second:
            self._date = (second, date_header(second))
        return self._date[1]

    def _record(self, request: HttpRequest, client: ClientConnection, active: Active, path: str) -> Record:
        address, request_id = client.peer, None
        if active.trusted:
            address, request_id = believed(request, address, active.trusted)
        request_id = request_id or self._new_id()
        own_lines = f"x-request-id: {request_id}\r\n".encode()
        if active.cors is not None:
            own_lines += active.cors.lines(request.headers.get("origin"))
        return Record(request_id, path, time.monotonic(), address, own_lines)

    # -- life -----------------------------------------------------------------------------------------------------

    def replace_plan(self, plan: Plan) -> None:
        """Put a new Plan in force; requests in flight finish under the one that they began with."""
        self.places.follow(plan.server)
        self.bodies.follow(plan.server)
        self.active = self._activate(plan)
        self.metrics.follow(plan)

    def _activate(self, plan: Plan) -> Active:
        self.fleet.kept.limit = plan.server.resume_memory
        backends = self.fleet.follow(plan.backends)
        origins = plan.server.cors_allow_origins
        cors = self.incidents.cors = None if origins is None else Cors(origins)
        self.traces.follow(plan)
        admission = Admission(
            plan, self.verifier, self.store, self.places, self.bodies, self.examiner, self._loop, self._wall
        )
        return Active(
            plan=plan,
            admission=admission,
            uploads=UploadAdmission(admission, plan, self.store, self.bodies, self._loop, self._wall),
            backends=backends,
            targets={path: Targets(routes, backends) for path, routes in plan.routes.items()},
            models=ModelLists(plan.models),
            cors=cors,
            trusted=tuple(ip_network(cidr) for cidr in plan.server.trusted_proxies),
        )

    async def quiet(self) -> None:
        """Wait until no inference request is being answered."""
        while self._requests:
            self._quiet = self._quiet or asyncio.Event()
            self._quiet.clear()
            await self._quiet.wait()

    def refuse(self) -> None:
        """From now on new inference requests are refused, and so are those that no backend has seen yet."""
        self.refusing = True
        for client, record in list(self._requests.items()):
            if record.phase == "queued":
                client.cancel()

    def end_requests(self) -> None:
        """The drain deadline: an answer that has begun ends with an error event or breaks off, any other is a 503."""
        self._ending = True
        for client, record in list(self._requests.items()):
            if record.phase != "streaming":
                client.cancel()
                continue
            record.error_code = record.error_code or "draining"
            if client.listener is not None:
                client.listener.end_with_error(draining())


def _cut(record: Record) -> ApiError:
    """The error of a request that draining ended."""
    cut = draining()
    record.status, record.error_code = cut.status, cut.code
    return cut


def _preflight_lines(request: HttpRequest, methods: tuple[str, ...]) -> bytes:
    return preflight_lines(methods, request.headers.get("access-control-request-headers", ""))
