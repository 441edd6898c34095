"""RESP2, the protocol of Redis and Valkey: a command into bytes, bytes into replies. No I/O.

A command is an array of bulk strings. A reply is one of five forms, told by its first byte (redis.io/docs, "RESP
protocol specification"). There is no RESP3 here: it is only spoken after `HELLO 3`, which we do not say.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from aiaas.errors import AiaasError

# Text, a number, nil, an array of replies, or an error (as a value: one in an array does not end the others).
Reply: TypeAlias = "bytes | int | list[Reply] | RedisReplyError | None"


class RedisReplyError(AiaasError):
    """The server answered `-CODE text`. Its text names no password and no key."""

    @property
    def code(self) -> str:
        """The first word, such as NOSCRIPT, READONLY, WRONGPASS."""
        return str(self).partition(" ")[0]


class RespError(AiaasError):
    """These bytes are no reply: something else listens there."""


def command(arguments: tuple[bytes | str | int | float, ...]) -> bytes:
    """One command. Floats are written so that they read back as they were."""
    parts = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        text = argument if isinstance(argument, bytes) else _text(argument)
        parts.append(b"$%d\r\n%b\r\n" % (len(text), text))
    return b"".join(parts)


def _text(argument: str | int | float) -> bytes:
    return (argument if isinstance(argument, str) else repr(argument)).encode()


class Replies:
    """Takes the bytes of one connection as they come, and gives whole replies in order."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[Reply]:
        """The replies that are whole with `data`. Raises RespError; nothing after that makes sense."""
        buffer = self._buffer + data if self._buffer else data
        replies: list[Reply] = []
        position = 0
        while position < len(buffer):
            try:
                reply, position = _reply(buffer, position)
            except _IncompleteError:
                break
            replies.append(reply)
        self._buffer = buffer[position:]
        return replies


_LONGEST_LINE: Final = 64 * 1024
_FORMS: Final = (b"", b"+", b"-", b":", b"$", b"*")  # b"": nothing of it is here yet


class _IncompleteError(Exception):
    """More bytes are to come."""


def _reply(buffer: bytes, start: int) -> tuple[Reply, int]:
    """The reply at `start`, and where it ends."""
    end = buffer.find(b"\r\n", start)
    if end < 0:
        if len(buffer) - start > _LONGEST_LINE or buffer[start : start + 1] not in _FORMS:
            raise RespError("what answers there is neither Redis nor Valkey")
        raise _IncompleteError
    form, line, after = buffer[start : start + 1], buffer[start + 1 : end], end + 2
    if form == b"+":
        return line, after
    if form == b"-":
        return RedisReplyError(line.decode("utf-8", "replace")), after
    if form not in b"$:*":
        raise RespError("what answers there is neither Redis nor Valkey")
    try:
        number = int(line)
    except ValueError:
        raise RespError("what answers there is neither Redis nor Valkey") from None
    if form == b":":
        return number, after
    if number < 0:
        return None, after
    if form == b"$":
        if len(buffer) < after + number + 2:
            raise _IncompleteError
        return buffer[after : after + number], after + number + 2
    items: list[Reply] = []
    for _ in range(number):
        item, after = _reply(buffer, after)
        items.append(item)
    return items, after
