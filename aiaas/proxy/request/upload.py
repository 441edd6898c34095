"""A form with a file, passed on while it arrives: one client's upload, read piece by piece.

The memory that it takes does not depend on the file: bytes are read from the client only as fast as the backend takes
them (`upstream/send_form.py`), so between the two there is no more than one read.

    held    the beginning of the form: all of it where it has HELD_MOST bytes at the most, else up to the file's first
            bytes, if the model is known then. It is sent once there is a slot at a backend
    spent   more has been read, and is not held: the form cannot be sent a second time

`model` may stand behind the file. A form of up to HELD_MOST bytes is then held until `model` comes. A larger one goes
on without it only where every model that the key may use for this path is at one and the same backend; the model is
looked up when it comes, and what is not allowed ends the request before the end of the form is sent: vLLM reads a form
when it is whole, so it has done nothing until then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from aiaas.errors import ClientError
from aiaas.openai.audio_form import AudioForm
from aiaas.openai.multipart import Field, FormScanner, Last, Piece
from aiaas.plan.model import Route, RouteTarget, ServerPlan
from aiaas.proxy.client.connection import ClientConnection
from aiaas.proxy.client.incoming import HttpRequest
from aiaas.proxy.request.body import broken, too_large, too_slow
from aiaas.proxy.request.body_budget import BodyBudget
from aiaas.proxy.request.served_models import Listed, is_its_own
from aiaas.proxy.telemetry.record import Record

# Bytes of a form that are held before it is sent. Most speech of a few seconds is smaller, so that its request can be
# retried like any other.
HELD_MOST: Final = 1024 * 1024


class Upload:
    """One request's form, read from its client.

    form    what it asks for, so far
    route   of its model; None until that is known
    size    bytes that have come
    waited  seconds of waiting for the client
    waits   whether it waits for the client now
    ended   the client has sent all of it
    spent   see above
    """

    __slots__ = (
        "_boundary", "_bounds", "_budget", "_client", "_held", "_record", "_request", "_route_of", "_scanner",
        "_size_held",
        "ended", "form", "route", "size", "spent", "waited", "waits",
    )  # fmt: skip

    def __init__(
        self,
        request: HttpRequest,
        client: ClientConnection,
        boundary: bytes,
        form: AudioForm,
        bounds: ServerPlan,
        budget: BodyBudget,
        record: Record,
        route_of: Callable[[str], Route],
    ) -> None:
        self._request = request
        self._client = client
        self._boundary = boundary
        self._bounds = bounds
        self._budget = budget
        self._record = record
        self._route_of = route_of
        self._scanner = FormScanner(boundary)
        self._held: list[Piece] = []
        self._size_held = 0
        self.form = form
        self.route: Route | None = None
        self.size = 0
        self.waited = 0.0
        self.waits = False
        self.ended = False
        self.spent = False

    @property
    def announced(self) -> int | None:
        """The length of the form that the client announced, if it did."""
        return self._request.content_length

    async def open(self) -> None:
        """Read the beginning: all of a small form, else until the model is known and the file has begun, or HELD_MOST
        bytes are held. Raises as `read`."""
        small = self.announced is not None and self.announced <= HELD_MOST
        while not self.ended and (small or self._needs_more()):
            pieces, size = await self._read()
            self._size_held += size
            self._budget.take(self._record, self._size_held)
            self._held += pieces
            if self._size_held > HELD_MOST:
                return

    def _needs_more(self) -> bool:
        """Whether the form cannot go on yet, or its end is there already."""
        return self.route is None or not self.form.has_file or self._request.content.is_eof()

    def held(self) -> Sequence[Piece]:
        """The pieces that were held; with them a request begins, and may begin again until it is spent."""
        return self._held

    async def read(self) -> list[Piece]:
        """The next pieces, as soon as there are bytes; the last of them is a Last.

        Raises ClientError 400, 404, 408 or 413; none of the pieces may go on then.
        """
        if not self.spent:
            self.spent = True
            self._held = []
            self._budget.give_back(self._record)
        pieces, _ = await self._read()
        return pieces

    async def _read(self) -> tuple[list[Piece], int]:
        data = await self._more()
        pieces: list[Piece] = self._scanner.feed(data) if data else [self._scanner.close()]
        for piece in pieces:
            self.form.take(piece)
        late = False
        if self.route is None and self.form.model is not None:
            self.route = self._route_of(self.form.model)
            late = self.spent  # a bound that stood before the model has gone on as it was
        if self.route is not None and (late or self.route.on_over_limit == "reject"):
            self.form.refuse_output_above(self.route.max_output_tokens)
        self._record.stream = self.form.stream
        if not data:
            if self.route is None:
                raise no_model()
            self.ended = True
            self._budget.stop_reading(self._record)
        return pieces, len(data)

    async def _more(self) -> bytes:
        """One read; b"" at the end of the body."""
        bounds, content = self._bounds, self._request.content
        silence, rate = bounds.body_timeout, bounds.min_body_rate
        if self.size < rate * (self.waited - silence):
            raise too_slow(f"arrived at less than {rate} bytes a second.")
        left = bounds.body_total_timeout - self.waited
        began = time.monotonic()
        self.waits = True
        try:
            async with asyncio.timeout(min(silence, left)):
                data = await content.readany()
        except TimeoutError:
            if left < silence:
                raise too_slow(f"did not arrive within {bounds.body_total_timeout:g} s.") from None
            raise too_slow(f"stopped for more than {silence:g} s.") from None
        finally:
            self.waits = False
            self.waited += time.monotonic() - began
        if not data and self._client.body_broken:
            raise broken()
        self.size += len(data)
        self._record.request_bytes = self.size
        if self.size > bounds.max_upload_size:
            raise too_large(bounds.max_upload_size)
        return data

    def length_beyond(self, held: Sequence[Piece], *, usage: bool) -> int | None:
        """How many bytes the form has behind the pieces `held`, None unless it is sure that they go on as they come.

        usage  the gateway asks for the usage of a stream
        """
        if self.announced is None or self.route is None or self.route.max_output_tokens is not None:
            return None
        if self.form.may_be_stripped or (usage and self.form.asks_for_usage):
            return None
        return self.announced - sum(len(piece.raw) for piece in held)

    def rewritten(self, pieces: Sequence[Piece], target: RouteTarget, listed: Listed, *, usage: bool) -> bytes:
        """The bytes of `pieces` for the backend of `target`.

        usage  at the form's end, ask for the usage of a stream
        """
        model, most = None, None
        if self.route is not None:
            most = self.route.max_output_tokens
            model = self._name_at(self.route, target, listed)
        parts: list[bytes] = []
        for piece in pieces:
            if isinstance(piece, Field):
                parts.append(self.form.rewritten(piece, model, most))
            elif isinstance(piece, Last):
                parts += (self.form.added(self._boundary, most, usage=usage), piece.raw)
            else:
                parts.append(piece.raw)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _name_at(self, route: Route, target: RouteTarget, listed: Listed) -> bytes | None:
        """The name of the route's model at the backend of `target`, None where it is the client's own."""
        for each in route.targets:
            if each.backend.name == target.backend.name:
                own = each.rewrite is None or is_its_own(self.form.model or "", each.served_name, listed)
                return None if own else each.served_name.encode()
        raise model_too_late()


def model_too_late() -> ClientError:
    """400 for a model that is needed before the file."""
    message = (
        f"Send `model` before `file`: this form is larger than {HELD_MOST} bytes, and several servers could be meant."
    )
    return ClientError(400, "invalid_request", message, param="model")


def no_model() -> ClientError:
    """400 for a request without a model."""
    return ClientError(400, "invalid_request", "`model` is missing; GET /v1/models lists the names.", param="model")
