"""The rest of a response or of a message that is written once more: with the delivered part, it is the whole answer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.openai.joint import DiffersError
from aiaas.openai.paths import MESSAGES, RESPONSES
from aiaas.openai.replay import Replayed
from aiaas.openai.resumable import NotResumableError
from tests.openai.replayed_streams import Answer, Engine, written_event
from tests.openai.typed_streams import ANSWERS, typed_heard, typed_stream

FIRST = Engine(1, "first")
SECOND = Engine(2, "second")
PING = b'event: ping\ndata: {"type": "ping"}\n\n'
PATHS = st.sampled_from([RESPONSES, MESSAGES])


@given(st.data(), PATHS, ANSWERS, st.booleans())
def test_typed_answer_cut_anywhere_and_replayed_is_the_whole_one(
    data: st.DataObject, path: str, answer: Answer, logprobs: bool
) -> None:
    """Each text once, each frame once, in order; one id for each thing; the numbers go on."""
    first = typed_stream(data, path, answer, FIRST._replace(logprobs=logprobs))
    second = typed_stream(data, path, answer, SECOND._replace(logprobs=logprobs))
    relayed = b": ping\n\n".join(first[: data.draw(st.integers(0, len(first)))])
    replayed = Replayed(path, relayed)
    rest = [replayed.event(each) for each in second]
    whole = b"".join([relayed, *rest])
    assert typed_heard(whole) == typed_heard(b"".join(second))
    assert whole.count(b'"created_at":2') in (0, 0 if relayed else 3)
    assert replayed.begun == any(rest)


@given(st.data(), PATHS, ANSWERS)
def test_typed_answer_that_differs_shows_nothing_wrong(data: st.DataObject, path: str, answer: Answer) -> None:
    """Another character in a text that the client has whole: an error before anything is shown."""
    changes = {
        "reasoning": answer.reasoning and "Z" + answer.reasoning,
        "content": answer.content and answer.content[:-1] + "Z",
        "calls": answer.calls and ((answer.calls[0][0] + "_", answer.calls[0][1]), *answer.calls[1:]),
    }
    names = [name for name in changes if changes[name]]
    if not names:
        return
    changed = answer._replace(**{name: changes[name] for name in [data.draw(st.sampled_from(names))]})
    first = typed_stream(data, path, answer, FIRST)
    replayed = Replayed(path, b"".join(first[: data.draw(st.integers(len(first) - 1, len(first)))]))
    shown = []
    with pytest.raises(DiffersError):
        shown += [replayed.event(each) for each in typed_stream(data, path, changed, SECOND)]
    assert not any(shown)


def delta(text: str, index: int = 0, kind: str = "text_delta", **fields: Any) -> bytes:
    """A message's delta."""
    field = {"text_delta": "text", "thinking_delta": "thinking"}.get(kind, "partial_json")
    made = {"type": "content_block_delta", "delta": {"type": kind, field: text} | fields, "index": index}
    return written_event(made, "content_block_delta")


STOP = written_event({"type": "content_block_stop", "index": 0}, "content_block_stop")


def test_pings_of_the_second_engine_pass() -> None:
    """They count for nothing on either side."""
    replayed = Replayed(MESSAGES, delta("a") + PING + delta("b"))
    assert [replayed.event(each) for each in (PING, b": hi\n\n", delta("ab"))] == [PING, b": hi\n\n", b""]
    assert not replayed.begun
    assert replayed.event(delta("c")) == delta("c")
    assert replayed.begun


@pytest.mark.parametrize(
    "second",
    [
        pytest.param([delta("a"), STOP], id="ends before what was delivered"),
        pytest.param([delta("abc")], id="goes on where a frame was"),
        pytest.param([delta("ab"), written_event({"type": "content_block_stop", "index": 1})], id="another index"),
        pytest.param([delta("ab"), written_event({"type": "content_block_pause", "index": 0})], id="another frame"),
        pytest.param([delta("ab"), delta("x", 1)], id="a text where a frame was"),
        pytest.param([delta("ab", kind="thinking_delta")], id="another kind of text"),
        pytest.param([delta("ab", new=1)], id="unknown field of a delta"),
        pytest.param([delta("ab", thinking="x")], id="two texts in a delta"),
        pytest.param([delta("ab"), written_event({"type": "error", "error": {}}, "error")], id="the engine's error"),
        pytest.param([b"data: [DONE]\n\n"], id="the end of another path"),
        pytest.param([b'data: {"type":1}\n\n'], id="no type"),
        pytest.param([b'data: {"type":"response.audio.delta","delta":"x"}\n\n'], id="sound"),
        pytest.param([b"data: " + b'{"a":' * 100_000 + b"\n\n"], id="nested deeply"),
        pytest.param([delta("ab"), STOP[:-3] + b',"a":' + b"9" * 5000 + b"}\n\n"], id="huge number"),
    ],
)
def test_typed_rest_that_does_not_fit_is_refused(second: list[bytes]) -> None:
    """Nothing of it reaches the client."""
    replayed = Replayed(MESSAGES, delta("ab") + STOP)
    shown = []
    with pytest.raises(DiffersError):
        shown += [replayed.event(each) for each in second]
    assert not any(shown)


@pytest.mark.parametrize(
    "relayed",
    [
        pytest.param(delta("a", new=1), id="unknown field of a delta"),
        pytest.param(written_event({"type": "error", "error": {}}, "error"), id="the engine's error"),
        pytest.param(written_event({"type": "response.audio.delta", "delta": "x"}), id="sound"),
        pytest.param(b'data: {"type":"a","sequence_number":"1"}\n\n', id="number as text"),
        pytest.param(b"data: []\n\n", id="no object"),
    ],
)
def test_typed_bytes_that_are_not_clear_are_not_resumable(relayed: bytes) -> None:
    """Nothing is compared with what was not understood."""
    with pytest.raises(NotResumableError):
        Replayed(MESSAGES, relayed)


def test_second_id_in_an_unknown_place_is_refused() -> None:
    """The client would know one thing by two names."""
    begins = written_event({"type": "message_start", "message": {"id": "m1"}})
    replayed = Replayed(MESSAGES, begins)
    assert replayed.event(begins.replace(b"m1", b"m2")) == b""
    with pytest.raises(DiffersError):
        replayed.event(written_event({"type": "new", "of": "m2"}))
