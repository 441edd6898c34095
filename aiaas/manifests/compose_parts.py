"""Shared parts of the services in a compose file: hardening, health checks, amounts, and values from `.env`."""

from __future__ import annotations

import math
from typing import Final

from aiaas.config.kubernetes import ResourceAmounts
from aiaas.config.values import amount_of
from aiaas.manifests.objects import UID, Object
from aiaas.openai.paths import HEALTH
from aiaas.plan.compose import ComposePlan

USER: Final = f"${{AIAAS_UID:-{UID}}}:${{AIAAS_GID:-{UID}}}"


def hardened(service: Object) -> Object:
    """The service with the rights and the log that all services have; it needs no more."""
    return service | {
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "logging": {"driver": "local", "options": {"max-size": "50m", "max-file": "5"}},
    }


def healthcheck(test: list[str], *, timeout: str, retries: int, start_period: str) -> Object:
    """A check every ten seconds. In the start period a failure does not count."""
    return {"test": test, "interval": "10s", "timeout": timeout, "retries": retries, "start_period": start_period}


def health_program(port: int, *, seconds: int, tls: bool = False) -> str:
    """A Python program that fails unless /health answers 200 within `seconds`: not every image has curl."""
    if not tls:
        return f"import urllib.request as r; r.urlopen('http://127.0.0.1:{port}{HEALTH}', timeout={seconds})"
    anybody = "context=s._create_unverified_context()"  # no certificate is for 127.0.0.1
    address = f"https://127.0.0.1:{port}{HEALTH}"
    return f"import ssl as s, urllib.request as r; r.urlopen('{address}', timeout={seconds}, {anybody})"


def folder(name: str, target: str) -> Object:
    """A folder beside the compose file, mounted read-only. Docker must not make a missing one: it would be empty."""
    bind = {"create_host_path": False}
    return {"type": "bind", "source": f"./{name}", "target": target, "read_only": True, "bind": bind}


def limits_of(limits: ResourceAmounts) -> Object:
    """CPUs and memory in Compose's spelling, without those that are not set."""
    amounts = {"cpus": None if limits.cpu is None else f"{amount_of(limits.cpu):g}"}
    amounts["memory"] = None if limits.memory is None else size_of(limits.memory)
    return {name: amount for name, amount in amounts.items() if amount is not None}


def size_of(quantity: str) -> str:
    """Bytes in Compose's spelling: `512Mi` is `512m`."""
    number = math.ceil(amount_of(quantity))
    for unit, size in (("g", 1024**3), ("m", 1024**2), ("k", 1024)):
        if number and number % size == 0:
            return f"{number // size}{unit}"
    return f"{number}b"


def value_of(plan: ComposePlan, name: str) -> str:
    """A variable's value: the config's own, or the one in .env."""
    return literal(plan.values[name]) if name in plan.values else required(name)


def required(name: str) -> str:
    """A variable that `docker compose` reads from `.env`, and without which it stops."""
    return f"${{{name}:?write it into .env (.env.example lists all variables)}}"


def literal(text: str) -> str:
    """`text` with each `$` doubled, so that Compose does not expand it."""
    return text.replace("$", "$$")
