"""A vLLM as a service of a compose file: the command line and the variables that its pod has in a cluster."""

from __future__ import annotations

import math
from typing import Final

from aiaas.manifests.compose_parts import (
    USER,
    hardened,
    health_program,
    healthcheck,
    limits_of,
    literal,
    size_of,
    value_of,
)
from aiaas.manifests.engine import CACHE, DEFAULTS, REFERENCE, arguments, engine_grace
from aiaas.manifests.objects import Object
from aiaas.plan.compose import OWNER, ComposePlan
from aiaas.plan.deployed import ENGINE_PORT
from aiaas.plan.kubernetes import EngineDeployment

NVIDIA: Final = "nvidia.com/gpu"
# A Hugging Face token as people write it in `engine.env`, and the variable with the path of a file that holds it.
TOKEN, TOKEN_FILE = "HF_TOKEN", "HF_TOKEN_PATH"


def compose_engine(plan: ComposePlan, engine: EngineDeployment) -> Object:
    """A vLLM. Its root file system is writable, since torch and its compilers write to unknown places."""
    pod = engine.pod
    resources: Object = {"limits": limits_of(pod.resources.limits)}
    if devices := _devices(plan, engine):
        resources["reservations"] = {"devices": devices}
    service: Object = {
        "image": pod.image,
        "entrypoint": ["vllm", "serve"],
        "command": [literal(argument) for argument in arguments(plan.gateway, engine)],
        "user": USER,
        "init": True,
        "restart": "unless-stopped",
        "stop_grace_period": f"{engine_grace(plan.gateway, engine, before=0)}s",
        "environment": _engine_environment(plan, engine),
        "shm_size": size_of(pod.shared_memory),
        "volumes": [f"{engine.name}-cache:{CACHE}"],
        "deploy": {"resources": {name: amounts for name, amounts in resources.items() if amounts}},
        "healthcheck": healthcheck(
            ["CMD", "python3", "-c", health_program(ENGINE_PORT, seconds=9)],
            timeout="10s",
            retries=12,
            start_period=f"{math.ceil(engine.engine.start_timeout)}s",
        ),
        "depends_on": {OWNER: {"condition": "service_completed_successfully"}},
    }
    if (token := token_of(engine)) is not None:
        service["secrets"] = [token]
    made = hardened(service)
    del made["read_only"]
    return made


def token_of(engine: EngineDeployment) -> str | None:
    """The variable whose value the engine reads from a file instead: a Hugging Face token. None if it needs none."""
    match = REFERENCE.fullmatch(engine.environment.get(TOKEN, ""))
    return None if match is None else match[1]


def _engine_environment(plan: ComposePlan, engine: EngineDeployment) -> Object:
    written = DEFAULTS | dict(engine.environment)
    token = token_of(engine)
    if token is not None:
        del written[TOKEN]
    entries: Object = {name: _expanded(plan, value) for name, value in written.items()}
    if token is not None:
        entries[TOKEN_FILE] = f"/run/secrets/{token}"
    if engine.key is not None:
        entries["VLLM_API_KEY"] = value_of(plan, engine.key)
    return entries


def _devices(plan: ComposePlan, engine: EngineDeployment) -> list[Object]:
    """The GPUs. `count` would give the first ones to every engine, so each of several engines gets its own."""
    if engine.pod.gpu_resource != NVIDIA or not engine.pod.gpus:
        return []
    with_gpus = [each for each in plan.engines if each.pod.gpu_resource == NVIDIA and each.pod.gpus]
    which: Object = {"count": engine.pod.gpus}
    if len(with_gpus) > 1:
        first = sum(each.pod.gpus for each in with_gpus[: with_gpus.index(engine)])
        which = {"device_ids": [str(number) for number in range(first, first + engine.pod.gpus)]}
    return [{"driver": "nvidia"} | which | {"capabilities": ["gpu"]}]


def _expanded(plan: ComposePlan, value: str) -> str:
    """A value of `engine.env`, in which `${NAME}` is a variable and `$${NAME}` the literal text, as in Compose."""
    return REFERENCE.sub(lambda match: value_of(plan, match[1]) if match[1] else _literal_part(match[0]), value)


def _literal_part(text: str) -> str:
    return "$${" if text == "$${" else "$$"
