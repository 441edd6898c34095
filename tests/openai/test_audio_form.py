"""aiaas.openai.audio_form: what a form asks for, in any order of its parts."""

from __future__ import annotations

import pytest

from aiaas.errors import ClientError
from aiaas.openai.audio_form import AudioForm
from aiaas.openai.engine_fields import FieldRule
from aiaas.openai.guard import Guard
from aiaas.openai.multipart import Field, File
from aiaas.openai.paths import TRANSCRIPTIONS, UPLOADS
from aiaas.openai.usage import seconds_of_answer


def field(name: str, value: bytes) -> Field:
    """A field of a form whose boundary is `b`."""
    return Field(
        b'\r\n--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b' % (name.encode(), value), name, value
    )


def form(*fields: tuple[str, bytes], rules: dict[str, FieldRule] | None = None) -> AudioForm:
    """A form with these fields."""
    made = AudioForm(TRANSCRIPTIONS, Guard(rules or {}, "pass"), 8)
    for name, value in fields:
        made.take(field(name, value))
    return made


@pytest.mark.parametrize(
    ("value", "stream"),
    [(b"true", True), (b"True", True), (b"1", True), (b"on", True), (b"false", False), (b"", False), (b"maybe", False)],
)
def test_stream_is_read_as_vllm_reads_it(value: bytes, stream: bool) -> None:
    """A text that vLLM refuses does not make a stream."""
    assert form(("stream", value)).stream is stream


@pytest.mark.parametrize(
    ("fields", "asks"),
    [
        ([("stream", b"true")], True),
        ([], False),
        ([("stream", b"false")], False),
        ([("stream", b"true"), ("stream_include_usage", b"true")], False),
        ([("stream_include_usage", b"false"), ("stream", b"true")], False),
        ([("stream", b"true"), ("stream_continuous_usage_stats", b"true")], False),
        ([("stream", b"true"), ("stream_continuous_usage_stats", b"false")], True),
    ],
)
def test_usage_is_asked_for_where_the_client_said_nothing(fields: list[tuple[str, bytes]], asks: bool) -> None:
    """A second `stream_include_usage` would be refused, or win; with statistics on each event it would change them."""
    assert form(*fields).asks_for_usage is asks


@pytest.mark.parametrize(
    ("name", "value"),
    [("n", b"9"), ("n", b"0_9"), ("n", b" 9.0 "), ("vllm_xargs", b'{"a":1}'), ("vllm_xargs", b"x"), ("file", b"x"),
     ("model", b""), ("model", b"\xff")],
)  # fmt: skip
def test_field_is_refused_with_its_name(name: str, value: bytes) -> None:
    """However the number is written."""
    with pytest.raises(ClientError) as raised:
        form((name, value))
    assert raised.value.param == name


def test_rules_of_the_operator_hold_for_forms() -> None:
    """Refused, left out where it is used, bounded, or allowed."""
    reject, strip = FieldRule("reject"), FieldRule("strip")
    with pytest.raises(ClientError):
        form(("seed", b"1"), rules={"seed": reject})
    made = form(("seed", b"1"), ("prompt", b""), rules={"seed": strip, "prompt": reject})
    assert made.rewritten(field("seed", b"1"), None, None) == b""
    assert made.may_be_stripped
    assert not form().may_be_stripped
    assert form(("vllm_xargs", b'{"a":1}'), rules={"vllm_xargs": FieldRule("pass")}).model is None


@pytest.mark.parametrize(
    ("value", "most", "sent"),
    [(b"5", 10, b"5"), (b"10", 10, b"10"), (b"11", 10, b"10"), (b"-1", 10, b"10"), (b"", 10, b"10"), (b"x", 10, b"x"),
     (b"11", None, b"11")],
)  # fmt: skip
def test_output_above_the_bound_becomes_the_bound(value: bytes, most: int | None, sent: bytes) -> None:
    """vLLM refuses a text that is not a number, and takes an empty one for no bound."""
    made = form(("max_completion_tokens", value))
    assert made.rewritten(field("max_completion_tokens", value), None, most).endswith(b"\r\n\r\n" + sent)
    assert made.added(b"b", most, usage=False) == b""


def test_only_file_is_the_file_and_once() -> None:
    """A `model` that some parsers take for a file has no name that all agree on."""
    made = form()
    made.take(File(b"", "file"))
    assert made.has_file
    for name in ("file", "model"):
        with pytest.raises(ClientError):
            made.take(File(b"", name))


def test_fields_are_added_at_the_end() -> None:
    """The bound where the form has none, and the wish for usage."""
    added = form().added(b"b", 7, usage=True)
    assert added.count(b"\r\n--b\r\n") == 2
    assert b'name="max_completion_tokens"\r\n\r\n7\r\n' in added
    assert added.endswith(b'name="stream_include_usage"\r\n\r\ntrue')
    assert {"/v1/audio/transcriptions", "/v1/audio/translations"} == UPLOADS


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        (b'{"text":"a","usage":{"type":"duration","seconds":12}}', 12.0),
        (b'{"duration":2.5,"language":"en","text":"' + b"x" * 10, 2.5),
        (b' { "duration" : 7 , "text": "a"}', 7.0),
        (b'{"text":"\\"duration\\":5"}', None),
        (b'{"text":"a"}', None),
        (b'{"usage":{"seconds":-3}}', None),
        (b'{"usage":{"seconds":1e300}}', None),
        (b'{"usage":{"seconds":"3"}}', None),
        (b"plain \xff", None),
        (b"", None),
    ],
)
def test_seconds_of_sound_are_read_from_an_answer(body: bytes, seconds: float | None) -> None:
    """vLLM 0.32 tells them in `usage`, or as the first field of a detailed answer."""
    assert seconds_of_answer(body) == seconds
