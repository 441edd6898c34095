"""Who is it, which route, within limits? -> a Ticket, or an ApiError.

The order is contract section 3's: key, size and media type, parse, model and scope, all limits at once (path and
method come before, in `app.py`). Nothing is charged until the last step, so a refusal of ours costs the key nothing.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network, ip_address
from urllib.parse import unquote

from aiohttp.web_request import BaseRequest

from aiaas.errors import ClientError, UpstreamError
from aiaas.keys.model import KeyLimits, Principal
from aiaas.keys.verifier import Verifier, VerifierBusy
from aiaas.limits.headers import limit_headers, refusal
from aiaas.limits.model import Lease, Limits, Rate, Store
from aiaas.openai import paths
from aiaas.openai.peek import Peek, estimate_input_tokens, peek
from aiaas.openai.splice import set_fields
from aiaas.plan.model import EndpointPlan, Plan, RequestPlan, Route, Target
from aiaas.proxy.connection import Connection
from aiaas.proxy.record import Record
from aiaas.proxy.respond import header_lines

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z")
_UNSAFE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_ASK_FOR_USAGE = b'{"include_usage":true}'
# Of the client's headers these go upstream, besides those that the config names.
_FORWARDED = ("accept", "traceparent", "tracestate")


@dataclass(frozen=True, slots=True)
class Ticket:
    """An admitted request: what to send, and what has to be settled when it ends.

    body        as it came, or with fields spliced (all but `model`, which depends on the target)
    passed      complete header lines that go upstream
    lease       None where no limits hold
    extra       complete header lines for the answer: request id, limits
    strip_usage the usage event was asked for by us
    reserved    LLM tokens estimated for the input, for a request that ends without usage
    """

    principal: Principal
    route: Route
    record: Record
    peek: Peek
    body: bytes
    passed: bytes
    lease: Lease | None
    extra: bytes
    strip_usage: bool
    estimated_input: int

    def upstream_request(self, endpoint: EndpointPlan, target: Target) -> bytes:
        """The whole request for `endpoint`: its prepared head, the few headers that go along, and the body."""
        body = self.body if target.rewrite is None else set_fields(self.body, {"model": target.rewrite})
        return b"%b%bcontent-length: %d\r\n\r\n%b" % (endpoint.heads[self.route.path], self.passed, len(body), body)


class Admission:
    """The gate of one Plan. Replaced as a whole on reload; `verifier` and `store` live on."""

    def __init__(
        self, plan: Plan, verifier: Verifier, store: Store, loop: asyncio.AbstractEventLoop, wall: Callable[[], float]
    ) -> None:
        self._plan = plan
        self._verifier = verifier
        self._store = store
        self._loop = loop
        self._wall = wall
        self._limits: dict[str, tuple[Principal, Limits]] = {}

    async def principal(self, request: BaseRequest, path: str, address: str) -> Principal:
        """Who asks. Raises ClientError 401, or UpstreamError 503 where too many unknown keys wait to be checked."""
        if not self._plan.auth.enabled:
            return Principal(key_id="-", name=address, models=None, limits=KeyLimits())
        presented = presented_key(request, path)
        wall = self._wall()
        principal = self._verifier.lookup(presented.encode("utf-8", "surrogateescape"), wall)
        if principal is None:
            try:
                principal = await self._verifier.verify(presented, wall)
            except VerifierBusy:
                raise UpstreamError(
                    503,
                    "overloaded",
                    "Too many unknown keys are being checked; try again shortly.",
                    headers=(("retry-after", "1"),),
                ) from None
        if principal is None:
            raise unauthorized()
        return principal

    async def admit(
        self, request: BaseRequest, client: Connection, path: str, principal: Principal, record: Record
    ) -> Ticket:
        """Read, check and charge one generate request. Raises ApiError."""
        body = await read_body(request, client, self._plan)
        record.request_bytes = len(body)
        peeked = peek(body, path)
        record.stream = peeked.stream
        route = self._route(path, peeked, principal, record)
        refuse_harm(peeked, self._plan.request, path)
        body, output = bound_output(body, peeked, route)
        strip_usage = peeked.stream and not peeked.include_usage and path in paths.USAGE_ON_REQUEST
        if strip_usage:
            body = set_fields(body, {"stream_options": _ASK_FOR_USAGE})
        estimated = estimate_input_tokens(len(body))
        reserved = estimated + (output or 0) * peeked.choices * peeked.prompts
        admission = await self._store.admit(
            principal.key_id if self._plan.auth.enabled else f"address:{principal.name}",
            self.limits_of(principal),
            reserved,
            self._loop.time(),
            self._wall(),
        )
        if admission.lease is None:
            raise refusal(admission)
        return Ticket(
            principal=principal,
            route=route,
            record=record,
            peek=peeked,
            body=body,
            passed=passed_headers(request, record.request_id),
            lease=admission.lease,
            extra=header_lines((("x-request-id", record.request_id), *limit_headers(admission))),
            strip_usage=strip_usage,
            estimated_input=estimated,
        )

    def _route(self, path: str, peeked: Peek, principal: Principal, record: Record) -> Route:
        if peeked.model is None:
            raise ClientError(
                400, "invalid_request", "`model` is missing; GET /v1/models lists the names.", param="model"
            )
        route = self._plan.routes[path].get(peeked.model)
        if route is None or (principal.models is not None and route.model not in principal.models):
            raise model_not_found(peeked.model)
        record.model = route.model
        return route

    def limits_of(self, principal: Principal) -> Limits:
        """The key's own limits where it has them, else the config's; made once for each principal."""
        cached = self._limits.get(principal.key_id)
        if cached is not None and cached[0] is principal:
            return cached[1]
        limits = effective_limits(self._plan, principal.limits)
        if self._plan.auth.enabled:
            self._limits[principal.key_id] = (principal, limits)
        return limits


def effective_limits(plan: Plan, own: KeyLimits) -> Limits:
    """A key's limits: its own, field by field, before the default. None hold where rate_limit.enabled is false."""
    default = plan.limits.default
    if not plan.limits.enabled:
        return default
    requests = default.requests
    if own.requests_per_minute is not None:
        requests = Rate(own.requests_per_minute, own.burst or own.requests_per_minute)
    elif own.burst is not None and requests is not None:
        requests = replace(requests, burst=own.burst)
    tokens = default.tokens if own.tokens_per_minute is None else Rate(own.tokens_per_minute, own.tokens_per_minute)
    return Limits(
        requests=requests,
        tokens=tokens,
        tokens_per_day=own.tokens_per_day if own.tokens_per_day is not None else default.tokens_per_day,
        tokens_per_month=own.tokens_per_month if own.tokens_per_month is not None else default.tokens_per_month,
        concurrent=own.max_concurrent if own.max_concurrent is not None else default.concurrent,
    )


def presented_key(request: BaseRequest, path: str) -> str:
    """The key of the request. Raises ClientError 401 `missing_api_key`."""
    authorization = request.headers.get("authorization")
    if authorization is not None:
        scheme, _, key = authorization.partition(" ")
        key = key.strip()
        if scheme.lower() == "bearer" and key:
            return key
    elif path in paths.ANTHROPIC:
        key = request.headers.get("x-api-key", "").strip()
        if key:
            return key
    raise ClientError(
        401,
        "missing_api_key",
        "No API key was sent. Put it in the header `Authorization: Bearer KEY`.",
        headers=(("www-authenticate", "Bearer"),),
    )


def unauthorized() -> ClientError:
    """One answer for unknown, revoked and expired keys: it tells nothing about which keys exist."""
    return ClientError(
        401,
        "invalid_api_key",
        "This API key is not valid (mistyped, revoked or expired).",
        headers=(("www-authenticate", 'Bearer error="invalid_token"'),),
    )


def model_not_found(model: str) -> ClientError:
    """One answer for an unknown model and for one that the key may not use."""
    shown = model if len(model) <= 100 else model[:100] + "..."
    return ClientError(
        404, "model_not_found", f"The model `{shown}` does not exist or this key may not use it.", param="model"
    )


async def read_body(request: BaseRequest, client: Connection, plan: Plan) -> bytes:
    """The whole body, within size and silence bounds. Raises ClientError 408, 413, 415 or 417."""
    headers = request.headers
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ClientError(415, "unsupported_media_type", "Send JSON, with `Content-Type: application/json`.")
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise ClientError(415, "unsupported_media_type", "Send the body uncompressed, without `Content-Encoding`.")
    most = plan.server.max_body_size
    length = request.content_length
    if length is not None and length > most:
        raise too_large(most)
    expect = headers.get("expect")
    if expect is not None:
        if expect.lower() != "100-continue":
            raise ClientError(417, "invalid_request", "Only `Expect: 100-continue` is understood.")
        if client.transport is not None and not request.content.is_eof():
            client.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    return await _read_all(request, most, plan.server.body_timeout)


async def _read_all(request: BaseRequest, most: int, silence: float) -> bytes:
    content = request.content
    if content.is_eof():
        body = content.read_nowait(-1)
        if len(body) > most:
            raise too_large(most)
        return body
    parts: list[bytes] = []
    size = 0
    while True:
        try:
            async with asyncio.timeout(silence):
                part = await content.readany()
        except TimeoutError:
            raise ClientError(
                408, "request_timeout", f"The request's body stopped for more than {silence:g} s."
            ) from None
        if not part:
            return b"".join(parts)
        size += len(part)
        if size > most:
            raise too_large(most)
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
    if peeked.prompts > rules.max_choices and path in paths.OUTPUT:
        raise ClientError(
            400, "invalid_request", f"At most {rules.max_choices} prompts fit into one request here.", param="prompt"
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
            param="messages",
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
    field = peeked.max_output_field or paths.OUTPUT_FIELD[route.path]
    if asked is None:
        return set_fields(body, {field: b"%d" % most}), most
    if asked <= most:
        return body, asked
    if route.on_over_limit == "reject":
        raise ClientError(400, "invalid_request", f"`{field}` is at most {most} for this model.", param=field)
    return set_fields(body, {field: b"%d" % most}), most


def passed_headers(request: BaseRequest, request_id: str) -> bytes:
    """Header lines that go upstream: the request's media type, a few of its headers, and the id."""
    headers = request.headers
    lines = f"content-type: {_clean(headers['content-type'])}\r\nx-request-id: {request_id}\r\n"
    for name in _FORWARDED:
        value = headers.get(name)
        if value is not None:
            lines += f"{name}: {_clean(value)}\r\n"
    return lines.encode("utf-8", "surrogateescape")


def _clean(value: str) -> str:
    return _UNSAFE.sub("", value)


def client_address(peer: str, forwarded_for: str | None, trusted: tuple[IPv4Network | IPv6Network, ...]) -> str:
    """The nearest address that is not a trusted proxy's: from the right of X-Forwarded-For, if the peer is trusted."""
    if not trusted or forwarded_for is None or not is_trusted(peer, trusted):
        return peer
    address = peer
    for hop in reversed(forwarded_for.split(",")):
        hop = hop.strip()
        try:
            ip_address(hop)
        except ValueError:
            break
        address = hop
        if not is_trusted(hop, trusted):
            break
    return address


def is_trusted(address: str, trusted: tuple[IPv4Network | IPv6Network, ...]) -> bool:
    """Whether `address` lies in one of the networks; an IPv4 address in IPv6 clothes counts as IPv4."""
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    mapped = getattr(ip, "ipv4_mapped", None)
    return any((mapped or ip) in network for network in trusted)


def sane_request_id(offered: str | None) -> str | None:
    """An offered X-Request-Id that may stand in our log and header, or None."""
    return offered if offered is not None and _SANE_REQUEST_ID.match(offered) else None


def model_id(path: str) -> str:
    """The id in `/v1/models/{id}`; ids have slashes, sent as they are or escaped."""
    return unquote(path[len(paths.MODELS) + 1 :])
