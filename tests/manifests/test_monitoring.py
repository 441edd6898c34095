"""Objects for the Prometheus operator and Grafana."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from aiaas.proxy.telemetry.metrics import Metrics
from aiaas.proxy.telemetry.record import Record
from tests.manifests.rendering import MINIMAL, objects_of, plan_or_problems, with_kubernetes

ALL = with_kubernetes(monitoring="{service_monitor: true, rules: true, dashboard: true}")
SUFFIX = re.compile(r"_(bucket|sum|count|total|info)$")


@pytest.fixture(scope="module")
def exposed() -> set[str]:
    """The names of the metrics, without Prometheus' suffixes."""
    metrics = Metrics()
    metrics.finished(Record("id", "/v1/x", 0.0, "a", key_id="k"), 1.0)
    names = re.findall(r"^# TYPE (\S+)", metrics.expose().decode(), re.MULTILINE)
    return {SUFFIX.sub("", name) for name in names}


def expressions() -> list[str]:
    """Every expression of the rules and of the dashboard."""
    made = objects_of(ALL)
    [group] = made["PrometheusRule/api-router-service"]["spec"]["groups"]
    panels = dashboard()["panels"]
    return [rule["expr"] for rule in group["rules"]] + [t["expr"] for panel in panels for t in panel["targets"]]


def dashboard() -> Any:
    """The dashboard as Grafana reads it."""
    return json.loads(objects_of(ALL)["ConfigMap/api-router-dashboard"]["data"]["aiaas.json"])


async def test_alerts_and_panels_ask_for_metrics_that_there_are(exposed: set[str]) -> None:
    """A renamed metric would leave an alert that never fires."""
    for expression in expressions():
        names = set(re.findall(r"\b(?:aiaas|inference|tokens)_\w+", expression))
        assert names
        assert {SUFFIX.sub("", name) for name in names} <= exposed, expression


def test_every_expression_is_of_our_namespace_and_closed() -> None:
    """Two deployments in one Prometheus do not mix; brackets match."""
    for expression in expressions():
        selectors = re.findall(r"\b(?:aiaas|inference|tokens)_\w+(\{[^}]*\})?", expression)
        assert all('namespace="system"' in selector for selector in selectors), expression
        for opening, closing in ("()", "{}", "[]"):
            assert expression.count(opening) == expression.count(closing), expression


def test_metrics_have_a_service_of_their_own() -> None:
    """The clients' port does not serve them."""
    made = objects_of(ALL)
    assert [port["port"] for port in made["Service/api-router-service"]["spec"]["ports"]] == [8080]
    metrics = made["Service/api-router-metrics"]["spec"]
    assert (metrics["clusterIP"], metrics["ports"][0]["port"]) == ("None", 9090)


def test_operators_objects_are_made_where_asked_only() -> None:
    """A cluster without their CRDs refuses them."""
    kinds = {each["kind"] for each in objects_of(MINIMAL).values()}
    assert not kinds & {"ServiceMonitor", "PrometheusRule", "HTTPRoute"}
    assert "ConfigMap/api-router-dashboard" not in objects_of(MINIMAL)


def test_a_dashboard_has_no_two_panels_in_one_place() -> None:
    """Ids and places are unique, and Grafana finds it by its label."""
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
    assert objects_of(ALL)["ConfigMap/api-router-dashboard"]["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_without_metrics_there_is_nothing_to_monitor() -> None:
    """monitoring.prometheus: false and a ServiceMonitor contradict each other."""
    plan, problems = plan_or_problems(ALL + "monitoring: {prometheus: false}\n")
    assert plan is None
    assert "kubernetes.monitoring: needs monitoring.prometheus" in str(problems[0])
