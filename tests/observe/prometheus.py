"""A real Prometheus that scrapes gateways every two seconds, and evaluates the rendered rules every second."""

from __future__ import annotations

import json
import re
import shutil
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isnan
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.processes import running, status_of, wait_for
from tests.manifests.rendering import BACKEND, objects_of
from tests.ports import free_port

INTERVAL = "1s"
SCRAPED = "2s"
# The windows of the rules, and those of the tests: with a sample each two seconds.
SHORTER = {"5m": "10s", "15m": "24s", "30m": "12s", "1h": "15s", "6h": "20s", "3d": "30s"}
HASH = "7d4b9c5f68"  # of a Deployment's pods


class Prometheus:
    """`target` adds or replaces a pod; the rest asks the HTTP API."""

    def __init__(self, url: str, targets: Path) -> None:
        self.url = url
        self._file = targets
        self._targets: dict[str, dict[str, Any]] = {}
        self._write()

    def target(self, gateway: str, pod: str, metrics_url: str | None) -> None:
        """Scrape a pod of a gateway, with the labels that the operator gives it; None: no longer."""
        name = f"{gateway}-service-{HASH}-{pod}"
        if metrics_url is None:
            del self._targets[name]
        else:
            labels = {
                "namespace": "system",
                "pod": name,
                "service": f"{gateway}-metrics",
                "endpoint": "metrics",
                "container": "aiaas",
            }
            self._targets[name] = {"targets": [urllib.parse.urlsplit(metrics_url).netloc], "labels": labels}
        self._write()

    def _write(self) -> None:
        aside = self._file.with_suffix(".new")
        aside.write_text(json.dumps(list(self._targets.values())))
        aside.rename(self._file)

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """The samples of an instant query that are numbers."""
        data = self._get("query", query=expression)
        found = [(each["metric"], float(each["value"][1])) for each in data["result"]]
        return [(labels, value) for labels, value in found if not isnan(value)]

    def value(self, expression: str) -> float:
        """The only sample; -1 if there is none."""
        found = self.query(expression)
        assert len(found) <= 1, (expression, found)
        return found[0][1] if found else -1.0

    def firing(self) -> set[tuple[str, str]]:
        """(gateway, alert) of all alerts that fire."""
        alerts = self._get("alerts")["alerts"]
        return {(a["labels"]["gateway"], a["labels"]["alertname"]) for a in alerts if a["state"] == "firing"}

    def _get(self, what: str, **parameters: str) -> Any:
        url = f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=20) as answer:
            return json.load(answer)["data"]


@contextmanager
def running_prometheus(folder: Path, *gateways: str, monitoring: str = "{}") -> Iterator[Prometheus]:
    """Prometheus with the rules of these gateways, by their `kubernetes.name`, and no target yet."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("no prometheus: apt-get install prometheus")
    groups = []
    honor = True
    for gateway in gateways:
        objects = rendered(gateway, monitoring)
        [group] = objects[f"PrometheusRule/{gateway}-service"]["spec"]["groups"]
        groups.append(group | {"rules": [shorter(rule) for rule in group["rules"]]})
        [endpoint] = objects[f"ServiceMonitor/{gateway}-service"]["spec"]["endpoints"]
        honor = honor and endpoint["honorLabels"]
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    targets = folder / "targets.json"
    job = {
        "job_name": "gateways",
        "honor_labels": honor,
        "file_sd_configs": [{"files": [str(targets)], "refresh_interval": INTERVAL}],
    }
    form = {
        "global": {"scrape_interval": SCRAPED, "scrape_timeout": SCRAPED, "evaluation_interval": INTERVAL},
        "rule_files": [str(folder / "rules.yaml")],
        "scrape_configs": [job],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(form))
    port, log = free_port(), folder / "prometheus.log"
    command = [
        program,
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    prometheus = Prometheus(f"http://127.0.0.1:{port}", targets)
    with running(command, log, grace=10) as process:
        wait_for(lambda: status_of(prometheus.url + "/-/ready") == 200, 60, process, log)
        yield prometheus


def rendered(gateway: str, monitoring: str = "{}") -> Mapping[str, Any]:
    """The manifests of a gateway with rules, ServiceMonitor and dashboard."""
    wanted = "{service_monitor: true, rules: true, dashboard: true}"
    kubernetes = f"{{name: {gateway}, image: 'r/aiaas:1', host: api.example.com, monitoring: {wanted}}}"
    return objects_of(f"{BACKEND}monitoring: {monitoring}\nkubernetes: {kubernetes}\n")


def shorter(rule: Mapping[str, Any]) -> dict[str, Any]:
    """The rule with seconds for minutes. A busy machine misses scrapes, and holds an event loop up for 0.1 s."""
    expression = re.sub(r"\[(\d+[mhd])\]", lambda found: f"[{SHORTER[found[1]]}]", rule["expr"])
    if rule["alert"] == "AiaasLoopLag":
        expression = expression.replace("> 0.1", "> 0.5")
    return {**rule, "expr": expression, "for": "20s" if rule["alert"] == "AiaasDown" else "1s"}


def panels(gateway: str) -> Sequence[Mapping[str, Any]]:
    """The panels of a gateway's dashboard."""
    model = json.loads(rendered(gateway)[f"ConfigMap/{gateway}-dashboard"]["data"]["aiaas.json"])
    found: Sequence[Mapping[str, Any]] = model["panels"]
    return found
