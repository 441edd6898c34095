"""The wire cases against the simulator, as `aiaas simulate` runs it: a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.e2e.wire_cases import BEHAVIOURS, CROWDED, Case, case_id, the_lowest_priority_goes_first
from tests.e2e.wire_client import Target
from tests.e2e.wire_continued import CONTINUATIONS
from tests.e2e.wire_refusals import REFUSALS, Refusal, check_refusal
from tests.e2e.wire_shapes import STREAMS, WHOLE, Stream, Whole, check_stream, check_whole

MODEL = "org/some-model"
FAST = ("--ttft", "5ms", "--itl", "2ms", "--max-model-len", "2048", "--served-model-name", MODEL)


def _simulate(*options: str) -> Iterator[int]:
    command = [sys.executable, "-m", "aiaas", "simulate", "--port", "0", *FAST, *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        match = re.search(r"http://127\.0\.0\.1:(\d+) ", line)
        assert match, line + process.stderr.read()
        yield int(match[1])
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    """A simulator with default options."""
    for port in _simulate():
        yield Target("127.0.0.1", port, MODEL, 2048)


@pytest.fixture(scope="module")
def crowded() -> Iterator[Target]:
    """A simulator with one place, two to wait, a key and request ids."""
    options = (
        "--max-num-seqs",
        "1",
        "--max-num-queued-reqs",
        "3",
        "--api-key",
        "sk-wire",
        "--enable-request-id-headers",
    )
    for port in _simulate(*options):
        yield Target("127.0.0.1", port, MODEL, 2048, 1, 3, "sk-wire")


@pytest.fixture(scope="module")
def prioritizing() -> Iterator[Target]:
    """A simulator with four places that orders waiting requests by their priority."""
    for port in _simulate("--max-num-seqs", "4", "--scheduling-policy", "priority"):
        yield Target("127.0.0.1", port, MODEL, 2048, 4)


@pytest.mark.parametrize("case", REFUSALS, ids=case_id)
def test_refusal(target: Target, case: Refusal) -> None:
    """It refuses in vLLM's words."""
    check_refusal(target, case)


@pytest.mark.parametrize("case", WHOLE, ids=case_id)
def test_whole_answer(target: Target, case: Whole) -> None:
    """An answer has vLLM's keys in vLLM's order."""
    check_whole(target, case)


@pytest.mark.parametrize("case", STREAMS, ids=case_id)
def test_stream(target: Target, case: Stream) -> None:
    """A stream has vLLM's events in vLLM's order."""
    check_stream(target, case)


@pytest.mark.parametrize("case", BEHAVIOURS, ids=case_id)
def test_behaviour(target: Target, case: Case) -> None:
    """It behaves as vLLM does with default options."""
    case(target)


@pytest.mark.parametrize("case", CONTINUATIONS, ids=case_id)
def test_continuation(target: Target, case: Case) -> None:
    """It continues an answer, and counts its tokens, as vLLM does."""
    case(target)


@pytest.mark.parametrize("case", CROWDED, ids=case_id)
def test_crowded(crowded: Target, case: Case) -> None:
    """It behaves as vLLM does with one place in the batch and a bounded queue."""
    case(crowded)


def test_lowest_priority_goes_first(prioritizing: Target) -> None:
    """As in a vLLM with priority scheduling."""
    the_lowest_priority_goes_first(prioritizing)
