"""The options of `aiaas smoke`, and values that a config adds to them: the gateway's address and limits."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from aiaas.cli.common import config_paths, named_paths, read_duration
from aiaas.cli.loadoptions import DEFAULT_PORT
from aiaas.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiaas.config.model import Config
    from aiaas.httpclient.target import HttpTarget


@dataclass(frozen=True, slots=True)
class KnownGateway:
    """Known without a request; fields as in `SmokeSettings`. `metrics` is set only for a gateway on this machine."""

    url: str
    big_body: int | None = None
    has_auth: bool = True
    has_limit: bool | None = None
    metrics: str | None = None


def known_of(url: str | None, option: Sequence[Path] | None) -> KnownGateway:
    """The URL as given, else the config's host, else its port on this machine; and the config's limits.

    A URL without -c may be any gateway, so ./aiaas.yaml is not read then.

    Raises:
        UsageError: the config is not valid.
        EnvironmentFault: it cannot be read.
    """
    if url is not None and not option:
        return KnownGateway(url)
    paths = config_paths(option)
    if not option and not named_paths() and not paths[0].exists():
        return KnownGateway(f"http://127.0.0.1:{DEFAULT_PORT}")
    config = _read(paths)
    host = config.kubernetes.host
    known = KnownGateway(
        url=url or (f"https://{host}" if host else _here(config)) + (config.server.path_prefix or ""),
        big_body=config.server.max_body_size,
        has_auth=config.auth.enabled,
        has_limit=config.rate_limit.enabled and config.rate_limit.requests_per_minute is not None,
    )
    if url is None and not host and config.monitoring.prometheus:
        return replace(known, metrics=f"http://127.0.0.1:{config.monitoring.metrics_port}")
    return known


def _read(paths: Sequence[Path]) -> Config:
    from aiaas.config.files import config_name
    from aiaas.config.load import load_file

    loaded = load_file(paths[0], os.environ, paths[1:])
    if loaded.config is None:
        raise UsageError(f"{config_name(paths)} is not valid, so it cannot describe the gateway; see `aiaas validate`")
    return loaded.config


def _here(config: Config) -> str:
    return f"{'http' if config.server.tls is None else 'https'}://127.0.0.1:{config.server.port}"


def read_names(only: str | None, skip: str | None) -> tuple[str, ...]:
    """The checks that are wanted. Raises UsageError."""
    from aiaas.smoke.result import choose_checks
    from aiaas.smoke.run import NAMES

    return choose_checks(NAMES, _split(only), _split(skip))


def _split(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def read_size(option: str, text: str) -> int:
    """Bytes. Raises UsageError naming the option."""
    from aiaas.units import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from error


def read_timeout(text: str) -> float:
    """Seconds, more than 0. Raises UsageError."""
    seconds = read_duration("--timeout", text)
    if not seconds:
        raise UsageError("--timeout must be longer than 0")
    return seconds


def read_metrics(url: str | None, ca: Path | None, insecure: bool) -> HttpTarget | None:
    """A metrics port; a trailing `/metrics` is dropped. Raises UsageError, EnvironmentFault."""
    from aiaas.httpclient.target import parse_target

    return None if url is None else parse_target(url.rstrip("/").removesuffix("/metrics"), ca=ca, insecure=insecure)
