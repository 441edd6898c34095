"""A sample's own arithmetic, and the file format: reading returns the written samples."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.errors import CheckFailed
from aiaas.loadtest.sample import Generator, Recorded, Run, RunEnd, Sample, Window, from_lines, to_line
from tests.loadtest.samples import failed, sample

RUN = Run(1, "0.1.0", "http://h", "m", "2026-01-01T00:00:00Z", "closed", keys=("a",), slo="ttft=1s")

moments = st.floats(0, 1e6, allow_nan=False)
samples = st.builds(
    Sample,
    number=st.integers(0, 10**9),
    due=moments,
    began=moments,
    sent=st.none() | moments,
    first=st.none() | moments,
    end=moments,
    status=st.none() | st.integers(100, 599),
    error=st.sampled_from(["", "http_429", "cut"]),
    detail=st.text(),
    gaps=st.lists(st.integers(0, 10**9)).map(tuple),
    warmup=st.booleans(),
    aborted=st.booleans(),
)


def test_latencies_count_from_when_it_was_due() -> None:
    """Not from when it was sent: waiting for a stalled server is included."""
    late = sample(10.0, began=12.0, sent=12.0, first=12.5, end=14.5)
    assert (late.ttft, late.e2e, late.tpot) == (2.5, 4.5, 0.2)


@pytest.mark.parametrize(
    "without",
    [pytest.param(sample(ttft=None), id="no stream"), pytest.param(sample(output_tokens=1), id="one token")],
)
def test_tpot_needs_two_tokens_in_a_stream(without: Sample) -> None:
    """A gap needs two ends."""
    assert without.tpot is None


def test_request_left_on_purpose_is_neither_answer_nor_error() -> None:
    """Neither counts for the server nor against it."""
    assert (sample().ok, failed().ok, sample(aborted=True).ok) == (True, False, False)


@given(found=st.lists(samples, max_size=5))
def test_a_file_gives_back_what_went_into_it(found: list[Sample]) -> None:
    """Run, samples in order, end."""
    end = RunEnd((Window(1.0, 2.0, 8),), True, "interrupted", 3, Generator(0.5, 0.001, 0.002, 1, 100))
    lines = [to_line(RUN), *map(to_line, found), to_line(end)]
    assert from_lines("f", lines) == Recorded(RUN, tuple(found), end)


@given(cut=st.integers(0, 200))
def test_a_crash_in_the_middle_of_a_line_loses_that_line_only(cut: int) -> None:
    """All whole lines are read; the end is missing then."""
    last = to_line(sample(2.0))
    read = from_lines("f", [to_line(RUN), to_line(sample(1.0)), last[: min(cut, len(last) - 2)]])
    assert (read.samples, read.end) == ((sample(1.0),), None)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        pytest.param([], "f: is empty", id="empty"),
        pytest.param([b"hello\n"], "f:1: is not a line of a load test", id="another file"),
        pytest.param([to_line(sample())], "f:1: does not begin with a run", id="no run"),
        pytest.param([to_line(RUN), to_line(RUN)], "f:2: a second run begins here", id="two runs"),
        pytest.param([to_line(RUN), b"{}\n", to_line(sample())], "f:2: is not a line", id="broken in the middle"),
        pytest.param([to_line(RUN).replace(b'"format":1', b'"format":9')], "f:1: format 9", id="newer format"),
    ],
)
def test_file_without_a_run_is_refused_with_its_line(lines: list[bytes], message: str) -> None:
    """File and line, in one message."""
    with pytest.raises(CheckFailed) as refused:
        from_lines("f", lines)
    assert message in str(refused.value)


def test_unknown_fields_are_ignored() -> None:
    """A file of a newer version with the same format is read."""
    assert from_lines("f", [to_line(RUN).replace(b"{", b'{"more":1,', 1)]).run == RUN
