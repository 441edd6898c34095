"""The request's body: read it whole within its bounds, and refuse or bound requests that would hurt other clients.

A body is held until its request has ended, since it may have to be sent again. `body_budget.py` bounds the memory of
all bodies together and the uploads of one key, so that uploads cannot fill the pod's memory (30 of 10 MiB at once took
370 MB; a pod has 512 MiB). A body that comes too slowly is refused: by its silences, its rate and its whole time.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from aiaas.errors import ClientError
from aiaas.openai import paths
from aiaas.openai.peek import Peek
from aiaas.openai.splice import set_fields
from aiaas.plan.model import RequestPlan, Route, ServerPlan
from aiaas.proxy.client.connection import ClientConnection
from aiaas.proxy.client.handler import in_task
from aiaas.proxy.client.incoming import HttpRequest
from aiaas.proxy.request.body_budget import SMALL_BODY, BodyBudget
from aiaas.proxy.telemetry.record import Record

_JSON: Final = "application/json"


def whole_body(
    request: HttpRequest, client: ClientConnection, bounds: ServerPlan, budget: BodyBudget, record: Record
) -> bytes:
    """The body of a request that has arrived with it. Raises as `arriving_body`."""
    body = request.body or request.content.read_nowait(-1)
    if len(body) > bounds.max_body_size:
        raise too_large(bounds.max_body_size)
    if not request.body:  # else it is plain: JSON, not compressed, and nothing is expected
        _refuse_other_forms(request)
    if len(body) > SMALL_BODY:
        budget.take(record, len(body))
    if not request.body and client.body_broken:
        raise broken()
    return body


async def arriving_body(
    request: HttpRequest, client: ClientConnection, bounds: ServerPlan, budget: BodyBudget, record: Record
) -> bytes:
    """The whole body, of which a part is still to come. Nothing is ever inflated.

    Raises ClientError 400, 408, 413, 415 or 417; LimitError 429 or UpstreamError 503 if it may not be read now.
    """
    length = request.content_length or 0
    if length > bounds.max_body_size:
        raise too_large(bounds.max_body_size)
    expects = _refuse_other_forms(request)
    budget.start_reading(record, length)
    if expects and client.transport is not None:
        client.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    await in_task(client.handler)
    began = time.monotonic()
    body = b"".join(await _read_parts(request, bounds, budget, record))
    record.body_seconds = time.monotonic() - began
    budget.stop_reading(record)
    if client.body_broken:
        raise broken()
    return body


def _refuse_other_forms(request: HttpRequest) -> bool:
    """Raises ClientError 415 or 417 unless the body is uncompressed JSON. Returns whether its client waits for
    `100 Continue`."""
    media_type = request.headers.get("content-type", "")
    if media_type != _JSON and media_type.partition(";")[0].strip().lower() != _JSON:
        raise ClientError(415, "unsupported_media_type", "Send JSON, with `Content-Type: application/json`.")
    return expects_continue(request)


def expects_continue(request: HttpRequest) -> bool:
    """Whether the client waits for `100 Continue`. Raises ClientError 415 for a compressed body, 417 for another
    expectation."""
    headers = request.headers
    coding = headers.get("content-encoding")
    if coding is not None and coding.strip().lower() != "identity":
        raise ClientError(415, "unsupported_media_type", "Send the body uncompressed, without `Content-Encoding`.")
    expect = headers.get("expect")
    if expect is None or request.version < (1, 1):  # HTTP/1.0: to be ignored (RFC 9110 section 10.1.1)
        return False
    if expect.lower() != "100-continue":
        raise ClientError(417, "invalid_request", "The only supported `Expect` is `100-continue`.")
    return True


def broken() -> ClientError:
    """400 for chunks that cannot be read."""
    return ClientError(400, "invalid_request", "The body's chunks are not valid HTTP/1.1.")


async def _read_parts(request: HttpRequest, bounds: ServerPlan, budget: BodyBudget, record: Record) -> list[bytes]:
    parts: list[bytes] = []
    size = 0
    clock = asyncio.get_running_loop().time
    began = clock()
    silence, rate, most = bounds.body_timeout, bounds.min_body_rate, bounds.max_body_size
    while True:
        taken = clock() - began
        if size < rate * (taken - silence):
            raise too_slow(f"arrived at less than {rate} bytes a second.")
        left = bounds.body_total_timeout - taken
        try:
            async with asyncio.timeout(min(silence, left)):
                part = await request.content.readany()
        except TimeoutError:
            if left < silence:
                raise too_slow(f"did not arrive within {bounds.body_total_timeout:g} s.") from None
            raise too_slow(f"stopped for more than {silence:g} s.") from None
        if not part:
            return parts
        size += len(part)
        if size > most:
            raise too_large(most)
        budget.take(record, size)
        parts.append(part)


def too_slow(how: str) -> ClientError:
    """408: `how` continues "The request's body"."""
    return ClientError(408, "request_timeout", f"The request's body {how}")


def too_large(most: int) -> ClientError:
    """413 with the bound."""
    return ClientError(413, "request_too_large", f"The request's body is larger than {most} bytes.")


def refuse_harm(peeked: Peek, rules: RequestPlan, path: str) -> None:
    """Refuse requests that vLLM accepts and that would hurt other clients. Raises ClientError 400.

    `max_choices` does not bound a batch of inputs to embed: it generates nothing, and the SDKs send hundreds.
    """
    if peeked.choices > rules.max_choices:
        raise ClientError(400, "invalid_request", f"`n` may be at most {rules.max_choices}.", param="n")
    if peeked.prompts * peeked.choices > rules.max_choices and path in paths.OUTPUT:
        raise ClientError(
            400,
            "invalid_request",
            f"A request may ask for at most {rules.max_choices} answers: `n` times the number of prompts.",
            param="prompt",
        )
    if peeked.background:
        raise ClientError(
            400,
            "invalid_request",
            "`background` is not supported: such a request would outlive its limits.",
            param="background",
        )
    if peeked.media_url is not None and rules.media_urls == "deny":
        raise ClientError(
            400,
            "invalid_request",
            "Media must be inside the request, as a `data:` URL; the gateway does not fetch other URLs.",
            param=peeked.media_url,
        )


def bound_output(body: bytes, peeked: Peek, route: Route, path: str) -> tuple[bytes, int | None]:
    """The body with its output bounded as the model's entry says, and that bound in LLM tokens for one choice.

    Raises ClientError 400 where the request asks for more and the entry says `reject`.
    """
    if path not in paths.OUTPUT:
        return body, None
    most = route.max_output_tokens
    asked = peeked.max_output
    if most is None:
        return body, asked if asked is not None else route.default_output_tokens
    field = output_field(peeked, path)
    if asked is None:
        return set_fields(body, {field: b"%d" % most}), most
    if asked <= most:
        return body, asked
    if route.on_over_limit == "reject":
        raise ClientError(400, "invalid_request", f"`{field}` may be at most {most} for this model.", param=field)
    return set_fields(body, {field: b"%d" % most}), most


def output_field(peeked: Peek, path: str) -> str:
    """The field that bounds the output of this request, or would if it were there."""
    return peeked.max_output_field or paths.OUTPUT_FIELD[path]
