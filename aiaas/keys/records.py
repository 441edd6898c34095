"""The key file's text: records to YAML and back; errors name line and column. Pure.

    # API keys of aiaas ...
    version: 1
    keys:
    - id: 4hT0bQ2x
      name: alice
      hash: '{SSHA256}...'               # of an imported key $argon2id$..., and its `tag`
      created: '2026-03-01T09:00:00Z'
      models: [gpt-oss-20b]              # optional, as everything below
      class: batch
      allow_fields: [prompt_logprobs]
      users_header: X-OpenWebUI-User-Id
      user_limits: {requests_per_minute: 10}
      limits: {requests_per_minute: 60}
    ...

Rules:
  1. One invalid record fails the whole file: half a key file must never replace a good one.
  2. The last line is `...` (YAML's end of a document). A file that carries our first line without that last one was cut
     short, even where the cut fell between two records and what is left is fine YAML.
  3. Written in the order of the records and with a fixed order of fields, so that one changed key is one small diff.
  4. A digest stands only in the record of a key that aiaas made: an imported key may be guessable.
  5. Only the CLI writes the file, but people merge it in git: every error names its line and column.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import yaml

from aiaas.keys.format import is_key_id
from aiaas.keys.hashing import hash_fault, is_digest
from aiaas.keys.model import NO_LIMITS, PRIORITY_CLASSES, KeyLimits, KeyRecord, PreviousSecret, PriorityClass
from aiaas.keys.tree import KeyFileError, read_tree
from aiaas.keys.users import user_limits_fault, users_header_fault
from aiaas.yamltree import Items, Node, Place, Scalar, Table

HEADER: Final = "# API keys of aiaas: hashes, no keys. Only `aiaas keys` writes this file; it may live in git."
END: Final = "..."
KEY_FILE_VERSION: Final = 1
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
NAME_RULE: Final = "1 to 64 letters, digits and . _ @ -, the first a letter or a digit"
LIMIT_FIELDS: Final = tuple(field.name for field in fields(KeyLimits))
MAX_LIMIT: Final = 10**15

_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_TAG: Final = re.compile(r"[0-9a-f]{2}|[0-9a-f]{4}")
_FURTHER: Final = ("allow_fields", "users_header", "user_limits", "limits", "metadata", "previous")
_T = TypeVar("_T")


def parse_records(text: str, source: str) -> tuple[KeyRecord, ...]:
    """Read the text of a key file. Raises KeyFileError for the first mistake."""
    return tuple(each_record(text, source))


def each_record(text: str, source: str) -> Iterator[KeyRecord]:
    """As `parse_records`, one by one. The records before a KeyFileError are not to be used.

    Neither the records nor the nodes that they are read from are kept: to free those of 50,000 keys at once takes the
    GIL for 70 ms.
    """
    return _Reader(source).records(text)


def render_records(records: Iterable[KeyRecord]) -> str:
    """The text of a key file that holds `records`, in their order."""
    document = {"version": KEY_FILE_VERSION, "keys": [_as_mapping(record) for record in records]}
    body: str = yaml.dump(
        document, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True, width=10_000, default_flow_style=False
    )
    return f"{HEADER}\n{body}{END}\n"


def record_mapping(record: KeyRecord) -> dict[str, Any]:
    """The public part of a record, in JSON's types: without hashes and tags."""
    shown = _as_mapping(record)
    for hidden in ("hash", "tag"):
        shown.pop(hidden, None)
    if (ends := record.overlap_end) is not None:
        shown["previous"] = {"until": time_text(ends)}
    return shown


def time_text(moment: datetime) -> str:
    """Write a moment as `2026-03-01T09:00:00Z`: whole seconds, UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> datetime:
    """Parse a date or a moment in ISO 8601; the zone defaults to UTC, the time to midnight. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _as_mapping(record: KeyRecord) -> dict[str, Any]:
    """A record as YAML, in the order of the file, without the fields that have their default."""
    mapping: dict[str, Any] = {"id": record.id, "name": record.name, "hash": record.hash}
    if record.tag is not None:
        mapping["tag"] = record.tag
    mapping["created"] = time_text(record.created)
    if record.expires is not None:
        mapping["expires"] = time_text(record.expires)
    for flag in ("disabled", "imported", "weak"):
        if getattr(record, flag):
            mapping[flag] = True
    if record.models is not None:
        mapping["models"] = list(record.models)
    if record.priority_class != "default":
        mapping["class"] = record.priority_class
    if record.allow_fields:
        mapping["allow_fields"] = list(record.allow_fields)
    if record.users_header is not None:
        mapping["users_header"] = record.users_header
    mapping |= _limits_as_mapping("user_limits", record.user_limits) | _limits_as_mapping("limits", record.limits)
    if record.metadata:
        mapping["metadata"] = dict(record.metadata)
    if record.previous is not None:
        previous: dict[str, Any] = {"hash": record.previous.hash, "until": time_text(record.previous.until)}
        if record.previous.tag is not None:
            previous["tag"] = record.previous.tag
        if record.previous.imported:
            previous["imported"] = True
        mapping["previous"] = previous
    return mapping


def _limits_as_mapping(field: str, limits: KeyLimits) -> dict[str, dict[str, int]]:
    set_here = {name: value for name in LIMIT_FIELDS if (value := getattr(limits, name)) is not None}
    return {field: set_here} if set_here else {}


class _Reader:
    """Turns one text into records. `where` is the path to the node at hand, for messages: `keys[3] (bob): limits`."""

    def __init__(self, source: str) -> None:
        self._source = source

    def records(self, text: str) -> Iterator[KeyRecord]:
        if not text.strip():
            raise self._error(None, "it is empty; a key file begins with `version: 1` (was it cut short?)")
        if text.startswith(HEADER) and text.rstrip("\r\n ").rsplit("\n", 1)[-1].rstrip() != END:
            place = Place(self._source, text.count("\n") + 1, 1)
            raise self._error(place, f"it was cut short: its last line must be `{END}`; restore it from a backup")
        root = self._mapping(read_tree(text, self._source), "the file", known=("version", "keys"))
        version = self._get(root, "the file", "version", self._text)
        if version != str(KEY_FILE_VERSION):
            raise self._error(
                root.values["version"].place, f"version is {version!r}; this version of aiaas reads {KEY_FILE_VERSION}"
            )
        entries = root.values.get("keys")
        if entries is None:
            raise self._error(root.place, "`keys` is missing; for a file without keys write `keys: []`")
        if not isinstance(entries, Items):
            raise self._error(entries.place, "`keys` must be a list; for a file without keys write `keys: []`")
        nodes, double = list(reversed(entries.items)), None
        root.values.clear()
        del entries
        names: dict[str, Place] = {}
        ids: dict[str, Place] = {}
        for index in range(len(nodes)):
            place = nodes[-1].place
            record = self._record(nodes.pop(), f"keys[{index}]")
            double = double or self._double("name", record.name, names, place)
            double = double or self._double("id", record.id, ids, place)
            yield record
        if double is not None:
            raise double
        for seen in (names, ids):
            while seen:
                seen.popitem()

    def _record(self, node: Node, where: str) -> KeyRecord:
        known = ("id", "name", "hash", "tag", "created", "expires", "disabled", "imported", "weak", "models", "class")
        record = self._mapping(node, where, known=(*known, *_FURTHER))
        name = self._get(record, where, "name", self._name)
        where = f"{where} ({name})"
        key_id = self._get(record, where, "id", self._id)
        hashed, tag, imported = self._secret(record, where)
        header = self._maybe(record, where, "users_header", self._header)
        limits = self._maybe(record, where, "limits", self._limits) or NO_LIMITS
        user_limits = self._maybe(record, where, "user_limits", self._limits) or NO_LIMITS
        if (fault := user_limits_fault(header, limits, user_limits)) is not None:
            raise self._error(record.values["user_limits"].place, f"{where}: user_limits: {fault}")
        return KeyRecord(
            id=key_id,
            name=name,
            hash=hashed,
            created=self._get(record, where, "created", self._time),
            expires=self._maybe(record, where, "expires", self._time),
            disabled=self._maybe(record, where, "disabled", self._flag) or False,
            models=self._maybe(record, where, "models", self._models),
            priority_class=self._maybe(record, where, "class", self._class) or "default",
            allow_fields=self._maybe(record, where, "allow_fields", self._fields) or (),
            users_header=header,
            user_limits=user_limits,
            limits=limits,
            metadata=self._maybe(record, where, "metadata", self._metadata) or {},
            previous=self._maybe(record, where, "previous", self._previous),
            imported=imported,
            tag=tag,
            weak=self._maybe(record, where, "weak", self._flag) or False,
        )

    def _secret(self, mapping: Table, where: str) -> tuple[str, str | None, bool]:
        """The fields that a record and its previous secret share: hash, tag, and whether the key was imported."""
        hashed = self._get(mapping, where, "hash", self._hash)
        tag = self._maybe(mapping, where, "tag", self._tag)
        imported = self._maybe(mapping, where, "imported", self._flag) or False
        if imported and tag is None:
            raise self._error(mapping.place, f"{where}: an imported key needs its `tag`; import it again")
        if imported and is_digest(hashed):
            place = mapping.values["hash"].place
            raise self._error(place, f"{where}: hash: an imported key needs a slow hash, not a digest; import it again")
        return hashed, tag, imported

    def _double(self, word: str, value: str, seen: dict[str, Place], place: Place) -> KeyFileError | None:
        first = seen.setdefault(value, place)
        if first is place:
            return None
        return self._error(place, f"{word} {value!r} is already used in line {first.line}; every key needs its own")

    # One method for each kind of value: a node and where it stands, to a value or a KeyFileError.

    def _text(self, node: Node, where: str) -> str:
        if not isinstance(node, Scalar):
            raise self._error(node.place, f"{where} must be a string")
        return node.text

    def _name(self, node: Node, where: str) -> str:
        text = self._text(node, where)
        if not NAME.fullmatch(text):
            raise self._error(node.place, f"{where} {text[:80]!r} is not a valid name; use {NAME_RULE}")
        return text

    def _id(self, node: Node, where: str) -> str:
        text = self._text(node, where)
        if not is_key_id(text):
            raise self._error(
                node.place, f"{where} {text[:80]!r} is not a key id; a key id has eight letters and digits"
            )
        return text

    def _hash(self, node: Node, where: str) -> str:
        text = self._text(node, where)
        if (fault := hash_fault(text)) is not None:
            raise self._error(node.place, f"{where} cannot be used: {fault}")
        return text

    def _tag(self, node: Node, where: str) -> str:
        text = self._text(node, where)
        if not _TAG.fullmatch(text):
            raise self._error(node.place, f"{where} must be two or four hex digits")
        return text

    def _time(self, node: Node, where: str) -> datetime:
        text = self._text(node, where)
        try:
            return parse_time(text)
        except (ValueError, OverflowError):
            raise self._error(
                node.place, f"{where} {text[:40]!r} is not a date; write 2026-03-01 or 2026-03-01T09:00:00Z"
            ) from None

    def _flag(self, node: Node, where: str) -> bool:
        value = (
            {"true": True, "false": False}.get(node.text.lower()) if isinstance(node, Scalar) and node.plain else None
        )
        if value is None:
            raise self._error(node.place, f"{where} must be true or false")
        return value

    def _amount(self, node: Node, where: str) -> int:
        if not (isinstance(node, Scalar) and node.plain and re.fullmatch(r"[0-9][0-9_]{0,18}", node.text)):
            raise self._error(node.place, f"{where} must be a whole number above 0")
        amount = int(node.text.replace("_", ""))
        if not 1 <= amount <= MAX_LIMIT:
            raise self._error(node.place, f"{where} must be 1 to {MAX_LIMIT}; to stop a key, use `aiaas keys revoke`")
        return amount

    def _models(self, node: Node, where: str) -> tuple[str, ...]:
        if not isinstance(node, Items):
            raise self._error(node.place, f"{where} must be a list of model names; leave it out to allow all")
        return tuple(self._text(item, f"{where}[{index}]") for index, item in enumerate(node.items))

    def _fields(self, node: Node, where: str) -> tuple[str, ...]:
        if not isinstance(node, Items):
            raise self._error(node.place, f"{where} must be a list of request fields; leave it out to allow none")
        return tuple(self._text(item, f"{where}[{index}]") for index, item in enumerate(node.items))

    def _header(self, node: Node, where: str) -> str:
        text = self._text(node, where)
        if (fault := users_header_fault(text)) is not None:
            raise self._error(node.place, f"{where} {text[:80]!r} {fault}")
        return text

    def _class(self, node: Node, where: str) -> PriorityClass:
        text = self._text(node, where)
        for known in PRIORITY_CLASSES:
            if text == known:
                return known
        raise self._error(node.place, f"{where} {text[:80]!r} is unknown; known are {', '.join(PRIORITY_CLASSES)}")

    def _limits(self, node: Node, where: str) -> KeyLimits:
        limits = self._mapping(node, where, known=LIMIT_FIELDS)
        return KeyLimits(**{name: self._maybe(limits, where, name, self._amount) for name in LIMIT_FIELDS})

    def _metadata(self, node: Node, where: str) -> dict[str, str]:
        metadata = self._mapping(node, where, known=None)
        return {name: self._text(value, f"{where}.{name}") for name, value in metadata.values.items()}

    def _previous(self, node: Node, where: str) -> PreviousSecret:
        previous = self._mapping(node, where, known=("hash", "until", "tag", "imported"))
        hashed, tag, imported = self._secret(previous, where)
        return PreviousSecret(
            hash=hashed,
            until=self._get(previous, where, "until", self._time),
            tag=tag,
            imported=imported,
        )

    # Mappings.

    def _mapping(self, node: Node, where: str, *, known: tuple[str, ...] | None) -> Table:
        if not isinstance(node, Table):
            raise self._error(node.place, f"{where} must be a mapping of `name: value` lines")
        unknown = next((key for key in node.values if known is not None and key not in known), None)
        if known is not None and unknown is not None:
            raise self._error(
                node.values[unknown].place, f"{where}: {unknown[:80]!r} is unknown; known are {', '.join(known)}"
            )
        return node

    def _get(self, mapping: Table, where: str, field: str, read: Callable[[Node, str], _T]) -> _T:
        value = self._maybe(mapping, where, field, read)
        if value is None:
            raise self._error(mapping.place, f"{where}: {field} is missing (was the file cut short?)")
        return value

    def _maybe(self, mapping: Table, where: str, field: str, read: Callable[[Node, str], _T]) -> _T | None:
        node = mapping.values.get(field)
        if node is None or (isinstance(node, Scalar) and node.plain and node.text in _NULLS):
            return None
        return read(node, f"{where}: {field}" if where != "the file" else field)

    def _error(self, place: Place | None, reason: str) -> KeyFileError:
        return KeyFileError(place or Place(self._source), reason)
