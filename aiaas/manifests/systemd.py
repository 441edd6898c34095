"""SystemdPlan -> the files of one machine: units, users, folders and the gateway's config, by their paths.

    etc/systemd/system/aiaas.socket     the port, which systemd keeps open while no gateway runs
    etc/systemd/system/aiaas@.service   a gateway: no privileges, nothing writable but /var/lib/aiaas
    etc/systemd/system/aiaas.service    starts, stops and reloads the gateways; runs nothing itself
    etc/systemd/system/vllm-X.service   a vLLM, for each backend with an engine of kind vllm (`vllm_unit.py`)
    etc/sysusers.d/aiaas.conf           the users of both
    etc/tmpfiles.d/aiaas.conf           the folders, and who may read them
    etc/aiaas/config/config.yaml        the config, in its deployed form

Decisions:
  1. Gateways are instances (aiaas@blue, aiaas@green) that share the sockets. `systemctl restart` starts a service only
     when its old process has ended, and a gateway drains as long as its longest stream. So an update starts the other
     instance, and then stops the old one, while new requests go on. Debian's PostgreSQL has the same three units.
  2. A system user instead of `DynamicUser=`: the key file and the certificate are read again when they change, so they
     must belong to a user that exists before the service does.
  3. Secrets are credentials, one file for each in CREDENTIALS. systemd reads them as root, and the service gets copies
     that no other user sees. `aiaas serve` takes them for its `${NAME}`.
  4. The key file and the certificate are no credentials: systemd copies a credential once, at the start.
  5. `KillMode=mixed`: only the main process gets SIGTERM, since it stops workers and engines when it has drained.
  6. A listening socket for each worker, as `aiaas serve` opens them itself: the kernel spreads connections over them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from aiaas import __version__
from aiaas.config.address import is_loopback
from aiaas.manifests.unit import UnitFile, assignment, command_line, unit_text
from aiaas.manifests.vllm_unit import VLLM_USER, engine_unit
from aiaas.plan.deployed import CONFIG_FILE, CONFIG_FOLDER, KEYS_FOLDER, KEYS_KEY, TLS_CERT, TLS_FOLDER, TLS_KEY
from aiaas.plan.systemd import SystemdPlan

SYSTEMD_MARK: Final = "# Made by `aiaas render --target systemd`"
UNITS_FOLDER: Final = "etc/systemd/system"
CONFIG_PATH: Final = str(CONFIG_FILE).lstrip("/")
GATEWAY_USER: Final = "aiaas"
PROGRAM: Final = "/opt/aiaas/current/bin/aiaas"  # `current` is a link to the version in use
FIRST_INSTANCE: Final = "blue"
CREDENTIALS: Final = "/etc/aiaas/credentials"
ANY_ADDRESS: Final = ("0.0.0.0", "::")
SOCKET_BACKLOG: Final = 4096  # as many clients may wait in a restart; the kernel's own bound (net.core.somaxconn)
LEAST_FILES: Final = 65_536
FILES_A_CONNECTION: Final = 4  # client and endpoint, twice over
WATCHDOG_SECONDS: Final = 30  # as the pods' liveness probe: three failures, ten seconds apart
GATEWAY_PAUSE: Final = 2

# Deny everything that the gateway does not use. AF_UNIX is for systemd itself; names resolve without AF_NETLINK, too.
GATEWAY_HARDENING: Final = (
    ("NoNewPrivileges", "yes"),
    ("CapabilityBoundingSet", ""),
    ("AmbientCapabilities", ""),
    ("ProtectSystem", "strict"),
    ("ProtectHome", "yes"),
    ("PrivateTmp", "yes"),
    ("PrivateDevices", "yes"),
    ("DevicePolicy", "closed"),
    ("PrivateUsers", "yes"),
    ("ProtectProc", "invisible"),
    ("ProcSubset", "pid"),
    ("ProtectClock", "yes"),
    ("ProtectHostname", "yes"),
    ("ProtectKernelLogs", "yes"),
    ("ProtectKernelModules", "yes"),
    ("ProtectKernelTunables", "yes"),
    ("ProtectControlGroups", "yes"),
    ("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX"),
    ("RestrictNamespaces", "yes"),
    ("RestrictRealtime", "yes"),
    ("RestrictSUIDSGID", "yes"),
    ("LockPersonality", "yes"),
    ("MemoryDenyWriteExecute", "yes"),
    ("RemoveIPC", "yes"),
    ("KeyringMode", "private"),
    ("SystemCallArchitectures", "native"),
    ("SystemCallFilter", "@system-service"),
    ("SystemCallFilter", "~@privileged @resources"),
    ("SystemCallErrorNumber", "EPERM"),
    ("UMask", "0077"),
)


_WHOLE: Final = (
    ("Description", "aiaas, the gateway in front of vLLM"),
    # Also at a start by hand: a socket cannot begin to listen while the service that it starts is active.
    ("Requires", "aiaas.socket"),
    ("After", "aiaas.socket"),
)
_WHOLE_INSTALL: Final = (("WantedBy", "multi-user.target"), ("Also", "aiaas.socket"))
_GATEWAY_INSTALL: Final = (("WantedBy", "aiaas.service"), ("DefaultInstance", FIRST_INSTANCE))


def systemd_files(plan: SystemdPlan, source: str) -> dict[str, str]:
    """Path -> text of each file, relative to the machine's root. `source` is the config's file."""
    comment = f"{SYSTEMD_MARK} (aiaas {__version__}) from {source}: change that, not this.\n"
    units: dict[str, UnitFile] = {
        "aiaas.socket": {
            "Unit": [("Description", "Port of the aiaas gateway")],
            "Socket": _socket(plan),
            "Install": [("WantedBy", "sockets.target")],
        },
        "aiaas.service": {"Unit": _WHOLE, "Service": _whole(), "Install": _WHOLE_INSTALL},
        "aiaas@.service": {"Unit": _gateway_head(plan), "Service": _gateway(plan), "Install": _GATEWAY_INSTALL},
    }
    texts = {name: unit_text(comment, unit) for name, unit in units.items()}
    texts |= {f"{each.name}.service": unit_text(comment, engine_unit(plan, each, CREDENTIALS)) for each in plan.engines}
    return {f"{UNITS_FOLDER}/{name}": text for name, text in texts.items()} | {
        "etc/sysusers.d/aiaas.conf": comment + "".join(f"{line}\n" for line in _users(plan)),
        "etc/tmpfiles.d/aiaas.conf": comment + "".join(f"{line}\n" for line in _folders(plan)),
        CONFIG_PATH: comment + plan.config_text,
    }


def systemd_stream(files: dict[str, str]) -> str:
    """All files as one text, each after a line with its path."""
    return "\n".join(f"# FILE /{path}\n{text}" for path, text in files.items())


def _socket(plan: SystemdPlan) -> Iterator[tuple[str, str]]:
    server = plan.gateway.server
    host = f"[{plan.host}]" if ":" in plan.host else plan.host
    for _ in range(server.workers):
        yield "ListenStream", f"{host}:{server.port}"
    if server.workers > 1:
        yield "ReusePort", "yes"
    if plan.host not in ANY_ADDRESS and not is_loopback(plan.host):
        yield "FreeBind", "yes"  # at boot the address may come later
    yield "Backlog", str(SOCKET_BACKLOG)


def _whole() -> Iterator[tuple[str, str]]:
    yield "Type", "oneshot"
    yield "RemainAfterExit", "yes"
    yield "ExecStart", "/bin/true"
    yield "ExecReload", "/bin/true"
    yield "User", GATEWAY_USER
    yield from GATEWAY_HARDENING


def _gateway_head(plan: SystemdPlan) -> Iterator[tuple[str, str]]:
    yield "Description", "aiaas gateway %i"
    yield "PartOf", "aiaas.service"
    yield "ReloadPropagatedFrom", "aiaas.service"
    engines = [f"{each.name}.service" for each in plan.engines]
    yield "Wants", " ".join(("network-online.target", *engines))
    # After the engines, so that at a shutdown the gateway drains before they stop.
    after = ["aiaas.service", "network-online.target", *engines]
    if plan.store_here:
        after += [f"{name}.service" for name in ("redis-server", "redis", "valkey-server", "valkey")]
    yield "After", " ".join(after)
    yield "StartLimitIntervalSec", "0"


def _gateway(plan: SystemdPlan) -> Iterator[tuple[str, str]]:
    server = plan.gateway.server
    yield "Type", "notify"
    yield "Sockets", "aiaas.socket"
    yield "ExecStart", command_line((PROGRAM, "serve", "--config", str(CONFIG_FILE)))
    yield "ExecReload", "/bin/kill -HUP $MAINPID"
    yield "Restart", "always"
    yield "RestartSec", str(GATEWAY_PAUSE)
    yield "KillMode", "mixed"
    yield "", f"drain_timeout ({server.drain_timeout:g} s), and the time to close connections and exit"
    yield "TimeoutStopSec", str(plan.grace)
    yield "WatchdogSec", str(WATCHDOG_SECONDS)
    yield "User", GATEWAY_USER
    yield "Group", GATEWAY_USER
    yield "StateDirectory", "aiaas"
    yield "StateDirectoryMode", "0750"
    for name in plan.variables:
        if name in plan.values:
            yield "Environment", assignment(name, plan.values[name])
        else:
            yield "LoadCredential", f"{name}:{CREDENTIALS}/{name}"
    yield "LimitNOFILE", str(max(LEAST_FILES, FILES_A_CONNECTION * server.max_connections))
    yield "MemoryMax", f"{plan.memory}M"
    yield "OOMPolicy", "continue"  # a worker that the kernel kills is replaced
    yield "TasksMax", "512"
    yield "", "A line for each request; journald would drop those above its rate."
    yield "LogRateLimitIntervalSec", "0"
    yield from GATEWAY_HARDENING
    if plan.peers is not None:
        yield "IPAddressDeny", "any"
        yield "IPAddressAllow", " ".join(("localhost", *plan.peers))


def _users(plan: SystemdPlan) -> Iterator[str]:
    yield f'u {GATEWAY_USER} - "aiaas gateway" /var/lib/aiaas'
    if plan.engines:
        yield f'u {VLLM_USER} - "vLLM" /var/cache/vllm'
        yield f"m {VLLM_USER} video"
        yield f"m {VLLM_USER} render"


def _folders(plan: SystemdPlan) -> Iterator[str]:
    """`d` makes a folder; `z` corrects a file that an administrator copied as root."""
    yield "d /etc/aiaas 0755 root root"
    yield f"d {CONFIG_FOLDER} 0750 root {GATEWAY_USER}"
    yield f"z {CONFIG_FILE} 0640 root {GATEWAY_USER}"
    if plan.gateway.auth.enabled:
        yield f"d {KEYS_FOLDER} 0700 {GATEWAY_USER} {GATEWAY_USER}"
        yield f"z {KEYS_FOLDER}/{KEYS_KEY} 0600 {GATEWAY_USER} {GATEWAY_USER}"
    if plan.gateway.server.tls is not None:
        yield f"d {TLS_FOLDER} 0750 root {GATEWAY_USER}"
        yield f"z {TLS_FOLDER}/{TLS_CERT} 0640 root {GATEWAY_USER}"
        yield f"z {TLS_FOLDER}/{TLS_KEY} 0640 root {GATEWAY_USER}"
    yield f"d {CREDENTIALS} 0700 root root"
    yield f"z {CREDENTIALS}/* 0600 root root"
