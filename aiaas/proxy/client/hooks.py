"""The callbacks of a client's connection."""

from __future__ import annotations

from typing import Protocol

from aiaas.errors import ApiError, UpstreamError


class WriteListener(Protocol):
    """The writer of the present answer."""

    def client_paused(self) -> None:
        """The client's buffer is full: stop."""

    def client_resumed(self) -> None:
        """The client's buffer has room again: go on."""

    def end_with_error(self, error: UpstreamError) -> None:
        """End the answer that has begun with `error`, or by breaking off; does nothing if none has begun."""


class Hooks(Protocol):
    """Callbacks for events outside of a request."""

    def internal_error(self, error: BaseException | None) -> None:
        """An exception escaped a handler: the gateway itself failed."""

    def refused_head(self, peer: str, error: ApiError, origin: str | None) -> bytes:
        """A head from the address `peer` is being refused, with this `Origin` where it could be read.

        Returns complete header lines for the answer.
        """

    def dropped(self, peer: str, reason: str) -> None:
        """A connection from the address `peer` is being ended without an answer."""
