"""`aiaas connect --check`: the request for each thing that a client needs, and the verdict on its answer. Pure.

A probe is a real request with one token of output: only this shows that the gateway offers the path, that vLLM has it,
and that vLLM was started with a parser for tool calls. Clients that need the same share its answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from aiaas.clients.client import KnownClient
from aiaas.openai.paths import CHAT, MESSAGES, MODELS, RESPONSES

# `unknown` is what the gateway does not tell; `untried` a request that got no verdict, so nothing is shown by it.
NeedState = Literal["ok", "missing", "unknown", "untried"]

_PROMPT: Final = [{"role": "user", "content": "Hi"}]
_SCHEMA: Final[dict[str, Any]] = {"type": "object", "properties": {"city": {"type": "string"}}}
_FUNCTION: Final = {"name": "weather", "description": "Weather of a city", "parameters": _SCHEMA}
_TOOL: Final[dict[str, dict[str, Any]]] = {
    CHAT: {"type": "function", "function": _FUNCTION},
    RESPONSES: {"type": "function", **_FUNCTION},
    MESSAGES: {"name": "weather", "description": "Weather of a city", "input_schema": _SCHEMA},
}
_START_WITH_PARSER: Final = "start vLLM with --enable-auto-tool-choice --tool-call-parser NAME"
# In vLLM's message for a request with tools where no parser was chosen.
_NO_PARSER: Final = ("tool-call-parser", "tool choice requires")


@dataclass(frozen=True, slots=True)
class Probe:
    """One request. `headers` beside the usual ones; `key_in` is the header that carries the key."""

    path: str
    tools: bool = False
    key_in: str = "authorization"
    headers: tuple[tuple[str, str], ...] = ()

    def body(self, model: str) -> bytes | None:
        """The request's body; None: it is a GET."""
        if self.path == MODELS:
            return None
        fields: dict[str, Any] = {"model": model}
        if self.path == RESPONSES:
            fields |= {"input": "Hi", "max_output_tokens": 1}
        else:
            fields["messages"] = _PROMPT
            if self.path in (CHAT, MESSAGES):
                fields["max_tokens"] = 1
        if self.tools:
            fields["tools"] = [_TOOL[self.path]]
        return msgspec.json.encode(fields)


@dataclass(frozen=True, slots=True)
class ProbeReply:
    """An answer to a probe. `status` is None where none came; `code` and `message` are those of its error."""

    status: int | None
    code: str = ""
    message: str = ""
    tokens_per_minute: int | None = None


@dataclass(frozen=True, slots=True)
class ClientFinding:
    """One line of the check: the thing that the client needs, its state, and what to do if it is missing."""

    need: str
    state: NeedState
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.state:7}  {self.need}" + (f": {self.detail}" if self.detail else "")


def probes_of(client: KnownClient) -> tuple[Probe, ...]:
    """The requests that check a client: the paths that it needs, then those that it only uses.

    vLLM answers /v1/responses with tools even where it has no parser for tool calls, and then calls none. A chat with
    tools shows whether there is one, so it is asked for these clients, too.
    """
    sent = tuple((header.name, header.sample) for header in client.headers)
    needed = tuple(
        Probe(path, client.tools and path in _TOOL, client.key_in, () if path == MODELS else sent)
        for path in client.needs
    )
    used = tuple(Probe(path, False, client.key_in, sent) for path, _ in client.uses)
    shown = client.tools and RESPONSES in client.needs and CHAT not in client.needs
    return (*needed, *used, *((Probe(CHAT, True, client.key_in),) if shown else ()))


def judge_path(client: KnownClient, probe: Probe, reply: ProbeReply) -> ClientFinding:
    """The verdict on one path."""
    if probe.path not in (*client.needs, *dict(client.uses)):
        return _judge_parser(reply)
    need = probe.path + (" with tools" if probe.tools else "")
    loss = dict(client.uses).get(probe.path)
    if reply.status == 200:
        return ClientFinding(need, "ok")
    if reply.status in (404, 405) and reply.code != "model_not_found":
        fix = f"not offered; add {probe.path} to the backend's `endpoints`, if this vLLM has it"
        return ClientFinding(need, "missing", fix + (f"; without it {loss}" if loss else ""))
    if _has_no_parser(reply):
        return ClientFinding(need, "missing", _START_WITH_PARSER)
    if reply.status == 429:
        return ClientFinding(need, "untried", f"the key is over its limit: {reply.message}")
    if reply.status is None or reply.status >= 500:
        return ClientFinding(need, "untried", f"no answer from the engine: {reply.message}")
    return ClientFinding(need, "missing", f"{reply.status}: {reply.message}")


def _judge_parser(reply: ProbeReply) -> ClientFinding:
    need = "a parser for tool calls"
    if reply.status == 200:
        return ClientFinding(need, "ok")
    if _has_no_parser(reply):
        return ClientFinding(need, "missing", _START_WITH_PARSER)
    return ClientFinding(need, "unknown", f"{CHAT} with tools would show it: {reply.status} {reply.message}")


def _has_no_parser(reply: ProbeReply) -> bool:
    return reply.status == 400 and any(part in reply.message for part in _NO_PARSER)


def judge_context(client: KnownClient, context: int | None) -> ClientFinding | None:
    """The verdict on the model's context size; None for a client that works with any."""
    if not client.context:
        return None
    need = f"context of {client.context:,} tokens"
    if context is None:
        return ClientFinding(need, "unknown", "GET /v1/models does not say it; start vLLM with --max-model-len")
    if context < client.context:
        return ClientFinding(need, "missing", f"the model has {context:,}; start vLLM with a larger --max-model-len")
    return ClientFinding(need, "ok", f"the model has {context:,}")


def judge_tokens(client: KnownClient, replies: tuple[ProbeReply, ...]) -> ClientFinding | None:
    """The verdict on the key's tokens a minute: a request that needs more is never admitted."""
    limits = [reply.tokens_per_minute for reply in replies if reply.tokens_per_minute is not None]
    if not limits or not client.context:
        return None
    need = f"requests of {client.context:,} tokens"
    if min(limits) < client.context:
        fix = f"the key has {min(limits):,} tokens a minute; raise `tokens_per_minute`"
        return ClientFinding(need, "missing", fix)
    return ClientFinding(need, "ok", f"the key has {min(limits):,} tokens a minute")
