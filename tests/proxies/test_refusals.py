"""A client gets the gateway's own errors; a page of the proxy only where there is no gateway."""

from __future__ import annotations

import asyncio
from typing import Final

import pytest

from tests.fakes.vllm import Close, Send, error_answer
from tests.ports import free_port
from tests.proxies.client import Reply, ask, chat, upload
from tests.proxies.conftest import Site, StartProxy
from tests.proxies.rendered import LARGEST_BODY
from tests.proxies.servers import Proxy

pytestmark = [pytest.mark.proxies, pytest.mark.asyncio(loop_scope="session")]

A_LITTLE: Final = 1000  # bytes
TIMES: Final = 10  # the gateway answers while the proxy still sends: a race, so once is not enough

# Status and content type of the proxy's own answer where no gateway listens.
DOWN: Final = {
    "ingress-nginx": (502, "text/html"),
    "nginx-inc": (502, "text/html"),
    "haproxytech": (503, "text/html"),
    "haproxy-ingress": (503, "text/html"),
    "openshift": (503, "text/html"),
    "traefik": (502, ""),
    "gateway-api": (503, "text/plain"),
}


def large(size: int) -> bytes:
    """A body of this size for a model that there is not, so that nothing is generated if it is accepted."""
    body = chat(user="")
    return chat(user="x" * (size - len(body)))


@pytest.mark.parametrize("form", ["with a length", "in chunks"])
async def test_a_large_body_gets_the_gateways_413(site: Site, proxy: Proxy, form: str) -> None:
    """In OpenAI's form, every time, also where the gateway answers before it has read the body."""
    for _ in range(TIMES):
        body, chunked = large(LARGEST_BODY + A_LITTLE), form == "in chunks"
        reply = await asyncio.to_thread(upload, site.through(proxy), body, chunked=chunked)
        assert (reply.status, reply.code) == (413, "request_too_large"), reply


async def test_the_largest_body_reaches_the_engine(site: Site, proxy: Proxy) -> None:
    """No proxy has a smaller bound than the gateway."""
    reply = await ask(site.through(proxy), large(LARGEST_BODY))
    assert reply.status == 200
    assert len(site.engine.posts[-1].body) >= LARGEST_BODY


@pytest.mark.parametrize(
    ("name", "option"), [("ingress-nginx", "proxy-body-size"), ("nginx-inc", "client-max-body-size")]
)
async def test_nginx_refuses_with_a_page_by_default(
    site: Site, start_proxy: StartProxy, name: str, option: str
) -> None:
    """Without the rendered size its bound is 1 MiB, below the gateway's, and the client gets HTML."""
    running = start_proxy(name, site.port, without=(option,))
    reply = await ask(site.through(running), large(LARGEST_BODY - A_LITTLE))
    assert (reply.status, reply.kind) == (413, "text/html")


@pytest.mark.parametrize("failure", ["hangs up", "refuses"])
async def test_the_gateways_errors_pass_unchanged(site: Site, proxy: Proxy, failure: str) -> None:
    """The engine's faults are the gateway's 502 and 503 in OpenAI's form, the same with a proxy and without."""
    seen: list[Reply] = []
    for target in (site.direct, site.through(proxy)):
        for _ in range(8):  # more than the gateway retries
            refusal = error_answer(503, "overloaded", headers="retry-after: 1000\r\n")
            site.engine.play(Close() if failure == "hangs up" else Send(refusal))
        seen.append(await ask(target, chat()))
        site.engine.scripts.clear()
    direct, through = seen
    assert direct.code != ""
    assert direct.status >= 500
    assert (through.status, through.code, through.kind) == (direct.status, direct.code, direct.kind)
    assert through.headers.get("retry-after") == direct.headers.get("retry-after")


async def test_a_gateway_that_is_down_is_the_proxys_error(site: Site, start_proxy: StartProxy, controller: str) -> None:
    """Without a gateway the proxy answers with a status and a form of its own: 502 or 503, never OpenAI's form."""
    running = start_proxy(controller, free_port())
    reply = await ask(site.through(running), chat())
    print(f"\n{controller}: {reply.status} {reply.kind} {reply.body[:60]!r}")
    assert (reply.status, reply.kind) == DOWN[controller]
