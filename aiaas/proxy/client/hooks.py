"""What a client's connection asks of those around it."""

from __future__ import annotations

from typing import Protocol

from aiaas.errors import ApiError


class WriteListener(Protocol):
    """Who writes to the connection right now."""

    def client_paused(self) -> None:
        """The client's buffer is full: stop."""

    def client_resumed(self) -> None:
        """It has room again: go on."""


class Hooks(Protocol):
    """Who hears of what happens outside of a request."""

    def internal_error(self, error: BaseException | None) -> None:
        """An exception escaped a handler: a fault of ours."""

    def refused_head(self, peer: str, error: ApiError, origin: str | None) -> bytes:
        """A head from the address `peer` is being refused, with this `Origin` where it could be read.

        Gives complete header lines for the answer.
        """

    def dropped(self, peer: str, reason: str) -> None:
        """A connection from the address `peer` is being ended without an answer."""
