"""Directions in a prompt: with `--enable-auto-tool-choice`, the user's text says which tools the simulator calls.

    aiaas-simulator: call Bash {"command": "echo hello"}
    aiaas-simulator: say All done.

Each direction is a line of its own in a user's message. The simulator answers with the calls of the newest message that
has directions, one after another: the next one after each result of a tool. Then comes the text of its `say`, else the
usual words. A call counts only if the request offers a tool of this name, so that a client's other requests (such as
for a title of the conversation) get text. `max_tokens` does not cut these answers.

Pure. The text of a call is its arguments, in tokens like any other answer's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from aiaas.simulator.generate import SimulatedCall, SimulatedChoice, rest_of, tokenize
from aiaas.simulator.requests import GenerationJob

_CALL: Final = re.compile(r"^\s*aiaas-simulator: call (\S+) (\{.*\})\s*$", re.MULTILINE)
_SAY: Final = re.compile(r"^\s*aiaas-simulator: say (.*\S)\s*$", re.MULTILINE)
_RESULTS: Final = frozenset({"tool_result", "function_call_output", "custom_tool_call_output"})

_Item = dict[str, Any]


@dataclass(slots=True)
class _Directions:
    """The directions of one message, and how many results of tools came after it."""

    calls: list[tuple[str, str]] = field(default_factory=list)
    say: str | None = None
    results: int = 0


def directed(job: GenerationJob, data: object) -> GenerationJob:
    """The job with the answer that the conversation in `data`, its body, directs; `job` itself if there is none."""
    if not isinstance(data, dict) or job.family == "completions":
        return job
    found = _read(data)
    names = frozenset(_tool_names(data))
    left = [call for call in found.calls[found.results :] if call[0] in names]
    if left:
        name, arguments = left[0]
        call = SimulatedCall(f"chatcmpl-tool-{job.seed:016x}", name)
        return _answered(job, SimulatedChoice((*tokenize(arguments), ""), "stop", call=call))
    if found.say is not None and names:
        return _answered(job, SimulatedChoice((*rest_of(tokenize(found.say), job.opened), ""), "stop"))
    return job


def _answered(job: GenerationJob, choice: SimulatedChoice) -> GenerationJob:
    return replace(job, choices=(choice,) * len(job.choices))


def _read(data: _Item) -> _Directions:
    found = _Directions()
    for kind, text in _turns(data):
        if kind == "result":
            found.results += 1
            continue
        calls, say = _CALL.findall(text), _SAY.search(text)
        if calls or say:
            found = _Directions(calls, say and say[1])
    return found


def _turns(data: _Item) -> Iterator[tuple[str, str]]:
    """The texts of the user, and the results of tools, in order."""
    items = data.get("messages", data.get("input"))
    if isinstance(items, str):
        yield "user", items
        return
    for item in items if isinstance(items, list) else ():
        if not isinstance(item, dict):
            continue
        if item.get("role") == "tool" or item.get("type") in _RESULTS:
            yield "result", ""
        elif item.get("role") == "user":
            yield from _parts(item.get("content"))


def _parts(content: object) -> Iterator[tuple[str, str]]:
    if isinstance(content, str):
        yield "user", content
    for part in content if isinstance(content, list) else ():
        if isinstance(part, dict):
            if part.get("type") in _RESULTS:
                yield "result", ""
            else:
                yield "user", str(part.get("text", ""))


def _tool_names(data: _Item) -> Iterator[str]:
    tools = data.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        if isinstance(tool, dict):
            function = tool.get("function")
            yield str((function if isinstance(function, dict) else tool).get("name"))
