"""`aiaas smoke` on `aiaas serve` before the simulator and a real vLLM: every check that can be made passes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.e2e.processes import Engine, Gateway, running_gateway

TLS_CHECKS = {"certificate", "redirect"}
TOO_QUICK = {"stream-pace"}  # where an engine makes 64 tokens in less than 0.1 s


@pytest.fixture
def limited(engine: Engine, tmp_path: Path) -> Iterator[Gateway]:
    """120 a minute and 12 at once: the checks before the last use the bucket up, and wait for it."""
    limit = {"requests_per_minute": 120, "burst": 12}
    with running_gateway(tmp_path, {"url": engine.url}, sections={"rate_limit": limit}) as gateway:
        yield gateway


def smoke(*arguments: str, key: str) -> subprocess.CompletedProcess[str]:
    """One command."""
    return subprocess.run(
        [sys.executable, "-m", "aiaas", "smoke", *arguments],
        env=os.environ | {"AIAAS_API_KEY": key}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """The checks by name."""
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


@pytest.mark.timeout(600)
def test_every_check_passes(engine: Engine, limited: Gateway, tmp_path: Path) -> None:
    """With the config, the metrics and the engine at hand; without TLS."""
    done = smoke(
        "-c", str(limited.folder / "aiaas.yaml"), "--engine-metrics", engine.url, "--direct", engine.url,
        "--junit", str(tmp_path / "smoke.xml"), "-o", "json", key=limited.key,
    )  # fmt: skip
    checks = outcomes(done)
    assert {name: check for name, check in checks.items() if check["outcome"] == "failed"} == {}
    assert done.returncode == 0
    skipped = {name for name, check in checks.items() if check["outcome"] == "skipped"}
    assert skipped - TOO_QUICK == TLS_CHECKS
    suite = ElementTree.parse(tmp_path / "smoke.xml").getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == (
        str(len(checks)),
        "0",
        str(len(skipped)),
    )
    assert limited.key not in done.stdout + done.stderr + (tmp_path / "smoke.xml").read_text()


@pytest.mark.timeout(600)
def test_a_key_and_a_url_are_enough(limited: Gateway) -> None:
    """Checks that need more access are skipped, the rest passes."""
    done = smoke(limited.url, "-o", "json", key=limited.key)
    checks = outcomes(done)
    assert done.returncode == 0, done.stdout
    skipped = {name for name, check in checks.items() if check["outcome"] == "skipped"}
    assert skipped - TOO_QUICK == TLS_CHECKS | {"body-too-large", "metrics", "abort", "abort-early", "direct"}
