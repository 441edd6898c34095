"""Read requests with vLLM's own request models: run by vLLM's Python, asked by `test_vllm_lenient.py`.

stdin   {"bodies": [[path, base64 of a body, [field, ...]], ...], "targets": [[method, target], ...]}
stdout  its last line: {"bodies": [null where refused, else [value, ...]], "targets": [status, ...]}

No engine runs: a body goes through `json.loads` and the path's request model, as FastAPI sends it; a target through a
router that has vLLM's routes.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import sys
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, TypeAdapter, ValidationError
from vllm.entrypoints.anthropic.api_router import attach_router as attach_messages
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from vllm.entrypoints.openai.chat_completion.api_router import attach_router as attach_chat
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.api_router import attach_router as attach_completions
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.models.api_router import attach_router as attach_models
from vllm.entrypoints.openai.responses.api_router import attach_router as attach_responses
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.pooling.embed.protocol import EmbeddingRequest
from vllm.entrypoints.serve.instrumentator import register_instrumentator_api_routers
from vllm.entrypoints.serve.tokenize.api_router import attach_router as attach_tokenize
from vllm.exceptions import VLLMValidationError

MODELS: dict[str, TypeAdapter[Any]] = {
    "/v1/chat/completions": TypeAdapter(ChatCompletionRequest),
    "/v1/completions": TypeAdapter(CompletionRequest),
    "/v1/responses": TypeAdapter(ResponsesRequest),
    "/v1/messages": TypeAdapter(AnthropicMessagesRequest),
    "/v1/embeddings": TypeAdapter(EmbeddingRequest),
}


def read(path: str, body: bytes, fields: list[str]) -> list[Any] | None:
    """The values of `fields`, None where the body is refused."""
    try:
        request = MODELS[path].validate_python(json.loads(body))
    except (ValueError, ValidationError, VLLMValidationError):
        return None
    return [value_of(request, field) for field in fields]


def value_of(request: BaseModel, field: str) -> Any:
    """The value of a field of the model, which may be inside another; None where the model does not know it."""
    found: Any = request
    for name in field.split("."):
        found = getattr(found, name) if name in type(found).model_fields else None
    return found


def status_of(app: FastAPI, method: str, target: str) -> int:
    """The status of the answer to a request without a body."""
    path, _, query = target.partition("?")
    seen: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            seen.append(message["status"])

    scope = {
        "type": "http", "http_version": "1.1", "method": method, "scheme": "http", "server": ("x", 80), "root_path": "",
        "path": path.replace("%2F", "/"), "raw_path": path.encode(), "query_string": query.encode(),
        "headers": [(b"host", b"x")],
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    return seen[0]


def main() -> None:
    """Answer the requests on stdin."""
    asked = json.load(sys.stdin)
    app = FastAPI()
    app.state.args = argparse.Namespace()  # no option is set
    for attach in (attach_messages, attach_chat, attach_completions, attach_models, attach_responses, attach_tokenize):
        attach(app)
    register_instrumentator_api_routers(app)
    answer = {
        "bodies": [read(path, base64.b64decode(body), fields) for path, body, fields in asked["bodies"]],
        "targets": [status_of(app, method, target) for method, target in asked["targets"]],
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
