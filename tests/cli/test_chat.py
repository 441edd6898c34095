"""`aiaas chat`: streamed answers, errors in plain words, Ctrl-C and Ctrl-D."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest

from aiaas.cli.chat import Printer
from aiaas.cli.chatanswer import ChatAnswer
from aiaas.cli.main import run
from tests.fakes.vllm import DONE, LAST_CHUNK, STREAM_HEAD, FakeVllm, Hang, Send, Step, chunk, json_answer, token_event


@pytest.fixture
async def gateway(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[FakeVllm]:
    """A scripted server with the model `m`; no config and no quickstart around."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AIAAS_API_KEY", raising=False)
    monkeypatch.delenv("AIAAS_CONFIG", raising=False)
    fake = await FakeVllm.start()
    fake.gets["/v1/models"] = lists("m")
    fake.default = answers("Hello", " there")
    yield fake
    await fake.stop()


def lists(*names: str) -> tuple[Step, ...]:
    return (Send(json_answer({"data": [{"id": name} for name in names]})),)


def answers(*texts: str) -> tuple[Step, ...]:
    return (Send(STREAM_HEAD + b"".join(chunk(token_event(text)) for text in texts) + chunk(DONE) + LAST_CHUNK),)


async def chat(*arguments: str) -> int:
    """Run it in a thread: the fake answers on this loop."""
    return await asyncio.to_thread(run, ["chat", *arguments])


async def test_one_message_is_one_answer(gateway: FakeVllm, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the answer goes to stdout; the request is streamed, with the key."""
    Path("my.key").write_text("sk-secret\n")
    assert await chat("-m", "hi", "--url", gateway.url, "--api-key-file", "my.key") == 0
    assert capsys.readouterr() == ("Hello there\n", "")
    sent = gateway.posts[0]
    assert sent.json == {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    assert sent.headers["authorization"] == "Bearer sk-secret"


@pytest.mark.parametrize(
    ("arguments", "offered", "code", "words"),
    [
        ([], ("a", "b"), 2, "name a model: aiaas chat MODEL; http://127.0.0.1:PORT offers a, b"),
        ([], (), 2, "offers no models"),
        (["c"], ("a", "b"), 1, "this key may not use c, or there is no such model"),
    ],
    ids=["several", "none", "unknown"],
)
async def test_a_model_that_is_not_clear_lists_all(
    gateway: FakeVllm,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    offered: tuple[str, ...],
    code: int,
    words: str,
) -> None:
    """The message names those that there are; nothing is sent."""
    gateway.gets["/v1/models"] = lists(*offered)
    assert await chat(*arguments, "-m", "hi", "--url", gateway.url) == code
    assert words.replace("PORT", str(gateway.port)) in capsys.readouterr().err
    assert gateway.posts == []


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            (Send(json_answer({"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, status=429)),),
            "aiaas: slow down (rate_limit_exceeded)",
        ),
        ((Send(STREAM_HEAD + chunk(b'data: {"error": {"message": "it died"}}\n\n') + LAST_CHUNK),), "aiaas: it died"),
        ((Send(STREAM_HEAD + chunk(token_event("Hel")) + LAST_CHUNK),), "aiaas: the stream ended without [DONE]"),
    ],
    ids=["a limit", "an error event", "a cut"],
)
async def test_a_failed_answer_is_one_plain_line(
    gateway: FakeVllm, capsys: pytest.CaptureFixture[str], script: tuple[Step, ...], words: str
) -> None:
    """The gateway's own message, and exit code 1."""
    gateway.play(*script)
    assert await chat("-m", "hi", "--url", gateway.url) == 1
    assert words in capsys.readouterr().err


async def test_a_refused_key_and_an_absent_gateway_are_plain(
    gateway: FakeVllm, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of models comes first, so no message is lost."""
    gateway.gets["/v1/models"] = (Send(json_answer({"error": {}}, status=401)),)
    assert await chat("-m", "hi", "--url", gateway.url) == 1
    assert "requires a key: --api-key-file or $AIAAS_API_KEY" in capsys.readouterr().err
    monkeypatch.setenv("AIAAS_API_KEY", "sk-wrong")
    assert await chat("-m", "hi", "--url", gateway.url) == 1
    assert "refuses the key" in capsys.readouterr().err
    assert await chat("-m", "hi", "--url", "http://127.0.0.1:1") == 3
    assert "connection refused; is the server running, and is the URL right?" in capsys.readouterr().err


async def test_a_quickstart_is_used_without_options(gateway: FakeVllm, capsys: pytest.CaptureFixture[str]) -> None:
    """Its config names the port, its key lies beside it."""
    folder = Path("aiaas-quickstart")
    folder.mkdir()
    config = f"server: {{host: 127.0.0.1, port: {gateway.port}}}\nauth: {{keys_file: keys.yaml}}\n"
    (folder / "aiaas.yaml").write_text(config + "backends: {v: {url: 'http://127.0.0.1:9', models: [m]}}\n")
    (folder / "key.txt").write_text("sk-quick\n")
    assert await chat("-m", "hi") == 0
    assert gateway.posts[0].headers["authorization"] == "Bearer sk-quick"
    assert "Hello there" in capsys.readouterr().out


async def test_a_pipe_is_one_question(gateway: FakeVllm) -> None:
    """With --message, stdin is not read: it may be a pipe that nobody closes."""
    ours, its = os.pipe()
    for options, settings in (([], {"input": b"one\n"}), (["-m", "two"], {"stdin": ours})):
        command = [sys.executable, "-m", "aiaas", "chat", "--url", gateway.url, *options]
        ask = partial(subprocess.run, command, capture_output=True, timeout=60, check=False, **settings)
        done = await asyncio.to_thread(ask)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"Hello there\n", b"")
    assert [post.json["messages"][0]["content"] for post in gateway.posts] == ["one\n", "two"]
    os.close(ours)
    os.close(its)


class Session:
    """`aiaas chat` at a terminal."""

    def __init__(self, url: str) -> None:
        self.ours, its = os.openpty()
        environment = os.environ | {"TERM": "xterm"}
        environment.pop("NO_COLOR", None)
        command = [sys.executable, "-m", "aiaas", "chat", "--url", url]
        self.process = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=environment)
        os.close(its)
        self.shown = ""

    async def until(self, words: str) -> None:
        """Read the screen until `words` stand on it, behind those of the last call."""
        while words not in self.shown:
            self.shown += (await asyncio.to_thread(os.read, self.ours, 4096)).decode()
        self.shown = self.shown.partition(words)[2]

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)


async def test_a_conversation_goes_on_after_ctrl_c(gateway: FakeVllm) -> None:
    """Its history has the earlier answers and the part of the stopped one; Ctrl-D leaves with exit code 0."""
    session = Session(gateway.url)
    try:
        await session.until("> ")
        session.type("one\n")
        await session.until("Hello there")
        await session.until("> ")
        gateway.play(Send(STREAM_HEAD + chunk(token_event("Hel"))), Hang())
        session.type("two\n")
        await session.until("Hel")
        session.process.send_signal(signal.SIGINT)
        await session.until("(stopped)")
        await session.until("> ")
        session.type("three\n")
        await session.until("Hello there")
        await session.until("> ")
        said = [message["content"] for message in gateway.posts[2].json["messages"]]
        assert said == ["one", "Hello there", "two", "Hel", "three"]
        session.type("\x04")
        assert await asyncio.to_thread(session.process.wait, 60) == 0
    finally:
        session.end()


async def test_an_error_does_not_end_the_conversation(gateway: FakeVllm) -> None:
    """The failed question is not in the next request; /exit leaves."""
    session = Session(gateway.url)
    try:
        await session.until("> ")
        gateway.play(Send(json_answer({"error": {"message": "slow down", "code": "x"}}, status=429)))
        session.type("one\n")
        await session.until("aiaas: slow down (x)")
        session.type("two\n")
        await session.until("Hello there")
        assert [message["content"] for message in gateway.posts[1].json["messages"]] == ["two"]
        session.type("/exit\n")
        assert await asyncio.to_thread(session.process.wait, 60) == 0
    finally:
        session.end()


def printed(dim: bool, *parts: tuple[str, bool]) -> str:
    written: list[str] = []
    printer = Printer(written.append, lambda: None, dim=dim)
    for text, is_reasoning in parts:
        printer.take(text, is_reasoning=is_reasoning)
    printer.end()
    return "".join(written)


def test_reasoning_is_dimmed_on_a_terminal_only() -> None:
    """A file gets the answer alone."""
    parts = (("hmm", True), ("42", False))
    assert printed(True, *parts) == "\x1b[2mhmm\x1b[0m\n\n42\n"
    assert printed(False, *parts) == "42\n"
    assert printed(True, ("hmm", True)) == "\x1b[2mhmm\x1b[0m"


def test_an_answer_cannot_move_the_cursor() -> None:
    """A model repeats what it is told."""
    assert printed(True, ("\x1b[2Jx\n\ty\r", False)) == r"\x1b[2Jx" + "\n\ty" + r"\r" + "\n"


@pytest.mark.parametrize(
    ("event", "parts"),
    [
        (b'{"choices":[{"delta":{"content":"a"}}]}', [("a", False)]),
        (b'{"choices":[{"delta":{"reasoning":"b"}}]}', [("b", True)]),
        (b'{"choices":[{"delta":{"reasoning_content":"b","content":"a"}}]}', [("b", True), ("a", False)]),
        (b'{"choices":[{"delta":{"refusal":"no"}}]}', [("no", False)]),
        (b'{"choices":[],"usage":{}}', []),
        (b'{"choices":[{}]}', []),
        (b"[DONE]", []),
        (b"{", []),
    ],
    ids=["text", "reasoning", "both", "refusal", "usage", "no delta", "end", "not JSON"],
)
def test_text_and_reasoning_are_told_apart(event: bytes, parts: list[tuple[str, bool]]) -> None:
    """In the words of old and new vLLM."""
    taken: list[tuple[str, bool]] = []
    take: Callable[..., None] = lambda text, is_reasoning: taken.append((text, is_reasoning))  # noqa: E731
    answer = ChatAnswer(take)
    answer.head(200, {"content-type": "text/event-stream"})
    answer.body(b"data: " + event + b"\n\n", 0.0)
    assert taken == parts
