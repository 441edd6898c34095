"""Runs for the tests of the page, and a reader that sees a page as a browser does."""

from __future__ import annotations

from collections.abc import Iterable
from html.parser import HTMLParser
from typing import Final
from xml.etree.ElementTree import Element, TreeBuilder

from aiaas.loadtest.html.figure import ToldRun
from aiaas.loadtest.report import Shown
from aiaas.loadtest.sample import Run, RunEnd, Sample, Window
from aiaas.loadtest.slo import parse_slo
from aiaas.loadtest.summary import summarize
from tests.loadtest.samples import sample

RUN: Final = Run(1, "0.1.0", "http://h", "m", "2026-01-01T00:00:00Z", "closed", keys=("a", "b"))
VOID: Final = frozenset({"meta", "link"})


def told(
    samples: Iterable[Sample],
    *,
    windows: tuple[Window, ...] = (Window(0.0, 10.0),),
    slo: str = "",
    name: str = "run",
    run: Run = RUN,
) -> ToldRun:
    """A run of these samples; without windows, as after a crash."""
    kept = tuple(samples)
    end = RunEnd(windows=windows) if windows else None
    return ToldRun(Shown(name, run, summarize(kept, end, parse_slo(slo)), end), kept)


def steady(count: int = 200, seconds: float = 10.0, **more: object) -> list[Sample]:
    """Requests spread evenly over a run; each slower by a little than the one before."""
    return [
        sample(seconds * n / count, number=n, ttft=0.1 + n / count / 10, e2e=0.5 + n / count / 10, gaps=(10_000,) * 5)
        for n in range(count)
    ]


def sweep(slo: str = "ttft=500ms") -> ToldRun:
    """Levels of 1, 2 and 4 users; the knee is at 2, and at 4 the SLO is missed."""
    kept = [sample(0.0, e2e=0.9, output_tokens=100, level=1), sample(1.0, e2e=0.9, output_tokens=190, level=2)]
    kept.append(sample(2.0, ttft=0.8, e2e=0.9, output_tokens=195, level=4))
    return told(kept, windows=tuple(Window(n, n + 1.0, level) for n, level in enumerate((1.0, 2.0, 4.0))), slo=slo)


class Reader(HTMLParser):
    """HTML as a tree. Fails where a tag is not closed by its own end."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._builder = TreeBuilder()
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._builder.start(tag, {name: value or "" for name, value in attrs})
        self._open.append(tag)
        if tag in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        self._builder.end(tag)

    def handle_data(self, data: str) -> None:
        if self._open:
            self._builder.data(data)

    def tree(self) -> Element:
        """The whole document."""
        assert self._open == []
        return self._builder.close()


def read(html: str) -> Element:
    """A page as a tree."""
    reader = Reader()
    reader.feed(html)
    reader.close()
    return reader.tree()


def words(element: Element) -> str:
    """All text in an element."""
    return "".join(element.itertext())


def values(drawing: Element, attribute: str = "data-y") -> list[float]:
    """The values that a chart's marks carry, in order."""
    return [float(each.attrib[attribute]) for each in drawing.iter() if attribute in each.attrib]
