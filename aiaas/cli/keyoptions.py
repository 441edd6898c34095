"""The options of `aiaas keys create` and `import`, and the values of a record that are made of them."""

from __future__ import annotations

import difflib
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from aiaas.cli.complete import complete_keys, complete_models
from aiaas.cli.keytarget import KeyTarget
from aiaas.cli.outcome import note
from aiaas.errors import CheckFailed, UsageError
from aiaas.keys import changes
from aiaas.keys.model import PRIORITY_CLASSES, KeyLimits, PriorityClass
from aiaas.keys.records import MAX_LIMIT
from aiaas.keys.users import user_limits_fault, users_header_fault
from aiaas.openai.engine_fields import FIXED, why_not_allowed


def _limit(*names: str, help: str) -> Any:
    return typer.Option(*names, min=1, max=MAX_LIMIT, metavar="N", help=help)


KeysFileOption = Annotated[
    Path | None,
    typer.Option(
        "--keys-file",
        metavar="FILE",
        readable=False,  # the command that opens it reports that, with exit code 3
        help="The key file; then no config is needed.",
        show_default=False,
    ),
]
NewName = Annotated[str, typer.Argument(help="The new key's name.", show_default=False)]
AnyKey = Annotated[
    str,
    typer.Argument(metavar="NAME|ID", help="The key's name or id.", show_default=False, autocompletion=complete_keys),
]
ModelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="A model that the key may use; repeat for more. Default: all.",
        autocompletion=complete_models,
    ),
]
FieldOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-field",
        metavar="FIELD",
        help="A request field of vLLM that the key may set as it likes, such as priority; repeat for more.",
    ),
]
ClassOption = Annotated[
    PriorityClass,
    typer.Option("--class", metavar="CLASS", help=f"Its order in the queue: {', '.join(PRIORITY_CLASSES)}."),
]
UsersHeaderOption = Annotated[
    str | None,
    typer.Option(
        "--users-header",
        metavar="NAME",
        help="The header in which an application behind the key names its users, who then take turns: "
        "X-OpenWebUI-User-Id.",
    ),
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Accept a --model or an --allow-field that is unknown here (yet).")
]
MetadataOption = Annotated[
    list[str] | None, typer.Option("--metadata", metavar="NAME=VALUE", help="A note kept with the key; repeatable.")
]
ExpiresOption = Annotated[
    str | None, typer.Option("--expires", metavar="WHEN", help="90d, 12h or 2027-01-31. Default: never.")
]


RpmOption = Annotated[int | None, _limit("--rpm", "--requests-per-minute", help="Requests a minute.")]
BurstOption = Annotated[int | None, _limit("--burst", help="Requests that may arrive at once after an idle period.")]
TpmOption = Annotated[int | None, _limit("--tpm", "--tokens-per-minute", help="Tokens a minute.")]
TpdOption = Annotated[int | None, _limit("--tpd", "--tokens-per-day", help="Tokens in a UTC day.")]
MonthOption = Annotated[int | None, _limit("--tokens-per-month", help="Tokens in a UTC month.")]
ConcurrencyOption = Annotated[int | None, _limit("--concurrency", help="Requests in flight.")]

UserRpmOption = Annotated[
    int | None,
    _limit("--user-rpm", "--user-requests-per-minute", help="Requests a minute of each user (--users-header)."),
]
UserBurstOption = Annotated[int | None, _limit("--user-burst", help="Its requests at once after an idle period.")]
UserTpmOption = Annotated[int | None, _limit("--user-tpm", "--user-tokens-per-minute", help="Its tokens a minute.")]
UserTpdOption = Annotated[int | None, _limit("--user-tpd", "--user-tokens-per-day", help="Its tokens in a UTC day.")]
UserMonthOption = Annotated[int | None, _limit("--user-tokens-per-month", help="Its tokens in a UTC month.")]
UserConcurrencyOption = Annotated[int | None, _limit("--user-concurrency", help="Its requests in flight.")]


def key_models_of(models: list[str] | None, where: KeyTarget, *, force: bool) -> tuple[str, ...] | None:
    """The models of a new key. CheckFailed for a model that the config lacks, since `validate` would reject the key."""
    if not models:
        return None
    unique = tuple(dict.fromkeys(models))
    for model in unique:
        if where.models is not None and model not in where.models:
            near = difflib.get_close_matches(model, where.models, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(where.models) or 'none'}"
            if not force:
                raise CheckFailed(f"the config has no model {model!r}; {hint} (--force accepts it anyway)")
            note(f"warning: the config has no model {model!r}; {hint}")
    return unique


def allowed_fields_of(names: list[str] | None, where: KeyTarget, *, force: bool) -> tuple[str, ...]:
    """The request fields that a new key may set. CheckFailed for a name without a rule, which may be misspelt."""
    unique = tuple(dict.fromkeys(names or ()))
    for name in unique:
        fault = why_not_allowed(name, where.ruled_fields)
        if fault is not None:
            if not force or name in FIXED:
                hint = "" if name in FIXED else " (--force accepts it anyway)"
                raise CheckFailed(f"--allow-field {name[:80]}: {fault}{hint}")
            note(f"warning: --allow-field {name[:80]}: {fault}")
    return unique


def users_header_of(name: str | None) -> str | None:
    """The header with the users of a new key. Raises UsageError."""
    if name is not None and (fault := users_header_fault(name)) is not None:
        raise UsageError(f"--users-header {name[:80]!r} {fault}")
    return name


def user_limits_of(users_header: str | None, key: KeyLimits, user: KeyLimits) -> KeyLimits:
    """The limits of each user of a new key. Raises UsageError."""
    if (fault := user_limits_fault(users_header, key, user)) is not None:
        raise UsageError(f"--user-...: {fault}")
    return user


def metadata_of(pairs: list[str] | None) -> dict[str, str]:
    """The notes of a new key. Raises UsageError."""
    metadata: dict[str, str] = {}
    for pair in pairs or ():
        name, separator, value = pair.partition("=")
        if not separator or not name or not pair.isprintable():
            raise UsageError(f"--metadata {pair!r}: write it as name=value")
        if name in metadata:
            raise UsageError(f"--metadata {name} is given twice")
        metadata[name] = value
    return metadata


def expiry_of(text: str | None, now: datetime) -> datetime | None:
    """The moment from which a new key is refused; None means never. Raises UsageError."""
    try:
        return None if text is None else changes.parse_expiry(text, now)
    except ValueError as error:
        raise UsageError(f"--expires: {error}") from error


def overlap_of(text: str) -> timedelta:
    """How long the old secret of a rotated key stays valid. Raises UsageError."""
    try:
        return changes.parse_overlap(text)
    except ValueError as error:
        raise UsageError(f"--overlap {text!r}: {error}") from error
