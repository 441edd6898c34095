"""`aiaas loadtest` on `aiaas serve` before the simulator and a real vLLM: its report equals vLLM's counts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aiaas.loadtest.files import read_run
from tests.e2e.processes import Engine, Gateway, eventually

TOKENS = 20


def loadtest(gateway: Gateway, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One run on the gateway's URL, with its key."""
    return aiaas("loadtest", gateway.url, "--prompt-tokens", "20", "--output-tokens", str(TOKENS), *arguments,
                 key=gateway.key)  # fmt: skip


def aiaas(*arguments: str, key: str = "") -> subprocess.CompletedProcess[str]:
    """One command."""
    return subprocess.run(
        [sys.executable, "-m", "aiaas", *arguments],
        env=os.environ | {"AIAAS_API_KEY": key}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.timeout(150)
def test_every_token_is_counted_and_the_gateways_part_told(engine: Engine, gateway: Gateway, tmp_path: Path) -> None:
    """Streams, with and without the gateway in turns; the samples make a page."""
    samples = tmp_path / "run.jsonl"
    done = loadtest(gateway, "--users", "4", "--requests", "48", "--direct", engine.url, "--out", str(samples))
    assert done.returncode == 0, done.stdout + done.stderr
    read = read_run(samples).samples
    assert len(read) == 48
    assert {sample.via for sample in read} == {"gateway", "direct"}
    assert [sample for sample in read if not sample.ok or sample.output_tokens != TOKENS] == []
    assert "Gateway overhead (median of 24 pairs" in done.stdout
    assert gateway.key not in done.stdout + done.stderr + samples.read_text()
    page = tmp_path / "run.html"
    assert aiaas("report", str(samples), "--html", str(page)).returncode == 0
    assert "TTFT" in page.read_text()


@pytest.mark.timeout(150)
def test_clients_that_leave_free_the_engine(engine: Engine, gateway: Gateway) -> None:
    """Clients that leave on purpose are not errors, and none of their requests goes on running."""
    done = loadtest(gateway, "--users", "4", "--requests", "16", "--abort-share", "50%", "-o", "json")
    assert done.returncode == 0, done.stdout + done.stderr
    eventually(lambda: engine.metric("vllm:num_requests_running") == 0, 2)
    eventually(lambda: gateway.metric("aiaas_requests_in_flight") == 0, 2)
