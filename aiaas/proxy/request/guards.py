"""Which rules of the engine's fields hold for a key: those of its class. `Guard.allowing` adds the key's own. Pure.

The class is the key's, not the request's: a client chooses between its key's class and `batch` (`service_tier: flex`),
and must not choose its rules.
"""

from __future__ import annotations

from collections.abc import Mapping

from aiaas.keys.model import PRIORITY_CLASSES, PriorityClass
from aiaas.openai.guard import Guard
from aiaas.plan.model import RequestPlan


def guards_of(plan: RequestPlan) -> Mapping[PriorityClass, Guard]:
    """The guard of each class; one for all classes without rules of their own."""
    general = Guard(plan.fields, plan.unknown_fields)
    return {
        name: Guard({**plan.fields, **plan.fields_by_class[name]}, plan.unknown_fields)
        if plan.fields_by_class.get(name)
        else general
        for name in PRIORITY_CLASSES
    }
