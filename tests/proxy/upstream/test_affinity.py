"""aiaas.proxy.upstream.affinity: the prefix of a prompt, and the endpoint that it belongs to."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from aiaas.proxy.upstream.affinity import PREFIX_BYTES, load_bound, number_of, prompt_prefix, weights

LONG = "You are a helpful assistant. " * 100
SYSTEM = {"role": "system", "content": 'Say "hi" to {names} and [more].'}
HELLO = {"role": "user", "content": "Hello!"}
URLS = [f"http://vllm-{number}:8000" for number in range(5)]


def body(**fields: Any) -> bytes:
    """A request's body as the SDKs write it."""
    return json.dumps(fields, separators=(",", ":")).encode()


def chat(*messages: dict[str, Any], **fields: Any) -> bytes:
    """A chat's body."""
    return body(messages=list(messages), **fields)


ALIKE = {
    "turns of a conversation": (
        chat(SYSTEM, HELLO, model="m"),
        chat(SYSTEM, HELLO, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "And?"}, model="m"),
    ),
    "no system prompt": (chat(HELLO), chat(HELLO, {"role": "assistant", "content": "Hi"})),
    "content before role": (
        chat({"content": "Hello!", "role": "user"}),
        chat({"content": "Hello!", "role": "user"}, {"content": "Hi", "role": "assistant"}),
    ),
    "a system prompt longer than what counts": (
        chat({"role": "system", "content": LONG}, HELLO),
        chat({"role": "system", "content": LONG}, {"role": "user", "content": "Something else"}),
    ),
    "parts of content": (
        chat({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}),
        chat({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, SYSTEM),
    ),
    "other fields around it": (
        body(model="alias", temperature=0.5, messages=[HELLO], seed=1),
        body(messages=[HELLO], model="m", metadata={"x": "y"}),
    ),
    "white space before it": (b'{"messages" : [{"role":"user"}]}', b'{"messages":[{"role":"user"}]}'),
    "other paths": (body(model="m", input=[HELLO]), body(input=[HELLO, SYSTEM])),
    "long prompts": (body(model="m", prompt=LONG + "a"), body(prompt=LONG + "b")),
    "same prompt": (body(prompt="once", n=1), body(prompt="once", max_tokens=5)),
}


@pytest.mark.parametrize(("one", "other"), ALIKE.values(), ids=ALIKE)
def test_same_prefix(one: bytes, other: bytes) -> None:
    """Prompts that could share vLLM's cache have the same prefix."""
    assert prompt_prefix(one) == prompt_prefix(other)
    assert one != other


DIFFERENT = {
    "another question under a short system prompt": (
        chat(SYSTEM, HELLO),
        chat(SYSTEM, {"role": "user", "content": "Bye!"}),
    ),
    "another system prompt": (chat({"role": "system", "content": "x"}, HELLO), chat(SYSTEM, HELLO)),
    "a user's message that quotes a role": (
        chat({"role": "system", "content": '"role":"user"'}, HELLO),
        chat({"role": "system", "content": '"role":"user"'}, SYSTEM),
    ),
    "short prompts": (body(prompt="a"), body(prompt="b")),
    "no prompt at all": (body(text="a"), body(text="b")),
    "an answer that is continued": (
        chat({"role": "assistant", "content": "a"}),
        chat({"role": "assistant", "content": "a"}, HELLO),
    ),
}


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT)
def test_different_prefix(one: bytes, other: bytes) -> None:
    """Prompts that begin differently, or only share a few words, may go to different endpoints."""
    assert prompt_prefix(one) != prompt_prefix(other)


def test_prefix_is_short() -> None:
    """A body of megabytes has a prefix of a kilobyte, wherever in a text it is cut."""
    for text in ("a" * 5000, "\\" * 5000, '"' * 5000, "]}" * 2500, "é\n" * 2500):
        prefix = prompt_prefix(chat({"role": "user", "content": text}, HELLO))
        assert len(prefix) == PREFIX_BYTES
    assert len(prompt_prefix(body(text="a" * 5000))) == PREFIX_BYTES


def test_prompt_far_back() -> None:
    """A prompt behind a few other fields is found; behind many tools it is not, and the tools count instead."""
    few, many = "tool " * 1000, "tool " * 4000
    assert prompt_prefix(body(tools=few, prompt="x")) == b'"x"'
    assert prompt_prefix(body(tools=many, prompt="x")) == body(tools=many)[:PREFIX_BYTES]


def best(prefix: bytes, urls: list[str]) -> str:
    """The endpoint of each prefix while none is loaded."""
    order = weights(number_of(prefix), [number_of(url.encode()) for url in urls])
    return urls[order.index(max(order))]


PREFIXES = [b"prompt %d" % number for number in range(5000)]


def test_even_distribution() -> None:
    """Prefixes spread over the endpoints: 1,000 each, within five standard deviations (28)."""
    count = Counter(best(prefix, URLS) for prefix in PREFIXES)
    assert len(count) == 5
    assert all(abs(number - 1000) < 5 * 28.3 for number in count.values())


def test_second_choices_spread_evenly() -> None:
    """Every ordered pair of first and second endpoint is equally frequent: 250 each, within five deviations (15.4).

    The second endpoint gets what the first cannot take, so one pair must not be more frequent than others.
    """
    pairs = Counter(
        (first, best(prefix, [*URLS[:first], *URLS[first + 1 :]]))
        for prefix in PREFIXES
        for first in [URLS.index(best(prefix, URLS))]
    )
    assert len(pairs) == 20
    assert all(abs(number - 250) < 5 * 15.4 for number in pairs.values())


@pytest.mark.parametrize("count", [2, 3, 16, 100])
def test_distribution_passes_a_chi_square_test(count: int) -> None:
    """For small and large fleets, whose URLs differ by a digit: within four standard deviations of chance."""
    urls = [number_of(b"http://10.0.%d.%d:8000" % divmod(number, 10)) for number in range(count)]
    hits = [0] * count
    for number in range(20_000):
        order = weights(number_of(b"prompt %d" % number), urls)
        hits[order.index(max(order))] += 1
    mean = 20_000 / count
    chi_square = sum((hit - mean) ** 2 / mean for hit in hits)
    assert abs(chi_square - (count - 1)) < 4 * (2 * (count - 1)) ** 0.5


def test_minimal_movement() -> None:
    """When an endpoint goes only its own prefixes move, and they spread over the others."""
    moved: Counter[str] = Counter()
    for prefix in PREFIXES:
        before, after = best(prefix, URLS), best(prefix, URLS[1:])
        assert before == URLS[0] or after == before
        moved[after] += before == URLS[0]
    assert all(abs(number - 250) < 75 for number in moved.values())


def test_weight_is_the_same_in_every_process() -> None:
    """The weight depends on nothing but its arguments, so that gateways agree and a restart moves nothing."""
    assert weights(number_of(b"prompt"), [number_of(b"http://vllm:8000")]) == [1091250007983957069]


@pytest.mark.parametrize(
    ("loads", "bound"), [([0, 0], 1.0), ([4], 6.0), ([8, 0, 4, 0], 4.75)], ids=["idle", "one endpoint", "uneven"]
)
def test_load_bound(loads: list[int], bound: float) -> None:
    """A quarter more than the mean, plus one."""
    assert load_bound(loads) == bound
