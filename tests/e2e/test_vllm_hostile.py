"""A body at which vLLM hangs up costs only its sender: with 8 such clients no other one's request fails.

Against the simulator and a real vLLM, whose connection closes behind an unhandled exception's 500 (docs/vllm.md).
"""

from __future__ import annotations

import http.client
import json
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from tests.e2e.conftest import StartGateway
from tests.e2e.processes import ALIAS, Engine, Gateway

ATTACKERS = 8
INNOCENTS = 8
REQUESTS = 20  # of each innocent client
HELLO = {"role": "user", "content": "x"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "[" * 5000}}
KILLER = {"model": ALIAS, "messages": [{"role": "assistant", "content": None, "tool_calls": [CALL]}, HELLO]}
INNOCENT = {"model": ALIAS, "messages": [HELLO], "max_tokens": 2}


def send(gateway: Gateway, body: object, more: Callable[[int], bool]) -> Counter[int]:
    """The statuses of requests over one connection, for as long as `more` of their number says so."""
    parts = urlsplit(gateway.url)
    assert parts.hostname is not None
    client = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    headers = {"Authorization": f"Bearer {gateway.key}", "Content-Type": "application/json"}
    statuses: Counter[int] = Counter()
    while more(statuses.total()):
        client.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = client.getresponse()
        answer.read()
        statuses[answer.status] += 1
    client.close()
    return statuses


def test_killer_body_breaks_no_other_clients_request(engine: Engine, start_gateway: StartGateway) -> None:
    """Every innocent request is answered, and one failure would have taken the only endpoint down."""
    over = threading.Event()
    backend = {"url": engine.url, "health": {"unhealthy_after": 1, "timeout": "10s"}}
    with start_gateway(backend) as gateway, ThreadPoolExecutor(ATTACKERS + INNOCENTS) as pool:
        attacks = [pool.submit(send, gateway, KILLER, lambda _: not over.is_set()) for _ in range(ATTACKERS)]
        try:
            asked = [pool.submit(send, gateway, INNOCENT, lambda sent: sent < REQUESTS) for _ in range(INNOCENTS)]
            innocents = sum((future.result() for future in asked), Counter[int]())
        finally:
            over.set()
        attackers = sum((future.result() for future in attacks), Counter[int]())
        assert innocents == {200: INNOCENTS * REQUESTS}
        assert set(attackers) == {500}
        assert gateway.metric("aiaas_endpoint_up") == 1
        assert gateway.metric("aiaas_retries_total") == 0
        assert '"endpoint_down"' not in (gateway.folder / "stdout.log").read_text()
