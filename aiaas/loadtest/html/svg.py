"""Draw charts as SVG: axes, ticks, lines, bands, dots, bars and intervals, as plain functions. Pure.

Why not a library: pygal 3.1 fixes the colours in each chart (the reader cannot choose dark mode), is LGPL and loads a
script from another server by default; pysvgchart 0.8 has neither bands nor intervals nor text alternatives; the others
need JavaScript (plotly, altair, bokeh) or numpy (matplotlib). This file has all that the page needs.

Rules
- The page's style sheet (`style`) sets colours and text size: a mark only has the class `s1` to `s6` of its series.
  Series also differ by dash and by shape, for colour-blind readers and for print in black and white.
- A chart is WIDTH units wide and scales to its place. Margins have room for text of 15 units, as on a phone.
- Each chart has a title and a description for screen readers, and its dots carry their values as data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor, log10
from typing import Final
from xml.etree.ElementTree import Element

from aiaas.loadtest.html.markup import plain, tag

WIDTH: Final = 480.0
HEIGHT: Final = 270.0
LEFT: Final = 66.0
RIGHT: Final = 16.0
TOP: Final = 34.0  # one line for the label of the y axis, one for the names of moments
BOTTOM: Final = 46.0
ROWS_TOP: Final = 20.0
ROW: Final = 38.0  # in a chart in rows: a line of text and a bar below the text
MOST_TICKS: Final = 6
MOST_STEPS: Final = 9
SERIES: Final = 6

ChartPoint = tuple[float, float | None]


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps values from `low` to `high` to units from `start` to `stop`; `write` formats the value at a tick."""

    label: str
    low: float
    high: float
    start: float
    stop: float
    ticks: tuple[float, ...]
    write: Callable[[float], str]
    log: bool = False

    def at(self, value: float) -> float:
        """Return a value's position; a value beyond an end is placed at that end."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = log10(value / self.low) / log10(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)


def across(label: str, values: Iterable[float], write: Callable[[float], str], *, log: bool = False) -> Axis:
    """Return the x axis for these values; a linear axis begins at 0 or below."""
    return _axis(label, values, write, LEFT, WIDTH - RIGHT, log=log)


def ending(axis: Axis, last: float) -> Axis:
    """Cut the axis at `last`, such as a run's end; its ticks stay round."""
    return replace(axis, high=last, ticks=tuple(tick for tick in axis.ticks if tick <= last))


def stepping(label: str, steps: Sequence[float], write: Callable[[float], str], *, log: bool) -> Axis:
    """Return the x axis of ascending steps, with a tick at each step unless there are more than MOST_STEPS."""
    every = -(-len(steps) // MOST_STEPS)
    ticks = tuple(steps[::-1][::every][::-1])
    low, high = (steps[0], steps[-1]) if steps[-1] > steps[0] else (steps[0] / 2, steps[0] * 2)
    return Axis(label, low if log else 0.0, high, LEFT, WIDTH - RIGHT, ticks, write, log)


def upward(label: str, values: Iterable[float], write: Callable[[float], str], *, log: bool = False) -> Axis:
    """Return the y axis for these values."""
    return _axis(label, values, write, HEIGHT - BOTTOM, TOP, log=log)


def rows_across(label: str, values: Iterable[float], write: Callable[[float], str]) -> Axis:
    """Return the x axis of a chart in rows, which does not need room on its left."""
    return _axis(label, values, write, RIGHT, WIDTH - RIGHT, log=False)


def _axis(
    label: str, values: Iterable[float], write: Callable[[float], str], start: float, stop: float, *, log: bool
) -> Axis:
    known = [value for value in values if not log or value > 0] or [1.0]
    ticks = log_ticks(min(known), max(known)) if log else linear_ticks(min(0.0, *known), max(0.0, *known))
    return Axis(label, ticks[0], ticks[-1], start, stop, ticks, write, log)


def linear_ticks(low: float, high: float) -> tuple[float, ...]:
    """Return round values, 1, 2 or 5 times a power of ten apart, from at most `low` to at least `high`."""
    span = high - low or 1.0
    power = 10.0 ** floor(log10(span / (MOST_TICKS - 1)))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * (MOST_TICKS - 1) >= span * (1 - 1e-9))
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return tuple(float(f"{number * step:.12g}") for number in range(first, max(last, first + 1) + 1))


def log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Return 1, 2 and 5 times powers of ten, or fewer ticks, from at most `low` to at least `high`; both above 0."""
    found: list[float] = []
    for factors, decades in (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 3)):
        powers = range(floor(log10(low)) - decades, ceil(log10(high)) + decades + 1)
        steps = [factor * 10.0**power for power in powers if power % decades == 0 for factor in factors]
        first = max((step for step in steps if step <= low * (1 + 1e-9)), default=steps[0])
        last = min((step for step in steps if step >= high * (1 - 1e-9) and step > first), default=steps[-1])
        found = [step for step in steps if first <= step <= last]
        if len(found) <= MOST_TICKS:
            break
    return tuple(float(f"{step:.3g}") for step in found)


def chart(name: str, title: str, description: str, x: Axis, y: Axis, *marks: Element | None) -> Element:
    """Draw axes and marks. `name` must be unique on the page."""
    grid = [_line("grid", x.start, y.at(tick), x.stop, y.at(tick)) for tick in y.ticks]
    labels = [_text(x.start - 7, y.at(tick) + 4, y.write(tick), "end") for tick in y.ticks]
    labels.append(_text(2, 15, y.label, "start"))
    return _svg(name, title, description, HEIGHT, *grid, *_x_axis(x, HEIGHT - BOTTOM), *labels, *marks)


def rows(name: str, title: str, description: str, x: Axis, each: Sequence[tuple[str, str, Element]]) -> Element:
    """Draw a row for each (label, figure in words, mark drawn from y = 0): a chart without a y axis, whose labels may
    have any length."""
    bottom = ROWS_TOP + ROW * len(each)
    grid = [_line("grid", x.at(tick), ROWS_TOP - 12, x.at(tick), bottom) for tick in x.ticks]
    placed: list[Element] = []
    for number, (label, figure, mark) in enumerate(each):
        top = ROWS_TOP + ROW * number
        room = max(56 - len(figure), 12)
        short = label if len(label) <= room else label[: room - 1] + "…"
        words = [_text(RIGHT, top, short, "start"), _text(WIDTH - RIGHT, top, figure, "end", "figure")]
        placed.append(tag("g", tag("title", f"{label}: {figure}"), *words, _moved(mark, top + 5)))
    return _svg(name, title, description, bottom + BOTTOM, *grid, *_x_axis(x, bottom), *placed)


def line(x: Axis, y: Axis, points: Sequence[ChartPoint], series: int, *, dashed: bool = False) -> Element:
    """Draw a line through the points, with a gap where the value is None."""
    path = []
    pen = "M"
    for at, value in points:
        if value is None:
            pen = "M"
            continue
        path.append(f"{pen}{_short(x.at(at))} {_short(y.at(value))}")
        pen = "L"
    return tag("path", class_=f"line s{series}{' dashed' if dashed else ''}", d="".join(path))


def band(x: Axis, y: Axis, edges: Sequence[tuple[float, float, float]], series: int) -> Element:
    """Draw the area between the low and the high edge of each (x, low, high)."""
    there = [f"{_short(x.at(at))} {_short(y.at(high))}" for at, _, high in edges]
    back = [f"{_short(x.at(at))} {_short(y.at(low))}" for at, low, _ in reversed(edges)]
    return tag("path", class_=f"band s{series}", d=f"M{'L'.join(there + back)}Z" if edges else "")


def dots(x: Axis, y: Axis, points: Sequence[tuple[float, float, str]], series: int, *, small: bool = False) -> Element:
    """Draw a shape at each (x, y, words); the words appear when the reader points at the shape."""
    size = 2.2 if small else 4.5
    found = [
        tag(
            "path",
            tag("title", words),
            d=_shape(series, x.at(at), y.at(value), size),
            data_x=repr(at),
            data_y=repr(value),
        )
        for at, value, words in points
    ]
    return tag("g", *found, class_=f"dots s{series}")


def label(x: Axis, y: Axis, at: float, value: float, words: str) -> Element:
    """Write words beside a point of a rising curve: above on the left or below on the right, clear of the curve."""
    if x.at(at) - x.start > len(words) * 8:
        return _text(x.at(at) - 8, y.at(value) - 1, words, "end", "figure")
    return _text(x.at(at) + 8, y.at(value) + 14, words, "start", "figure")


def level(x: Axis, y: Axis, value: float, words: str) -> Element:
    """Draw a bound across the chart, with its name."""
    at = y.at(value)
    name = _text(x.start + 5, at + 15, words, "start", "bound")
    return tag("g", _line("bound", x.start, at, x.stop, at), name, data_y=repr(value))


def moment(x: Axis, y: Axis, value: float, words: str) -> Element:
    """Draw a line from bottom to top, with its name above."""
    at = x.at(value)
    name = _text(at, y.stop - 6, words, "end" if at > WIDTH - 40 else "middle", "mark")
    return tag("g", _line("mark", at, y.start, at, y.stop), name, data_x=repr(value))


def span(x: Axis, y: Axis, low: float, high: float, words: str) -> Element:
    """Shade a part of the chart, with its name."""
    left, right = x.at(low), x.at(high)
    box = tag("rect", class_="span", x=left, y=y.stop, width=max(right - left, 0.5), height=y.start - y.stop)
    return tag("g", box, tag("title", words))


def bar(x: Axis, value: float, series: int) -> Element:
    """Draw a bar in a chart in rows."""
    width = max(x.at(value) - x.at(0.0), 0.5)
    return tag("rect", class_=f"bar s{series}", x=x.at(0.0), y=2.0, width=width, height=11.0, data_x=repr(value))


def columns(x: Axis, counts: Sequence[tuple[float, float, int]], tallest: int, series: int) -> Element:
    """Draw small columns in a chart in rows: the count of each span of time, relative to the tallest column."""
    found = []
    for begin, end, count in counts:
        if count:
            height = max(18.0 * count / tallest, 1.5)
            left, right = x.at(begin), x.at(end)
            words = tag("title", f"{count} from {begin:.1f} s to {end:.1f} s")
            found.append(tag("rect", words, x=left, y=20 - height, width=max(right - left, 1.0), height=height))
    return tag("g", *found, class_=f"bar s{series}")


def interval(x: Axis, low: float, value: float, high: float, series: int) -> Element:
    """Draw an estimate on its interval, with an arrow if `high` is infinite."""
    left, right = x.at(low), x.at(min(high, x.high))
    tail = _line("", right, 3, right, 12) if high < float("inf") else tag("path", d=f"M{right - 6:.1f} 3l6 4.5l-6 4.5")
    return tag(
        "g",
        tag("g", _line("", left, 7.5, right, 7.5), _line("", left, 3, left, 12), tail, class_=f"whisker s{series}"),
        tag("g", tag("path", d=_shape(series, x.at(value), 7.5, 5)), class_=f"dots s{series}"),
        data_low=repr(low),
        data_x=repr(value),
        data_high=repr(high),
    )


def key(series: int, *, dashed: bool = False, line_too: bool = True, dot_too: bool = True) -> Element:
    """Draw a series' line and shape for a legend."""
    stroke = tag("path", class_=f"line s{series}{' dashed' if dashed else ''}", d="M0 6L28 6") if line_too else None
    shape = tag("g", tag("path", d=_shape(series, 14, 6, 4.5)), class_=f"dots s{series}") if dot_too else None
    return tag("svg", stroke, shape, class_="key", viewBox="0 0 28 12", width=28, height=12, aria_hidden="true")


def _x_axis(x: Axis, bottom: float) -> list[Element]:
    found = [_line("axis", x.start, bottom, x.stop, bottom)]
    for tick in x.ticks:
        at = x.at(tick)
        found.append(_line("axis", at, bottom, at, bottom + 4))
        words = x.write(tick)
        room = len(words) * 4.2  # half of the text's width
        place = "end" if at + room > WIDTH else "start" if at < room else "middle"
        found.append(_text({"end": WIDTH - 2, "start": 2.0}.get(place, at), bottom + 18, words, place))
    found.append(_text((x.start + x.stop) / 2, bottom + 37, x.label, "middle"))
    return found


def _svg(name: str, title: str, description: str, height: float, *marks: Element | None) -> Element:
    return tag(
        "svg",
        tag("title", title, id=f"{name}-title"),
        tag("desc", description, id=f"{name}-what"),
        *marks,
        viewBox=f"0 0 {plain(WIDTH)} {plain(height)}",
        role="img",
        aria_labelledby=f"{name}-title {name}-what",
        class_="chart",
    )


def _shape(series: int, x: float, y: float, size: float) -> str:
    """Return a circle, square, triangle, diamond, cross or bar, by the number of the series."""
    s = size
    here = f"M{_short(x)} {_short(y)}"
    return (
        here
        + (
            f"m-{s} 0a{s} {s} 0 1 0 {2 * s} 0a{s} {s} 0 1 0 -{2 * s} 0Z",
            f"m-{s} -{s}h{2 * s}v{2 * s}h-{2 * s}Z",
            f"m0 -{s}l{s} {2 * s}h-{2 * s}Z",
            f"m0 -{1.3 * s:g}l{s} {1.3 * s:g}l-{s} {1.3 * s:g}l-{s} -{1.3 * s:g}Z",
            f"m-{s} {s}l{2 * s} -{2 * s}m0 {2 * s}l-{2 * s} -{2 * s}",
            f"m-{s} -{s / 2:g}h{2 * s}v{s}h-{2 * s}Z",
        )[(series - 1) % SERIES]
    )


def _line(name: str, x1: float, y1: float, x2: float, y2: float) -> Element:
    return tag("path", class_=name or None, d=f"M{_short(x1)} {_short(y1)}L{_short(x2)} {_short(y2)}")


def _text(x: float, y: float, words: str, anchor: str, name: str | None = None) -> Element:
    return tag("text", words, x=x, y=y, text_anchor=anchor, class_=name)


def _moved(mark: Element, down: float) -> Element:
    return tag("g", mark, transform=f"translate(0 {plain(down)})")


def _short(value: float) -> str:
    """Round to a tenth of a unit, which is finer than a screen shows."""
    return plain(round(value, 1))
