"""Options and durations."""

from __future__ import annotations

import pytest

from aiaas.engines.simulator.options import SimulatorOptions, parse_duration
from aiaas.errors import UsageError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("50ms", 0.05), ("1.5s", 1.5), ("2m", 120), ("0", 0), ("0.25", 0.25), ("100us", 0.0001), (" 5s ", 5)],
)
def test_a_duration_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    """Bare numbers are seconds."""
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "fast", "-1s", "1h", "1 s", "1s2", "nan", "inf", "1e3"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    """With the forms that are allowed."""
    with pytest.raises(UsageError, match=r"write 50ms, 1.5s or 2m"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("models", ()),
        ("models", ("",)),
        ("ttft", -1),
        ("itl", float("nan")),
        ("jitter", 1.1),
        ("answer_tokens", 0),
        ("max_model_len", 1),
        ("max_num_seqs", 0),
        ("max_num_queued_reqs", 0),
        ("runner", "both"),
        ("keep_alive", 0),
        ("shutdown_timeout", -1),
    ],
)
def test_a_value_no_simulator_can_run_with_is_refused(field: str, value: object) -> None:
    """By the option's own name."""
    name = "model" if field == "models" else field.replace("_", "-")
    with pytest.raises(UsageError, match=name):
        SimulatorOptions(**{field: value})  # type: ignore[arg-type]
