"""Rules about `backends.X.resume`. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from aiaas.config import codes
from aiaas.config.model import Config
from aiaas.config.problem import Finding
from aiaas.units import format_duration


def check_resume(config: Config, _env: Mapping[str, str]) -> Iterator[Finding]:
    """Warn where `resume` is on and no stream can go on, or none of those that hang is noticed."""
    for name, backend in config.backends.items():
        if not backend.enabled or backend.resume == "off":
            continue
        place = ("backends", name)
        if backend.dns is None and len(backend.urls or ()) < 2:
            message = (
                f"is {backend.resume}, but the backend has one endpoint, so no stream can go on elsewhere; name the "
                "replicas one by one (urls), or a name that resolves to all of them (dns)"
            )
            yield codes.RESUME, "warning", (*place, "resume"), message
        if backend.silent_after() >= backend.timeout:
            message = (
                f"is {format_duration(backend.silent_after())}, not shorter than timeout "
                f"({format_duration(backend.timeout)}), so the streams of a hung engine end before they can go on"
            )
            yield codes.RESUME, "warning", (*place, "health", "silent_after"), message
