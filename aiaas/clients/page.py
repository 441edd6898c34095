"""docs/clients.md, made from the table: `python -m aiaas.clients.page docs`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from aiaas.clients.client import KnownClient
from aiaas.clients.paste import Offer, paste
from aiaas.clients.table import CLIENTS

_INTRO: Final = """# Clients

`aiaas connect CLIENT` prints what to paste for one client, with the gateway's own URL and model; `aiaas connect` lists
the clients. This page is generated from the same table (`python -m aiaas.clients.page docs`).

    aiaas connect                                               list the clients
    aiaas connect codex                                         for the gateway of ./aiaas.yaml
    aiaas connect claude-code --url https://api.example.com --model coder --api-key-file my.key
    eval "$(aiaas connect claude-code --api-key-file my.key)"   where there is one block, and it is for the shell
    aiaas connect --check --api-key-file my.key                 does this gateway offer what each client needs?
    aiaas connect --check claude-code --api-key-file my.key     the same for one, line by line

A key is printed only from `--api-key-file`; otherwise a placeholder. Without `--model` and `--context`, the
gateway is asked for its first model and the context size (`GET /v1/models`). If it does not answer, the config's first
model is used, and lines with the context size are left out.

`--check` sends one small request for each path that a client needs, with one token of output, with the client's headers
and, if the client sends tools, with a tool. It shows one line for each thing, says what the operator has to change, and
exits with 1 if something is missing or could not be tried.

The first client comes with aiaas: `aiaas chat` talks to a model line by line, streamed, with its reasoning dimmed.
Ctrl-C stops an answer, Ctrl-D leaves. Without a model it takes the only one, or lists them; beside
`./aiaas-quickstart` it needs no options. `aiaas chat -m "hello"` prints one answer, and `git diff | aiaas chat coder`
sends a pipe.

## What they need

| client | needs | without these it still works | tools | context, tokens | headers that it sends | how verified |
| --- | --- | --- | --- | --- | --- | --- |
"""
_TOOLS: Final = """
A client with tools needs a vLLM that was started with `--enable-auto-tool-choice --tool-call-parser NAME`, where NAME
fits the model (vLLM's documentation of tool calling has a table). Without them vLLM answers 400 to an agent's requests.

The context is the smallest in which the client can do a task: its own instructions and tools, the files that it reads,
and its answer.
"""
_EXAMPLE: Final = Offer(url="https://api.example.com", model="coder", context=131_072)
_FENCES: Final = {"env": "sh"}


def clients_page() -> str:
    """The text of docs/clients.md."""
    rows = "".join(f"{_row(client)}\n" for client in CLIENTS)
    return _INTRO + rows + _TOOLS + "".join("\n" + "\n".join(_section(client)) for client in CLIENTS)


def _row(client: KnownClient) -> str:
    cells = (
        f"[{client.name}](#{client.title.lower().replace(' ', '-')})",
        _paths(client.needs),
        _paths(path for path, _ in client.uses),
        "yes" if client.tools else "",
        f"{client.context:,}" if client.context else "any",
        _paths(header.name for header in client.headers),
        client.verified,
    )
    return f"| {' | '.join(cells)} |"


def _paths(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _section(client: KnownClient) -> Iterator[str]:
    yield f"## {client.title}\n"
    yield f"{client.what[0].upper()}{client.what[1:]} ([its documentation]({client.source})).\n"
    yield from (f"Without `{path}`: {loss}.\n" for path, loss in client.uses)
    yield from (f"{note}\n" for note in client.notes)
    for block in paste(client, _EXAMPLE):
        yield f"{block.where[0].upper()}{block.where[1:]}:\n"
        yield f"```{_FENCES.get(block.language, block.language)}\n{block.text}```\n"


def main(folder: Path) -> None:
    """Write the page into `folder`."""
    folder.joinpath("clients.md").write_text(clients_page(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
