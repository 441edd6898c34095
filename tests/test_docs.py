"""The documentation agrees with the code: links lead somewhere, and everything that a user meets is in it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from aiaas.cli.main import COMMANDS
from aiaas.limits import headers as limit_headers
from aiaas.proxy.telemetry.log import JsonLog
from aiaas.proxy.telemetry.metrics import LIMIT_OF, Metrics
from aiaas.proxy.telemetry.record import Record
from tests.repository_rules import ROOT, all_modules

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def page(name: str) -> str:
    """A page's text, empty where there is no such page."""
    path = ROOT / name
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


CITATION = re.compile(r"[Tt]ranscripts? (\d+[a-z]?(?:(?:, | to | and )\d+[a-z]?)*)")


def cited(text: str) -> set[str]:
    """The transcripts of vLLM that a text names: `transcript 131`, `transcripts 23, 25`, `transcripts 12 to 14`."""
    return {number for found in CITATION.findall(text) for number in re.findall(r"\d+[a-z]?", found)}


def test_transcripts_that_are_cited_exist() -> None:
    """A reader who doubts a comment can look at vLLM's own answer."""
    there = {path.name.split("-")[0] for path in (ROOT / "docs" / "vllm" / "transcripts").iterdir()}
    sources = [*(ROOT / "aiaas").rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *PAGES]
    missing = {(path.name, n) for path in sources for n in cited(path.read_text(encoding="utf-8")) - there}
    assert missing == set()


def test_the_files_that_the_map_names_exist() -> None:
    """A reader of CONTRIBUTING.md's map finds every file."""
    named = set(re.findall(r"`((?:aiaas/)?[a-z_]+(?:/[a-z_]+)+\.py)`", page("CONTRIBUTING.md")))
    assert len(named) > 50
    missing = {name for name in named if not (ROOT / name).is_file() and not (ROOT / "aiaas" / name).is_file()}
    assert missing == set()


def dead_links(path: Path) -> Iterator[str]:
    """Links to files that do not exist, or to headings that no page has."""
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):  # https:, mailto:
            continue
        file, _, anchor = target.partition("#")
        there = path.parent / file if file else path
        if not there.exists():
            yield f"{path.name}: {target}: no such file"
        elif anchor and there.suffix == ".md" and anchor not in anchors(there.read_text(encoding="utf-8")):
            yield f"{path.name}: {target}: no such heading"


def test_docs_links_lead_somewhere() -> None:
    """Every relative link in a page names a file that is there, and a heading that it has."""
    assert [dead for path in PAGES for dead in dead_links(path)] == []


def test_a_dead_docs_link_is_found(tmp_path: Path) -> None:
    """The check above finds a dead link."""
    path = tmp_path / "a.md"
    path.write_text("# One\n[x](b.md) [y](#two) [z](#one) [w](https://example.com)\n")
    assert list(dead_links(path)) == ["a.md: b.md: no such file", "a.md: #two: no such heading"]


def test_the_docs_index_lists_every_page() -> None:
    """docs/README.md leads to each page of docs/."""
    listed = set(LINK.findall(page("docs/README.md")))
    assert sorted({path.name for path in (ROOT / "docs").glob("*.md")} - listed - {"README.md"}) == []


def test_docs_name_every_command() -> None:
    """Each command is used somewhere in the README or in docs/."""
    text = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    assert [name for name in COMMANDS if f"aiaas {name}" not in text] == []


API_ERRORS = ("ClientError", "LimitError", "Unauthorized", "UpstreamError")  # each takes its code second


def test_each_security_claim_names_a_test_that_is_there() -> None:
    """SECURITY.md promises only what a test holds."""
    text = page("SECURITY.md")
    promised = text[text.index("## Guarantees") : text.index("## Not covered")]
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", promised)
    assert [f"{file}::{name}" for file, name in named if f"def {name}(" not in page(file)] == []
    claims = re.split(r"\n- ", promised)[1:]
    assert len(claims) > 10
    assert [claim for claim in claims if "`tests/" not in claim] == []


def error_codes() -> set[str]:
    """The codes of all ApiErrors that the source makes, and those of the limits."""
    found = {code for code, _ in vars(limit_headers)["_REFUSALS"].values()} | set(LIMIT_OF)
    for module in all_modules():
        if module.path.startswith("aiaas/engines/"):  # vLLM's words, not ours
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in API_ERRORS:
                for value in ast.walk(node.args[1]) if len(node.args) > 1 else ():
                    if isinstance(value, ast.Constant) and isinstance(value.value, str):
                        found.add(value.value)
    return found


def test_docs_hold_every_error_code() -> None:
    """docs/errors.md names each code that a client may get: programs branch on them."""
    codes = error_codes()
    assert {"invalid_api_key", "rate_limit_exceeded", "no_healthy_backend"} <= codes
    assert sorted(code for code in codes if f"`{code}`" not in page("docs/errors.md")) == []


async def test_docs_hold_every_metric() -> None:
    """docs/metrics.md names each metric: dashboards and alerts are built on them."""
    exposed = Metrics().expose().decode()
    names = re.findall(r"^# TYPE (\S+)", exposed, re.MULTILINE)
    assert "inference_requests_total" in names
    assert [name for name in names if f"`{name}" not in page("docs/metrics.md")] == []


@pytest.fixture
def log_line() -> dict[str, object]:
    """A request's line of the log."""
    written: list[bytes] = []
    log = JsonLog(written.append, lambda: 0.0, "info")
    log.request(Record(request_id="r", path="/v1/models", started=0.0, client_address="192.0.2.1"), 0.1)
    log.flush()
    line: dict[str, object] = msgspec.json.decode(written[0])
    return line


def test_docs_hold_every_field_of_the_log(log_line: dict[str, object]) -> None:
    """docs/logs.md names each field of a request's line."""
    assert "request_id" in log_line
    assert [name for name in log_line if f"`{name}`" not in page("docs/logs.md")] == []
