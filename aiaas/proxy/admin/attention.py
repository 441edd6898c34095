"""The faults in a gateway's status, in words for its operator. Pure.

The page, `aiaas top` and `aiaas status` show these lines, so that all three say the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from aiaas.config.files import config_options
from aiaas.proxy.admin.model import BackendView, NoteView, ProcessView, Status

# Seconds before its end from which a certificate is mentioned, as by the alert AiaasCertificateEnds. certbot and
# cert-manager renew theirs 30 days before the end, so that this renewal has failed.
CERTIFICATE_SOON: Final = 14 * 86_400.0
CERTIFICATE_ENDS: Final = 7 * 86_400.0  # and from which `aiaas status` fails
DESCRIPTORS_SHARE: Final = 0.8
LAG: Final = 0.25  # seconds, p99 since the start: a stall that a reader of a stream sees
_READ: Final = {"config": "config", "keys": "key file", "tls": "certificate", "authorities": "file of authorities"}
_WITHOUT_STORE: Final = {
    "local": "each gateway counts alone",
    "allow": "nothing is limited",
    "deny": "all requests are refused",
}


def attention(status: Status) -> list[NoteView]:
    """The worst first."""
    return [
        *_gateway(status),
        *(note for backend in status.backends for note in _backend(backend)),
        *_files(status),
        *_stores(status),
        *_process(status.process),
    ]


def _gateway(status: Status) -> Iterator[NoteView]:
    if status.draining:
        yield NoteView("The gateway drains: it ends its open requests and stops.", down=False)
    if status.workers_up < status.workers:
        fix = "the log says why: worker_ended, worker_hung, worker_not_started"
        yield NoteView(f"{status.workers_up} of {status.workers} workers are up.", fix=fix)
    if status.keys.enabled and not status.keys.loaded:
        yield NoteView("No key is loaded, so all requests are refused (401): aiaas keys create")


def _backend(backend: BackendView) -> Iterator[NoteView]:
    down = [endpoint for endpoint in backend.endpoints if not endpoint.up and not endpoint.draining]
    if backend.endpoints and not any(endpoint.up for endpoint in backend.endpoints):
        since = max(endpoint.since for endpoint in backend.endpoints)
        yield NoteView(f"Backend {backend.name} has no endpoint that is up: its requests are refused (503).", since)
    for endpoint in down:
        reason = endpoint.reason or "the reason is unknown"
        fix = "see `engine` in the log" if endpoint.engine else "start vLLM there, or correct the URL"
        yield NoteView(f"{endpoint.url} ({backend.name}) is down: {reason}", endpoint.since, fix)
    for endpoint in backend.endpoints:
        if endpoint.up and (endpoint.problem or endpoint.missing):
            why = endpoint.problem or f"does not serve {', '.join(endpoint.missing)}"
            fix = "" if endpoint.problem else "start vLLM with that name, or correct `models`"
            yield NoteView(f"{endpoint.url} ({backend.name}): {why}", fix=fix)


def _files(status: Status) -> Iterator[NoteView]:
    for reload in status.reloads:
        if not reload.ok:
            why = reload.error or "see the log"
            fix = "fix the file"
            if reload.what == "config":
                files = (status.config.source or "", *status.config.overlays)
                fix += f", and check it: aiaas validate {config_options(files)}"
            text = f"The {_READ[reload.what]} was not reloaded, so the old one stays in force: {why}"
            yield NoteView(text, reload.at, fix)
    if status.config.restart_needed:
        fields = ", ".join(status.config.restart_needed)
        yield NoteView(f"Changed in the config, and in force only after a restart: {fields}", down=False)
    certificate = status.certificate
    if certificate is not None and certificate.expires - status.now < CERTIFICATE_SOON:
        day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(certificate.expires))
        tense = "expires" if certificate.expires > status.now else "has expired, so clients refuse to connect:"
        fix = "renew the file: the gateway reads it again by itself"
        is_near = certificate.expires - status.now < CERTIFICATE_ENDS
        yield NoteView(f"The certificate {tense} {day} ({certificate.file}).", fix=fix, down=is_near)


def _stores(status: Status) -> Iterator[NoteView]:
    if status.store.up is False:
        then = _WITHOUT_STORE[status.store.on_failure]
        fix = "start it, or look for limit_store_away in the log"
        yield NoteView(f"The store of the limits does not answer; until it does, {then}.", fix=fix)
    if status.usage_store.ok is False:
        fix = "look for usage_not_written in the log: is the disk full?"
        yield NoteView("The store of usage cannot be written; new usage waits in memory.", fix=fix)


def _process(process: ProcessView) -> Iterator[NoteView]:
    used, most = process.descriptors, process.descriptors_max
    if used is not None and most is not None and used > DESCRIPTORS_SHARE * most:
        yield NoteView(f"{used:,} of {most:,} descriptors are in use: raise the limit (ulimit -n, LimitNOFILE=).")
    if process.loop_lag_p99 is not None and process.loop_lag_p99 > LAG:
        lag = process.loop_lag_p99 * 1000
        text = f"The event loop is late by {lag:.0f} ms (p99): give it more CPU, or raise server.workers."
        yield NoteView(text, down=False)
