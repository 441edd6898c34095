"""The Caddyfile in front of the gateway."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from aiaas.manifests.caddy import CADDY_KEEP_ALIVE, caddyfile
from aiaas.proxy.client.connection import KEEPALIVE_TIMEOUT
from tests.manifests.composing import BACKEND, compose_plan


def lines(text: str, domain: str = "api.example.com") -> list[str]:
    """The lines of the Caddyfile, without indentation."""
    return [line.strip() for line in caddyfile(compose_plan(text, domain=domain)).splitlines()]


def test_caddy_waits_longer_than_the_gateway_and_takes_more() -> None:
    """Clients get the gateway's own errors: its 504 after the longest silence, its 413."""
    made = lines(BACKEND + "server: {port: 8081, header_timeout: 7s, max_body_size: 50MiB, max_upload_size: 1MiB}\n")
    plan = compose_plan(BACKEND, domain="a.b")
    assert "api.example.com {" in made
    assert "reverse_proxy gateway:8081 {" in made
    assert "read_header 7s" in made
    assert f"max_size {2 * 50 * 1024**2}" in made
    assert f"response_header_timeout {plan.ingress_timeout}s" in made


def test_caddy_drains_as_long_as_the_gateway() -> None:
    """`docker compose down` stops Caddy first, with the clients' requests in it."""
    assert "grace_period 90s" in lines(BACKEND + "server: {drain_timeout: 90s}\n")


def test_connections_to_the_gateway_end_before_it_ends_them() -> None:
    """A request on a connection that the gateway is closing would fail."""
    assert CADDY_KEEP_ALIVE < KEEPALIVE_TIMEOUT
    assert f"keepalive {CADDY_KEEP_ALIVE}s" in lines(BACKEND)


def test_clients_that_leave_are_noticed() -> None:
    """With `flush_interval -1` Caddy 2.6 lets an abandoned request run."""
    assert not [line for line in lines(BACKEND) if line.startswith("flush_interval")]


@pytest.mark.skipif(shutil.which("caddy") is None, reason="no caddy on PATH: nox -s compose")
def test_caddy_accepts_it(tmp_path: Path) -> None:
    """Its own parser, which knows every option."""
    (tmp_path / "Caddyfile").write_text("# a comment\n" + "\n".join(lines(BACKEND)))
    command = ["caddy", "adapt", "--adapter", "caddyfile", "--config", "Caddyfile"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
