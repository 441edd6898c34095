"""Hold a request to the rules of the engine's fields: refuse it, or take fields out, or let it pass as it is.

The rules are those of `engine_fields.py`, changed by the operator's. Nearly every request has no guarded field: `peek`
says so, and nothing is done here. Values are read as vLLM reads them (`lenient.py`): `"priority": "5"` is a use, `null`
and the default are not one.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

import msgspec
from msgspec import Raw

from aiaas.errors import ClientError
from aiaas.openai import paths
from aiaas.openai.engine_fields import ENGINE_FIELDS, GUARDED, MCP, PARTS, RULED_NAMES, EngineField, FieldRule, on_path
from aiaas.openai.grammar import forces_tools, mcp_field, refuse_large_grammar
from aiaas.openai.lenient import scalar, whole
from aiaas.openai.parts import part_field
from aiaas.openai.peek import Peek
from aiaas.openai.splice import remove_field, set_field
from aiaas.openai.toplevel import UNREADABLE, may_hide_keys, top_level

SALT: Final = "cache_salt"
STORE: Final = "store"
PRIORITY_FIELD: Final = "priority"
# The paths whose request model knows `cache_salt`.
SALTED: Final = next(field.paths for field in ENGINE_FIELDS if field.name == SALT)
# Sets of fields that keys are allowed beyond the others, kept ready: each takes 50 KB, and 1 ms to make.
MOST_WIDER: Final = 100
_NESTED_TEMPLATE: Final = ("chat_template", "tokenize")  # in `chat_template_kwargs`: arguments of the template's caller


@dataclass(frozen=True, slots=True)
class _PathRules:
    """The rules of one path.

    fields   those whose action is not `pass`, by name
    parts    the names of parts' fields that are refused
    mcp      whether MCP tools that name a host are refused
    scan     `peek` does not read all of them: every field has to be looked at
    quick    a body without guarded fields and parts goes on as it is
    known    if unknown fields are refused: the names of the others
    """

    fields: Mapping[str, EngineField]
    parts: frozenset[str]
    mcp: bool
    scan: bool
    quick: bool
    known: frozenset[str] | None


class Guard:
    """The rules of all paths, for one Plan."""

    def __init__(self, rules: Mapping[str, FieldRule], unknown_fields: Literal["pass", "reject"]) -> None:
        self._rules, self._unknown_fields = rules, unknown_fields
        self._wider: dict[frozenset[str], Guard] = {}
        self._paths = {path: _path_rules(path, rules, unknown_fields) for path in paths.GENERATE}

    def allowing(self, names: frozenset[str]) -> Guard:
        """These rules, but a client may set the fields `names` as it likes. Made once for each set of names."""
        guard = self._wider.get(names)
        if guard is None:
            if len(self._wider) >= MOST_WIDER:
                self._wider.clear()
            guard = Guard({**self._rules, **dict.fromkeys(names, FieldRule("pass"))}, self._unknown_fields)
            self._wider[names] = guard
        return guard

    def check(self, body: bytes, peeked: Peek, path: str, *, salted: bool = False) -> bytes:
        """`body`, a request to `path` of which `peek` said `peeked`, as it may go on.

        salted  a backend splices its own `cache_salt`

        Raises ClientError 400 `invalid_request` with the field in `param`.
        """
        rules = self._paths[path]
        if (
            peeked.guarded is None
            and rules.quick
            and peeked.plain
            and body.find(b'_embeds"') < 0
            and body.find(b'"uuid"') < 0
        ):
            return body  # nearly every request
        if rules.parts:
            escaped = not peeked.plain and may_hide_keys(body)
            place = part_field(body, path, rules.parts, escaped=escaped)
            if place is not None:
                raise _refused(place)
        written = peeked.guarded
        if rules.scan:
            written = _scan(body, rules)
        if written is not None:
            for name, value in written.items():
                body = _hold(body, name, value, rules, written)
            if salted and SALT in written and path in SALTED:
                if is_used(bytes(written[SALT]), ""):
                    raise _refused(SALT)
                body = remove_field(body, SALT)
        store = rules.fields.get(STORE)
        if store is not None and store.action == "false" and (
            written is None or STORE not in written or bytes(written[STORE]) != b"false"
        ):  # fmt: skip
            body = set_field(body, STORE, b"false")
        return body

    def strips_from_form(self, name: str, value: bytes, path: str) -> bool:
        """Whether a field of a form is to be left out. Raises ClientError 400 `invalid_request` if it is refused.

        The engine takes an empty value for a missing one, and converts all values like JSON strings.
        """
        rules = self._paths[path]
        if rules.known is not None and name not in rules.known:
            raise _unknown(name)
        field = rules.fields.get(name)
        if field is None or not value:
            return False
        as_text = msgspec.json.encode(value.decode("utf-8", "replace"))
        if field.action == "bound":
            _bound(field, as_text if field.unit == "number" else value, {})
            return False
        used = is_used(as_text if field.harmless == "zero" else value.strip(b" \t\r\n"), field.harmless)
        if used and field.action == "reject":
            raise _refused(name)
        return used

    def strips_some(self, path: str) -> bool:
        """Whether some field is left out of requests."""
        return any(field.action == "strip" for field in self._paths[path].fields.values())

    def lets(self, name: str, path: str) -> bool:
        """Whether clients may set this field as they like."""
        return name not in self._paths[path].fields


def salt_of(secret: bytes, client: str) -> bytes:
    """The `cache_salt` of a client, as JSON: an HMAC, so that nobody who sees it can make another client's."""
    return b'"%b"' % hmac.digest(secret, client.encode("utf-8", "surrogateescape"), "sha256").hex().encode()


def _path_rules(path: str, rules: Mapping[str, FieldRule], unknown_fields: Literal["pass", "reject"]) -> _PathRules:
    table = on_path(path)
    fields = {name: field for name, field in table.items() if field.action != "pass"}
    for name, rule in rules.items():
        field = table.get(name)
        if field is None:
            if name not in RULED_NAMES and rule.action != "pass":
                fields[name] = EngineField(name, (path,), rule.action, "")
        elif rule.action == "pass":
            fields.pop(name, None)
        elif rule.action != "bound":
            fields[name] = replace(field, action=rule.action)
        elif field.unit is not None:
            fields[name] = replace(field, action="bound", most=rule.most)
    if "chat_template" in fields and "chat_template_kwargs" in table:
        fields.setdefault("chat_template_kwargs", table["chat_template_kwargs"])
    allowed = {name for name, rule in rules.items() if rule.action == "pass"}
    scan = unknown_fields == "reject" or not fields.keys() <= set(GUARDED)
    return _PathRules(
        fields,
        frozenset(PARTS) - allowed,
        MCP not in allowed and path == paths.RESPONSES,
        scan,
        not scan and STORE not in fields,
        frozenset(table) | allowed if unknown_fields == "reject" else None,
    )


def _scan(body: bytes, rules: _PathRules) -> dict[str, Raw]:
    """Every field of the body, by name. Raises ClientError 400 for an unknown or a repeated one."""
    found: dict[str, Raw] = {}
    for name, value in top_level(body):
        if rules.known is not None and name not in rules.known:
            raise _unknown(name)
        if name in found and name in rules.fields:
            raise ClientError(400, "invalid_request", f"`{name}` appears more than once.", param=name)
        found[name] = value
    return found


def _hold(body: bytes, name: str, value: Raw, rules: _PathRules, written: Mapping[str, Raw]) -> bytes:
    """`body` after the rule of one of its fields. Raises ClientError 400."""
    if name == "tools" and rules.mcp and (place := mcp_field(bytes(value))) is not None:
        raise _refused(place)
    field = rules.fields.get(name)
    if field is None or field.action == "false":
        return body
    text = bytes(value)
    if name == "chat_template_kwargs" and field.action == "pass":
        _refuse_template(text)
    elif field.action == "bound":
        _bound(field, text, written)
    elif field.action == "reject":
        if is_used(text, field.harmless):
            raise _refused(name)
    elif field.action == "strip" and is_used(text, field.harmless):
        body = remove_field(body, name)
    return body


def is_used(written: bytes, harmless: str) -> bool:
    """Whether a value of a field is a use of it: neither null nor the default (`Harmless`)."""
    if written == b"null":
        return False
    if harmless == "zero":
        try:
            return whole(scalar(Raw(written))) != 0
        except ValueError:
            return True
    return harmless != "empty" or written.translate(None, b" \t\r\n") not in (b"{}", b"[]")


def _refuse_template(written: bytes) -> None:
    if not any(name.encode() in written for name in (*_NESTED_TEMPLATE, "\\")):
        return
    members = _members(written)
    for name in _NESTED_TEMPLATE:
        if name in members and bytes(members[name]) != b"null":
            raise _refused(f"chat_template_kwargs.{name}")


def _bound(field: EngineField, written: bytes, all_written: Mapping[str, Raw]) -> None:
    most = field.most
    assert most is not None  # of every bound in the table and in the config
    if written == b"null":
        return
    if field.unit == "grammar":
        refuse_large_grammar(field.name, written, most)
    elif field.unit == "tools":
        choice = all_written.get("tool_choice")
        if forces_tools(None if choice is None else bytes(choice), written):
            refuse_large_grammar(field.name, written, most)
    elif field.unit == "entries":
        # An entry has a comma behind it, but the last; a text may hold more.
        if written.count(b",") >= most and _entries(written) > most:
            raise _above(field.name, f"may have at most {most} entries")
    elif field.unit == "members":
        if any(_is_above(bytes(value), most) for value in _members(written).values()):
            raise _above(field.name, f"may have numbers of at most {most}")
    elif _is_above(written, most):
        raise _above(field.name, f"may be at most {most}")


def _is_above(written: bytes, most: int) -> bool:
    """Whether the number is above `most`. To vLLM -1 means all, and it refuses other texts than numbers."""
    if len(written) > 100 or written == b"null":
        return written != b"null"
    try:
        number = whole(scalar(Raw(written)))
    except ValueError:
        return False
    return number > most or number < 0


_LIST: Final = msgspec.json.Decoder(list[Raw])
_OBJECT: Final = msgspec.json.Decoder(dict[str, Raw])


def _entries(written: bytes) -> int:
    try:
        return len(_LIST.decode(written)) if written[:1] == b"[" else len(_OBJECT.decode(written))
    except UNREADABLE:  # neither: vLLM refuses it
        return 0


def _members(written: bytes) -> dict[str, Raw]:
    try:
        return _OBJECT.decode(written)
    except UNREADABLE:  # not an object: vLLM refuses it
        return {}


def _unknown(name: str) -> ClientError:
    return ClientError(400, "invalid_request", f"`{name[:80]}` is not a field of this path.", param=name[:80])


def _refused(place: str) -> ClientError:
    message = f"`{place}` is set by the operator of this service; leave it out, or ask the operator to allow it."
    return ClientError(400, "invalid_request", message, param=place)


def _above(name: str, bound: str) -> ClientError:
    return ClientError(400, "invalid_request", f"`{name}` {bound}.", param=name)
