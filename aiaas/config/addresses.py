"""Rules for the addresses of backends: one kind each, in the right form, and `tls` only with an https address. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Final

from aiaas.config import codes
from aiaas.config.address import parse_dns, parse_url
from aiaas.config.model import Config
from aiaas.config.problem import Finding
from aiaas.yamltree import Path


def one_address(config: Config, _env: Mapping[str, str]) -> Iterator[Finding]:
    """Each backend has exactly one kind of address."""
    for name, backend in config.backends.items():
        path = ("backends", name)
        given = [field for field in ("url", "urls", "dns", "engine") if getattr(backend, field) is not None]
        if not given:
            yield codes.ADDRESS, "error", path, "has no address; give it one of url, urls, dns and engine"
        elif len(given) > 1:
            message = f"has {len(given)} kinds of address ({', '.join(given)}); keep one of them"
            yield codes.ADDRESS, "error", (*path, given[1]), message


def readable_addresses(config: Config, _env: Mapping[str, str]) -> Iterator[Finding]:
    """Requests can be sent to each address, and no backend has one twice."""
    for name, backend in config.backends.items():
        seen: dict[str, Path] = {}
        for place, replica in backend.replicas():
            place = ("backends", name, *place)
            try:
                url = parse_url(replica.url).url
            except ValueError as error:
                yield codes.BAD_URL, "error", place, str(error)
                continue
            if url in seen:
                yield codes.BAD_URL, "error", place, f"{url} is listed twice; each replica has its own address"
            seen[url] = place
        if backend.dns is not None:
            try:
                parse_dns(backend.dns)
            except ValueError as error:
                yield codes.BAD_URL, "error", ("backends", name, "dns"), str(error)


def all_drain(config: Config, _env: Mapping[str, str]) -> Iterator[Finding]:
    """Warn if every replica of a backend drains."""
    for name, backend in config.backends.items():
        if backend.enabled and backend.urls and all(replica.drain for _, replica in backend.replicas()):
            message = (
                "every replica drains, so new requests get 503 unless another backend serves the model; "
                "keep one without drain"
            )
            yield codes.ALL_DRAIN, "warning", ("backends", name, "urls"), message


def tls_without_https(config: Config, _env: Mapping[str, str]) -> Iterator[Finding]:
    """A backend has `tls` only where a certificate is there to be verified."""
    for name, backend in config.backends.items():
        with suppress(ValueError):  # an address that cannot be read is reported already
            written = {field for field in backend.tls.model_fields_set if getattr(backend.tls, field) is not None}
            if written and not any(address.tls for _, address in backend.addresses()):
                message = (
                    "has no https:// address, so nothing is verified; write https:// in its address, or remove tls"
                )
                yield codes.BACKEND_TLS, "error", ("backends", name, "tls"), message


ADDRESS_RULES: Final = (one_address, readable_addresses, all_drain, tls_without_https)
