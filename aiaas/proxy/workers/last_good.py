"""The last valid config and key file, for a worker that starts later.

A worker that replaces a dead one may start just after somebody broke a file. It has to serve what the other workers
still serve, so the supervisor follows both files, too, and keeps the text of each file's last valid version.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from aiaas.config.files import config_name
from aiaas.errors import EnvironmentFault
from aiaas.keys.file import KeyFileError, read_at_start, read_key_file
from aiaas.keys.model import KeyRecord
from aiaas.keys.records import render_records
from aiaas.plan.model import Plan
from aiaas.proxy.reread import OfferEngines, reread
from aiaas.proxy.upstream.dial import ClientTls
from aiaas.proxy.watch import FileWatch

ConfigTexts = tuple[str, ...]
_Keys = tuple[str, frozenset[str]]  # the key file's text, and the ids in it


class Baseline:
    """The texts of the last valid files, and the Plan made from them.

    files    the config's file and its overlays
    config   text of each file of the last valid config
    plan     the Plan that the workers have from `config`
    before   texts of the last config that was in force as a whole; since then the workers have put in force only the
             changes that need no restart
    keys     text of the last valid key file; None until there is one
    key_ids  the ids in `keys`
    offer    offers changed settings to the engines
    on_plan  called after a changed config was read
    crashed  called with an unexpected exception
    """

    def __init__(
        self,
        plan: Plan,
        env: Mapping[str, str],
        offer: OfferEngines,
        on_plan: Callable[[Plan], None],
        crashed: Callable[[BaseException], None],
    ) -> None:
        assert plan.files, "workers read the config themselves"
        self._env = env
        self.files = plan.files
        self.plan = plan
        self.config: ConfigTexts = ()
        self.before: ConfigTexts = ()
        self._offer = offer
        self._on_plan = on_plan
        self.keys: str | None = None
        self.key_ids: frozenset[str] | None = None
        self._config_watch = FileWatch(self.files, self._read_config, crashed)
        self._key_watch = FileWatch((plan.auth.keys_file,), self._read_keys, crashed)

    async def begin(self) -> None:
        """Read config and keys for the first time. A missing key file is not an error.

        Raises EnvironmentFault if the config has become invalid in the meantime, or if the key file cannot be used, so
        that the error is reported once and not by each worker.
        """
        if errors := await ClientTls().read(self.plan.ca_files):
            raise EnvironmentFault(f"cannot use {'; '.join(errors.values())}")
        await self._read_config()
        if not self.before:  # the config became invalid, or its ports and engines changed while they are being started
            raise EnvironmentFault(f"{config_name(self.files)} was changed while it was read; start again")
        if self.plan.auth.enabled:
            records = await asyncio.to_thread(read_at_start, self.plan.auth.keys_file)
            if records is not None:
                self._keep(await asyncio.to_thread(_kept, records))

    def watches(self) -> list[FileWatch]:
        """Return the file watches; the caller runs them until the end."""
        return [self._config_watch, self._key_watch]

    def wake(self) -> None:
        """Read config and keys now, on SIGHUP."""
        for watch in self.watches():
            watch.wake()

    async def _read_config(self) -> None:
        texts = await asyncio.to_thread(config_texts, self.files)
        if texts is None:
            return
        reading = await reread(self.files, self._env, self.plan.config, self._offer, texts)
        if reading.plan is None:
            return
        if await ClientTls().read(reading.plan.ca_files_beside(self.plan)):
            return  # the workers reject such a config, too (`Reloader`)
        auth = reading.plan.auth
        if auth != self.plan.auth:
            self._key_watch.follow((auth.keys_file,))
            keys = await asyncio.to_thread(_keys, auth.keys_file) if auth.enabled else None
            if auth.enabled and keys is None and self.keys is None:
                self._key_watch.follow((self.plan.auth.keys_file,))
                return  # the workers reject such a config, too (`Reloader`)
            self._keep(keys)
        self.config, self.plan = texts, reading.plan
        if not reading.held:
            self.before = self.config
        self._on_plan(self.plan)

    async def _read_keys(self) -> None:
        auth = self.plan.auth
        keys = await asyncio.to_thread(_keys, auth.keys_file) if auth.enabled else None
        if auth == self.plan.auth:  # otherwise the config now names another key file
            self._keep(keys)

    def _keep(self, keys: _Keys | None) -> None:
        if keys is not None:
            self.keys, self.key_ids = keys


def config_texts(files: Iterable[Path]) -> ConfigTexts | None:
    """Return the text of each file of a config; None if one cannot be read."""
    try:
        return tuple(file.read_text(encoding="utf-8") for file in files)
    except (OSError, UnicodeDecodeError):
        return None


def _keys(path: Path) -> _Keys | None:
    try:
        return _kept(read_key_file(path).records)
    except KeyFileError:
        return None


def _kept(records: tuple[KeyRecord, ...]) -> _Keys:
    return render_records(records), frozenset(record.id for record in records)
