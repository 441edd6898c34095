"""A conversation as tokens. How it is refused: tests/e2e/wire_refusals."""

from __future__ import annotations

import pytest

from aiaas.simulator.conversation import ChatPrompt, chat_prompt
from aiaas.simulator.errors import WireError
from aiaas.simulator.forms import Opening

HELLO = [{"role": "user", "content": "Say hello."}]
OPENED = [*HELLO, {"role": "assistant", "content": "Hello there"}]
CONTINUED = Opening(add_generation_prompt=False, continue_final_message=True)
ASKED = ["<|start|>", "user", "<|text|>", "Say", " hello.", "<|end|>"]
OPENING = ["<|start|>", "assistant", "<|text|>"]


def test_a_prompt_ends_with_the_opening_of_an_answer() -> None:
    """Four tokens for the message, and three for the opening."""
    prompt = chat_prompt("m", HELLO, None, Opening())
    assert prompt.pieces() == [*ASKED, *OPENING]
    assert (prompt.answered, prompt.beginning) == (HELLO, "")


def test_an_open_message_is_the_opening_with_its_text() -> None:
    """The rest of the answer belongs to the prompt without that message."""
    prompt = chat_prompt("m", OPENED, None, CONTINUED)
    assert prompt.pieces() == [*ASKED, *OPENING, "Hello", " there"]
    assert (prompt.answered, prompt.beginning) == (HELLO, "Hello there")


def test_without_an_opening_the_last_message_is_closed() -> None:
    """`add_generation_prompt: false` alone."""
    prompt = chat_prompt("m", HELLO, None, Opening(add_generation_prompt=False))
    assert prompt.pieces() == ASKED


def test_tools_cost_the_tokens_of_their_json() -> None:
    """In front of the first message."""
    assert ChatPrompt("m", HELLO, [{"name": "f"}]).pieces()[:2] == ['[{"name":', ' "f"}]']


def test_an_open_message_of_parts_is_its_lines() -> None:
    """As every message of parts."""
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert chat_prompt("m", [{"role": "assistant", "content": parts}], None, CONTINUED).beginning == "one\ntwo"


def test_media_in_an_open_message_are_refused() -> None:
    """The simulated model reads text alone."""
    with pytest.raises(WireError, match="m is not a multimodal model"):
        chat_prompt("m", [{"role": "user", "content": [{"type": "image_url"}]}], None, CONTINUED).pieces()
