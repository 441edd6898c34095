"""Read a `multipart/form-data` body while it passes: bytes in, pieces out, in bounded memory. Pure.

    scanner = FormScanner(form_boundary(content_type))
    for data in parts_of_the_body:
        pieces += scanner.feed(data)
    pieces.append(scanner.close())      # the body has ended

The `raw` bytes of all pieces, joined, are the body as it came, so that a caller can leave a piece out or change one
value and pass all the rest on. A delimiter belongs to the piece behind it:

    Field    "\\r\\n--B\\r\\n" headers "\\r\\n\\r\\n" value     whole, with its value of FIELD_MOST bytes at the most
    File     "\\r\\n--B\\r\\n" headers "\\r\\n\\r\\n"
    Content  bytes of the file before it
    Last     "\\r\\n--B--" or "\\r\\n--B--\\r\\n"           only from `close`: nothing may follow

(The first delimiter has no line end before it.) The body is read again by the engine, so this scanner refuses every
form that another parser could read otherwise; RFC 7578 and RFC 2046 allow more than it does:

- bytes before the first delimiter or behind the last one; blanks behind a delimiter, or other bytes (some parsers take
  them for content);
- a bare CR or LF, or a control character, in headers; folded, repeated or too many headers;
- a part without a name; parameters other than `name` and `filename`, or repeated ones; `filename*` without `filename`,
  which makes a file for some parsers and a field for others; a backslash before a quote;
- a field with another type than UTF-8 text, which some parsers take for a file or decode otherwise; `_charset_`;
- a transfer encoding that changes bytes, or a part's Content-Length that is not its length.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from aiaas.errors import ClientError

FIELD_MOST: Final = 64 * 1024  # bytes of a field's value; a prompt for a speech model has 224 tokens
HEADERS_MOST: Final = 4 * 1024  # bytes of one part's headers; vLLM's parser takes 4 KiB for a line
PARTS_MOST: Final = 100

# RFC 2046 section 5.1.1: 1 to 70 of these characters (it allows blanks inside, too).
_BOUNDARY: Final = r"[0-9A-Za-z'()+_,./:=?-]{1,70}"
_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_CONTENT_TYPE: Final = re.compile(
    rf'multipart/form-data[ \t]*;[ \t]*(?:charset="?utf-8"?[ \t]*;[ \t]*)?boundary=(?:"({_BOUNDARY})"|({_TOKEN}))'
    r'[ \t]*(?:;[ \t]*charset="?utf-8"?[ \t]*)?',
    re.IGNORECASE,
)
_ALLOWED: Final = re.compile(_BOUNDARY)
_HEADER: Final = re.compile(rf"({_TOKEN}):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_FORM_DATA: Final = re.compile(r"form-data[ \t]*", re.IGNORECASE)
_PARAMETER: Final = re.compile(rf';[ \t]*(name|filename\*?)=("(?:[^"\\]|\\(?!"))*"|{_TOKEN})[ \t]*', re.IGNORECASE)
_NAME: Final = re.compile(r"[0-9A-Za-z_.\[\]-]{1,100}")
_PLAIN_TEXT: Final = re.compile(r'text/plain[ \t]*(?:;[ \t]*charset="?(?:utf-8|us-ascii)"?[ \t]*)?', re.IGNORECASE)
_IDENTITY: Final = frozenset({"7bit", "8bit", "binary"})


@dataclass(frozen=True, slots=True)
class Field:
    """A whole field; its value stands at the end of `raw`."""

    raw: bytes
    name: str
    value: bytes


@dataclass(frozen=True, slots=True)
class File:
    """A file begins."""

    raw: bytes
    name: str


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes of a file."""

    raw: bytes


@dataclass(frozen=True, slots=True)
class Last:
    """The end of the form."""

    raw: bytes


Piece = Field | File | Content | Last


def form_boundary(content_type: str) -> bytes | None:
    """The boundary in a request's `Content-Type`; None if that is not a form's.

    Raises ClientError 400 for a form without exactly one valid boundary, or with another parameter: a `charset` would
    change what the engine reads.
    """
    if content_type.partition(";")[0].strip(" \t").lower() != "multipart/form-data":
        return None
    found = _CONTENT_TYPE.fullmatch(content_type)
    boundary = "" if found is None else found[1] or found[2]
    if not _ALLOWED.fullmatch(boundary):
        raise _invalid("`Content-Type` must name one boundary of 1 to 70 characters, and nothing else but utf-8")
    return boundary.encode()


def with_value(field: Field, value: bytes) -> bytes:
    """The bytes of `field` with another value."""
    return field.raw[: len(field.raw) - len(field.value)] + value


def new_field(boundary: bytes, name: str, value: bytes) -> bytes:
    """The bytes of a further field, to stand behind another piece."""
    return b'\r\n--%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b' % (boundary, name.encode(), value)


class FormScanner:
    """The state of one body. After an error it must not be used again."""

    __slots__ = ("_buffer", "_delimiter", "_file", "_head_end", "_length", "_name", "_parts", "_searched", "_size",
                 "_state")  # fmt: skip

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._buffer = b""  # bytes that are not given out yet
        self._state = _START
        self._parts = 0
        self._searched = 0  # bytes of the buffer without what is looked for
        # Of the present part:
        self._name = ""
        self._file = False
        self._length: int | None = None  # announced
        self._head_end = 0  # where a field's value begins in the buffer
        self._size = 0  # bytes of a file that have passed

    def feed(self, data: bytes) -> list[Piece]:
        """Read the next bytes. Raises ClientError 400 `invalid_request`."""
        self._buffer = self._buffer + data if self._buffer else data
        pieces: list[Piece] = []
        while self._step(pieces):
            pass
        return pieces

    def close(self) -> Last:
        """The body has ended. Raises ClientError 400 `invalid_request` if the form has not."""
        if self._state is not _LAST or not self._buffer.endswith((b"--", b"--\r\n")):
            raise _invalid("ends too early")
        last, self._buffer = Last(self._buffer), b""
        return last

    def _step(self, pieces: list[Piece]) -> bool:
        """Read one piece. Returns whether there may be another in the buffer."""
        if self._state is _START:
            return self._start()
        if self._state is _DELIMITER:
            return self._behind_delimiter()
        if self._state is _HEAD:
            return self._head(pieces)
        if self._state is _VALUE:
            return self._value(pieces)
        if self._state is _CONTENT:
            return self._content(pieces)
        self._end()
        return False

    def _start(self) -> bool:
        first = self._delimiter[2:]
        if not first.startswith(self._buffer[: len(first)]):
            raise _invalid("does not begin with its boundary")
        if len(self._buffer) < len(first):
            return False
        self._searched = len(first)
        self._state = _DELIMITER
        return True

    def _behind_delimiter(self) -> bool:
        """The buffer begins with a delimiter, which ends at `_searched`."""
        behind = self._buffer[self._searched : self._searched + 2]
        if not (b"\r\n".startswith(behind) or b"--".startswith(behind)):
            raise _invalid("has other bytes than a line end behind a boundary")
        if len(behind) < 2:
            return False
        if behind == b"--":
            self._state = _LAST
            return True
        self._parts += 1
        if self._parts > PARTS_MOST:
            raise _invalid(f"has more than {PARTS_MOST} parts")
        self._head_end = self._searched  # so far: where the head begins, with the delimiter's line end
        self._state = _HEAD
        return True

    def _head(self, pieces: list[Piece]) -> bool:
        begin = self._head_end
        end = self._buffer.find(b"\r\n\r\n", max(begin, self._searched - 3))
        if (len(self._buffer) if end < 0 else end) - begin > HEADERS_MOST:
            raise _invalid(f"has a part with headers of more than {HEADERS_MOST} bytes")
        if end < 0:
            self._searched = len(self._buffer)
            return False
        self._name, self._file, self._length = _read_head(self._buffer[begin + 2 : end])
        self._head_end = self._searched = end + 4
        if self._file:
            pieces.append(File(self._buffer[: end + 4], self._name))
            self._buffer = self._buffer[end + 4 :]
            self._searched = self._size = 0
        self._state = _CONTENT if self._file else _VALUE
        return True

    def _value(self, pieces: list[Piece]) -> bool:
        at = self._buffer.find(self._delimiter, max(self._head_end, self._searched - len(self._delimiter)))
        if (len(self._buffer) - len(self._delimiter) if at < 0 else at) - self._head_end > FIELD_MOST:
            raise _invalid(f"has more than {FIELD_MOST} bytes in `{self._name}`", self._name)
        if at < 0:
            self._searched = len(self._buffer)
            return False
        value = self._buffer[self._head_end : at]
        self._check_length(len(value))
        pieces.append(Field(self._buffer[:at], self._name, value))
        self._at_delimiter(at)
        return True

    def _content(self, pieces: list[Piece]) -> bool:
        buffer, delimiter = self._buffer, self._delimiter
        at = buffer.find(delimiter)
        end = at
        if at < 0:  # the last bytes may be the beginning of a delimiter, which has only one CR
            end = buffer.rfind(b"\r", max(0, len(buffer) - len(delimiter) + 1))
            if end < 0 or not delimiter.startswith(buffer[end:]):
                end = len(buffer)
        if end:
            self._size += end
            pieces.append(Content(buffer[:end] if end < len(buffer) else buffer))
        if at < 0:
            self._buffer = buffer[end:]
            return False
        self._check_length(self._size)
        self._at_delimiter(at)
        return True

    def _at_delimiter(self, at: int) -> None:
        self._buffer = self._buffer[at:]
        self._searched = len(self._delimiter)
        self._state = _DELIMITER

    def _check_length(self, size: int) -> None:
        if self._length is not None and self._length != size:
            raise _invalid(f"has another length of `{self._name}` than its `Content-Length`", self._name)

    def _end(self) -> None:
        if not b"--\r\n".startswith(self._buffer[self._searched :]):
            raise _invalid("has bytes behind its last boundary")


# The states of a scanner: what the buffer begins with.
_START: Final = "start"
_DELIMITER: Final = "delimiter"
_HEAD: Final = "head"
_VALUE: Final = "value"
_CONTENT: Final = "content"
_LAST: Final = "last"


def _read_head(head: bytes) -> tuple[str, bool, int | None]:
    """A part's name, whether it is a file, and its announced length. `head` has no last line end."""
    headers: dict[str, str] = {}
    for line in head.decode("latin-1").split("\r\n") if head else ():
        found = _HEADER.fullmatch(line)
        if found is None:
            raise _invalid("has a header that is not valid")
        name = found[1].lower()
        if name in headers:
            raise _invalid("has a part with a header twice")
        headers[name] = found[2].strip(" \t")
    name, is_file = _read_disposition(headers.get("content-disposition", ""))
    if headers.get("content-transfer-encoding", "binary").lower() not in _IDENTITY or "content-encoding" in headers:
        raise _invalid(f"has `{name}` in an encoding", name)
    kind = headers.get("content-type")
    if not is_file and kind is not None and not _PLAIN_TEXT.fullmatch(kind):
        raise _invalid(f"has another type than text/plain in utf-8 for `{name}`", name)
    length = headers.get("content-length")
    if length is None:
        return name, is_file, None
    if not (length.isascii() and length.isdigit() and len(length) < 20):
        raise _invalid(f"has a `Content-Length` of `{name}` that is not a number", name)
    return name, is_file, int(length)


def _read_disposition(value: str) -> tuple[str, bool]:
    begin = _FORM_DATA.match(value)
    at = 0 if begin is None else begin.end()
    parameters: dict[str, str] = {}
    while begin is not None and (found := _PARAMETER.match(value, at)) is not None:
        if found[1].lower() in parameters:
            break
        parameters[found[1].lower()] = found[2].strip('"')
        at = found.end()
    if begin is None or at != len(value):
        raise _invalid('has a part whose `Content-Disposition` is not like `form-data; name="model"`')
    name = parameters.get("name", "")
    if not _NAME.fullmatch(name) or name == "_charset_":
        raise _invalid("has a part without a valid name")
    if "filename*" in parameters and "filename" not in parameters:
        raise _invalid(f"names the file of `{name}` with `filename*` only; send `filename` too", name)
    return name, "filename" in parameters


def _invalid(what: str, param: str | None = None) -> ClientError:
    return ClientError(400, "invalid_request", f"The form {what}.", param=param)
