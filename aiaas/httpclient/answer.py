"""Parse one answer: output events with their times, usage, and the error. Pure: bytes and `now` in.

An output event adds text, reasoning or a tool call to the answer. vLLM's first event of a chat
(`"role":"assistant","content":""`) does not count, nor does one with only usage, `[DONE]`, or a comment (`: ping`).
So the first moment is that of the first token, as in the gateway's own log and metric. A stream is complete once it has
sent `[DONE]` or a `finish_reason`.

Errors by kind, each counted separately:

    connect    not connected: refused, unreachable, unknown host name
    tls        the certificate is not trusted, or the server does not speak TLS
    generator  this machine ran out of descriptors, ports or buffers: not the server's fault
    reset      closed before an answer began
    cut        closed in the middle of an answer, or ended without `[DONE]` or a `finish_reason`
    timeout    not complete within --timeout
    garbage    not HTTP, not a stream although one was requested, or events that are not JSON
    in_stream  an error event after a 200
    http_NNN   a status of 400 or more (429: the key's own limit, not a fault of the server), or a redirect
"""

from __future__ import annotations

from typing import Final

import msgspec

from aiaas.errors import UpstreamError
from aiaas.openai.sse import EventSplitter, event_data
from aiaas.openai.usage import usage_of

MAX_BODY: Final = 16 * 1024 * 1024  # bytes kept of a body that is not a stream; a model's answer has kilobytes
DETAIL: Final = 160  # characters kept of an error message
HTTP_ERROR: Final = "http_"
RATE_LIMITED: Final = "http_429"

AnswerHeaders = dict[str, str]


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Error(msgspec.Struct):
    message: str = ""
    code: str | int | None = None
    type: str | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None
    error: _Error | str | None = None


class _Body(msgspec.Struct):
    error: _Error | str | None = None
    message: str = ""  # FastAPI and vLLM put the message at the top level of some errors
    choices: list[msgspec.Raw] | None = None


_EVENT: Final[msgspec.json.Decoder[_Event]] = msgspec.json.Decoder(_Event)
_BODY: Final[msgspec.json.Decoder[_Body]] = msgspec.json.Decoder(_Body)


class Answer:
    """Parse one answer as it arrives. `moments` are the times of the output events, by the clock of `now`.

    error, code, detail   as in `Sample`, "" until an error occurs
    """

    __slots__ = (
        "_body",
        "_done",
        "_splitter",
        "_streams",
        "code",
        "detail",
        "error",
        "headers",
        "moments",
        "output_tokens",
        "prompt_tokens",
        "status",
        "wants_stream",
    )

    def __init__(self, wants_stream: bool) -> None:
        self.wants_stream = wants_stream
        self.status: int | None = None
        self.headers: AnswerHeaders = {}
        self.moments: list[float] = []
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.error = self.code = self.detail = ""
        self._streams = False
        self._splitter = EventSplitter()
        self._body = bytearray()
        self._done = False

    def head(self, status: int, headers: AnswerHeaders) -> None:
        """Take the status and the headers, their names in lower case."""
        self.status = status
        self.headers = headers
        self._streams = self.wants_stream and status == 200 and "text/event-stream" in headers.get("content-type", "")

    @property
    def content(self) -> bytes:
        """The body of an answer that is not a stream."""
        return bytes(self._body)

    def body(self, data: bytes, now: float) -> None:
        """Take a part of the body, received at `now`."""
        if not self._streams:
            self._body += data[: MAX_BODY - len(self._body)]
            return
        try:
            events = self._splitter.feed(data)
        except UpstreamError as error:
            self.fail("garbage", error.message)
            self._streams = False  # keep the rest, up to MAX_BODY, without parsing it
            return
        for event in events:
            self._event(event, now)

    def _event(self, event: bytes, now: float) -> None:
        data = event_data(event)
        if data is None:  # a comment
            return
        if data.strip() == b"[DONE]":
            self._done = True
            return
        try:
            read = _EVENT.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self.fail("garbage", f"an event that is not a chat or completion chunk: {error}")
            return
        if read.error is not None:
            self._read_error("in_stream", data)
        elif read.choices:
            if any(map(_adds, read.choices)):
                self.moments.append(now)
            self._done = self._done or any(choice.finish_reason for choice in read.choices)
        if b'"usage"' in data:
            self._take_usage(data)

    def _take_usage(self, data: bytes) -> None:
        usage = usage_of(data)
        if usage is not None:
            self.prompt_tokens, self.output_tokens = usage.input_tokens, usage.output_tokens

    def end(self) -> None:
        """Check an answer that is complete at the HTTP level."""
        if self.error or self.status is None:
            return
        if self._streams:
            if not self._done:
                self.fail("cut", "the stream ended without [DONE] or a finish_reason")
        elif self.status == 200:
            self._read_whole(self.content)
        else:
            self._read_error(f"{HTTP_ERROR}{self.status}", self.content)
        if not self.output_tokens:
            self.output_tokens = len(self.moments)

    def _read_whole(self, body: bytes) -> None:
        if self.wants_stream or "json" not in self.headers.get("content-type", ""):
            wanted = "a stream" if self.wants_stream else "JSON"
            got = self.headers.get("content-type") or "no content type"
            self.fail("garbage", f"asked for {wanted}, got {got}{_title(body)}")
            return
        try:
            read = _BODY.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self.fail("garbage", f"the answer is not JSON: {error}")
            return
        if read.error is not None:
            self._read_error("in_stream", body)
        elif not read.choices:
            self.fail("garbage", "the answer has no choices")
        else:
            self._take_usage(body)

    def fail(self, error: str, detail: str, code: str = "") -> None:
        """Record an error; only the first one counts, since later errors follow from it."""
        if not self.error:
            self.error, self.code = error, code
            self.detail = " ".join(detail.split())[:DETAIL]
            if not self.output_tokens:
                self.output_tokens = len(self.moments)

    def _read_error(self, kind: str, body: bytes) -> None:
        try:
            read = _BODY.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            what = self.headers.get("content-type") or "no content type"
            self.fail(kind, f"{what}{_title(body)}", "html" if "html" in what else "")
            return
        error = read.error or _Error(read.message)
        if isinstance(error, str):
            error = _Error(error)
        self.fail(kind, error.message, str(error.code if error.code is not None else error.type or ""))


class PlainAnswer(Answer):
    """An answer whose content the caller parses itself: every 200 is accepted."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(wants_stream=False)

    def _read_whole(self, body: bytes) -> None:
        pass


def _adds(choice: _Choice) -> bool:
    """Whether this choice adds text, reasoning or a tool call to the answer."""
    if choice.text:
        return True
    delta = choice.delta
    if delta is None:
        return False
    return bool(delta.content or delta.reasoning or delta.reasoning_content or delta.refusal or delta.tool_calls)


def _title(body: bytes) -> str:
    """Return an error page's title, such as `: 502 Bad Gateway`, or "" if the page does not have one."""
    lower = body[:4096].lower()
    begin, end = lower.find(b"<title>"), lower.find(b"</title>")
    if begin < 0 or end < begin:
        return ""
    return ": " + body[begin + 7 : end].decode("utf-8", "replace").strip()
