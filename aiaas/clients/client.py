"""The form of one row of the table of clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Language = Literal["sh", "env", "json", "toml", "yaml", "python", "javascript"]


@dataclass(frozen=True, slots=True)
class Block:
    """One thing to paste. `where`: a file, or what to do with it."""

    where: str
    language: Language
    text: str


@dataclass(frozen=True, slots=True)
class SentHeader:
    """A header that the client sends and a gateway has to accept. `sample` is sent by `aiaas connect --check`."""

    name: str
    sample: str
    meaning: str


@dataclass(frozen=True, slots=True)
class KnownClient:
    """One client.

    needs     paths without which it does not work
    uses      paths that it also asks, and what happens without them
    key_in    the header that carries the key
    tools     it sends tools, so vLLM needs a parser for tool calls
    context   smallest context in LLM tokens in which it can work: its own instructions and room for a task; 0: any
    verified  how this row was verified
    source    its documentation
    """

    name: str
    title: str
    what: str
    needs: tuple[str, ...]
    blocks: tuple[Block, ...]
    verified: str
    source: str
    uses: tuple[tuple[str, str], ...] = ()
    headers: tuple[SentHeader, ...] = ()
    key_in: Literal["authorization", "x-api-key"] = "authorization"
    tools: bool = False
    context: int = 0
    notes: tuple[str, ...] = ()
