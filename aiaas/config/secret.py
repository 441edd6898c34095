"""Secrets in plain text, found by how they look and by what they are called.

Only what surely is one is reported: an `sk-` key, a password inside a URL, a token of Hugging Face, GitHub or AWS,
and a variable or argument whose name says so. What came from the environment is fine: that is where secrets belong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from aiaas.config import codes
from aiaas.config.problem import Path, Problem
from aiaas.config.tree import Flat, problem_at

_MAY_START_WITH_SK: Final[Path] = ("auth", "api_key_prefix")
_LOOKS = re.compile(
    r"^(Bearer\s+)?sk-[A-Za-z0-9_-]+"  # OpenAI's form, and ours
    r"|\bsk-[A-Za-z0-9]{16,}"
    r"|\bhf_[A-Za-z0-9]{16,}"  # Hugging Face
    r"|\bgh[pousr]_[A-Za-z0-9]{20,}"  # GitHub
    r"|\bAKIA[0-9A-Z]{16}\b"  # AWS
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_URL_PASSWORD = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/\s?#]*:[^/\s?#]+@")
_NAMED = re.compile(r"(?i)(^|[_-])(token|password|passwd|secret|api[_-]?key|access[_-]?key)$")


def find_secrets(flat: Flat, from_environment: frozenset[Path]) -> tuple[frozenset[Path], list[Problem]]:
    """The paths that hold a secret in plain text, and a Problem for each. No message shows one."""
    found: dict[Path, Problem] = {}
    for path, text in _texts(flat.data, ()):
        reason = None if path in from_environment or path == _MAY_START_WITH_SK else _reason(path, text)
        if reason is not None:
            message = f"{reason} in plain text; put it into an environment variable and write ${{NAME}} here"
            found[path] = problem_at(codes.PLAIN_SECRET, "error", path, message, flat.values[path])
    return frozenset(found), list(found.values())


def _reason(path: Path, text: str) -> str | None:
    if _LOOKS.search(text):
        return "this looks like a key"
    if _URL_PASSWORD.search(text):
        return "this URL holds a password"
    # engine.env.HF_TOKEN, engine.args.api-key; but a field of ours such as kubernetes.env.X.secret is a name
    if text and len(path) > 2 and path[-2] in ("env", "args") and "engine" in path and _NAMED.search(str(path[-1])):
        return f"the value of {path[-1]} stands here"
    return None


def _texts(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, (*path, index))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, (*path, key))
