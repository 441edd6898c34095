"""Write streamed answers as events, byte for byte like vLLM (transcripts 12 to 14, 21, 23, 25, 161, 162).

Pure. Each family has a writer, which turns the steps of a Job into events, one `bytes` per event. The server sends each
event as one HTTP chunk:

    first()       role events or the opening of a block, sent with the first token and not earlier (130)
    step(k)       the text of token k for every unfinished choice
    last()        usage and the end mark
    error()       sent instead of the rest when the engine dies (132); None: vLLM cuts the connection there
    abort(k)      sent instead of the rest when the engine ends the answer with token k; None as above

The parts that are the same for every token are encoded once, when the writer is made.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from typing import Protocol

from aiaas.simulator import errors
from aiaas.simulator.answers import (
    FINGERPRINT,
    Json,
    SimulatedUsage,
    Stamp,
    encode,
    message_stop_reason,
    response,
    response_message,
    simulated_usage,
)
from aiaas.simulator.requests import GenerationJob

DONE = b"data: [DONE]\n\n"


class EventWriter(Protocol):
    """The interface of all families' writers."""

    def first(self) -> list[bytes]:
        """Return the events that come with the first token."""

    def step(self, k: int) -> list[bytes]:
        """Return the events of token k."""

    def last(self) -> list[bytes]:
        """Return the events after the last token."""

    def error(self) -> list[bytes] | None:
        """Return the events that end a stream whose engine died; None if vLLM closes without them or a last chunk."""

    def abort(self, k: int) -> list[bytes] | None:
        """Return the events of token k as the last one, with its finish reason, and of the end; None as for `error`."""


@lru_cache(maxsize=4096)
def _text(value: str) -> bytes:
    """Encode a token as a JSON string; the cache works because there are few different tokens."""
    return json.dumps(value, ensure_ascii=False).encode()


def named_event(name: str, data: object) -> bytes:
    """One event with a name, as the paths of responses and messages have them."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), encode(data))


def _engine_died() -> bytes:
    # With spaces: vLLM writes this event by json.dumps with its default separators.
    body = json.dumps(errors.error_object(errors.ENGINE_DEAD, "InternalServerError", None, 500))
    return b"data: %b\n\n" % body.encode()


class _IndexedWriter:
    """The common part of chat and completions: choices with an index, usage on demand, [DONE] at the end."""

    def __init__(self, stamp: Stamp, job: GenerationJob, kind: str, usage_details: Json) -> None:
        self._job = job
        self._usage_details = usage_details
        head = {"id": stamp.id, "object": kind, "created": stamp.created, "model": stamp.model}
        self._head = b"data: " + encode(head)[:-1]
        self._fingerprint = b',"system_fingerprint":' + encode(FINGERPRINT)

    def _usage(self, index: int, completion: int) -> bytes:
        """Return the usage of this choice alone, as in vLLM; the event at the end has the sum over all choices."""
        if self._job.usage != "every":
            return b""
        prompt = self._job.prompts[index // self._job.n]
        usage = {**SimulatedUsage(prompt, completion).openai(), **self._usage_details}
        return b',"usage":' + encode(usage)

    def _end(self, index: int, k: int, finished: bool) -> bytes:
        """Return the part of a token's event after its choices."""
        # Each choice's last event has the fingerprint, unless a usage event with the fingerprint follows.
        signed = finished and self._job.usage == "none"
        return self._usage(index, k + 1) + (self._fingerprint if signed else b"") + b"}\n\n"

    def step(self, k: int) -> list[bytes]:
        """See EventWriter."""
        events = []
        for index, choice in enumerate(self._job.choices):
            if k >= len(choice.deltas):
                continue
            finished = k == len(choice.deltas) - 1
            events.append(self._token(index, choice.deltas[k], finished, self._end(index, k, finished)))
        return events

    def _token(self, index: int, text: str, finished: bool, tail: bytes) -> bytes:
        raise NotImplementedError

    def last(self) -> list[bytes]:
        """See EventWriter."""
        if self._job.usage == "none":
            return [DONE]
        usage = encode(simulated_usage(self._job.prompt_tokens, self._job.choices).openai())
        return [b'%b,"choices":[],"usage":%b%b}\n\n' % (self._head, usage, self._fingerprint), DONE]

    def error(self) -> list[bytes] | None:
        """See EventWriter."""
        return [_engine_died(), DONE]

    def abort(self, k: int) -> list[bytes] | None:
        """See EventWriter. An answer that has ended before stays as it is."""
        choices = tuple(
            replace(choice, deltas=choice.deltas[: k + 1], finish_reason="abort") if k < len(choice.deltas) else choice
            for choice in self._job.choices
        )
        self._job = replace(self._job, choices=choices)
        return [*self.step(k), *self.last()]


class ChatWriter(_IndexedWriter):
    """POST /v1/chat/completions (12 to 14)."""

    def __init__(self, stamp: Stamp, job: GenerationJob) -> None:
        super().__init__(stamp, job, "chat.completion.chunk", {"completion_tokens_details": None})

    def first(self) -> list[bytes]:
        """See EventWriter."""
        return [
            b'%b,"choices":[{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
            b'%b,"prompt_token_ids":null,"prompt_text":null}\n\n' % (self._head, index, self._usage(index, 0))
            for index in range(len(self._job.choices))
        ]

    def _token(self, index: int, text: str, finished: bool, tail: bytes) -> bytes:
        if not finished:
            return (
                b'%b,"choices":[{"index":%d,"delta":{"content":%b},"logprobs":null,"finish_reason":null,"token_ids":null}]%b'
                % (self._head, index, _text(text), tail)
            )
        choice = self._job.choices[index]
        return (
            b'%b,"choices":[{"index":%d,"delta":{"content":%b},"logprobs":null,"finish_reason":%b,"stop_reason":%b,'
            b'"token_ids":null}]%b'
            % (
                self._head,
                index,
                _text(text),
                encode(choice.chat_reason),
                encode(choice.stop_reason),
                tail,
            )
        )


class CompletionsWriter(_IndexedWriter):
    """POST /v1/completions (21)."""

    def __init__(self, stamp: Stamp, job: GenerationJob) -> None:
        super().__init__(stamp, job, "text_completion", {})

    def first(self) -> list[bytes]:
        """See EventWriter."""
        return []

    def _token(self, index: int, text: str, finished: bool, tail: bytes) -> bytes:
        choice = self._job.choices[index]
        return (
            b'%b,"choices":[{"index":%d,"text":%b,"logprobs":null,"finish_reason":%b,"stop_reason":%b,'
            b'"prompt_token_ids":null,"token_ids":null}]%b'
            % (
                self._head,
                index,
                _text(text),
                encode(choice.finish_reason if finished else None),
                encode(choice.stop_reason if finished else None),
                tail,
            )
        )


class ResponsesWriter:
    """POST /v1/responses (23): named and numbered events, without [DONE]."""

    def __init__(self, stamp: Stamp, job: GenerationJob, message_id: str) -> None:
        self._stamp = stamp
        self._job = job
        self._message_id = message_id
        self._number = 0
        self._delta_tail = b',"item_id":%b,"logprobs":[],"output_index":0,"sequence_number":' % encode(message_id)

    def _event(self, name: str, data: dict[str, object]) -> bytes:
        # All keys are in alphabetical order, as in the openai package's event types.
        full = {**data, "sequence_number": self._number, "type": name}
        self._number += 1
        return named_event(name, dict(sorted(full.items())))

    def _at(self, **data: object) -> dict[str, object]:
        return {"content_index": 0, "item_id": self._message_id, "output_index": 0, **data}

    def first(self) -> list[bytes]:
        """See EventWriter."""
        opening = response(self._stamp, self._job.echo, self._message_id, self._job.prompt_tokens, None)
        if not self._job.choices[0].text:
            return self._opened(opening)
        item = {**response_message(self._message_id, ""), "content": [], "status": "in_progress"}
        part = {"annotations": [], "text": "", "type": "output_text", "logprobs": []}
        return [
            *self._opened(opening),
            self._event("response.output_item.added", {"item": item, "output_index": 0}),
            self._event("response.content_part.added", self._at(part=part)),
        ]

    def _opened(self, opening: Json) -> list[bytes]:
        return [
            self._event("response.created", {"response": opening}),
            self._event("response.in_progress", {"response": opening}),
        ]

    def step(self, k: int) -> list[bytes]:
        """See EventWriter."""
        deltas = self._job.choices[0].deltas
        if not deltas[k] and k == len(deltas) - 1:
            return []
        event = b'event: response.output_text.delta\ndata: {"content_index":0,"delta":%b%b%d,%b}\n\n' % (
            _text(deltas[k]),
            self._delta_tail,
            self._number,
            b'"type":"response.output_text.delta"',
        )
        self._number += 1
        return [event]

    def last(self) -> list[bytes]:
        """See EventWriter."""
        choice = self._job.choices[0]
        item = response_message(self._message_id, choice.text)
        whole = response(self._stamp, self._job.echo, self._message_id, self._job.prompt_tokens, choice)
        if not choice.text:
            return [self._event("response.completed", {"response": whole})]
        return [
            self._event("response.output_text.done", self._at(logprobs=[], text=choice.text)),
            self._event("response.content_part.done", self._at(part=item["content"][0])),
            self._event("response.output_item.done", {"item": item, "output_index": 0}),
            self._event("response.completed", {"response": whole}),
        ]

    def error(self) -> list[bytes] | None:
        """See EventWriter."""
        return None

    def abort(self, k: int) -> list[bytes] | None:  # noqa: ARG002  (EventWriter's)
        """See EventWriter."""
        return None


class MessagesWriter:
    """POST /v1/messages (25): Anthropic's named events, without [DONE]."""

    def __init__(self, stamp: Stamp, job: GenerationJob) -> None:
        self._stamp = stamp
        self._job = job
        self._block: Json = {"type": "text", "text": ""}

    def first(self) -> list[bytes]:
        """See EventWriter."""
        start: Json = {
            "id": self._stamp.id,
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": self._stamp.model,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": self._job.prompt_tokens, "output_tokens": 0},
        }
        block = {"type": "content_block_start", "content_block": self._block, "index": 0}
        return [
            named_event("message_start", {"type": "message_start", "message": start}),
            named_event("content_block_start", block),
        ]

    def step(self, k: int) -> list[bytes]:
        """See EventWriter."""
        deltas = self._job.choices[0].deltas
        if not deltas[k] and k == len(deltas) - 1:
            return []
        return [
            b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"type":"text_delta","text":%b},'
            b'"index":0}\n\n' % _text(deltas[k])
        ]

    def last(self) -> list[bytes]:
        """See EventWriter."""
        choice = self._job.choices[0]
        delta = {"stop_reason": message_stop_reason(choice), "stop_sequence": choice.stop_reason}
        usage = {"input_tokens": self._job.prompt_tokens, "output_tokens": len(choice.deltas)}
        return [
            named_event("content_block_stop", {"type": "content_block_stop", "index": 0}),
            named_event("message_delta", {"type": "message_delta", "delta": delta, "usage": usage}),
            named_event("message_stop", {"type": "message_stop"}),
        ]

    def error(self) -> list[bytes] | None:
        """See EventWriter."""
        error = {"type": "internal_error", "message": errors.stream_died_in_messages()}
        return [named_event("error", {"type": "error", "error": error})]

    def abort(self, k: int) -> list[bytes] | None:  # noqa: ARG002  (EventWriter's)
        """See EventWriter."""
        return None
