"""Rules about backends behind a Service of the cluster: what a NetworkPolicy sees is its pods, and not the Service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

from aiaas.config import codes
from aiaas.config.address import Address, namespace_in
from aiaas.config.backend import Backend
from aiaas.config.model import Config
from aiaas.config.problem import Finding
from aiaas.yamltree import Path

# Ports that a Service often has and its pods rarely: production-stack's own chart maps 80 to 8000.
SERVICE_PORTS: Final = (80, 443)
_SHORT_DOMAIN: Final = ".svc.cluster"

ServiceRule = Callable[[Config], Iterator[Finding]]


def _pods_have_another_port(config: Config) -> Iterator[Finding]:
    if not config.kubernetes.network_policy.enabled:
        return
    for path, backend, at, address, namespace in _services(config):
        if namespace is not None and backend.network.port is None and address.port in SERVICE_PORTS:
            message = (
                f"port {address.port} of a Service usually leads to another one of its pods, and the NetworkPolicy "
                f"allows pods' ports only; write that one into {'.'.join(map(str, path))}.network.port: 8000 for vLLM, "
                f"or {address.port} if it is that"
            )
            yield codes.POLICY, "warning", (*path, *at), message


def _namespaces_agree(config: Config) -> Iterator[Finding]:
    for path, backend, _, address, namespace in _services(config):
        written = backend.network.namespace
        if written is not None and namespace is not None and written != namespace and "." in address.host:
            message = (
                f"is {written}, but {address.host} is a Service in {namespace}, so the NetworkPolicy blocks it; "
                "remove it, or correct one"
            )
            yield codes.POLICY, "warning", (*path, "network", "namespace"), message


def _domain_is_whole(config: Config) -> Iterator[Finding]:
    for path, _, at, address, _ in _services(config):
        if address.host.endswith(_SHORT_DOMAIN):
            message = f"{address.host} has no address in most clusters; write {address.host}.local"
            yield codes.BAD_URL, "warning", (*path, *at), message


def _services(config: Config) -> Iterator[tuple[Path, Backend, Path, Address, str | None]]:
    """Each address of the enabled backends: backend and field, and the namespace if it looks like a Service's name."""
    for name, backend in config.backends.items():
        with suppress(ValueError):  # check.py reports an address that cannot be read
            for at, address in backend.addresses() if backend.enabled else ():
                namespace = namespace_in(address.host, config.kubernetes.namespace, tls=address.tls)
                yield ("backends", name), backend, at, address, namespace


SERVICE_RULES: Final[tuple[ServiceRule, ...]] = (_pods_have_another_port, _namespaces_agree, _domain_is_whole)
