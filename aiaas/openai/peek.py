"""Read what a gateway has to know from a request body, without parsing the rest of it.

Theory: vLLM reads the body again, with another parser. Whatever the two could read differently, a client could use to
be admitted as one request and run as another. So each value comes out as vLLM reads it, or is refused:

- A strict decoder reads the body first. Where it refuses a field's type, the field is converted as vLLM converts it
  (`lenient.py`): `n: "8"` is 8, `stream: 1` is true, and `max_tokens: 5.5` is refused, as it is there.
- A field that we read and that comes twice is refused, also where a key is written with escapes.
- NaN and lone surrogates are refused because msgspec does.
- What we do not read goes through as it is: invalid UTF-8 inside a prompt is vLLM's to refuse, whole, and cannot make
  it see another field.

One struct for all paths: a field that the path's request model in vLLM does not know is ignored here, too. Every other
field is skipped by msgspec. `null` counts as absent, as it does in vLLM. docs/accepted.md has all decisions.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from aiaas.errors import ClientError
from aiaas.openai import paths
from aiaas.openai.lenient import scalar, truth, whole
from aiaas.openai.media import media_url
from aiaas.openai.toplevel import UNREADABLE, may_hide_keys, top_level, unreadable


class Peek(msgspec.Struct, frozen=True):
    """What was read.

    model               as the client wrote it, None where absent; never empty
    stream              whether the answer is to be streamed
    include_usage       whether the client itself asked for the usage event of a stream
    has_stream_options  whether `stream_options` is there at all (vLLM refuses it without `stream`, transcript 15)
    choices             `n`, or `best_of` where larger; at least 1
    prompts             how many prompts the request holds: the length of a list of texts or of token lists, else 1
    max_output          the bound on the output that vLLM would obey, in LLM tokens of one choice; None where absent
    max_output_field    the field that says so, which is the one to splice
    background          /v1/responses only: it would outlive the connection
    media_url           where an image, audio or video is named by a URL that is not `data:`; vLLM would fetch it
    stream_interval     tokens that vLLM is asked to put into each event of the stream; 1 where that is not said
    """

    model: str | None
    stream: bool
    include_usage: bool
    has_stream_options: bool
    choices: int
    prompts: int
    max_output: int | None
    max_output_field: str | None
    background: bool
    media_url: str | None
    stream_interval: int = 1


def peek(body: bytes, path: str) -> Peek:
    """Read `body`, a request to `path`.

    Raises ClientError 400: `invalid_json`, or `invalid_request` with the field in `param`.
    """
    if len(body) > MAX_OPENINGS and body.count(b"[") + body.count(b"{") > MAX_OPENINGS:
        raise ClientError(400, "invalid_request", f"The body holds more than {MAX_OPENINGS} lists and objects.")
    try:
        fields = _DECODER.decode(body)
    except msgspec.ValidationError as error:
        fields = _converted(body, path, error)
    except UNREADABLE as error:
        raise unreadable(error) from None
    escaped = may_hide_keys(body)
    _refuse_duplicates(body, fields, escaped or len(body) > LARGEST_COUNTED)
    bound, bound_field = _output_bound(fields, path)
    options = fields.stream_options
    return Peek(
        fields.model or None,
        fields.stream is True,
        isinstance(options, _StreamOptions) and options.include_usage is True,
        isinstance(options, _StreamOptions),
        _choices(fields) if path in paths.MANY_CHOICES else 1,
        _prompts(fields, path) if path in paths.MANY_PROMPTS else 1,
        bound,
        bound_field,
        fields.background is True and path == paths.RESPONSES,
        media_url(body, path, escaped=escaped),
        1 if fields.stream_interval is UNSET else min(_hint(fields.stream_interval), LARGEST_INTERVAL),
    )


def estimate_input_tokens(body_len: int) -> int:
    """A rough count of input tokens for a reservation, from the length of the body in bytes.

    One token for every four bytes, rounded up: about right for English text, on the high side by the JSON around it,
    too high for inlined media. The settlement replaces it by what vLLM counted.
    """
    return (body_len + 3) >> 2


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _WrittenOptions(msgspec.Struct):
    include_usage: Raw = Raw(b"null")


class _Fields(msgspec.Struct):
    """UNSET is absent, which is not the same as null: a field that is there may be there twice."""

    # In most requests.
    model: str | UnsetType | None = UNSET
    stream: bool | UnsetType | None = UNSET
    max_tokens: int | UnsetType | None = UNSET
    # In few.
    max_completion_tokens: int | UnsetType | None = UNSET
    max_output_tokens: int | UnsetType | None = UNSET
    stream_options: _StreamOptions | UnsetType | None = UNSET
    stream_interval: Raw | UnsetType = UNSET  # vLLM's own
    n: int | UnsetType | None = UNSET
    best_of: Raw | UnsetType = UNSET  # of older vLLMs
    prompt: Raw | UnsetType = UNSET
    prompt_embeds: Raw | UnsetType = UNSET  # vLLM's own: further prompts, as base64 tensors
    input: Raw | UnsetType = UNSET
    background: bool | UnsetType | None = UNSET


_DECODER: Final = msgspec.json.Decoder(_Fields)
_MODEL: Final = msgspec.json.Decoder(str | None)
_OPTIONS: Final = msgspec.json.Decoder(_WrittenOptions | None)
_LARGEST: Final = 2**63 - 1  # some clients send it for "no bound"; what is larger does not fit the limiter's floats

# Brackets and braces of a body, in texts too. msgspec takes 8 ns for each, and no other thread runs meanwhile: 10 MiB
# of brackets took 40 ms. Of a megabyte of JSON schemas 40,000 bytes are such.
MAX_OPENINGS: Final = 1_000_000
# Bytes; in larger bodies keys are not counted: to decode them anew takes half as long as three searches may.
LARGEST_COUNTED: Final = 256 * 1024

# Of one request, to generate from or to embed. The SDKs' largest batch to embed is 2048 texts.
MAX_PROMPTS: Final = 100_000  # Tokens in one event: with more than that in an event no answer has a second one.
LARGEST_INTERVAL: Final = 1_000_000

_NAMES: Final = _Fields.__struct_fields__
_KEYS: Final = tuple(f'"{name}"'.encode() for name in _NAMES)  # as they are nearly always written
_NO_OTHERS: Final = (UNSET,) * len(_KEYS[3:])

_TRUTH: Final = "true or false"
_EXPECTED: Final = {
    "model": "a string",
    "stream": _TRUTH,
    "stream_options": "an object",
    "stream_options.include_usage": _TRUTH,
    "n": "a whole number from 1 to 2^63 - 1",
    "max_tokens": "a whole number from 0 to 2^63 - 1",
    "max_completion_tokens": "a whole number from 1 to 2^63 - 1",
    "max_output_tokens": "a whole number from 1 to 2^63 - 1",
    "background": _TRUTH,
}

# What the request models of vLLM 0.32 know of the fields above; on other paths `model` and what is read as it stands.
_KNOWN: Final[dict[str, frozenset[str]]] = {
    paths.CHAT: frozenset({"stream", "max_tokens", "max_completion_tokens", "stream_options", "n"}),
    paths.COMPLETIONS: frozenset({"stream", "max_tokens", "stream_options", "n"}),
    paths.RESPONSES: frozenset({"stream", "max_output_tokens", "background"}),
    paths.MESSAGES: frozenset({"stream", "max_tokens"}),
}
_AS_IT_STANDS: Final = frozenset({"stream_interval", "best_of", "prompt", "prompt_embeds", "input"})


def _converted(body: bytes, path: str, error: msgspec.ValidationError) -> _Fields:
    """The fields of a body that the strict decoder refused with `error`, as vLLM converts them.

    Raises ClientError 400 where vLLM refuses a field, too.
    """
    if "at `$." not in str(error):
        raise ClientError(400, "invalid_request", "The body must be a JSON object.")
    known = _KNOWN.get(path, frozenset())
    values: dict[str, Any] = {}
    for name, value in top_level(body):
        if name in _AS_IT_STANDS:
            values[name] = value
        elif name == "model" or name in known:
            values[name] = _convert(name, value)
        elif name in _NAMES:
            values[name] = None  # there, which counts where it is there twice
    return _Fields(**values)


def _convert(name: str, written: Raw) -> Any:
    if name == "stream_options":
        return _convert_options(written)
    if name == "model":
        try:
            return _MODEL.decode(written)
        except UNREADABLE:
            raise _must_be(name) from None
    try:
        value = scalar(written)
        if value is None:
            return None
        return truth(value) if _EXPECTED[name] == _TRUTH else whole(value)
    except ValueError:
        raise _must_be(name) from None


def _convert_options(written: Raw) -> _StreamOptions | None:
    try:
        options = _OPTIONS.decode(written)
    except UNREADABLE:
        raise _must_be("stream_options") from None
    if options is None:
        return None
    try:
        value = scalar(options.include_usage)
        return _StreamOptions(None if value is None else truth(value))
    except ValueError:
        raise _must_be("stream_options.include_usage") from None


def _must_be(name: str) -> ClientError:
    return ClientError(400, "invalid_request", f"`{name}` must be {_EXPECTED[name]}.", param=name)


def _refuse_duplicates(body: bytes, fields: _Fields, exact: bool) -> None:
    """A field that is there, and whose key stands in the body just once and unescaped, cannot be there twice."""
    if not exact and msgspec.structs.astuple(fields)[3:] == _NO_OTHERS:
        if (
            (fields.model is UNSET or body.count(b'"model"') == 1)
            and (fields.stream is UNSET or body.count(b'"stream"') == 1)
            and (fields.max_tokens is UNSET or body.count(b'"max_tokens"') == 1)
        ):
            return
    elif not exact and (
        all(
            value is UNSET or body.count(key) == 1
            for value, key in zip(msgspec.structs.astuple(fields), _KEYS, strict=True)
        )
        and (fields.stream_options is UNSET or body.count(b'"include_usage"') <= 1)
    ):
        return
    found = top_level(body)
    counts = Counter(name for name, _ in found)
    if isinstance(fields.stream_options, _StreamOptions):
        options = bytes(dict(found)["stream_options"])
        counts.update(f"stream_options.{name}" for name, _ in top_level(options))
    for name in (*_NAMES, "stream_options.include_usage"):
        if counts[name] > 1:
            raise ClientError(400, "invalid_request", f"`{name}` is there more than once.", param=name)


def _at_least(least: int, value: int | UnsetType | None, name: str) -> int | None:
    if value is None or value is UNSET:
        return None
    if not least <= value <= _LARGEST:
        raise _must_be(name)
    return value


def _output_bound(fields: _Fields, path: str) -> tuple[int | None, str | None]:
    """The bound and its field. vLLM's chat takes `max_completion_tokens` where it is there, however large, and only
    else looks at `max_tokens`; its completions do not know the former (vLLM, `create_chat_completion`,
    `CompletionRequest`).
    """
    if path not in paths.OUTPUT:
        return None, None
    if path == paths.RESPONSES:
        tokens, field = _at_least(1, fields.max_output_tokens, "max_output_tokens"), "max_output_tokens"
    else:
        tokens, field = None, "max_completion_tokens"
        if path == paths.CHAT:
            tokens = _at_least(1, fields.max_completion_tokens, field)
        if tokens is None:
            tokens, field = _at_least(0, fields.max_tokens, "max_tokens"), "max_tokens"
    return tokens, None if tokens is None else field


def _choices(fields: _Fields) -> int:
    if fields.n is UNSET and fields.best_of is UNSET:
        return 1
    n = _at_least(1, fields.n, "n") or 1
    return n if fields.best_of is UNSET else max(n, _hint(fields.best_of))


def _prompts(fields: _Fields, path: str) -> int:
    if path == paths.COMPLETIONS:
        return _count(fields.prompt, "prompt") + _count(fields.prompt_embeds, "prompt_embeds") or 1
    return _count(fields.input, "input") or 1


def _hint(value: Raw) -> int:
    """A number that vLLM checks; here it only matters what vLLM would obey, which is 1 where it cannot be read."""
    try:
        return max(1, whole(scalar(value)))
    except ValueError:
        return 1


def _count(value: Raw | UnsetType, name: str) -> int:
    """How many prompts `value`, the field `name`, holds. Raises ClientError 400 for more than MAX_PROMPTS.

    vLLM knows four shapes: a text, a list of texts, a list of token ids (one prompt), a list of such lists. How a list
    begins says which one it is; what is mixed, vLLM refuses as a whole. So counting bytes is enough. To decode the list
    would cost 60 ns and 64 bytes for each value: ten megabytes of empty texts stopped the gateway for a quarter of a
    second and took 240 MB, and were refused afterwards.
    """
    if value is UNSET:
        return 0
    text = memoryview(value)
    if text[0] != _LIST:
        return 0 if text[0] == _NULL else 1
    begin = _FIRST.match(text)
    first = b"" if begin is None else begin[1]
    if first == b"]":
        return 0
    if first in _NUMBER:
        return 1
    written = bytes(text)
    if first == b'"':
        count = _texts(written)
    elif first == b"[":
        count = written.count(b"[") - 1
    else:  # no shape that vLLM knows
        count = written.count(b",") + 1
    if count > MAX_PROMPTS:
        raise ClientError(400, "invalid_request", f"`{name}` holds more than {MAX_PROMPTS} prompts.", param=name)
    return count


def _texts(value: bytes) -> int:
    """How many texts stand in valid JSON: pairs of quotes, without those that are escaped inside a text."""
    if value.find(b"\\") < 0:
        return value.count(b'"') // 2
    if value.find(b"\\\\") >= 0:  # an escaped backslash escapes nothing: the quote after it ends its text
        value = value.replace(b"\\\\", b"")
    return (value.count(b'"') - value.count(b'\\"')) // 2


_LIST: Final = ord("[")
_NULL: Final = ord("n")
_NUMBER: Final = frozenset(b"%d" % digit for digit in range(10)) | {b"-"}
_FIRST: Final = re.compile(rb"\[[ \t\r\n]*(.)", re.DOTALL)
