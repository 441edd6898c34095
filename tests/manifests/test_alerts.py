"""aiaas.manifests.alerts: each alert fires with its fault and not without; by promtool where it is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from aiaas.config.model import Slo
from aiaas.config.values import TTFT_BOUNDS
from aiaas.manifests.alerts import alerts
from aiaas.proxy.engines import Engines
from aiaas.proxy.telemetry.metrics import TTFT_BUCKETS, Metrics
from aiaas.proxy.workers.merge import exposition, of_supervisor
from tests.manifests.alert_cases import CASES, FOREIGN, OURS, SECOND, unit_tests
from tests.manifests.rendering import one, with_kubernetes
from tests.proxy.conftest import config_of, plan_of
from tests.repository_rules import ROOT

RULES = with_kubernetes(monitoring="{rules: true}")
NAMES = [alert.name for alert in alerts(Slo())]
DURATION = re.compile(r"\d+[smhd]")
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: apt-get install prometheus")


def rules(text: str = RULES) -> list[dict[str, Any]]:
    """The rendered rules."""
    [group] = one(text, "PrometheusRule")["spec"]["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def docs_page(name: str) -> str:
    """A page of the documentation."""
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def documented() -> dict[str, set[str]]:
    """Metric -> labels, as docs/metrics.md has them (held to the exposition by tests/proxy/telemetry)."""
    rows = re.findall(r"^\| `(\w+)` \| \w+ \|([^|]*)\|", docs_page("metrics"), re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", labels)) | {"le"} for name, labels in rows}


def metric_of(name: str) -> str:
    """The metric of a series' name."""
    return re.sub(r"_(bucket|sum|count)$", "", name)


# -- without promtool ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_a_rule_reads_metrics_and_labels_that_exist(rule: dict[str, Any]) -> None:
    """A renamed metric or label would leave an alert that never fires."""
    known, expression = documented(), rule["expr"]
    read = re.findall(r"\b(aiaas_\w+)\{([^}]*)\}", expression)
    assert len(read) == len(re.findall(r"\baiaas_\w+", expression)), "a series without a selector"
    for name, selector in read:
        labels = set(re.findall(r'(\w+)=~?"', selector))
        assert labels - {"namespace", "pod"} <= known[metric_of(name)], name
        assert {"namespace", "pod"} <= labels, name
    by = {label for labels in re.findall(r"by \(([^)]*)\)", expression) for label in labels.split(", ")}
    assert by - {"pod"} <= {label for name, _ in read for label in known[metric_of(name)]}
    used = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    assert used <= by, "a label that the expression drops"


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_a_rule_has_the_form_that_prometheus_takes(rule: dict[str, Any]) -> None:
    """Durations, brackets, severities, and only functions that there are."""
    expression = re.sub(r'"[^"]*"', "", rule["expr"])
    assert DURATION.fullmatch(rule["for"])
    assert rule["labels"].pop("severity") in ("critical", "warning")
    assert rule["labels"] == {"namespace": "system", "gateway": "api-router"}, "which gateway it is about"
    for opening, closing in ("()", "{}", "[]"):
        assert expression.count(opening) == expression.count(closing)
    assert all(DURATION.fullmatch(window) for window in re.findall(r"\[([^]]*)\]", expression))
    functions = {"absent", "count", "histogram_quantile", "increase", "max", "min", "rate", "sum", "time"}
    assert set(re.findall(r"\b([a-z_]+)\(", expression)) <= functions


def test_every_alert_has_a_section_that_says_what_to_do() -> None:
    """In the same order, with symptom, log event, cause and fix; and `runbook_url` leads there."""
    sections = re.split(r"^## ", docs_page("alerts"), flags=re.MULTILINE)[1:]
    assert [section.splitlines()[0] for section in sections] == NAMES
    for section in sections:
        assert re.findall(r"^- \*\*([^*]+)\*\*", section, re.MULTILINE) == ["Symptom", "Log", "Cause", "Fix"]
    words = {word for name in ("logs", "errors") for word in re.findall(r"`(\w+)`", docs_page(name))}
    for section in sections:
        log = section.split("- **Log**")[1].split("- **Cause**")[0]
        assert set(re.findall(r"`([a-z]+_[a-z_]+)`", log)) <= words, section[:40]
    assert [rule["annotations"]["runbook_url"] for rule in rules()] == [f"docs/alerts.md#{n.lower()}" for n in NAMES]


def test_the_page_on_alerts_may_be_elsewhere() -> None:
    """Each team has its own wiki."""
    found = rules(RULES + "monitoring: {runbook_url: 'https://wiki.example/aiaas'}\n")
    assert found[0]["annotations"]["runbook_url"] == f"https://wiki.example/aiaas#{NAMES[0].lower()}"


def test_the_objectives_are_those_of_the_config() -> None:
    """Budget times rate, and the bound of the histogram as it is exposed."""
    slo = "monitoring: {slo: {availability: 99.9, ttft: 500ms, ttft_share: 99}}\n"
    by_name = {rule["alert"]: rule["expr"] for rule in rules(RULES + slo)}
    assert "> 0.0144 " in by_name["AiaasAvailabilityBurnsFast"]
    assert "> 0.001 " in by_name["AiaasAvailabilityBurnsSlowly"]
    assert 'le="0.5"' in by_name["AiaasFirstTokenBurnsFast"]
    assert "> 0.144 " in by_name["AiaasFirstTokenBurnsFast"]
    assert TTFT_BOUNDS == TTFT_BUCKETS


def test_counters_of_rules_exist_before_anything_happens() -> None:
    """`increase()` does not see a counter that begins at 1."""
    metrics, engines = Metrics(), Engines()
    metrics.follow(plan_of(config_of(["http://a"], {}, {})))
    engines.add("b", type("Handle", (), {"starts": 1, "deaths": 0})())
    metrics.register(engines)
    text = (metrics.expose() + exposition(of_supervisor(1, 0, 0))).decode()
    there = {line.partition("{")[0].partition(" ")[0] for line in text.splitlines()}
    read = {name for rule in rules() for name in re.findall(r"(?:rate|increase)\((\w+)\{", rule["expr"])}
    assert len(read) >= 6
    assert read <= there


def test_the_selector_takes_our_pods_and_no_others() -> None:
    """Another gateway in the namespace, also one whose name begins with ours."""
    [selector] = {re.search(r'namespace="(\w+)",pod=~"([^"]+)"', rule["expr"]) for rule in rules()[:1]}
    assert selector is not None
    for labels in (OURS, SECOND, *FOREIGN):
        matched = labels["namespace"] == selector[1] and re.fullmatch(selector[2], labels["pod"]) is not None
        assert matched == (labels not in FOREIGN), labels


def test_every_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    """A new alert comes with its cases."""
    for name in NAMES:
        cases = [case for case in CASES if case.alert == name]
        assert any(case.fires for case in cases), name
        assert any(case.quiet for case in cases), name
    assert {case.alert for case in CASES} == set(NAMES)
    live = (ROOT / "tests" / "observe" / "test_alerts_fire.py").read_text(encoding="utf-8")
    assert set(re.findall(r'"(Aiaas\w+)"', live)) == set(NAMES), "its fault is made before a real Prometheus"


# -- with promtool -------------------------------------------------------------------------------------------------


def promtool(*arguments: str, folder: Path) -> str:
    """Run promtool in a folder; it must succeed."""
    command = ["promtool", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_promtool_accepts_the_rules(tmp_path: Path) -> None:
    """As Prometheus would read them."""
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(one(RULES, "PrometheusRule")["spec"], sort_keys=False))
    assert f"{len(NAMES)} rules found" in promtool("check", "rules", "rules.yaml", folder=tmp_path)


@needs_promtool
def test_promtool_sees_each_alert_fire_and_stop(tmp_path: Path) -> None:
    """With the series of its fault; and not with the same series of other gateways."""
    for rule in rules():
        name = rule["alert"]
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"groups": [{"name": "g", "rules": [rule]}]}))
        (tmp_path / f"{name}.test").write_text(yaml.safe_dump(unit_tests(name), sort_keys=False))
    said = promtool("test", "rules", *(f"{name}.test" for name in NAMES), folder=tmp_path)
    assert said.count("SUCCESS") == len(NAMES)
