"""Fixtures of the load test's tests: scripted servers, simulators and certificates on real sockets, on uvloop."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvloop

from tests.certificate import self_signed
from tests.fakes.vllm import DONE, FakeVllm, Send, json_answer, stream, token_event, usage_event

MODELS = {"object": "list", "data": [{"id": "m", "object": "model"}, {"id": "other", "object": "model"}]}
ANSWER = stream(token_event(), token_event(), usage_event(7, 2), DONE)


@pytest.fixture(scope="session")
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    """uvloop, as the command uses."""
    return uvloop.EventLoopPolicy()


@pytest.fixture
async def fake() -> AsyncIterator[FakeVllm]:
    """A scripted server of the models `m` and `other`, which streams two tokens unless told otherwise."""
    made = await FakeVllm.start()
    made.gets["/v1/models"] = (Send(json_answer(MODELS)),)
    made.default = (Send(ANSWER),)
    yield made
    await made.stop()


@dataclass(frozen=True)
class Secure:
    """A scripted server behind TLS, and the certificate that it shows."""

    url: str
    certificate: Path
    fake: FakeVllm


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.fixture
async def secure(certificate: tuple[Path, Path]) -> AsyncIterator[Secure]:
    """See Secure."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    made = await FakeVllm.start(context)
    made.gets["/v1/models"] = (Send(json_answer(MODELS)),)
    made.default = (Send(ANSWER),)
    yield Secure(made.url.replace("http:", "https:"), certificate[0], made)
    await made.stop()
