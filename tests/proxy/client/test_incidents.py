"""aiaas.proxy.client.incidents: the log lines and counts of events without a request."""

import json

from aiaas.errors import ClientError
from aiaas.proxy.client.cors import Cors
from aiaas.proxy.client.incidents import Incidents
from aiaas.proxy.telemetry.log import JsonLog
from aiaas.proxy.telemetry.metrics import Metrics


def test_each_incident_is_one_line_that_says_who_and_why() -> None:
    """A refusal is counted, and its id is the one in the answer."""
    lines: list[bytes] = []
    metrics = Metrics()
    log = JsonLog(lines.append, lambda: 0.0, "info")
    incidents = Incidents(log, metrics, lambda: "id-1")
    error = ClientError(431, "headers_too_large", "Too large.")
    assert incidents.refused_head("192.0.2.1", error, None) == b"x-request-id: id-1\r\n"
    incidents.cors = Cors(("https://a.example",))
    assert incidents.refused_head("192.0.2.1", error, None) == b"x-request-id: id-1\r\nvary: origin\r\n"
    assert b"origin: https://a.example\r\n" in incidents.refused_head("192.0.2.1", error, "https://a.example")
    incidents.dropped("192.0.2.2", "it took nothing")
    incidents.internal_error(ValueError("x"))
    log.flush()
    refused, _, _, dropped, fault = [json.loads(line) for line in b"".join(lines).splitlines()]
    assert (refused["request_id"], refused["client_address"], refused["reason"]) == ("id-1", "192.0.2.1", "Too large.")
    assert (dropped["event"], dropped["client_address"]) == ("connection_dropped", "192.0.2.2")
    assert fault["event"] == "internal_error"
    assert "ValueError" in fault["traceback"]
    assert b'aiaas_responses_total{code="431",reason="headers_too_large"} 3.0' in metrics.expose()


def test_connections_turned_away_are_one_line_a_minute() -> None:
    """The line has the counts since the last one; descriptors have a line of their own. The metrics count each too."""
    lines: list[bytes] = []
    metrics = Metrics()
    now = 0.0
    log = JsonLog(lines.append, lambda: 0.0, "info")
    incidents = Incidents(log, metrics, lambda: "id-1", lambda: now)
    for reason in ("evicted", "evicted", "full", "descriptors", "descriptors", "evicted"):
        incidents.turned_away(reason)
    now = 59.9
    incidents.turned_away("address")
    now = 60.0
    incidents.turned_away("evicted")
    incidents.turned_away("descriptors")
    log.flush()
    told = [json.loads(line) for line in b"".join(lines).splitlines()]
    assert [{name: value for name, value in line.items() if name not in ("time", "level")} for line in told] == [
        {"event": "connections_turned_away", "evicted": 1},
        {"event": "descriptors_exhausted", "times": 1},
        {"event": "connections_turned_away", "evicted": 3, "full": 1, "address": 1},
        {"event": "descriptors_exhausted", "times": 2},
    ]
    assert {line["level"] for line in told} == {"warning"}
    assert b'aiaas_connections_turned_away_total{reason="evicted"} 4.0' in metrics.expose()
