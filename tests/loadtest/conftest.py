"""Fixtures of the load test's tests: scripted servers, simulators and certificates on real sockets, on uvloop."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvloop

from tests.fakes.vllm import DONE, FakeVllm, Send, json_answer, stream, token_event, usage_event

MODELS = {"object": "list", "data": [{"id": "m", "object": "model"}, {"id": "other", "object": "model"}]}
ANSWER = stream(token_event(), token_event(), usage_event(7, 2), DONE)


@pytest.fixture(scope="session")
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    """As the command does."""
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
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    made = folder / "cert.pem", folder / "key.pem"
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-out", str(made[0]), "-keyout", str(made[1])], check=True, capture_output=True)
    return made


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


Until = Callable[[Callable[[], bool]], Awaitable[None]]


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until it holds, two seconds at most."""
    async with asyncio.timeout(2):
        while not condition():
            await asyncio.sleep(0.001)
