"""Rules about the rendered pods: tolerations that the API server refuses, and engines that do not fit their pods."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from aiaas.config import codes
from aiaas.config.backend import Engine
from aiaas.config.kubernetes import Toleration
from aiaas.config.model import Config
from aiaas.config.problem import Finding
from aiaas.config.values import amount_of
from aiaas.units import format_duration
from aiaas.yamltree import Path

PARALLEL: Final = ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size")
# With these the processes of one engine also run in other pods.
_ELSEWHERE: Final = ("nnodes", "data-parallel-size-local", "data-parallel-address", "distributed-executor-backend")
_SHUTDOWN: Final = "shutdown-timeout"

PodRule = Callable[[Config], Iterator[Finding]]


def _tolerations(config: Config) -> Iterator[Finding]:
    pods: list[tuple[Path, tuple[Toleration, ...]]] = [(("kubernetes",), config.kubernetes.tolerations)]
    pods += [((*path, "pod"), engine.pod.tolerations) for path, engine in _engines(config)]
    for path, tolerations in pods:
        for index, each in enumerate(tolerations):
            if (fault := _fault_of(each)) is not None:
                yield (
                    codes.WRONG_VALUE,
                    "error",
                    (*path, "tolerations", index),
                    f"{fault}, or the API server refuses it",
                )


def _fault_of(toleration: Toleration) -> str | None:
    if toleration.key is None and toleration.operator != "Exists":
        return "a toleration without a key needs operator: Exists; name the key"
    if toleration.operator == "Exists" and toleration.value is not None:
        return "operator: Exists takes no value; remove the value"
    if toleration.seconds is not None and toleration.effect != "NoExecute":
        return "tolerationSeconds needs effect: NoExecute; remove it"
    return None


def _gpus(config: Config) -> Iterator[Finding]:
    for path, engine in _engines(config):
        arguments = _arguments(engine)
        sizes = {name: _count(arguments[name][1]) for name in PARALLEL if name in arguments}
        if not sizes or not engine.pod.gpus or any(name in arguments for name in _ELSEWHERE):
            continue
        needed = math.prod(sizes.values())
        if needed > engine.pod.gpus:
            first = next(iter(sizes))
            message = (
                f"vLLM needs {needed} GPUs ({' x '.join(f'{name} {size}' for name, size in sizes.items())}), and its "
                f"pod has {engine.pod.gpus} (engine.pod.gpus), so it does not start; make them equal"
            )
            yield codes.ENGINE_POD, "error", (*path, "args", arguments[first][0]), message


def _shared_memory(config: Config) -> Iterator[Finding]:
    for path, engine in _engines(config):
        shared, limit = engine.pod.shared_memory, engine.pod.resources.limits.memory
        if limit is not None and amount_of(shared) >= amount_of(limit):
            message = (
                f"is {shared} and counts as memory of the pod, which is killed at {limit} "
                "(resources.limits.memory); lower it, or raise that limit"
            )
            yield codes.ENGINE_POD, "error", (*path, "pod", "shared_memory"), message


def _shutdown(config: Config) -> Iterator[Finding]:
    drain = config.server.drain_timeout
    for path, engine in _engines(config):
        written, value = _arguments(engine).get(_SHUTDOWN, ("", None))
        if isinstance(value, int | float) and value < drain:
            message = (
                f"the engine ends open requests after {format_duration(float(value))}, and the gateway lets them "
                f"finish for {format_duration(drain)} (server.drain_timeout); remove it, so that aiaas sets that"
            )
            yield codes.DRAIN, "warning", (*path, "args", written), message


def _engines(config: Config) -> Iterator[tuple[Path, Engine]]:
    for name, backend in config.backends.items():
        if backend.enabled and backend.engine is not None and backend.engine.kind == "vllm":
            yield ("backends", name, "engine"), backend.engine


def _arguments(engine: Engine) -> Mapping[str, tuple[str, object]]:
    """The arguments by vLLM's own names, each with its name in the file and its value."""
    return {name.replace("_", "-"): (name, value) for name, value in engine.args.items()}


def _count(value: object) -> int:
    """A number of processes; 1 for a value that vLLM itself has to refuse."""
    text = str(value)
    return int(text) if text.isdecimal() else 1


ENGINE_RULES: Final[tuple[PodRule, ...]] = (_gpus, _shared_memory, _shutdown)
POD_RULES: Final[tuple[PodRule, ...]] = (_tolerations,)
