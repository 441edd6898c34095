"""Objects for the Prometheus operator and Grafana: metrics Service, ServiceMonitor, alerts and a dashboard."""

from __future__ import annotations

import json
from typing import Final

from aiaas.manifests.objects import Object, head, selector_of
from aiaas.plan.kubernetes import KubernetesPlan

COMPONENT: Final = "app.kubernetes.io/component"
METRICS_PORT_NAME: Final = "metrics"


def metrics_service(plan: KubernetesPlan) -> Object:
    """A separate Service for scraping, so that clients cannot reach the metrics port. Prometheus also scrapes draining
    pods."""
    port = plan.gateway.monitoring.metrics_port
    made = head(plan, "v1", "Service", plan.named(METRICS_PORT_NAME))
    made["metadata"]["labels"][COMPONENT] = METRICS_PORT_NAME
    spec = {
        "type": "ClusterIP",
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "ports": [{"name": METRICS_PORT_NAME, "protocol": "TCP", "port": port, "targetPort": port}],
        "selector": selector_of(plan.app),
    }
    return made | {"spec": spec}


def service_monitor(plan: KubernetesPlan) -> Object:
    """The ServiceMonitor, which makes Prometheus scrape the metrics Service."""
    spec = {
        "selector": {"matchLabels": selector_of(plan.app) | {COMPONENT: METRICS_PORT_NAME}},
        "endpoints": [{"port": METRICS_PORT_NAME, "path": "/metrics", "interval": "30s"}],
    }
    return head(plan, "monitoring.coreos.com/v1", "ServiceMonitor", plan.app) | {"spec": spec}


def rules(plan: KubernetesPlan) -> Object:
    """The alerts. `{ns}` in an expression stands for the selector of our namespace."""
    ns = f'namespace="{plan.settings.namespace}"'
    alerts = [
        {
            "alert": alert,
            "expr": expression.replace("{ns}", ns),
            "for": lasting,
            "labels": {"severity": severity},
            "annotations": {"summary": summary},
        }
        for alert, expression, lasting, severity, summary in ALERTS
    ]
    spec = {"groups": [{"name": plan.app, "rules": alerts}]}
    return head(plan, "monitoring.coreos.com/v1", "PrometheusRule", plan.app) | {"spec": spec}


# (name, expression, duration, severity, summary)
ALERTS: Final = (
    (
        "AiaasDown",
        "absent(aiaas_build_info{{ns}})",
        "5m",
        "critical",
        "Prometheus has metrics of no gateway: all are down, or their metrics ports cannot be reached.",
    ),
    (
        "AiaasBackendDown",
        "max by (backend) (aiaas_endpoint_up{{ns}}) == 0",
        "2m",
        "critical",
        "All addresses of {{ $labels.backend }} are unhealthy: its models answer 503.",
    ),
    (
        "AiaasEndpointDown",
        "max by (backend, endpoint) (aiaas_endpoint_up{{ns}}) == 0",
        "15m",
        "warning",
        "{{ $labels.endpoint }} of {{ $labels.backend }} is unhealthy and gets no requests.",
    ),
    (
        "AiaasErrors",
        'sum(rate(aiaas_responses_total{{ns},code=~"5.."}[5m])) / sum(rate(aiaas_responses_total{{ns}}[5m])) > 0.01',
        "10m",
        "warning",
        "More than 1 % of the answers are errors of the gateway or its backends.",
    ),
    (
        "AiaasSlowFirstToken",
        "histogram_quantile(0.95, sum by (model, le) (rate(aiaas_time_to_first_token_seconds_bucket{{ns}}[10m]))) > 5",
        "15m",
        "warning",
        "One stream of {{ $labels.model }} in twenty waits more than 5 s for its first token.",
    ),
    (
        "AiaasQueueing",
        "sum(aiaas_requests_queued{{ns}}) > 0",
        "15m",
        "warning",
        "Requests have been waiting for an endpoint for 15 minutes: add replicas of vLLM, or lower the limits.",
    ),
    (
        "AiaasReloadFails",
        'sum by (what) (increase(aiaas_reloads_total{{ns},result="failure"}[15m])) > 0',
        "0m",
        "warning",
        "A changed {{ $labels.what }} file is invalid; the gateway still uses the last valid one.",
    ),
    (
        "AiaasConfigsDiffer",
        "count(count by (digest) (aiaas_config_info{{ns}})) > 1",
        "30m",
        "warning",
        "The gateways run different configs: a rollout is stuck.",
    ),
)


def dashboard(plan: KubernetesPlan) -> Object:
    """A Grafana dashboard in a ConfigMap, found by the usual sidecar's label."""
    made = head(plan, "v1", "ConfigMap", plan.named("dashboard"))
    made["metadata"]["labels"]["grafana_dashboard"] = "1"
    ns = f'namespace="{plan.settings.namespace}"'
    model: Object = {
        "uid": f"aiaas-{plan.settings.name}"[:40],
        "title": f"aiaas: {plan.settings.namespace}/{plan.app}",
        "schemaVersion": 39,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]},
        "panels": [_panel(index, ns, *panel) for index, panel in enumerate(PANELS)],
    }
    return made | {"data": {"aiaas.json": json.dumps(model, indent=2) + "\n"}}


# (title, unit, expression, legend)
PANELS: Final = (
    ("Requests by model", "reqps", "sum by (model) (rate(inference_requests_total{{ns}}[5m]))", "{{model}}"),
    (
        "Answers by code",
        "reqps",
        "sum by (code, reason) (rate(aiaas_responses_total{{ns}}[5m]))",
        "{{code}} {{reason}}",
    ),
    (
        "Latency, 95th percentile",
        "s",
        "histogram_quantile(0.95, sum by (model, le) (rate(inference_latency_seconds_bucket{{ns}}[5m])))",
        "{{model}}",
    ),
    (
        "Time to first token, 95th percentile",
        "s",
        "histogram_quantile(0.95, sum by (model, le) (rate(aiaas_time_to_first_token_seconds_bucket{{ns}}[5m])))",
        "{{model}}",
    ),
    ("Tokens", "short", "sum by (model, type) (rate(tokens_processed_total{{ns}}[5m]))", "{{model}} {{type}}"),
    ("In flight", "short", "sum(aiaas_requests_in_flight{{ns}})", "in flight"),
    ("Queued", "short", "sum(aiaas_requests_queued{{ns}})", "queued"),
    ("Refused by limit", "reqps", "sum by (limit) (rate(aiaas_refused_total{{ns}}[5m]))", "{{limit}}"),
    ("Requests by key", "reqps", "topk(10, sum by (key_id) (rate(aiaas_key_requests_total{{ns}}[5m])))", "{{key_id}}"),
    ("Endpoints that get requests", "short", "min by (backend, endpoint) (aiaas_endpoint_up{{ns}})", "{{endpoint}}"),
    ("Clients that left", "reqps", "sum by (phase) (rate(aiaas_aborts_total{{ns}}[5m]))", "{{phase}}"),
    ("Retries", "reqps", "sum by (reason) (rate(aiaas_retries_total{{ns}}[5m]))", "{{reason}}"),
)


def _panel(index: int, ns: str, title: str, unit: str, expression: str, legend: str) -> Object:
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "id": index + 1,
        "type": "timeseries",
        "title": title,
        "datasource": source,
        "gridPos": {"h": 8, "w": 12, "x": 12 * (index % 2), "y": 8 * (index // 2)},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": "A", "datasource": source, "expr": expression.replace("{ns}", ns), "legendFormat": legend}
        ],
    }
