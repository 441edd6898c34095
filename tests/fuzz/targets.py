"""The fuzzed functions, and the properties that hold for any bytes. A target is a function of bytes that fails by an
AssertionError, or by any exception that its parser does not document.

The first byte or bytes choose a path, a field or the cuts; the rest is what is parsed.
"""

from __future__ import annotations

import asyncio
import email
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from aiaas.config.load import load_text
from aiaas.errors import ClientError, UpstreamError
from aiaas.keys.format import foreign_key_fault, guessable, parse_key
from aiaas.openai import paths
from aiaas.openai.engine_fields import on_path
from aiaas.openai.errors import engine_died, is_error_event
from aiaas.openai.guard import Guard
from aiaas.openai.lenient import as_utf8, truth, whole
from aiaas.openai.multipart import Content, Field, File, FormScanner, Piece
from aiaas.openai.peek import Peek, peek
from aiaas.openai.splice import set_fields
from aiaas.openai.sse import EventSplitter
from aiaas.openai.streams import ends_stream, form_of, text_size
from aiaas.openai.toplevel import MAX_FIELDS, top_level
from aiaas.openai.usage import TokenUsage, is_usage_only_event, usage_of
from aiaas.openai.usagescan import UsageScan
from aiaas.proxy.client.answers import HeaderList
from aiaas.proxy.upstream.connection import Failure, Pool, UpstreamConnection
from aiaas.proxy.upstream.usage_tap import split_events
from tests.proxy.upstream.test_connection import REQUEST, NoSocket, endpoint

_PATHS: Final = (paths.CHAT, paths.COMPLETIONS, paths.RESPONSES, "/v1/messages", "/v1/embeddings", "/tokenize")
_LARGEST: Final = 2**63 - 1
_GUARD: Final = Guard({}, "pass")


# -- a client's body -----------------------------------------------------------------------------------------------


def peek_agrees_with_json(data: bytes) -> None:
    """`peek` and Python's parser read the same; `peek` raises nothing but ClientError."""
    path, body = _PATHS[data[0] % len(_PATHS)] if data else paths.CHAT, data[1:]
    try:
        body = as_utf8(body)
        read = peek(body, path)
    except ClientError:
        assert not _plain(body), body
        return
    top = _as_json(body)
    if top is None:
        return
    pairs = _pairs(body)
    names = [name for name, _ in pairs]
    for name in ("model", "stream", "max_tokens", "n", "stream_options", "background", "prompt", "input"):
        assert names.count(name) <= 1, name
    assert read.model == (top.get("model") or None)
    if path in paths.OUTPUT:
        assert read.stream is (_as_vllm(truth, top.get("stream")) is True)
    if path in paths.USAGE_ON_REQUEST:
        options = top.get("stream_options")
        assert read.has_stream_options is isinstance(options, dict)
        asked = _as_vllm(truth, options.get("include_usage")) if isinstance(options, dict) else None
        assert read.include_usage is (asked is True)
    assert read.background is (path == paths.RESPONSES and _as_vllm(truth, top.get("background")) is True)
    _assert_numbers(read, top, path)


def guard_hides_no_use(data: bytes) -> None:
    """A body that passes has no field of the operator's as Python reads it; nothing but ClientError is raised."""
    path, body = _PATHS[data[0] % len(_PATHS)] if data else paths.CHAT, data[1:]
    try:
        sent = _GUARD.check(body, peek(body, path), path)
    except ClientError:
        return
    top = _as_json(sent)
    if top is None:
        return
    for name, field in on_path(path).items():
        value = top.get(name)
        if field.action == "reject":
            assert not value or (field.harmless == "zero" and _as_vllm(whole, value) == 0), (name, value)
        elif field.unit == "number":
            number = _as_vllm(whole, value)
            assert number is None or 0 <= number <= (field.most or 0), (name, value)
    assert path != paths.RESPONSES or top["store"] is False


def _assert_numbers(read: Peek, top: dict[str, Any], path: str) -> None:
    number = {name: _as_vllm(whole, top.get(name)) for name in ("n", "best_of", "max_tokens", "max_completion_tokens")}
    if path == paths.CHAT and number["max_completion_tokens"] is not None:
        assert read.max_output == number["max_completion_tokens"]
    elif path in (paths.CHAT, paths.COMPLETIONS):
        assert read.max_output == number["max_tokens"]
    assert read.max_output is None or 0 <= read.max_output <= _LARGEST
    if path in paths.MANY_CHOICES:
        assert read.choices == max(number["n"] or 1, number["best_of"] or 1)
    assert read.choices >= 1
    if path == paths.COMPLETIONS and "prompt_embeds" not in top:
        assert read.prompts >= _prompts(top.get("prompt")), top


def _as_vllm(read: Callable[[object], int], value: object) -> int | None:
    try:
        return None if value is None else read(value)
    except ValueError:
        return None


def _prompts(value: Any) -> int:
    """How many prompts vLLM would see; it refuses any other shape."""
    if isinstance(value, list) and value and all(isinstance(each, (str, list)) for each in value):
        return len(value)
    return 1


def splice_changes_one_field(data: bytes) -> None:
    """Every byte that is not the field's value stays where it is, and the result has that field, once."""
    body = data[1:]
    name = ("model", "max_tokens", "stream_options")[data[0] % 3 if data else 0]
    try:
        peek(body, paths.CHAT)
        before = top_level(body)
    except ClientError:
        return
    try:
        result = set_fields(body, {name: b'"X\\u0001"'})
    except ClientError:
        return
    after = top_level(result)
    if all(key != name for key, _ in before):
        assert after[0][0] == name
        after = after[1:]
    assert [key for key, _ in after] == [key for key, _ in before]
    for (key, old), (_, new) in zip(before, after, strict=True):
        assert bytes(new) == (b'"X\\u0001"' if key == name else bytes(old))
    kept = len(_common_prefix(body, result)) + len(_common_prefix(body[::-1], result[::-1]))
    assert kept >= len(body) - max((len(bytes(old)) for key, old in before if key == name), default=0)


def top_level_keeps_every_field(data: bytes) -> None:
    """In order, duplicates included, as Python's parser sees them."""
    try:
        fields = top_level(data)
    except ClientError:
        assert not _plain(data)
        return
    if _as_json(data) is not None:
        pairs = _pairs(data)
        assert [name for name, _ in fields] == [name for name, _ in pairs]
        assert [json.loads(bytes(value)) for _, value in fields] == [value for _, value in pairs]


def _as_json(body: bytes) -> dict[str, Any] | None:
    """As Python reads it; None where it cannot (bytes that are no UTF-8 in what nobody reads, numbers too long)."""
    try:
        value = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    assert isinstance(value, dict)
    return value


def _pairs(body: bytes) -> list[tuple[str, Any]]:
    """The object's fields; nested ones as dicts, as `json.loads` gives them."""
    levels: list[list[tuple[str, Any]]] = []

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        levels.append(pairs)
        return dict(pairs)

    json.loads(body.decode(), object_pairs_hook=keep)  # of bytes it would guess the encoding
    return levels[-1]


def _plain(body: bytes) -> bool:
    """Whether it is so ordinary an object that nobody may refuse it: short, ASCII, no field that is read."""
    if not body.isascii() or b"\\" in body or b"model" in body or len(body) > 200:
        return False
    try:
        value = json.loads(body.decode(), parse_constant=_never)
    except (ValueError, RecursionError):
        return False
    harmless = isinstance(value, dict) and all(isinstance(each, str) for each in value.values())
    return harmless and all(key.startswith("x") for key in value) and len(value) <= MAX_FIELDS


def _never(text: str) -> None:
    raise ValueError(text)


def _common_prefix(one: bytes, other: bytes) -> bytes:
    for at, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return one[:at]
    return min(one, other, key=len)


# -- a backend's answer --------------------------------------------------------------------------------------------


def any_cut_gives_the_same_events(data: bytes) -> None:
    """And joined they are the input; usage and errors are read without an exception."""
    cuts, stream = _cuts(data)
    whole, parts = EventSplitter(), EventSplitter()
    events = whole.feed(stream)
    try:
        cut_events = [event for piece in _pieces(stream, cuts) for event in parts.feed(piece)]
    except UpstreamError as error:
        raise AssertionError("one cut is too long, and another not") from error
    assert cut_events == events
    assert whole.rest == parts.rest
    assert b"".join(events) + whole.rest == stream
    end = max(stream.rfind(b"\n\n") + 2, 0) if b"\n\n" in stream else 0
    assert b"".join(split_events(stream[:end])) == stream[:end]
    for event in (*events, stream):
        usage = usage_of(event)
        assert usage is None or min(usage.input_tokens, usage.output_tokens) >= 0
        is_usage_only_event(event)
        is_error_event(event)
        engine_died(event)
        for path in paths.OUTPUT:
            ends_stream(event, form_of(path))
        assert text_size(event) >= 0
    assert _scanned([stream]) == _scanned(_pieces(stream, cuts))


def _scanned(parts: Iterable[bytes]) -> TokenUsage | None:
    scan = UsageScan()
    for part in parts:
        scan.feed(part)
    return scan.usage


class _Told:
    """A Sink that records its calls."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.data = b""

    def head(self, status: int, headers: HeaderList) -> None:
        assert not self.calls
        assert status >= 200
        assert all(not set(name + value) & set(b"\r\n\x00") for name, value in headers), headers
        self.calls.append(("head", status, tuple(headers)))

    def body(self, data: bytes) -> None:
        assert len(self.calls) == 1
        assert data
        self.data += data

    def end(self) -> None:
        assert len(self.calls) == 1
        self.calls.append("end")

    def failed(self, failure: Failure) -> None:
        assert len(self.calls) <= 1
        self.calls.append(failure.kind)


_LOOP: Final = asyncio.new_event_loop()


def any_cut_gives_the_same_answer(data: bytes) -> None:
    """Whatever a backend writes, its answer is told in order, once, and the same however the bytes are cut."""
    cuts, answer = _cuts(data)
    whole, parts = _answered([answer]), _answered(_pieces(answer, cuts))
    assert whole.calls[-1:] == parts.calls[-1:], (whole.calls, parts.calls)
    if whole.calls[-1] == "end":
        assert (whole.calls, whole.data) == (parts.calls, parts.data)


def _answered(pieces: list[bytes]) -> _Told:
    pool, told = Pool(endpoint(1), 1.0), _Told()
    pool.close()
    connection = UpstreamConnection(pool, _LOOP)
    connection.connection_made(NoSocket())
    connection.exchange(REQUEST, told)
    for piece in pieces:
        connection.data_received(piece)
    connection.eof_received()
    connection.connection_lost(None)
    return told


def _cuts(data: bytes) -> tuple[list[int], bytes]:
    """Two bytes say where to cut the rest."""
    first, second, rest = data[:1], data[1:2], data[2:]
    return sorted(byte[0] % (len(rest) + 1) for byte in (first, second) if byte), rest


def _pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    ends = [*cuts, len(data)]
    return [piece for start, end in zip([0, *cuts], ends, strict=True) if (piece := data[start:end])]


# -- a form with a file --------------------------------------------------------------------------------------------


def any_cut_gives_the_same_form(data: bytes) -> None:
    """The same parts or the same refusal; joined they are the input, and a plain split at the boundary finds them."""
    cuts, body = _cuts(data)
    whole, cut = _form([body]), _form(_pieces(body, cuts))
    if isinstance(whole, str) or isinstance(cut, str):
        assert isinstance(whole, str) is isinstance(cut, str), (whole, cut)
        return
    parts = [*_parts(whole)]
    assert parts == [*_parts(cut)]
    assert b"".join(piece.raw for piece in whole) == b"".join(piece.raw for piece in cut) == body
    before, *between, last = (b"\r\n" + body).split(b"\r\n--B")
    assert (before, last.rstrip(b"\r\n")) == (b"", b"--")
    assert [content for _, content in parts] == [each.partition(b"\r\n\r\n")[2] for each in between]
    for (name, _), each in zip(parts, between, strict=True):
        head = email.message_from_bytes(each.partition(b"\r\n\r\n")[0].removeprefix(b"\r\n"))
        assert head.get_param("name", header="content-disposition") == name


def _form(parts: list[bytes]) -> list[Piece] | str:
    scanner = FormScanner(b"B")
    try:
        return [*(piece for part in parts for piece in scanner.feed(part)), scanner.close()]
    except ClientError as error:
        return error.message


def _parts(pieces: list[Piece]) -> Iterator[tuple[str, bytes]]:
    name, content = "", b""
    for piece in pieces:
        if isinstance(piece, Content):
            content += piece.raw
            continue
        if name:
            yield name, content
        name = ""
        if isinstance(piece, Field):
            yield piece.name, piece.value
        elif isinstance(piece, File):
            name, content = piece.name, b""


# -- an operator's files, and a presented key ----------------------------------------------------------------------


def a_key_is_parsed_or_not(data: bytes) -> None:
    """And what was parsed is written the same."""
    text = data.decode("utf-8", "surrogateescape")
    parsed = parse_key(text)
    assert parsed is None or (text.endswith(parsed.secret) or parsed.key_id in text)
    foreign_key_fault(text)
    guessable(text)


def a_config_is_loaded_or_has_problems(data: bytes) -> None:
    """Whatever stands in it, there is a Config, or a Problem that says why not."""
    loaded = load_text(data.decode("utf-8", "replace"), file="aiaas.yaml", env={})
    assert loaded.config is not None or loaded.problems
    for problem in loaded.problems:
        assert problem.message
        assert "\n" not in problem.message


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "peek": peek_agrees_with_json,
    "guard": guard_hides_no_use,
    "splice": splice_changes_one_field,
    "toplevel": top_level_keeps_every_field,
    "sse": any_cut_gives_the_same_events,
    "upstream": any_cut_gives_the_same_answer,
    "form": any_cut_gives_the_same_form,
    "key": a_key_is_parsed_or_not,
    "config": a_config_is_loaded_or_has_problems,
}
