"""`GET /v1/models` and `/v1/models/{id}`: the models that the key may use, in OpenAI's shape. Pure.

The names are the Plan's; `created` and `max_model_len`, by which agents size their context, come from the endpoints of
the backend. If these differ, report the smallest `max_model_len`: a request may go to any endpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import msgspec

from aiaas.errors import ClientError
from aiaas.keys.model import Principal
from aiaas.openai import paths
from aiaas.plan.model import PublicModel
from aiaas.proxy.request.served_models import Listed, is_its_own


class ModelLists:
    """The answers of one Plan. Entries are encoded once, and again where a backend lists something else: 5,000 took
    7 ms a request."""

    def __init__(self, models: Sequence[PublicModel]) -> None:
        self._models = models
        self._listed: Mapping[str, Sequence[Listed]] | None = None
        self._entries: dict[str, bytes] = {}
        self._all = b""

    def body(self, principal: Principal, path: str, listed: Mapping[str, Sequence[Listed]]) -> bytes:
        """The answer's body. Raises ClientError 404 for a model that does not exist or that this key may not use.

        listed  by backend, the models that each of its endpoints lists
        """
        if listed != self._listed:
            self._prepare(listed)
        allowed = principal.models
        if path == paths.MODELS:
            if allowed is None:
                return self._all
            return _list_of([entry for name, entry in self._entries.items() if name in allowed])
        wanted = model_id(path)
        for name in (wanted, wanted.rstrip("/")):  # a name may end with a slash itself
            entry = self._entries.get(name)
            if entry is not None and (allowed is None or name in allowed):
                return entry
        raise model_not_found(wanted)

    def _prepare(self, listed: Mapping[str, Sequence[Listed]]) -> None:
        self._listed = listed
        self._entries = {
            model.name: msgspec.json.encode(_entry(model, listed[model.backend])) for model in self._models
        }
        self._all = _list_of(self._entries.values())


def _list_of(entries: Iterable[bytes]) -> bytes:
    return b'{"object":"list","data":[%b]}' % b",".join(entries)


def model_id(path: str) -> str:
    """The id in `/v1/models/{id}`; ids have slashes, sent as they are or escaped."""
    return unquote(path[len(paths.MODELS) + 1 :])


def model_not_found(model: str) -> ClientError:
    """One answer for an unknown model and for one that the key may not use."""
    shown = model if len(model) <= 100 else model[:100] + "..."
    shown = shown.encode("utf-8", "replace").decode()  # a path may hold bytes that are not UTF-8
    return ClientError(
        404, "model_not_found", f"The model `{shown}` does not exist or this key may not use it.", param="model"
    )


def _entry(model: PublicModel, lists: Sequence[Listed]) -> dict[str, Any]:
    meant = model.alias_of or model.name
    if any(is_its_own(model.name, meant, listed) for listed in lists):
        meant = model.name
    found = [listed[meant] for listed in lists if meant in listed]
    created = [served.created for served in found if served.created is not None]
    lengths = [served.max_model_len for served in found if served.max_model_len is not None]
    return {
        "id": model.name,
        "object": "model",
        "created": min(created, default=0),
        "owned_by": "aiaas",
        "root": meant,  # vLLM's own value is a path on its disk, which clients must not see
    } | ({"max_model_len": min(lengths)} if lengths else {})
