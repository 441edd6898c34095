"""A request that may go to one of several endpoints: its session, and how much its prompt is to read.

The session is computed when an endpoint has to be chosen, so where there is only one it costs nothing.
"""

from __future__ import annotations

from typing import Final, Literal

from aiaas.openai import paths
from aiaas.openai.peek import Peek
from aiaas.openai.session import (
    SessionFields,
    opening_number,
    opening_of,
    session_in_body,
    session_number,
)
from aiaas.plan.model import Route
from aiaas.proxy.telemetry.record import NO_KEY, Record

# How a session's request came to its endpoint: `first` of the session here, `stayed`, or why it moved.
Move = Literal["first", "stayed", "load", "full", "down", "back", "agreed", "parallel", "retry"]

_ANSWER: Final = b'"assistant"'
# A first turn is recognized by a search of the body's first and last bytes, which takes up to 30 microseconds, once a
# session.
_LOOKED_AT: Final = 32 * 1024
# The answers in a conversation are counted in this many bytes, 0.5 microseconds for each 1,000.
_COUNTED: Final = 256 * 1024


class Visit:
    """One request.

    body    what is sent, in which the answers of earlier turns are found
    tokens  of its prompt, estimated
    stream  its answer is a stream, so that its first byte tells when the prompt has been read
    now     seconds on the clock of all visits, when the request came
    waits   it is in a queue for a slot
    move    set at each choice of an endpoint, for the case that the request leaves the endpoint of its session
    """

    __slots__ = (
        "_fields",
        "_is_first",
        "_key_id",
        "_model",
        "_name",
        "_session",
        "body",
        "move",
        "now",
        "stream",
        "tokens",
        "waits",
    )

    def __init__(
        self,
        key_id: str,
        model: str,
        name: str | None,
        fields: SessionFields | None,
        body: bytes,
        tokens: int,
        now: float,
        *,
        stream: bool,
    ) -> None:
        self._key_id = key_id
        self._model = model
        self._name = name
        self._fields = fields
        self._session: int | None = None
        self._is_first: bool | None = None
        self.body = body
        self.tokens = tokens
        self.now = now
        self.stream = stream
        self.waits = False
        self.move: Move = "first"

    @property
    def session(self) -> int | None:
        """The number of its session; None if the body does not contain a conversation."""
        if self._session is None:
            self._session = self._find()
        return self._session

    def _find(self) -> int | None:
        fields = self._fields
        name = self._name
        if name is None and fields is not None:
            name = session_in_body(fields)
        if name is not None:
            return session_number(self._key_id, name)
        opening = None if fields is None else opening_of(fields)
        return None if opening is None else opening_number(self._key_id, self._model, opening)

    @property
    def is_first(self) -> bool:
        """Whether the conversation does not contain an answer yet."""
        if self._is_first is None:
            body = self.body
            if len(body) <= 2 * _LOOKED_AT:
                self._is_first = body.find(_ANSWER) < 0
            else:
                far = body.rfind(_ANSWER, len(body) - _LOOKED_AT)
                self._is_first = far < 0 and body.find(_ANSWER, 0, _LOOKED_AT) < 0
        return self._is_first

    def answers(self) -> int:
        """How many answers the conversation holds."""
        return self.body.count(_ANSWER, 0, _COUNTED)


def visit_of(record: Record, route: Route, named: str | None, peeked: Peek, body: bytes, tokens: int) -> Visit | None:
    """The visit of an admitted request; None if it generates nothing, or can have one endpoint only.

    named  the session that a header names
    """
    if record.path not in paths.OUTPUT or not any(target.backend.seats_sessions for target in route.targets):
        return None
    key_id, now = record.key_id or NO_KEY, record.started
    return Visit(key_id, route.model, named, peeked.session, body, tokens, now, stream=peeked.stream)
