"""`aiaas keys`: make, list, revoke, rotate, import and check API keys.

Rules: only `create` and `rotate` print a key, once, alone on stdout; foreign keys are read from stdin, so that they
never appear in a process list or a shell's history; messages for people go to stderr.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated

import typer

from aiaas.cli.common import (
    ConfigOption,
    Output,
    OutputOption,
    new_app,
    print_json,
    print_table,
)
from aiaas.cli.keyoptions import (
    AnyKey,
    BurstOption,
    ClassOption,
    ConcurrencyOption,
    ExpiresOption,
    FieldOption,
    ForceOption,
    KeysFileOption,
    MetadataOption,
    ModelOption,
    MonthOption,
    NewName,
    RpmOption,
    TpdOption,
    TpmOption,
    UserBurstOption,
    UserConcurrencyOption,
    UserMonthOption,
    UserRpmOption,
    UsersHeaderOption,
    UserTpdOption,
    UserTpmOption,
    allowed_fields_of,
    expiry_of,
    key_models_of,
    metadata_of,
    overlap_of,
    user_limits_of,
    users_header_of,
)
from aiaas.cli.keytarget import KeyTarget, editing, last_uses, read_key, read_records, target_of, translated
from aiaas.cli.keyview import fields_text, limits_text, models_text, print_key, print_record, shown, used_text
from aiaas.cli.outcome import note
from aiaas.errors import CheckFailed
from aiaas.keys import changes
from aiaas.keys.file import KeyFileError, edit_key_file
from aiaas.keys.format import foreign_key_fault, guessable, make_key, make_key_id, tag_of
from aiaas.keys.hashing import digest_key, hash_key, needs_update
from aiaas.keys.model import KeyLimits, KeyRecord
from aiaas.keys.records import time_text
from aiaas.keys.ring import KeyRing
from aiaas.keys.verifier import first_match

KEYS_EPILOG = """Examples:

\b
  KEY=$(aiaas keys create alice)                      a key with the config's limits
  aiaas keys create load --rpm 6000 --expires 7d      one for a load test
  aiaas keys rotate alice --overlap 24h               a new secret; the old one works for one more day
  printf %s "$OLD" | aiaas keys import bob            import an existing key
  printf %s "$KEY" | aiaas keys verify                identify a key: owner, status, limits
  aiaas keys list -o json | jq -r '.[].name'
"""

app = new_app(name="keys", help="Create, list, revoke and check API keys.", epilog=KEYS_EPILOG)


def _examples(*lines: str) -> str:
    return "\n  ".join(["Examples:\n\n\b", *lines])


@app.command(
    epilog=_examples(
        "aiaas keys create alice", "KEY=$(aiaas keys create alice --rpm 600 --expires 90d --metadata team=search)"
    )
)
def create(
    name: NewName,
    model: ModelOption = None,
    allow_field: FieldOption = None,
    users_header: UsersHeaderOption = None,
    force: ForceOption = False,
    priority_class: ClassOption = "default",
    rpm: RpmOption = None,
    burst: BurstOption = None,
    tpm: TpmOption = None,
    tpd: TpdOption = None,
    tokens_per_month: MonthOption = None,
    concurrency: ConcurrencyOption = None,
    user_rpm: UserRpmOption = None,
    user_burst: UserBurstOption = None,
    user_tpm: UserTpmOption = None,
    user_tpd: UserTpdOption = None,
    user_tokens_per_month: UserMonthOption = None,
    user_concurrency: UserConcurrencyOption = None,
    expires: ExpiresOption = None,
    metadata: MetadataOption = None,
    config: ConfigOption = None,
    keys_file: KeysFileOption = None,
    output: OutputOption = Output.text,
) -> None:
    """Create a key and print it once; only its hash is stored. A key without own limits has the config's."""
    where = target_of(config, keys_file)
    now = _now()
    limits = KeyLimits(rpm, burst, tpm, tpd, tokens_per_month, concurrency)
    user_limits = KeyLimits(user_rpm, user_burst, user_tpm, user_tpd, user_tokens_per_month, user_concurrency)
    key = make_key(where.prefix, secrets.token_bytes)
    record = KeyRecord(
        id=key.key_id,
        name=name,
        hash=digest_key(key.text),
        created=now,
        expires=expiry_of(expires, now),
        models=key_models_of(model, where, force=force),
        priority_class=priority_class,
        allow_fields=allowed_fields_of(allow_field, where, force=force),
        users_header=users_header_of(users_header),
        user_limits=user_limits_of(users_header, limits, user_limits),
        limits=limits,
        metadata=metadata_of(metadata),
    )
    with editing(where) as file:
        file.records = changes.add(file.records, record)
    print_key(key.text, record, where.keys_file, output, "created", now)


@app.command(name="list", epilog=_examples("aiaas keys list", "aiaas keys list -o json | jq -r '.[].name'"))
def list_keys(
    config: ConfigOption = None, keys_file: KeysFileOption = None, output: OutputOption = Output.text
) -> None:
    """List all keys: names, ids, states, models, limits. Keys and hashes are not shown."""
    where, now = target_of(config, keys_file), _now()
    records, used = read_records(where), last_uses(where)
    if output is Output.json:
        print_json([shown(record, now) | {"last_used": used_text(record, used)} for record in records])
        return
    if not records:
        note("no keys yet; `aiaas keys create NAME` makes one")
        return
    rows = [
        (
            record.name,
            record.id,
            changes.state_of(record, now),
            time_text(record.created),
            "never" if record.expires is None else time_text(record.expires),
            used_text(record, used) or "unknown",
            models_text(record),
            record.priority_class,
            fields_text(record),
            limits_text(record),
        )
        for record in records
    ]
    print_table(("NAME", "ID", "STATE", "CREATED", "EXPIRES", "LAST USED", "MODELS", "CLASS", "FIELDS", "LIMITS"), rows)


@app.command(epilog=_examples("aiaas keys show alice"))
def show(
    key: AnyKey, config: ConfigOption = None, keys_file: KeysFileOption = None, output: OutputOption = Output.text
) -> None:
    """Show the record of one key."""
    with translated():
        record = changes.find(read_records(target_of(config, keys_file)), key)
    print_record(record, output, _now())


@app.command(epilog=_examples("aiaas keys revoke alice"))
def revoke(key: AnyKey, config: ConfigOption = None, keys_file: KeysFileOption = None) -> None:
    """Refuse a key from now on. A running gateway notices within two seconds. `prune` removes it for good."""
    where = target_of(config, keys_file)
    with editing(where) as file:
        record = changes.find(file.records, key)
        file.records = changes.put(file.records, replace(record, disabled=True, previous=None))
    note(
        f"{record.name} ({record.id}) {'was revoked already' if record.disabled else 'is revoked'} in {where.keys_file}"
    )


@app.command(epilog=_examples("KEY=$(aiaas keys rotate alice --overlap 24h)"))
def rotate(
    key: AnyKey,
    overlap: Annotated[
        str, typer.Option("--overlap", metavar="DURATION", help="How long the old secret stays valid: 24h, 7d.")
    ] = "0s",
    config: ConfigOption = None,
    keys_file: KeysFileOption = None,
    output: OutputOption = Output.text,
) -> None:
    """Give a key a new secret and print it, once. Name, id, limits and models stay."""
    where = target_of(config, keys_file)
    now, remaining = _now(), overlap_of(overlap)
    with translated():
        old = changes.find(read_records(where), key)
    made = make_key(where.prefix, secrets.token_bytes, old.id)
    with editing(where) as file:
        record = changes.rotated(changes.find(file.records, old.id), digest_key(made.text), now, remaining)
        file.records = changes.put(file.records, record)
    ends = record.overlap_end
    until = "refused from now on" if ends is None else f"valid until {time_text(ends)}"
    print_key(made.text, record, where.keys_file, output, f"rotated (old secret {until})", now)


@app.command(
    name="import",
    epilog=_examples("aiaas keys import legacy < key.txt", "printf sk-test-key | aiaas keys import test --weak"),
)
def import_key(
    name: NewName,
    weak: Annotated[
        bool, typer.Option("--weak", help="Accept a guessable key; its hash does not belong in git.")
    ] = False,
    model: ModelOption = None,
    allow_field: FieldOption = None,
    users_header: UsersHeaderOption = None,
    force: ForceOption = False,
    priority_class: ClassOption = "default",
    rpm: RpmOption = None,
    burst: BurstOption = None,
    tpm: TpmOption = None,
    tpd: TpdOption = None,
    tokens_per_month: MonthOption = None,
    concurrency: ConcurrencyOption = None,
    user_rpm: UserRpmOption = None,
    user_burst: UserBurstOption = None,
    user_tpm: UserTpmOption = None,
    user_tpd: UserTpdOption = None,
    user_tokens_per_month: UserMonthOption = None,
    user_concurrency: UserConcurrencyOption = None,
    expires: ExpiresOption = None,
    metadata: MetadataOption = None,
    config: ConfigOption = None,
    keys_file: KeysFileOption = None,
) -> None:
    """Import an existing key, read from stdin: printf %s "$KEY" | aiaas keys import bob"""
    where = target_of(config, keys_file)
    now = _now()
    limits = KeyLimits(rpm, burst, tpm, tpd, tokens_per_month, concurrency)
    user_limits = KeyLimits(user_rpm, user_burst, user_tpm, user_tpd, user_tokens_per_month, user_concurrency)
    foreign = read_key()
    if (fault := foreign_key_fault(foreign)) is not None:
        raise CheckFailed(f"the text on stdin cannot be an API key: {fault}")
    if (why := guessable(foreign)) is not None and not weak:
        raise CheckFailed(f"this key is guessable: {why}; --weak imports it anyway")
    record = KeyRecord(
        id=make_key_id(secrets.token_bytes),
        name=name,
        hash=hash_key(foreign),
        tag=tag_of(foreign, weak=why is not None),
        created=now,
        expires=expiry_of(expires, now),
        models=key_models_of(model, where, force=force),
        priority_class=priority_class,
        allow_fields=allowed_fields_of(allow_field, where, force=force),
        users_header=users_header_of(users_header),
        user_limits=user_limits_of(users_header, limits, user_limits),
        limits=limits,
        metadata=metadata_of(metadata),
        imported=True,
        weak=why is not None,
    )
    with editing(where) as file:
        if (owner := _owner(file.records, foreign)) is not None:
            raise changes.KeyChangeError(f"this key is in {where.keys_file} already, as {owner[0].name}")
        file.records = changes.add(file.records, record)
    note(f"{name} ({record.id}) imported into {where.keys_file}")
    if record.weak:
        note(f"warning: {name} is guessable, so keep its hash out of git; `aiaas keys rotate {name}` replaces it")


@app.command(epilog=_examples('printf %s "$KEY" | aiaas keys verify'))
def verify(config: ConfigOption = None, keys_file: KeysFileOption = None, output: OutputOption = Output.text) -> None:
    """Identify a key read from stdin: owner, status, limits. Exit code 1 if the key is not valid."""
    where = target_of(config, keys_file)
    records, now = read_records(where), _now()
    presented = read_key()
    owner = _owner(records, presented)
    if owner is None:
        raise CheckFailed(f"not valid: no key in {where.keys_file} matches")
    record, matched = owner
    if (state := changes.state_of(record, now)) != "active":
        raise CheckFailed(f"not valid: this is the key of {record.name} ({record.id}), which is {state}")
    ends = record.overlap_end
    if record.previous is not None and ends is not None and matched == record.previous.hash:
        if ends <= now:
            raise CheckFailed(f"not valid: this is an old secret of {record.name} ({record.id}), rotated out")
        note(f"warning: this is the old secret of {record.name}, valid until {time_text(ends)}")
    elif needs_update(matched, imported=record.imported):
        _renew(where, record, presented)
    print_record(record, output, now)


@app.command(epilog=_examples("aiaas keys prune --dry-run"))
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the keys that would be removed.")] = False,
    config: ConfigOption = None,
    keys_file: KeysFileOption = None,
    output: OutputOption = Output.text,
) -> None:
    """Remove revoked and expired keys from the file, and old secrets whose overlap has ended. Prints their names."""
    where = target_of(config, keys_file)
    now = _now()
    if dry_run:
        _, gone = changes.pruned(read_records(where), now)
    else:
        with editing(where) as file:
            file.records, gone = changes.pruned(file.records, now)
    if output is Output.json:
        print_json([shown(record, now) for record in gone])
    else:
        for record in gone:
            print(record.name)
    count = f"{len(gone)} {'key' if len(gone) == 1 else 'keys'}"
    note(f"{count} {'would be ' if dry_run else ''}removed from {where.keys_file}")


def _owner(records: tuple[KeyRecord, ...], presented: str) -> tuple[KeyRecord, str] | None:
    """The record that `presented` belongs to, whatever its state, and the hash that it matched."""
    found = KeyRing.from_records(records).find(presented)
    secret = found.secret
    if secret is None:
        index = first_match(presented, tuple(candidate.hash for candidate in found.slow))
        if index is None:
            return None
        secret = found.slow[index]
    return changes.find(records, secret.principal.key_id), secret.hash


def _renew(where: KeyTarget, record: KeyRecord, presented: str) -> None:
    """Store the key's hash in today's form; if the file cannot be written, only warn."""
    if record.imported:
        fresh = replace(record, hash=hash_key(presented))
    else:
        fresh = replace(record, hash=digest_key(presented), tag=None)
    try:
        with edit_key_file(where.keys_file) as file:
            if record in file.records:  # otherwise somebody changed it meanwhile; keep their change
                file.records = changes.put(file.records, fresh)
    except KeyFileError as error:
        note(f"warning: the hash of {record.name} is outdated and could not be renewed: {error}")
    else:
        note(f"the hash of {record.name} was outdated and is renewed in {where.keys_file}")


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
