"""An answer that broke off and goes on is the uncut one: what is read of the first part, asked for, and joined."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.openai.chat_cut import ChatCut, chat_cut
from aiaas.openai.joint import DiffersError, Joint
from aiaas.openai.resumable import Continuation, continuation
from tests.openai.chat_bytes import ROLE, cut_of, event, request, usage_event


def joined(cut: ChatCut, rest: Continuation, events: list[bytes], delivered: int = 0) -> bytes:
    joint = Joint(cut, rest, delivered)
    return b"".join(joint.event(each) for each in events)


@given(st.lists(st.text(min_size=1, max_size=6), min_size=2, max_size=12), st.data())
def test_answer_that_goes_on_is_the_uncut_one(parts: list[str], data: st.DataObject) -> None:
    """Wherever it breaks off, and however the second engine divides the text, the client reads the whole text once."""
    at = data.draw(st.integers(1, len(parts) - 1))
    first = b"".join([event(ROLE), *(event({"content": part}) for part in parts[:at])])
    cut = chat_cut(first)
    assert cut is not None
    rest = continuation(request(stop=["zzz"]), cut, "exact")
    asked = json.loads(rest.body)
    sent = asked["messages"][-1]["content"] if asked["messages"][-1]["role"] == "assistant" else ""
    left = "".join(parts)[len(sent) :]
    where = sorted(data.draw(st.lists(st.integers(0, len(left)), max_size=4)))
    pieces = [left[a:b] for a, b in zip([0, *where], [*where, len(left)], strict=True)]
    second = [event(ROLE, created=2), *(event({"content": piece}, created=2) for piece in pieces)]
    second += [event({"content": ""}, "stop", created=2), usage_event(10 + at, 5, created=2), b"data: [DONE]\n\n"]
    whole = first + joined(cut, rest, second)
    read = chat_cut(whole.replace(b"data: [DONE]\n\n", b""))
    assert read is not None
    assert (read.content, read.finished) == ("".join(parts), True)
    assert (whole.count(b'"created":1'), whole.count(b'"created":2'), whole.count(b"[DONE]")) == (
        whole.count(b'"id"'),
        0,
        1,
    )
    assert whole.count(b'"role"') == 1


def test_usage_is_that_of_the_whole_answer() -> None:
    """The second engine counts the delivered text among its prompt; the sum of both stays the same."""
    cut = cut_of("so far")
    rest = continuation(request(), cut, "exact")
    shown = joined(cut, rest, [usage_event(12, 3, created=2)], delivered=2)
    assert shown == usage_event(10, 5)


def test_usage_on_every_event_is_that_of_the_whole_answer() -> None:
    """A vLLM with --enable-force-include-usage tells it with the text, too."""

    def with_usage(text: str, prompt: int, completion: int) -> bytes:
        counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        told = b',"usage":' + json.dumps(counts, separators=(",", ":")).encode() + b"}"
        return event({"content": text}).removesuffix(b"}\n\n") + told + b"\n\n"

    cut = cut_of("so far")
    rest = continuation(request(), cut, "exact")
    assert joined(cut, rest, [with_usage(" on", 12, 1)], delivered=2) == with_usage(" on", 10, 3)


def test_answer_of_which_only_the_role_came_is_asked_for_again() -> None:
    """The request is the client's own, and the second role is dropped."""
    cut = chat_cut(event(ROLE))
    assert cut is not None
    rest = continuation(request(), cut, "exact")
    assert rest.body == request()
    assert joined(cut, rest, [event(ROLE, created=2), event({"content": "a"}, created=2)]) == event({"content": "a"})


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param([event({"content": "XX"})], id="other text"),
        pytest.param([event({"reasoning": "hm"})], id="thinking"),
        pytest.param([event({"content": "\n"}), event({}, "stop")], id="ends before the overlap"),
        pytest.param([b'data: {"id":1}\n\n'], id="another event"),
        pytest.param([event({"content": "a", "new": 1})], id="unknown field"),
    ],
)
def test_rest_that_does_not_fit_is_refused(wrong: list[bytes]) -> None:
    """Text that the second engine writes instead of the overlap must never reach the client."""
    cut = cut_of("if x:\n    ")
    rest = continuation(request(), cut, "exact")
    assert rest.overlap == "\n    "
    with pytest.raises(DiffersError):
        joined(cut, rest, wrong)


def test_blanks_that_a_template_ate_are_dropped_with_near() -> None:
    """A sampled rest need not begin with the same blanks: its own are dropped, the client's stay."""
    cut = cut_of("def f():\n    ")
    rest = continuation(request(temperature=1), cut, "near")
    events = [event({"content": "\n"}, created=2), event({"content": "  x"}, created=2)]
    assert joined(cut, rest, events) == event({"content": "x"})
