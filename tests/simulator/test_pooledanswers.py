"""The numbers that a simulated pooling model answers with."""

from __future__ import annotations

import pytest

from aiaas.simulator.pooledanswers import EMBEDDING_SIZE, embedding_of, score_of


def test_an_embedding_is_a_unit_vector_of_its_text() -> None:
    """Equal for equal texts and seeds, another for another text or seed."""
    one = embedding_of("a", 1)
    assert len(one) == EMBEDDING_SIZE
    assert sum(value * value for value in one) == pytest.approx(1.0)
    assert one == embedding_of("a", 1)
    assert one not in (embedding_of("b", 1), embedding_of("a", 2))


def test_a_score_lies_between_0_and_1() -> None:
    """Of two texts, the same each time."""
    scores = [score_of("query", f"document {index}", 3) for index in range(50)]
    assert all(0 <= score <= 1 for score in scores)
    assert len(set(scores)) > 40
    assert scores[0] == score_of("query", "document 0", 3)
