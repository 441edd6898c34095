"""The name of the session that a request belongs to: an agent's task, or a chat. Pure.

    1. a header by which a known client names it                    HEADERS
    2. `prompt_cache_key` of the body (Codex, the OpenAI SDKs)
    3. the session in `metadata.user_id` (Claude Code): a JSON text in older and newer forms
    4. else the opening: the text of the system prompt and of the first message from the user

An opening is text and not bytes: Claude Code moves its `cache_control` marks from message to message, so the bytes of
the first message change after the first turn. Of a long opening only the beginning counts (SYSTEM_BYTES, USER_BYTES).
It is found by searches in the bytes, so JSON escapes stay as they are: a client writes them alike in each turn.

Only the choice of an endpoint depends on the result, so a wrong one costs a cache miss and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Final, TypeVar

import msgspec
from msgspec import UNSET, Raw, UnsetType

# Claude Code; Codex; OpenCode and others; Qwen Code; Open WebUI; LibreChat, where its admin sets it.
HEADERS: Final = (
    "x-claude-code-session-id",
    "session-id",
    "session_id",
    "x-session-affinity",
    "x-session-id",
    "x-opencode-session",
    "x-qwen-code-session-id",
    "x-openwebui-chat-id",
    "x-conversation-id",
)
LONGEST_NAME: Final = 16 * 1024  # bytes of JSON; anything longer names nothing
SYSTEM_BYTES: Final = 1024
USER_BYTES: Final = 4096
# The first message from the user is searched in this part of the conversation, in 0.3 ms at the most.
SEARCHED_BYTES: Final = 256 * 1024
# Two turns differ by the marks between the texts; so the window holds more than the text that counts.
_WINDOW: Final = 2 * USER_BYTES
_SESSION_BITS: Final = 128

# A quote inside a JSON text is escaped, so these are keys and never text.
_FROM_USER: Final = re.compile(rb'"role"[ \t\r\n]*:[ \t\r\n]*"user"')
_TEXT: Final = re.compile(rb'"(?:text|content)"[ \t\r\n]*:[ \t\r\n]*"([^"\\]*+(?:\\.[^"\\]*+)*+)', re.DOTALL)
_QUOTE: Final = ord('"')
_ROLE: Final = b'"role"'
_OLD_FORM: Final = "_session_"  # user_<hash>_account_<uuid>_session_<uuid>
_Decoded = TypeVar("_Decoded")


class SessionFields(msgspec.Struct, gc=False):
    """The fields of a body that may name its session, as written."""

    prompt_cache_key: Raw | UnsetType = UNSET
    metadata: Raw | UnsetType = UNSET
    system: Raw | UnsetType = UNSET
    instructions: Raw | UnsetType = UNSET
    messages: Raw | UnsetType = UNSET
    input: Raw | UnsetType = UNSET
    prompt: Raw | UnsetType = UNSET


NAMING_FIELDS: Final = ("prompt_cache_key", "metadata", "system", "instructions", "messages")  # the first ones
_FIELDS: Final = msgspec.json.Decoder(SessionFields)


def session_fields(
    body: bytes, read: Iterable[Raw | UnsetType], own_input: Raw | UnsetType, prompt: Raw | UnsetType
) -> SessionFields:
    """The fields of `body` out of the values that `peek` has: `read` those of NAMING_FIELDS, empty if it has none."""
    if not read:
        return _FIELDS.decode(body)
    key, metadata, system, instructions, messages = read
    return SessionFields(key, metadata, system, instructions, messages, own_input, prompt)


def session_in_headers(headers: Mapping[str, str]) -> str | None:
    """The session that a header names; `headers` are looked up in lower case."""
    for name in HEADERS:
        value = headers.get(name)
        if value:
            return value
    return None


def session_in_body(fields: SessionFields) -> str | None:
    """The session that a field names."""
    written = fields.prompt_cache_key
    if written is not UNSET and len(written) <= LONGEST_NAME:
        key: str | None = _read(_TEXT_VALUE, written)
        if key:
            return key
    written = fields.metadata
    if written is UNSET or len(written) > LONGEST_NAME or (metadata := _read(_METADATA, written)) is None:
        return None
    user = metadata.user_id or ""
    if user.startswith("{"):
        inner = _read(_USER, user.encode("utf-8", "surrogatepass"))
        return None if inner is None else inner.session_id or None
    _, form, name = user.rpartition(_OLD_FORM)
    return name if form and name else None


def opening_of(fields: SessionFields) -> bytes | None:
    """The beginning of a conversation, equal in all its turns; None if the body holds none."""
    conversation = fields.messages if fields.messages is not UNSET else fields.input
    if conversation is UNSET:
        return None if fields.prompt is UNSET else bytes(memoryview(fields.prompt)[:SYSTEM_BYTES])
    body = memoryview(conversation)
    system = fields.system if fields.system is not UNSET else fields.instructions
    said = b"" if system is UNSET else _texts(memoryview(system)[: 2 * SYSTEM_BYTES], SYSTEM_BYTES)
    if body[0] == _QUOTE:
        return said + bytes(body[:USER_BYTES])
    found = _FROM_USER.search(body, 0, SEARCHED_BYTES)
    if found is None:
        return said + _texts(body[: 2 * SYSTEM_BYTES], SYSTEM_BYTES) or None
    said += b"\0" + _texts(body[: min(found.start(), 2 * SYSTEM_BYTES)], SYSTEM_BYTES)
    window = bytes(body[found.end() : found.end() + _WINDOW])
    if window.lstrip()[:1] == b"}":  # `role` stands last in the message, its text before it
        return said + b"\0" + bytes(body[max(0, found.start() - SYSTEM_BYTES) : found.start()])
    following = window.find(_ROLE)
    if following >= 0:
        window = window[:following]
    return said + b"\0" + _texts(window, USER_BYTES)


def session_number(key_id: str, name: str) -> int:
    """The session's number, from its name. The key's id is part of it, so that no client steers another's sessions."""
    return _hash(key_id, name.encode("utf-8", "surrogateescape"))


def opening_number(key_id: str, model: str, opening: bytes) -> int:
    """The number of a session without a name."""
    return _hash(key_id, b"%b\0%b" % (model.encode("utf-8", "surrogateescape"), opening))


class _Metadata(msgspec.Struct):
    user_id: str | None = None


class _User(msgspec.Struct):
    session_id: str | None = None


_TEXT_VALUE: Final = msgspec.json.Decoder(str | None)
_METADATA: Final = msgspec.json.Decoder(_Metadata | None)
_USER: Final = msgspec.json.Decoder(_User)


def _read(decoder: msgspec.json.Decoder[_Decoded], written: bytes | Raw) -> _Decoded | None:
    try:
        value: _Decoded = decoder.decode(written)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return value


def _texts(written: bytes | memoryview, most: int) -> bytes:
    """The texts in a value: a text, or a list of messages or parts. A text that the window cuts off counts, too."""
    if written[0] == _QUOTE:
        return bytes(written[:most])
    return b"\0".join(_TEXT.findall(written))[:most]


def _hash(key_id: str, value: bytes) -> int:
    return int.from_bytes(blake2b(b"%b\0%b" % (key_id.encode(), value), digest_size=_SESSION_BITS // 8).digest())
