"""aiaas.proxy.telemetry.trace: a client's trace context is continued if it is valid, and otherwise ignored."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from aiaas.plan.model import EndpointPlan
from aiaas.proxy.telemetry.trace import LONGEST_STATE, Trace, context_of

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
VALID = f"00-{TRACE}-{SPAN}-01"


def headers_of(*pairs: tuple[str, str]) -> Callable[[str], Sequence[str]]:
    """All values of a request's header, by its name."""
    headers = CIMultiDict(pairs)
    return lambda name: headers.getall(name, ())


@pytest.mark.parametrize(
    ("sent", "sampled"),
    [
        pytest.param(VALID, True, id="sampled"),
        pytest.param(f"00-{TRACE}-{SPAN}-00", False, id="not sampled"),
        pytest.param(f"00-{TRACE}-{SPAN}-ff", True, id="flags of a later version"),
        pytest.param(f"00-{TRACE}-{SPAN}-fe", False, id="other flags only"),
        pytest.param(f"cc-{TRACE}-{SPAN}-01", True, id="a later version"),
        pytest.param(f"cc-{TRACE}-{SPAN}-01-what-the-future-brings", True, id="a later version with more fields"),
    ],
)
def test_a_valid_context_is_continued(sent: str, sampled: bool) -> None:
    """Its trace id, its span and its flag; what a later version appends is ignored."""
    assert context_of(headers_of(("TraceParent", sent))) == (TRACE, SPAN, sampled, "")


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param("", id="empty"),
        pytest.param(f"00-{'0' * 32}-{SPAN}-01", id="a trace id of zeros"),
        pytest.param(f"00-{TRACE}-{'0' * 16}-01", id="a span id of zeros"),
        pytest.param(f"00-{TRACE.upper()}-{SPAN}-01", id="upper case"),
        pytest.param(f"ff-{TRACE}-{SPAN}-01", id="version ff"),
        pytest.param(f"00-{TRACE}-{SPAN}-01-more", id="version 00 with more fields"),
        pytest.param(f"cc-{TRACE}-{SPAN}-01.more", id="more fields without a dash"),
        pytest.param(f"00-{TRACE}0-{SPAN}-01", id="too long a trace id"),
        pytest.param(f"00-{TRACE}-{SPAN}-1", id="too short flags"),
        pytest.param(f"00-{TRACE}-{SPAN}", id="no flags"),
        pytest.param("00-1-2-01", id="too short ids"),
        pytest.param(f"{VALID},{VALID}", id="two in one header"),
        pytest.param(f" {VALID}", id="a space"),
        pytest.param(f"00-{TRACE}-{SPAN}-\u0661\u0661", id="other digits"),
        pytest.param(f"00_{TRACE}-{SPAN}-01", id="an underscore first"),
        pytest.param(f"00-{TRACE}_{SPAN}-01", id="an underscore between the ids"),
        pytest.param(f"00-{TRACE}-{SPAN}_01", id="an underscore before the flags"),
        pytest.param(f"00-{TRACE[:-1]}--{SPAN[1:]}--01", id="dashes for digits"),
        pytest.param("\udcff\udcfe", id="bytes that are no text"),
    ],
)
def test_an_invalid_context_is_ignored(sent: str) -> None:
    """With its tracestate: a new trace begins."""
    assert context_of(headers_of(("traceparent", sent), ("tracestate", "a=b"))) is None


def test_a_repeated_traceparent_is_ignored() -> None:
    """Two contexts contradict each other, even two equal ones (W3C section 3.2.3)."""
    assert context_of(headers_of(("traceparent", VALID), ("traceparent", VALID))) is None


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        pytest.param(["a=1"], "a=1", id="one"),
        pytest.param(["a=1", "b=2"], "a=1,b=2", id="two headers"),
        pytest.param(["x" * LONGEST_STATE], "x" * LONGEST_STATE, id="as long as may be"),
        pytest.param(["x" * (LONGEST_STATE + 1)], "", id="too long"),
        pytest.param(["a=1\x7f"], "", id="a control character"),
        pytest.param(["a=\xe9"], "", id="not ASCII"),
    ],
)
def test_a_tracestate_is_kept_if_it_may_be_sent(sent: list[str], kept: str) -> None:
    """An invalid one is dropped, and the trace goes on."""
    pairs = [("traceparent", VALID), *(("tracestate", one) for one in sent)]
    context = context_of(headers_of(*pairs))
    assert context is not None
    assert context[3] == kept


@given(st.lists(st.text(max_size=70), max_size=3), st.lists(st.text(max_size=20), max_size=3))
def test_no_header_breaks_out_of_its_line(parents: list[str], states: list[str]) -> None:
    """Whatever a client sends, the lines for the engine hold printable ASCII."""
    pairs = [*(("traceparent", one) for one in parents), *(("tracestate", one) for one in states)]
    for sent in (pairs, [("traceparent", VALID), *pairs[len(parents) :]]):
        context = context_of(headers_of(*sent))
        assert context is None or all(" " <= character <= "~" for character in context[0] + context[1] + context[3])


def test_each_attempt_is_a_parent_of_its_own() -> None:
    """The engine of a retry gets the retry's span, and other header lines stay as they are."""
    lines = "accept: */*\r\ntraceparent: 00-{}-{}-01\r\n"
    trace = Trace(TRACE, None, "", True, SPAN, lines.format(TRACE, SPAN))
    trace.endpoint = EndpointPlan("http://v:8000", "v", 8000, False, "", {})
    for number in range(3):
        sent = trace.retry(trace.lines.encode()).decode()
        assert sent == lines.format(TRACE, trace.attempt_id(number))
        trace.attempt_failed("vllm", 503, "503", 1.0)
    assert trace.attempt_id(0) == SPAN


def test_the_spans_of_a_trace_have_ids_of_their_own() -> None:
    """Sixteen digits each, made of one random number."""
    for first in (SPAN, "0" * 15 + "1", "f" * 16):
        trace = Trace(TRACE, None, "", True, first, "")
        ids = [trace.request_id(), *(trace.attempt_id(n) for n in range(20)), *(trace.wait_id(n) for n in range(20))]
        assert len(set(ids)) == 41
        assert {len(one) for one in ids} == {16}
