"""Read a request's key, client address and id from its headers. Pure; nothing is verified here.

Anybody can write a header, so `X-Forwarded-For` and `X-Request-Id` are believed only from trusted proxies.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address
from math import ceil

from aiaas.errors import ClientError, LimitError
from aiaas.keys.model import Rejection
from aiaas.openai import paths
from aiaas.proxy.client.forwarded import hops, plain_address
from aiaas.proxy.client.incoming import HttpRequest

Networks = tuple[IPv4Network | IPv6Network, ...]

# Paths at which `x-api-key` means nothing.
_BEARER_ONLY = frozenset(paths.GENERATE) - paths.ANTHROPIC
_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z")


class Unauthorized(ClientError):
    """401. `rejection` is the reason, for the log only.

    Claude Code repeats a 401 for a minute unless the answer has `x-should-retry: false`.
    """

    def __init__(self, rejection: Rejection, code: str, message: str, challenge: str) -> None:
        super().__init__(401, code, message, headers=(("www-authenticate", challenge), ("x-should-retry", "false")))
        self.rejection = rejection


def presented_key(request: HttpRequest, path: str) -> str:
    """The key of the request. Raises Unauthorized `missing_api_key`, or ClientError 400 if it has two keys.

    A proxy in front may have checked the other one of two keys. Two keys in one header (`Bearer A, Bearer B`) are one
    text to us, which is an unknown key.
    """
    sent = _only(request, "authorization")
    key = ""
    if sent is not None:
        scheme, _, rest = sent.partition(" ")
        if scheme == "Bearer" or scheme.lower() == "bearer":
            key = rest.strip()
    if key and path in _BEARER_ONLY:
        return key
    if (path in paths.ANTHROPIC or paths.is_models_path(path)) and (
        other := (_only(request, "x-api-key") or "").strip()
    ):
        if key and other != key:
            raise _twice("The headers `Authorization` and `x-api-key` hold different keys; send one of them.")
        key = other
    if key:
        return key
    if sent is not None:
        raise _missing("The header `Authorization` must be `Bearer KEY`.")
    raise _missing("No API key was sent. Put it in the header `Authorization: Bearer KEY`.")


def error_path(request: HttpRequest, path: str) -> str:
    """The path whose API decides the shape of an error.

    At a path that generates, that is the path itself. Elsewhere, such as at the list of models, a client of Anthropic's
    API is known by its headers.
    """
    headers = request.headers
    if path not in paths.GENERATE and ("x-api-key" in headers or "anthropic-version" in headers):
        return paths.MESSAGES
    return path


def _only(request: HttpRequest, name: str) -> str | None:
    headers = request.headers
    if type(headers) is dict:  # of a plain request, each once
        return headers.get(name)
    sent = request.values(name)
    if len(sent) > 1:
        raise _twice(f"The header `{name}` was sent more than once.")
    return sent[0] if sent else None


def _twice(message: str) -> ClientError:
    return ClientError(400, "invalid_request", message)


def _missing(message: str) -> Unauthorized:
    return Unauthorized(Rejection("missing"), "missing_api_key", message, "Bearer")


def unauthorized(rejection: Rejection) -> Unauthorized:
    """One answer for unknown, revoked and expired keys, so that it does not reveal which keys exist."""
    return Unauthorized(
        rejection,
        "invalid_api_key",
        "This API key is not valid (mistyped, revoked or expired).",
        'Bearer error="invalid_token"',
    )


def too_many_wrong_keys(wait: float) -> LimitError:
    """429: this key needs a slow check, and its address sent too many wrong keys. The key itself may be valid."""
    return LimitError(
        429,
        "too_many_wrong_keys",
        f"Your address sent too many wrong API keys, so no new key is checked now; try again in {ceil(wait)} s.",
        headers=(("retry-after", str(ceil(wait))), ("retry-after-ms", str(ceil(wait * 1000)))),
    )


def believed(request: HttpRequest, peer: str, trusted: Networks) -> tuple[str, str | None]:
    """The client's address and the request's valid id or None, from a trusted proxy's headers, else from the peer."""
    if not is_trusted(peer, trusted):
        return peer, None
    named = hops(request.values("x-forwarded-for"), request.values("forwarded"))
    ids = request.values("x-request-id")  # of two, the client may have written one
    return client_address(peer, named, trusted), sane_request_id(ids[0]) if len(ids) == 1 else None


def client_address(peer: str, named: Sequence[str | None], trusted: Networks) -> str:
    """The nearest address that is not a trusted proxy's, of `named` (`hops`), if the peer is trusted.

    Addresses are normalised, an IPv4-mapped IPv6 address (`::ffff:192.0.2.1`) to IPv4, so that one client has one name.
    Stop at a hop that is not an address.
    """
    address = plain_address(peer) or peer
    if not is_trusted(peer, trusted):
        return address
    for hop in named:
        if hop is None:
            break
        address = hop
        if not is_trusted(hop, trusted):
            break
    return address


def is_trusted(address: str, trusted: Networks) -> bool:
    """Whether `address` lies in one of the networks; an IPv4-mapped IPv6 address counts as IPv4."""
    plain = plain_address(address) if trusted else None
    return plain is not None and any(ip_address(plain) in network for network in trusted)


def require_method(request: HttpRequest, allowed: tuple[str, ...]) -> None:
    """Raises ClientError 405 with `Allow`."""
    if request.method not in allowed:
        raise method_not_allowed(allowed)


def not_found(path: str, prefix: str = "") -> ClientError:
    """404 for a path that is not served: one that no backend offers, one that a client made of a wrong base URL, or any
    other one. `prefix` is the one in front of all paths."""
    if path in paths.GENERATE or paths.is_models_path(path):
        return not_offered(path)
    if path.startswith(f"{paths.RESPONSES}/"):
        message = "Responses are not stored here, since an engine has one store for the answers of all keys."
        return ClientError(404, "not_found", message)
    meant = paths.meant(path)
    hint = "" if meant is None else f" Did you mean {prefix}{meant}? Check the client's base URL."
    return ClientError(404, "not_found", f"There is nothing at this path.{hint}")


def not_offered(path: str) -> ClientError:
    """404 for a path that the gateway could serve, if `endpoints` of a backend had it."""
    named = paths.MODELS if paths.is_models_path(path) else path
    message = f"{named} is not offered here; the operator can add it to `backends.NAME.endpoints`."
    return ClientError(404, "not_offered", message)


def method_not_allowed(allowed: tuple[str, ...]) -> ClientError:
    """405 that lists the allowed methods."""
    methods = ", ".join(allowed)
    return ClientError(405, "method_not_allowed", f"This path accepts {methods}.", headers=(("allow", methods),))


def sane_request_id(offered: str | None) -> str | None:
    """An offered X-Request-Id, if it may be used in the log and in headers, else None."""
    return offered if offered is not None and _SANE_REQUEST_ID.match(offered) else None
