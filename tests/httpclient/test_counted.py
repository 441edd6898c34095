"""How often the parts came that a stream has once."""

from __future__ import annotations

import pytest

from aiaas.httpclient.counted import CountedAnswer
from tests.httpclient.test_answer import DONE, ERROR, LAST, ROLE, STREAM, TOKEN, USAGE


def counted(*parts: bytes) -> CountedAnswer:
    answer = CountedAnswer(wants_stream=True)
    answer.head(200, STREAM)
    for part in parts:
        answer.body(part, 1.0)
    answer.end()
    return answer


def counts(answer: CountedAnswer) -> tuple[int, ...]:
    return answer.ids, answer.roles, answer.finishes, answer.usages, answer.dones


WHOLE = (ROLE, TOKEN, LAST, USAGE, DONE)


def test_a_whole_stream_has_each_part_once() -> None:
    """And is an answer as without the counts."""
    answer = counted(*WHOLE)
    assert counts(answer) == (1, 1, 1, 1, 1)
    assert (answer.finish, answer.error, answer.output_tokens, len(answer.moments)) == ("stop", "", 5, 1)


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        ((*WHOLE[:2], TOKEN.replace(b'"c"', b'"d"'), *WHOLE[2:]), (3, 1, 1, 1, 1)),
        ((ROLE, *WHOLE), (1, 2, 1, 1, 1)),
        ((*WHOLE[:3], LAST, *WHOLE[3:]), (1, 1, 2, 1, 1)),
        ((*WHOLE[:4], USAGE, DONE), (1, 1, 1, 2, 1)),
        ((*WHOLE, DONE), (1, 1, 1, 1, 2)),
        ((ROLE, TOKEN, ERROR, DONE), (1, 1, 0, 0, 1)),
        ((ROLE, b": ping\n\n", b"data: no JSON\n\n"), (1, 1, 0, 0, 0)),
        ((ROLE.replace(b"]}", b'],"usage":{"prompt_tokens":1}}'), *WHOLE[1:]), (1, 1, 1, 1, 1)),
        ((*WHOLE[:3], USAGE.replace(b'{"prompt_tokens":18,"total_tokens":23,"completion_tokens":5}', b"null")),
         (1, 1, 1, 0, 0)),
    ],
    ids=["two ids", "two roles", "two ends", "two usages", "two dones", "error", "garbage", "running usage", "null"],
)  # fmt: skip
def test_each_part_too_many_is_counted(parts: tuple[bytes, ...], found: tuple[int, ...]) -> None:
    """A second id counts when it comes and when the first one is back."""
    assert counts(counted(*parts)) == found


def test_a_completion_has_no_role() -> None:
    """Its choices have text and no delta."""
    answer = counted(b'data: {"id":"c","choices":[{"index":0,"text":"a","finish_reason":"length"}]}\n\n', DONE)
    assert (answer.chat, counts(answer)) == (False, (1, 0, 1, 0, 1))
