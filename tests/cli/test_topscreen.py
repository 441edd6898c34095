"""The screen of `aiaas top`: several gateways in one view, which fits the terminal."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from rich.cells import cell_len

from aiaas.cli.topscreen import GatewayLook, rate, screen, short_span
from aiaas.proxy.admin.attention import attention
from aiaas.proxy.admin.model import RequestView, Status
from tests.fakes.admin import NOW, busy_requests, busy_status, endpoint, near, queued_request, request

Json = dict[str, Any]


def look(status: Json | None = None, live: list[Json] | None = None, url: str = "http://a:9091") -> GatewayLook:
    """A look at a gateway that answers with this JSON."""
    found = msgspec.convert(busy_status() if status is None else status, Status)
    found.attention = attention(found)
    return GatewayLook(url, found, tuple(msgspec.convert(busy_requests() if live is None else live, list[RequestView])))


def later(seconds: float, **totals: int) -> Json:
    """The gateway `seconds` later, with these counters."""
    status = busy_status()
    status["now"] += seconds
    status["totals"].update(totals)
    return status


def rows(text: str, header: str) -> list[str]:
    """The rows of the table whose header begins with this."""
    part = text[text.index(f"\n{header}") + 1 :].partition("\n\n")[0]
    return part.split("\n")[1:]


@pytest.mark.parametrize("height", [5, 24, 60])
@pytest.mark.parametrize("width", [20, 80, 200])
def test_screen_fits_each_terminal(width: int, height: int) -> None:
    """No line is wider and there are no more lines; a common terminal shows all three tables."""
    now = [look(), look(url="http://b:9091"), GatewayLook("http://c:9091", error="connection refused")]
    text = screen(now, now, width, height)
    lines = text.split("\n")
    assert len(lines) <= height
    assert max(map(cell_len, lines)) <= width
    if height >= 24 and width >= 80:
        words = {line.split()[0] for line in lines if line}
        assert {"BACKEND", "KEY", "REQUEST"} <= words


def test_unreachable_gateway_is_named_with_its_error() -> None:
    """The others are summed all the same."""
    now = [look(), GatewayLook("http://b:9091", error="connection refused")]
    text = screen(now, now, 100, 40)
    assert "1 of 2 gateways" in text
    assert "✗ http://b:9091: connection refused" in text
    assert "in flight 500" in text


def test_no_gateway_reached_shows_errors_only() -> None:
    """There is nothing to sum."""
    now = [GatewayLook("http://a:9091", error="connection refused")]
    assert screen(now, now, 100, 40).split("\n")[1:] == ["✗ http://a:9091: connection refused"]


def test_rates_are_summed_differences() -> None:
    """Two gateways, each with its own clock; tokens of requests under way count."""
    before = [look(), look(url="http://b:9091")]
    totals = busy_status()["totals"]
    first = later(2.0, requests=totals["requests"] + 10, output_tokens=totals["output_tokens"] + 100)
    first["requests"]["output_tokens"] += 1_900
    second = later(4.0, requests=totals["requests"] + 40)
    text = screen(before, [look(first), look(second, url="http://b:9091")], 120, 40)
    assert "requests/s 15" in text
    assert "tokens/s 1,000" in text


def test_ttft_is_of_the_time_between_the_looks() -> None:
    """The percentiles of the last seconds, not those since the start."""
    now = later(2.0)
    for bucket in now["models"][0]["ttft_buckets"]:
        bucket[1] += 10 if bucket[0] is None or bucket[0] >= 1.0 else 0
    assert "TTFT p50 750 ms p95 975 ms" in screen([look()], [look(now)], 120, 40)


def test_first_look_and_restarted_gateway_have_no_rates() -> None:
    """A counter that begins anew is not a negative rate."""
    assert "requests/s -" in screen([look()], [look()], 120, 40)
    restarted = later(2.0, requests=3)
    restarted["started"] = NOW
    assert "requests/s -" in screen([look()], [look(restarted)], 120, 40)


def test_endpoint_of_two_gateways_is_one_row() -> None:
    """Requests in flight are summed; an endpoint that is down for one of them says so, and comes first."""
    other = busy_status()
    other["backends"][1]["endpoints"][0].update(up=False, reason="no route to host", in_flight=3)
    now = [look(), look(other, url="http://b:9091")]
    found = [row for row in rows(screen(now, now, 140, 60), "BACKEND") if "http://10.0.1.21:8000" in row]
    [row] = found
    assert "✗ up for 1 of 2" in row
    assert "210/512" in row
    assert "no route to host" in row


def test_endpoint_that_drains_is_shown_in_one_word() -> None:
    """It is not up for anybody, and not down."""
    status = busy_status()
    status["backends"][1]["endpoints"][0].update(up=False, draining=True)
    now = [look(status)]
    [row] = [row for row in rows(screen(now, now, 140, 60), "BACKEND") if "http://10.0.1.21:8000" in row]
    assert "  draining  " in row


def test_endpoints_that_are_down_come_first() -> None:
    """However few lines there are."""
    status = busy_status()
    status["backends"] = [status["backends"][1], status["backends"][0]]
    assert "connection refused" in rows(screen([look(status)], [look(status)], 120, 20), "BACKEND")[0]


def test_key_row_sums_requests_and_names_the_nearest_limit() -> None:
    """Requests under way, those that wait, and of several limits the one that is nearest."""
    status = busy_status()
    status["keys_near"] = [near(0, "tokens", 80, 100, None), near(0, "requests", 60, 60, 12.0)]
    live = [request(0), request(8), queued_request(16, 1), request(1)]
    first, second = rows(screen([look(status, live)], [look(status, live)], 120, 60), "KEY")
    assert first.split()[:5] == ["alice", "51d0be13", "3", "1", "-"]
    assert "! 100%  requests: 60 of 60, room in 12 s" in first
    assert second.split() == ["bob", "51d0dd02", "1", "0", "-"]


def test_key_row_has_tokens_a_second_of_its_requests() -> None:
    """By request: those that began meanwhile count whole, those that ended are left out."""
    before = look(live=[request(0, events=100), request(8, events=100)])
    now = look(later(2.0), [request(0, events=140), request(16, events=20)])
    [row] = [row for row in rows(screen([before], [now], 120, 60), "KEY") if row.startswith("alice")]
    assert row.split()[4] == "30"


@pytest.mark.parametrize(
    ("sort", "order"),
    [("age", ["bob", "web", "alice"]), ("tokens", ["web", "alice", "bob"]), ("key", ["alice", "bob", "web"])],
)
def test_sort_orders_the_live_requests(sort: str, order: list[str]) -> None:
    """By age, by tokens, by key."""
    live = [
        request(0, user="alice", at=NOW - 1, events=20),
        request(1, user="bob", at=NOW - 9, events=10),
        request(2, user="web", at=NOW - 5, events=30),
    ]
    text = screen([look(live=live)], [look(live=live)], 120, 60, sort=sort)
    assert [row.split()[0] for row in rows(text, "REQUEST OF")] == order


def test_names_cannot_command_the_terminal() -> None:
    """Escapes, line ends and changes of direction become dots."""
    bad = "x\x1b]0;owned\x07\n\u202ey"
    status = busy_status()
    status["backends"][0]["endpoints"] = [endpoint(bad, up=False, reason=bad)]
    status["reloads"][1]["error"] = bad
    live = [request(0, user=bad, model=bad, waiting_for=bad)]
    now = [look(status, live, url=bad), GatewayLook(bad, error=bad)]
    text = screen(now, now, 200, 60)
    assert "x·]0;owned··" in text
    assert [letter for letter in text if not letter.isprintable() and letter != "\n"] == []


def test_wide_letters_take_two_cells() -> None:
    """Columns stay aligned, and the line fits."""
    live = [request(0, user="日本語"), request(2), request(4, user="日本語" * 20)]
    text = screen([look(live=live)], [look(live=live)], 80, 60)
    assert max(map(cell_len, text.split("\n"))) <= 80
    found = rows(text, "REQUEST OF")
    assert {cell_len(row[: row.index("llama")]) for row in found} == {46}


def test_fault_of_several_gateways_is_one_line() -> None:
    """With the gateways that have it."""
    status = busy_status()
    status["draining"] = True
    now = [look(status), look(url="http://b:9091")]
    text = screen(now, now, 200, 60)
    assert "! The gateway drains: it ends its open requests and stops. [http://a:9091]" in text
    assert "(chat) is down: connection refused [http://a:9091, http://b:9091]" in text
    assert text.count("! The key file was not reloaded") == 1


def down(number: int) -> Json:
    """A gateway with so many endpoints that are down, and no other fault."""
    status = later(0)
    status.update(reloads=[], certificate=None)
    status["backends"][0]["endpoints"] = [
        endpoint(f"http://e{n}:8000", up=False, reason="connection refused") for n in range(number)
    ]
    status["backends"][0]["endpoints"].append(endpoint("http://up:8000"))
    status["config"]["restart_needed"] = []
    status["backends"][1:] = []
    return status


def faults(text: str) -> list[str]:
    """The lines between the figures and the first table."""
    lines = text[: text.index("\n\n")].split("\n")
    return lines[next(at for at, line in enumerate(lines) if line.startswith("!")) :]


FIX = "start vLLM there, or correct the URL"


@pytest.mark.parametrize(
    ("width", "height", "lines"),
    [
        (120, 60, [f"! http://e0:8000 (chat) is down: connection refused; {FIX}"]),
        (70, 60, ["! http://e0:8000 (chat) is down: connection refused", f"  -> {FIX}"]),
    ],
    ids=["wide", "narrow"],
)
def test_fault_has_its_fix(width: int, height: int, lines: list[str]) -> None:
    """Behind it, or below it where the line would be cut."""
    status = down(1)
    assert faults(screen([look(status)], [look(status)], width, height)) == lines


def test_fixes_without_room_are_in_another_command() -> None:
    """Each fault has a line before any fix has one; the last line says where the other fixes are."""
    status = down(3)
    found = faults(screen([look(status)], [look(status)], 70, 25))
    assert found == [
        "! http://e0:8000 (chat) is down: connection refused",
        f"  -> {FIX}",
        "! http://e1:8000 (chat) is down: connection refused",
        "! http://e2:8000 (chat) is down: connection refused",
        "! what to do about the others: aiaas status",
    ]
    assert len(faults(screen([look(status)], [look(status)], 70, 30))) == 6


def test_many_faults_leave_room_for_the_tables() -> None:
    """A fifth of the lines; the rest is counted."""
    status = busy_status()
    status["backends"][0]["endpoints"] = [endpoint(f"http://e{n}:8000", up=False) for n in range(9)]
    lines = screen([look(status)], [look(status)], 120, 25).split("\n")
    assert len([line for line in lines if line.startswith("!")]) == 5
    assert "! 9 more faults: aiaas status" in lines


def test_idle_gateway_says_so_in_each_table() -> None:
    """No header without rows."""
    status = busy_status()
    status.update(backends=[], keys_near=[], models=[])
    text = screen([look(status, [])], [look(status, [])], 100, 40)
    assert text.endswith("BACKEND: no backend\n\nKEY: no key has a request\n\nREQUEST OF: none")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.0421, "42 ms"), (3.21, "3.2 s"), (75, "75 s"), (600, "10 min"), (7_300, "2 h"), (400_000, "5 d")],
)
def test_durations_are_short(seconds: float | None, text: str) -> None:
    """Two figures are enough to look at."""
    assert short_span(seconds) == text


def test_rates_have_a_decimal_below_ten() -> None:
    """0.4 requests a second is not 0."""
    assert [rate(None), rate(0.44), rate(1234.5)] == ["-", "0.4", "1,234"]
