"""Which tool the simulator calls is said in the prompt."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aiaas.simulator.directions import directed
from aiaas.simulator.generate import SimulatedChoice
from aiaas.simulator.options import SimulatorOptions
from aiaas.simulator.requests import ApiFamily, parse_job

OPTIONS = SimulatorOptions(models=("m",), auto_tool_choice=True)
ASK = (
    'Please:\naiaas-simulator: call Bash {"command": "echo 1"}\n'
    'aiaas-simulator: call Read {"file": "a b"}\naiaas-simulator: say All done.\n'
)
NAMES = ("Bash", "Read")


def body(family: ApiFamily, *turns: Any, names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    """A request: a `str` is the user's, a number of results of tools comes as each family sends it."""
    items: list[dict[str, Any]] = []
    for turn in turns:
        if isinstance(turn, str):
            kind = "input_text" if family == "responses" else "text"
            items.append({"role": "user", "content": [{"type": kind, "text": turn}]})
        elif family == "chat":
            items += [{"role": "assistant", "content": None}, {"role": "tool", "tool_call_id": "c", "content": "1"}]
        elif family == "messages":
            result = {"type": "tool_result", "tool_use_id": "c", "content": "1"}
            items += [{"role": "assistant", "content": "x"}, {"role": "user", "content": [result]}]
        else:
            items.append({"type": "function_call_output", "call_id": "c", "output": "1"})
    if family == "chat":
        tools: list[dict[str, Any]] = [{"type": "function", "function": {"name": name}} for name in names]
        return {"model": "m", "messages": items, "tools": tools}
    tools = [{"type": "function", "name": name} for name in names]
    if family == "messages":
        return {"model": "m", "messages": items, "max_tokens": 5, "tools": tools}
    return {"model": "m", "input": items, "tools": tools}


def answer(family: ApiFamily, data: dict[str, Any]) -> SimulatedChoice:
    return directed(parse_job(family, data, OPTIONS), data).choices[0]


each_family = pytest.mark.parametrize("family", ["chat", "messages", "responses"])


@each_family
def test_calls_follow_one_another_with_each_result(family: ApiFamily) -> None:
    """First one tool, then the other, then the text."""
    first, second = answer(family, body(family, ASK)), answer(family, body(family, ASK, 1))
    assert first.call is not None
    assert (first.call.name, json.loads(first.text), first.chat_reason) == (
        "Bash",
        {"command": "echo 1"},
        "tool_calls",
    )
    assert second.call is not None
    assert (second.call.name, json.loads(second.text)) == ("Read", {"file": "a b"})
    assert first.call.id != second.call.id
    last = answer(family, body(family, ASK, 1, 1))
    assert (last.call, last.text, last.chat_reason) == (None, "All done.", "stop")


@each_family
def test_newest_directions_count(family: ApiFamily) -> None:
    """A second turn begins anew; a text without directions changes nothing."""
    again = answer(family, body(family, ASK, 1, 1, 'aiaas-simulator: call Bash {"command": "2"}'))
    assert again.text == '{"command": "2"}'
    reminded = answer(family, body(family, ASK, 1, "<system-reminder>be brief</system-reminder>"))
    assert reminded.call is not None
    assert reminded.call.name == "Read"


@each_family
def test_tool_that_is_not_offered_is_not_called(family: ApiFamily) -> None:
    """A request without tools, such as for a title, gets the usual words."""
    plain = answer(family, body(family, ASK, names=("Other",)))
    assert plain.call is None
    assert plain.text == "All done."
    without = body(family, ASK)
    del without["tools"]
    assert answer(family, without).text.startswith("This is the aiaas simulator")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("aiaas-simulator: call Bash not json", id="no arguments"),
        pytest.param('Say aiaas-simulator: call Bash {"a": 1}', id="not at the beginning of a line"),
        pytest.param("", id="empty"),
    ],
)
def test_text_that_only_resembles_directions_is_words(text: str) -> None:
    """Such a prompt is answered as any other."""
    assert answer("chat", body("chat", text)).text.startswith("This is the aiaas simulator")


def test_input_as_one_text_can_direct() -> None:
    """/v1/responses takes a text instead of a list."""
    data = {"model": "m", "input": ASK, "tools": [{"type": "function", "name": "Bash"}]}
    choice = answer("responses", data)
    assert choice.call is not None


def test_completions_are_never_directed() -> None:
    """They know no tools."""
    data = {"model": "m", "prompt": ASK, "tools": [{"name": "Bash"}]}
    job = parse_job("completions", data, OPTIONS)
    assert directed(job, data) is job


def test_a_directed_text_is_continued() -> None:
    """An open message that begins it gets the rest."""
    data = body("chat", ASK, 1, 1)
    assert answer("chat", data).text == "All done."
    data["messages"].append({"role": "assistant", "content": "All"})
    data |= {"continue_final_message": True, "add_generation_prompt": False}
    assert answer("chat", data).text == " done."
