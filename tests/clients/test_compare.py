"""The comparison finds differences, explains those that are meant, and finds no other with any client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.clients.compare import (
    NAMES,
    Difference,
    Server,
    compare,
    differing,
    gateway_before,
    run_program,
    running_engine,
)
from tests.clients.explained import reason_for


@pytest.mark.parametrize(
    ("one", "other", "places"),
    [
        pytest.param({"a": 1, "id": "x"}, {"a": 1, "id": "y"}, [], id="only an id"),
        pytest.param({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, ["a[1].b"], id="a value deep inside"),
        pytest.param([1, 2], [1, 2, 3], [""], id="a longer list"),
        pytest.param({"a": 1}, {"a": 1, "b": None}, [], id="null and missing are one"),
        pytest.param({"a": 1}, {"a": "1"}, ["a"], id="a text for a number"),
        pytest.param(None, {"raised": "NotFoundError"}, [""], id="an error for an answer"),
    ],
)
def test_values_are_compared_in_depth(one: object, other: object, places: list[str]) -> None:
    """Each difference has its place; ids and times do not count."""
    assert [place for place, _, _ in differing(one, other)] == places


def test_case_of_one_run_only_is_a_difference() -> None:
    """A program that ended early does not pass."""
    assert compare({"chat": 1}, {}) == [Difference("chat", "", 1, None, None)]


def test_only_meant_differences_are_explained() -> None:
    """Another text for an unknown model is; another status is not."""
    assert reason_for("unknown model", "body.message") is not None
    assert reason_for("unknown model", "status") is None
    assert reason_for("chat", "choices[0].message.content") is None


def test_difference_shows_both_values_and_the_reason() -> None:
    """Long values are cut."""
    shown = str(Difference("chat", "text", "x" * 900, 1, "meant"))
    assert shown.startswith('chat: text: direct "xxx')
    assert shown.endswith("..., through 1 (meant)")
    assert len(shown) < 300


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """A simulator, and a gateway in front of it."""
    folder: Path = tmp_path_factory.mktemp("pair")
    with ExitStack() as stack:
        engine = running_engine(stack, folder / "engine.log", real=False)
        yield engine, gateway_before(stack, folder, engine)


@pytest.mark.clients
@pytest.mark.timeout(600)
@pytest.mark.parametrize("program", NAMES)
def test_client_sees_no_unexplained_difference(program: str, pair: tuple[Server, Server]) -> None:
    """The SDKs, the AI SDK and LangChain's standard tests have the same outcomes directly and through the gateway."""
    direct, through = pair
    outcomes = run_program(program, direct)
    assert len(outcomes) >= 7
    assert [str(each) for each in compare(outcomes, run_program(program, through)) if each.reason is None] == []
