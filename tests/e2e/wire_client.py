"""A raw-socket HTTP client that shows what is on the wire: header lines in order, each chunk, when each byte came.

Used by the wire cases against a real vLLM and the simulator alike; so it knows nothing of either.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
HELLO = [{"role": "user", "content": "Say hello."}]
JSON_HEADERS = ["date", "server", "content-length", "content-type", "vary"]
STREAM_HEADERS = ["date", "server", "content-type", "vary", "transfer-encoding"]
TIMEOUT = 30.0  # s; a real vLLM on a CPU is slow when other tests run beside it


@dataclass(frozen=True)
class Target:
    """A server under test and its options.

    api_key         asked for below /v1, or None
    """

    host: str
    port: int
    model: str
    max_model_len: int
    max_num_seqs: int = 64
    max_num_queued_reqs: int | None = None
    api_key: str | None = None


@dataclass
class Answer:
    """One response.

    header_lines  as they came, without the status line
    chunks        the chunked body's chunks, without the last, empty one
    first_byte, first_chunk, end   seconds after the request was sent
    """

    status: int = 0
    reason: str = ""
    header_lines: list[str] = field(default_factory=list)
    body: bytes = b""
    chunks: list[bytes] = field(default_factory=list)
    complete: bool = False
    first_byte: float = 0.0
    first_chunk: float = 0.0
    end: float = 0.0

    @property
    def header_names(self) -> list[str]:
        """In order."""
        return [line.partition(":")[0] for line in self.header_lines]

    def header(self, name: str) -> str | None:
        """The value, or None."""
        for line in self.header_lines:
            key, _, value = line.partition(": ")
            if key == name:
                return value
        return None

    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)

    def events(self) -> list[tuple[str | None, Any]]:
        """(event name, data) of each chunk; the data is decoded JSON, or the text where it is not JSON.

        Fails unless every chunk is exactly one event.
        """
        return [_event(chunk) for chunk in self.chunks]


def _event(chunk: bytes) -> tuple[str | None, Any]:
    text = chunk.decode()
    assert text.endswith("\n\n"), f"a chunk does not end an event: {text!r}"
    assert text.count("\n\n") == 1, f"a chunk holds more than one event: {text!r}"
    name, data = None, ""
    for line in text[:-2].split("\n"):
        key, _, value = line.partition(": ")
        if key == "event":
            name = value
        else:
            assert key == "data", f"neither event nor data: {line!r}"
            data = value
    return name, json.loads(data) if data.startswith("{") else data


class Wire:
    """One connection."""

    def __init__(self, target: Target, *, receive_buffer: int | None = None) -> None:
        self.target = target
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(TIMEOUT)
        self.socket.connect((target.host, target.port))
        self.buffer = b""
        self.sent_at = 0.0

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> None:
        """Send a request; a body that is not bytes goes as JSON."""
        self.send_raw(render(self.target, method, path, body, headers))

    def send_raw(self, data: bytes) -> None:
        """Send bytes."""
        self.sent_at = time.monotonic()
        self.socket.sendall(data)

    def receive(self, *, head: bool = False) -> Answer:
        """The whole answer to the request sent last; `head` for one to HEAD, which has no body."""
        answer = self.receive_head()
        length = answer.header("content-length")
        if head:
            answer.complete = True
        elif length is not None:
            self._fill(int(length))
            answer.body, self.buffer = self.buffer[: int(length)], self.buffer[int(length) :]
            answer.complete = True
        else:
            while self.receive_chunk(answer):
                pass
        answer.end = time.monotonic() - self.sent_at
        return answer

    def receive_head(self) -> Answer:
        """The status line and the headers."""
        answer = Answer()
        self._fill(1)
        answer.first_byte = time.monotonic() - self.sent_at
        while b"\r\n\r\n" not in self.buffer:
            self._read()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        status_line, *answer.header_lines = head.decode("latin-1").split("\r\n")
        match = re.fullmatch(r"HTTP/1\.1 (\d{3}) (.*)", status_line)
        assert match, status_line
        answer.status, answer.reason = int(match[1]), match[2]
        return answer

    def receive_chunk(self, answer: Answer) -> bool:
        """One more chunk of the body into `answer`; false at the last, empty one."""
        while b"\r\n" not in self.buffer:
            self._read()
        size_text, _, self.buffer = self.buffer.partition(b"\r\n")
        size = int(size_text, 16)
        self._fill(size + 2)
        if not answer.chunks:
            answer.first_chunk = time.monotonic() - self.sent_at
        chunk, end, self.buffer = self.buffer[:size], self.buffer[size : size + 2], self.buffer[size + 2 :]
        assert end == b"\r\n"
        if size == 0:
            answer.complete = True
            return False
        answer.chunks.append(chunk)
        answer.body += chunk
        return True

    def read_until_closed(self, timeout: float) -> bytes:
        """Read until the server closes. Raises TimeoutError when it does not."""
        self.socket.settimeout(timeout)
        while data := self.socket.recv(65536):
            self.buffer += data
        return self.buffer

    def reset(self) -> None:
        """Leave with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def _fill(self, size: int) -> None:
        while len(self.buffer) < size:
            self._read()

    def _read(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise EOFError(f"closed by the server after {self.buffer[-200:]!r}")
        self.buffer += data


def render(target: Target, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> bytes:
    """A request's bytes."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    lines = {"Host": f"{target.host}:{target.port}"}
    if target.api_key is not None:
        lines["Authorization"] = f"Bearer {target.api_key}"
    if body is not None:
        lines |= {"Content-Type": "application/json", "Content-Length": str(len(data))}
    lines |= headers or {}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + data


def target_of(url: str, *, max_num_seqs: int = 64, api_key: str | None = None) -> Target:
    """A running server; its model and context length are asked of it."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    asking = Target(parts.hostname, parts.port, "", 0, api_key=api_key)
    served = ask(asking, "GET", "/v1/models").json()["data"][0]
    return Target(
        parts.hostname, parts.port, served["id"], served["max_model_len"], max_num_seqs=max_num_seqs, api_key=api_key
    )


def ask(target: Target, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
    """One request on a connection of its own."""
    with Wire(target) as wire:
        wire.send(method, path, body, headers)
        return wire.receive(head=method == "HEAD")


def metric(target: Target, name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels."""
    text = ask(target, "GET", "/metrics").body.decode()
    total, found = 0.0, False
    for line in text.splitlines():
        match = re.fullmatch(r"([a-zA-Z_:0-9]+)(?:\{(.*)\})? (\S+)", line)
        if match and match[1] == name and all(f'{key}="{value}"' in (match[2] or "") for key, value in labels.items()):
            total, found = total + float(match[3]), True
    assert found, f"no metric {name} {labels}"
    return total


def shape(value: Any) -> Any:
    """Keys in order and types, without the values: {"id": "str", "created": "int", "logprobs": None, "data": [...]}"""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]
    return None if value is None else type(value).__name__


def same_order(one: Any, two: Any) -> bool:
    """Equal, keys in the same order: Python's == does not look at the order."""
    return json.dumps(one) == json.dumps(two)


def chat(**more: Any) -> dict[str, Any]:
    """A chat request of five tokens, exactly."""
    return {"messages": HELLO, "max_tokens": 5, "temperature": 0, "ignore_eos": True, **more}


def completion(**more: Any) -> dict[str, Any]:
    """A completion request of five tokens, exactly."""
    return {"prompt": "def main(", "max_tokens": 5, "temperature": 0, "ignore_eos": True, **more}


def message(**more: Any) -> dict[str, Any]:
    """An Anthropic message of up to five tokens."""
    return {"model": "{model}", "messages": HELLO, "max_tokens": 5, **more}


def fill(value: Any, target: Target) -> Any:
    """The value with {model}, {max} and {max+1} put in."""
    if isinstance(value, str):
        value = value.replace("{model}", target.model).replace("{max}", str(target.max_model_len))
        return value.replace("{max+1}", str(target.max_model_len + 1))
    if isinstance(value, dict):
        return {key: fill(item, target) for key, item in value.items()}
    if isinstance(value, list):
        return [fill(item, target) for item in value]
    return value
