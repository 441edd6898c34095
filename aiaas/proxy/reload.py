"""Put a changed config, key file, certificate or file of authorities in force while requests run; log a broken file,
and change nothing.

Compile first, then swap one reference. Requests in flight finish under the Plan that they began with. Keys that a new
Plan needs are read before the Plan is in force, so that valid keys are not refused in between. Fields that need a
restart keep their old values (`aiaas.config.restart`), and the log names them.
"""

from __future__ import annotations

import asyncio
import operator
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from aiaas.errors import EnvironmentFault
from aiaas.keys.file import KeyFileError, KeyFileMissingError, each_record_in, read_at_start
from aiaas.keys.records import parse_records
from aiaas.keys.ring import KeyRing, StoredSecret
from aiaas.plan.model import AuthPlan, Plan
from aiaas.proxy.admin.reloads import Reloads
from aiaas.proxy.client.tls import ServerTls, TlsError, files_of, read_pair
from aiaas.proxy.collector import building
from aiaas.proxy.gateway import Gateway
from aiaas.proxy.reread import OfferEngines, reread
from aiaas.proxy.telemetry.counters import What
from aiaas.proxy.telemetry.log import LEVELS
from aiaas.proxy.watch import FileWatch


class Reloader:
    """Follows the config, the key file, the certificate and the backends' authorities of one gateway.

    env         the environment, for the config's `${NAME}` and overrides
    offer       offers changed settings to the engines
    on_plan     called after a new Plan was put in force

    reloads         how the last reading of each file ended
    in_force_since  when the Plan in force was put in force (POSIX seconds)
    """

    def __init__(
        self,
        gateway: Gateway,
        env: Mapping[str, str],
        offer: OfferEngines,
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
        self._metrics.reloads.show("config", ok=True)
        self._auth = begun_with.auth  # names the key file to read: a new Plan's before that Plan is in force
        self._reading_keys = asyncio.Lock()
        self._has_keys = False  # whether a key file was valid once
        crashed = gateway.incidents.internal_error
        self._key_watch = FileWatch((begun_with.auth.keys_file,), self.reload_keys, crashed)
        self._config_watch = FileWatch(begun_with.files, self.reload_config, crashed)
        self._ca_watch = FileWatch(tuple(begun_with.ca_files), self.reload_authorities, crashed)
        self._tls: ServerTls | None = None
        self._tls_watch = FileWatch((), self.reload_tls, crashed)
        self._reading_tls = asyncio.Lock()
        self.reloads = Reloads(time.time)
        self.reloads.note("config")
        self.in_force_since = time.time()

    @property
    def held(self) -> tuple[str, ...]:
        """The fields of the last config that wait for a restart."""
        return self._held

    @property
    def tls(self) -> ServerTls | None:
        """The certificate in force, if the gateway serves TLS."""
        return self._tls

    def watches(self) -> list[FileWatch]:
        """Return the file watches; the caller runs them until the end."""
        return [self._key_watch, self._config_watch, self._tls_watch, self._ca_watch]

    def wake(self) -> None:
        """Read all watched files now, on SIGHUP."""
        for watch in self.watches():
            watch.wake()

    # -- keys -----------------------------------------------------------------------------------------------------

    async def begin_keys(self) -> None:
        """Put the key file's keys in force at the start; warn if the file is missing.

        Raises EnvironmentFault if the file cannot be used: without last good keys, every valid key would get a 401.
        """
        if self._auth.enabled:
            records = await asyncio.to_thread(read_at_start, self._auth.keys_file)
            if records is None:
                self._keys_missing()
            else:
                self._use(await asyncio.to_thread(KeyRing.from_records, records))

    async def reload_keys(self, last_good: str | None = None) -> None:
        """Put the key file's keys in force, if authentication is on.

        last_good  text of the last valid key file: a starting worker uses it if the file is no longer valid
        """
        if (error := await self._load_keys()) is None:
            return
        if last_good is not None:
            self._use(await asyncio.to_thread(_ring_of, last_good))
        if self._has_keys or not isinstance(error, KeyFileMissingError):
            self._keys_not_reloaded(error)
        else:
            self._keys_missing()

    async def _load_keys(self) -> KeyFileError | None:
        """Put the key file's keys in force. On an error, return it and keep the last good keys."""
        async with self._reading_keys:  # without the lock an older reading could be put in force last
            if not self._auth.enabled:
                self._metrics.reloads.forget("keys")
                return None
            with building():
                try:
                    ring = await asyncio.to_thread(_load_ring, self._auth.keys_file)
                except KeyFileError as error:
                    return error
                verified = await asyncio.to_thread(self._gateway.verifier.still_verified, ring)
                before = self._use(ring, verified)
                await asyncio.to_thread(before.dismantle)
            return None

    async def _follow_auth(self, auth: AuthPlan) -> bool:
        """Read the keys of a changed `auth` before it is in force. If that fails, keep the last good keys.

        Return False if there are no last good keys: under such a Plan every request would be refused.
        """
        before, self._auth = self._auth, auth
        self._key_watch.follow((auth.keys_file,))
        error = await self._load_keys()
        if error is None:
            return True
        if self._has_keys:
            self._keys_not_reloaded(error)
            return True
        self._auth = before
        self._key_watch.follow((before.keys_file,))
        why = f"auth.keys_file: {error}; fix it, then send SIGHUP or change the config again"
        self._not_reloaded(why, error=why)
        return False

    def _use(self, ring: KeyRing, verified: dict[bytes, StoredSecret] | None = None) -> KeyRing:
        self._has_keys = True
        before = self._gateway.verifier.swap(ring, verified)
        self._metrics.keys.keep(ring.ids)
        self._reloaded("keys")
        self._log.event("info", "keys_loaded", keys=len(ring.ids))
        return before

    def _keys_not_reloaded(self, error: KeyFileError) -> None:
        self._reloaded("keys", str(error))
        self._log.event("error", "keys_not_reloaded", error=str(error), kept=len(self._gateway.verifier.ring.ids))

    def _keys_missing(self) -> None:
        self._metrics.reloads.show("keys", ok=False)
        hint = "every request is refused until a key exists; create one: aiaas keys create NAME"
        self.reloads.note("keys", f"{self._auth.keys_file} is missing: {hint}")
        self._log.event("warning", "keys_missing", file=str(self._auth.keys_file), hint=hint)

    # -- certificate ----------------------------------------------------------------------------------------------

    def follow_tls(self, tls: ServerTls) -> None:
        """Also watch the files of the server's certificate."""
        self._tls = tls
        self._tls_watch.follow(files_of(tls.plan))
        self._certificate_in_force(tls)
        self._warn_of_expiry(tls)

    async def reload_tls(self) -> None:
        """Use the certificate and key that are in the files now for new connections."""
        async with self._reading_tls:
            plan = self._gateway.active.plan.server.tls
            if self._tls is None or plan is None:
                return
            try:
                pair = await asyncio.get_running_loop().run_in_executor(None, read_pair, plan)
            except TlsError as error:
                self._reloaded("tls", str(error))
                self._log.event("error", "tls_not_reloaded", error=str(error))
                return
            if self._tls.use(plan, pair):
                self._reloaded("tls")
                self._log.event("info", "tls_reloaded", file=str(plan.cert_file))
                self._warn_of_expiry(self._tls)
            self._certificate_in_force(self._tls)  # also the same one again, after a broken file

    def _certificate_in_force(self, tls: ServerTls) -> None:
        self._metrics.reloads.show("tls", ok=True)
        self._metrics.certificate.show(tls.validity.begins, tls.validity.ends)

    def _warn_of_expiry(self, tls: ServerTls) -> None:
        warning = tls.validity.warning(time.time())
        if warning is not None:
            self._log.event("warning", "tls_certificate", file=str(tls.plan.cert_file), problem=warning)

    # -- authorities of backends ----------------------------------------------------------------------------------

    async def begin_authorities(self) -> None:
        """Read the files with the authorities of backends at the start. Raises EnvironmentFault if one cannot be used:
        without it each request to its backend would fail."""
        if errors := await self._gateway.tls.read(self._gateway.active.plan.ca_files):
            raise EnvironmentFault(f"cannot use {'; '.join(errors.values())}")

    async def reload_authorities(self) -> None:
        """Use the authorities that are in the files now for new connections; keep those of a file that is broken."""
        files = self._gateway.active.plan.ca_files
        if not files:
            return
        errors = await self._gateway.tls.read(files)
        why = "; ".join(errors.values())
        for file in files.keys() - errors.keys():
            self._log.event("info", "authorities_reloaded", file=str(file))
        if errors:
            self._log.event("error", "authorities_not_reloaded", error=why)
        self._reloaded("authorities", why or None)

    # -- config ---------------------------------------------------------------------------------------------------

    async def reload_config(self) -> None:
        """Read the config's files again and put them in force; on any error keep the Plan."""
        before = self._gateway.active.plan
        if not before.files:
            return
        with building():
            try:
                reading = await reread(before.files, self._env, before.config, self._offer)
            except EnvironmentFault as error:
                self._not_reloaded(error.message, error=error.message)
                return
            # In a thread, since comparing the routes of thousands of models takes milliseconds.
            is_new = await asyncio.to_thread(operator.ne, reading.plan, before)
        plan, problems = reading.plan, list(reading.problems)
        if plan is None:
            self._not_reloaded("; ".join(problems), problems=problems)
            return
        if errors := await self._gateway.tls.read(plan.ca_files_beside(before)):
            why = f"{'; '.join(errors.values())}; fix it, then send SIGHUP or change the config again"
            self._not_reloaded(why, error=why)
            return
        if plan.auth != before.auth and not await self._follow_auth(plan.auth):
            return
        self._reloaded("config")
        if not is_new and reading.held == self._held:
            self._log.event("info", "config_unchanged", config_digest=plan.digest)
        else:
            self._held = reading.held
            if is_new:
                await self._put_in_force(plan, before)
            self._log.event("info", "config_reloaded", config_digest=plan.digest, problems=problems)
        if reading.held:
            self._log.event("warning", "restart_needed", fields=list(reading.held))

    async def _put_in_force(self, plan: Plan, before: Plan) -> None:
        self._gateway.replace_plan(plan)
        if plan.ca_files != before.ca_files:
            self._ca_watch.follow(tuple(plan.ca_files))
            if plan.ca_files:
                await self.reload_authorities()
            else:
                self._reloaded("authorities")  # the fault of a file that no backend names any more is over
        self.in_force_since = time.time()
        self._on_plan(plan)
        self._log.threshold = LEVELS[plan.monitoring.log_level]
        if plan.server.tls is not None and plan.server.tls != before.server.tls:
            self._tls_watch.follow(files_of(plan.server.tls))
            await self.reload_tls()

    def _not_reloaded(self, why: str, /, **fields: object) -> None:
        self._reloaded("config", why)
        self._log.event("error", "config_not_reloaded", **fields)

    def _reloaded(self, what: What, error: str | None = None) -> None:
        """Count and remember a reading of `config`, `keys` or `tls`."""
        self._metrics.reloaded(what, ok=error is None)
        self.reloads.note(what, error)


def _load_ring(path: Path) -> KeyRing:
    return KeyRing.from_records(each_record_in(path))


def _ring_of(text: str) -> KeyRing:
    return KeyRing.from_records(parse_records(text, "the last good key file"))
