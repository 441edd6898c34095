"""Events and requests of a chat, as vLLM 0.32 and its clients write them."""

from __future__ import annotations

import json
from typing import Any

from aiaas.openai.chat_cut import ChatCut

FRAME = '{"id":"chatcmpl-1","object":"chat.completion.chunk","created":%d,"model":"m"'
ROLE = {"role": "assistant", "content": ""}


def event(delta: dict[str, Any], finish: str | None = None, created: int = 1) -> bytes:
    """As vLLM 0.32 writes it."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish, "token_ids": None}
    text = json.dumps([choice], separators=(",", ":"), ensure_ascii=False)
    return f'data: {FRAME % created},"choices":{text}}}\n\n'.encode()


def usage_event(prompt: int, completion: int, created: int = 1) -> bytes:
    usage = {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}
    return f'data: {FRAME % created},"choices":[],"usage":{json.dumps(usage, separators=(",", ":"))}}}\n\n'.encode()


def request(**fields: Any) -> bytes:
    asked = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True, "temperature": 0}
    return json.dumps(asked | fields).encode()


def cut_of(content: str, **fields: Any) -> ChatCut:
    return ChatCut((FRAME % 1).encode(), content=content, events=9, **fields)
