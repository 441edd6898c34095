"""One screen about a gateway, and its faults with what to do about each (`proxy/admin/attention.py`). Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from aiaas.cli.common import aligned
from aiaas.cli.words import time_span
from aiaas.config.files import config_name
from aiaas.proxy.admin.model import EndpointView, NearView, NoteView, Status

_SHOWN_KEYS: Final = 10


def status_screen(status: Status) -> str:
    """The state of a gateway in plain lines."""
    blocks = ["\n".join(_head(status)), "\n".join(aligned(_endpoint_rows(status)))]
    if status.keys_near:
        blocks.append("\n".join(["Keys near a limit:", *map(_near, status.keys_near[:_SHOWN_KEYS])]))
    faults = status.attention
    blocks.append("\n".join(["To do:", *map(_note, faults)]) if faults else "Nothing is down.")
    return "\n\n".join(blocks)


def _note(note: NoteView) -> str:
    return f"- {note.text.rstrip('.')}; {note.fix}" if note.fix else f"- {note.text}"


def _head(status: Status) -> Iterator[str]:
    config, keys, requests, process = status.config, status.keys, status.requests, status.process
    workers = f", {status.workers_up} of {status.workers} workers" if status.workers > 1 else ""
    draining = ", draining" if status.draining else ""
    yield f"aiaas {status.version} on {status.address}, for {time_span(status.now - status.started)}{workers}{draining}"
    waits = f"; waits for a restart: {', '.join(config.restart_needed)}" if config.restart_needed else ""
    files = config_name([config.source or "-", *config.overlays])
    yield f"config    {files} ({config.digest}), for {time_span(status.now - config.since)}{waits}"
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
    yield f"now       requests: {requests.in_flight} under way, {requests.queued} of them queued"
    yield f"so far    requests: {totals.requests}, errors: {totals.errors}, refused by a limit: {totals.refused}"
    if process.memory is not None:
        descriptors = "" if process.descriptors is None else f", {process.descriptors} descriptors"
        yield f"process   {process.memory / 2**20:.0f} MiB{descriptors}"


def _endpoint_rows(status: Status) -> Iterator[tuple[str, ...]]:
    yield "BACKEND", "ENDPOINT", "STATE", "FOR", "IN FLIGHT", "QUEUED", "MODELS"
    for backend in status.backends:
        for number, endpoint in enumerate(backend.endpoints):
            state = "draining" if endpoint.draining else "up" if endpoint.up else "DOWN"
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
