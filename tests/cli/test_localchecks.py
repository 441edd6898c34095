"""aiaas.cli.localchecks: who listens on our ports. All checks as a command: tests/cli/test_doctor.py."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from aiaas.cli.localchecks import PortHolder, address_of, check_ports, holders_of
from aiaas.plan.model import Plan
from aiaas.plan.read import read
from tests.ports import free_port

FORWARDER = "socat TCP-LISTEN:9091"


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A gateway with free ports."""
    config = tmp_path / "aiaas.yaml"
    config.write_text("server: {host: 127.0.0.1}\nbackends:\n  a: {url: 'http://x', models: [m]}\n")
    found = read(config, {}).plan
    assert found is not None
    monitoring = replace(found.monitoring, prometheus=False, admin_port=free_port())
    return replace(found, server=replace(found.server, port=free_port()), monitoring=monitoring)


@pytest.mark.parametrize(
    ("addresses", "warns"),
    [
        (("10.0.0.5",), True),
        (("127.0.0.1", "10.0.0.5"), True),
        (("::",), True),
        (("127.0.0.1",), False),
        (("127.0.0.2", "::1"), False),
        ((), False),
    ],
    ids=["network", "both", "all of IPv6", "loopback", "other loopback", "nowhere"],
)
def test_admin_port_at_an_address_of_the_network_is_a_warning(
    plan: Plan, addresses: tuple[str, ...], warns: bool
) -> None:
    """A program that passes it on, beside a gateway that has 127.0.0.1."""
    port = plan.monitoring.admin_port
    found = list(check_ports(plan, {port: (PortHolder(7, FORWARDER, addresses),)}))
    outside = [each for each in found if "other machines reach it" in each.seen]
    assert [each.state for each in outside] == (["warn"] if warns else [])
    assert all(f"{port} (monitoring.admin_port): process 7, {FORWARDER} listens on" in each.seen for each in outside)
    off = replace(plan, monitoring=replace(plan.monitoring, admin_port=0))
    assert all(each.state == "ok" for each in check_ports(off, {0: (PortHolder(7, FORWARDER, addresses),)}))


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1"])
def test_holder_of_a_port_is_named_with_its_address(host: str) -> None:
    """This process, on IPv4 or IPv6."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        found = {holder.pid: holder.addresses for holder in holders_of(listener.getsockname()[1])}
    assert found[os.getpid()] == (host,)


@pytest.mark.skipif(sys.byteorder != "little", reason="the digits are those of a little-endian machine")
@pytest.mark.parametrize(
    ("digits", "address"),
    [
        ("0100007F", "127.0.0.1"),
        ("00000000", "0.0.0.0"),
        ("00000000000000000000000001000000", "::1"),
        ("0000000000000000FFFF00000100007F", "127.0.0.1"),
    ],
    ids=["IPv4", "all", "IPv6", "IPv4-mapped"],
)
def test_address_is_read_from_the_systems_digits(digits: str, address: str) -> None:
    """As /proc/net/tcp and tcp6 have them."""
    assert address_of(digits) == address
