"""`GET /v1/models` and `/v1/models/{id}`, from the Plan: what the key may use, in OpenAI's shape. Pure."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import msgspec

from aiaas.errors import ClientError
from aiaas.keys.model import Principal
from aiaas.openai import paths
from aiaas.plan.model import Plan, PublicModel


def is_models_path(path: str) -> bool:
    """Whether `path` (without its query) is the list or one model."""
    return path == paths.MODELS or path.startswith(paths.MODELS + "/")


def models_body(plan: Plan, principal: Principal, path: str) -> bytes:
    """The answer's body. Raises ClientError 404 for a model that is not there or not for this key."""
    visible = [model for model in plan.models if principal.models is None or model.name in principal.models]
    if path == paths.MODELS:
        return msgspec.json.encode({"object": "list", "data": [_entry(model) for model in visible]})
    wanted = model_id(path)
    found = next((model for model in visible if model.name == wanted), None)
    if found is None:
        raise model_not_found(wanted)
    return msgspec.json.encode(_entry(found))


def model_id(path: str) -> str:
    """The id in `/v1/models/{id}`; ids have slashes, sent as they are or escaped."""
    return unquote(path[len(paths.MODELS) + 1 :])


def model_not_found(model: str) -> ClientError:
    """One answer for an unknown model and for one that the key may not use."""
    shown = model if len(model) <= 100 else model[:100] + "..."
    shown = shown.encode("utf-8", "replace").decode()  # a path may hold bytes that are no UTF-8
    return ClientError(
        404, "model_not_found", f"The model `{shown}` does not exist or this key may not use it.", param="model"
    )


def _entry(model: PublicModel) -> dict[str, Any]:
    # vLLM's own `root` is the model's path on its disk, which is nobody's business.
    return {
        "id": model.name,
        "object": "model",
        "created": 0,
        "owned_by": "aiaas",
        "root": model.alias_of or model.name,
    }
