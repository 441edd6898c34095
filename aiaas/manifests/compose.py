"""ComposePlan -> compose.yaml and the files beside it, for Docker Compose 2.24 or later.

Rules:
  1. Secrets never stand in a file that is rendered: variables come from `.env`, files from `secrets/` and `tls/`.
  2. Mount folders, not single files. A mounted file is an inode, so the gateway would never see a key file or a
     certificate that a rename replaces. (Inline `configs` cannot be put into a read-only container.)
  3. Docker gives a new volume to root. A service that runs once gives volumes to the user of the other containers.
  4. Compose expands `$` everywhere: a literal one is doubled.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from aiaas import __version__
from aiaas.config.compose import MACHINE
from aiaas.config.write import to_yaml
from aiaas.manifests.caddy import caddyfile
from aiaas.manifests.compose_engine import compose_engine, token_of
from aiaas.manifests.compose_parts import (
    USER,
    folder,
    hardened,
    health_program,
    healthcheck,
    limits_of,
    required,
    value_of,
)
from aiaas.manifests.objects import Object
from aiaas.plan.compose import CADDY, GATEWAY, OWNER, ComposePlan, StoreService
from aiaas.plan.deployed import (
    AUTHORITIES_FOLDER,
    CONFIG_FILE,
    CONFIG_FOLDER,
    CONFIG_KEY,
    DATA_FOLDER,
    KEYS_FOLDER,
    KEYS_KEY,
    TLS_FOLDER,
)

COMPOSE_FILE: Final = "compose.yaml"
COMPOSE_MARK: Final = "# Made by `aiaas render --target compose`"
KEYS_PLACE: Final = f"keys/{KEYS_KEY}"  # in the folder
CADDY_IMAGE: Final = "caddy:2.11-alpine"
STORE_IMAGE: Final = "valkey/valkey:8.1-alpine"
DESCRIPTORS: Final = 65536  # more than 2,048 connections and theirs to vLLM; Docker's own default may be 1,024
STORE_PASSWORD: Final = "REDISCLI_AUTH"  # valkey-cli reads it, too


def compose_file(plan: ComposePlan) -> Object:
    """The compose file as plain data."""
    services: Object = {}
    volumes = list(_volumes(plan))
    if volumes:
        services[OWNER] = _owner(plan, volumes)
    services[GATEWAY] = _gateway(plan)
    if plan.domain is not None:
        services[CADDY] = _caddy(plan)
    if plan.store is not None:
        services[plan.store.name] = _store(plan.store)
    for engine in plan.engines:
        services[engine.name] = compose_engine(plan, engine)
    made: Object = {"name": plan.settings.name, "services": services}
    named = [*volumes]
    named += ["caddy-data", "caddy-config"] if plan.domain is not None else []
    named += [f"{plan.store.name}-data"] if plan.store is not None else []
    if named:
        made["volumes"] = {name: {} for name in named}
    if secrets := {secret for engine in plan.engines if (secret := token_of(engine)) is not None}:
        made["secrets"] = {name: {"file": f"./secrets/{name}"} for name in sorted(secrets)}
    return made


def compose_files(plan: ComposePlan, source: str, keys_text: str | None) -> dict[str, str]:
    """File name -> text. `source` is the config's file; `keys_text` is None if there is no key file.

    A name that ends in a slash is a folder that the operator fills.
    """
    origin = f"{COMPOSE_MARK} (aiaas {__version__}) from {source}: change that, not this.\n"
    files = {COMPOSE_FILE: compose_text(plan, source), f"config/{CONFIG_KEY}": origin + plan.config_text}
    if plan.gateway.auth.enabled:
        files |= {"keys/": ""} if keys_text is None else {KEYS_PLACE: origin + keys_text}
    if plan.domain is not None:
        files["caddy/Caddyfile"] = origin + caddyfile(plan)
    if plan.gateway.server.tls is not None:
        files["tls/"] = ""
    if plan.authorities:
        files["authorities/"] = ""
    if any(token_of(engine) for engine in plan.engines):
        files["secrets/"] = ""
    return files | {".env.example": origin + environment_example(plan)}


def compose_text(plan: ComposePlan, source: str) -> str:
    """compose.yaml as text."""
    origin = f"{COMPOSE_MARK} (aiaas {__version__}) from {source}: change that, not this.\n"
    return f"{origin}# Config digest: {plan.gateway.digest}\n" + to_yaml(compose_file(plan))


def environment_example(plan: ComposePlan) -> str:
    """The variables that compose.yaml needs, without their values."""
    lines = [
        "# Copy this file to .env, fill it in, and keep .env out of git. Single quotes keep a `$` in a value.",
        "",
        "# The user and group of the containers. They need to read keys/, tls/ and secrets/: write those of the files'",
        "# owner (`id -u`, `id -g`), or give the files to 10001.",
        "AIAAS_UID=10001",
        "AIAAS_GID=10001",
    ]
    if needed := variables(plan):
        lines += ["", *(f"{name}=" for name in needed)]
    return "\n".join(lines) + "\n"


def variables(plan: ComposePlan) -> tuple[str, ...]:
    """The names of all variables whose values have to be in .env, sorted."""
    names = set(plan.variables)
    for engine in plan.engines:
        token = token_of(engine)
        names |= engine.variables - ({token} if token is not None else set())
    return tuple(sorted(names - plan.values.keys()))


def _volumes(plan: ComposePlan) -> Iterator[str]:
    """The volumes that belong to the user of the containers."""
    if plan.gateway.monitoring.usage_file is not None:
        yield "gateway-data"
    for engine in plan.engines:
        yield f"{engine.name}-cache"


def _owner(plan: ComposePlan, volumes: list[str]) -> Object:
    """The service that gives fresh volumes to the user of the containers, and ends."""
    mounts = {name: f"/volumes/{name}" for name in volumes}
    return hardened(
        _image(plan)
        | {
            "user": "0:0",
            "entrypoint": ["chown", USER],
            "command": list(mounts.values()),
            "restart": "no",
            "network_mode": "none",
            "cap_add": ["CHOWN"],
            "volumes": [f"{name}:{folder}" for name, folder in mounts.items()],
        }
    )


def _gateway(plan: ComposePlan) -> Object:
    server, monitoring = plan.gateway.server, plan.gateway.monitoring
    service: Object = _image(plan) | {
        "entrypoint": ["aiaas"],
        "command": ["serve", "--config", str(CONFIG_FILE)],
        "user": USER,
        "init": True,
        "restart": "unless-stopped",
        "stop_grace_period": f"{plan.grace}s",
    }
    if environment := _gateway_environment(plan):
        service["environment"] = environment
    ports = [_at(plan.address, server.port)] if plan.domain is None else []
    ports += [_at("127.0.0.1", monitoring.metrics_port)] if monitoring.prometheus else []
    if ports:
        service["ports"] = ports
    if plan.knows_machine:
        service["extra_hosts"] = [f"{MACHINE}:host-gateway"]
    service["volumes"] = list(_gateway_mounts(plan))
    service["tmpfs"] = ["/tmp:size=64m"]
    service["ulimits"] = {"nofile": max(DESCRIPTORS, 4 * server.max_connections)}
    service["deploy"] = {"resources": {"limits": limits_of(plan.settings.resources.limits)}}
    check = ["CMD", "python", "-c", health_program(server.port, seconds=4, tls=server.tls is not None)]
    service["healthcheck"] = healthcheck(check, timeout="5s", retries=3, start_period="60s")
    if depends := _gateway_dependencies(plan):
        service["depends_on"] = depends
    return hardened(service)


def _image(plan: ComposePlan) -> Object:
    """The gateway's image; the default is in no registry."""
    return {"image": plan.image} | ({"pull_policy": "never"} if plan.settings.image is None else {})


def _gateway_environment(plan: ComposePlan) -> Object:
    environment: Object = {name: value_of(plan, name) for name in plan.variables}
    if (given := plan.settings.authorities) is not None:
        environment["SSL_CERT_FILE"] = f"{AUTHORITIES_FOLDER}/{given.key}"
    return environment


def _gateway_mounts(plan: ComposePlan) -> Iterator[Object | str]:
    yield folder("config", CONFIG_FOLDER)
    if plan.gateway.auth.enabled:
        yield folder("keys", KEYS_FOLDER)
    if plan.gateway.server.tls is not None:
        yield folder("tls", TLS_FOLDER)
    if plan.authorities:
        yield folder("authorities", AUTHORITIES_FOLDER)
    if plan.gateway.monitoring.usage_file is not None:
        yield f"gateway-data:{DATA_FOLDER}"


def _gateway_dependencies(plan: ComposePlan) -> Object:
    """The services that start before the gateway and stop after it. It does not wait for engines and store, and starts
    if they cannot: it serves while an engine loads, and reports that."""
    depends = {OWNER: "service_completed_successfully"} if plan.gateway.monitoring.usage_file is not None else {}
    names = ([plan.store.name] if plan.store is not None else []) + [engine.name for engine in plan.engines]
    made: Object = {name: {"condition": condition} for name, condition in depends.items()}
    return made | {name: {"condition": "service_started", "required": False} for name in names}


def _caddy(plan: ComposePlan) -> Object:
    """Caddy runs as root without root's capabilities: it needs one of them for the ports 80 and 443."""
    service: Object = {
        "image": CADDY_IMAGE,
        "restart": "unless-stopped",
        "stop_grace_period": f"{plan.grace}s",
        "ports": ["80:80", "443:443", "443:443/udp"],
        "volumes": [folder("caddy", "/etc/caddy"), "caddy-data:/data", "caddy-config:/config"],
        "ulimits": {"nofile": DESCRIPTORS},
        "cap_add": ["NET_BIND_SERVICE"],
        "healthcheck": healthcheck(
            ["CMD", "wget", "-q", "-O", "/dev/null", "http://127.0.0.1:2019/config/"],
            timeout="5s",
            retries=3,
            start_period="10s",
        ),
        "depends_on": {GATEWAY: {"condition": "service_started"}},
    }
    return hardened(service)


def _store(store: StoreService) -> Object:
    """Valkey, which writes its counts to disk and never evicts a key."""
    options = f"--port {store.port} --dir /data --appendonly yes --save '' --maxmemory-policy noeviction"
    service: Object = {"image": STORE_IMAGE, "user": "valkey", "restart": "unless-stopped", "stop_grace_period": "30s"}
    if store.password is None:
        service["command"] = ["sh", "-c", f"exec valkey-server {options}"]
    else:
        # The password goes in by a config on stdin, so that no list of processes shows it.
        password = f'requirepass "$${STORE_PASSWORD}"'
        service["command"] = ["sh", "-c", f"exec valkey-server - {options} <<END\n{password}\nEND\n"]
        service["environment"] = {STORE_PASSWORD: required(store.password)}
    service["volumes"] = [f"{store.name}-data:/data"]
    ping = f"valkey-cli -p {store.port} ping | grep -q PONG"
    service["healthcheck"] = healthcheck(["CMD-SHELL", ping], timeout="5s", retries=3, start_period="60s")
    return hardened(service)


def _at(address: str | None, port: int) -> str:
    if address is None:
        return f"{port}:{port}"
    return f"[{address}]:{port}:{port}" if ":" in address else f"{address}:{port}:{port}"
