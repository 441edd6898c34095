"""Rules for the addresses of backends: one kind each, in the right form, and `tls` only with an https address. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Final

from aiaas.config import codes
from aiaas.config.address import parse_dns, parse_url
from aiaas.config.backend import Backend
from aiaas.config.model import Config
from aiaas.config.problem import Finding
from aiaas.yamltree import Path


def _one_address(config: Config, _env: Mapping[str, str]) -> Iterator[Finding]:
    for path, backend in _each(config):
        given = [name for name in ("url", "urls", "dns", "engine") if getattr(backend, name) is not None]
        if not given:
            yield codes.ADDRESS, "error", path, "has no address; give it one of url, urls, dns and engine"
        elif len(given) > 1:
            message = f"has {len(given)} kinds of address ({', '.join(given)}); keep one of them"
            yield codes.ADDRESS, "error", (*path, given[1]), message


def _urls(config: Config, _env: Mapping[str, str]) -> Iterator[Finding]:
    for path, backend in _each(config):
        seen: dict[str, Path] = {}
        places = [((*path, "url"), backend.url)] if backend.url is not None else []
        places += [((*path, "urls", index), url) for index, url in enumerate(backend.urls or ())]
        for place, text in places:
            try:
                url = parse_url(text).url
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
                yield codes.BAD_URL, "error", (*path, "dns"), str(error)


def _tls(config: Config, _env: Mapping[str, str]) -> Iterator[Finding]:
    for path, backend in _each(config):
        with suppress(ValueError):  # an address that cannot be read is reported already
            written = {name for name in backend.tls.model_fields_set if getattr(backend.tls, name) is not None}
            if written and not any(address.tls for _, address in backend.addresses()):
                message = (
                    "has no https:// address, so nothing is verified; write https:// in its address, or remove tls"
                )
                yield codes.BACKEND_TLS, "error", (*path, "tls"), message


def _each(config: Config) -> Iterator[tuple[Path, Backend]]:
    for name, backend in config.backends.items():
        yield ("backends", name), backend


ADDRESS_RULES: Final[tuple[Callable[[Config, Mapping[str, str]], Iterator[Finding]], ...]] = (_one_address, _urls, _tls)
