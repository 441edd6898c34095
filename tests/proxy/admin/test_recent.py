"""aiaas.proxy.admin.recent: what is kept of requests that have ended."""

from __future__ import annotations

import tracemalloc

from aiaas.errors import ClientError
from aiaas.proxy.admin.recent import MOST_ENDED, MOST_REFUSED, LastRequests
from aiaas.proxy.telemetry.record import Record
from aiaas.proxy.telemetry.trace import Trace

LIMITS = b"".join(
    b"x-ratelimit-%b-%b: 10000\r\n" % (what, kind)
    for kind in (b"requests", b"tokens")
    for what in (b"limit", b"remaining", b"reset")
)


def ended(number: int) -> Record:
    """A request as it is at its end, with strings and numbers of its own."""
    return Record(
        f"{number:022}", "/v1/chat/completions/"[:-1], float(number), f"10.0.{number}", b"x" * 60, "alice", "k",
        request_bytes=1000 + number, body_seconds=number / 7, limit_lines=LIMITS + b"%d" % number, overhead=number / 3,
        ttft=number / 9, event_text=number / 11, sent=300 + number, input_tokens=300 + number,
        output_tokens=300 + number, queue_seconds=number / 13,
    )  # fmt: skip


def test_kept_requests_are_bounded_in_number_and_memory() -> None:
    """The oldest go first, and 10,000 requests take about 10 MiB."""
    recent = LastRequests()
    tracemalloc.start()
    for number in range(MOST_ENDED + 5):
        recent.end(ended(number), 0.5 + number)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(recent.ended) == MOST_ENDED
    assert recent.ended[0].request_id == f"{5:022}"
    assert used < 10.1 * 2**20, used


def test_kept_request_drops_its_grant_and_its_trace() -> None:
    """They lead to an endpoint, and to the requests that wait for it."""
    recent = LastRequests()
    record = ended(1)
    record.on_first_text = lambda: None
    record.trace = Trace("t", None, "", sampled=True, first_id="s", lines="")
    recent.end(record, 2.0)
    assert (record.on_first_text, record.trace, record.own_lines, record.duration) == (None, None, b"", 2.0)


def test_refusals_are_counted_by_code_and_the_last_ones_kept() -> None:
    """With the text that the client got, and its limits' headers."""
    recent = LastRequests()
    for number in range(MOST_REFUSED + 1):
        error = ClientError(400, "invalid_request", f"No {number}.", headers=(("x-ratelimit-limit-requests", "3"),))
        recent.refuse(Record(str(number), "/", 0.0, "a"), error)
    assert recent.by_code == {"invalid_request": MOST_REFUSED + 1}
    assert (len(recent.refused), recent.refused[0].message) == (MOST_REFUSED, "No 1.")
    assert recent.refused[0].record.limit_lines == b"x-ratelimit-limit-requests: 3\r\n"
