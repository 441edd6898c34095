"""A smoke test from the first connection to the last check: in order, each within its timeout.

It first connects (EnvironmentFault where the server cannot be reached), then runs the checks in their order. Where the
certificate does not verify, only the certificate check runs; where the server refuses the key, the checks that need it
are skipped, and where the gateway reaches no engine, those that need an answer. So each fault is reported once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from aiaas.errors import EnvironmentFault
from aiaas.httpclient.mismatch import WRITE_HTTP, WRITE_HTTPS
from aiaas.loadtest.probe import why_silent, with_hint
from aiaas.smoke.ask import Asker, Say, SmokeSettings
from aiaas.smoke.checks import CERTIFICATE, CHECKS, MODELS_CHECK, Check
from aiaas.smoke.result import Result, Verdict, result_of, skipped

Tell = Callable[[Result], None]
NAMES = tuple(check.name for check in CHECKS)


async def run_checks(settings: SmokeSettings, names: Sequence[str], begin: Say, tell: Tell, say: Say) -> None:
    """Run the named checks, and `models` as well where one of them needs the key.

    Args:
        begin: called with the name of each check as it begins.
        tell: called with each result as it comes, so that an interrupted run has shown what it found.
        say: called with the reason for a wait.

    Raises:
        EnvironmentFault: the server cannot be reached.
    """
    wanted = [check for check in CHECKS if check.name in names]
    if any(check.keyed for check in wanted) and MODELS_CHECK not in names:
        wanted = [check for check in CHECKS if check in wanted or check.name == MODELS_CHECK]
    secrets = tuple(key for key in (settings.key, settings.direct_key) if key)
    asker = Asker(settings, say)
    try:
        untrusted = await _reach(asker)
        dead: str | None = None  # the check that found no engine
        for check in wanted:
            begin(check.name)
            began, rested = time.perf_counter(), asker.rested
            reason = _obstacle(check, asker, untrusted, dead)
            verdict: Verdict = await check.make(asker) if reason is None else skipped(reason)
            took = time.perf_counter() - began - (asker.rested - rested)
            if asker.no_engine and dead is None:
                dead = check.name
            tell(result_of(check.name, verdict, None if verdict.held is None else took, secrets))
    finally:
        asker.close()


async def _reach(asker: Asker) -> bool:
    """True where the server has an untrusted certificate. Raises EnvironmentFault where it cannot be reached, and where
    only one side speaks TLS."""
    seen, target = await asker.get("/health"), asker.settings.target
    if seen.connected and seen.status is None:
        why = await why_silent(target, seen.detail)
        if why == WRITE_HTTPS:
            raise EnvironmentFault(f"{target.url}: {why}")
    if seen.connected or (seen.error == "tls" and seen.detail != WRITE_HTTP):
        return not seen.connected
    raise EnvironmentFault(f"{target.url}: {with_hint(seen.error, seen.detail)}")


def _obstacle(check: Check, asker: Asker, untrusted: bool, dead: str | None) -> str | None:
    """Why a check cannot run, or None."""
    if untrusted and check.name not in (CERTIFICATE, "redirect"):
        return f"the certificate is not trusted; see `{CERTIFICATE}` (--insecure continues anyway)"
    if check.keyed and asker.refused:
        return f"the server refuses the key; see `{MODELS_CHECK}`" if asker.settings.key else "needs a key"
    if check.generates and dead is not None:
        return f"not judged: the gateway reaches no engine; see `{dead}`"
    if check.keyed and asker.model is None:
        return f"the model is unknown; see `{MODELS_CHECK}`"
    return None
