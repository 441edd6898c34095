"""Rules for a config that is to run as services of one machine, by `aiaas render --target systemd`. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Final

from aiaas.config import codes
from aiaas.config.address import is_address, is_loopback
from aiaas.config.check import placed
from aiaas.config.crosslayer import MACHINE_RULES
from aiaas.config.deployment import authority_files
from aiaas.config.environment import names_in
from aiaas.config.load import Loaded
from aiaas.config.model import Config
from aiaas.config.problem import Finding, Problem
from aiaas.limits.redis_url import parse_redis_url

ONE_NAME: Final = re.compile(r"\$\{(\w+)\}")

SystemdRule = Callable[[Config], Iterator[Finding]]


def check_systemd(loaded: Loaded) -> tuple[Problem, ...]:
    """Return every problem that keeps a config from running as services as it is meant, in the file's order."""
    config = loaded.partial
    if config is None:
        return ()
    findings = [finding for rule in SYSTEMD_RULES for finding in rule(config)]
    return placed(loaded, (*findings, *_engine_values(loaded)))


def _host(config: Config) -> Iterator[Finding]:
    host = config.server.host
    if not (is_address(host) or is_loopback(host)):
        message = f"{host} is a name, and systemd opens a port at an address of the machine; write that address"
        yield codes.WRONG_VALUE, "error", ("server", "host"), message


def _files(config: Config) -> Iterator[Finding]:
    named = list(authority_files(config))
    with suppress(ValueError):  # "memory", or an address that check.py reports
        store = parse_redis_url(config.rate_limit.store)
        own = [file for file in (store.cert_file, store.key_file) if file is not None]
        named += [(("rate_limit", "store"), PurePosixPath(file)) for file in own]
    for path, file in named:
        if not file.is_absolute():
            message = f"{file} is relative, and the config moves to another folder; write its absolute path"
            yield codes.NOT_DEPLOYABLE, "error", path, message


def _engine_values(loaded: Loaded) -> Iterator[Finding]:
    """Report values that mix text and `${NAME}`: a credential is the whole value of a variable."""
    backends = loaded.written.get("backends") if isinstance(loaded.written, dict) else None
    for name, backend in backends.items() if isinstance(backends, dict) else ():
        engine = backend.get("engine") if isinstance(backend, dict) else None
        values = engine.get("env") if isinstance(engine, dict) and engine.get("kind") == "vllm" else None
        for variable, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, str) and names_in(value) and not ONE_NAME.fullmatch(value):
                message = "a credential is a whole value; write ${NAME} alone, and put the rest into that credential"
                yield codes.NOT_DEPLOYABLE, "error", ("backends", name, "engine", "env", variable), message


SYSTEMD_RULES: Final[tuple[SystemdRule, ...]] = (*MACHINE_RULES, _host, _files)
