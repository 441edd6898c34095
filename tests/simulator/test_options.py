"""The options of a simulator."""

from __future__ import annotations

import pytest

from aiaas.errors import UsageError
from aiaas.simulator.options import SimulatorOptions


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
        ("scheduling_policy", "sjf"),
        ("runner", "both"),
        ("keep_alive", 0),
        ("shutdown_timeout", -1),
    ],
)
def test_a_value_no_simulator_can_run_with_is_refused(field: str, value: object) -> None:
    """The error names the option."""
    name = "model" if field == "models" else field.replace("_", "-")
    with pytest.raises(UsageError, match=name):
        SimulatorOptions(**{field: value})  # type: ignore[arg-type]
