"""The log for people: one line each, nothing that a terminal obeys, and other lines as they are."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from aiaas.proxy.telemetry.log import OTHER, JsonLog
from aiaas.proxy.telemetry.readable import CODE_WORDS, REASON_WORDS, readable, written_as
from aiaas.proxy.telemetry.record import Record, Resumption
from tests.test_docs import error_codes

NOON = 1_795_418_168.25  # 2026-11-23 07:16:08.250 UTC


def line_of(event: str | None = None, level: str = "info", **fields: Any) -> bytes:
    """A line as the gateway writes it: of an event, or of a request of 3.2 s with these facts."""
    written: list[bytes] = []
    log = JsonLog(written.append, lambda: NOON, "info")
    if event is None:
        known: dict[str, Any] = {
            "request_id": "7be1c0",
            "path": "/v1/chat/completions",
            "started": 0.0,
            "client_address": "192.0.2.1",
        }
        log.request(Record(**(known | fields)), 3.2)
    else:
        log.event(level, event, **fields)
    log.flush()
    return written[0].removesuffix(b"\n")


def shown(event: str | None = None, **fields: Any) -> str:
    return readable(line_of(event, **fields), colours=False).decode()


ANSWERED: dict[str, Any] = {"user": "alice", "model": "coder", "status": 200, "ended_by": "upstream"}


def test_an_answer_is_one_line_with_its_figures() -> None:
    """Time, status, user, model, path, tokens, first text, duration, id; nothing about its end."""
    line = shown(
        **ANSWERED, input_tokens=812, output_tokens=56, cached_tokens=768, ttft=0.21, queue_seconds=1.5, retries=1
    )
    assert line == (
        "11-23 07:16:08.250 200   alice         coder             /v1/chat/completions  "
        "812 in (768 cached) + 56 out, waited 1.5 s, first 210 ms, 3.2 s, 1 retry  7be1c0"
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"status": 429, "error_code": "rate_limit_exceeded"},
            "rate_limit_exceeded: the key's requests a minute are used up, ended by gateway",
        ),
        (
            {"status": 502, "error_code": "upstream_error", "upstream": "http://10.0.0.1:8000", "ended_by": "upstream"},
            "upstream_error: vLLM broke off, died or answered nonsense, ended by upstream, at http://10.0.0.1:8000",
        ),
        ({"status": 200, "error_code": "client_left", "ended_by": "client"}, "client_left: the client left  7be1c0"),
        (
            {"status": 400, "upstream": "http://10.0.0.1:8000", "ended_by": "upstream"},
            "answered by http://10.0.0.1:8000",
        ),
        ({"status": 500, "error_code": "made_up"}, "made_up, ended by gateway"),
    ],
    ids=["a limit", "a broken answer", "a client that leaves", "an error of vLLM's", "a code of another version"],
)
def test_an_error_is_told_in_words(fields: dict[str, object], words: str) -> None:
    """The code, its meaning, who ended the request, and where."""
    assert words in shown(user="bob", model="coder", **fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"outcome": "resumed", "gap": 0.4}, "went on at http://b after 400 ms"),
        ({"outcome": "not_resumable", "reason": "a tool call has begun"}, "http://a died, not_resumable: a tool call"),
    ],
)
def test_a_stream_that_broke_off_is_told_in_words(fields: dict[str, Any], words: str) -> None:
    """Whether it went on, and where."""
    assert words in shown(**ANSWERED | {"upstream": "http://b"}, resumption=Resumption("http://a", **fields))


def test_a_refused_key_is_told_with_its_address() -> None:
    """The reason from the log, and the client's address where no user is known."""
    line = msgspec.json.decode(line_of(status=401, error_code="invalid_api_key")) | {"reason": "expired"}
    text = readable(msgspec.json.encode(line), colours=False).decode()
    assert "192.0.2.1" in text
    assert "invalid_api_key: the key has expired" in text


def test_every_code_and_reason_has_words() -> None:
    """Each code that the source makes; each reason of docs/logs.md."""
    assert error_codes() | {"client_left", "client_too_slow"} <= set(CODE_WORDS)
    assert set(REASON_WORDS) == {"missing", "malformed", "unknown_id", "wrong_secret", "revoked", "expired"}


def test_an_event_shows_its_sentence_first() -> None:
    """The level, the name as for `--event`, the words, then the other fields."""
    line = shown(
        "endpoint_down", level="warning", backend="vllm", reason="connection refused", addresses=["a", "b"], left=[]
    )
    assert line == '11-23 07:16:08.250 WARN  endpoint_down  connection refused  backend=vllm addresses="a, b"'


def test_a_traceback_stands_on_lines_of_its_own() -> None:
    """As Python prints it, indented."""
    line = shown("internal_error", level="error", error="ValueError('odd')", traceback="Traceback:\n  File x\n")
    assert line.splitlines() == [
        "11-23 07:16:08.250 ERROR internal_error  ValueError('odd')",
        "    Traceback:",
        "      File x",
    ]


@pytest.mark.parametrize(
    "line",
    [
        b"listening on http://127.0.0.1:8080 (1 key)",
        b"",
        b'{"time":"2026-',
        b'{"time":"x","level":"info"}',
        b'["time"]',
        b'{"time"' + b"[" * 100_000,
        b"\xff\xfe{",
    ],
    ids=["words", "nothing", "cut off", "not of ours", "a list", "nested", "not text"],
)
def test_other_lines_stay_as_they_are(line: bytes) -> None:
    """Byte for byte."""
    assert readable(line, colours=True) == line


def test_a_log_hands_over_its_lines_in_the_form_asked_for() -> None:
    """JSON untouched and not copied; text line by line."""
    written: list[bytes] = []
    assert written_as("json", written.append) == written.append
    block = line_of("started") + b"\n" + line_of("stopped") + b"\n"
    written_as("text", written.append)(block)
    assert [line.split()[2] for line in written[0].splitlines()] == [b"started", b"stopped"]
    assert written[0].endswith(b"\n")
    written_as("colours", written.append)(block)
    assert b"\x1b[1mstarted" in written[1]


def test_text_before_the_json_stays() -> None:
    """`kubectl logs --prefix` and `docker compose logs` write the container's name there."""
    assert readable(b"[pod/aiaas-1/aiaas] " + line_of("started"), colours=False).startswith(
        b"[pod/aiaas-1/aiaas] 11-23 07:16:08.250       started"
    )


def test_a_path_cannot_move_the_cursor() -> None:
    """Control characters from a client are shown escaped, and make no second line."""
    line = shown(path="/v1/\x1b[2J\n\u202e", status=404, user="a\rb")
    assert line.isprintable()
    assert r"/v1/\x1b[2J\n\u202e" in line


@pytest.mark.parametrize(
    "value", [None, [], {}, "x", -1, 1e999, True, [[1]]], ids=["null", "[]", "{}", "x", "-1", "inf", "true", "[[1]]"]
)
def test_odd_values_are_shown_and_raise_nothing(value: object) -> None:
    """A line of another version, or of somebody who plays."""
    fields = dict.fromkeys(msgspec.json.decode(line_of()), value) | {"event": OTHER}
    readable(msgspec.json.encode(fields), colours=True)
    readable(msgspec.json.encode(fields | {"event": "started"}), colours=True)


def test_colours_mark_status_and_level() -> None:
    """Green for an answer, yellow and red for faults; without colours no escape at all."""
    assert b"\x1b[32m200" in readable(line_of(**ANSWERED), colours=True)
    assert b"\x1b[31m503" in readable(line_of(status=503, error_code="overloaded"), colours=True)
    assert b"\x1b[33mWARN" in readable(line_of("endpoint_down", level="warning"), colours=True)
    assert b"\x1b" not in readable(line_of(**ANSWERED), colours=False)
