"""`aiaas chat`: talk to a model through the gateway, one line a question, the answer as it is generated.

Ctrl-C stops an answer and keeps the program; Ctrl-D and /exit leave. The conversation is kept for the session only.
Without options it uses the gateway of ./aiaas.yaml, or that of `aiaas quickstart`, whose key lies beside its config.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from aiaas.cli.common import (
    DEFAULT_CONFIG,
    CaOption,
    ConfigOption,
    InsecureOption,
    KeyFileOption,
    named_paths,
    new_app,
    wants_colours,
)
from aiaas.cli.complete import complete_models
from aiaas.cli.outcome import note
from aiaas.cli.quickstart import FOLDER, KEY_FILE
from aiaas.errors import CheckFailed, CommandError, UsageError

if TYPE_CHECKING:
    from aiaas.httpclient.client import HttpClient
    from aiaas.httpclient.target import HttpTarget

app = new_app()

EXIT: Final = "/exit"
LIST_TIMEOUT: Final = 10.0  # seconds
# Seconds for one answer: Ctrl-C ends it earlier.
CHAT_TIMEOUT: Final = 3600.0

_EPILOG = """Examples:

\b
  aiaas chat                                    the only model of the gateway of ./aiaas.yaml, or of a quickstart
  aiaas chat coder --url https://api.example.com --api-key-file my.key
  aiaas chat -m "Say hello in French."          one answer, for a script
  git diff | aiaas chat coder                   a question from a pipe

The key comes from --api-key-file or $AIAAS_API_KEY. Exit codes: 0 done, 1 key or model refused, 2 wrong usage,
3 unreachable.
"""


@app.command("chat", epilog=_EPILOG)
def talk(
    model: Annotated[
        str | None,
        typer.Argument(help="The model. [default: the only one]", show_default=False, autocompletion=complete_models),
    ] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Ask this, print the answer, end.")] = None,
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="The gateway. [default: the config's host, else its port here]")
    ] = None,
    config: ConfigOption = None,
    api_key_file: KeyFileOption = None,
    ca: CaOption = None,
    insecure: InsecureOption = False,
) -> None:
    """Talk to a model through the gateway."""
    from aiaas.cli.loadoptions import KEY_VARIABLE, read_keys
    from aiaas.cli.smokeoptions import known_of
    from aiaas.httpclient.target import parse_target

    if url is None and not config and _has_only_a_quickstart():
        config = [FOLDER / DEFAULT_CONFIG]
        if api_key_file is None and not os.environ.get(KEY_VARIABLE):
            api_key_file = FOLDER / KEY_FILE
    target = parse_target(known_of(url, config).url, ca=ca, insecure=insecure)
    key = read_keys([] if api_key_file is None else [api_key_file])[0].value
    with asyncio.Runner() as runner:
        session = Talk(target, key, runner.run(_chosen(target, key, model)), runner)
        if message is not None:
            session.ask(message)
        elif sys.stdin.isatty():
            _converse(session)
        else:
            session.ask(sys.stdin.read())


def _has_only_a_quickstart() -> bool:
    return not named_paths() and not DEFAULT_CONFIG.exists() and (FOLDER / KEY_FILE).exists()


async def _chosen(target: HttpTarget, key: str | None, wanted: str | None) -> str:
    """The model to talk to. Raises CheckFailed, UsageError, EnvironmentFault."""
    from aiaas.clients.check import connected, offered_models

    async with connected(target) as http:
        names = [model.id for model in await offered_models(http, key, LIST_TIMEOUT)]
    listed = ", ".join(names) or "no models"
    if wanted is None and len(names) != 1:
        raise UsageError(f"name a model: aiaas chat MODEL; {target.url} offers {listed}")
    if wanted is not None and wanted not in names:
        raise CheckFailed(f"this key may not use {wanted}, or there is no such model; {target.url} offers {listed}")
    return wanted or names[0]


def _converse(talk: Talk) -> None:
    import readline  # noqa: F401  gives `input` a history, and keys that edit

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a script in the background starts us with it ignored
    note(f"{talk.model} at {talk.target.url}. Ctrl-C stops an answer, Ctrl-D leaves.")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D leaves)")
            continue
        if line == EXIT:
            return
        if not line:
            continue
        try:
            talk.ask(line)
        except CommandError as error:
            note(f"aiaas: {error.message}")
        except KeyboardInterrupt:
            print("\n(stopped)")


@dataclass
class Talk:
    """A conversation: what was said so far, and where it goes."""

    target: HttpTarget
    key: str | None = field(repr=False)
    model: str
    runner: asyncio.Runner = field(repr=False)
    messages: list[dict[str, str]] = field(default_factory=list, repr=False)

    def ask(self, question: str) -> None:
        """Print the answer as it comes. A stopped one is kept as far as it came, a failed one not at all.

        Raises CheckFailed or EnvironmentFault in plain words, KeyboardInterrupt for Ctrl-C.
        """
        printer = Printer(sys.stdout.write, sys.stdout.flush, dim=wants_colours())
        self.messages.append({"role": "user", "content": question})
        try:
            self.runner.run(self._send(printer))
        except CommandError:
            del self.messages[-1]
            raise
        finally:
            printer.end()
            if printer.said:
                self.messages.append({"role": "assistant", "content": printer.said})

    async def _send(self, printer: Printer) -> None:
        from aiaas.clients.check import connected

        async with connected(self.target) as http:
            await self._exchange(http, printer)

    async def _exchange(self, http: HttpClient, printer: Printer) -> None:
        import msgspec

        from aiaas.cli.chatanswer import ChatAnswer
        from aiaas.errors import EnvironmentFault
        from aiaas.httpclient.client import BrokenError
        from aiaas.loadtest.probe import with_hint
        from aiaas.openai.paths import CHAT

        body: dict[str, Any] = {"model": self.model, "messages": self.messages, "stream": True}
        data = msgspec.json.encode(body)
        head = self.target.head("POST", CHAT, self.key)
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        answer = ChatAnswer(printer.take)
        try:
            await http.send(head + data, answer, CHAT_TIMEOUT)
        except BrokenError as error:
            raise EnvironmentFault(f"{self.target.url}: {with_hint(error.kind, str(error))}") from error
        if answer.error:
            code = f" ({answer.code})" if answer.code else ""
            raise CheckFailed(f"{answer.detail or answer.error}{code}")


class Printer:
    """Writes an answer to a terminal or a file. `said` is its text so far, without the reasoning.

    dim  show reasoning, dimmed; a file gets the answer only
    """

    def __init__(self, write: Callable[[str], object], flush: Callable[[], object], *, dim: bool) -> None:
        self._write = write
        self._flush = flush
        self._dim = dim
        self._thinks = False
        self.said = ""

    def take(self, text: str, *, is_reasoning: bool) -> None:
        """A part of the answer. Characters that would move the cursor are shown escaped: a model may be told to send
        them."""
        if is_reasoning and not self._dim:
            return
        if is_reasoning != self._thinks:
            self._write("\x1b[2m" if is_reasoning else "\x1b[0m\n\n")
            self._thinks = is_reasoning
        if not is_reasoning:
            self.said += text
        self._write("".join(sign if sign.isprintable() or sign in "\n\t" else repr(sign)[1:-1] for sign in text))
        self._flush()

    def end(self) -> None:
        """The answer is over."""
        if self._thinks:
            self._write("\x1b[0m")
            self._thinks = False
        if self.said and not self.said.endswith("\n"):
            self._write("\n")
        self._flush()
