"""A proxy before a real vLLM ends its body cleanly in the middle: no SDK may take that for an answer."""

from __future__ import annotations

import http.server
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest

from tests.e2e.processes import ALIAS, Gateway, eventually, running_gateway

pytestmark = pytest.mark.vllm

CHAT, COMPLETIONS, RESPONSES, MESSAGES = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
)  # fmt: skip
PROMPT = [{"role": "user", "content": "Say hello."}]
TOKENS = 30
WHOLE = 10_000  # lines; no answer here has as many


class Between(http.server.BaseHTTPRequestHandler):
    """Passes everything on, but at most a number of lines of a stream, and never `[DONE]`."""

    protocol_version = "HTTP/1.1"
    url = ""
    lines = WHOLE

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        """A probe or a list of models."""
        self._pass_on(None)

    def do_POST(self) -> None:
        """A request to generate."""
        self._pass_on(self.rfile.read(int(self.headers["content-length"])))

    def _pass_on(self, body: bytes | None) -> None:
        asked = urllib.request.Request(self.url + self.path, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=60) as answer:
            kind = answer.headers.get("content-type", "application/json")
            self.send_response(answer.status)
            self.send_header("Content-Type", kind)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for number, line in enumerate(answer):
                if "event-stream" in kind and (number >= self.lines or line.startswith(b"data: [DONE]")):
                    break
                self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))
        self.wfile.write(b"0\r\n\r\n")


@contextmanager
def between(url: str, lines: int) -> Iterator[str]:
    """The URL of such a proxy in front of `url`."""
    handler = type("Handler", (Between,), {"url": url, "lines": lines})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, name="between")
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module", params=[24, WHOLE], ids=["cut", "whole, without [DONE]"])
def cut(request: pytest.FixtureRequest, vllm_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway whose backend is that proxy."""
    with between(vllm_url, request.param) as url:
        backend = {"url": url, "endpoints": [CHAT, COMPLETIONS, RESPONSES, MESSAGES, "/v1/models"]}
        with running_gateway(tmp_path_factory.mktemp("gateway"), backend) as running:
            yield running


def read(gateway: Gateway, path: str) -> list[Any]:
    """The result in a program that uses the official SDK."""
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key=gateway.key, max_retries=0, timeout=60) as sdk:
        if path == CHAT:
            return list(sdk.chat.completions.create(model=ALIAS, messages=PROMPT, max_tokens=TOKENS, stream=True))  # type: ignore[arg-type]
        if path == COMPLETIONS:
            return list(sdk.completions.create(model=ALIAS, prompt="def main(", max_tokens=TOKENS, stream=True))
        return list(sdk.responses.create(model=ALIAS, input="Say hello.", max_output_tokens=TOKENS, stream=True))


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES])
def test_sdk_raises_where_a_proxy_cuts_a_stream(cut: Gateway, path: str, request: pytest.FixtureRequest) -> None:
    """And takes a whole stream for whole, though it has no [DONE]."""
    if "whole" in request.node.callspec.id:
        before = len(cut.requests())
        assert read(cut, path)
        eventually(lambda: len(cut.requests()) > before, 10)
        assert cut.requests()[-1]["error_code"] is None
        return
    with pytest.raises(openai.APIError) as raised:
        read(cut, path)
    assert raised.value.code == "upstream_error"


def test_messages_end_with_their_own_error_event(cut: Gateway, request: pytest.FixtureRequest) -> None:
    """`event: error` is what Anthropic's SDK raises on."""
    body = {"model": ALIAS, "messages": PROMPT, "max_tokens": TOKENS, "stream": True, "temperature": 0}
    headers = {"x-api-key": cut.key, "Content-Type": "application/json"}
    asked = urllib.request.Request(cut.url + MESSAGES, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(asked, timeout=60) as answer:
        last = answer.read().rstrip().split(b"\n\n")[-1]
    if "whole" in request.node.callspec.id:
        assert last.startswith(b"event: message_stop\n")
    else:
        assert last.startswith(b'event: error\ndata: {"type":"error","error":{"message":"')
