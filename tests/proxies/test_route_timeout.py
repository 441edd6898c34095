"""The route's timeouts let a stream take as long as it takes."""

from __future__ import annotations

import asyncio
from typing import Final

import pytest

from tests.proxies.client import Target, ask, chat
from tests.proxies.conftest import Site, StartProxy
from tests.proxies.rendered import GATEWAY_API
from tests.proxies.upstream import Stamped

pytestmark = [pytest.mark.proxies, pytest.mark.asyncio(loop_scope="session")]

ENVOYS_OWN: Final = 15  # seconds for a whole request, where a route has no timeout


async def test_envoy_cuts_streams_without_the_timeouts(site: Site, start_proxy: StartProxy) -> None:
    """With the rendered `0s` a stream of 16 s is whole; without it Envoy ends it after 15 s, without an error."""
    bare = start_proxy(GATEWAY_API, site.port, without=("timeouts",))
    rendered = start_proxy(GATEWAY_API, site.port)

    async def events(target: Target) -> int | str:
        site.engine.play(Stamped(ENVOYS_OWN + 1, 1.0))
        try:
            reply = await ask(target, chat(stream=True))
        except (OSError, EOFError) as error:
            return type(error).__name__
        return reply.body.count(b"@") // 2

    found = await asyncio.gather(events(site.through(rendered)), events(site.through(bare)))
    assert found == [ENVOYS_OWN + 1, "IncompleteReadError"]
