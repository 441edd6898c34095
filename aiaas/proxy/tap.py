"""What an answer tells besides its bytes: how many LLM tokens it took, and that the engine died while giving it.

One for each attempt. The relay asks only where a substring is found, so that ordinary events cost nothing here.
"""

from __future__ import annotations

import json

from aiaas.openai.errors import is_error_event
from aiaas.openai.sse import EventSplitter
from aiaas.openai.usage import Usage, is_usage_only_event, usage_of
from aiaas.proxy.record import Record
from aiaas.proxy.upstream import Failure, FailureKind

# A whole answer is kept for its usage up to here; of a longer one the end, where vLLM writes usage (a megabyte is two
# hundred embeddings).
USAGE_WINDOW = 1024 * 1024


class Tap:
    """Reads along, and writes into the request's Record.

    strip_usage     the usage event was asked for by us, and is to be taken out
    engine_failure  an event said that the engine is dying (capture 132), or None
    failed_first    and it was the first event of the read that it came in
    """

    __slots__ = ("_kept", "_kept_size", "_record", "_strip_usage", "_usage_event", "engine_failure", "failed_first")

    def __init__(self, record: Record, *, strip_usage: bool) -> None:
        self._record = record
        self._strip_usage = strip_usage
        self._usage_event: bytes | None = None
        self._kept: list[bytes] = []
        self._kept_size = 0
        self.engine_failure: Failure | None = None
        self.failed_first = False

    def inspect(self, data: bytes) -> bytes:
        """Whole events, one of which may speak of usage or of an error; what of them is for the client."""
        kept: list[bytes] = []
        for event in split_events(data):
            if b'"usage":' in event:
                self._usage_event = event
                if self._strip_usage and is_usage_only_event(event):
                    self.end()
                    continue
            if b'"error"' in event:
                code = is_error_event(event)
                if code is not None:
                    self._record.events -= 1  # it holds no token
                if code is not None and code >= 500:
                    self.engine_failure = Failure(FailureKind.ENGINE, f"an error event with code {code}")
                    self.failed_first = not kept
            kept.append(event)
        return b"".join(kept)

    def keep(self, data: bytes) -> None:
        """A part of an answer that is no stream: its usage stands near its end."""
        self._kept.append(data)
        self._kept_size += len(data)
        if self._kept_size > USAGE_WINDOW:
            end = b"".join(self._kept)[-USAGE_WINDOW // 2 :]
            self._kept, self._kept_size = [end], len(end)

    def end(self, *, cut: bool = False) -> None:
        """Write down what was reported, if anything was; it is known to be the last word so far.

        cut  the answer breaks off here: what it reported may be older than what it streamed (capture 25: 0 at first)
        """
        usage: Usage | None = None
        if self._usage_event is not None:
            usage = usage_of(self._usage_event)
            self._usage_event = None
        elif self._kept:
            kept = self._kept[0] if len(self._kept) == 1 else b"".join(self._kept)
            usage = usage_of(kept) or usage_near_end(kept)
            self._kept = []
        if usage is not None:
            record = self._record
            record.input_tokens = usage.input_tokens
            record.output_tokens = max(usage.output_tokens, record.events) if cut else usage.output_tokens


def split_events(data: bytes) -> list[bytes]:
    """Whole events, one by one."""
    if b"\r" not in data:
        *events, rest = data.split(b"\n\n")
        return [event + b"\n\n" for event in events] + ([rest] if rest else [])
    splitter = EventSplitter(limit=len(data))
    events = splitter.feed(data)
    return [*events, splitter.rest] if splitter.rest else events


def usage_near_end(body: bytes) -> Usage | None:
    """The usage in the end of a long JSON answer, of which the beginning is gone. Never raises."""
    start = body.rfind(b'"usage":')
    if start < 0:
        return None
    text = body[start + len(b'"usage":') :].decode("utf-8", "replace").lstrip()
    try:
        told, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return usage_of(json.dumps({"usage": told}).encode())
