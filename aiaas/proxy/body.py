"""The request's body: read it whole within its bounds, and refuse or bound what would hurt others.

A body is held until its request has ended, since it may have to be sent again. Small ones cost less than the connection
that they come by. Large ones together have a budget, `BodyBudget`: whoever finds it spent is refused before a byte is
read, so that uploads never grow until the pod is killed (30 of 10 MiB at once were 370 MB once; a pod has 512 MiB).
One key may take half of it: an upload may take its time, and eight that drip a byte now and then would else shut out
everybody else for hours.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp.web_request import BaseRequest

from aiaas.config.chain import body_budget
from aiaas.errors import ClientError, UpstreamError
from aiaas.openai import paths
from aiaas.openai.peek import Peek
from aiaas.openai.splice import set_fields
from aiaas.plan.model import RequestPlan, Route, ServerPlan
from aiaas.proxy.connection import Connection
from aiaas.proxy.record import Record

# Up to this a body is exempt: aiohttp itself buffers as much for each connection, and nearly all prompts are smaller.
SMALL_BODY: Final = 64 * 1024
# One key's part of the budget: of the default, four uploads of the largest size at once.
SHARE_OF_ONE: Final = 2
# Seconds after which a client that found the budget spent may come back: an upload takes about as long.
BUDGET_RETRY_AFTER: Final = 2


class BodyBudget:
    """Bytes that the large bodies of all requests may take together.

    most  the bound; a reload may change it, and what is held then stays. One key may take a SHARE_OF_ONE-th part, and
          without keys one address
    held  what is taken now
    """

    def __init__(self, max_body_size: int) -> None:
        self.held = 0
        self._held_by: dict[tuple[str | None, str | None], int] = {}
        self.resize(max_body_size)

    def resize(self, max_body_size: int) -> None:
        """Follow the config's `max_body_size`."""
        self.most = body_budget(max_body_size)

    def take(self, record: Record, size: int) -> None:
        """Let `record`'s request hold `size` bytes in all. Raises UpstreamError 503 `overloaded`; then nothing changes.

        The caller of this need not give anything back; who ends the request does.
        """
        more = size - record.body_held
        owner = _owner(record)
        by_owner = self._held_by.get(owner, 0) + more
        if by_owner > self.most // SHARE_OF_ONE:
            raise _overloaded("You are sending too many large requests at once; try again shortly.")
        if self.held + more > self.most:
            raise _overloaded("Too many large requests are being sent at once; try again shortly.")
        self.held += more
        self._held_by[owner] = by_owner
        record.body_held = size

    def give_back(self, record: Record) -> None:
        """The request has ended."""
        owner = _owner(record)
        left = self._held_by.get(owner, 0) - record.body_held
        if left > 0:
            self._held_by[owner] = left
        else:
            self._held_by.pop(owner, None)
        self.held -= record.body_held
        record.body_held = 0


def _owner(record: Record) -> tuple[str | None, str | None]:
    """Whose the request is: the key, and without keys the address, which is the name then."""
    return record.key_id, record.user


def _overloaded(message: str) -> UpstreamError:
    return UpstreamError(503, "overloaded", message, headers=(("retry-after", str(BUDGET_RETRY_AFTER)),))


async def read_body(
    request: BaseRequest, client: Connection, bounds: ServerPlan, budget: BodyBudget, record: Record
) -> bytes:
    """The whole body. Nothing is ever inflated.

    Raises ClientError 400, 408, 413, 415 or 417, or UpstreamError 503 where large bodies have no room left.
    """
    headers = request.headers
    most = bounds.max_body_size
    length = request.content_length
    if length is not None and length > most:
        raise too_large(most)
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ClientError(415, "unsupported_media_type", "Send JSON, with `Content-Type: application/json`.")
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise ClientError(415, "unsupported_media_type", "Send the body uncompressed, without `Content-Encoding`.")
    if length is not None and length > SMALL_BODY:
        budget.take(record, length)
    expect = headers.get("expect")
    if expect is not None and request.version >= (1, 1):  # from HTTP/1.0 it is to be ignored (RFC 9110 section 10.1.1)
        if expect.lower() != "100-continue":
            raise ClientError(417, "invalid_request", "Only `Expect: 100-continue` is understood.")
        if client.transport is not None and not request.content.is_eof():
            client.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    content = request.content
    if content.is_eof():
        body = content.read_nowait(-1)
        if len(body) > SMALL_BODY:  # chunked, and it came in one read
            budget.take(record, len(body))
    else:
        body = b"".join(await _read_parts(request, most, bounds.body_timeout, budget, record))
    if len(body) > most:
        raise too_large(most)
    if client.body_broken:
        raise ClientError(400, "invalid_request", "The body's chunks are not valid HTTP/1.1.")
    return body


async def _read_parts(
    request: BaseRequest, most: int, silence: float, budget: BodyBudget, record: Record
) -> list[bytes]:
    parts: list[bytes] = []
    size = 0
    while True:
        try:
            async with asyncio.timeout(silence):
                part = await request.content.readany()
        except TimeoutError:
            raise ClientError(
                408, "request_timeout", f"The request's body stopped for more than {silence:g} s."
            ) from None
        if not part:
            return parts
        size += len(part)
        if size > most:
            raise too_large(most)
        if size > SMALL_BODY and size > record.body_held:  # its length was not announced
            budget.take(record, size)
        parts.append(part)


def too_large(most: int) -> ClientError:
    """413 with the bound."""
    return ClientError(413, "request_too_large", f"The request's body is larger than {most} bytes.")


def refuse_harm(peeked: Peek, rules: RequestPlan, path: str) -> None:
    """What vLLM would take, and what would hurt others. Raises ClientError 400.

    A batch of inputs to embed is not bounded by `max_choices`: it generates nothing, and the SDKs send hundreds.
    """
    if peeked.choices > rules.max_choices:
        raise ClientError(400, "invalid_request", f"`n` is at most {rules.max_choices} here.", param="n")
    if peeked.prompts * peeked.choices > rules.max_choices and path in paths.OUTPUT:
        raise ClientError(
            400,
            "invalid_request",
            f"One request has at most {rules.max_choices} answers here, which is `n` times the number of prompts.",
            param="prompt",
        )
    if peeked.background:
        raise ClientError(
            400,
            "invalid_request",
            "`background` is not offered: such a request outlives its limits.",
            param="background",
        )
    if peeked.media_url and rules.media_urls == "deny":
        raise ClientError(
            400,
            "invalid_request",
            "Media must come inside the request, as a `data:` URL; other URLs are not fetched here.",
            param="input" if path == paths.RESPONSES else "messages",
        )


def bound_output(body: bytes, peeked: Peek, route: Route) -> tuple[bytes, int | None]:
    """The body with its output bounded as the model's entry says, and that bound in LLM tokens for one choice.

    Raises ClientError 400 where the request asks for more and the entry says `reject`.
    """
    if route.path not in paths.OUTPUT:
        return body, None
    most = route.max_output_tokens
    asked = peeked.max_output
    if most is None:
        return body, asked if asked is not None else route.default_output_tokens
    field = output_field(peeked, route.path)
    if asked is None:
        return set_fields(body, {field: b"%d" % most}), most
    if asked <= most:
        return body, asked
    if route.on_over_limit == "reject":
        raise ClientError(400, "invalid_request", f"`{field}` is at most {most} for this model.", param=field)
    return set_fields(body, {field: b"%d" % most}), most


def output_field(peeked: Peek, path: str) -> str:
    """The field that bounds the output of this request, or would if it were there."""
    return peeked.max_output_field or paths.OUTPUT_FIELD[path]
