"""`aiaas usage` beside a running gateway, and after a SIGKILL."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.conftest import StartGateway
from tests.e2e.processes import ALIAS, Gateway, eventually
from tests.fakes.redis import RedisServer

BODY = {"model": ALIAS, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "ignore_eos": True}


def ask(gateway: Gateway) -> dict[str, Any]:
    """Send one request and return its usage."""
    headers = {"Authorization": f"Bearer {gateway.key}", "Content-Type": "application/json"}
    request = urllib.request.Request(gateway.url + "/v1/chat/completions", json.dumps(BODY).encode(), headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        usage: dict[str, Any] = json.load(answer)["usage"]
        return usage


def usage(folder: Path) -> list[dict[str, Any]]:
    """The command's output."""
    command = [sys.executable, "-m", "aiaas", "usage", "-c", str(folder / "aiaas.yaml"), "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def whole(folder: Path) -> dict[str, Any]:
    """The sums of the only key and model: one row, or two where midnight has passed."""
    first, *others = usage(folder)
    for row in others:
        assert (row["key"], row["model"]) == (first["key"], first["model"])
        for name in ("requests", "input_tokens", "output_tokens"):
            first[name] += row[name]
    return first


def test_a_killed_gateway_has_lost_a_second_at_most(start_gateway: StartGateway, simulator_url: str) -> None:
    """The command reads while it runs; requests that ended more than a second before SIGKILL are there afterwards."""
    with start_gateway({"url": simulator_url}, sections={"monitoring": {"usage_file": "usage.db"}}) as gateway:
        told = [ask(gateway) for _ in range(5)]
        eventually(lambda: usage(gateway.folder), 10)
        told += [ask(gateway) for _ in range(5)]
        time.sleep(2)  # a second, and more for a machine that has other work
        psutil.Process(gateway.pid).kill()
        gateway.process.wait(60)
        row = whole(gateway.folder)
    assert (row["key"], row["model"], row["requests"]) == ("e2e", ALIAS, 10)
    assert row["input_tokens"] == sum(each["prompt_tokens"] for each in told)
    assert row["output_tokens"] == sum(each["completion_tokens"] for each in told) == 30


@pytest.mark.parametrize("kept", ["in a file", "in Redis"])
def test_two_workers_count_together(
    start_gateway: StartGateway, simulator_url: str, redis_server: RedisServer, kept: str
) -> None:
    """And a clean end writes the rest at once."""
    sections: dict[str, Any] = {"server": {"workers": 2}}
    if kept == "in Redis":
        sections["rate_limit"] = {"store": redis_server.url}
    else:
        sections["monitoring"] = {"usage_file": "usage.db"}
    with start_gateway({"url": simulator_url}, sections=sections) as gateway:
        for _ in range(20):
            ask(gateway)
        assert gateway.stop() == 0
        row = whole(gateway.folder)
    assert (row["key"], row["requests"], row["output_tokens"]) == ("e2e", 20, 60)
