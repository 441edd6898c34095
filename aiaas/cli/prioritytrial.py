"""Try whether a vLLM takes the field `priority`, where the config says `scheduling: priority`: with one short request.

vLLM before 0.10 refuses a `priority` other than 0 unless it was started with `--scheduling-policy priority`, so every
request would fail. Since 0.10 it ignores the field instead (vllm-project/vllm#22997), although the description of the
field still promises an error, and it shows its policy in its log only. So a request that is accepted proves one half,
and `IGNORED` says how to see the other.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from aiaas.config.problem import Severity
from aiaas.openai import paths
from aiaas.openai.toplevel import UNREADABLE
from aiaas.plan.model import Plan
from aiaas.proxy.upstream.ask import Fetched, fetch
from aiaas.proxy.upstream.connection import Failure
from aiaas.proxy.upstream.endpoint import EndpointState

PATIENCE: Final = 30.0  # seconds; the trial waits behind all others
LAST: Final = 20  # the priority of batch, so that the trial holds up nobody
IGNORED: Final = (
    "takes `priority`; whether it also obeys it stands in the first lines of its log: 'scheduling_policy': 'priority' "
    "(since 0.10, a vLLM without --scheduling-policy priority ignores the field)"
)
_REMEDY: Final = "start it with --scheduling-policy priority, or write scheduling: fcfs"

# A request of one generated token by path, in the order in which the paths are tried. Any model that generates has
# completions; a chat may lack its template.
_TRIALS: Final[dict[str, dict[str, Any]]] = {
    paths.COMPLETIONS: {"prompt": "a", "max_tokens": 1},
    paths.CHAT: {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
    paths.RESPONSES: {"input": "a", "max_output_tokens": 1, "store": False},
    paths.EMBEDDINGS: {"input": "a"},
}


async def try_priority(plan: Plan, endpoint: EndpointState) -> Fetched | Failure | None:
    """The endpoint's answer to a request with a priority; None where it has no path that knows the field."""
    backend = endpoint.backend.plan
    answer: Fetched | Failure | None = None
    for path, fields in _TRIALS.items():
        offered = (target.backend.name for route in plan.routes.get(path, {}).values() for target in route.targets)
        if backend.name not in offered:
            continue
        body = {"model": backend.served_models[0], **fields, "priority": LAST}
        answer = await fetch(endpoint, path, PATIENCE, msgspec.json.encode(body))
        if isinstance(answer, Failure) or answer.status != 404:
            break
    return answer


def judge_trial(answer: Fetched | Failure) -> tuple[Severity, str] | None:
    """The problem that an answer shows; None if the request was accepted."""
    if isinstance(answer, Failure):
        return "warning", f"whether it takes `priority` could not be tried: {answer.detail}"
    if 200 <= answer.status < 300:
        return None
    message = _message(answer.body)
    if 400 <= answer.status < 500 and "priority" in message.lower():
        return "error", f"refuses `priority`, and so every request ({message}); {_REMEDY}"
    return "warning", f"whether it takes `priority` could not be tried: {answer.status} {message}".rstrip()


def _message(body: bytes) -> str:
    """The message of an error, in OpenAI's form or in that of older vLLMs; else the beginning of the body."""
    try:
        error = msgspec.json.decode(body)
    except UNREADABLE:
        error = None
    if isinstance(error, dict):
        inner = error.get("error")
        message = (inner if isinstance(inner, dict) else error).get("message")
        if isinstance(message, str):
            return _line(message)
    return _line(body.decode("utf-8", "replace"))


def _line(text: str) -> str:
    return " ".join(text.split())[:200]
