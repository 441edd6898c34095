"""`aiaas status` and `aiaas explain ID`, with a gateway's admin port behind them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import msgspec
import pytest

from aiaas.cli.main import run
from aiaas.proxy.admin.model import Requests, RequestView, Status
from aiaas.proxy.admin.port import AdminPort, Query
from aiaas.proxy.telemetry.log import JsonLog
from tests.cli.test_requeststory import request
from tests.cli.test_statusview import DOWN, gateway
from tests.ports import free_port
from tests.proxy.admin.test_merge import backend


class Told:
    """A source with what a test puts into it."""

    def __init__(self) -> None:
        self.state: Status = gateway()
        self.ended: list[RequestView] = []

    async def status(self) -> bytes:
        return msgspec.json.encode(self.state)

    async def requests(self, query: Query) -> bytes:
        found = [each for each in self.ended if each.id.startswith(query.id or "")]
        return msgspec.json.encode(Requests([], found))

    async def refusals(self, _query: Query) -> bytes:
        return b"{}"


@pytest.fixture
async def told() -> AsyncIterator[tuple[Told, Callable[..., asyncio.Future[int]]]]:
    """A source behind an admin port, and a command line that gets its URL at the end."""
    source, port = Told(), free_port()
    log = JsonLog(lambda _lines: True, lambda: 0.0, "info")

    async def command(*arguments: str) -> int:
        return await asyncio.to_thread(run, [*arguments, f"http://127.0.0.1:{port}"])

    async with AsyncExitStack() as stack:
        await AdminPort(port, source, log, lambda error: pytest.fail(repr(error))).begin(stack)
        yield source, command  # type: ignore[misc]


async def test_status_of_a_healthy_gateway_exits_0(told, capsys: pytest.CaptureFixture[str]) -> None:
    """Its screen goes to stdout."""
    _, command = told
    assert await command("status") == 0
    assert capsys.readouterr().out.endswith("Nothing is down.\n")


async def test_status_with_a_fault_exits_1(told, capsys: pytest.CaptureFixture[str]) -> None:
    """In both forms; the JSON is the gateway's, and the faults as the screen has them."""
    source, command = told
    source.state = gateway(backends=[backend(DOWN)])
    assert await command("status") == 1
    assert "To do:\n- Backend chat has no endpoint that is up" in capsys.readouterr().out
    assert await command("status", "-o", "json") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["backends"][0]["name"], len(found["attention"])) == ("chat", 2)
    source.state = gateway(draining=True)
    assert await command("status") == 0


@pytest.mark.parametrize("command", [["status"], ["explain", "abc123", "--url"]])
def test_gateway_that_does_not_answer_exits_3(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With what to look at, also in Kubernetes."""
    assert run([*command, f"http://127.0.0.1:{free_port()}"]) == 3
    said = capsys.readouterr().err
    assert "connection refused; the admin endpoint is at monitoring.admin_port" in said
    assert "is `aiaas serve` running there?" in said
    assert "kubectl port-forward -n NAMESPACE pod/POD 9091" in said


async def test_server_that_is_not_a_gateway_is_named(told, capsys: pytest.CaptureFixture[str]) -> None:
    """Another program's JSON, or another version's."""
    source, command = told

    async def other() -> bytes:
        return b'{"version": 1}'

    source.status = other
    assert await command("status") == 3
    assert "does not answer as an admin endpoint of this version does" in capsys.readouterr().err


async def test_explain_tells_the_story_of_a_request(told, capsys: pytest.CaptureFixture[str]) -> None:
    """By its id, or by the beginning of it."""
    source, command = told
    source.ended = [request()]
    for shown in ("abc123", "abc1"):
        assert await command("explain", shown, "--url") == 0
        assert capsys.readouterr().out.startswith("request   abc123\n")


async def test_explain_says_where_several_or_none_match(told, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole id is one match, also where others begin with it."""
    source, command = told
    source.ended = [msgspec.structs.replace(request(), id=each) for each in ("abc1", "abc12", "abc13")]
    assert await command("explain", "abc12", "--url") == 0
    assert await command("explain", "abc1", "--url") == 0
    source.ended = source.ended[1:]
    assert await command("explain", "abc1", "--url") == 1
    said = capsys.readouterr().err
    assert "2 requests have an id that begins with abc1:\nabc12  " in said
    assert await command("explain", "fff0", "--url") == 1
    assert "the gateway knows no request fff0; it keeps the last 10,000" in capsys.readouterr().err
