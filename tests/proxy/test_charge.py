"""aiaas.proxy.charge: what a request costs, by how it ended."""

from typing import Any

import pytest

from aiaas.proxy.charge import NEVER_RAN, Charge, charge_of
from aiaas.proxy.record import Record

UP = "http://vllm:8000"


@pytest.mark.parametrize(
    ("facts", "charge"),
    [
        ({"status": 200, "input_tokens": 3, "output_tokens": 4, "phase": "streaming"}, Charge(3, 4, False, True)),
        ({"status": 200, "input_tokens": 3, "output_tokens": None, "phase": "streaming"}, Charge(3, 0, False, True)),
        ({"status": 200, "phase": "streaming", "stream": True, "events": 7}, Charge(10, 7, True, True)),
        ({"status": 200, "phase": "streaming", "events": 7}, Charge(10, 0, True, True)),
        ({"ended_by": "client", "phase": "waiting"}, Charge(10, 0, True, True)),
        ({"ended_by": "client", "phase": "waiting", "stream": True}, Charge(10, 0, True, True)),
        ({"ended_by": "client", "phase": "queued", "upstream": None}, Charge(0, 0, False, False)),
        ({"status": 400, "ended_by": "upstream", "phase": "waiting"}, Charge(0, 0, False, True)),
        ({"status": 500, "ended_by": "upstream", "phase": "streaming"}, Charge(0, 0, False, True)),
        ({"error_code": "upstream_timeout", "phase": "waiting"}, Charge(0, 0, False, True)),
        ({"error_code": "upstream_error", "phase": "waiting"}, Charge(0, 0, False, True)),
        ({"error_code": "no_healthy_backend", "phase": "waiting"}, Charge(0, 0, False, False)),
        ({"error_code": "overloaded", "upstream": None}, Charge(0, 0, False, False)),
        ({"error_code": "draining", "phase": "waiting"}, Charge(0, 0, False, True)),
        ({"phase": "queued", "upstream": None}, Charge(0, 0, False, False)),
    ],
    ids=[
        "usage", "usage without output", "cut stream", "whole or cut answer without usage", "left while waiting",
        "left before the first event", "left in the queue", "vLLM's 400", "huge vLLM error", "timeout",
        "broken backend", "nobody there", "queue full", "drain deadline while waiting",
        "refused in the queue, while draining",
    ],
)  # fmt: skip
def test_what_a_request_costs(facts: dict[str, Any], charge: Charge) -> None:
    """Ten tokens of input were estimated, and a backend was chosen, unless the case says otherwise."""
    record = Record(request_id="x", path="/p", started=0.0, client_address="c", **({"upstream": UP} | facts))
    assert charge_of(record, 10) == charge


def test_only_what_no_backend_saw_is_free() -> None:
    """A new code here needs a new sentence in docs/errors.md."""
    assert {"no_healthy_backend", "overloaded"} == NEVER_RAN
