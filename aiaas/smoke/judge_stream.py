"""The verdicts on a stream: its events, its end, its usage, and whether it came as it was generated. Pure."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import msgspec

from aiaas.errors import UpstreamError
from aiaas.openai.sse import EventSplitter, event_data
from aiaas.openai.usage import TokenUsage, usage_of
from aiaas.smoke.judge import hint_for, says
from aiaas.smoke.result import Seen, Verdict, judged, skipped

FEW_EVENTS: Final = 8  # a shorter stream does not show its pace
TOO_QUICK: Final = 0.1  # seconds; a quicker stream arrives in few reads however it was sent
EVENTS_A_READ: Final = 8  # a proxy that buffers hands on 4 KiB or all at once: tens of events a read
# HAProxy without http-no-delay: events that come while the client has not acknowledged the last one (40 to 200 ms) wait
# for that, and arrive in one lump. An engine's own events come one by one, or closer together.
LUMP_EVENTS: Final = 3
LUMP_SECONDS: Final = 0.035


class _Chunk(msgspec.Struct):
    choices: list[msgspec.Raw] | None = None
    error: msgspec.Raw = msgspec.Raw()


_CHUNK: Final[msgspec.json.Decoder[_Chunk]] = msgspec.json.Decoder(_Chunk)


class Streamed(msgspec.Struct, frozen=True):
    """A stream's events.

    fault   what is wrong with the events, "" where they are good
    usages  the reported ones, in order
    """

    events: int
    usages: tuple[TokenUsage, ...]
    fault: str = ""


def read_stream(seen: Seen) -> Streamed:
    """The events of an answer that is a stream."""
    splitter = EventSplitter()
    try:
        pieces = splitter.feed(seen.body)
    except UpstreamError as error:
        return Streamed(0, (), error.message)
    events, done = 0, False
    usages: list[TokenUsage] = []
    for piece in pieces:
        data = event_data(piece)
        if data is None:  # a comment
            continue
        if done:
            return Streamed(events, tuple(usages), "an event after [DONE]")
        if data == b"[DONE]":
            done = True
            continue
        fault = _fault(data)
        if fault:
            return Streamed(events, tuple(usages), f"event {events + 1} {fault}")
        events += 1
        usage = usage_of(data)
        if usage is not None:
            usages.append(usage.without_cached())
    if not done:
        return Streamed(events, tuple(usages), f"no [DONE] after {events} events")
    if splitter.rest.strip():
        return Streamed(events, tuple(usages), "bytes after the last event")
    return Streamed(events, tuple(usages), "" if events else "no event before [DONE]")


def _fault(data: bytes) -> str:
    try:
        chunk = _CHUNK.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "is not JSON"
    if bytes(chunk.error) not in (b"", b"null"):
        return f"is an error: {bytes(chunk.error).decode('utf-8', 'replace')[:160]}"
    return "" if chunk.choices is not None else "has no choices"


def judge_stream(seen: Seen, usage_asked: bool) -> Verdict:
    """Check that events parse, [DONE] ends them, and usage is there exactly where it was asked for."""
    expected = "events, usage among them, then [DONE]" if usage_asked else "events without usage, then [DONE]"
    read = read_stream(seen)
    broken = _broken(seen, read, expected)
    if broken is not None:
        return broken
    if usage_asked:
        held = bool(read.usages) and read.usages[-1].output_tokens > 0
        told = f"usage of {read.usages[-1].output_tokens} output tokens" if read.usages else "no usage"
        hint = "`stream_options` did not reach the engine: a proxy rewrites requests, or the engine is not vLLM"
        return judged(held, expected, f"{read.events} events with {told}, [DONE]", hint)
    told = "" if not read.usages else f", usage on {len(read.usages)} of them"
    hint = "vLLM runs with --enable-force-include-usage, so clients get usage that they did not ask for"
    return judged(not read.usages, expected, f"{read.events} events{told}, [DONE]", hint)


def _broken(seen: Seen, read: Streamed, expected: str) -> Verdict | None:
    """The verdict on a broken stream; None where the stream is whole."""
    kind = seen.headers.get("content-type", "")
    if seen.status != 200:
        return judged(False, expected, says(seen), hint_for(seen, "the engine refused it; the gateway's log says why"))
    if "text/event-stream" not in kind:
        return judged(
            False,
            expected,
            f"200 with {kind or 'no content type'}",
            hint_for(seen, "a proxy rewrites answers"),
        )
    if seen.error or read.fault:
        text = "; ".join(
            part for part in (f"{read.events} events", read.fault, seen.detail if seen.error else "") if part
        )
        if "is an error" in read.fault:
            return judged(False, expected, text, "the engine failed in the middle of its answer; its log says why")
        return judged(
            False, expected, text, hint_for(seen, "a proxy's timeout, or an engine that died or sends invalid data")
        )
    return None


def judge_pace(seen: Seen) -> Verdict:
    """Check that the events arrived one by one, and that no proxy held them back."""
    read = read_stream(seen)
    expected = "events as they are generated"
    broken = _broken(seen, read, expected)
    if broken is not None:
        return broken
    if read.events < FEW_EVENTS:
        return skipped(f"the stream had only {read.events} events")
    if seen.seconds < TOO_QUICK:
        return skipped(f"all {read.events} events within {seen.seconds * 1000:.0f} ms: too quick to tell")
    arrivals = sorted(set(seen.arrivals))
    text = f"{read.events} events in {len(arrivals)} reads, from {arrivals[0]:.2f} s to {arrivals[-1]:.2f} s"
    pause = _usual_pause(arrivals)
    if len(arrivals) * LUMP_EVENTS < read.events and pause > LUMP_SECONDS:
        hint = (
            "HAProxy holds small pieces back: it needs `option http-no-delay` in the backend; or a proxy or an engine "
            "(`--stream-interval`) collects events"
        )
        return judged(False, expected, f"{text}, {pause * 1000:.0f} ms apart", hint)
    hint = (
        "a proxy buffers streams: turn buffering off (ingress-nginx: proxy-buffering; a CDN or a "
        "compressing proxy has its own setting)"
    )
    return judged(len(arrivals) * EVENTS_A_READ >= read.events, expected, text, hint)


def _usual_pause(arrivals: list[float]) -> float:
    """The median of the seconds between two reads; 0 with a single one."""
    pauses = sorted(later - earlier for earlier, later in pairwise(arrivals))
    return pauses[len(pauses) // 2] if pauses else 0.0
