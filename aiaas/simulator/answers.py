"""Build complete answers as JSON with vLLM's fields in vLLM's order (0.32.0, transcripts 01 to 76 and 150 to 157).

Pure: the caller passes ids and times. `system_fingerprint` and `owned_by` identify the simulator.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aiaas.simulator.generate import SimulatedCall, SimulatedChoice

OWNER = "aiaas-simulator"
FINGERPRINT = "aiaas-simulator-0.32.0"  # with the vLLM version that the simulator imitates

Json = dict[str, Any]


def encode(value: object) -> bytes:
    """Encode JSON as Starlette does: without spaces, non-ASCII unescaped; a lone surrogate becomes "?"."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


@dataclass(frozen=True, slots=True)
class Stamp:
    """The fields that differ between equal answers: `id` with its prefix, `created` in Unix seconds, and the model."""

    id: str
    created: int
    model: str


@dataclass(frozen=True, slots=True)
class SimulatedUsage:
    """Token counts of one answer."""

    prompt: int
    completion: int

    def openai(self) -> Json:
        """Return the three counts in vLLM's order."""
        return {
            "prompt_tokens": self.prompt,
            "total_tokens": self.prompt + self.completion,
            "completion_tokens": self.completion,
        }

    def openai_full(self) -> Json:
        """Return the counts with the details that vLLM leaves null."""
        return {**self.openai(), "prompt_tokens_details": None, "completion_tokens_details": None}

    def responses(self) -> Json:
        """Return the counts in the form of /v1/responses (22)."""
        return {
            "input_tokens": self.prompt,
            "input_tokens_details": {
                "cached_tokens": 0,
                "cache_write_tokens": 0,
                "input_tokens_per_turn": [],
                "cached_tokens_per_turn": [],
            },
            "output_tokens": self.completion,
            "output_tokens_details": {
                "reasoning_tokens": 0,
                "tool_output_tokens": 0,
                "output_tokens_per_turn": [],
                "tool_output_tokens_per_turn": [],
            },
            "total_tokens": self.prompt + self.completion,
        }


def simulated_usage(prompt_tokens: int, choices: Sequence[SimulatedChoice]) -> SimulatedUsage:
    """Count the tokens of a finished answer."""
    return SimulatedUsage(prompt_tokens, sum(len(choice.deltas) for choice in choices))


def chat(stamp: Stamp, prompt_tokens: int, choices: Sequence[SimulatedChoice]) -> Json:
    """POST /v1/chat/completions (10)."""
    return {
        "id": stamp.id,
        "object": "chat.completion",
        "created": stamp.created,
        "model": stamp.model,
        "choices": [
            {
                "index": index,
                "message": _assistant(choice),
                "logprobs": None,
                "finish_reason": choice.chat_reason,
                "stop_reason": choice.stop_reason,
                "token_ids": None,
                "routed_experts": None,
            }
            for index, choice in enumerate(choices)
        ],
        "service_tier": None,
        "system_fingerprint": FINGERPRINT,
        "usage": simulated_usage(prompt_tokens, choices).openai_full(),
        "prompt_logprobs": None,
        "prompt_token_ids": None,
        "prompt_text": None,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": None,
    }


def _assistant(choice: SimulatedChoice) -> Json:
    """The message of a chat's answer; vLLM leaves `tool_calls` out where there are none."""
    call = choice.call
    function = None if call is None else {"name": call.name, "arguments": choice.text}
    return {
        "role": "assistant",
        "content": choice.text if call is None else None,
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        **({} if call is None else {"tool_calls": [{"id": call.id, "type": "function", "function": function}]}),
        "reasoning": None,
    }


def completion(stamp: Stamp, prompt_tokens: int, choices: Sequence[SimulatedChoice]) -> Json:
    """POST /v1/completions (20)."""
    return {
        "id": stamp.id,
        "object": "text_completion",
        "created": stamp.created,
        "model": stamp.model,
        "choices": [
            {
                "index": index,
                "text": choice.text,
                "logprobs": None,
                "finish_reason": choice.finish_reason,
                "stop_reason": choice.stop_reason,
                "token_ids": None,
                "prompt_logprobs": None,
                "prompt_token_ids": None,
                "routed_experts": None,
            }
            for index, choice in enumerate(choices)
        ],
        "service_tier": None,
        "system_fingerprint": FINGERPRINT,
        "usage": simulated_usage(prompt_tokens, choices).openai_full(),
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": None,
    }


def response_message(message_id: str, text: str) -> Json:
    """Build the only output item of /v1/responses, when it is finished."""
    return {
        "id": message_id,
        "content": [{"annotations": [], "text": text, "type": "output_text", "logprobs": None}],
        "role": "assistant",
        "status": "completed",
        "type": "message",
        "phase": None,
    }


def response_call(item_id: str, call: SimulatedCall, arguments: str) -> Json:
    """Build the output item of /v1/responses that calls a tool, when it is finished."""
    return {
        "arguments": arguments,
        "call_id": call.id,
        "name": call.name,
        "type": "function_call",
        "id": item_id,
        "namespace": None,
        "status": "completed",
    }


def _output(message_id: str, choice: SimulatedChoice | None) -> list[Json]:
    if choice is None or not choice.text:
        return []
    if choice.call is not None:
        return [response_call(message_id, choice.call, choice.text)]
    return [response_message(message_id, choice.text)]


def response(stamp: Stamp, asked: Json, message_id: str, prompt_tokens: int, choice: SimulatedChoice | None) -> Json:
    """POST /v1/responses (22); without a choice, the response in progress that opens a stream (23).

    `asked` has the fields to echo: instructions, metadata, temperature, top_p, max_output_tokens, user.
    """
    cut = choice is not None and choice.finish_reason == "length"
    status = "in_progress" if choice is None else "incomplete" if cut else "completed"
    return {
        "id": stamp.id,
        "created_at": stamp.created,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": asked["instructions"],
        "metadata": asked["metadata"],
        "model": stamp.model,
        "object": "response",
        "output": _output(message_id, choice),
        "parallel_tool_calls": True,
        "temperature": asked["temperature"],
        "tool_choice": "none",
        "tools": [],
        "top_p": asked["top_p"],
        "background": False,
        "max_output_tokens": asked["max_output_tokens"],
        "max_tool_calls": None,
        "previous_response_id": None,
        "prompt": None,
        "reasoning": None,
        "service_tier": "auto",
        "status": status,
        "text": None,
        "top_logprobs": None,
        "truncation": "disabled",
        "usage": None if choice is None else simulated_usage(prompt_tokens, (choice,)).responses(),
        "user": asked["user"],
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "input_messages": None,
        "output_messages": None,
    }


def message_stop_reason(choice: SimulatedChoice) -> str:
    """Return Anthropic's name for the reason why an answer ended."""
    if choice.finish_reason == "length":
        return "max_tokens"
    if choice.call is not None:
        return "tool_use"
    return "stop_sequence" if choice.stop_reason is not None else "end_turn"


def message_call(choice: SimulatedChoice) -> Json:
    """Build the block of /v1/messages that calls a tool."""
    assert choice.call is not None
    return {"type": "tool_use", "id": choice.call.id, "name": choice.call.name, "input": json.loads(choice.text)}


def message(stamp: Stamp, prompt_tokens: int, choice: SimulatedChoice) -> Json:
    """POST /v1/messages (24)."""
    body: Json = {
        "id": stamp.id,
        "type": "message",
        "role": "assistant",
        "content": [{"type": "text", "text": choice.text}] if choice.call is None else [message_call(choice)],
        "model": stamp.model,
        "stop_reason": message_stop_reason(choice),
    }
    if choice.stop_reason is not None:
        body["stop_sequence"] = choice.stop_reason
    body["usage"] = {"input_tokens": prompt_tokens, "output_tokens": len(choice.deltas)}
    return body


def models(names: Sequence[str], max_model_len: int, created: int, permission_ids: Sequence[str]) -> Json:
    """GET /v1/models (01, 105)."""
    return {
        "object": "list",
        "data": [
            {
                "id": name,
                "object": "model",
                "created": created,
                "owned_by": OWNER,
                "root": OWNER,
                "parent": None,
                "max_model_len": max_model_len,
                "permission": [
                    {
                        "id": f"modelperm-{permission_id}",
                        "object": "model_permission",
                        "created": created,
                        "allow_create_engine": False,
                        "allow_sampling": True,
                        "allow_logprobs": True,
                        "allow_search_indices": False,
                        "allow_view": True,
                        "allow_fine_tuning": False,
                        "organization": "*",
                        "group": None,
                        "is_blocking": False,
                    }
                ],
            }
            for name, permission_id in zip(names, permission_ids, strict=True)
        ],
    }
