"""What the format has and this version does not do yet: an error, never silently ignored.

One row each. Work that makes a field available deletes its row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from aiaas.config.backend import Backend
from aiaas.config.model import Config
from aiaas.config.problem import Path

Row = tuple[Path, Callable[[Config], bool], str]
BackendRow = tuple[str, Callable[[Backend], bool], str]

ROWS: Final[tuple[Row, ...]] = (
    (("server", "workers"), lambda c: c.server.workers > 1, "write 1, and run more replicas instead"),
    (("server", "tls"), lambda c: c.server.tls is not None, "remove it, and let the ingress do it"),
)

BACKEND_ROWS: Final[tuple[BackendRow, ...]] = (("dns", lambda b: b.dns is not None, "list the addresses under urls"),)


def unavailable(config: Config) -> Iterator[tuple[Path, str]]:
    """The fields in use that this version does not do, with what to do instead."""
    for path, is_used, instead in ROWS:
        if is_used(config):
            yield path, _message(instead)
    for name, backend in config.backends.items():
        for field, is_used_by, instead in BACKEND_ROWS:
            if is_used_by(backend):
                yield ("backends", name, field), _message(instead)


def _message(instead: str) -> str:
    return f"not available in this version; {instead}"
