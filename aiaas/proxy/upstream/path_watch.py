"""Learn the paths that the endpoints' engines lack, from the list of routes that FastAPI serves (`/openapi.json`).

Each endpoint is asked when it has come up, as another vLLM may be there then, and every PATHS_INTERVAL. An engine
without such a list (`--disable-fastapi-docs`) is known by its 404s (`lacking.py`), which each round forgets.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from aiaas.openai import paths
from aiaas.proxy.upstream.ask import Fetched, fetch
from aiaas.proxy.upstream.connection import Failure
from aiaas.proxy.upstream.endpoint import EndpointState
from aiaas.proxy.upstream.endpoint_watch import EndpointWatch
from aiaas.proxy.upstream.lacking import learn

PATHS_INTERVAL: Final = 600.0


class _Described(msgspec.Struct):
    paths: dict[str, msgspec.Raw]


_DESCRIBED: Final = msgspec.json.Decoder(_Described)


def lacking_paths(answer: Fetched | Failure) -> frozenset[str] | None:
    """The paths of the API that the engine lacks, by its answer to `/openapi.json`; None if that tells nothing.

    A list without any path of the API is not an engine's: perhaps that of a proxy in between.
    """
    if isinstance(answer, Failure) or answer.status != 200:
        return None
    try:
        listed = _DESCRIBED.decode(answer.body).paths.keys()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    lacks = frozenset(paths.GENERATE).difference(listed)
    return None if len(lacks) == len(paths.GENERATE) else lacks


class PathWatch(EndpointWatch):
    """One for each backend."""

    async def _ask(self, endpoint: EndpointState) -> None:
        answer = await fetch(endpoint, paths.OPENAPI, self._backend.plan.health.timeout)
        self._due[endpoint] = asyncio.get_running_loop().time() + self._interval
        learn(endpoint, lacking_paths(answer) or frozenset())
