"""aiaas.proxy.incidents: the log lines and counts of what is no request."""

import json

from aiaas.errors import ClientError
from aiaas.proxy.incidents import Incidents
from aiaas.proxy.log import JsonLog
from aiaas.proxy.metrics import Metrics


def test_each_incident_is_one_line_that_says_who_and_why() -> None:
    """A refusal is counted, and its id is what the answer will carry."""
    lines: list[bytes] = []
    metrics = Metrics()
    log = JsonLog(lines.append, lambda: 0.0, "info")
    incidents = Incidents(log, metrics, lambda: "id-1")
    error = ClientError(431, "headers_too_large", "Too large.")
    assert incidents.refused_head("192.0.2.1", error) == b"x-request-id: id-1\r\n"
    incidents.dropped("192.0.2.2", "it took nothing")
    incidents.internal_error(ValueError("x"))
    log.flush()
    refused, dropped, fault = [json.loads(line) for line in b"".join(lines).splitlines()]
    assert (refused["request_id"], refused["client_address"], refused["reason"]) == ("id-1", "192.0.2.1", "Too large.")
    assert (dropped["event"], dropped["client_address"]) == ("connection_dropped", "192.0.2.2")
    assert fault["event"] == "internal_error"
    assert "ValueError" in fault["traceback"]
    assert b'aiaas_responses_total{code="431",reason="headers_too_large"} 1.0' in metrics.expose()
