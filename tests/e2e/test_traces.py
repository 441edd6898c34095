"""Traces of a real gateway: every worker exports its own, and a clean end loses none."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.e2e.conftest import StartGateway
from tests.e2e.processes import ALIAS, Gateway

BODY = {"model": ALIAS, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
REQUESTS = 20


@pytest.fixture
def collector() -> Iterator[ThreadingHTTPServer]:
    """Takes spans; `bodies` has each export request, decoded."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            self.server.bodies.append(json.loads(body))  # type: ignore[attr-defined]
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.bodies = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def ask(gateway: Gateway) -> None:
    """Send one request on a connection of its own."""
    headers = {"Authorization": f"Bearer {gateway.key}", "Content-Type": "application/json"}
    request = urllib.request.Request(gateway.url + "/v1/chat/completions", json.dumps(BODY).encode(), headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert answer.status == 200


def test_each_worker_exports_its_own_traces(
    start_gateway: StartGateway, simulator_url: str, collector: ThreadingHTTPServer
) -> None:
    """At the end at the latest, though an export is due only every five seconds."""
    traces = {"endpoint": f"http://127.0.0.1:{collector.server_port}", "sample_ratio": 1}
    sections = {"server": {"workers": 2}, "monitoring": {"traces": traces}}
    with start_gateway({"url": simulator_url}, sections=sections) as gateway:
        for _ in range(REQUESTS):
            ask(gateway)
        assert gateway.stop() == 0
        logged = {line["trace_id"] for line in gateway.requests()}
    bodies: list[Any] = collector.bodies  # type: ignore[attr-defined]
    resources = [resource for body in bodies for resource in body["resourceSpans"]]
    spans = [span for resource in resources for scope in resource["scopeSpans"] for span in scope["spans"]]
    assert len([span for span in spans if "parentSpanId" not in span]) == REQUESTS
    assert {span["traceId"] for span in spans} == logged
    assert len(spans) == 2 * REQUESTS
    assert {"key": "service.name", "value": {"stringValue": "aiaas"}} in resources[0]["resource"]["attributes"]
