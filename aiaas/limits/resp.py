"""RESP2, the protocol of Redis and Valkey: a command into bytes, bytes into replies. No I/O.

A command is an array of bulk strings. A reply is one of five forms, told by its first byte (redis.io/docs, "RESP
protocol specification"). RESP3 is not supported: a server only speaks it after `HELLO 3`, which we do not send.

Each byte is read once, however a reply is cut: the items of an unfinished array are kept, not parsed again.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from aiaas.errors import AiaasError

# Text, a number, nil, an array of replies, or an error (as a value: one in an array does not end the others).
Reply: TypeAlias = "bytes | int | list[Reply] | RedisReplyError | None"


class RedisReplyError(AiaasError):
    """The server answered `-CODE text`. The text contains neither a password nor a key."""

    @property
    def code(self) -> str:
        """The first word, such as NOSCRIPT, READONLY, WRONGPASS."""
        return str(self).partition(" ")[0]


class RespError(AiaasError):
    """These bytes are not a reply: the server is neither Redis nor Valkey."""


def command(arguments: tuple[bytes | str | int | float, ...]) -> bytes:
    """Encode one command. Floats are written so that they read back unchanged."""
    parts = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        text = argument if isinstance(argument, bytes) else _text(argument)
        parts.append(b"$%d\r\n%b\r\n" % (len(text), text))
    return b"".join(parts)


def _text(argument: str | int | float) -> bytes:
    return (argument if isinstance(argument, str) else repr(argument)).encode()


class Replies:
    """Takes the bytes of one connection as they arrive, and returns whole replies in order."""

    def __init__(self) -> None:
        self._rest = bytearray()  # an unfinished item
        self._arrays: list[tuple[list[Reply], int]] = []  # unfinished ones, outermost first, with their lengths

    def feed(self, data: bytes) -> list[Reply]:
        """The replies that `data` completes. Raises RespError, after which the connection is unusable."""
        buffer: bytes | bytearray = data
        if self._rest:
            self._rest += data
            buffer = self._rest
        replies: list[Reply] = []
        position = 0
        while position < len(buffer):
            try:
                item, position = _item(buffer, position)
            except _IncompleteError:
                break
            if isinstance(item, _Array):
                self._arrays.append(([], item.length))
            else:
                self._place(item, replies)
        if buffer is self._rest:
            del self._rest[:position]
        elif position < len(buffer):
            self._rest += buffer[position:]
        return replies

    def _place(self, reply: Reply, replies: list[Reply]) -> None:
        """Put a whole item where it belongs, and so on for each array that it completes."""
        while self._arrays:
            items, length = self._arrays[-1]
            items.append(reply)
            if len(items) < length:
                return
            self._arrays.pop()
            reply = items
        replies.append(reply)


_LONGEST_LINE: Final = 64 * 1024
_FORMS: Final = (b"", b"+", b"-", b":", b"$", b"*")  # b"": nothing has arrived yet


class _IncompleteError(Exception):
    """More bytes are to come."""


class _Array:
    """The head of an array of `length` items, at least 1."""

    def __init__(self, length: int) -> None:
        self.length = length


def _item(buffer: bytes | bytearray, start: int) -> tuple[Reply | _Array, int]:
    """The item at `start`, or the head of an array, and where it ends."""
    end = buffer.find(b"\r\n", start)
    if end < 0:
        if len(buffer) - start > _LONGEST_LINE or buffer[start : start + 1] not in _FORMS:
            raise RespError("what answers there is neither Redis nor Valkey")
        raise _IncompleteError
    form, line, after = bytes(buffer[start : start + 1]), bytes(buffer[start + 1 : end]), end + 2
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
        return bytes(buffer[after : after + number]), after + number + 2
    return (_Array(number) if number else []), after
