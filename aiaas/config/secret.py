"""Find secrets in plain text, by their form and by their name.

Only sure cases are reported: an `sk-` key, a password inside a URL, a token of Hugging Face, GitHub or AWS,
and a variable or argument with a name such as `token` or `password`. Values from the environment are fine: secrets
belong there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from aiaas.config import codes
from aiaas.config.problem import Problem
from aiaas.config.tree import Flat, problem_at
from aiaas.yamltree import Path

_MAY_START_WITH_SK: Final[Path] = ("auth", "api_key_prefix")
_COLLECTOR: Final[Path] = ("monitoring", "traces", "headers")
_LOOKS = re.compile(
    r"^(Bearer\s+)?sk-[A-Za-z0-9_-]+"  # OpenAI and aiaas
    r"|\bsk-[A-Za-z0-9]{16,}"
    r"|\bhf_[A-Za-z0-9]{16,}"  # Hugging Face
    r"|\bgh[pousr]_[A-Za-z0-9]{20,}"  # GitHub
    r"|\bAKIA[0-9A-Z]{16}\b"  # AWS
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_URL_PASSWORD = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/\s?#]*:[^/\s?#]+@")
_QUERY_PASSWORD = re.compile(r"://[^\s?]*\?\S*(?i:password)=[^&\s]")
_URL: Final = "this URL contains a password"
# Another check refuses these and names the field to use instead.
_SET_BY_AIAAS: Final = frozenset({"api-key", "api_key"})
_NAMED = re.compile(r"(?i)(^|[_-])(token|password|passwd|secret|api[_-]?key|access[_-]?key)$")


def find_secrets(flat: Flat, from_environment: frozenset[Path]) -> tuple[frozenset[Path], list[Problem]]:
    """Return the paths that hold a secret in plain text, and a Problem for each. Messages never show a secret."""
    found: dict[Path, Problem] = {}
    for path, text in _texts(flat.data, ()):
        argument = _is_argument(path) and _is_named_secret(path)
        if argument and path[-1] not in _SET_BY_AIAAS:
            # Report values from ${NAME}, too: `ps` shows every command line to everybody on the machine, and aiaas
            # logs it.
            message = "everybody on the machine can see command lines; pass the secret to vLLM in `engine.env`"
        elif path in from_environment or path == _MAY_START_WITH_SK or argument:
            continue
        else:
            reason = _reason(path, text)
            message = f"{reason} in plain text; {_way_out(path, reason)}" if reason else ""
        if message:
            found[path] = problem_at(codes.PLAIN_SECRET, "error", path, message, flat.values[path])
    return frozenset(found), list(found.values())


def _reason(path: Path, text: str) -> str | None:
    if _LOOKS.search(text):
        return "this looks like a key"
    if _URL_PASSWORD.search(text) or _QUERY_PASSWORD.search(text):
        return _URL
    # engine.env.HF_TOKEN holds a value; a config field such as kubernetes.env.X.secret holds only a name.
    variable = path[:-1] if path[-1:] == ("value",) else path if "engine" in path else ()
    if text and len(variable) > 2 and variable[-2] == "env" and _is_named_secret(variable):
        return f"this is the value of {variable[-1]}"
    if text and path[:3] == _COLLECTOR and (str(path[-1]).lower() == "authorization" or _is_named_secret(path)):
        return f"this is the value of {path[-1]}"
    return None


def _way_out(path: Path, reason: str) -> str:
    if path[:2] == ("kubernetes", "env"):
        return "name its Secret: {secret: NAME, key: KEY}"
    if reason == _URL and path and path[-1] in ("url", "urls"):
        return "a backend's own key goes into api_key_env; take it out of the URL"
    return "put it into an environment variable and write ${NAME} here"


def _is_argument(path: Path) -> bool:
    return len(path) > 2 and path[-2] == "args" and "engine" in path


def _is_named_secret(path: Path) -> bool:
    return _NAMED.search(str(path[-1])) is not None


def _texts(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, (*path, index))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, (*path, key))
