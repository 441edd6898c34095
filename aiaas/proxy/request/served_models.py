"""Compare the models that a backend lists (`GET /v1/models`) with the config. Pure.

    config                    the backend lists          what follows
    models: [base, small]     base                       small is rewritten to base, as the config means it
    models: [base, small]     base, small of one root    the same: vLLM's second --served-model-name
    models: [base, sql-lora]  base, sql-lora of base     sql-lora is a separate model: not rewritten, and reported
    models: [base]            other                      base is gone: requests for it will fail; reported

vLLM (0.32) lists for each model `root`, the path or name that it was loaded from, `parent`, the base of a LoRA adapter
or null, `max_model_len` and `created`. If a server does not send `root`, each name counts as a model of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

from aiaas.httpclient.mismatch import WRITE_HTTPS
from aiaas.openai.toplevel import UNREADABLE
from aiaas.plan.model import BackendPlan


class ServedModel(msgspec.Struct, frozen=True):
    """One entry of a backend's list. `max_model_len` in LLM tokens, `created` in POSIX seconds."""

    id: str
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None
    created: int | None = None


# A backend's list, by name.
Listed = Mapping[str, ServedModel]
NOTHING_LISTED: Final[Listed] = MappingProxyType({})


class Comparison(msgspec.Struct, frozen=True):
    """Where config and backend disagree; both empty where they do not.

    missing     names that the backend should serve and does not list
    own_models  aliases that are models of their own there, each with the name that it would have become
    """

    missing: tuple[str, ...] = ()
    own_models: tuple[tuple[str, str], ...] = ()

    @property
    def names(self) -> int:
        """How many names in the config differ."""
        return len(self.missing) + len(self.own_models)


class NotAModelList(Exception):
    """An answer that is not a list of models; the text describes the answer and its likely cause."""


MOST_NAMED: Final = 20
_LARGEST: Final = 2**53  # JSON readers do not read larger numbers exactly


def read_models(status: int, content_type: bytes, body: bytes) -> Listed:
    """The models of an answer to `GET /v1/models`. Raises NotAModelList."""
    shown = content_type.partition(b";")[0].strip()[:60].decode("ascii", "replace") or "without a content type"
    if status in (401, 403):
        if b'"missing_api_key"' in body or b'"invalid_api_key"' in body:
            raise NotAModelList(f"GET /v1/models answered {status}: an aiaas gateway listens there; is the port right?")
        raise NotAModelList(
            f"GET /v1/models answered {status}: it requires a key, or a different key; `api_key_env` names the "
            "environment variable that holds it"
        )
    if status == 400 and b"HTTPS" in body:  # nginx and Go say so
        raise NotAModelList(f"GET /v1/models answered 400: {WRITE_HTTPS}")
    if status != 200:
        raise NotAModelList(f"GET /v1/models answered {status} {shown}; is this a vLLM?")
    try:
        entries = msgspec.json.decode(body)["data"]
        listed = {entry["id"]: _served(entry) for entry in entries if isinstance(entry["id"], str)}
    except (*UNREADABLE, KeyError, TypeError):
        raise NotAModelList(f"GET /v1/models answered 200 {shown} but not a list of models; is this a vLLM?") from None
    return {name: _with_context(model, listed) for name, model in listed.items()}


def _with_context(model: ServedModel, listed: Listed) -> ServedModel:
    """vLLM does not send an adapter's context length; use that of its base."""
    base = listed.get(model.parent or "")
    if model.max_model_len is not None or base is None:
        return model
    return msgspec.structs.replace(model, max_model_len=base.max_model_len)


def _served(entry: Mapping[str, Any]) -> ServedModel:
    def text(name: str) -> str | None:
        value = entry.get(name)
        return value if isinstance(value, str) else None

    def number(name: str) -> int | None:
        value = entry.get(name)
        return value if type(value) is int and 0 < value < _LARGEST else None

    return ServedModel(entry["id"], text("root"), text("parent"), number("max_model_len"), number("created"))


def compare(plan: BackendPlan, listed: Listed) -> Comparison:
    """Compare a backend's list with its names in the config."""
    missing = tuple(name for name in plan.served_models if name not in listed)
    own = tuple((alias, name) for alias, name in plan.aliases.items() if is_its_own(alias, name, listed))
    return Comparison(missing, own)


def is_its_own(alias: str, name: str, listed: Listed) -> bool:
    """Whether the backend serves `alias` as another model than `name`."""
    if alias not in listed:  # nearly always
        return False
    found = listed[alias]
    meant = listed.get(name)
    return meant is None or found.parent != meant.parent or found.root is None or found.root != meant.root


def sentence(comparison: Comparison, listed: Listed) -> str:
    """The problems and their fixes, for a log; empty if there is no problem."""
    return "; ".join(part for part in (own_models_sentence(comparison), missing_sentence(comparison, listed)) if part)


def own_models_sentence(comparison: Comparison) -> str:
    """The aliases that are separate models, and the fix; empty if there are none."""
    if not comparison.own_models:
        return ""
    alias, name = comparison.own_models[0]
    aliases = ", ".join(alias for alias, _ in comparison.own_models[:MOST_NAMED])
    return (
        f"{aliases}: an alias in the config, but a separate model there, so requests for it go to that model; "
        f"write an entry for each: models: [{{name: {name}}}, {{name: {alias}}}]"
    )


def missing_sentence(comparison: Comparison, listed: Listed) -> str:
    """The models that the backend does not serve, and the fix; empty if there are none."""
    if not comparison.missing:
        return ""
    names = ", ".join(comparison.missing[:MOST_NAMED])
    there = ", ".join(sorted(listed)[:MOST_NAMED]) or "nothing"
    return f"{names}: not served there; the backend lists {there}; the first of `models` must be one that vLLM serves"
