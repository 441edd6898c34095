"""Check the key file against the Plan: a valid config may not fit its keys. Pure; the caller reads the file."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

from aiaas.config import codes
from aiaas.config.problem import Problem
from aiaas.keys.model import KeyRecord
from aiaas.openai.engine_fields import why_not_allowed
from aiaas.plan.model import Plan


def check_keys(plan: Plan, records: Iterable[KeyRecord]) -> tuple[Problem, ...]:
    """Problems of enabled records, by record. They have no line, since the CLI writes the key file."""
    names = [model.name for model in plan.models]
    for_all = {name for by_model in plan.routes.values() for name in by_model}
    known, ruled = for_all.union(names), plan.request.ruled_fields()
    forwarded = {name.lower() for backend in plan.backends for name in backend.forward_headers}
    return tuple(
        problem
        for record in records
        if not record.disabled
        for problem in _of_record(record, str(plan.auth.keys_file), known, ruled, forwarded)
    )


def _of_record(
    record: KeyRecord, file: str, known: set[str], ruled: frozenset[str], forwarded: set[str]
) -> Iterator[Problem]:
    where = f"keys.{record.name}"
    for model in record.models or ():
        if model not in known:
            close = difflib.get_close_matches(model, sorted(known), n=1)
            hint = f"did you mean {close[0]}?" if close else f"the config has {', '.join(sorted(known)) or 'none'}"
            message = f"may use {model}, which no backend serves (any more); {hint}"
            yield Problem(codes.KEY_SCOPE, "error", f"{where}.models", message, file)
    for name in record.allow_fields:
        if (fault := why_not_allowed(name, ruled)) is not None:
            yield Problem(codes.KEY_SCOPE, "error", f"{where}.allow_fields", f"{name[:80]}: {fault}", file)
    if record.users_header is not None and record.users_header.lower() in forwarded:
        message = f"{record.users_header} stands in forward_headers of a backend, too; users are never sent upstream"
        yield Problem(codes.WRONG_VALUE, "error", f"{where}.users_header", message, file)
    if record.weak:
        message = "was imported with --weak: it can be guessed, and its hash does not belong in git; make a new key"
        yield Problem(codes.WEAK_KEY, "warning", where, message, file)
