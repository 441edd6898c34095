"""The log for people: each JSON line of `log.py` as one line that reads at a glance. Pure.

    11-27 18:32:05.123 200   alice  coder  /v1/chat/completions  812 in + 56 out, first 210 ms, 3.2 s  7be1c0...
    11-27 18:32:06.001 429   bob    coder  /v1/chat/completions  0.3 ms, rate_limit_exceeded: the key's requests ...
    11-27 18:32:07.250 WARN  endpoint_down  connection refused  backend=vllm upstream=http://127.0.0.1:8000

Rules
- The time is UTC, as in the log. A request has its status in the second column, an event its level.
- A line that the gateway did not write stays as it is, byte for byte. Text before the JSON stays, too (`kubectl logs
  --prefix`, `docker compose logs`).
- Clients choose paths and names of models, so characters that move a terminal's cursor are shown escaped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

import msgspec

from aiaas.proxy.telemetry.log import INFERENCE, OTHER

LogFields = Mapping[str, Any]
LogForm = Literal["json", "text", "colours"]
# A text and its colour, a name of _COLOURS -> the text as the reader gets it.
_Paint = Callable[[str, str], str]

_BEGIN: Final = b'{"time"'
_COLOURS: Final = MappingProxyType({"dim": "2", "green": "32", "yellow": "33", "red": "31", "bold": "1"})
_LEVELS: Final = MappingProxyType({"warning": ("WARN", "yellow"), "error": ("ERROR", "red")})
_USER_COLUMN: Final = 12
_MODEL_COLUMN: Final = 16
_PATH_COLUMN: Final = 20
_WORTH_SAYING: Final = 0.001  # seconds in the queue

# Fields of an event that are words for a person: they stand behind its name, without theirs.
_SENTENCES: Final = ("problem", "error", "reason", "text", "message", "cause", "hint", "problems")
_FRAME: Final = frozenset({"time", "level", "event", "traceback", *_SENTENCES})

# docs/errors.md has each code in full.
CODE_WORDS: Final = MappingProxyType(
    {
        "invalid_json": "the body is not JSON",
        "invalid_request": "the request is not valid; the client got the field and the reason",
        "missing_api_key": "the request has no key",
        "invalid_api_key": "the key is not valid",
        "model_not_found": "the model does not exist, or this key may not use it",
        "not_found": "nothing is served at this path",
        "not_offered": "no backend of this model offers the path",
        "method_not_allowed": "wrong method for this path",
        "request_timeout": "the request did not arrive in time",
        "request_too_large": "the body is larger than allowed",
        "unsupported_media_type": "wrong Content-Type, or a compressed body",
        "rate_limit_exceeded": "the key's requests a minute are used up",
        "tokens_limit_exceeded": "the key's tokens a minute are used up",
        "concurrency_limit_exceeded": "the key has its most requests at once",
        "quota_exceeded": "the key's tokens of the day or month are used up",
        "user_rate_limit_exceeded": "the user's requests a minute are used up",
        "user_tokens_limit_exceeded": "the user's tokens a minute are used up",
        "user_concurrency_limit_exceeded": "the user has its most requests at once",
        "user_quota_exceeded": "the user's tokens of the day or month are used up",
        "too_many_wrong_keys": "too many wrong keys came from this address",
        "headers_too_large": "the headers are larger than allowed",
        "internal_error": "a fault of the gateway; its log has a traceback",
        "upstream_error": "vLLM broke off, died or answered nonsense",
        "no_healthy_backend": "no vLLM of this model can be reached",
        "overloaded": "too many requests wait, or a bound of the gateway is reached",
        "draining": "the gateway was shutting down",
        "upstream_timeout": "vLLM was silent for too long",
        "client_left": "the client left",
        "client_too_slow": "the client did not read its answer",
    }
)
# docs/logs.md: why a key was refused.
REASON_WORDS: Final = MappingProxyType(
    {
        "missing": "the request has no key",
        "malformed": "the key does not have the form of a key: mistyped or cut short",
        "unknown_id": "the key file does not have this key",
        "wrong_secret": "the key's secret was rotated",
        "revoked": "the key is revoked",
        "expired": "the key has expired",
    }
)


def readable(line: bytes, *, colours: bool) -> bytes:
    """A line of the log, without its end, as a person reads it; any other line as it is."""
    found = parse_log_line(line)
    return line if found is None else found[0] + readable_line(found[1], colours=colours).encode()


def written_as(form: LogForm, write: Callable[[bytes], object]) -> Callable[[bytes], object]:
    """How a log hands its lines to `write`. Its writer's thread makes them readable, and the requests do not wait."""
    if form == "json":
        return write

    def write_readable(data: bytes) -> object:
        lines = data.removesuffix(b"\n").split(b"\n")
        return write(b"".join(readable(line, colours=form == "colours") + b"\n" for line in lines))

    return write_readable


def parse_log_line(line: bytes) -> tuple[bytes, LogFields] | None:
    """The text before a JSON line of ours, and its fields. None for any other line."""
    begin = line.find(_BEGIN)
    if begin < 0:
        return None
    try:
        fields = msgspec.json.decode(line[begin:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(fields, dict) or not isinstance(fields.get("event"), str):
        return None
    return line[:begin], fields


def readable_line(fields: LogFields, *, colours: bool) -> str:
    """One line; a traceback follows on lines of its own."""
    paint = _painted if colours else _plain
    when = _text(fields.get("time"))[5:23].replace("T", " ")
    is_request = fields["event"] in (INFERENCE, OTHER)
    mark, colour = _status(fields) if is_request else _LEVELS.get(str(fields.get("level")), ("", ""))
    parts = _request(fields, paint) if is_request else _event(fields, paint)
    shown = f"{paint(when, 'dim')} {paint(f'{mark:5}', colour)} {'  '.join(part for part in parts if part)}"
    below = fields.get("traceback")
    if isinstance(below, str):
        shown += "".join(f"\n    {_text(line)}" for line in below.splitlines())
    return shown


def _plain(text: str, _colour: str) -> str:
    return text


def _painted(text: str, colour: str) -> str:
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if colour and text.strip() else text


def _status(fields: LogFields) -> tuple[str, str]:
    status = _text(fields.get("status"))
    return status, {"2": "green", "4": "yellow", "5": "red"}.get(status[:1], "")


def _request(fields: LogFields, paint: _Paint) -> Iterator[str]:
    user = _text(fields.get("user") or fields.get("client_address") or "-")
    model = _text(fields.get("model") or "-")
    yield f"{paint(f'{user:{_USER_COLUMN}}', 'bold')}  {model:{_MODEL_COLUMN}}"
    yield f"{_text(fields.get('endpoint')):{_PATH_COLUMN}}"
    yield ", ".join([*_figures(fields), *_resumed(fields), *(paint(text, _status(fields)[1]) for text in _end(fields))])
    yield paint(_text(fields.get("request_id")), "dim")


def _figures(fields: LogFields) -> Iterator[str]:
    asked, got = fields.get("input_tokens"), fields.get("output_tokens")
    if asked is not None or got is not None:
        cached = fields.get("cached_tokens")
        yield f"{_text(asked or 0)} in{f' ({_text(cached)} cached)' if cached else ''} + {_text(got or 0)} out"
    queued = _number(fields.get("queue_seconds"))
    if queued >= _WORTH_SAYING:
        yield f"waited {_took(queued)}"
    if fields.get("ttft_seconds") is not None:
        yield f"first {_took(_number(fields['ttft_seconds']))}"
    yield _took(_number(fields.get("duration_seconds")))
    retries = fields.get("retries")
    if retries:
        yield f"{_text(retries)} {'retry' if retries == 1 else 'retries'}"


def _resumed(fields: LogFields) -> Iterator[str]:
    """The fate of a stream whose endpoint died."""
    outcome = fields.get("resume_outcome")
    if outcome == "resumed":
        gap = fields.get("resume_gap_seconds")
        after = "" if gap is None else f" after {_took(_number(gap))}"
        yield f"went on at {_text(fields.get('upstream'))}{after}"
    elif outcome is not None:
        reason = fields.get("resume_reason")
        yield f"{_text(fields.get('first_upstream'))} died, {_text(outcome)}{f': {_text(reason)}' if reason else ''}"


def _end(fields: LogFields) -> Iterator[str]:
    """The error, and who ended the request; nothing for a request that got its whole answer."""
    code, reason = fields.get("error_code"), fields.get("reason")
    upstream, ended_by = fields.get("upstream"), fields.get("ended_by")
    if code is None:
        if _number(fields.get("status")) >= 400:
            yield f"answered by {_text(upstream or ended_by)}"
        return
    words = REASON_WORDS.get(str(reason)) or CODE_WORDS.get(str(code))
    yield f"{_text(code)}: {words}" if words else _text(code)
    if not str(code).startswith("client_"):
        yield f"ended by {_text(ended_by)}"
    if upstream:
        yield f"at {_text(upstream)}"


def _event(fields: LogFields, paint: _Paint) -> Iterator[str]:
    yield paint(_text(fields["event"]), "bold")
    yield "; ".join(_text(fields[name]) for name in _SENTENCES if fields.get(name))
    facts = ((name, value) for name, value in fields.items() if name not in _FRAME and value not in (None, [], ""))
    rest = (f"{_text(name)}={_value(value)}" for name, value in facts)
    yield paint(" ".join(rest), "dim")


def _value(value: object) -> str:
    shown = _text(value)
    return json.dumps(shown, ensure_ascii=False) if " " in shown or not shown else shown


def _text(value: object) -> str:
    """A field's value without anything that a terminal would obey."""
    if isinstance(value, list):
        value = ", ".join(str(each) for each in value)
    elif isinstance(value, dict):
        value = json.dumps(value, ensure_ascii=False)
    text = "-" if value is None else str(value)
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _took(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.{0 if seconds >= 0.01 else 1}f} ms"
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
