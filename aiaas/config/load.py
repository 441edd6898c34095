"""Text -> Config, with every problem of the text and of single fields reported at once.

    text -> tree with places -> (a ConfigMap: its inner document) -> ${NAME} -> overrides -> secrets -> model

Bad input never raises: each error becomes a Problem at its line. Only a YAML syntax error hides the errors behind it,
since there is no tree to check.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from aiaas.config import codes
from aiaas.config.backend import LONG_FORM, SHORT_FORM
from aiaas.config.environment import interpolate, override
from aiaas.config.fields import fields_of
from aiaas.config.model import Config
from aiaas.config.problem import Problem, by_place, dotted, has_errors
from aiaas.config.secret import find_secrets
from aiaas.config.tree import MAX_TEXT, Flat, flatten, lay_over, parse, problem_at
from aiaas.errors import EnvironmentFault
from aiaas.units import format_size
from aiaas.yamltree import Node, Path, Place, Refused, Scalar, Table


@dataclass(frozen=True, slots=True)
class Loaded:
    """A config file as read.

    config     None if there is an error
    partial    the config without the fields that have errors, so that the checks between fields can still run and all
               problems are reported at once; not for other uses
    dropped    the paths of the fields left out of `partial`
    problems   in the file's order
    overrides  names of the environment variables in force
    values, keys  the place of each value, and of the key in front of it
    written    the fields as the file has them: before `${NAME}` is replaced and overrides are applied
    """

    config: Config | None
    problems: tuple[Problem, ...]
    overrides: tuple[str, ...]
    file: str
    values: Mapping[Path, Place] = field(repr=False)
    keys: Mapping[Path, Place] = field(repr=False)
    partial: Config | None = field(default=None, repr=False)
    dropped: frozenset[Path] = field(default=frozenset(), repr=False)
    written: Any = field(default=None, repr=False)

    def place(self, path: Path) -> Place:
        """Return the place of `path`, or of the nearest field around it that the file has."""
        while path and path not in self.values:
            path = path[:-1]
        return self.values.get(path, Place(self.file, 1, 1))


def load_file(path: FilePath, env: Mapping[str, str], overlays: Sequence[FilePath] = ()) -> Loaded:
    """Read and load a file, with later files over it. Raises EnvironmentFault if one is missing; every other error is a
    Problem."""
    texts: list[tuple[str, str]] = []
    for each in (path, *overlays):
        found = _read(each)
        if isinstance(found, Loaded):
            return found
        texts.append((str(each), found))
    return load_texts(texts, env)


def _read(path: FilePath) -> str | Loaded:
    """Return the text of a file, or its problem."""
    file = str(path)
    try:
        with path.open("rb") as stream:
            data = stream.read(4 * MAX_TEXT + 1)  # UTF-8 takes at most four bytes a character
    except FileNotFoundError:
        raise EnvironmentFault(f"{file}: no such file; `aiaas init` writes one, --config names another") from None
    except IsADirectoryError:
        return _unreadable(file, "is a folder; name the file in it")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return _unreadable(file, f"cannot be read: {reason}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        return _unreadable(file, f"is not UTF-8 (byte 0x{data[error.start]:02X}); save it as UTF-8", line, column)
    return text


def load_text(text: str, *, file: str, env: Mapping[str, str]) -> Loaded:
    """Load a config from its text; messages call it `file`. Never raises for bad input."""
    return load_texts([(file, text)], env)


def load_texts(texts: Sequence[tuple[str, str]], env: Mapping[str, str]) -> Loaded:
    """Load a config from the texts of (file, text), each laid over those before it. Never raises for bad input."""
    problems: list[Problem] = []
    flats: list[Flat] = []
    for name, text in texts:
        found, more = _flat_of(text, name)
        problems += more
        flats += [] if found is None else [found]
    file, flat = texts[0][0], flats[0] if flats else Flat()
    if len(flats) < len(texts):
        return Loaded(None, tuple(problems), (), file, {}, {})
    for over in flats[1:]:
        lay_over(flat, over)
    return _load(flat, problems, file, env)


def _flat_of(text: str, file: str) -> tuple[Flat | None, list[Problem]]:
    """Return the data of one file with its places; None if it cannot be read to its end."""
    node, problems = parse(text, file)
    if node is not None and _is_kubernetes(node):
        node, inner_problems = _inner_document(node, text, file)
        problems += inner_problems
    elif node is None and not problems:
        return None, list(_unreadable(file, "is empty; `aiaas init` writes a config to start from").problems)
    if node is None:
        return None, problems
    try:
        return flatten(node), problems
    except Refused as refused:
        return None, [*problems, problem_at(codes.YAML_FEATURE, "error", (), refused.message, refused.place)]


def _load(flat: Flat, problems: list[Problem], file: str, env: Mapping[str, str]) -> Loaded:
    """Return the config of plain data: environment, secrets, model."""
    written = flat.data  # interpolation builds new data and leaves this unchanged
    from_environment, more = interpolate(flat, env)
    problems += more
    secrets, more = find_secrets(flat, from_environment)
    problems += more
    overrides, more = override(flat, env)
    problems += more
    # For an unset variable or a secret, one message is enough: skip other errors of that value.
    said = {problem.path for problem in problems if problem.code in (codes.VARIABLE, codes.PLAIN_SECRET)}
    partial, dropped, more = _validate(flat, file, hidden=from_environment | secrets)
    problems += [problem for problem in more if problem.path not in said]
    dropped |= {path for path in flat.values if dotted(path) in said}

    problems.sort(key=by_place)
    usable = None if dropped or has_errors(tuple(problems)) else partial
    return Loaded(usable, tuple(problems), overrides, file, flat.values, flat.keys, partial, dropped, written)


def _unreadable(file: str, message: str, line: int = 1, column: int = 1) -> Loaded:
    problem = Problem(codes.UNREADABLE_FILE, "error", "", message, file, line, column)
    return Loaded(None, (problem,), (), file, {}, {})


def _text_of(node: Node, *keys: str) -> Scalar | None:
    """Return the text at `keys` inside a mapping, or None if it is missing or not text."""
    for key in keys:
        inner = node.values.get(key) if isinstance(node, Table) else None
        if inner is None:
            return None
        node = inner
    return node if isinstance(node, Scalar) else None


def _is_kubernetes(node: Node) -> bool:
    return _text_of(node, "apiVersion") is not None and _text_of(node, "kind") is not None


def _inner_document(node: Node, text: str, file: str) -> tuple[Node | None, list[Problem]]:
    """Return the config inside a ConfigMap, with its places in the outer file."""
    kind = _text_of(node, "kind")
    inner = _text_of(node, "data", "config.yaml")
    if kind is None or kind.text != "ConfigMap" or inner is None:
        name = kind.text[:60] if kind is not None else ""
        message = f"is a Kubernetes {name} without a config; aiaas reads a ConfigMap with data.config.yaml"
        place = kind.place if kind is not None else node.place
        return None, [problem_at(codes.CONFIG_MAP, "error", ("kind",), message, place)]
    if not inner.text.strip():
        return None, [problem_at(codes.CONFIG_MAP, "error", ("data", "config.yaml"), "is empty", inner.place)]
    if not inner.literal:  # quoted or folded: its lines are not the file's lines
        return parse(inner.text, file, fixed=inner.place)
    # A literal block's lines are the file's lines. Pad the inner document with blank lines in front and spaces before
    # each line, so that its places are already those of the outer file.
    lines = text.split("\n")[inner.place.line :]
    indent = next((len(line) - len(line.lstrip(" ")) for line in lines if line.strip()), 0)
    moved = "\n" * inner.place.line + "".join(
        (" " * indent + line if line.strip() else line) for line in inner.text.splitlines(keepends=True)
    )
    return parse(moved, file)


def _validate(flat: Flat, file: str, hidden: frozenset[Path]) -> tuple[Config | None, frozenset[Path], list[Problem]]:
    """Return the model, the fields left out of it, and their problems; None if the rest is not valid either."""
    try:
        return Config.model_validate(flat.data), frozenset(), []
    except ValidationError as error:
        details = error.errors(include_url=False)
    problems = [_translate(detail, flat, file, hidden) for detail in details]
    dropped = frozenset(_path_of(detail) for detail in details if detail["type"] != "missing")
    try:
        partial = Config.model_validate(_without(flat.data, dropped))
    except ValidationError:  # something required is missing or wrong: the rest cannot be checked
        partial = None
    return partial, dropped, problems


def _path_of(detail: ErrorDetails) -> Path:
    """Return the location in pydantic's error as a path in the file."""
    return tuple(part for part in detail["loc"] if part not in (SHORT_FORM, LONG_FORM, "[key]"))


def _without(value: Any, dropped: frozenset[Path], path: Path = ()) -> Any:
    """Return the data without some fields; drop a list that would lose an item, so that indexes stay valid."""
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, item in value.items():
        here = (*path, key)
        lists_go = isinstance(item, list) and any(gone[: len(here)] == here for gone in dropped)
        if here not in dropped and not lists_go:
            kept[key] = _without(item, dropped, here)
    return kept


def _translate(detail: ErrorDetails, flat: Flat, file: str, hidden: frozenset[Path]) -> Problem:
    """Return pydantic's error as a Problem in plain words, at its place."""
    path, kind = _path_of(detail), detail["type"]
    if detail["loc"] and detail["loc"][-1] == "[key]":
        name = path[-1]
        message = f"{name!r} is not a name; {_allowed(detail)}"
        return problem_at(codes.WRONG_VALUE, "error", path, message, flat.keys.get(path, Place(file, 1, 1)))
    place = _nearest(flat, path, file)
    if kind == "missing":
        return problem_at(codes.MISSING_FIELD, "error", path, "is required; " + _described(path), place)
    if kind == "extra_forbidden":
        return problem_at(codes.UNKNOWN_FIELD, "error", path, _unknown(path), flat.keys.get(path, place))
    wrong, semicolon, allowed = _wrong(detail).partition(";")
    shown = _shown(detail["input"]) if path not in hidden and wrong.startswith("must be") else ""
    return problem_at(codes.WRONG_VALUE, "error", path, wrong + shown + semicolon + allowed, place)


def _nearest(flat: Flat, path: Path, file: str) -> Place:
    """Return the place of the value, of the key if the field is missing or null, or of the nearest field around it."""
    for end in range(len(path), 0, -1):
        if end < len(path) and path[:end] in flat.keys:
            return flat.keys[path[:end]]
        if path[:end] in flat.values:
            return flat.values[path[:end]]
    return flat.values.get((), Place(file, 1, 1))


def _wrong(detail: ErrorDetails) -> str:
    """Return the error and the allowed values, for a value that is present."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        return f"must be one of {context['expected'].replace(' or ', ', ')}"
    if kind in ("greater_than_equal", "less_than_equal"):
        limit = context.get("ge", context.get("le"))
        shown = format_size(limit) if limit and limit % 1024 == 0 else limit
        return f"must be {'at least' if kind == 'greater_than_equal' else 'at most'} {shown}"
    if kind in ("too_short", "string_too_short"):
        return "must not be empty"
    if kind in ("too_long", "string_too_long"):
        return f"must not be longer than {context['max_length']}"
    if kind == "string_pattern_mismatch":
        return _allowed(detail)
    return _KINDS.get(kind, detail["msg"])


_KINDS = {
    "model_type": "must be a mapping of fields",
    "model_attributes_type": "must be a mapping of fields",
    "dict_type": "must be a mapping",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "string_type": "must be text; quote it if it is meant to be",
}

# Parts of the model's patterns, with the message for each.
_PATTERNS = (
    ("{0,38}", "must be at most 40 lower-case letters, digits and dashes, a letter first and no dash last"),
    ("^[a-z0-9]([a-z0-9-]{0,61}", "must be at most 63 lower-case letters, digits and dashes, no dash first or last"),
    ("{0,61}", "must start and end with a letter or digit, with letters, digits, dots, dashes or underscores between"),
    ("A-Za-z_", "must be the name of an environment variable: letters, digits and underscores, not a digit first"),
    ("[!-~]", "must be a path that starts with / and has no spaces"),
    ("{0,16}", "must be at most 16 letters, digits, dashes or underscores"),
    ("memory", "must be memory or an address such as redis://host:6379/0"),
    (r"\x00", "must not hold line breaks or other control characters"),
    ("[^\\s/]", "must be an address to listen on, such as 0.0.0.0, 127.0.0.1 or ::"),
    ("*\\.", "must be a host name such as api.example.com"),
    ("(\\.[a-z0-9]", "must be lower-case letters, digits, dots and dashes, a letter or digit first and last"),
    ("-._", "must be letters, digits, dots, dashes or underscores"),
    ("{0,127}", "must be the name of an image such as registry.example.com/team/aiaas:1.0, its path in lower case"),
)


def _allowed(detail: ErrorDetails) -> str:
    pattern = str(detail.get("ctx", {}).get("pattern", ""))
    return next((words for part, words in _PATTERNS if part in pattern), f"must match {pattern}")


def _shown(value: Any) -> str:
    """Return the offending value, shortened for a message."""
    if isinstance(value, bool) or value is None:
        return f", not {'null' if value is None else str(value).lower()}"
    if isinstance(value, dict):
        return ", not a mapping"
    if isinstance(value, list | tuple):
        return ", not a list" if value else ", not an empty list"
    text = repr(value) if isinstance(value, str) else str(value)
    return f", not {text if len(text) <= 60 else text[:57] + '...'}"


def _unknown(path: Path) -> str:
    """Return the message for an unknown field, with a suggestion."""
    known = list(fields_of(path[:-1]))
    close = difflib.get_close_matches(str(path[-1]), known, n=1)
    elsewhere = [other for other in _homes(str(path[-1])) if other != ".".join(str(part) for part in path)]
    if close:
        return f"is not a field; did you mean {close[0]}?"
    if elsewhere:
        return f"is not a field here; it belongs in {elsewhere[0]}"
    return f"is not a field; allowed: {', '.join(known)}"


def _homes(name: str) -> Iterator[str]:
    """Yield the sections that have a field of that name."""
    for section in ("server", "auth", "rate_limit", "request", "monitoring", "kubernetes"):
        if name in fields_of((section,)):
            yield section
    if name in fields_of(()):
        yield "the top level"


def _described(path: Path) -> str:
    return {
        "backends": "name at least one backend, such as `backends: {vllm: {url: http://vllm:8000, models: [NAME]}}`",
        "models": "list the models that the backend serves, vLLM's name for the model first",
        "kind": "vllm or simulator" if "engine" in path else "such as Deployment",
        "name": "write vLLM's name for the model",
    }.get(str(path[-1]), "add it")
