"""Objects for the Prometheus operator and Grafana."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.manifests.rendering import MINIMAL, objects_of, plan_or_problems, with_kubernetes
from tests.repository_rules import ROOT

ALL = with_kubernetes(monitoring="{service_monitor: true, rules: true, dashboard: true}")
# Grafana's names of units (its `valueFormats`).
UNITS_FOLDER = {"reqps", "s", "short", "percentunit", "bytes"}


METRIC = re.compile(r"\b(?:aiaas|inference|tokens|process)_\w+")


def expressions() -> list[str]:
    """Every expression of the dashboard."""
    return [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]


def dashboard() -> Any:
    """The dashboard as Grafana reads it."""
    return json.loads(objects_of(ALL)["ConfigMap/api-router-dashboard"]["data"]["aiaas.json"])


def test_panels_ask_for_metrics_that_there_are() -> None:
    """A renamed metric would leave an empty panel. (docs/metrics.md is held to the exposition elsewhere.)"""
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(\w+)` \| \w+ \|", page, re.MULTILINE))
    for expression in expressions():
        names = {re.sub(r"_bucket$", "", name) for name in METRIC.findall(expression)}
        assert names
        assert names <= documented, expression


def test_every_expression_is_of_our_pods_and_closed() -> None:
    """Two deployments in one Prometheus, or in one namespace, do not mix; brackets match."""
    for expression in expressions():
        selectors = re.findall(METRIC.pattern + r"(\{[^}]*\})?", expression)
        assert all('{namespace="system",pod=~"api-router-service-' in selector for selector in selectors), expression
        for opening, closing in ("()", "{}", "[]"):
            assert expression.count(opening) == expression.count(closing), expression


def test_the_dashboard_has_what_grafana_requires() -> None:
    """Its uid has at most 40 characters; every panel its place, its source and a unit, every target a letter."""
    model = dashboard()
    assert 0 < len(model["uid"]) <= 40
    assert isinstance(model["schemaVersion"], int)
    assert [each["type"] for each in model["templating"]["list"]] == ["datasource"]
    for panel in model["panels"]:
        assert (panel["type"], bool(panel["title"])) == ("timeseries", True)
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS_FOLDER
        assert [(target["refId"], bool(target["expr"])) for target in panel["targets"]] == [("A", True)]


def test_labels_of_the_gateway_win_over_those_of_the_target() -> None:
    """The operator labels each target with `endpoint`; ours would become `exported_endpoint`, and no alert on an
    endpoint would fire."""
    [endpoint] = objects_of(ALL)["ServiceMonitor/api-router-service"]["spec"]["endpoints"]
    assert endpoint["honorLabels"] is True


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
