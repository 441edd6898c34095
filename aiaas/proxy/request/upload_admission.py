"""Admit a request whose body is a form with a file: as `admission.py`, but before the file has come.

The order: key, size and media type, the form's parts as far as they are held, model and scope, all limits at once.
Later parts are checked as they pass (`upload.py`).

The reservation is made from the length of the form, since nobody knows how long its sound lasts. It never exceeds the
key's bucket: a guess must not refuse a request for good.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from aiohttp.http import HttpVersion11

from aiaas.errors import ApiError, ClientError
from aiaas.keys.model import Principal
from aiaas.limits.headers import limit_lines, refusal
from aiaas.limits.model import Limits, Store
from aiaas.openai.audio_form import AudioForm
from aiaas.openai.multipart import form_boundary
from aiaas.openai.peek import Peek
from aiaas.plan.model import Plan, Route
from aiaas.proxy.client.connection import ClientConnection
from aiaas.proxy.client.handler import in_task
from aiaas.proxy.client.incoming import HttpRequest
from aiaas.proxy.request.admission import Admission, Ticket, deadline_of, store_key_of
from aiaas.proxy.request.body import expects_continue, too_large
from aiaas.proxy.request.body_budget import BodyBudget
from aiaas.proxy.request.classes import CLASS_LINES, class_of_request
from aiaas.proxy.request.passed import passed_headers
from aiaas.proxy.request.price import tokens_of_upload
from aiaas.proxy.request.upload import HELD_MOST, Upload, model_too_late
from aiaas.proxy.telemetry.record import Record

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class UploadAdmission:
    """The gate of one Plan for forms; its keys and limits are those of `admission`."""

    def __init__(
        self,
        admission: Admission,
        plan: Plan,
        store: Store,
        bodies: BodyBudget,
        loop: asyncio.AbstractEventLoop,
        wall: Callable[[], float],
    ) -> None:
        self._admission = admission
        self._plan = plan
        self._store = store
        self._bodies = bodies
        self._loop = loop
        self._wall = wall

    async def admit(self, request: HttpRequest, client: ClientConnection, record: Record, *, close: bool) -> Ticket:
        """Admit one request, and charge it; the rest of its form is still to come.

        Raises ApiError; then nothing is charged.
        """
        gate = self._admission
        principal = gate.known(request, client, record) or await gate.verified(request, client, record)
        limits = gate.limits_of(principal, record.path)
        try:
            if limits.concurrent is not None:
                self._bodies.begin(record, limits.concurrent)
            upload = self._begin(request, client, record, principal)
            await in_task(client.handler)
            await upload.open()
            record.body_seconds = upload.waited
            priority_class = class_of_request(principal.priority_class, None)
            record.priority_class = priority_class
            route = upload.route or self._some_route(record.path, principal)
            record.model = route.model
        except ApiError:
            record.limit_lines = await gate.look(principal, limits, record.key_user)
            raise
        reserved = _reservation(upload, limits)
        now = self._loop.time()
        key = store_key_of(principal)
        result = await self._store.admit(key, limits, reserved, now, self._wall(), record.key_user)
        if result.lease is None:
            raise refusal(result, None)
        record.limit_lines = limit_lines(result)
        peeked = Peek(route.model, upload.form.stream, False, False, 1, 1, None, None, False, None)
        return Ticket(
            record, principal, route, peeked, request.headers, record.request_id.encode(), b"", False,
            passed_headers(request.headers, record), reserved, 0, result.lease,
            b"%b%b%b" % (record.own_lines, record.limit_lines, CLASS_LINES[priority_class]),
            close, request.version >= HttpVersion11, self._plan.server.heartbeat,
            deadline_of(record, route), priority_class, None, upload,
        )  # fmt: skip

    def _begin(self, request: HttpRequest, client: ClientConnection, record: Record, principal: Principal) -> Upload:
        """Let the client send its form. Raises ApiError if it may not."""
        most = self._plan.server.max_upload_size
        if (request.content_length or 0) > most:
            raise too_large(most)
        boundary = form_boundary(request.headers.get("content-type", ""))
        if boundary is None:
            message = "Send a form, with `Content-Type: multipart/form-data`."
            raise ClientError(415, "unsupported_media_type", message)
        expects = expects_continue(request)
        self._bodies.start_reading(record, 0)
        if expects and client.transport is not None and not request.content.is_eof():
            client.transport.write(_CONTINUE)
        gate, path = self._admission, record.path
        form = AudioForm(path, gate.guard_of(principal), self._plan.request.max_choices)

        def route_of(model: str) -> Route:
            route = gate.route_of(path, model, principal)
            record.model = route.model
            return route

        return Upload(request, client, boundary, form, self._plan.server, self._bodies, record, route_of)

    def _some_route(self, path: str, principal: Principal) -> Route:
        """The route of any model that this key may use, if all of them are at one backend. Raises ClientError 400."""
        routes: Mapping[str, Route] = self._plan.routes[path]
        some: Route | None = None
        names: set[str] = set()
        for route in routes.values():
            if principal.models is None or route.model in principal.models:
                some = route
                names.update(target.backend.name for target in route.targets)
                if len(names) > 1:
                    break
        if some is None or len(names) != 1:
            raise model_too_late()
        return some


def input_of_form(upload: Upload) -> int:
    """The input tokens of a form that ends without usage: those of the bytes that came."""
    return tokens_of_upload(upload.size) if upload.ended else 0  # no engine reads a part of a form


def _reservation(upload: Upload, limits: Limits) -> int:
    """LLM tokens to reserve for a form, of which perhaps only a part has come."""
    size = upload.size if upload.ended else upload.announced or HELD_MOST
    tokens = tokens_of_upload(size)
    buckets = (limits.tokens, None if limits.user is None else limits.user.tokens)
    return min((tokens, *(bucket.burst for bucket in buckets if bucket is not None)))
