"""How an engine's death looks on the wire, by path: a real vLLM whose core is killed, and the simulator's fault."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from tests.e2e.conftest import BOTH
from tests.e2e.processes import MODEL, running_simulator, running_vllm

PROMPT = "Tell me a very long story. " * 4
CHAT, COMPLETIONS, RESPONSES, MESSAGES = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages",
)  # fmt: skip
TALK = [{"role": "user", "content": PROMPT}]
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": TALK, "max_tokens": 1900, "ignore_eos": True},
    COMPLETIONS: {"prompt": PROMPT, "max_tokens": 1900, "ignore_eos": True},
    RESPONSES: {"input": PROMPT, "max_output_tokens": 1900},
    MESSAGES: {"messages": TALK, "max_tokens": 1900},
}
DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
LAST_CHUNK = b"\r\n0\r\n\r\n"


class Answer(threading.Thread):
    """One exchange, read until the server ends the connection. `begun` is set with the first event."""

    def __init__(self, url: str, path: str, *, stream: bool) -> None:
        super().__init__(daemon=True)
        self.received = b""
        self.begun = threading.Event()
        body = json.dumps({"model": MODEL, "stream": stream, **BODIES[path]}).encode()
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._body = body
        self._address = (urlsplit(url).hostname, urlsplit(url).port)
        self.start()

    def run(self) -> None:
        with socket.create_connection(self._address, 30) as sock:
            sock.sendall(self._head.encode() + self._body)
            while data := sock.recv(65536):
                self.received += data
                if b"data: " in self.received:
                    self.begun.set()


@contextmanager
def dying(kind: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """The URL of an engine, and a function that kills it while it answers."""
    if kind == "simulator":
        with running_simulator(folder / "log", "--fault", "engine-dies-mid-stream:20") as url:
            yield url, lambda: None
        return
    installation = request.getfixturevalue("vllm_installation")
    with running_vllm(folder / "log", installation.model, installation.vllm) as url:

        def kill() -> None:
            children = psutil.Process().children(recursive=True)
            cores = [child for child in children if child.name() == "VLLM::EngineCore"]
            max(cores, key=psutil.Process.create_time).kill()  # the latest; others are of other tests

        yield url, kill


@pytest.mark.timeout(600)  # it starts a vLLM of its own
@pytest.mark.parametrize("kind", BOTH)
def test_an_engines_death_has_a_form_of_its_own_on_each_path(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """An error event and [DONE], pydantic's words in `event: error`, or a cut; unstreamed a 500 in the path's shape."""
    with dying(kind, request, tmp_path) as (url, kill):
        streams = {path: Answer(url, path, stream=True) for path in BODIES}
        for stream in streams.values():
            assert stream.begun.wait(60)
        whole = {path: Answer(url, path, stream=False) for path in BODIES}
        time.sleep(0.2)  # until the engine has them
        kill()
        for answer in (*streams.values(), *whole.values()):
            answer.join(30)
            assert not answer.is_alive()
    event = b'data: {"error": {"message": "%b", "type": "InternalServerError", "param": null, "code": 500}}\n\n'
    for path in (CHAT, COMPLETIONS):
        ending = b"\r\n" + event % DEAD.encode() + b"\r\ne\r\ndata: [DONE]\n\n" + LAST_CHUNK
        assert streams[path].received.endswith(ending), path
    assert not streams[RESPONSES].received.endswith(LAST_CHUNK)
    assert b"response.completed" not in streams[RESPONSES].received
    assert streams[MESSAGES].received.endswith(b"\n\n" + LAST_CHUNK)
    found = re.search(rb"\nevent: error\ndata: (.*)\n\n\r\n0\r\n\r\n$", streams[MESSAGES].received)
    assert found
    error = json.loads(found[1])["error"]
    assert error["type"] == "internal_error"
    assert re.sub(r"dev/[0-9.]+/", "", error["message"]) == (
        "2 validation errors for ChatCompletionStreamResponse\n"
        + "\n".join(
            f"{field}\n  Field required [type=missing, input_value={{'error': {{'message': 'En...am': None, "
            "'code': 500}}, input_type=dict]\n    For further information visit https://errors.pydantic.v/missing"
            for field in ("model", "choices")
        )
    )
    for path, answer in whole.items():
        head, _, content = answer.received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 500 "), path
        detail: dict[str, object] = {"message": DEAD, "type": "InternalServerError"}
        if path == MESSAGES:
            assert json.loads(content) == {"type": "error", "error": detail}
        else:
            assert json.loads(content) == {"error": detail | {"param": None, "code": 500}}
