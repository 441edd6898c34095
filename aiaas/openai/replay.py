"""Send a request again, and give the client the rest of its answer: what it has already is compared and skipped.

Two engines give the same answer to a request that leaves nothing to chance. The bytes of the request are the same; what
the first engine delivered must be the beginning of the second one's answer, or else the answer ends with an error. How
an answer is read depends on the path: `replay_choices` (chats and completions), `replay_typed` (responses, messages).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import msgspec

from aiaas.errors import ClientError
from aiaas.openai.joint import DiffersError
from aiaas.openai.paths import CHAT, COMPLETIONS, MESSAGES, RESPONSES
from aiaas.openai.replay_choices import Choices
from aiaas.openai.replay_typed import Typed
from aiaas.openai.resumable import NotResumableError
from aiaas.openai.sse import EventSplitter, event_data
from aiaas.openai.toplevel import UNREADABLE, top_level

_PATHS: Final = frozenset({CHAT, COMPLETIONS, RESPONSES, MESSAGES})

# Fields with which an answer depends on more than the request, and the values besides null that are harmless.
_STATEFUL: Final[Mapping[str, Callable[[Any], bool]]] = {
    "previous_response_id": lambda _: False,
    "conversation": lambda _: False,
    "store": lambda value: value is False,
    "background": lambda value: value is False,
    "use_beam_search": lambda value: value is False,
    "best_of": lambda value: value == 1,
    "kv_transfer_params": lambda value: value == {},
    "ec_transfer_params": lambda value: value == {},
    "vllm_xargs": lambda value: value == {},
    "mcp_servers": lambda value: value == [],
    "web_search_options": lambda _: False,
    "container": lambda _: False,
}
# The types of the tools that the client runs itself, on the paths where the server runs others.
_TOOLS: Final = {RESPONSES: ("function", "custom", "namespace"), MESSAGES: (None, "custom")}
_PING: Final = b"event: ping\n"
_RANDOM_SEED: Final = -1  # to vLLM the same as no seed


def is_deterministic(body: bytes, path: str) -> bool:
    """Whether two engines give the same answer to this request: temperature 0, or a seed. Never raises.

    Without a temperature the model's own holds, which is hardly ever 0. `/v1/messages` knows no seed.
    """
    if path not in _PATHS:
        return False
    try:
        written = top_level(body)
        fields = {name: _value(name, value) for name, value in written}
    except (*UNREADABLE, ClientError):
        return False
    if len(fields) < len(written):  # a field is there twice: who knows which one holds
        return False
    for name, harmless in _STATEFUL.items():
        value = fields.get(name)
        if value is not None and not (path == CHAT and name == "store") and not harmless(value):
            return False
    return _tools_are_the_clients(fields.get("tools"), path) and _leaves_nothing_to_chance(fields, path)


def _value(name: str, value: msgspec.Raw) -> Any:
    """The value of a field that is looked at; None for another one."""
    looked_at = name in _STATEFUL or name in ("temperature", "seed", "tools")
    return msgspec.json.decode(value) if looked_at else None


def _tools_are_the_clients(tools: Any, path: str) -> bool:
    known = _TOOLS.get(path)
    if tools is None or known is None:
        return True
    return isinstance(tools, list) and all(isinstance(tool, dict) and tool.get("type") in known for tool in tools)


def _leaves_nothing_to_chance(fields: Mapping[str, Any], path: str) -> bool:
    temperature, seed = fields.get("temperature"), fields.get("seed")
    if type(temperature) in (int, float) and temperature == 0:
        return True
    return path != MESSAGES and type(seed) is int and seed != _RANDOM_SEED


class _Rest(Protocol):
    """How the answers of some paths are read. Both raise DiffersError, and as msgspec does."""

    def deliver(self, data: bytes) -> None: ...

    def event(self, data: bytes) -> bytes: ...


class Replayed:
    """The rest of one answer, of a request that was sent again.

    begun  whether something of the rest has gone to the client
    """

    def __init__(self, path: str, relayed: bytes) -> None:
        """`relayed`: the whole events that the client has; comments among them count for nothing.

        Raises NotResumableError where it is not clear what they say.
        """
        if path not in _PATHS:
            raise NotResumableError("answers of this path are not compared")
        self.begun = False
        self._rest: _Rest = Choices(path) if path in (CHAT, COMPLETIONS) else Typed()
        splitter = EventSplitter(limit=len(relayed))
        try:
            for event in splitter.feed(relayed):
                data = event_data(event)
                if data is not None and not event.startswith(_PING):
                    self._rest.deliver(data)
        except (*UNREADABLE, ClientError, DiffersError):
            raise NotResumableError("what was delivered cannot be read") from None
        if splitter.rest:
            raise NotResumableError("what was delivered ends inside of an event")

    def event(self, event: bytes) -> bytes:
        """One whole event of the second engine as it is for the client; empty where it has it already.

        Raises DiffersError.
        """
        data = event_data(event)
        if data is None or event.startswith(_PING):
            return event
        try:
            shown = self._rest.event(data)
        except (*UNREADABLE, ClientError):
            raise DiffersError("an event that cannot be read") from None
        if not shown:
            return b""
        head, found, tail = event.rpartition(data)
        if not found:
            raise DiffersError("an event that cannot be read")
        self.begun = True
        return head + shown + tail
