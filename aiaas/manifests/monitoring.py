"""Objects for the Prometheus operator and Grafana: metrics Service, ServiceMonitor, rules, and a dashboard."""

from __future__ import annotations

import json
from typing import Final

from aiaas.manifests.alerts import alerts
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
        # The operator gives each target a label `endpoint` of its own, which ours would else have to make way for.
        "endpoints": [{"port": METRICS_PORT_NAME, "path": "/metrics", "interval": "30s", "honorLabels": True}],
    }
    return head(plan, "monitoring.coreos.com/v1", "ServiceMonitor", plan.app) | {"spec": spec}


def rules(plan: KubernetesPlan) -> Object:
    """The alerts, each with the address of its section in docs/alerts.md."""
    monitoring = plan.monitoring
    owner = {"namespace": plan.settings.namespace, "gateway": plan.settings.name}  # which of several gateways it is
    made = [
        {
            "alert": alert.name,
            "expr": alert.expression.replace("{ns}", _selector(plan)),
            "for": alert.lasting,
            "labels": {"severity": alert.severity, **owner},
            "annotations": {
                "summary": alert.summary,
                "runbook_url": f"{monitoring.runbook_url}#{alert.name.lower()}",
            },
        }
        for alert in alerts(monitoring.slo)
    ]
    spec = {"groups": [{"name": plan.app, "rules": made}]}
    return head(plan, "monitoring.coreos.com/v1", "PrometheusRule", plan.app) | {"spec": spec}


def _selector(plan: KubernetesPlan) -> str:
    """Our pods, without those of another gateway in the same namespace: `NAME-HASH-RANDOM`, as a Deployment names them
    (a long name loses the last dash)."""
    return f'namespace="{plan.settings.namespace}",pod=~"{plan.app}-[a-z0-9]+(-[a-z0-9]+)?"'


def dashboard(plan: KubernetesPlan) -> Object:
    """A Grafana dashboard in a ConfigMap, found by the usual sidecar's label."""
    made = head(plan, "v1", "ConfigMap", plan.named("dashboard"))
    made["metadata"]["labels"]["grafana_dashboard"] = "1"
    ns = _selector(plan)
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
    (
        "Availability",
        "percentunit",
        'sum(rate(aiaas_availability_requests_total{{ns},result="good"}[1h]))'
        " / sum(rate(aiaas_availability_requests_total{{ns}}[1h]))",
        "answered in whole",
    ),
    ("Answers that broke off", "reqps", "sum by (by) (rate(aiaas_answers_broken_total{{ns}}[5m]))", "by the {{by}}"),
    (
        "Waits for a slot, 95th percentile",
        "s",
        "histogram_quantile(0.95, sum by (class, le) (rate(aiaas_queue_wait_seconds_bucket{{ns}}[5m])))",
        "{{class}}",
    ),
    (
        "Event loop lag, 99th percentile",
        "s",
        "histogram_quantile(0.99, sum by (pod, le) (rate(aiaas_event_loop_lag_seconds_bucket{{ns}}[5m])))",
        "{{pod}}",
    ),
    (
        "Answers of the limit store, 95th percentile",
        "s",
        "histogram_quantile(0.95, sum by (le) (rate(aiaas_limit_store_seconds_bucket{{ns}}[5m])))",
        "seconds",
    ),
    ("CPU", "short", "sum by (pod) (rate(process_cpu_seconds_total{{ns}}[5m]))", "{{pod}}"),
    ("Memory", "bytes", "sum by (pod) (process_resident_memory_bytes{{ns}})", "{{pod}}"),
    ("Connections", "short", "sum by (pod) (aiaas_connections{{ns}})", "{{pod}}"),
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
