"""Asking an admin endpoint: what it answers, and why it does not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aiaas.cli.adminlook import ask_admin, look_at
from aiaas.clients.check import connected
from aiaas.errors import EnvironmentFault
from aiaas.httpclient.target import parse_target
from aiaas.proxy.admin.model import Status
from tests.fakes.admin import FakeAdmin


@pytest.fixture
def fake() -> Iterator[FakeAdmin]:
    """An admin endpoint of a busy gateway."""
    with FakeAdmin() as running:
        yield running


async def test_look_has_status_and_live_requests(fake: FakeAdmin) -> None:
    """All requests under way, since keys are summed over them."""
    async with connected(parse_target(fake.url)) as client:
        look = await look_at(client)
    assert look.error == ""
    assert look.status is not None
    assert look.status.requests.in_flight == len(look.live) == 500


async def test_port_of_another_program_is_named(fake: FakeAdmin) -> None:
    """The metrics port, an older version, another program: the error says where to look."""
    async with connected(parse_target(fake.url)) as client:
        with pytest.raises(EnvironmentFault, match=r"answers 404: .*unknown path"):
            await ask_admin(client, "/nowhere", Status)
        with pytest.raises(EnvironmentFault, match=r"this version.*monitoring\.admin_port"):
            await ask_admin(client, "/", Status)
        fake.status = {"version": "9"}
        assert "monitoring.admin_port" in (await look_at(client)).error


async def test_gateway_that_is_gone_is_an_error_of_the_look(fake: FakeAdmin) -> None:
    """The others are shown all the same."""
    fake.stop()
    async with connected(parse_target(fake.url)) as client:
        look = await look_at(client)
    assert look.status is None
    assert look.error.startswith("connection refused; ")
