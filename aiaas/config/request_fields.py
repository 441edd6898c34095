"""Rules about vLLM's request fields: which rule a field can have, and the secret of the `cache_salt`. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Final

from aiaas.config import codes
from aiaas.config.model import Config, FieldBound, WrittenRule
from aiaas.config.problem import Finding
from aiaas.keys.model import PRIORITY_CLASSES
from aiaas.openai.engine_fields import ENGINE_FIELDS, FIXED, MCP, PARTS, RULED_NAMES
from aiaas.yamltree import Path

SHORTEST_CACHE_SECRET: Final = 32  # characters
_BOUNDED: Final = frozenset(field.name for field in ENGINE_FIELDS if field.unit is not None)
_INSIDE: Final = PARTS.keys() | {MCP}


def field_rules(config: Config, _env: Mapping[str, str]) -> Iterator[Finding]:
    """Report a rule that its field cannot have."""
    request = config.request
    yield from _findings(("request", "fields"), request.fields)
    for name in PRIORITY_CLASSES:
        yield from _findings(("request", "fields_by_class", name), getattr(request.fields_by_class, name))


def _findings(section: Path, rules: Mapping[str, WrittenRule]) -> Iterator[Finding]:
    for name, rule in rules.items():
        path = (*section, name)
        if name in FIXED:
            message = "the gateway itself reads this field, so it has no rule; remove it"
        elif name not in RULED_NAMES and (rule == "pass" or isinstance(rule, FieldBound)):
            close = difflib.get_close_matches(name, RULED_NAMES, n=1)
            hint = f"did you mean {close[0]}?" if close else "write strip or reject, or remove it"
            message = f"is not a field that has a rule; {hint}"
        elif isinstance(rule, FieldBound) and name not in _BOUNDED:
            message = "cannot be bounded; write pass, strip or reject"
        elif name in _INSIDE and rule == "strip":
            message = "cannot be stripped, as it is inside other fields; write pass or reject"
        elif name == "store" and rule != "pass":
            message = "is set to false for every request by default; write pass to leave it to clients, or remove it"
        else:
            continue
        yield codes.WRONG_VALUE, "error", path, message


def cache_secrets(config: Config, env: Mapping[str, str]) -> Iterator[Finding]:
    """Report a cache to isolate without a secret that nobody guesses."""
    for name, backend in config.backends.items():
        if not backend.enabled or backend.isolate_cache is None:
            continue
        path = ("backends", name)
        variable = backend.isolate_cache_secret_env
        if variable is None:
            message = "needs isolate_cache_secret_env, the name of the environment variable with its secret"
            yield codes.MISSING_FIELD, "error", (*path, "isolate_cache"), message
        elif len(env.get(variable, "")) < SHORTEST_CACHE_SECRET:
            state = "is too short" if env.get(variable) else "is not set"
            message = (
                f"the environment variable {variable} {state}; set it where this command runs, to at least "
                f"{SHORTEST_CACHE_SECRET} characters, the same on all gateways (openssl rand -hex 32)"
            )
            yield codes.BACKEND_KEY, "error", (*path, "isolate_cache_secret_env"), message


FIELD_RULES: Final = (field_rules, cache_secrets)
