"""One attempt of a request whose form is still arriving: pass the form on, and take the answer.

The held beginning goes out with the head. A task then reads from the client and writes to the backend, one read at a
time: the next one is read when the backend has taken the last, so that both sides wait for each other in the kernel's
buffers. The relay takes the answer meanwhile; an answer that comes before the form's end ends the sending.

The form goes on with the client's Content-Length where that is known to hold: nothing is to be added at the form's end.
Else it goes in chunks, which every HTTP/1.1 server takes.

An error in the form ends the request to the backend before the form's end. The engine reads a form when it is whole, so
it has done nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec

from aiaas.errors import ApiError
from aiaas.openai.multipart import Piece
from aiaas.plan.model import RouteTarget
from aiaas.proxy.client.answers import HeaderList
from aiaas.proxy.client.connection import ClientConnection
from aiaas.proxy.request.admission import Ticket
from aiaas.proxy.request.passed import header_values
from aiaas.proxy.request.upload import Upload
from aiaas.proxy.telemetry.histogram import Tallies
from aiaas.proxy.upstream.attempt import Outcome
from aiaas.proxy.upstream.connection import Failure, FailureKind, UpstreamConnection
from aiaas.proxy.upstream.endpoint import EndpointState
from aiaas.proxy.upstream.relay import Relay

_LAST_CHUNK: Final = b"0\r\n\r\n"


class FormRelay(Relay):
    """A relay whose request is still being sent.

    asked  the gateway asked for the usage of the stream, and the client did not
    """

    upload: Upload
    asked = False

    def head(self, status: int, headers: HeaderList) -> None:
        """As in Sink. Where the form has not ended, its rest is not read, and the connection ends with the answer."""
        ticket = self._ticket
        self._ticket = msgspec.structs.replace(ticket, strip_usage=self.asked, close=ticket.closes)
        super().head(status, headers)

    def sending(self) -> None:
        """The backend takes the form, so it is not silent."""
        self._last_read = self._loop.time()

    def form_failed(self, failure: Failure) -> None:
        """End the request before the form's end."""
        self._upstream.abort(self)
        self.failed(failure)

    def _tick(self) -> None:
        if self.upload.waits:  # for the client, which has bounds of its own
            self.sending()
        super()._tick()


async def send_form(
    ticket: Ticket,
    upload: Upload,
    target: RouteTarget,
    endpoint: EndpointState,
    client: ClientConnection,
    connection: UpstreamConnection,
    gaps: Tallies,
) -> Outcome:
    """Send the request of `ticket`; return how the attempt ended. Raises ApiError where the form was at fault."""
    relay = FormRelay(client, connection, ticket, target.backend, gaps, endpoint.pool.fingerprints)
    relay.upload = upload
    sender = _Sender(ticket, upload, target, endpoint, connection, relay)
    endpoint.streams.add(relay)
    task: asyncio.Task[None] | None = None
    try:
        relay.begin(sender.first())
        if not upload.ended:
            connection.unsent = True
            task = asyncio.get_running_loop().create_task(sender.run(), name="form")
            task.add_done_callback(sender.ended)
        outcome = await relay
        if sender.error is not None and not relay.committed:
            raise sender.take_error()
        return outcome
    finally:
        if task is not None:
            task.cancel()
            task = None  # it keeps the error, whose traceback refers to this frame
        endpoint.streams.discard(relay)
        relay.abort()


class _Sender:
    """Writes one form.

    error  why the form could not be sent to its end: an ApiError where the client was at fault
    """

    def __init__(
        self,
        ticket: Ticket,
        upload: Upload,
        target: RouteTarget,
        endpoint: EndpointState,
        connection: UpstreamConnection,
        relay: FormRelay,
    ) -> None:
        self._ticket = ticket
        self._upload = upload
        self._target = target
        self._endpoint = endpoint
        self._connection = connection
        self._relay = relay
        self._chunked = False
        self.error: BaseException | None = None

    def first(self) -> bytes:
        """The head of the request, and the held beginning of its form."""
        ticket, upload = self._ticket, self._upload
        pieces = upload.held()
        length = None
        if not upload.ended:
            length = upload.length_beyond(pieces, usage=self._target.backend.ask_for_usage)
            self._chunked = length is None
        body = self._rewritten(pieces).removeprefix(b"\r\n")  # there if the form's first field was left out
        named = self._target.backend.forward_headers
        return b"%b%b%b%b\r\n\r\n%b" % (
            self._endpoint.plan.heads[ticket.record.path],
            ticket.passed,
            header_values(ticket.headers, named),
            b"transfer-encoding: chunked" if self._chunked else b"content-length: %d" % (len(body) + (length or 0)),
            self._framed(body),
        )

    async def run(self) -> None:
        """Send the rest of the form as it arrives. Raises ApiError where the form is at fault."""
        upload, connection, relay = self._upload, self._connection, self._relay
        while not upload.ended:
            data = self._framed(self._rewritten(await upload.read()))
            connection.unsent = not upload.ended
            relay.sending()
            await connection.send(data, relay)
            relay.sending()

    def ended(self, task: asyncio.Task[None]) -> None:
        """The task of `run` has ended."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        self.error = error
        if isinstance(error, ApiError) and self._relay.committed:
            self._ticket.record.error_code = error.code
        self._relay.form_failed(Failure(FailureKind.RESET, "the client's form was not sent to its end"))

    def take_error(self) -> BaseException:
        """The error, of which nothing remains here: its traceback refers to frames that refer to this object."""
        error, self.error = self.error, None
        assert error is not None
        return error

    def _rewritten(self, pieces: Sequence[Piece]) -> bytes:
        """The bytes of `pieces`, with what is added at the form's end."""
        upload = self._upload
        ask = self._target.backend.ask_for_usage and (self._chunked or not upload.spent)
        if upload.ended:
            self._relay.asked = ask and upload.form.asks_for_usage
        return upload.rewritten(pieces, self._target, self._endpoint.listed, usage=self._relay.asked)

    def _framed(self, data: bytes) -> bytes:
        if not self._chunked:
            return data
        chunk = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        return chunk + _LAST_CHUNK if self._upload.ended else chunk
