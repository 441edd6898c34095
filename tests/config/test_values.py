"""aiaas.config.values: the values of a config's fields. Each kind has cases of its own in tests/config/cases, too."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from aiaas.config.values import Count, Duration, Flag, PathPrefix, PositiveDuration, amount_of


def read(kind: Any, value: object) -> object:
    """Read a value as a field of that kind would."""
    return TypeAdapter(kind).validate_python(value)


@pytest.mark.parametrize("kind", [Duration, PositiveDuration])
def test_a_duration_of_more_than_a_week_is_refused(kind: Any) -> None:
    """A typo is more likely than a wish; a week is accepted, in each unit."""
    assert read(kind, "7d") == read(kind, "168h") == read(kind, "1w")
    for text in ("8d", "169h", "2w"):
        with pytest.raises(ValidationError, match="must be at most 1w"):
            read(kind, text)


def test_only_a_positive_duration_refuses_zero() -> None:
    """0 switches some features off."""
    assert read(Duration, 0) == 0.0
    with pytest.raises(ValidationError, match="must be longer than 0"):
        read(PositiveDuration, 0)


@pytest.mark.parametrize(("text", "flag"), [(True, True), ("yes", True), ("OFF", False), ("0", False)])
def test_a_flag_may_be_text(text: object, flag: bool) -> None:
    """As an environment variable holds it."""
    assert read(Flag, text) is flag


@pytest.mark.parametrize(("text", "count"), [(5, 5), ("5", 5), ("-5", -5), ("+5", 5)])
def test_a_whole_number_may_be_text(text: object, count: int) -> None:
    """As an environment variable holds it."""
    assert read(Count, text) == count


@pytest.mark.parametrize("value", [5.0, "5.0", "five", True, 2**63, None])
def test_value_other_than_a_whole_number_is_refused(value: object) -> None:
    """No fraction, no word, nothing beyond 2^63."""
    with pytest.raises(ValidationError):
        read(Count, value)


@pytest.mark.parametrize(
    ("quantity", "amount"), [("500m", 0.5), ("2", 2.0), ("1.5", 1.5), ("512Mi", 2.0**29), ("1k", 1e3)]
)
def test_a_quantity_is_an_amount(quantity: str, amount: float) -> None:
    """As Kubernetes reads it."""
    assert amount_of(quantity) == amount
    with pytest.raises(ValueError, match="not a Kubernetes quantity"):
        amount_of(f"{quantity}x")


@pytest.mark.parametrize("text", ["/llm", "/team-a/llm_2", "/~x.y", "/v1beta", "/healthy"])
def test_a_path_prefix_stays_as_written(text: str) -> None:
    """Segments of the characters that no client encodes."""
    assert read(PathPrefix, text) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        *(
            (text, "must be a path such as /llm")
            for text in ("", "/", "llm", "/llm/", "/a//b", "/a/../b", "/.", "/a b")
        ),
        *(
            (text, "must be a path such as /llm")
            for text in ("/a%2Fb", "/\u00fc", "/llm?x", "/llm#x", "/llm\n", "//host")
        ),
        *((text, "must not contain /v1") for text in ("/v1", "/llm/v1", "/v1/models/x")),
        *(
            (text, "which is a path of the gateway itself")
            for text in ("/health", "/ready/x", "/score", "/v2", "/metrics")
        ),
    ],
)
def test_a_path_prefix_that_would_mislead_is_refused(text: str, words: str) -> None:
    """It cannot be compared byte by byte, or takes the place of a path that is served."""
    with pytest.raises(ValidationError, match=words):
        read(PathPrefix, text)
