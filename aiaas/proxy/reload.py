"""A changed config, key file or certificate is put in force while requests run; a broken one changes nothing, with a
line in the log.

Compile first, then swap one reference. Requests in flight finish under the Plan that they began with. Keys that a new
Plan needs are read before it is in force, so that no valid key is refused in between. Fields that need a restart keep
their old values (`aiaas.config.restart`), and the log names them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from aiaas.errors import WorldError
from aiaas.keys.file import KeyFileError, KeyFileMissingError, read_key_file
from aiaas.keys.ring import KeyRing
from aiaas.plan.model import Plan
from aiaas.proxy.app import Gateway
from aiaas.proxy.log import LEVELS
from aiaas.proxy.reread import Offer, reread
from aiaas.proxy.tls import ServerTls, TlsError, files_of, read_pair
from aiaas.proxy.watch import FileWatch


class Reloader:
    """Follows the config and the key file of one gateway.

    env         where the config's `${NAME}` and overrides come from
    offer       offers changed settings to the engines
    on_plan     called after another Plan was put in force
    """

    def __init__(
        self,
        gateway: Gateway,
        env: Mapping[str, str],
        offer: Offer,
        on_plan: Callable[[Plan], None],
    ) -> None:
        self._gateway = gateway
        self._log = gateway.log
        self._metrics = gateway.metrics
        self._env = env
        self._offer = offer
        self._on_plan = on_plan
        begun_with = gateway.active.plan
        self._held: tuple[str, ...] = ()  # fields of the last config that wait for a restart
        self._auth = begun_with.auth  # whose keys are read: a new Plan's before it is in force
        self._reading_keys = asyncio.Lock()
        self._crashed = crashed = gateway.incidents.internal_error
        self._key_watch = FileWatch(begun_with.auth.keys_file, self.reload_keys, crashed)
        source = begun_with.source
        self._config_watch = None if source is None else FileWatch(source, self.reload_config, crashed)
        self._tls: ServerTls | None = None
        self._tls_watches: tuple[FileWatch, ...] = ()
        self._reading_tls = asyncio.Lock()

    def watches(self) -> list[FileWatch]:
        """To be run until the end."""
        config = [] if self._config_watch is None else [self._config_watch]
        return [self._key_watch, *config, *self._tls_watches]

    def wake(self) -> None:
        """SIGHUP: read all of them now."""
        for watch in self.watches():
            watch.wake()

    # -- keys -----------------------------------------------------------------------------------------------------

    async def reload_keys(self) -> None:
        """Put the key file's keys in force, where keys are asked for."""
        async with self._reading_keys:  # else an older reading could be put in force last
            auth = self._auth
            if not auth.enabled:
                return
            loop = asyncio.get_running_loop()
            verifier = self._gateway.verifier
            try:
                ring = await loop.run_in_executor(None, _load_ring, auth.keys_file)
            except KeyFileMissingError:
                self._keys_missing(auth.keys_file, len(verifier.ring.records))
            except KeyFileError as error:
                self._metrics.reloaded("keys", ok=False)
                self._log.event("error", "keys_not_reloaded", error=str(error), kept=len(verifier.ring.records))
            else:
                verifier.swap(ring)
                self._metrics.reloaded("keys", ok=True)
                self._log.event("info", "keys_loaded", keys=len(ring.records))

    def _keys_missing(self, file: Path, kept: int) -> None:
        if kept:
            self._metrics.reloaded("keys", ok=False)
            self._log.event("error", "keys_not_reloaded", error=f"{file}: the key file is gone", kept=kept)
        else:
            hint = "every request is refused until a key exists: aiaas keys create NAME"
            self._log.event("warning", "keys_missing", file=str(file), hint=hint)

    # -- certificate ----------------------------------------------------------------------------------------------

    def follow_tls(self, tls: ServerTls) -> None:
        """Watch the files of the open side's certificate, too; before `watches` are run."""
        self._tls = tls
        self._tls_watches = tuple(FileWatch(file, self.reload_tls, self._crashed) for file in files_of(tls.plan))
        self._warn_of_expiry(tls)

    async def reload_tls(self) -> None:
        """Put the pair that the files hold now in force for new connections."""
        async with self._reading_tls:
            plan = self._gateway.active.plan.server.tls
            if self._tls is None or plan is None:
                return
            try:
                pair = await asyncio.get_running_loop().run_in_executor(None, read_pair, plan)
            except TlsError as error:
                self._metrics.reloaded("tls", ok=False)
                self._log.event("error", "tls_not_reloaded", error=str(error))
                return
            if self._tls.use(plan, pair):
                self._metrics.reloaded("tls", ok=True)
                self._log.event("info", "tls_reloaded", file=str(plan.cert_file))
                self._warn_of_expiry(self._tls)

    def _warn_of_expiry(self, tls: ServerTls) -> None:
        warning = tls.validity.warning(time.time())
        if warning is not None:
            self._log.event("warning", "tls_certificate", file=str(tls.plan.cert_file), problem=warning)

    # -- config ---------------------------------------------------------------------------------------------------

    async def reload_config(self) -> None:
        """Compile the config file again and put it in force; with any error the Plan stays."""
        before = self._gateway.active.plan
        if before.source is None:
            return
        try:
            reading = await reread(before.source, self._env, before.config, self._offer)
        except WorldError as error:
            self._not_reloaded(error=error.message)
            return
        plan, problems = reading.plan, [str(problem) for problem in reading.problems]
        if plan is None:
            self._not_reloaded(problems=problems)
            return
        self._metrics.reloaded("config", ok=True)
        if plan == before and reading.held == self._held:
            self._log.event("info", "config_unchanged", config_digest=plan.digest)
        else:
            self._held = reading.held
            if plan != before:
                await self._put_in_force(plan, before)
            self._log.event("info", "config_reloaded", config_digest=plan.digest, problems=problems)
        if reading.held:
            self._log.event("warning", "restart_needed", fields=list(reading.held))

    async def _put_in_force(self, plan: Plan, before: Plan) -> None:
        if plan.auth != before.auth:
            self._auth = plan.auth
            self._key_watch.follow(plan.auth.keys_file)
            await self.reload_keys()
        self._gateway.replace_plan(plan)
        self._on_plan(plan)
        self._log.threshold = LEVELS[plan.monitoring.log_level]
        if plan.server.tls is not None and plan.server.tls != before.server.tls:
            for watch, file in zip(self._tls_watches, files_of(plan.server.tls), strict=False):
                watch.follow(file)
            await self.reload_tls()

    def _not_reloaded(self, **why: object) -> None:
        self._metrics.reloaded("config", ok=False)
        self._log.event("error", "config_not_reloaded", **why)


def _load_ring(path: Path) -> KeyRing:
    return KeyRing.from_records(read_key_file(path).records)
