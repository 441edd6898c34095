"""A vLLM as a service of its own, for `aiaas render --target systemd`: started as in a pod (`engine.py`), on 127.0.0.1.

It is less hardened than the gateway: it needs the GPU's devices, compiles code at run time, and its processes use
shared memory. `ProtectClock=` and `PrivateDevices=` would take the devices away.

vLLM reads secrets from its environment alone, so a shell exports the credentials before it becomes vLLM.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from aiaas.config.systemd import ONE_NAME
from aiaas.manifests.engine import CACHE, DEFAULTS, arguments, engine_grace
from aiaas.manifests.unit import UnitFile, assignment, command_line
from aiaas.plan.kubernetes import EngineDeployment
from aiaas.plan.systemd import ENGINE_HOST, SystemdPlan

VLLM_USER: Final = "vllm"
VLLM_FOLDER: Final = "/opt/vllm/current/bin"
CACHE_FOLDER: Final = "/var/cache/vllm"  # weights and compiled kernels
# vLLM's compilers look for ninja in its own folder, and for nvcc in CUDA's.
PATH: Final = f"{VLLM_FOLDER}:/usr/local/cuda/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENGINE_PAUSE: Final = 5
# Makes /dev/nvidia-uvm, which vLLM's user may not. Absent on machines without an Nvidia GPU.
MAKE_DEVICES: Final = "-+/usr/bin/nvidia-modprobe -u -c=0"
EXPORT: Final = 'for file in "$CREDENTIALS_DIRECTORY"/*; do export "${file##*/}=$(cat "$file")"; done; exec "$@"'

ENGINE_HARDENING: Final = (
    ("NoNewPrivileges", "yes"),
    ("CapabilityBoundingSet", ""),
    ("ProtectSystem", "strict"),
    ("ProtectHome", "read-only"),  # a model may be in somebody's home
    ("PrivateTmp", "yes"),
    ("ProtectHostname", "yes"),
    ("ProtectKernelLogs", "yes"),
    ("ProtectKernelModules", "yes"),
    ("ProtectKernelTunables", "yes"),
    ("ProtectControlGroups", "yes"),
    ("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX AF_NETLINK"),  # NCCL asks for the network interfaces
    ("RestrictNamespaces", "yes"),
    ("RestrictSUIDSGID", "yes"),
    ("LockPersonality", "yes"),
    ("KeyringMode", "private"),
    ("SystemCallArchitectures", "native"),
    ("UMask", "0077"),
)


def engine_unit(plan: SystemdPlan, engine: EngineDeployment, credentials: str) -> UnitFile:
    """The unit of an engine; `credentials` is the folder with the secrets."""
    return {
        "Unit": (
            ("Description", f"vLLM of the backend {engine.backend}"),
            ("Wants", "network-online.target"),
            ("After", "network-online.target"),
            ("StartLimitIntervalSec", "0"),
        ),
        "Service": _service(plan, engine, credentials),
        "Install": (("WantedBy", "multi-user.target"),),
    }


def _service(plan: SystemdPlan, engine: EngineDeployment, credentials: str) -> Iterator[tuple[str, str]]:
    secrets = _secrets(engine)
    program = (
        f"{VLLM_FOLDER}/vllm",
        "serve",
        *arguments(plan.gateway, engine, host=ENGINE_HOST, port=engine.engine.port),
    )
    yield "Type", "exec"
    if engine.pod.gpus:
        yield "ExecStartPre", MAKE_DEVICES
    yield "ExecStart", command_line(("/bin/sh", "-c", EXPORT, "sh", *program) if secrets else program)
    yield "SyslogIdentifier", engine.name  # not `sh`
    yield "Restart", "always"
    yield "RestartSec", str(ENGINE_PAUSE)
    yield "", "Only vLLM's first process may get SIGTERM: its engine would drop the open requests."
    yield "KillMode", "mixed"
    yield "TimeoutStopSec", str(engine_grace(plan.gateway, engine, before=0))
    yield "User", VLLM_USER
    yield "Group", VLLM_USER
    yield "CacheDirectory", "vllm"
    yield "CacheDirectoryMode", "0750"
    for name, value in _environment(plan, engine).items():
        yield "Environment", assignment(name, value)
    for name, source in secrets.items():
        yield "LoadCredential", f"{name}:{credentials}/{source}"
    yield "LimitNOFILE", "65536"
    yield "LimitMEMLOCK", "infinity"
    yield "TasksMax", "infinity"
    if engine.backend in plan.engine_memory:
        yield "MemoryMax", f"{plan.engine_memory[engine.backend]}M"
    yield from ENGINE_HARDENING


def _secrets(engine: EngineDeployment) -> dict[str, str]:
    """Variable -> the credential with its value."""
    found = {name: match[1] for name, value in engine.environment.items() if (match := ONE_NAME.fullmatch(value))}
    return found if engine.key is None else found | {"VLLM_API_KEY": engine.key}


def _environment(plan: SystemdPlan, engine: EngineDeployment) -> Mapping[str, str]:
    """The variables that are not secret; those of the config win."""
    own = {name: value.replace(CACHE, CACHE_FOLDER) for name, value in DEFAULTS.items()}
    own |= {"PATH": PATH, "PYTHONUNBUFFERED": "1"} | _devices(plan, engine)
    secrets = _secrets(engine)
    written = {name: value.replace("$${", "${") for name, value in engine.environment.items()}
    return {name: value for name, value in (own | written).items() if name not in secrets}


def _devices(plan: SystemdPlan, engine: EngineDeployment) -> dict[str, str]:
    """The engine's own GPUs where several engines share a machine: in a cluster the device plugin hands them out."""
    users = [each for each in plan.engines if each.pod.gpus]
    if len(users) < 2 or engine not in users:
        return {}
    first = sum(each.pod.gpus for each in users[: users.index(engine)])
    return {"CUDA_VISIBLE_DEVICES": ",".join(str(first + number) for number in range(engine.pod.gpus))}
