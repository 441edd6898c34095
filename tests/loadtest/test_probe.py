"""The first look: each fault is one clear line."""

from __future__ import annotations

import asyncio
import socket

import pytest

from aiaas.errors import CheckFailed, CommandError, EnvironmentFault
from aiaas.httpclient.client import HttpClient
from aiaas.httpclient.target import parse_target
from aiaas.loadtest.probe import choose_model, models_of
from tests.fakes.vllm import Close, FakeVllm, Send, answer, error_answer, json_answer
from tests.loadtest.conftest import Secure

HTML = answer(502, b"<html><title>502 Bad Gateway</title>", content_type="text/html")
REFUSED = error_answer(401, "No such key.")


async def look(url: str, key: str | None = "sk-1") -> tuple[str, ...]:
    """Probe once."""
    client = HttpClient(parse_target(url))
    try:
        return await models_of(client, key)
    finally:
        client.close()


async def test_the_models_are_those_of_the_key(fake: FakeVllm) -> None:
    """The request has the key."""
    assert await look(fake.url, "sk-1") == ("m", "other")
    assert fake.got[0].headers["authorization"] == "Bearer sk-1"


async def test_server_without_a_model_list_is_accepted(fake: FakeVllm) -> None:
    """The server may lack the path."""
    fake.gets["/v1/models"] = (Send(json_answer({"error": {"message": "no"}}, status=404)),)
    assert await look(fake.url) == ()


@pytest.mark.parametrize(
    ("step", "key", "kind", "message"),
    [
        pytest.param(Send(REFUSED), "sk-1", CheckFailed, "refuses the key: No such key.", id="wrong key"),
        pytest.param(Send(REFUSED), None, CheckFailed, "requires a key; set --api-key-file", id="no key"),
        pytest.param(Send(HTML), "sk-1", EnvironmentFault, "returned 502: text/html: 502 Bad Gateway", id="HTML error"),
        pytest.param(
            Send(answer(200, b"<html>", content_type="text/html")),
            "sk-1",
            EnvironmentFault,
            "returned text/html instead of a list of models; is the URL right?",
            id="a web page",
        ),
        pytest.param(Close(), "sk-1", EnvironmentFault, "is it an HTTP server?", id="closed"),
    ],
)
async def test_a_fault_is_one_line(
    fake: FakeVllm, step: Send | Close, key: str | None, kind: type[CommandError], message: str
) -> None:
    """With advice."""
    fake.gets["/v1/models"] = (step,)
    with pytest.raises(kind) as fault:
        await look(fake.url, key)
    assert str(fault.value).startswith(fake.url)
    assert message in str(fault.value)
    assert "sk-1" not in str(fault.value)


async def test_tls_on_one_side_only_is_named(secure: Secure) -> None:
    """Both ways, with what to write."""
    with pytest.raises(EnvironmentFault, match=r"the server speaks TLS; write https:// instead of http://$"):
        await look(secure.url.replace("https://", "http://"))

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(REFUSED)
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        with pytest.raises(EnvironmentFault, match=r"the server speaks plain HTTP; write http:// instead of https://$"):
            await look(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")


async def test_nobody_there_and_no_trust_are_one_line(secure: Secure) -> None:
    """Each with its hint."""
    with pytest.raises(EnvironmentFault, match=r"--ca FILE trusts"):
        await look(secure.url)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(EnvironmentFault, match="connection refused; is the server running"):
            await look(f"http://127.0.0.1:{bound.getsockname()[1]}")


@pytest.mark.parametrize(
    ("wanted", "listed", "expected"),
    [(None, ("a", "b"), "a"), ("b", ("a", "b"), "b"), ("c", (), "c")],
    ids=["the first", "the one named", "the one named where none is listed"],
)
def test_the_model_is_the_one_named_or_the_first(wanted: str | None, listed: tuple[str, ...], expected: str) -> None:
    """Out of the listed models."""
    assert choose_model("u", wanted, listed) == expected


@pytest.mark.parametrize(
    ("wanted", "listed", "message"),
    [
        (None, (), "lists no models; choose a model with --model"),
        ("c", ("a", "b"), "has no model 'c' for this key; it lists a, b"),
    ],
    ids=["none", "another"],
)
def test_a_model_that_is_not_there_is_said(wanted: str | None, listed: tuple[str, ...], message: str) -> None:
    """Before any load."""
    with pytest.raises(CheckFailed, match=message):
        choose_model("u", wanted, listed)
