"""The official SDKs for Python, openai and anthropic: prints the outcome of each case as JSON.

The server's address, its key and a model come in BASE_URL, API_KEY and MODEL. It runs with the packages of
requirements.lock.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable

import anthropic
import openai

URL, KEY, MODEL = os.environ["BASE_URL"], os.environ["API_KEY"], os.environ["MODEL"]
HELLO = [{"role": "user", "content": "Say hello."}]
CALL = [{"role": "user", "content": 'aiaas-simulator: call weather {"city": "Graz"}'}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "weather", "description": "The weather", "parameters": SCHEMA}
TOOLS = [{"type": "function", "function": FUNCTION}]
ANTHROPIC_TOOLS = [{"name": "weather", "description": "The weather", "input_schema": SCHEMA}]
SHORT = {"model": MODEL, "temperature": 0, "max_tokens": 8}

Case = Callable[[], object]


def plain(value: object) -> object:
    """An answer as the SDK read it, in JSON's own types."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def events(stream: Iterable[object]) -> object:
    """A stream's events."""
    return plain(list(stream))


def outcome(case: Case) -> object:
    """The value of a case, or the error that the SDK raises."""
    try:
        return plain(case())
    except (openai.APIError, anthropic.APIError) as error:
        return {
            "raised": type(error).__name__,
            "status": getattr(error, "status_code", None),
            "code": str(getattr(error, "code", None)),
            "body": plain(error.body),
        }


def openai_cases() -> dict[str, Case]:
    """The openai package."""
    sdk = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0, timeout=60)
    wrong = openai.OpenAI(base_url=f"{URL}/v1", api_key="sk-wrong", max_retries=0, timeout=60)
    chat, completions, responses = sdk.chat.completions.create, sdk.completions.create, sdk.responses.create
    usage = {"stream_options": {"include_usage": True}}
    brief = {"model": MODEL, "temperature": 0, "max_output_tokens": 8}
    schema = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
    return {
        "chat": lambda: chat(**SHORT, messages=HELLO),
        "chat without a bound": lambda: chat(model=MODEL, temperature=0, messages=HELLO, stop=["."]),
        "chat with two choices": lambda: chat(**SHORT | {"temperature": 1}, messages=HELLO, n=2, seed=1).usage,
        "chat with logprobs": lambda: chat(**SHORT, messages=HELLO, logprobs=True, top_logprobs=2),
        "chat with a schema": lambda: chat(**SHORT, messages=HELLO, response_format=schema).choices[0].finish_reason,
        "chat streamed": lambda: events(chat(**SHORT, messages=HELLO, stream=True)),
        "chat streamed with usage": lambda: events(chat(**SHORT, messages=HELLO, stream=True, **usage)),
        "chat with a tool": lambda: chat(**SHORT, messages=CALL, tools=TOOLS),
        "chat streamed with a tool": lambda: events(chat(**SHORT, messages=CALL, tools=TOOLS, stream=True)),
        "chat with system text": lambda: chat(**SHORT, messages=[{"role": "system", "content": "Be brief."}, *HELLO]),
        "chat's headers": lambda: sorted(
            name
            for name in sdk.chat.completions.with_raw_response.create(**SHORT, messages=HELLO).headers
            if name not in ("x-request-id", "date", "server")
        ),
        "completion": lambda: completions(**SHORT, prompt="def main("),
        "completion with two prompts": lambda: completions(**SHORT, prompt=["a", "b"]),
        "completion streamed": lambda: events(completions(**SHORT, prompt="def main(", stream=True)),
        "completion streamed with usage": lambda: events(completions(**SHORT, prompt="a", stream=True, **usage)),
        "response": lambda: responses(**brief, input="Say hello."),
        "response streamed": lambda: events(responses(**brief, input="Say hello.", stream=True)),
        "response with a tool": lambda: responses(
            **brief, input=CALL[0]["content"], tools=[{"type": "function", **FUNCTION, "strict": False}]
        ),
        "response by an id that does not exist": lambda: sdk.responses.retrieve("resp_123"),
        "models": lambda: [model.id for model in sdk.models.list()],
        "models in full": lambda: sdk.models.list().data,
        "model by name": lambda: sdk.models.retrieve(MODEL).id,
        "embedding of a text model": lambda: sdk.embeddings.create(model=MODEL, input="a"),
        "unknown model": lambda: chat(model="nope", messages=HELLO),
        "temperature out of bounds": lambda: chat(model=MODEL, messages=HELLO, temperature=9),
        "max_tokens above the context": lambda: chat(model=MODEL, messages=HELLO, max_tokens=10**7),
        "prompt above the context": lambda: completions(model=MODEL, prompt="a " * 200_000, max_tokens=1),
        "no messages": lambda: chat(model=MODEL, messages=[]),
        "message of a wrong form": lambda: chat(model=MODEL, messages=[{"role": "user", "content": 5}]),
        "wrong key": lambda: wrong.chat.completions.create(**SHORT, messages=HELLO),
        "wrong key for models": lambda: wrong.models.list().data,
    }


def anthropic_cases() -> dict[str, Case]:
    """The anthropic package."""
    sdk = anthropic.Anthropic(base_url=URL, auth_token=KEY, api_key=None, max_retries=0, timeout=60)
    wrong = anthropic.Anthropic(base_url=URL, auth_token="sk-wrong", api_key=None, max_retries=0, timeout=60)
    create, count = sdk.messages.create, sdk.messages.count_tokens
    short = {"model": MODEL, "max_tokens": 8, "extra_body": {"temperature": 0}}  # create() does not know temperature
    return {
        "message": lambda: create(**short, messages=HELLO),
        "message streamed": lambda: events(create(**short, messages=HELLO, stream=True)),
        "message with system text": lambda: create(**short, system="Be brief.", messages=HELLO),
        "message with a tool": lambda: create(**short, messages=CALL, tools=ANTHROPIC_TOOLS),
        "message streamed with a tool": lambda: events(
            create(**short, messages=CALL, tools=ANTHROPIC_TOOLS, stream=True)
        ),
        "message: tokens counted": lambda: count(model=MODEL, messages=HELLO),
        "message: unknown model": lambda: create(**short | {"model": "nope"}, messages=HELLO),
        "message: bound above the context": lambda: create(model=MODEL, max_tokens=10**7, messages=HELLO),
        "message: empty conversation": lambda: create(**short, messages=[]),
        "message: wrong key": lambda: wrong.messages.create(**short, messages=HELLO),
    }


if __name__ == "__main__":
    found = {name: outcome(case) for name, case in (openai_cases() | anthropic_cases()).items()}
    json.dump(found, sys.stdout)
