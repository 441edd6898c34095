"""Completion of arguments: keys, models, checks, faults, kinds, presets, clients, codes.

The shell runs `aiaas` for each TAB, so nothing here may be slow: the config is read as plain YAML, without its model,
and the key file by its lines. A file that cannot be read gives no words; `aiaas.cli.main` silences all else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer

from aiaas.cli.common import DEFAULT_CONFIG, named_paths

# `- name: alice` and `name: alice`, quoted or not.
_NAME = re.compile(r"^\s*(?:- )?name:\s*['\"]?([^\s'\"#]+)", re.MULTILINE)


def complete_keys(ctx: typer.Context, incomplete: str) -> list[str]:
    """The names in the key file of the command's config, or of `--keys-file`."""
    file = ctx.params.get("keys_file")
    path = Path(file) if file else _keys_file(ctx)
    try:
        names = _NAME.findall(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return []
    return _beginning(names, incomplete)


def complete_models(ctx: typer.Context, incomplete: str) -> list[str]:
    """The models of the config."""
    backends = _config(ctx).get("backends")
    models = [
        name
        for backend in (backends.values() if isinstance(backends, dict) else ())
        if isinstance(backend, dict)
        for entry in backend.get("models") or ()
        for name in _names_of(entry)
    ]
    return _beginning(models, incomplete)


def complete_checks(incomplete: str) -> list[str]:
    """Checks of a smoke test, also behind a comma."""
    from aiaas.smoke.names import CHECK_NAMES

    return _in_list(CHECK_NAMES, incomplete)


def complete_kinds(incomplete: str) -> list[str]:
    """Kinds of Kubernetes objects, also behind a comma."""
    from aiaas.manifests.render import MANIFEST_KINDS

    return _in_list(MANIFEST_KINDS, incomplete)


def complete_faults(incomplete: str) -> list[str]:
    """The simulator's faults."""
    from aiaas.simulator.faults import FAULT_KINDS

    return _beginning(FAULT_KINDS, incomplete)


def complete_presets(incomplete: str) -> list[str]:
    """Presets of a load test."""
    from aiaas.cli.loadoptions import PRESETS

    return _beginning(PRESETS, incomplete)


def complete_clients(incomplete: str) -> list[str]:
    """Clients of `aiaas connect`."""
    from aiaas.clients.table import CLIENTS

    return _beginning((client.name for client in CLIENTS), incomplete)


def complete_codes(incomplete: str) -> list[str]:
    """Codes of problems. (The fields of the config would take too long: they need its model.)"""
    from aiaas.config.code_texts import CODES

    return _beginning(CODES, incomplete.upper())


def _beginning(words: Iterable[str], incomplete: str) -> list[str]:
    return [word for word in dict.fromkeys(words) if word.startswith(incomplete)]


def _in_list(words: Iterable[str], incomplete: str) -> list[str]:
    before, comma, last = incomplete.rpartition(",")
    return [before + comma + word for word in _beginning(words, last)]


def _names_of(entry: Any) -> Iterator[str]:
    """A model is its name, or a section with its name and aliases."""
    if isinstance(entry, dict):
        for name in (entry.get("name"), *(entry.get("aliases") or ())):
            yield from _names_of(name)
    elif isinstance(entry, str):
        yield entry


def _config_paths(ctx: typer.Context) -> list[Path]:
    return [Path(name) for name in ctx.params.get("config") or named_paths() or (DEFAULT_CONFIG,)]


def _config(ctx: typer.Context) -> dict[str, Any]:
    import yaml

    from aiaas.config.tree import Flat, lay_over

    whole = Flat()
    for path in _config_paths(ctx):
        try:
            found = yaml.load(path.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        if isinstance(found, dict):
            lay_over(whole, Flat(found))
    return whole.data or {}


def _keys_file(ctx: typer.Context) -> Path:
    """As the config says, relative to it."""
    auth = _config(ctx).get("auth")
    named = auth.get("keys_file") if isinstance(auth, dict) else None
    return _config_paths(ctx)[0].parent / str(named or "keys.yaml")
