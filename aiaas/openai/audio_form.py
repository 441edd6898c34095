"""The wishes in the form of `/v1/audio/transcriptions` or `/v1/audio/translations`, read part by part. Pure.

Parts may come in any order: the OpenAI library for Python sends `model` before the file, curl and the one for Node as
their caller wrote it, which is often behind it. vLLM reads the form only once it is whole, so a part that is refused
late has not been acted on, as long as the end of the form is held back.

Values are read as vLLM's request model converts them. A field may occur once, since parsers differ in which one they
take; lists (`timestamp_granularities[]`) may repeat theirs.
"""

from __future__ import annotations

from typing import Final

from aiaas.errors import ClientError
from aiaas.openai.guard import Guard
from aiaas.openai.lenient import LONGEST_VALUE, truth, whole
from aiaas.openai.multipart import Field, File, Piece, new_field, with_value
from aiaas.openai.paths import OUTPUT_FIELD

_FILE: Final = "file"
_MODEL: Final = "model"
_STREAM: Final = "stream"
_USAGE: Final = "stream_include_usage"
_EACH_USAGE: Final = "stream_continuous_usage_stats"
_CHOICES: Final = "n"


class AudioForm:
    """A form so far.

    model         as the client wrote it; None while it has not come
    has_file      its file has begun
    stream        the client wants a stream
    output_field  the field that bounds the answer's tokens
    """

    __slots__ = ("_ask", "_each_usage", "_guard", "_max_choices", "_output", "_path", "_seen", "_stripped", "_usage",
                 "has_file", "model", "output_field", "stream")  # fmt: skip

    def __init__(self, path: str, guard: Guard, max_choices: int) -> None:
        self._path = path
        self._guard = guard
        self._max_choices = max_choices
        self._seen: set[str] = set()
        self._stripped: set[str] = set()
        self._output: int | None = None
        self._usage = self._each_usage = False
        self._ask: bool | None = None
        self.model: str | None = None
        self.has_file = False
        self.stream = False
        self.output_field = OUTPUT_FIELD[path]

    def take(self, piece: Piece) -> None:
        """Read the next piece. Raises ClientError 400 `invalid_request`."""
        if isinstance(piece, Field):
            self._once(piece.name)
            self._field(piece.name, piece.value)
        elif isinstance(piece, File):
            if piece.name != _FILE:
                raise _refused(piece.name, f"`{piece.name}` must not be a file; the only file is `{_FILE}`.")
            self._once(piece.name)
            self.has_file = True

    def _once(self, name: str) -> None:
        if name.lower() in self._seen and not name.endswith("[]"):
            raise _refused(name, f"The form has `{name}` twice.")
        self._seen.add(name.lower())

    def _field(self, name: str, value: bytes) -> None:
        if name == _FILE:
            raise _refused(name, f"`{_FILE}` must be a file: a part with a `filename`.")
        if self._guard.strips_from_form(name, value, self._path):
            self._stripped.add(name)
        elif name == _MODEL:
            if not value:
                raise _refused(name, "`model` is empty; GET /v1/models lists the names.")
            self.model = _text(value)
        elif name == _STREAM:
            self.stream = _truth(value)
        elif name == _USAGE:
            self._usage = _truth(value)
        elif name == _EACH_USAGE:
            self._each_usage = _truth(value)
        elif name == _CHOICES:
            if (_whole(value) or 0) > self._max_choices:
                raise _refused(name, f"`{name}` may be at most {self._max_choices}.")
        elif name == self.output_field:
            self._output = _whole(value)

    def refuse_output_above(self, most: int | None) -> None:
        """Raise ClientError 400 `invalid_request` if the form so far asks for more output tokens than `most`."""
        if most is not None and self._output is not None and not 0 <= self._output <= most:
            raise _refused(self.output_field, f"`{self.output_field}` may be at most {most} for this model.")

    @property
    def asks_for_usage(self) -> bool:
        """Whether the gateway asks for the usage of the stream, which the client did not. Final once the form is."""
        return self.stream and _USAGE not in self._seen and not self._each_usage

    @property
    def may_be_stripped(self) -> bool:
        """Whether the operator has a field left out."""
        return self._guard.strips_some(self._path)

    def rewritten(self, piece: Field, model: bytes | None, most: int | None) -> bytes:
        """The bytes of a field as they go on.

        model  the name of the model at its backend, None to leave it
        most   the bound of the output tokens, None to leave them
        """
        if piece.name in self._stripped:
            return b""
        if piece.name == _MODEL and model is not None:
            return with_value(piece, model)
        if piece.name == self.output_field and most is not None:
            asked = _whole(piece.value)
            if not piece.value or (asked is not None and not 0 <= asked <= most):
                return with_value(piece, b"%d" % most)
        return piece.raw

    def added(self, boundary: bytes, most: int | None, *, usage: bool) -> bytes:
        """The fields to write before the end of the form: the bound, if it has none, and the wish for usage."""
        fields = b""
        if most is not None and self.output_field not in self._seen:
            fields = new_field(boundary, self.output_field, b"%d" % most)
        return fields + (new_field(boundary, _USAGE, b"true") if usage else b"")


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise _refused(_MODEL, f"`{_MODEL}` must be UTF-8.") from None


def _truth(value: bytes) -> bool:
    """False for a text that vLLM refuses, too."""
    try:
        return truth(value[:LONGEST_VALUE].decode("latin-1"))
    except ValueError:
        return False


def _whole(value: bytes) -> int | None:
    """None for a text that vLLM refuses, too."""
    try:
        return whole(value[:LONGEST_VALUE].decode("utf-8"))
    except ValueError:
        return None


def _refused(name: str, message: str) -> ClientError:
    return ClientError(400, "invalid_request", message, param=name)
