"""Differences between an engine and the gateway in front of it that are meant, each with its reason.

A row has patterns for the case and for the place in its outcome (as `fnmatch` reads them, but brackets are literal).
"""

from __future__ import annotations

import re
from typing import Final

from aiaas.openai.paths import GENERATE

COUNT_TOKENS: Final = "/v1/messages/count_tokens"
_OWN_TEXT: Final = "the gateway refuses it itself, with a text and a code of its own (docs/errors.md)"
_OWN_LIST: Final = "the gateway answers with its own list of models, which tells nothing about the engine's disk"
_NO_STORE: Final = "the gateway stores no responses, so it has no path for them"
_LIMITS: Final = "the gateway adds the headers of the key's limits and class"

EXPLAINED: Final[tuple[tuple[str, str, str], ...]] = (
    ("*unknown model", "body*", _OWN_TEXT),
    ("*unknown model", "code", _OWN_TEXT),
    ("*wrong key*", "body*", _OWN_TEXT),
    ("*wrong key*", "code", _OWN_TEXT),
    ("models in full", "*", _OWN_LIST),
    ("model by name", "*", "vLLM has no path for one model, the gateway has"),
    ("response by an id that does not exist", "body*", _NO_STORE),
    ("response by an id that does not exist", "code", _NO_STORE),
    ("embedding of a text model", "body*", _OWN_TEXT),
    ("embedding of a text model", "code", _OWN_TEXT),
    ("chat's headers", "*", _LIMITS),
    # Disappears with the path.
    *((("*tokens counted", "*", "this version has no such path"),) if COUNT_TOKENS not in GENERATE else ()),
)


def reason_for(case: str, place: str) -> str | None:
    """The reason of a difference, or None if no row explains it."""
    for case_pattern, place_pattern, reason in EXPLAINED:
        if _matches(case_pattern, case) and _matches(place_pattern, place):
            return reason
    return None


def _matches(pattern: str, text: str) -> bool:
    return re.fullmatch(".*".join(re.escape(part) for part in pattern.split("*")), text) is not None
