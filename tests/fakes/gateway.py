"""A scripted stand-in for aiaas itself, whose answers are right until a test breaks one.

    fake = await FakeGateway.start()
    fake.breaks["stream"] = (Send(...),)        # what a request of that kind is answered with instead

The kind of a request is the name of the smoke test's check that sends it (`kind_of`). The limiter is aiaas's own
arithmetic, so that a check of it has something right to meet.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from math import ceil

import msgspec

from aiaas.limits.gcra import decide
from aiaas.limits.model import Rate
from tests.fakes.vllm import DONE, STREAM_HEAD, FakeVllm, Hang, Received, Send, Step, chunk, json_answer, usage_event

KEY = "sk-right"
LARGEST_BODY = 4096
PROMPT_TOKENS = 7
LAST_CHUNK = b"0\r\n\r\n"


class FakeGateway(FakeVllm):
    """It takes KEY, has the model `m`, and bodies of up to LARGEST_BODY bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.breaks: dict[str, tuple[Step, ...]] = {}
        self.rate: Rate | None = None
        self.key = KEY
        self.admitted = 0
        self._tat: float | None = None
        self._ids = itertools.count(1)

    def script_for(self, method: str, path: str) -> Sequence[Step]:
        """Choose the answer to a request."""
        received = self.got[-1]
        kind = kind_of(received, self.key)
        if kind in self.breaks:
            return self.breaks[kind]
        refusal = _REFUSALS.get(kind)
        if refusal is not None:
            status, code, headers = refusal
            return (Send(self._error(status, code, headers)),)
        if kind in ("health", "ready"):
            return (Send(json_answer({"status": "ok"})),)
        if kind == "models":
            return (Send(self._json({"object": "list", "data": [{"id": "m"}, {"id": "other"}]})),)
        return self._generate(received)

    def _generate(self, received: Received) -> Sequence[Step]:
        lines = "x-aiaas-class: batch\r\n" if "service_tier" in received.json else ""
        if self.rate is not None:
            decision, self._tat = decide(self._tat, self.rate, 1, time.monotonic())
            lines += (
                f"x-ratelimit-limit-requests: {self.rate.per_minute}\r\n"
                f"x-ratelimit-remaining-requests: {decision.remaining}\r\n"
                f"x-ratelimit-reset-requests: {ceil(decision.reset_after * 1000)}ms\r\n"
            )
            if not decision.allowed:
                wait = decision.retry_after or 0
                lines += f"retry-after: {ceil(wait)}\r\nretry-after-ms: {ceil(wait * 1000)}\r\n"
                return (Send(self._error(429, "rate_limit_exceeded", lines)),)
        self.admitted += 1
        asked = received.json
        tokens = asked["max_tokens"]
        if kind_of(received, self.key) == "abort":  # an answer that lasts until the client goes
            return (Send(STREAM_HEAD), *[Send(chunk(_EVENT))] * 10, Hang())
        if asked.get("stream"):
            usage = (usage_event(PROMPT_TOKENS, tokens),) if asked.get("stream_options") else ()
            return (
                Send(STREAM_HEAD),
                *(Send(chunk(event)) for event in (*[_EVENT] * tokens, *usage, DONE)),
                Send(LAST_CHUNK),
            )
        return (Send(self._json(whole(tokens), lines)),)

    def _json(self, body: object, headers: str = "") -> bytes:
        return json_answer(body, headers=f"x-request-id: r{next(self._ids)}\r\n{headers}")

    def _error(self, status: int, code: str, headers: str = "") -> bytes:
        body = {"error": {"message": "No.", "type": "invalid_request_error", "param": None, "code": code}}
        return json_answer(body, status=status, headers=f"x-request-id: r{next(self._ids)}\r\n{headers}")


def whole(tokens: int, **fields: object) -> dict[str, object]:
    """A completion of `tokens` tokens."""
    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": tokens, "total_tokens": PROMPT_TOKENS + tokens}
    choice = {"index": 0, "message": {"role": "assistant", "content": "x" * tokens}, "finish_reason": "length"}
    return {"id": "chatcmpl-1", "created": 1, "model": "m", "choices": [choice], "usage": usage, **fields}


def kind_of(received: Received, key: str) -> str:
    """The check that sends such a request."""
    presented = received.headers.get("authorization")
    if received.method == "GET":
        if received.path == "/v1/models" and presented != f"Bearer {key}":
            return "no-key" if presented is None else "wrong-key"
        return _GETS.get(received.path, "unknown-path")
    if presented is None:
        return "no-key"
    if presented != f"Bearer {key}":
        return "wrong-key"
    if len(received.body) > LARGEST_BODY:
        return "body-too-large"
    asked = msgspec.json.decode(received.body)
    if asked["model"] not in ("m", "other"):
        return "unknown-model"
    if "priority" in asked:
        return "priority"
    if "service_tier" in asked:
        return "class"
    if asked.get("stream"):
        long = {64: "stream-pace", 1000: "abort"}
        return "stream-usage" if "stream_options" in asked else long.get(asked["max_tokens"], "stream")
    return {1: "rate-limit", 20: "direct", 1000: "abort-early"}.get(asked["max_tokens"], "completion")


_GETS = {"/health": "health", "/ready": "ready", "/v1/models": "models", "/metrics": "metrics-hidden"}
_CHALLENGE = "www-authenticate: Bearer\r\n"
_REFUSALS = {
    "unknown-path": (404, "not_found", ""),
    "metrics-hidden": (404, "not_found", ""),
    "no-key": (401, "missing_api_key", _CHALLENGE),
    "wrong-key": (401, "invalid_api_key", _CHALLENGE),
    "unknown-model": (404, "model_not_found", ""),
    "priority": (400, "invalid_request", ""),
    "body-too-large": (413, "request_too_large", ""),
}
_EVENT = b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
