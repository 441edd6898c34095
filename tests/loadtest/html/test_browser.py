"""The page in a real Chromium, at the width of a phone and of a desktop, light and dark: `nox -s report`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aiaas.loadtest.html.document import page
from aiaas.loadtest.html.figure import ToldRun
from tests.browser import opened_browser
from tests.loadtest.html.runs import steady, sweep, told
from tests.loadtest.html.test_document import compared, nasty
from tests.loadtest.samples import failed

pytestmark = pytest.mark.browser

PAGES = {
    "a run": [told([*steady(), *(failed(n / 10, end=n / 10) for n in range(50))], slo="ttft=150ms,e2e=2s")],
    "a sweep": [sweep()],
    "direct and gateway": [compared()],
    "four runs": [told(steady(), name="a"), told(steady(400), name="b" * 60), sweep(), nasty()],
    "nothing": [told([])],
}
# Text of a chart that leaves its drawing, and names of ticks that overlap.
CLIPPED = """() => [...document.querySelectorAll('svg.chart')].flatMap(svg => {
  const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter(text => {
    const it = text.getBoundingClientRect();
    return it.left < box.left - 1 || it.right > box.right + 1 || it.top < box.top - 1 || it.bottom > box.bottom + 1;
  }).map(text => text.textContent);
})"""
OVERLAPPING = """() => [...document.querySelectorAll('svg.chart')].flatMap(svg => {
  const ticks = [...svg.querySelectorAll('text:not([class])')];
  const all = ticks.map(text => [text.textContent, text.getBoundingClientRect()]);
  return all.flatMap(([name, a], at) => all.slice(at + 1).filter(([, b]) =>
    a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3
  ).map(([other]) => name + ' / ' + other));
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium without a screen."""
    with opened_browser() as opened:
        yield opened


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280], ids=["phone", "desktop"])
@pytest.mark.parametrize("runs", [pytest.param(runs, id=name) for name, runs in PAGES.items()])
def test_the_page_fits_and_keeps_to_itself(
    browser: Any, tmp_path: Path, runs: list[ToldRun], width: int, scheme: str
) -> None:
    """Nothing to scroll sideways, nothing clipped, nothing on the console, no request but for the page; white paper."""
    file = tmp_path / "a.html"
    file.write_text(page(runs), encoding="utf-8")
    opened = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("dialog", lambda dialog: said.append(dialog.message))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(file.as_uri())
    opened.evaluate("() => document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.evaluate(CLIPPED) == []
    assert opened.evaluate(OVERLAPPING) == []
    ground = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
    opened.emulate_media(media="print", color_scheme=scheme)
    on_paper = "getComputedStyle(document.documentElement).getPropertyValue('--ground')"
    assert opened.evaluate(on_paper) == "#fff"
    opened.close()
    assert said == []
    assert [url for url in asked if url not in (file.as_uri(), "data:,")] == []
