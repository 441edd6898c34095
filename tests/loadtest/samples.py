"""Samples for tests, made of the fields that matter to each."""

from __future__ import annotations

from typing import Any

from aiaas.loadtest.sample import Sample


def sample(due: float = 0.0, *, ttft: float | None = 0.2, e2e: float = 1.0, **more: Any) -> Sample:
    """A whole answer of 11 tokens; `more` goes to Sample."""
    settings: dict[str, Any] = {
        "number": 0,
        "began": due,
        "sent": due,
        "first": None if ttft is None else due + ttft,
        "end": due + e2e,
        "status": 200,
        "prompt_tokens": 5,
        "output_tokens": 11,
        "events": 11,
    }
    return Sample(due=due, **(settings | more))


def failed(due: float = 0.0, error: str = "http_500", **more: Any) -> Sample:
    """A failure."""
    return sample(due, ttft=None, output_tokens=0, events=0, error=error, **more)
