"""The page: whole, self-contained, the same for the same runs, and safe from a file's content."""

from __future__ import annotations

import random
from time import process_time

import pytest
from msgspec.structs import replace

from aiaas.loadtest.compare import overhead
from aiaas.loadtest.html.document import page
from aiaas.loadtest.html.figure import ToldRun
from aiaas.loadtest.sample import Run, Sample
from aiaas.loadtest.table import number, seconds
from tests.loadtest.html.runs import RUN, read, steady, sweep, told, words
from tests.loadtest.samples import failed, sample

NASTY = "<script>alert(1)</script><img src=http://x onerror=alert(1)>\"'&lt;</style></title>"
# Tags and attributes that run, fetch or lead elsewhere.
ELEMENTS = frozenset({"script", "img", "iframe", "object", "embed", "form", "base", "use", "image", "audio", "video"})


def compared() -> ToldRun:
    """A run in pairs, one each way."""
    kept = [sample(n / 10, number=n, ttft=0.2 + n % 2 / 1000, via=("direct", "gateway")[n % 2]) for n in range(100)]
    run = told(kept, run=replace(RUN, direct="http://d"))
    return ToldRun(replace(run.shown, overhead=overhead(kept, random.Random(0).random)), run.samples)


def nasty() -> ToldRun:
    """Every text of a file is markup."""
    run = Run(
        1, NASTY, NASTY, NASTY, NASTY, NASTY, (NASTY, NASTY + "2"), {NASTY: NASTY}, {NASTY: NASTY}, "ttft=1s", NASTY
    )
    kept = [sample(key=0), sample(key=1), failed(error=NASTY, code=NASTY, detail=NASTY), sample(via=NASTY)]
    return told(kept, run=run, name=NASTY, slo="ttft=1s")


CASES = [
    pytest.param([told(steady(), slo="ttft=1s")], id="a run"),
    pytest.param([told(steady(2000))], id="many requests"),
    pytest.param([sweep()], id="a sweep"),
    pytest.param([sweep("ttft=1ms")], id="a sweep without a knee"),
    pytest.param([compared()], id="direct and gateway"),
    pytest.param([told(steady()), told(steady(30), name="b"), sweep()], id="three runs"),
    pytest.param([told([])], id="no request"),
    pytest.param([told([], windows=())], id="crashed before the first request"),
    pytest.param([told([sample()], windows=())], id="crashed"),
    pytest.param([told([failed(), failed(error="cut")], slo="ttft=1s")], id="only errors"),
    pytest.param([told([sample()])], id="one sample"),
    pytest.param([told([sample(ttft=0.0, e2e=0.0, gaps=(0, 0))])], id="no time at all"),
    pytest.param([told([sample(warmup=True)])], id="only the warm-up"),
    pytest.param([told([sample(aborted=True)])], id="only requests left on purpose"),
    pytest.param([told([sample(ttft=None, e2e=0.5)])], id="no stream"),
    pytest.param([told([sample(due=-0.1, ttft=0.05, e2e=0.06)])], id="before the start"),
    pytest.param([nasty()], id="markup everywhere"),
    pytest.param([told([], name="a"), told([failed()], name="b")], id="two runs of nothing"),
]


@pytest.mark.parametrize("runs", CASES)
def test_any_run_gives_a_whole_page(runs: list[ToldRun]) -> None:
    """Elements are closed, ids are unique, charts say their content, and nothing comes from elsewhere."""
    html = page(runs)
    tree = read(html)
    assert tree.tag == "html"
    ids = [element.attrib["id"] for element in tree.iter() if "id" in element.attrib]
    assert len(ids) == len(set(ids))
    for drawing in tree.iter("svg"):
        if drawing.attrib.get("role") == "img":
            assert set(drawing.attrib["aria-labelledby"].split()) <= set(ids)
            assert all((drawing.find(name).text or "").strip() for name in ("title", "desc"))  # type: ignore[union-attr]
    assert [element.tag for element in tree.iter() if element.tag in ELEMENTS] == []
    assert [name for element in tree.iter() for name in element.attrib if name.startswith("on") or name == "src"] == []
    links = [element.attrib["href"] for element in tree.iter() if "href" in element.attrib]
    assert {link for link in links if not link.startswith("#")} == {"data:,"}
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert "nan" not in "".join(element.attrib.get("d", "") for element in tree.iter())


def test_the_page_forbids_itself_scripts_and_the_network() -> None:
    """By its own policy, so that a mistake in this code would have no effect."""
    policies = [meta.attrib["content"] for meta in read(page([nasty()])).iter("meta") if "http-equiv" in meta.attrib]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    style = read(page([told([])])).find("head/style")
    assert style is not None
    assert "url(" not in (style.text or "")
    assert "@import" not in (style.text or "")


def test_text_of_a_file_is_shown_as_text() -> None:
    """Its model, its options, its errors, its keys."""
    tree = read(page([nasty()]))
    shown = words(tree)
    assert shown.count(NASTY) > 10
    assert [element.tag for element in tree.iter("script")] == []


def test_the_same_runs_give_the_same_bytes() -> None:
    """A report in git changes only when its runs do."""
    assert page([sweep(), compared()]) == page([sweep(), compared()])


def test_the_first_figures_are_those_of_the_summary() -> None:
    """For a sweep, the figures of its knee."""
    run = told(steady(), slo="ttft=150ms")
    total = run.shown.summary.total
    tiles = {words(each[0]): words(each[1]) for each in read(page([run])).findall(".//dl/div")}
    assert total.ttft is not None
    assert tiles["TTFT p99"] == seconds(total.ttft.p99)
    assert tiles["answers/s"] == number(total.requests_per_second)
    swept = {words(each[0]): words(each[1]) for each in read(page([sweep()])).findall(".//dl/div")}
    assert swept["output tokens/s"] == "190"


@pytest.mark.parametrize(
    ("runs", "verdict"),
    [
        ([told(steady())], "No SLO was set."),
        ([told(steady(), slo="ttft=1s")], "The run met its SLO."),
        ([told(steady(), slo="ttft=1ms")], "The run missed its SLO."),
        ([sweep()], "The SLO holds at the knee, 2 users."),
        ([sweep("ttft=1ms")], "Every level missed the SLO."),
        ([told(steady(), slo="ttft=1s"), told(steady(), slo="ttft=1ms", name="b")], "The SLO was missed by b."),
    ],
    ids=["none", "held", "missed", "a sweep", "a sweep without a knee", "two runs"],
)
def test_the_verdict_comes_first(runs: list[ToldRun], verdict: str) -> None:
    """In a sentence."""
    found = read(page(runs)).find(".//p[@class='verdict']")
    assert found is not None
    assert found.text == verdict


def test_remarks_for_a_reader_are_shown() -> None:
    """The remarks of the tables stand before the charts."""
    notes = read(page([told([failed()], windows=())])).find(".//ul[@class='notes']")
    assert notes is not None
    assert "the run crashed" in words(notes)


def test_a_large_run_is_a_small_page_in_seconds() -> None:
    """100,000 requests of 20 gaps: below 1 MB, in less than 10 s of CPU (1.6 s where it was written)."""
    kept: list[Sample] = [
        sample(n / 1000, number=n, ttft=0.1 + n % 977 / 1e4, gaps=tuple(range(n % 50, n % 50 + 20)))
        for n in range(100_000)
    ]
    run = told(kept, slo="ttft=1s")
    before = process_time()
    html = page([run])
    assert process_time() - before < 10
    assert len(html.encode()) < 1_000_000
