"""`aiaas usage`: read requests and LLM tokens by key, model or user, and day from the gateway's store."""

from __future__ import annotations

import asyncio
import csv
import difflib
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aiaas.cli.common import ConfigOption, config_paths, new_app, print_json, print_table
from aiaas.cli.complete import complete_keys
from aiaas.cli.outcome import note
from aiaas.errors import CheckFailed, EnvironmentFault, UsageError

if TYPE_CHECKING:
    from aiaas.limits.usage import KeptUsage, UsageKey, UsageStore, UsageSums

app = new_app()


class UsageOutput(StrEnum):
    """How the result is printed."""

    text = "text"
    json = "json"
    csv = "csv"


class UsageBy(StrEnum):
    """The kind of the rows of a day and key."""

    model = "model"
    user = "user"


COUNTS = ("requests", "input_tokens", "output_tokens", "estimated_input_tokens", "estimated_output_tokens")


@app.command(
    epilog="""Examples:

\b
  aiaas usage                                  the last 7 days, today included
  aiaas usage --key alice --since 2026-03-01
  aiaas usage --since 31d -o csv > usage.csv
  aiaas usage --by user --key webui            each user whom the key's --users-header names, by a hash
  aiaas usage --key webui --user 4f0c2a11      the one whom the application calls so
  aiaas usage -o json | jq 'map(.output_tokens) | add'

A request counts on the UTC day of its admission, at most a second after it ended. Estimated tokens belong to requests
that ended before the backend reported its usage; the other columns do not include them.
"""
)
def usage(
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="NAME|ID", help="Only this key.", autocompletion=complete_keys),
    ] = None,
    by: Annotated[
        UsageBy, typer.Option("--by", metavar="model|user", help="Sum by model, or by the users behind each key.")
    ] = UsageBy.model,
    user: Annotated[
        str | None,
        typer.Option("--user", metavar="NAME", help="Only this user, as the application names it; needs --key."),
    ] = None,
    since: Annotated[
        str, typer.Option("--since", metavar="WHEN", help="7d (today and the six days before), or 2026-03-01.")
    ] = "7d",
    config: ConfigOption = None,
    output: Annotated[
        UsageOutput, typer.Option("--output", "-o", metavar="text|json|csv", help="How to print the result.")
    ] = UsageOutput.text,
) -> None:
    """Show requests and LLM tokens by key, model or user, and day (UTC)."""
    from aiaas.limits.usage import UsageStoreError, day_text

    if user is not None:
        if key is None:
            raise UsageError("--user needs --key: the key whose user this is")
        by = UsageBy.user
    store = store_of(config_paths(config))
    first = first_day(since, time.time())
    try:
        kept = asyncio.run(_read(store, first, key, by))
    except UsageStoreError as error:
        raise EnvironmentFault(str(error)) from error
    if user is not None:
        kept = _of_user(kept, user)
    rows = [
        _row(at, sums, by) for at, sums in sorted(kept.items(), key=lambda item: (item[0].day, item[1].name, item[0]))
    ]
    if output is UsageOutput.json:
        print_json(rows)
    elif output is UsageOutput.csv:
        _print_csv(rows, by)
    elif rows:
        _print_table(rows, by)
    if not rows:
        hint = "; users are those of keys with a users_header" if by is UsageBy.user else ""
        note(f"no usage since {day_text(first)}{hint}")


async def _read(store: UsageStore, first: int, key: str | None, by: UsageBy) -> KeptUsage:
    try:
        kept = await store.read(first, by_user=by is UsageBy.user)
        return kept if key is None else _of_key(kept, key) or _nothing_of(await store.read(0), key)
    finally:
        await store.close()


def store_of(paths: Sequence[Path]) -> UsageStore:
    """The usage store of this config's gateway. Raises CheckFailed if it keeps no usage or the config has errors."""
    from aiaas.config.files import config_name, config_options
    from aiaas.plan.read import read_plan
    from aiaas.proxy.usage import usage_store

    name = config_name(paths)
    plan, _ = read_plan(paths[0], os.environ, paths[1:])
    if plan is None:
        raise CheckFailed(f"{name} has errors; `aiaas validate {config_options(paths)}` shows them")
    store = usage_store(plan)
    if store is None:
        raise CheckFailed(f"{name} keeps no usage; set monitoring.usage_file: usage.db there and restart the gateway")
    return store


def first_day(since: str, now: float) -> int:
    """The first UTC day of `7d`, `2w` (today counts as one of them) or a date. Raises UsageError."""
    from aiaas.limits.usage import day_from, day_of
    from aiaas.units import DAY, parse_duration

    try:
        return day_from(since)
    except ValueError:
        pass
    try:
        days = math.ceil(parse_duration(since) / DAY)
    except ValueError as error:
        raise UsageError(f"--since: {since!r} is not a time; write for example 7d, 12w or 2026-03-01") from error
    return max(day_of(now) - max(days, 1) + 1, 0)


def _of_key(kept: KeptUsage, wanted: str) -> KeptUsage:
    """The usage of one key, by its name or its id."""
    return {at: sums for at, sums in kept.items() if wanted in (at.key_id, sums.name)}


def _of_user(kept: KeptUsage, name: str) -> KeptUsage:
    """The usage of one user, by the name that the application sends."""
    from aiaas.keys.users import user_of

    return {at: sums for at, sums in kept.items() if at.user == user_of(at.key_id, name)}


def _nothing_of(ever: KeptUsage, wanted: str) -> KeptUsage:
    """Empty usage of a key that was used before. Raises CheckFailed if a key of that name or id was never used."""
    if not _of_key(ever, wanted):
        near = difflib.get_close_matches(wanted, sorted({sums.name for sums in ever.values()}), n=1)
        hint = f"did you mean {near[0]}?" if near else "`aiaas keys list` shows all keys"
        raise CheckFailed(f"no key {wanted[:80]!r} has been used; {hint}")
    return {}


def _row(at: UsageKey, sums: UsageSums, by: UsageBy) -> dict[str, Any]:
    from aiaas.limits.usage import day_text

    return {
        "day": day_text(at.day),
        "key": sums.name,
        "key_id": at.key_id,
        by.value: at.user or at.model,
        "requests": sums.requests,
        "input_tokens": sums.input_tokens,
        "output_tokens": sums.output_tokens,
        "estimated_input_tokens": sums.estimated_input_tokens,
        "estimated_output_tokens": sums.estimated_output_tokens,
    }


def _print_csv(rows: Iterable[Mapping[str, Any]], by: UsageBy) -> None:
    writer = csv.DictWriter(sys.stdout, ("day", "key", "key_id", by.value, *COUNTS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _print_table(rows: Sequence[Mapping[str, Any]], by: UsageBy) -> None:
    """Print the counts aligned to the right, with their sums in the last line."""
    columns = []
    for header, field in zip(("REQUESTS", "INPUT", "OUTPUT", "EST. INPUT", "EST. OUTPUT"), COUNTS, strict=True):
        cells = [header, *(str(row[field]) for row in rows), str(sum(row[field] for row in rows))]
        width = max(map(len, cells))
        columns.append([cell.rjust(width) for cell in cells])
    headers, *counts = zip(*columns, strict=True)
    names = [(row["day"], row["key"], row[by.value]) for row in rows]
    lines = [(*named, *counted) for named, counted in zip([*names, ("total", "", "")], counts, strict=True)]
    print_table(("DAY", "KEY", by.value.upper(), *headers), lines)
