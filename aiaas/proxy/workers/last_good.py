"""Config and keys as they last were in order, for a worker that starts later.

A worker that replaces a dead one may start while somebody has just broken a file. It has to serve what the others still
serve, so the supervisor follows both files, too, and keeps the text of the last good one. It puts nothing in force.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

from aiaas.errors import EnvironmentFault
from aiaas.keys.file import KeyFileError, read_at_start, read_key_file
from aiaas.keys.model import KeyRecord
from aiaas.keys.records import render_records
from aiaas.plan.model import Plan
from aiaas.proxy.reread import OfferEngines, reread
from aiaas.proxy.watch import FileWatch

_Keys = tuple[str, frozenset[str]]  # the key file's text, and the ids in it


class Baseline:
    """The last good config (`config`, and the `plan` that the workers have of it) and key file (`keys`, None: there was
    none yet; `key_ids`). `before` is the text of the last config that was in force as a whole: the workers have of
    `config` what needs no restart after that.

    offer    offers changed settings to the engines
    on_plan  called after another config was read
    crashed  called with an exception that nobody expected
    """

    def __init__(
        self,
        plan: Plan,
        env: Mapping[str, str],
        offer: OfferEngines,
        on_plan: Callable[[Plan], None],
        crashed: Callable[[BaseException], None],
    ) -> None:
        assert plan.source is not None, "workers read the config file themselves"
        self._env = env
        self.source: Path = plan.source
        self.plan = plan
        self.config = self.before = ""
        self._offer = offer
        self._on_plan = on_plan
        self.keys: str | None = None
        self.key_ids: frozenset[str] | None = None
        self._config_watch = FileWatch(self.source, self._read_config, crashed)
        self._key_watch = FileWatch(plan.auth.keys_file, self._read_keys, crashed)

    async def begin(self) -> None:
        """Read both for the first time. A missing key file is no error.

        Raises EnvironmentFault where the config is no longer in order, though it was a moment ago, and where the key
        file
        cannot be used: said once, and not by each worker.
        """
        await self._read_config()
        if not self.before:  # broken, or with other ports and engines than those that are being started
            raise EnvironmentFault(f"{self.source} was changed while it was read; start again")
        if self.plan.auth.enabled:
            records = await asyncio.to_thread(read_at_start, self.plan.auth.keys_file)
            if records is not None:
                self._keep(await asyncio.to_thread(_kept, records))

    def watches(self) -> list[FileWatch]:
        """To be run until the end."""
        return [self._config_watch, self._key_watch]

    def wake(self) -> None:
        """SIGHUP: read both now."""
        for watch in self.watches():
            watch.wake()

    async def _read_config(self) -> None:
        text = await asyncio.to_thread(config_text, self.source)
        if text is None:
            return
        reading = await reread(self.source, self._env, self.plan.config, self._offer, text)
        if reading.plan is None:
            return
        auth = reading.plan.auth
        if auth != self.plan.auth:
            self._key_watch.follow(auth.keys_file)
            keys = await asyncio.to_thread(_keys, auth.keys_file) if auth.enabled else None
            if auth.enabled and keys is None and self.keys is None:
                self._key_watch.follow(self.plan.auth.keys_file)
                return  # the workers refuse such a config, too (`Reloader`)
            self._keep(keys)
        self.config, self.plan = text, reading.plan
        if not reading.held:
            self.before = self.config
        self._on_plan(self.plan)

    async def _read_keys(self) -> None:
        auth = self.plan.auth
        keys = await asyncio.to_thread(_keys, auth.keys_file) if auth.enabled else None
        if auth == self.plan.auth:  # else of a file that the config no longer names
            self._keep(keys)

    def _keep(self, keys: _Keys | None) -> None:
        if keys is not None:
            self.keys, self.key_ids = keys


def config_text(path: Path) -> str | None:
    """What the config file holds; None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _keys(path: Path) -> _Keys | None:
    try:
        return _kept(read_key_file(path).records)
    except KeyFileError:
        return None


def _kept(records: tuple[KeyRecord, ...]) -> _Keys:
    return render_records(records), frozenset(record.id for record in records)
