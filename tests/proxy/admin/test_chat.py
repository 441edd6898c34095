"""aiaas.proxy.admin.chat: the page's chat goes to the gateway's client port, and nobody else may use it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

import pytest

from aiaas.proxy.admin.chat import ANSWER_TOKENS, MOST_CONVERSATION, Chat
from aiaas.proxy.admin.port import AdminPort
from aiaas.proxy.telemetry.log import JsonLog
from tests.fakes.vllm import DONE, Close, FakeVllm, Hang, Send, error_answer, stream, token_event
from tests.ports import free_port
from tests.proxy.admin.test_port import Told
from tests.proxy.conftest import Got, Raw
from tests.waiting import until

KEY = "sk-quickstart"
CONVERSATION = {"model": "m", "messages": [{"role": "user", "content": "Hi!"}]}


class Page:
    """The page of an admin port, as a browser shows it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.clients: list[Raw] = []

    async def chat(self, body: Any = CONVERSATION, headers: Mapping[str, str | None] | None = None) -> Got:
        """Send a conversation, with the headers of a browser; those with None are left out."""
        client = await Raw.connect(self.port, "")
        self.clients.append(client)
        host = f"127.0.0.1:{self.port}"
        usual: dict[str, str | None] = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
        encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
        usual |= {"Content-Type": "application/json", "Content-Length": str(len(encoded))} | dict(headers or {})
        lines = "".join(f"{name}: {value}\r\n" for name, value in usual.items() if value is not None)
        client.send(f"POST /chat HTTP/1.1\r\n{lines}\r\n".encode() + encoded)
        return await client.answer()


@pytest.fixture
async def gateway() -> AsyncIterator[FakeVllm]:
    """The gateway's client port."""
    fake = await FakeVllm.start()
    fake.default = (Send(stream(token_event("Hello"), DONE)),)
    yield fake
    await fake.stop()


@pytest.fixture
async def page(gateway: FakeVllm) -> AsyncIterator[Page]:
    """The page of a quickstart."""
    made = Page(free_port())
    log = JsonLog(lambda _lines: True, lambda: 0.0, "info")
    chat = Chat("127.0.0.1", gateway.port, KEY)
    async with AsyncExitStack() as stack:
        await AdminPort(made.port, Told(), log, lambda error: pytest.fail(repr(error)), chat).begin(stack)
        yield made
        for client in made.clients:
            client.reset()


async def test_conversation_goes_through_the_gateway(page: Page, gateway: FakeVllm) -> None:
    """With the key, which the page never had; the stream comes back as the gateway sent it."""
    got = await page.chat()
    assert got.status == 200
    assert (got.header("content-type") or "").startswith("text/event-stream")
    assert got.body.endswith(b"data: [DONE]\n\n")
    assert KEY.encode() not in got.head + got.body
    [received] = gateway.got
    assert received.headers["authorization"] == f"Bearer {KEY}"
    assert received.json == {**CONVERSATION, "max_tokens": ANSWER_TOKENS, "stream": True}
    assert "origin" not in received.headers


async def test_refusal_of_the_gateway_is_shown(page: Page, gateway: FakeVllm) -> None:
    """With its status and its text: the page says why."""
    gateway.play(Send(error_answer(429, "Rate limit reached.")))
    got = await page.chat()
    assert (got.status, got.json["error"]["message"]) == (429, "Rate limit reached.")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({"Origin": None}, 403, id="no origin"),
        pytest.param({"Origin": "null"}, 403, id="an opaque origin"),
        pytest.param({"Origin": "http://evil.example"}, 403, id="another site"),
        pytest.param({"Origin": "https://127.0.0.1"}, 403, id="another scheme and port"),
        pytest.param({"Host": "evil.example", "Origin": "http://evil.example"}, 403, id="DNS rebinding"),
        pytest.param({"Sec-Fetch-Site": "cross-site"}, 403, id="marked as cross-site"),
        pytest.param({"Sec-Fetch-Site": "same-site"}, 403, id="another port of this machine"),
        pytest.param({"Sec-Fetch-Site": "none"}, 403, id="typed by the user"),
        pytest.param({"Content-Type": "text/plain"}, 415, id="a form's type, for which no browser asks"),
        pytest.param({"Content-Type": "application/json; charset=utf-8"}, 415, id="JSON with a parameter"),
        pytest.param({"Content-Type": None}, 415, id="no type"),
    ],
)
async def test_request_of_another_page_is_refused(
    page: Page, gateway: FakeVllm, headers: dict[str, str | None], status: int
) -> None:
    """Before anything of it reaches the gateway, and without a header that would let that page read the answer."""
    got = await page.chat(headers=headers)
    assert got.status == status
    assert got.header("access-control-allow-origin") is None
    assert gateway.got == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"[" * 100_000,
        {"model": "m"},
        CONVERSATION | {"tools": []},
        {"model": "m", "messages": [{"role": "system", "content": "x"}]},
        {"model": "m", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
    ],
    ids=["empty", "cut", "not UTF-8", "deep", "no messages", "another field", "another role", "parts"],
)
async def test_body_without_a_conversation_is_refused(page: Page, gateway: FakeVllm, body: Any) -> None:
    """400: the page sends a model and messages, and this port sets the rest."""
    got = await page.chat(body)
    assert got.status == 400
    assert gateway.got == []


async def test_conversation_that_is_too_long_is_refused(page: Page, gateway: FakeVllm) -> None:
    """413, with a way out."""
    got = await page.chat(b" " * (MOST_CONVERSATION + 1))
    assert got.status == 413
    assert b"reload the page" in got.body
    assert gateway.got == []


async def test_gateway_that_cannot_be_reached_is_named(page: Page, gateway: FakeVllm) -> None:
    """502 and a sentence; also where it closes the connection without an answer."""
    gateway.play(Close())
    assert (await page.chat()).status == 502
    await gateway.stop()
    got = await page.chat()
    assert (got.status, b"cannot be reached" in got.body) == (502, True)


async def test_client_that_leaves_ends_the_request(page: Page, gateway: FakeVllm) -> None:
    """The gateway notices, and vLLM stops."""
    gateway.play(Hang())
    client = await Raw.connect(page.port, "")
    host = f"127.0.0.1:{page.port}"
    client.send(client.request(CONVERSATION, path="/chat", headers={"Host": host, "Origin": f"http://{host}"}))
    await until(lambda: gateway.got)
    client.reset()
    await until(lambda: not gateway.open_connections)


async def test_serve_has_no_chat(gateway: FakeVllm) -> None:
    """Without a quickstart's key POST stays refused."""
    port = free_port()
    log = JsonLog(lambda _lines: True, lambda: 0.0, "info")
    async with AsyncExitStack() as stack:
        await AdminPort(port, Told(), log, lambda error: pytest.fail(repr(error))).begin(stack)
        page = Page(port)
        assert (await page.chat()).status == 405
        page.clients[0].reset()


def test_key_is_not_shown_in_a_repr() -> None:
    """A traceback or a debugger shows the address only."""
    assert repr(Chat("127.0.0.1", 8080, "sk-secret")) == "<Chat 127.0.0.1:8080>"
