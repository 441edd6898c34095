"""The input of a `keys` command: the key file, and a key on stdin."""

from __future__ import annotations

import asyncio
import getpass
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aiaas.cli.common import config_paths, named_paths
from aiaas.cli.outcome import note
from aiaas.config.files import config_name, config_options
from aiaas.errors import CheckFailed, EnvironmentFault, UsageError
from aiaas.keys.changes import KeyChangeError
from aiaas.keys.file import KeyFile, KeyFileAccessError, KeyFileError, edit_key_file, read_key_file
from aiaas.keys.model import KeyRecord

if TYPE_CHECKING:
    from aiaas.limits.usage import UsageStore
    from aiaas.plan.model import Plan

DEFAULT_KEYS_FILE: Final = Path("keys.yaml")
DEFAULT_PREFIX: Final = "sk-"
MAX_STDIN: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class KeyTarget:
    """The key file and the prefix of new keys, and from the config, None where there is none: the models that a key can
    name, and the usage store.

    ruled_fields  the request fields for which the config has a rule
    """

    keys_file: Path
    prefix: str
    models: tuple[str, ...] | None
    usage: Callable[[], UsageStore | None] = lambda: None
    ruled_fields: frozenset[str] = frozenset()


def target_of(config: Sequence[Path] | None, keys_file: Path | None) -> KeyTarget:
    """The key file of a command: `--keys-file`, else the config's, else ./keys.yaml if there is no config.

    Raises EnvironmentFault if a named config is missing, CheckFailed if the config has errors.
    """
    if keys_file is not None:
        return KeyTarget(keys_file, DEFAULT_PREFIX, None)
    paths = config_paths(config)
    missing = next((path for path in paths if not path.exists()), None)
    if missing is not None:
        if not config and not named_paths():
            return KeyTarget(DEFAULT_KEYS_FILE, DEFAULT_PREFIX, None)
        raise EnvironmentFault(f"{missing}: there is no such config; `aiaas init` writes one, --keys-file needs none")
    from aiaas.proxy.usage import usage_store

    plan = _plan_of(paths)
    if plan is None:
        shows = f"`aiaas validate {config_options(paths)}` shows them"
        raise CheckFailed(f"{config_name(paths)} has errors; {shows}, --keys-file needs no config")
    models = tuple(model.name for model in plan.models)
    ruled = plan.request.ruled_fields()
    return KeyTarget(plan.auth.keys_file, plan.auth.api_key_prefix, models, partial(usage_store, plan), ruled)


def _plan_of(paths: Sequence[Path]) -> Plan | None:
    """The config's Plan, None if it has errors. A backend's own key may be missing: creating keys needs no engine, and
    often the operator has no access to the engine's key."""
    from aiaas.config import codes
    from aiaas.plan.compile import compile_plan
    from aiaas.plan.read import read

    reading = read(paths[0], os.environ, overlays=paths[1:])
    config = reading.loaded.config
    errors = {problem.code for problem in reading.problems if problem.severity == "error"}
    if config is not None and errors == {codes.BACKEND_KEY}:
        return compile_plan(config, source=paths[0], overlays=tuple(paths[1:]))
    return reading.plan


@contextmanager
def translated() -> Iterator[None]:
    """Turn the keys package's errors into a command's: file system errors are 3, everything else is 1."""
    try:
        yield
    except KeyFileAccessError as error:
        raise EnvironmentFault(str(error)) from error
    except (KeyFileError, KeyChangeError) as error:
        raise CheckFailed(str(error)) from error


@contextmanager
def editing(where: KeyTarget) -> Iterator[KeyFile]:
    """Change the key file under its lock (`aiaas.keys.file.edit_key_file`)."""
    with translated(), edit_key_file(where.keys_file) as file:
        yield file


def read_records(where: KeyTarget) -> tuple[KeyRecord, ...]:
    """The records of the key file."""
    with translated():
        return read_key_file(where.keys_file).records


def last_uses(where: KeyTarget) -> dict[str, int]:
    """When each key was last used, POSIX seconds by key id, where known. Prints a note if the store cannot be read."""
    from aiaas.limits.usage import UsageStoreError

    try:
        usage = where.usage()
        return {} if usage is None else asyncio.run(_read_last_uses(usage))
    except (UsageStoreError, EnvironmentFault) as error:
        note(f"warning: last use is unknown: {error}")
        return {}


async def _read_last_uses(usage: UsageStore) -> dict[str, int]:
    try:
        return dict(await usage.last_used())
    finally:
        await usage.close()


def read_key() -> str:
    """Read one key from stdin; from a terminal without echo. A trailing newline is not part of the key."""
    if sys.stdin.isatty():
        return getpass.getpass("API key (not shown): ").strip()
    text = sys.stdin.buffer.read(MAX_STDIN).decode("utf-8-sig", "replace").strip()
    if not text:
        raise UsageError('stdin is empty; give it one key: printf %s "$KEY" | aiaas keys ...')
    if "\n" in text:
        raise UsageError("stdin has more than one line; give it one key")
    return text
