"""Priority classes: whose requests go first where requests wait, here and in vLLM. Pure.

    class        weight in the queue    vLLM's `priority` (the lower value goes first)
    interactive  100                    0
    default      10                     10
    batch        1                      20

A key has a class. Its client can go down by OpenAI's `service_tier`, never up: `flex` makes a request `batch`, every
other value leaves it the key's class. OpenAI serves a request of a tier that it cannot have in another one, without an
error, and names it in the answer; here the header `x-aiaas-class` names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from aiaas.keys.model import PriorityClass

CLASS_WEIGHTS: Final[Mapping[PriorityClass, int]] = MappingProxyType({"interactive": 100, "default": 10, "batch": 1})
ENGINE_PRIORITIES: Final[Mapping[PriorityClass, bytes]] = MappingProxyType(
    {"interactive": b"0", "default": b"10", "batch": b"20"}
)


def class_of_request(own: PriorityClass, service_tier: str | None) -> PriorityClass:
    """The class of a request whose key has the class `own`."""
    return "batch" if service_tier == "flex" else own
