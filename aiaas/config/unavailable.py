"""What the format has and this version does not do yet: an error, never silently ignored.

One row each. Work that makes a field available deletes its row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from aiaas.config.model import Config
from aiaas.config.problem import Path

Row = tuple[Path, Callable[[Config], bool], str]

ROWS: Final[tuple[Row, ...]] = (
    (("server", "workers"), lambda c: c.server.workers > 1, "write 1, and run more replicas instead"),
)


def unavailable(config: Config) -> Iterator[tuple[Path, str]]:
    """The fields in use that this version does not do, with what to do instead."""
    for path, is_used, instead in ROWS:
        if is_used(config):
            yield path, f"not available in this version; {instead}"
