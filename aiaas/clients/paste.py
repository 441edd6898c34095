"""Fill in a client's blocks: values are quoted for each block's language, so that the text can be pasted as it is.

All languages but the shell's two take a JSON string as it is: TOML's basic strings, YAML's double quotes, Python and
JavaScript know its escapes.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from aiaas.clients.client import Block, KnownClient, Language

UNKNOWN_KEY: Final = "YOUR-KEY"
UNKNOWN_MODEL: Final = "YOUR-MODEL"
# Clients that ask for a bound on the answer get a quarter of the context, and at most this number of tokens.
MAX_OUTPUT: Final = 32_000

_PLACEHOLDER: Final = re.compile("«([^»]*)»")


@dataclass(frozen=True, slots=True)
class Offer:
    """The part of a gateway that one user sees.

    url      without /v1
    model    the public name
    key      None: print a placeholder
    context  LLM tokens of prompt and answer; None where unknown
    """

    url: str
    model: str
    key: str | None = None
    context: int | None = None


def paste(client: KnownClient, offer: Offer) -> tuple[Block, ...]:
    """The client's blocks with the gateway's own values."""
    values = _values(offer)
    return tuple(Block(block.where, block.language, _fill(block, values)) for block in client.blocks)


def _values(offer: Offer) -> dict[str, str | int | None]:
    body = {"model": offer.model, "messages": [{"role": "user", "content": "Hello"}]}
    return {
        "url": offer.url,
        "base": f"{offer.url}/v1",
        "model": offer.model,
        "key": offer.key or UNKNOWN_KEY,
        "chat_body": json.dumps(body, ensure_ascii=False),
        "context": offer.context,
        "output": None if offer.context is None else min(offer.context // 4, MAX_OUTPUT),
    }


def _fill(block: Block, values: Mapping[str, str | int | None]) -> str:
    unknown = tuple(f"«{{{name}}}»" for name, value in values.items() if value is None)
    lines = (line for line in block.text.splitlines(keepends=True) if not any(name in line for name in unknown))
    return "".join(_PLACEHOLDER.sub(lambda found: _value(found[1], block.language, values), line) for line in lines)


def _value(template: str, language: Language, values: Mapping[str, str | int | None]) -> str:
    number = values.get(template[1:-1])
    if isinstance(number, int):
        return str(number)
    return quoted(template.format_map(values), language)


def quoted(value: str, language: Language) -> str:
    """One value, as a complete word of the shell or string of the language."""
    if language in ("sh", "env"):
        return shlex.quote(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
