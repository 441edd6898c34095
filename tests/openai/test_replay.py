"""Which requests two engines answer alike."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.openai.joint import DiffersError
from aiaas.openai.paths import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES, TRANSCRIPTIONS
from aiaas.openai.replay import Replayed, is_deterministic
from aiaas.openai.resumable import NotResumableError


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "stream": True} | fields).encode()


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        pytest.param(CHAT, {"temperature": 0}, id="greedy chat"),
        pytest.param(CHAT, {"temperature": 0.0, "store": True}, id="field that chats do not have"),
        pytest.param(CHAT, {"temperature": 1, "seed": 3, "n": 3}, id="seed"),
        pytest.param(COMPLETIONS, {"seed": 0, "echo": True, "best_of": 1}, id="seed of zero"),
        pytest.param(RESPONSES, {"seed": 3, "store": False, "background": None}, id="response"),
        pytest.param(RESPONSES, {"temperature": 0, "tools": [{"type": "function"}]}, id="client's tool"),
        pytest.param(MESSAGES, {"temperature": 0, "tools": [{"name": "f"}, {"type": "custom"}]}, id="message"),
    ],
)
def test_request_without_chance_is_deterministic(path: str, fields: dict[str, Any]) -> None:
    """Temperature 0, or a seed where the path has one."""
    assert is_deterministic(body(**fields), path)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        pytest.param(CHAT, {}, id="the model's own temperature"),
        pytest.param(CHAT, {"temperature": None, "seed": None}, id="nulls"),
        pytest.param(CHAT, {"temperature": 0.1}, id="sampled"),
        pytest.param(CHAT, {"temperature": False}, id="not a number"),
        pytest.param(CHAT, {"seed": -1}, id="vLLM's random seed"),
        pytest.param(CHAT, {"seed": "3"}, id="seed as text"),
        pytest.param(CHAT, {"temperature": 0, "use_beam_search": True}, id="beam search"),
        pytest.param(CHAT, {"temperature": 0, "web_search_options": {}}, id="search of the web"),
        pytest.param(COMPLETIONS, {"seed": 1, "best_of": 3}, id="best of several"),
        pytest.param(CHAT, {"temperature": 0, "kv_transfer_params": {"a": 1}}, id="blocks of another engine"),
        pytest.param(RESPONSES, {"temperature": 0, "previous_response_id": "resp_1"}, id="state of the engine"),
        pytest.param(RESPONSES, {"temperature": 0, "conversation": "c"}, id="conversation"),
        pytest.param(RESPONSES, {"temperature": 0, "store": True}, id="stored"),
        pytest.param(RESPONSES, {"temperature": 0, "background": True}, id="background"),
        pytest.param(RESPONSES, {"temperature": 0, "tools": [{"type": "mcp"}]}, id="server's tool"),
        pytest.param(RESPONSES, {"temperature": 0, "tools": {"type": "function"}}, id="no list of tools"),
        pytest.param(MESSAGES, {"seed": 3}, id="path without a seed"),
        pytest.param(MESSAGES, {"temperature": 0, "tools": [{"type": "web_search_20250305"}]}, id="search"),
        pytest.param(MESSAGES, {"temperature": 0, "mcp_servers": [{"url": "http://a"}]}, id="servers of tools"),
        pytest.param(EMBEDDINGS, {"temperature": 0}, id="path without a stream"),
        pytest.param(TRANSCRIPTIONS, {"temperature": 0}, id="form"),
    ],
)
def test_request_with_chance_or_state_is_not_deterministic(path: str, fields: dict[str, Any]) -> None:
    """Another engine could answer something else."""
    assert not is_deterministic(body(**fields), path)


def test_repeated_field_is_not_deterministic() -> None:
    """Which of both holds depends on the reader."""
    assert not is_deterministic(b'{"temperature": 0, "temperature": 1}', CHAT)


@given(st.binary() | st.sampled_from([b"[" * 100_000, b'{"seed":' + b"9" * 5000 + b"}", b'{"tools":' + b"[" * 9999]))
def test_unreadable_request_is_not_deterministic(written: bytes) -> None:
    """Whatever the client sends."""
    assert not is_deterministic(written, CHAT)


_EVENTS = (
    b'data: {"id":"a","object":"c","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"ab"}}]}\n\n',
    b'data: {"id":"a","object":"c","created":1,"model":"m","choices":[{"index":0,"text":"ab","token_ids":[1]}]}\n\n',
    b'event: e\ndata: {"type":"content_block_delta","delta":{"type":"text_delta","text":"ab"},"index":0}\n\n',
    b'event: e\ndata: {"type":"response.created","response":{"id":"a","created_at":1},"sequence_number":0}\n\n',
    b'data: {"type":"response.output_text.delta","delta":"ab","item_id":"a","output_index":0,"logprobs":[]}\n\n',
)
_BROKEN = st.builds(
    lambda event, at, size, new: event[:at] + new + event[at + size :],
    st.sampled_from(_EVENTS),
    st.integers(6, 100),
    st.integers(0, 9),
    st.sampled_from(
        [b"", b'"', b"{", b"\xff", b"null", b"[1]", b'"\\ud83d"', b"9" * 5000, b"[" * 5000, b',"choices":']
    ),
)


@given(st.sampled_from([CHAT, COMPLETIONS, RESPONSES, MESSAGES]), st.lists(_BROKEN), st.lists(_BROKEN))
def test_broken_events_raise_no_other_error(path: str, relayed: list[bytes], second: list[bytes]) -> None:
    """Whatever stands in them, on either side."""
    try:
        replayed = Replayed(path, b"".join(relayed))
        for event in second:
            replayed.event(event)
    except (NotResumableError, DiffersError):
        return


def test_other_path_is_not_resumable() -> None:
    """A transcription's events are not compared."""
    with pytest.raises(NotResumableError):
        Replayed(TRANSCRIPTIONS, b"")
