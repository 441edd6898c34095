"""aiaas.openai.chat_cut: the part of a chat that its client has."""

from __future__ import annotations

import pytest

from aiaas.openai.chat_cut import chat_cut
from tests.openai.chat_bytes import event


@pytest.mark.parametrize(
    "relayed",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"data: {}\n\n", id="no choices"),
        pytest.param(event({"content": "a", "audio": {"data": "x"}}), id="sound"),
        pytest.param(event({"content": "a"}) + event({"content": "b"}).replace(b'"index":0', b'"index":1'), id="two"),
    ],
)
def test_unclear_bytes_are_not_a_cut(relayed: bytes) -> None:
    """Nothing goes on from what was not understood."""
    assert chat_cut(relayed) is None


def test_finish_and_calls_are_seen() -> None:
    """An answer that has ended needs no rest, and one with a call has none."""
    ended = chat_cut(event({"content": "a"}) + b": ping\n\n" + event({"content": ""}, "stop"))
    called = chat_cut(event({"tool_calls": [{"index": 0, "function": {"name": "f"}}]}))
    assert ended is not None
    assert called is not None
    assert (ended.finished, ended.calls, called.finished, called.calls) == (True, False, False, True)
