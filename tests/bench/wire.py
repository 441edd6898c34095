"""The bytes on the wire of the benchmark: what the clients send and what the backend answers, in vLLM's own shapes.

The request names an alias and asks for no usage, as most clients do: aiaas then has to rewrite the model, ask for the
usage event itself and take it out again. LiteLLM maps the alias, too; the others pass the name as it is.

How many events a stream shall have and how fast is said in its prompt, the one thing that every proxy leaves alone.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

SERVED_MODEL: Final = "unsloth/gpt-oss-20b"
ALIAS: Final = "gpt-oss-20b"
PATH: Final = "/v1/chat/completions"
END_OF_CHUNKS: Final = b"0\r\n\r\n"

_PROMPT: Final = (
    "Summarise in one sentence, for somebody who is new to the subject, why a bounded queue in front of a busy server "
    "is better than an unbounded one, please."
)
_HEAD: Final = b"HTTP/1.1 200 OK\r\ndate: Mon, 23 Nov 2026 07:16:08 GMT\r\nserver: uvicorn\r\n"


@dataclass(frozen=True, slots=True)
class Stream:
    """The stream that the backend is asked for: `events` token events, `per_second` of them."""

    events: int
    per_second: float


ONE_EVENT: Final = Stream(1, 1.0)


def request(key: str, stream: Stream | None = None) -> bytes:
    """A whole chat completion request with a prompt of about 150 bytes."""
    prompt = _PROMPT if stream is None else f"{_PROMPT} pace={stream.per_second:g};events={stream.events};"
    fields: dict[str, object] = {"model": ALIAS, "messages": [{"role": "user", "content": prompt}], "max_tokens": 64}
    if stream is not None:
        fields["stream"] = True
    body = json.dumps(fields).encode()
    return (
        f"POST {PATH} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {key}\r\nAccept: application/json\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def varied(key: str) -> Iterator[bytes]:
    """The same request with a request id and a trace of its own each time, as an ingress adds them."""
    line, _, rest = request(key).partition(b"\r\n")
    for number in itertools.count(random.getrandbits(120)):
        added = b"x-request-id: %032x\r\ntraceparent: 00-%032x-%016x-01" % (number, number, number & (1 << 63) - 1)
        yield b"\r\n".join((line, added, rest))


def asked_for(body: bytes, otherwise: Stream = ONE_EVENT) -> Stream:
    """The stream that a request's prompt asks for, or `otherwise` where it does not say."""
    _, found, rest = body.partition(b"pace=")
    if not found:
        return otherwise
    per_second, _, rest = rest.partition(b";events=")
    return Stream(int(rest.partition(b";")[0]), float(per_second))


def usage_event(tokens: int) -> bytes:
    """The event that tells how many tokens there were, one for each event before it."""
    usage = {"prompt_tokens": 42, "total_tokens": 42 + tokens, "completion_tokens": tokens}
    return _event({"choices": [], "usage": usage})


def _compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _answer() -> bytes:
    message = {"role": "assistant", "content": "It refuses early, while the client can still go elsewhere, and " * 2}
    body = _compact(
        {
            "id": "chatcmpl-a78821f38e10b1db",
            "object": "chat.completion",
            "created": 1795418168,
            "model": SERVED_MODEL,
            "choices": [
                {
                    "index": 0,
                    "message": message | {"refusal": None, "annotations": None, "reasoning": None},
                    "logprobs": None,
                    "finish_reason": "length",
                    "stop_reason": None,
                    "token_ids": None,
                }
            ],
            "service_tier": None,
            "system_fingerprint": "vllm-0.32.0-b2074354",
            "usage": {"prompt_tokens": 42, "total_tokens": 68, "completion_tokens": 26, "prompt_tokens_details": None},
            "prompt_logprobs": None,
            "kv_transfer_params": None,
        }
    )
    return _HEAD + b"content-length: %d\r\ncontent-type: application/json\r\nvary: Origin\r\n\r\n%b" % (len(body), body)


def _chunk(data: bytes) -> bytes:
    event = b"data: %b\n\n" % data
    return b"%x\r\n%b\r\n" % (len(event), event)


def _event(fields: dict[str, object]) -> bytes:
    shared = {
        "id": "chatcmpl-833988088adbfb8b",
        "object": "chat.completion.chunk",
        "created": 1795418169,
        "model": SERVED_MODEL,
    }
    return _chunk(_compact(shared | fields))


def token(text: str) -> bytes:
    """An event with one token, as a chunk."""
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None, "token_ids": None}
    return _event({"choices": [choice]})


ANSWER: Final = _answer()
STREAM_HEAD: Final = (
    _HEAD + b"content-type: text/event-stream; charset=utf-8\r\nvary: Origin\r\ntransfer-encoding: chunked\r\n\r\n"
)
TOKEN_EVENT: Final = token(" early")
DONE_EVENT: Final = _chunk(b"[DONE]")
NO_HTTP: Final = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
HEALTHY: Final = _HEAD + b"content-length: 0\r\nvary: Origin\r\n\r\n"


def _models() -> bytes:
    body = _compact({"object": "list", "data": [{"id": SERVED_MODEL, "object": "model", "owned_by": "vllm"}]})
    return _HEAD + b"content-length: %d\r\ncontent-type: application/json\r\n\r\n%b" % (len(body), body)


MODELS: Final = _models()
