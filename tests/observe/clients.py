"""Clients of the gateway that note what they saw."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

CHAT, COMPLETIONS, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/messages"
RESPONSES = "/v1/responses"


@dataclass(frozen=True)
class Ask:
    """One request. `leave`: after this many events the client goes; 0: before the answer has begun."""

    path: str
    body: Mapping[str, Any] | bytes
    key: str | None = None
    leave: int | None = None


@dataclass
class Seen:
    """The outcomes at the clients: statuses, their own leaving, and usage where an answer had it."""

    statuses: list[int] = field(default_factory=list)
    left: int = 0
    broken: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


async def ask(session: aiohttp.ClientSession, url: str, key: str, request: Ask, seen: Seen) -> None:
    """Send one request, on a connection of its own, so that every worker gets some."""
    headers = {"authorization": f"Bearer {request.key or key}", "content-type": "application/json"}
    body = request.body if isinstance(request.body, bytes) else json.dumps(request.body).encode()
    if request.leave == 0:
        seen.left += 1
        with suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                async with session.post(url + request.path, data=body, headers=headers):
                    raise AssertionError("the answer came too early to leave before it")
        return
    async with session.post(url + request.path, data=body, headers=headers) as answer:
        if request.leave is not None:
            for _ in range(request.leave):
                await answer.content.readuntil(b"\n\n")
            seen.left += 1
            answer.close()
            return
        try:
            whole = await answer.read()
        except aiohttp.ClientPayloadError:
            seen.broken += 1
            whole = b""
        seen.statuses.append(answer.status)
        if answer.status == 200:
            _note_usage(answer.content_type == "text/event-stream", whole, seen)


def _note_usage(stream: bool, whole: bytes, seen: Seen) -> None:
    """Add the usage of an answer: of a stream the last that it reports; `error` events say that it broke off."""
    texts = [line[6:] for line in whole.split(b"\n") if line.startswith(b"data: {")] if stream else [whole]
    documents = [json.loads(text) for text in texts if text]
    if any("error" in each and each.get("error") for each in documents):
        seen.broken += 1
        return
    usages = [usage for each in documents if (usage := _usage_of(each))]
    for usage in usages[-1:]:
        seen.input_tokens += usage.get("prompt_tokens", usage.get("input_tokens", 0))
        seen.output_tokens += usage.get("completion_tokens", usage.get("output_tokens", 0))


def _usage_of(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    inner = document.get("response") or {}
    found: Mapping[str, Any] | None = document.get("usage") or inner.get("usage")
    return found


async def ask_all(url: str, key: str, requests: Sequence[Ask], seen: Seen, at_once: int = 12) -> None:
    """Send all requests, some at the same time, each over a connection of its own."""
    places = asyncio.Semaphore(at_once)
    connector = aiohttp.TCPConnector(ssl=False, force_close=True, limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(120)) as session:

        async def one(request: Ask) -> None:
            async with places:
                await ask(session, url, key, request, seen)

        await asyncio.gather(*map(one, requests))
