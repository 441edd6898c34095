"""The screen of `aiaas top` as text: figures of several gateways, summed. Pure; `top` asks and draws.

    before, now      two looks at the same gateways; rates are the differences between them
    width, height    in cells; nothing is wider, and there are at most `height` lines

Names come from clients: characters that a terminal might obey are replaced, and wide ones count as two cells.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len, set_cell_size

from aiaas.proxy.admin.figures import quantile
from aiaas.proxy.admin.model import BackendView, EndpointView, NearView, RequestView, Status

SORTS: Final = ("age", "tokens", "key")
NONE: Final = "-"
GAP: Final = "  "
FEWEST_ROWS: Final = 3  # of a table, however low the terminal
WIDEST: Final = 44  # cells of a column


@dataclass(frozen=True, slots=True)
class GatewayLook:
    """One gateway at one moment. `error` says why there is no `status`."""

    url: str
    status: Status | None = None
    live: tuple[RequestView, ...] = ()
    error: str = ""


_Looks = Sequence[GatewayLook]
_Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Table:
    headers: _Row  # a header that begins with > is of a column of figures
    rows: Sequence[_Row]
    none: str


def screen(before: _Looks, now: _Looks, width: int, height: int, *, sort: str = "age", note: str = "") -> str:
    """Return the screen, without a line end after its last line. `note` ends the first line."""
    reached = [look.status for look in now if look.status is not None]
    head = [_title(now, reached, sort, note), *_unreachable(now)]
    if not reached:
        return _fit(head, width, height)
    rates = _Rates(before, now)
    head += [*_wrapped(_figures(rates, reached), width), *_notes(now, width, max(2, height // 5))]
    tables = [_endpoints(reached), _keys(rates, now, reached, sort), _live(now, sort)]
    room = _shared([len(table.rows) for table in tables], height - len(head) - 2 * len(tables))
    lines = [*head]
    for table, rows in zip(tables, room, strict=True):
        lines += ["", *_drawn(table, rows, width)]
    return _fit(lines, width, height)


# -- the head ---------------------------------------------------------------------------------------------------------


def _title(now: _Looks, reached: Sequence[Status], sort: str, note: str) -> str:
    many = f"{len(reached)} of {len(now)} gateways" if len(now) > 1 else _plain(now[0].url)
    moment = time.strftime("%H:%M:%S UTC", time.gmtime(max(status.now for status in reached))) if reached else ""
    parts = ["aiaas top", many, moment, f"sort: {sort}", note]
    return GAP.join(part for part in parts if part)


def _unreachable(now: _Looks) -> list[str]:
    return [f"✗ {_plain(look.url)}: {_plain(look.error)}" for look in now if look.status is None]


def _figures(rates: _Rates, reached: Sequence[Status]) -> list[str]:
    return [
        f"requests/s {rate(rates.per_second('requests'))}",
        f"tokens/s {rate(rates.per_second('output_tokens'))}",
        f"TTFT p50 {short_span(rates.ttft(0.5))} p95 {short_span(rates.ttft(0.95))}",
        f"in flight {sum(status.requests.in_flight for status in reached):,}",
        f"queued {sum(status.requests.queued for status in reached):,}",
        f"refused/s {rate(rates.per_second('refused'))}",
        f"errors/s {rate(rates.per_second('errors'))}",
    ]


def _notes(now: _Looks, width: int, most: int) -> list[str]:
    """The faults, each once, with the gateways that have it, where there are several; and what to do: behind the fault,
    or on a line below it. Where that takes more than `most` lines, the last one says how to see the rest."""
    found: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for look in now:
        for note in [] if look.status is None else look.status.attention:
            found[_plain(note.text), _plain(note.fix)].append(_plain(look.url))
    faults = [
        _with_fix(f"! {text}" + (f" [{', '.join(urls)}]" if len(now) > 1 else ""), fix, width)
        for (text, fix), urls in found.items()
    ]
    lines = [line for fault in faults for line in fault]
    if len(lines) <= most:
        return lines
    if len(faults) >= most:
        return [*(fault[0] for fault in faults[: most - 1]), f"! {len(faults) - most + 1} more faults: aiaas status"]
    shown: list[str] = []
    for place, fault in enumerate(faults):
        room = most - 1 - len(shown) - (len(faults) - place - 1)  # the last line, and one for each fault that follows
        shown += fault[:room]
    return [*shown, "! what to do about the others: aiaas status"]


def _with_fix(fault: str, fix: str, width: int) -> list[str]:
    """A fault and what to do, in one line if that is wide enough, else in two."""
    if not fix:
        return [fault]
    whole = f"{fault.rstrip('.')}; {fix}"
    return [whole] if cell_len(whole) <= width else [fault, f"  -> {fix}"]


class _Rates:
    """Differences between two looks. A gateway that was not reached before, or has restarted, adds nothing."""

    def __init__(self, before: _Looks, now: _Looks) -> None:
        old = {look.url: look for look in before}
        self._pairs = [
            (old[look.url], look)
            for look in now
            if look.url in old and _same_process(old[look.url].status, look.status)
        ]

    def per_second(self, field: str) -> float | None:
        """The rate of a counter of `totals`, summed over the gateways; None without two looks."""
        found = [
            (_counted(status, field) - _counted(earlier, field)) / (status.now - earlier.now)
            for earlier, status in self._statuses()
        ]
        return max(0.0, sum(found)) if found else None

    def ttft(self, part: float) -> float | None:
        """The quantile `part` of TTFT between the looks; None if no answer began."""
        sums: defaultdict[float, float] = defaultdict(float)
        for earlier, status in self._statuses():
            for sign, models in ((1, status.models), (-1, earlier.models)):
                for bound, count in (bucket for model in models for bucket in model.ttft_buckets):
                    sums[math.inf if bound is None else bound] += sign * count
        return quantile(part, list(sums.items()))

    def _statuses(self) -> Iterator[tuple[Status, Status]]:
        for earlier, look in self._pairs:
            if earlier.status is not None and look.status is not None:
                yield earlier.status, look.status

    def tokens_by_key(self) -> dict[str, float]:
        """Output tokens a second of requests that were under way at both looks, by `key_name`."""
        found: defaultdict[str, float] = defaultdict(float)
        for earlier, look in self._pairs:
            if earlier.status is None or look.status is None:
                continue
            seconds = look.status.now - earlier.status.now
            written = {request.id: tokens_of(request) for request in earlier.live}
            for request in look.live:
                found[key_name(request)] += max(0, tokens_of(request) - written.get(request.id, 0)) / seconds
        return found


def _same_process(before: Status | None, now: Status | None) -> bool:
    return before is not None and now is not None and before.started == now.started and now.now > before.now


def _counted(status: Status, field: str) -> int:
    """A counter of `totals`; output tokens with those of requests that have not ended."""
    total: int = getattr(status.totals, field)
    return total + status.requests.output_tokens if field == "output_tokens" else total


# -- the tables -------------------------------------------------------------------------------------------------------


def _endpoints(reached: Sequence[Status]) -> _Table:
    """Each endpoint once, though several gateways use it; those that are down first."""
    groups: defaultdict[tuple[str, str], list[tuple[Status, BackendView, EndpointView]]] = defaultdict(list)
    for status in reached:
        for backend in status.backends:
            for endpoint in backend.endpoints:
                groups[backend.name, endpoint.url].append((status, backend, endpoint))
    queued: defaultdict[str, int] = defaultdict(int)
    for status in reached:
        for backend in status.backends:
            queued[backend.name] += backend.queued
    rows = []
    for (name, url), found in groups.items():
        drains = any(endpoint.draining for _, _, endpoint in found)
        up = len(found) if drains else sum(endpoint.up for _, _, endpoint in found)
        state = "✓ up" if up == len(found) else "✗ down" if not up else f"✗ up for {up} of {len(found)}"
        state = "draining" if drains else state
        ends = [endpoint for _, _, endpoint in found]
        bounds = [endpoint.max_inflight for endpoint in ends if endpoint.max_inflight is not None]
        used = f"{sum(endpoint.in_flight for endpoint in ends):,}" + (f"/{sum(bounds):,}" if bounds else "")
        since = min(
            status.now - endpoint.since for status, _, endpoint in found if endpoint.up or drains or up < len(found)
        )
        why = next((text for endpoint in ends if (text := endpoint.reason or endpoint.problem)), "")
        rows.append(
            ((up == len(found), -queued[name]), (name, url, state, short_span(since), used, f"{queued[name]:,}", why))
        )
    headers = ("BACKEND", "ENDPOINT", "STATE", ">FOR", ">IN FLIGHT", ">QUEUED", "WHY")
    return _Table(headers, [row for _, row in sorted(rows, key=lambda row: row[0])], "no backend")


def _keys(rates: _Rates, now: _Looks, reached: Sequence[Status], sort: str) -> _Table:
    """Keys with requests under way, and keys near a limit."""
    live: defaultdict[str, int] = defaultdict(int)
    waiting: defaultdict[str, int] = defaultdict(int)
    nearest: dict[str, NearView] = {}
    for look in now:
        for request in look.live:
            live[key_name(request)] += 1
            waiting[key_name(request)] += request.phase == "queued"
    for near in (near for status in reached for near in status.keys_near):
        name = key_name(near)
        if name not in nearest or _share(near) > _share(nearest[name]):
            nearest[name] = near
    tokens = rates.tokens_by_key()
    by: dict[str, Callable[[str], object]] = {
        "age": lambda name: (-_share(nearest.get(name)), -live[name], name),
        "tokens": lambda name: (-tokens.get(name, 0.0), name),
        "key": lambda name: name,
    }
    order = sorted({*live, *nearest}, key=by[sort])  # type: ignore[arg-type]  # all of one sort compare
    rows = [
        (name, f"{live[name]:,}", f"{waiting[name]:,}", rate(tokens.get(name)), *_limit(nearest.get(name)))
        for name in order
    ]
    return _Table(("KEY", ">LIVE", ">QUEUED", ">TOKENS/S", ">LIMIT USED", "LIMIT"), rows, "no key has a request")


def _share(near: NearView | None) -> float:
    return 0.0 if near is None or near.of <= 0 else near.used / near.of


def _limit(near: NearView | None) -> tuple[str, str]:
    if near is None:
        return "", ""
    mark = "! " if near.used >= near.of else ""
    resets = "" if near.resets_in is None else f", room in {short_span(near.resets_in)}"
    return f"{mark}{_share(near):.0%}", f"{near.limit}: {near.used:,} of {near.of:,}{resets}"


def _live(now: _Looks, sort: str) -> _Table:
    """Requests under way, of all gateways."""
    clocks = {look.url: look.status.now for look in now if look.status is not None}
    found = [(clocks[look.url] - request.at, request) for look in now if look.url in clocks for request in look.live]
    by: dict[str, Callable[[tuple[float, RequestView]], object]] = {
        "age": lambda one: -one[0],
        "tokens": lambda one: (-tokens_of(one[1]), -one[0]),
        "key": lambda one: (key_name(one[1]), -one[0]),
    }
    found.sort(key=by[sort])  # type: ignore[arg-type]  # all of one sort compare
    rows = [
        (
            key_name(request),
            request.model or NONE,
            short_span(age),
            f"{tokens_of(request):,}",
            request.phase + (f", for {request.waiting_for}" if request.waiting_for else ""),
            request.upstream or NONE,
        )
        for age, request in found
    ]
    return _Table(("REQUEST OF", "MODEL", ">AGE", ">TOKENS", "PHASE", "ENDPOINT"), rows, "none")


# -- text -------------------------------------------------------------------------------------------------------------


def key_name(view: RequestView | NearView) -> str:
    """The user and the key's id."""
    return " ".join(part for part in (view.user, view.key_id) if part) or NONE


def tokens_of(request: RequestView) -> int:
    """The output tokens so far; before vLLM has counted them, the events of the stream."""
    return request.events if request.output_tokens is None else request.output_tokens


def rate(value: float | None) -> str:
    """Format a rate; `-` if it is not known yet."""
    return NONE if value is None else f"{value:,.1f}" if value < 10 else f"{value:,.0f}"


def short_span(seconds: float | None) -> str:
    """Format a duration in at most six characters or so: `210 ms`, `3.2 s`, `75 s`, `12 min`, `5 h`, `3 d`."""
    if seconds is None:
        return NONE
    if seconds < 1:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    for least, size, unit in ((172_800, 86_400, "d"), (7200, 3600, "h"), (120, 60, "min")):
        if seconds >= least:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def _plain(text: str) -> str:
    """Replace what a terminal might obey (escapes, line ends, changes of direction) by a dot."""
    return "".join(letter if letter.isprintable() else "·" for letter in text)


def _wrapped(parts: Iterable[str], width: int) -> list[str]:
    lines: list[str] = []
    for part in parts:
        if lines and cell_len(lines[-1]) + len(GAP) + cell_len(part) <= width:
            lines[-1] += GAP + part
        else:
            lines.append(part)
    return lines


def _shared(wanted: Sequence[int], room: int) -> list[int]:
    """Share `room` lines: FEWEST_ROWS for each table, then up to a third for the first ones, the rest for the last."""
    given = [min(rows, FEWEST_ROWS) for rows in wanted]
    for place, rows in enumerate(wanted):
        left = room - sum(given)
        most = max(left, 0) if place == len(wanted) - 1 else max(room // 3 - given[place], 0)
        given[place] += max(0, min(rows - given[place], most, left))
    return given


def _drawn(table: _Table, most: int, width: int) -> list[str]:
    """The header and at most `most` rows. Columns are as wide as their cells; the last one takes the rest."""
    if not table.rows:
        return [f"{table.headers[0]}: {table.none}"]
    shown = [tuple(map(_plain, row)) for row in table.rows[:most]]
    headers = tuple(header.removeprefix(">") for header in table.headers)
    if len(table.rows) > most:
        headers = (f"{headers[0]} ({most} of {len(table.rows):,})", *headers[1:])
    widths = [min(WIDEST, max(map(cell_len, column))) for column in zip(headers, *shown, strict=True)]
    lines = []
    for row in (headers, *shown):
        cells = [
            _cut(cell, room, right=header.startswith(">"))
            for cell, room, header in zip(row, widths, table.headers, strict=True)
        ]
        cells[-1] = row[-1]
        lines.append(_cut(GAP.join(cells), width).rstrip())
    return lines


def _cut(text: str, width: int, *, right: bool = False) -> str:
    """Fit a text into so many cells; a text that is cut ends with `…`."""
    length = cell_len(text)
    if length > width:
        return set_cell_size(text, max(width - 1, 0)) + "…" if width > 0 else ""
    return " " * (width - length) + text if right else text + " " * (width - length)


def _fit(lines: Sequence[str], width: int, height: int) -> str:
    return "\n".join(_cut(line, width).rstrip() for line in lines[:height])
