"""Read the fields of a request body that the gateway needs, without parsing the rest.

Theory: vLLM reads the body again with another parser. If the two parsers read a value differently, a client could be
admitted with one request and run another. So each value is read as vLLM reads it, or refused:

- A strict decoder reads the body first. If it refuses a field's type, the field is converted as vLLM converts it
  (`lenient.py`): `n: "8"` is 8, `stream: 1` is true, and `max_tokens: 5.5` is refused, as vLLM does.
- A repeated field is refused if the gateway reads it, also if a key is written with escapes.
- NaN and lone surrogates are refused because msgspec refuses them.
- All other fields pass unchanged: vLLM refuses a body with invalid UTF-8 inside a prompt as a whole, so such bytes
  cannot make it see another field.

All paths share one struct: a field that the path's request model in vLLM does not know is ignored here, too. msgspec
skips all other fields. `null` counts as absent, as it does in vLLM. docs/accepted.md lists all decisions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from aiaas.errors import ClientError
from aiaas.openai import paths, windows
from aiaas.openai.engine_fields import GUARDED
from aiaas.openai.lenient import scalar, truth, whole
from aiaas.openai.media import media_url
from aiaas.openai.session import NAMING_FIELDS, SessionFields, session_fields
from aiaas.openai.toplevel import UNREADABLE, may_hide_keys, top_level, unreadable


class Peek(msgspec.Struct, frozen=True):
    """The fields of a request body that the gateway needs.

    model               as the client wrote it, None if absent; never empty
    stream              whether the client asks for a stream
    include_usage       whether the client itself asks for the usage event of a stream
    has_stream_options  whether the body has `stream_options` (vLLM refuses it without `stream`, transcript 15)
    choices             the larger of `n` and `best_of`; at least 1
    prompts             the number of prompts: the length of a list of texts or of token lists, otherwise 1
    max_output          the bound on the output that vLLM would obey, in LLM tokens of one choice; None if absent
    max_output_field    the field that holds `max_output`, for splicing
    background          /v1/responses only: the request would outlive the connection
    media_url           the place of an image, audio or video URL other than `data:`, which vLLM would fetch
    stream_interval     the tokens that the client wants in each event of the stream; 1 by default
    service_tier        the class that the client asks for, as it wrote it; None if absent or not a text
    plain               the key of each of these fields occurs once in the body, without escapes: a search finds it
    guarded             the fields of `engine_fields.GUARDED` that the body has, as written; None if it has none
    session             the fields that may name its session, where `peek` was asked for them
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
    service_tier: str | None = None
    plain: bool = False
    guarded: dict[str, Raw] | None = None
    session: SessionFields | None = None


def peek(body: bytes, path: str, *, session: bool = False) -> Peek:
    """Read `body`, a request to `path`.

    Raises ClientError 400: `invalid_json`, or `invalid_request` with the field in `param`.
    """
    if len(body) > MAX_OPENINGS and windows.count_in(body, b"[") + windows.count_in(body, b"{") > MAX_OPENINGS:
        raise ClientError(400, "invalid_request", f"The body holds more than {MAX_OPENINGS} lists and objects.")
    try:
        fields = (_WITH_SESSION if session else _DECODER).decode(body)
    except msgspec.ValidationError as error:
        fields = _converted(body, path, error)
    except UNREADABLE as error:
        raise unreadable(error) from None
    values = msgspec.structs.astuple(fields)
    few = values[3:_ALL] == _NO_OTHERS  # nearly every request
    guarded = None if few or values[_OWN:_ALL] == _NOT_GUARDED else _guarded(values)
    escaped = may_hide_keys(body)
    plain = not escaped and len(body) <= LARGEST_COUNTED and _stands_once(body, fields, None if few else values)
    if plain and guarded is not None:
        plain = all(body.count(b'"%b"' % name.encode()) == 1 for name in guarded)
    if not plain:
        _refuse_duplicates(body, fields, guarded or {})
    bound, bound_field = _output_bound(fields, path)
    if few and plain and not session:
        media, stream = media_url(body, path, escaped=False), fields.stream is True
        return Peek(fields.model or None, stream, False, False, 1, 1, bound, bound_field, False, media, plain=True)
    return Peek(
        fields.model or None,
        fields.stream is True,
        isinstance(fields.stream_options, _StreamOptions) and fields.stream_options.include_usage is True,
        isinstance(fields.stream_options, _StreamOptions),
        _choices(fields) if path in paths.MANY_CHOICES else 1,
        _prompts(fields, guarded or {}, path) if path in paths.MANY_PROMPTS else 1,
        bound,
        bound_field,
        fields.background is True and path == paths.RESPONSES,
        media_url(body, path, escaped=escaped),
        1 if fields.stream_interval is UNSET else min(_hint(fields.stream_interval), LARGEST_INTERVAL),
        None if fields.service_tier is UNSET else _text(fields.service_tier),
        plain,
        guarded,
        session_fields(body, values[_ALL:], fields.input, fields.prompt) if session else None,
    )


def estimate_input_tokens(body_len: int) -> int:
    """Estimate the input tokens for a reservation, from the length of the body in bytes.

    One token for every four bytes, rounded up: about right for English text, slightly high because of the JSON around
    it, too high for inlined media. The settlement replaces the estimate by vLLM's count.
    """
    return (body_len + 3) >> 2


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _WrittenOptions(msgspec.Struct):
    include_usage: Raw = Raw(b"null")


class _Fields(msgspec.Struct):
    """UNSET means absent, null does not: a field that is present may be repeated."""

    # Fields of most requests.
    model: str | UnsetType | None = UNSET
    stream: bool | UnsetType | None = UNSET
    max_tokens: int | UnsetType | None = UNSET
    # Fields of few requests.
    max_completion_tokens: int | UnsetType | None = UNSET
    max_output_tokens: int | UnsetType | None = UNSET
    stream_options: _StreamOptions | UnsetType | None = UNSET
    stream_interval: Raw | UnsetType = UNSET  # a vLLM extension
    n: int | UnsetType | None = UNSET
    best_of: Raw | UnsetType = UNSET  # known to older vLLMs
    prompt: Raw | UnsetType = UNSET
    input: Raw | UnsetType = UNSET
    background: bool | UnsetType | None = UNSET
    service_tier: Raw | UnsetType = UNSET


_AllFields: Final = msgspec.defstruct(
    "_AllFields", [(name, Raw | UnsetType, UNSET) for name in GUARDED], bases=(_Fields,)
)
_WithSession: Final = msgspec.defstruct(
    "_WithSession", [(name, Raw | UnsetType, UNSET) for name in NAMING_FIELDS], bases=(_AllFields,)
)
_DECODER: Final[msgspec.json.Decoder[_Fields]] = msgspec.json.Decoder(_AllFields)
_WITH_SESSION: Final[msgspec.json.Decoder[_Fields]] = msgspec.json.Decoder(_WithSession)
_MODEL: Final = msgspec.json.Decoder(str | None)
_OPTIONS: Final = msgspec.json.Decoder(_WrittenOptions | None)
_LARGEST: Final = 2**63 - 1  # some clients send it for "unbounded"; larger numbers do not fit the limiter's floats

# Brackets and braces of a body, in strings too. msgspec takes 8 ns for each, and other threads wait meanwhile: 10 MiB
# of brackets took 40 ms. A megabyte of JSON schemas has 40,000 of them.
MAX_OPENINGS: Final = 1_000_000
# Bytes; in larger bodies keys are not counted: decoding the body again takes half as long as three searches may.
LARGEST_COUNTED: Final = 256 * 1024

# Prompts of one request, to generate from or to embed. The SDKs' largest batch to embed is 2048 texts.
MAX_PROMPTS: Final = 100_000
# Tokens in one event of a stream; with more than this in an event, every answer is a single event.
LARGEST_INTERVAL: Final = 1_000_000

_NAMES: Final = _Fields.__struct_fields__
_KEYS: Final = tuple(f'"{name}"'.encode() for name in _NAMES)  # without escapes, as nearly every client writes them
_OWN: Final = len(_NAMES)
_ALL: Final = _OWN + len(GUARDED)
_NOT_GUARDED: Final = (UNSET,) * len(GUARDED)
_NO_OTHERS: Final = (UNSET,) * len(_KEYS[3:]) + _NOT_GUARDED

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

# The fields above that the request models of vLLM 0.32 know. On other paths only `model` and _AS_IT_STANDS are read.
_KNOWN: Final[dict[str, frozenset[str]]] = {
    paths.CHAT: frozenset({"stream", "max_tokens", "max_completion_tokens", "stream_options", "n"}),
    paths.COMPLETIONS: frozenset({"stream", "max_tokens", "stream_options", "n"}),
    paths.RESPONSES: frozenset({"stream", "max_output_tokens", "background"}),
    paths.MESSAGES: frozenset({"stream", "max_tokens"}),
}
_AS_IT_STANDS: Final = frozenset({"stream_interval", "best_of", "prompt", "input", "service_tier"})


def _converted(body: bytes, path: str, error: msgspec.ValidationError) -> _Fields:
    """The fields of a body that the strict decoder refused with `error`, as vLLM converts them.

    Raises ClientError 400 if vLLM would refuse a field, too.
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
            values[name] = None  # not UNSET, so that a repeated field is still found
        elif name in GUARDED:
            values[name] = value
    fields = _AllFields(**values)
    assert isinstance(fields, _Fields)
    return fields


def _guarded(values: tuple[Any, ...]) -> dict[str, Raw]:
    return {name: value for name, value in zip(GUARDED, values[_OWN:_ALL], strict=True) if value is not UNSET}


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


def _stands_once(body: bytes, fields: _Fields, values: tuple[Any, ...] | None) -> bool:
    """Whether the key of each present field occurs just once in the body: then no field is repeated.

    values  all fields, None if only the first three are present
    """
    if (fields.model is not UNSET and body.count(b'"model"') != 1) or (
        fields.max_tokens is not UNSET and body.count(b'"max_tokens"') != 1
    ):
        return False
    if values is None:
        return fields.stream is UNSET or body.count(b'"stream"') == 1
    own = values[:_OWN]
    return all(value is UNSET or body.count(key) == 1 for value, key in zip(own, _KEYS, strict=True)) and (
        fields.stream_options is UNSET or body.count(b'"include_usage"') <= 1
    )


def _refuse_duplicates(body: bytes, fields: _Fields, guarded: Mapping[str, Raw]) -> None:
    """Raise ClientError 400 for a repeated field, however its key is written."""
    found = top_level(body)
    counts = Counter(name for name, _ in found)
    if isinstance(fields.stream_options, _StreamOptions):
        options = bytes(dict(found)["stream_options"])
        counts.update(f"stream_options.{name}" for name, _ in top_level(options))
    for name in (*_NAMES, "stream_options.include_usage", *guarded):
        if counts[name] > 1:
            raise ClientError(400, "invalid_request", f"`{name}` appears more than once.", param=name)


def _at_least(least: int, value: int | UnsetType | None, name: str) -> int | None:
    if value is None or value is UNSET:
        return None
    if not least <= value <= _LARGEST:
        raise _must_be(name)
    return value


def _output_bound(fields: _Fields, path: str) -> tuple[int | None, str | None]:
    """The bound and its field. vLLM's chat uses `max_completion_tokens` if present, however large, and otherwise
    `max_tokens`; its completions do not know `max_completion_tokens` (vLLM, `create_chat_completion`,
    `CompletionRequest`).
    """
    if path not in paths.OUTPUT:
        return None, None
    if path == paths.RESPONSES:
        tokens, field = _at_least(1, fields.max_output_tokens, "max_output_tokens"), "max_output_tokens"
    else:
        tokens, field = None, "max_completion_tokens"
        if path == paths.CHAT and fields.max_completion_tokens is not UNSET:
            tokens = _at_least(1, fields.max_completion_tokens, field)
        if tokens is None:
            tokens, field = _at_least(0, fields.max_tokens, "max_tokens"), "max_tokens"
    return tokens, None if tokens is None else field


def _choices(fields: _Fields) -> int:
    if fields.n is UNSET and fields.best_of is UNSET:
        return 1
    n = _at_least(1, fields.n, "n") or 1
    return n if fields.best_of is UNSET else max(n, _hint(fields.best_of))


def _prompts(fields: _Fields, guarded: Mapping[str, Raw], path: str) -> int:
    if path == paths.COMPLETIONS:
        embeds = guarded.get("prompt_embeds", UNSET)  # further prompts, as base64 tensors
        return _count(fields.prompt, "prompt") + _count(embeds, "prompt_embeds") or 1
    return _count(fields.input, "input") or 1


def _hint(value: Raw) -> int:
    """A number that vLLM validates itself: the value that vLLM would obey, 1 if the number cannot be read."""
    try:
        return max(1, whole(scalar(value)))
    except ValueError:
        return 1


def _text(value: Raw) -> str | None:
    """A text that decides nothing about the answer; None if it is another value, which vLLM refuses or ignores."""
    try:
        text: str | None = _MODEL.decode(value)
    except UNREADABLE:
        return None
    return text


def _count(value: Raw | UnsetType, name: str) -> int:
    """The number of prompts in `value`, the field `name`. Raises ClientError 400 for more than MAX_PROMPTS.

    vLLM knows four shapes: a text, a list of texts, a list of token ids (one prompt), a list of such lists. The first
    item of a list shows its shape, and vLLM refuses mixed lists as a whole, so counting bytes is enough. Decoding the
    list would cost 60 ns and 64 bytes for each value: ten megabytes of empty texts blocked the gateway for a quarter of
    a second and took 240 MB, only to be refused.
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
        count = windows.count_in(written, b"[") - 1
    else:  # a shape that vLLM does not know
        count = windows.count_in(written, b",") + 1
    if count > MAX_PROMPTS:
        raise ClientError(400, "invalid_request", f"`{name}` holds more than {MAX_PROMPTS} prompts.", param=name)
    return count


def _texts(value: bytes) -> int:
    """The number of texts in valid JSON: pairs of quotes, without the escaped quotes inside a text."""
    if value.find(b"\\") < 0:
        return value.count(b'"') // 2
    if value.find(b"\\\\") >= 0:  # a quote after an escaped backslash is not escaped: it ends its text
        value = value.replace(b"\\\\", b"")
    return (value.count(b'"') - value.count(b'\\"')) // 2


_LIST: Final = ord("[")
_NULL: Final = ord("n")
_NUMBER: Final = frozenset(b"%d" % digit for digit in range(10)) | {b"-"}
_FIRST: Final = re.compile(rb"\[[ \t\r\n]*(.)", re.DOTALL)
