"""Bounds on a grammar that a request brings: a JSON schema, a regex, choices, EBNF, a structural tag.

Theory: the engine compiles the grammars of all requests beside each other, so one that takes minutes keeps every other
request with a grammar waiting. The time grows with the text of the grammar (64 KiB of words: 1 s on two cores, for a
vocabulary of 128,000 tokens), and with the repetitions that it spells out (`[a-z]{1,1000}`: 2 s; `maxLength: 100000`:
7 s). Both have bounds here; depth has one, too, as in vLLM. Generous ones: a schema for OpenAI has at most 120,000
characters and 10 levels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from aiaas.errors import ClientError
from aiaas.openai.toplevel import UNREADABLE, unreadable

MOST_CHOICES: Final = 1000
DEEPEST_GRAMMAR: Final = 32  # levels of lists and objects
LONGEST_REGEX: Final = 8192  # characters
MOST_UNROLLED: Final = 2000  # repetitions that one regex spells out, `(a{2}b){3}` being 3 * (2 + 1)
LARGEST_COUNT: Final = 10_000  # `maxLength` and its like
MOST_COUNTED: Final = 50_000  # all of them together

# Text for readers does not become part of a grammar: it may be this many times as long as the rest.
TEXT_FACTOR: Final = 4
_TEXTS: Final = frozenset({"description", "title", "examples", "$comment", "$schema"})
_COUNTS: Final = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"})
_REGEXES: Final = frozenset({"pattern", "regex", "whitespace_pattern", "guided_regex", "guided_whitespace_pattern"})
_CHOICES: Final = frozenset({"choice", "guided_choice"})
_NESTED: Final = frozenset({"json", "structural_tag", "guided_json"})  # JSON in a text
_EBNF: Final = frozenset({"grammar", "guided_grammar"})
# Without these words, and without more brackets than DEEPEST_GRAMMAR, only the length counts.
_TELLING: Final = re.compile(rb"pattern|regex|choice|json\"|structural_tag|grammar|min|max|\\")
_REPEATED: Final = re.compile(r"\{([0-9]+)?(,)?([0-9]+)?\}")
_TOKEN: Final = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\((?:\?(?:[:=!]|<[^>]*>|P<[^>]*>))?|[*+?|)]|.", re.DOTALL)


def refuse_large_grammar(name: str, written: bytes, most: int) -> None:
    """Refuse the value `written` of the field `name` where it holds a grammar beyond the bounds: `most` bytes, without
    texts for readers, and those above. Raises ClientError 400."""
    if len(written) > TEXT_FACTOR * most:
        raise _too_large(name, f"may have at most {most} bytes")
    openings = written.count(b"{") + written.count(b"[")
    if len(written) <= most and openings <= DEEPEST_GRAMMAR and name not in _TOP and _TELLING.search(written) is None:
        return
    try:
        value = msgspec.json.decode(written)
    except UNREADABLE as error:
        raise unreadable(error) from None
    if len(written) > most and len(msgspec.json.encode(_without_texts(value))) > most:
        raise _too_large(name, f"may have at most {most} bytes, descriptions not counted")
    _Bounds(name).refuse(value)


_TOP: Final = _REGEXES | _CHOICES | _NESTED | _EBNF


class _Bounds:
    """The bounds on the parts of one grammar."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._counted = 0

    def refuse(self, value: Any) -> None:
        self._one(self._name, value, 0)
        level: list[tuple[Any, int]] = [(value, 1)]
        while level:
            item, depth = level.pop()
            if depth > DEEPEST_GRAMMAR and isinstance(item, dict | list):
                raise _too_large(self._name, f"may be nested at most {DEEPEST_GRAMMAR} levels deep")
            if isinstance(item, dict):
                for key, inner in item.items():
                    opened = self._one(key, inner, depth)
                    level.append((inner if opened is None else opened, depth + 1))
            elif isinstance(item, list):
                level += [(inner, depth + 1) for inner in item]

    def _one(self, key: str, value: Any, depth: int) -> Any:
        """Check one member. Returns the JSON inside a text, if it holds some."""
        name = self._name if depth == 0 else f"{self._name}: `{key}`"
        if key in _COUNTS and isinstance(value, int | float):
            self._counted += int(min(value, MOST_COUNTED + 1))
            if value > LARGEST_COUNT or self._counted > MOST_COUNTED:
                raise _too_large(self._name, f"may have `{key}` of at most {LARGEST_COUNT}, {MOST_COUNTED} in all")
        elif key in _CHOICES and isinstance(value, list):
            if len(value) > MOST_CHOICES:
                raise _too_large(self._name, f"may have at most {MOST_CHOICES} choices")
        elif not isinstance(value, str):
            return None
        elif key in _REGEXES:
            if len(value) > LONGEST_REGEX:
                raise _too_large(self._name, f"may have regexes of at most {LONGEST_REGEX} characters")
            if unrolled(value) > MOST_UNROLLED:
                raise _too_large(self._name, f"may have regexes that repeat at most {MOST_UNROLLED} times ({name})")
        elif key in _EBNF:
            if any(_count_of(found) > MOST_UNROLLED for found in _REPEATED.finditer(value)):
                raise _too_large(self._name, f"may repeat at most {MOST_UNROLLED} times")
        elif key in _NESTED:
            try:
                return msgspec.json.decode(value)
            except UNREADABLE:  # vLLM refuses it
                return None
        return None


def unrolled(regex: str) -> int:
    """The repetitions that `regex` spells out: each part times the counts around it; a part without a count is 0."""
    groups: list[list[int]] = [[]]  # of each open group, the weight of its parts: plain ones have 1
    spelled: list[list[int]] = [[]]  # and what of it is spelled out by counts
    at = 0
    while at < len(regex):
        repeated = _REPEATED.match(regex, at)
        if repeated is not None and groups[-1] and (repeated[1] or repeated[3]):
            count = _count_of(repeated)
            groups[-1][-1] = min(groups[-1][-1] * max(count, 1), MOST_UNROLLED + 1)
            spelled[-1][-1] = groups[-1][-1]
            at = repeated.end()
            continue
        token = _TOKEN.match(regex, at)
        assert token is not None  # it matches any character
        at = token.end()
        if token[0][0] == "(":
            groups.append([])
            spelled.append([])
        elif token[0] == ")" and len(groups) > 1:
            weight, inner = sum(groups.pop()), sum(spelled.pop())
            groups[-1].append(weight)
            spelled[-1].append(inner)
        elif token[0] not in ("*", "+", "?", "|"):
            groups[-1].append(1)
            spelled[-1].append(0)
    return sum(sum(inner) for inner in spelled)


def _count_of(found: re.Match[str]) -> int:
    return max((int(number[:9]) for number in (found[1], found[3]) if number), default=0)


def _without_texts(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_texts(inner)
            for key, inner in value.items()
            if key not in _TEXTS or not isinstance(inner, str | list)
        }
    if isinstance(value, list):
        return [_without_texts(inner) for inner in value]
    return value


def _too_large(name: str, bound: str) -> ClientError:
    return ClientError(400, "invalid_request", f"`{name}` {bound}.", param=name)


def forces_tools(choice: bytes | None, tools: bytes) -> bool:
    """Whether the engine makes a grammar of the tools: one must be called, or one is `strict`."""
    if tools.find(b'"strict"') >= 0:
        return True
    if choice is None:
        return False
    try:
        value = msgspec.json.decode(choice)
    except UNREADABLE as error:
        raise unreadable(error) from None
    kind = value.get("type") if isinstance(value, dict) else value
    return kind not in (None, "auto", "none")


def mcp_field(tools: bytes) -> str | None:
    """The place of a field by which an MCP tool in `tools`, a list, names a host or a secret for it; None if absent."""
    if tools.find(b"mcp") < 0 and tools.find(b"\\") < 0:
        return None
    try:
        found = msgspec.json.decode(tools)
    except UNREADABLE as error:
        raise unreadable(error) from None
    for number, tool in _objects(found):
        if tool.get("type") == "mcp":
            for name in ("server_url", "connector_id", "headers", "authorization"):
                if tool.get(name):
                    return f"tools[{number}].{name}"
    return None


def _objects(value: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, item in enumerate(value if isinstance(value, list) else ()):
        if isinstance(item, dict):
            yield number, item
