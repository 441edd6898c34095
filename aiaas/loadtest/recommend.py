"""Recommend config lines from a sweep, each with the figures that support it. Pure.

    max_inflight   the number of concurrent requests at the knee: further requests wait in the gateway's queue, which
                   is shared between keys, and not in the engine's, which is first come first served. For a sweep of
                   rates it is computed by Little's law (L = rate x time in the system)
    queue          max_wait is the time that the SLO's TTFT leaves after the TTFT at the knee; the size is the number
                   of requests that the fleet answers in that time
    rate_limit     the rate at the knee, divided by the number of keys in the test
    engine queue   the same limit at the engine, for callers that bypass the gateway
    cpu_target     makes the autoscaler add a gateway at SCALE_EARLY of the CPU that one used at the knee, in percent of
                   a pod's CPU request. If that CPU was less than NEAR of the request, something else ended the growth
                   (nearly always the engine) and more gateways would not help, so the config's own target stays

Every recommendation comes from a measurement: without the gateway's CPU (`--metrics`) there is no `cpu_target`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor
from typing import Final

import msgspec

from aiaas.config.values import amount_of
from aiaas.errors import CheckFailed
from aiaas.loadtest.slo import Bound
from aiaas.loadtest.summary import ALONE, GatewayCpu, Summary
from aiaas.loadtest.sweep import knee, still_grows
from aiaas.loadtest.table import number, seconds, share

LONGEST_QUEUE_WAIT: Final = 30.0  # seconds in the queue without an SLO for TTFT: the config's own default
SHORTEST_WAIT: Final = 0.1  # seconds; a queue with a shorter wait is useless
ENGINE_ROOM: Final = (
    1.25  # times max_inflight, so that the engine refuses only requests that did not come through the gateway
)

NEAR: Final = 0.5  # of the requested CPU; below it a pod is mostly idle at the knee
SCALE_EARLY: Final = 0.7  # of the CPU used at the knee: a pod takes half a minute to start while the load grows
FULL: Final = 0.85  # of the CPU that a gateway can use at most
STEP: Final = 5  # percent; levels of a few seconds cannot measure more precisely


class SettingLine(msgspec.Struct, frozen=True):
    """One setting: its path in the config, its value as YAML, and the reason."""

    path: tuple[str, ...]
    value: str
    reason: str


class Pod(msgspec.Struct, frozen=True):
    """The resources of a gateway's pod, from the config: CPU request and limit (Kubernetes quantities, None if not
    set), workers, each of which can use one core, and the autoscaler's target in percent of the request."""

    request: str | None = "500m"
    limit: str | None = "1"
    workers: int = 1
    cpu_target: int = 70


class AdvisedFleet(msgspec.Struct, frozen=True):
    """The deployment to advise: the backend's name, its number of endpoints, the number of keys that share it, whether
    aiaas starts its engine, and the gateway's pod."""

    backend: str = "vllm"
    endpoints: int = 1
    keys: int = 1
    has_engine: bool = False
    pod: Pod = Pod()


def recommend(
    levels: Sequence[Summary], what: str, bounds: tuple[Bound, ...], fleet: AdvisedFleet
) -> tuple[SettingLine, ...]:
    """Return the config lines that a sweep's levels support.

    Args:
        levels: the sweep, in ascending order.
        what: the quantity that varied: "users" or "rate".
        bounds: the SLO; empty without one.
        fleet: the deployment to advise.

    Raises:
        CheckFailed: not even the lowest level was good enough.
    """
    best = knee(levels)
    if best is None:
        raise CheckFailed("nothing can be recommended: the lowest level failed or missed the SLO; start lower")
    at_once = best.level if what == "users" else best.requests_per_second * (best.e2e.mean if best.e2e else 0)
    each = max(ceil(at_once / fleet.endpoints), 1)
    backend = ("backends", fleet.backend)
    wait = _longest_wait(best, bounds)
    lines = [SettingLine((*backend, "max_inflight"), str(each), _why_inflight(levels, best, at_once, what, fleet))]
    rate, place = best.requests_per_second, _place(levels)
    if wait >= SHORTEST_WAIT:
        size = max(floor(rate * wait), 1)
        why = f"at {number(rate)} answers/s, {size} requests take {seconds(wait)}{_why_wait(best, bounds, place)}"
        lines.append(SettingLine((*backend, "queue"), f"{{size: {size}, max_wait: {round(wait * 1000)}ms}}", why))
    if fleet.has_engine:
        why = "the engine refuses (503) requests that bypass the gateway's queue instead of letting all of them wait"
        path = (*backend, "engine", "args", "max-num-queued-reqs")
        lines.append(SettingLine(path, str(ceil(each * ENGINE_ROOM)), why))
    per_minute = floor(rate * 60 / fleet.keys)
    if per_minute:
        shared = "" if fleet.keys == 1 else f", shared by the {fleet.keys} keys of this test"
        why = f"{number(rate)} answers/s {place}{shared}; if N keys are busy at once, divide this by N"
        lines.append(SettingLine(("rate_limit", "requests_per_minute"), str(per_minute), why))
        why = f"concurrent requests {place}{shared}"
        lines.append(
            SettingLine(("rate_limit", "burst"), str(min(max(ceil(at_once / fleet.keys), 1), per_minute)), why)
        )
    if best.cpu is not None and _asked(fleet.pod):
        lines.append(_cpu_target(levels, best, best.cpu, fleet.pod, what))
    return tuple(lines)


def _place(levels: Sequence[Summary]) -> str:
    """Where the figures were measured."""
    return "at the highest level tried" if still_grows(levels) else "at the knee"


def why_no_cpu_target(levels: Sequence[Summary], fleet: AdvisedFleet, looked: bool) -> str:
    """Say why there is no line for the autoscaler, or "" if there can be one. `looked`: --metrics was given."""
    best = knee(levels)
    wanted = "no line for kubernetes.cpu_target"
    if not _asked(fleet.pod):
        return f"{wanted}: it is a share of kubernetes.resources.requests.cpu, which the config does not set"
    if not looked:
        return f"{wanted}: a client does not see the gateway's CPU; give the URL of its metrics port with --metrics"
    if best is not None and best.cpu is None:
        return (
            f"{wanted}: --metrics gave no CPU figure for the level at the knee; was the level shorter than half a "
            "second, did the gateway restart, or do several gateways answer at that address?"
        )
    return ""


def _cpu_target(levels: Sequence[Summary], best: Summary, cpu: GatewayCpu, pod: Pod, what: str) -> SettingLine:
    asked = _asked(pod)
    most = min(float(pod.workers), amount_of(pod.limit) if pod.limit is not None else float(pod.workers))
    used = cpu.cores / asked
    carried = ""
    if cpu.share is not None and not ALONE[0] <= cpu.share <= ALONE[1]:
        carried = f" (it counted {share(cpu.share)} of this test's requests)"
    why = (
        f"{_place(levels)}, {what} {best.level:g}, one gateway used {number(cpu.cores)} cores{carried}, "
        f"{used * 100:.0f} % of the {pod.request} that a pod requests"
    )
    path = ("kubernetes", "cpu_target")
    is_full = cpu.cores > most * FULL
    if used < NEAR and not is_full:
        beyond = any(level.level > best.level for level in levels)
        limits = "so the engine is the limit, not the gateway" if beyond else "and no higher level was tried"
        return SettingLine(path, str(pod.cpu_target), f"{why}, {limits}; leave this as it is")
    if is_full:
        why += f" and nearly all of the {number(most)} that it can use, so the gateway itself is the limit"
    target = min(max(round(used * SCALE_EARLY * 100 / STEP) * STEP, STEP), 100)
    return SettingLine(
        path, str(target), f"{why}; {target} adds a gateway at {number(asked * target / 100)} cores, before that"
    )


def _asked(pod: Pod) -> float:
    """Return the pod's CPU request in cores, 0 without one."""
    return 0.0 if pod.request is None else amount_of(pod.request)


def _longest_wait(best: Summary, bounds: tuple[Bound, ...]) -> float:
    limit = _ttft_limit(bounds)
    return LONGEST_QUEUE_WAIT if limit is None or best.ttft is None else min(limit - best.ttft.p99, LONGEST_QUEUE_WAIT)


def _why_wait(best: Summary, bounds: tuple[Bound, ...], place: str) -> str:
    limit = _ttft_limit(bounds)
    if limit is None or best.ttft is None:
        return ""
    return f"; ttft={seconds(limit)} leaves that long after {seconds(best.ttft.p99)} (p99) {place}"


def _ttft_limit(bounds: tuple[Bound, ...]) -> float | None:
    return next((bound.limit for bound in bounds if bound.name == "ttft"), None)


def _why_inflight(levels: Sequence[Summary], best: Summary, at_once: float, what: str, fleet: AdvisedFleet) -> str:
    parts = [f"{at_once:.0f} at once gave {number(best.output_tokens_per_second)} tokens/s"]
    beyond = next((level for level in levels if level.level > best.level), None)
    if beyond is None:
        parts.append("no higher level was tried")
    else:
        more = round((beyond.output_tokens_per_second / max(best.output_tokens_per_second, 1e-9) - 1) * 100)
        failed = f" with {share(beyond.error_rate)} errors" if beyond.error_rate else ""
        missed = "" if beyond.held else " and missed the SLO"
        parts.append(f"{what} {beyond.level:g} gave {more:+d} %{failed}{missed}")
    if fleet.endpoints > 1:
        parts.append(f"spread over {fleet.endpoints} endpoints")
    parts.append("with several gateways, divide this by their number")
    return "; ".join(parts)


def to_patch(lines: Sequence[SettingLine]) -> str:
    """Write the lines as YAML to merge into a config, each below its reason."""
    written: list[str] = []
    open_path: tuple[str, ...] = ()
    for line in lines:
        shared = 0
        while shared < len(line.path) - 1 and open_path[shared : shared + 1] == line.path[shared : shared + 1]:
            shared += 1
        for depth in range(shared, len(line.path) - 1):
            written.append(f"{'  ' * depth}{line.path[depth]}:")
        indent = "  " * (len(line.path) - 1)
        written += [f"{indent}# {line.reason}", f"{indent}{line.path[-1]}: {line.value}"]
        open_path = line.path[:-1]
    return "\n".join(written) + "\n"
