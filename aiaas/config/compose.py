"""Rules for a config that is to run in containers on one machine, by `aiaas render --target compose`. Pure.

A container has a network of its own: its 127.0.0.1 is not the machine's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from aiaas.config import codes
from aiaas.config.address import is_address, is_loopback
from aiaas.config.check import placed
from aiaas.config.crosslayer import CONTAINER_RULES
from aiaas.config.deployment import addresses
from aiaas.config.load import Loaded
from aiaas.config.model import Config
from aiaas.config.problem import Finding, Problem

MACHINE: Final = "host.docker.internal"  # the machine itself, as Docker calls it inside of a container

ComposeRule = Callable[[Config], Iterator[Finding]]


def check_compose(loaded: Loaded) -> tuple[Problem, ...]:
    """Return every problem that keeps a config from running in containers as it is meant, in the file's order."""
    config = loaded.partial
    if config is None:
        return ()
    return placed(loaded, (finding for rule in COMPOSE_RULES for finding in rule(config)))


def _reachable(config: Config) -> Iterator[Finding]:
    for path, host in addresses(config):
        if is_loopback(host):
            what = {"backends": "vLLM", "rate_limit": "Redis"}.get(str(path[0]), "the collector")
            message = (
                f"{host} is the gateway's own container; for a program of this machine write {MACHINE}, and let {what} "
                "listen on an address that containers reach (0.0.0.0, behind a firewall)"
            )
            yield codes.NOT_DEPLOYABLE, "error", path, message


def _bound(config: Config) -> Iterator[Finding]:
    host = config.server.host
    if not (is_address(host) or is_loopback(host)):
        message = f"{host} is a name, and Docker publishes a port at an address of the machine; write that address"
        yield codes.WRONG_VALUE, "error", ("server", "host"), message


COMPOSE_RULES: Final[tuple[ComposeRule, ...]] = (*CONTAINER_RULES, _reachable, _bound)
