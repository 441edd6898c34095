"""One screen about a gateway, and its faults with what to do about each. Pure: text out of a Status."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from aiaas.cli.words import time_span
from aiaas.proxy.admin.model import BackendView, EndpointView, NearView, Status

# Seconds before a certificate's end: whatever renews certificates has failed by then.
CERTIFICATE_SOON: Final = 7 * 86400.0
# The part of the descriptors in use from which new connections are about to be refused.
DESCRIPTORS_NEAR: Final = 0.9
_SHOWN_KEYS: Final = 10


def faults(status: Status) -> Iterator[str]:
    """Each fault that there is or soon will be, as one line: the fault; the fix."""
    if status.workers_up < status.workers:
        number = f"{status.workers_up} of {status.workers} workers serve"
        yield f"{number}; the log says why (worker_ended, worker_hung, worker_not_started)"
    for reload in status.reloads:
        if not reload.ok:
            yield _refused(reload.what, reload.error or "it cannot be read", status)
    if status.keys.enabled and not status.keys.loaded and all(r.ok for r in status.reloads if r.what == "keys"):
        yield "no key is loaded, so every request is refused; create one: aiaas keys create NAME"
    if status.store.up is False:
        meanwhile = {"local": "each gateway counts alone", "allow": "nothing is limited", "deny": "requests get a 503"}
        then = meanwhile.get(status.store.on_failure, status.store.on_failure)
        yield f"the shared store of limits is away, and meanwhile {then}; start it, or see limit_store_away in the log"
    if status.usage_store.ok is False:
        yield "usage cannot be written, and is kept in memory; see usage_not_written in the log (is the disk full?)"
    if status.certificate is not None and (left := status.certificate.expires - status.now) < CERTIFICATE_SOON:
        when = f"expires in {time_span(left)}" if left > 0 else f"expired {time_span(-left)} ago, and clients refuse it"
        yield f"the certificate {status.certificate.file} {when}; renew the file: the gateway reads it again by itself"
    for backend in status.backends:
        yield from _backend_faults(backend)
    used, most = status.process.descriptors, status.process.descriptors_max
    if used is not None and most and used > DESCRIPTORS_NEAR * most:
        yield f"{used} of {most} descriptors are in use; raise the limit (`ulimit -n`, LimitNOFILE= of systemd)"


def _refused(what: str, error: str, status: Status) -> str:
    match what:
        case "config":
            file = status.config.source or "the config"
            return f"the changed config is not in force: {error}; fix it, and check it: aiaas validate -c {file}"
        case "keys":
            loaded = status.keys.loaded
            kept = f"the {loaded} keys before it stay in force" if loaded else "every request is refused"
            return f"the key file is not in force, and {kept}: {error}; fix the file"
    return f"the changed certificate is not in force: {error}; fix the files"


def _backend_faults(backend: BackendView) -> Iterator[str]:
    down = [endpoint for endpoint in backend.endpoints if not endpoint.up]
    if len(down) == len(backend.endpoints):
        yield f"no endpoint of backend {backend.name} is up, so its requests get a 503"
    for endpoint in down:
        todo = "see `engine` in the log" if endpoint.engine else "start vLLM there, or correct the URL"
        yield f"{endpoint.url} of backend {backend.name} is down: {endpoint.reason}; {todo}"
    for endpoint in backend.endpoints:
        if endpoint.up and endpoint.problem is not None:
            yield f"{endpoint.url} of backend {backend.name}: {endpoint.problem}"


def status_screen(status: Status) -> str:
    """The state of a gateway in plain lines."""
    blocks = ["\n".join(_head(status)), "\n".join(_table(_endpoint_rows(status)))]
    if status.keys_near:
        blocks.append("\n".join(["Keys near a limit:", *map(_near, status.keys_near[:_SHOWN_KEYS])]))
    found = list(faults(status))
    blocks.append("\n".join(["To do:", *(f"- {fault}" for fault in found)]) if found else "Nothing is down.")
    return "\n\n".join(blocks)


def _head(status: Status) -> Iterator[str]:
    config, keys, requests, process = status.config, status.keys, status.requests, status.process
    workers = f", {status.workers_up} of {status.workers} workers" if status.workers > 1 else ""
    draining = ", draining" if status.draining else ""
    yield f"aiaas {status.version} on {status.address}, for {time_span(status.now - status.started)}{workers}{draining}"
    waits = f"; waits for a restart: {', '.join(config.restart_needed)}" if config.restart_needed else ""
    yield f"config    {config.source or '-'} ({config.digest}), for {time_span(status.now - config.since)}{waits}"
    if keys.enabled:
        following = (
            "" if keys.next_expiry is None else f", the next expires in {time_span(keys.next_expiry - status.now)}"
        )
        yield f"keys      {keys.loaded} loaded, {keys.expired} expired{following}"
    else:
        yield "keys      off: auth.enabled is false"
    up = {None: "", True: ", up", False: ", AWAY"}[status.store.up]
    yield f"limits    {status.store.kind}{up}"
    usage = {None: "", True: ", written", False: ", NOT WRITTEN"}[status.usage_store.ok]
    yield f"usage     {status.usage_store.kind}{usage}"
    if status.certificate is not None:
        yield f"tls       expires in {time_span(status.certificate.expires - status.now)} ({status.certificate.file})"
    totals = status.totals
    yield f"now       {requests.in_flight} requests under way, {requests.queued} of them queued"
    yield f"so far    {totals.requests} requests, {totals.errors} errors, {totals.refused} refused by a limit"
    if process.memory is not None:
        descriptors = "" if process.descriptors is None else f", {process.descriptors} descriptors"
        yield f"process   {process.memory / 2**20:.0f} MiB{descriptors}"


def _endpoint_rows(status: Status) -> Iterator[tuple[str, ...]]:
    yield "BACKEND", "ENDPOINT", "STATE", "FOR", "IN FLIGHT", "QUEUED", "MODELS"
    for backend in status.backends:
        for number, endpoint in enumerate(backend.endpoints):
            state = "up" if endpoint.up else "DOWN"
            queued = str(backend.queued) if number == 0 else ""
            row = (backend.name, endpoint.url, state, time_span(status.now - endpoint.since))
            yield *row, _in_flight(endpoint), queued, _models(endpoint)


def _in_flight(endpoint: EndpointView) -> str:
    return f"{endpoint.in_flight}" if endpoint.max_inflight is None else f"{endpoint.in_flight}/{endpoint.max_inflight}"


def _models(endpoint: EndpointView) -> str:
    if endpoint.missing:
        return f"MISSING {', '.join(endpoint.missing)}"
    return "not listed" if endpoint.offered is None else ", ".join(endpoint.offered)


def _near(near: NearView) -> str:
    again = "" if near.resets_in is None else f", whole again in {time_span(near.resets_in)}"
    return f"- {near.user} ({near.key_id}): {near.used} of {near.of} {near.limit}{again}"


def _table(rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    lines = list(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
