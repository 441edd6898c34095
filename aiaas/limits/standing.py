"""The shared store's answer to an admission or a look, and the client's result. Pure."""

from __future__ import annotations

import msgspec

from aiaas.limits.model import AdmissionResult, Lease, Limits
from aiaas.limits.state import State, refused, seen, together, windows_at


class Standing(msgspec.Struct, frozen=True, gc=False):
    """The script's answer: whether all limits let the request in, and their state before.

    now   seconds since EPOCH, wall  POSIX seconds, both by the server's clock
    user  the state of the key's user; None where no limits of users were asked about
    """

    allowed: bool
    now: float
    wall: float
    state: State
    user: State | None = None

    def of_user(self) -> Standing:
        """The same of the user alone."""
        return self if self.user is None else Standing(self.allowed, self.now, self.wall, self.user)


def standing(reply: bytes) -> Standing:
    """The script's answer to an admission or a look."""
    allowed, now, wall, *states = reply.split()
    if len(states) == 8:
        return Standing(allowed == b"1", float(now), float(wall), _state(*states))
    return Standing(allowed == b"1", float(now), float(wall), _state(*states[:8]), _state(*states[8:]))


def admission_of(found: Standing, limits: Limits, requests: int, tokens: int, lease: Lease | None) -> AdmissionResult:
    """The result of an admission, or of a look."""
    key = seen(found.state, limits, requests, tokens, found.now, lease)
    if limits.user is None or found.user is None:
        return key
    return together(key, seen(found.user, limits.user, requests, tokens, found.now, None))


def refusal_of(found: Standing, limits: Limits, tokens: int) -> AdmissionResult:
    """The result of a refused admission."""
    at = tokens, found.now, found.wall, windows_at(found.wall)
    key = refused(found.state, limits, *at)
    if limits.user is None or found.user is None:
        return key
    return together(key, refused(found.user, limits.user, *at))


def _state(
    slots: bytes,
    requests: bytes,
    tokens: bytes,
    day: bytes,
    day_tokens: bytes,
    month: bytes,
    month_tokens: bytes,
    cheap: bytes,
) -> State:
    state = State()
    state.requests, state.tokens, state.slots = float(requests), float(tokens), int(slots)
    state.day, state.day_tokens = float(day), int(float(day_tokens))
    state.month, state.month_tokens = float(month), int(float(month_tokens))
    state.cheap = float(cheap)
    return state
