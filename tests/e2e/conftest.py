"""Fixtures of the end-to-end tests.

`engine` and `crowded_engine` come twice: as the simulator, always, and as the real vLLM, in tests then marked `vllm`.
$AIAAS_VLLM_URL (default options), $AIAAS_VLLM_CROWDED_URL, $AIAAS_VLLM_INTERVAL_URL and $AIAAS_VLLM_CALLS_URL name
servers that run already, to spare the 30 s of a start while working on a test; `running_vllm`, CROWDED, INTERVAL and
CALLS in processes.py say how they are started.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.processes import (
    CALLS,
    CROWDED,
    CROWDED_KEY,
    INTERVAL,
    Engine,
    Gateway,
    running_gateway,
    running_simulator,
    running_vllm,
)
from tests.e2e.vllm.setup import Installation, ensure

BOTH = ["simulator", pytest.param("vllm", marks=pytest.mark.vllm)]

StartGateway = Callable[..., AbstractContextManager[Gateway]]


@pytest.fixture(scope="session")
def vllm_installation() -> Installation:
    """The real vLLM and its tiny model, built if need be."""
    return ensure()


@pytest.fixture(scope="session")
def vllm_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real vLLM with default options and a context of 2048 tokens."""
    yield from _vllm(request, tmp_path_factory, "AIAAS_VLLM_URL", ())


@pytest.fixture(scope="module")
def vllm_interval_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real vLLM that writes eight tokens into an event of a stream."""
    yield from _vllm(request, tmp_path_factory, "AIAAS_VLLM_INTERVAL_URL", INTERVAL)


@pytest.fixture(scope="module")
def vllm_calls_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real vLLM that parses the calls of tools."""
    yield from _vllm(request, tmp_path_factory, "AIAAS_VLLM_CALLS_URL", CALLS)


@pytest.fixture(scope="session")
def vllm_crowded_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real vLLM that generates one answer at a time, lets two more wait, and asks for CROWDED_KEY."""
    yield from _vllm(request, tmp_path_factory, "AIAAS_VLLM_CROWDED_URL", CROWDED)


def _vllm(
    request: pytest.FixtureRequest, folders: pytest.TempPathFactory, variable: str, options: tuple[str, ...]
) -> Iterator[str]:
    if url := os.environ.get(variable):
        yield url
        return
    installation: Installation = request.getfixturevalue("vllm_installation")
    log = folders.mktemp("vllm") / "log"
    with running_vllm(log, installation.model, installation.vllm, *options) as url:
        yield url


@pytest.fixture(scope="session")
def simulator_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The simulator, quick."""
    with running_simulator(tmp_path_factory.mktemp("simulator") / "log") as url:
        yield url


@pytest.fixture(scope="session")
def simulator_crowded_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The simulator that generates one answer at a time."""
    with running_simulator(tmp_path_factory.mktemp("simulator") / "log", *CROWDED) as url:
        yield url


@pytest.fixture(scope="session", params=BOTH)
def engine(request: pytest.FixtureRequest) -> Engine:
    """The server behind the gateway."""
    return Engine(request.param, request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture(scope="session", params=BOTH)
def crowded_engine(request: pytest.FixtureRequest) -> Engine:
    """The same with one place, so that a second request waits for its first token until the first has ended."""
    return Engine(request.param, request.getfixturevalue(f"{request.param}_crowded_url"), CROWDED_KEY)


@pytest.fixture
def start_gateway(tmp_path: Path) -> StartGateway:
    """`with start_gateway(backend, sections=...) as gateway:` a real `aiaas serve` in a folder of the test's own."""
    return partial(running_gateway, tmp_path)


@pytest.fixture(scope="module")
def gateway(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """An `aiaas serve` in front of `engine` that the tests of a module share."""
    with running_gateway(tmp_path_factory.mktemp("gateway"), {"url": engine.url}) as running:
        yield running
