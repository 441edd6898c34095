"""The slowest bodies do not hold up the event loop: on it the whole reading counts, in the examiner's thread one step.

Bounds are ratios to a loop of Python that takes 10 ms on a quiet machine, and both are measured as CPU time of the
thread, so that a busy machine changes nothing. Milliseconds: `python -m tests.bench.bodies`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aiaas.errors import ClientError
from aiaas.openai import paths
from aiaas.openai.peek import MAX_OPENINGS, peek
from aiaas.proxy.request.examiner import ON_LOOP
from tests.bench.bodies import longest_step, read, seconds
from tests.openai.shapes import SHAPES, chat

LARGE = 10_400_000


def yardstick() -> None:
    """About 10 ms."""
    values = {"a": 1}
    for _ in range(300_000):
        values["a"] = values["a"] + 1


def within(times: float, took: Callable[[], float]) -> bool:
    """Whether something takes at most `times` the yardstick; asked again where it does not."""
    return any(took() <= times * seconds(yardstick) for _ in range(3))


@pytest.mark.parametrize("path", [paths.CHAT, paths.MESSAGES])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_a_body_that_is_read_on_the_loop_takes_little_time(shape: str, path: str) -> None:
    """20 ms at the most: twice the yardstick."""
    body = SHAPES[shape](ON_LOOP - 200)
    assert ON_LOOP / 2 < len(body) <= ON_LOOP
    assert within(2, lambda: seconds(read, body, path))


@pytest.mark.parametrize("shape", list(SHAPES))
def test_no_step_of_reading_a_large_body_takes_long(shape: str) -> None:
    """While msgspec decodes or `bytes` searches, no other thread runs."""
    body = SHAPES[shape](LARGE)
    assert within(3, lambda: longest_step(body, paths.MESSAGES)[0])


@pytest.mark.parametrize("opening", [b"[", b"{"])
def test_a_large_body_of_brackets_is_refused(opening: bytes) -> None:
    """In texts too; no model accepts as many."""
    assert peek(chat(b'"%b"' % (opening * (MAX_OPENINGS - 10))), paths.CHAT).model == "m"
    with pytest.raises(ClientError) as caught:
        peek(chat(b'"%b"' % (opening * MAX_OPENINGS)), paths.CHAT)
    assert (caught.value.status, caught.value.code) == (400, "invalid_request")
