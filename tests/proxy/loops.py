"""Both event loops, for the modules whose tests mean both: `event_loop_policy = both_loops`."""

from __future__ import annotations

import asyncio

import pytest
import uvloop


@pytest.fixture(
    scope="module", params=[asyncio.DefaultEventLoopPolicy, uvloop.EventLoopPolicy], ids=["asyncio", "uvloop"]
)
def both_loops(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """Each test of the module on both loops."""
    policy: asyncio.AbstractEventLoopPolicy = request.param()
    return policy
