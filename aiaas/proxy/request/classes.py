"""Priority classes: which requests go first where requests wait, here and in vLLM. Pure.

    class        weight in the queue    vLLM's `priority` (the lower value goes first)
    interactive  100                    0
    default      10                     10
    batch        1                      20

A key has a class. Its client can go down by OpenAI's `service_tier`, never up: `flex` makes a request `batch`, and all
other values leave it in the key's class. OpenAI serves a request of a tier that it cannot have in another one, without
an error, and names that one in the answer; here the header `x-aiaas-class` names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from aiaas.keys.model import PRIORITY_CLASSES, PriorityClass

# Relative to `default`, whose credit (`fair.credit`) is in LLM tokens.
CLASS_WEIGHTS: Final[Mapping[PriorityClass, float]] = MappingProxyType(
    {"interactive": 10.0, "default": 1.0, "batch": 0.1}
)
ENGINE_PRIORITIES: Final[Mapping[PriorityClass, bytes]] = MappingProxyType(
    {"interactive": b"0", "default": b"10", "batch": b"20"}
)
CLASS_LINES: Final[Mapping[PriorityClass, bytes]] = MappingProxyType(
    {name: b"x-aiaas-class: %b\r\n" % name.encode() for name in PRIORITY_CLASSES}
)


def class_of_request(own: PriorityClass, service_tier: str | None) -> PriorityClass:
    """The class of a request whose key has the class `own`."""
    return "batch" if service_tier == "flex" else own
