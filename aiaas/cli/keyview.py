"""Show keys: one record, a table's cells, and a new key itself, once."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiaas.cli.common import Output, print_json
from aiaas.cli.outcome import note
from aiaas.errors import EnvironmentFault
from aiaas.keys.changes import state_of
from aiaas.keys.model import KeyRecord
from aiaas.keys.records import record_mapping, time_text


def print_key(text: str, record: KeyRecord, keys_file: Path, output: Output, what: str, now: datetime) -> None:
    """Print a new key once; notes go to stderr. Raises EnvironmentFault if stdout cannot be written: the key is lost
    then."""
    try:
        if output is Output.json:
            print_json({"key": text, **shown(record, now)})
        else:
            print(text)
        sys.stdout.flush()
    except OSError as error:
        raise EnvironmentFault(
            f"the key could not be printed ({error.strerror}) and is lost; "
            f"`aiaas keys rotate {record.name}` makes another"
        ) from error
    note(f"{record.name} ({record.id}) {what} in {keys_file}; this is the only time that the key is shown")


def print_record(record: KeyRecord, output: Output, now: datetime) -> None:
    """Print the record of one key."""
    if output is Output.json:
        print_json(shown(record, now))
        return
    fields = {
        "name": record.name,
        "id": record.id,
        "state": state_of(record, now),
        "created": time_text(record.created),
        "expires": "never" if record.expires is None else time_text(record.expires),
        "models": models_text(record),
        "class": record.priority_class,
        "fields": fields_text(record),
        "users": _users_text(record),
        "limits": limits_text(record),
        "metadata": ", ".join(f"{name}={value}" for name, value in record.metadata.items()) or "none",
    }
    if record.imported:
        fields["imported"] = "yes, guessable" if record.weak else "yes"
    if (ends := record.overlap_end) is not None:
        fields["old secret"] = f"until {time_text(ends)}"
    for field, value in fields.items():
        print(f"{field + ':':<11} {value}")


def shown(record: KeyRecord, now: datetime) -> dict[str, Any]:
    """A record for JSON: always all fields, so that scripts need not guess."""
    empty: dict[str, Any] = {
        "expires": None,
        "disabled": False,
        "imported": False,
        "weak": False,
        "models": None,
        "class": "default",
        "allow_fields": [],
        "users_header": None,
        "user_limits": {},
        "limits": {},
    }
    mapping = empty | {"metadata": {}, "previous": None} | record_mapping(record)
    first = {"id": record.id, "name": record.name, "state": state_of(record, now)}
    return first | {name: value for name, value in mapping.items() if name not in first}


def models_text(record: KeyRecord) -> str:
    """The models that a key may use, in one cell."""
    return "all" if record.models is None else ", ".join(record.models) or "none"


def fields_text(record: KeyRecord) -> str:
    """The request fields that a key may set beyond those that the config allows, in one cell."""
    return ", ".join(record.allow_fields) or "the config's"


def used_text(record: KeyRecord, last_uses: Mapping[str, int]) -> str | None:
    """When a key was last used (`last_uses`: POSIX seconds by key id); None if unknown."""
    used = last_uses.get(record.id)
    return None if used is None else time_text(datetime.fromtimestamp(used, UTC))


def limits_text(record: KeyRecord) -> str:
    """A key's own limits, in one cell."""
    return _limits_text(record, "limits") or "the config's"


def _users_text(record: KeyRecord) -> str:
    if record.users_header is None:
        return "one"
    limits = _limits_text(record, "user_limits")
    return f"by {record.users_header}" + (f", each with {limits}" if limits else "")


def _limits_text(record: KeyRecord, field: str) -> str:
    return ", ".join(f"{name}={value}" for name, value in record_mapping(record).get(field, {}).items())
