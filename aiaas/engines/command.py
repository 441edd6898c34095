"""Build an engine's command line and environment. Pure.

The engine listens on loopback only, since the gateway in front of it checks keys and vLLM's own `--api-key` leaves some
paths open (transcripts 103, 104).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from aiaas.config.environment import OVERRIDES
from aiaas.errors import EnvironmentFault
from aiaas.plan.model import SHUTDOWN_OPTION, EnginePlan

HOST = "127.0.0.1"

# These variables configure the gateway. vLLM would warn about the VLLM_* variables that it does not know, and would use
# others, such as LOG_LEVEL, as its own.
# The two keys are clients' secrets, for `aiaas smoke` and `aiaas loadtest`.
GATEWAY_VARIABLES = frozenset(OVERRIDES) | {"AIAAS_API_KEY", "AIAAS_HEAVY_API_KEY"}


def engine_argv(
    engine: EnginePlan,
    *,
    python: str,
    vllm: str | None,
    drain_timeout: float,
    knows_shutdown_timeout: bool = True,
    python_options: tuple[str, ...] = (),
) -> tuple[str, ...]:
    """The command line of `engine`.

    python         the interpreter that runs aiaas; the simulator runs under it, with `python_options`
    vllm           path of the `vllm` command, or None if it was not found
    drain_timeout  seconds that vLLM may take on SIGTERM to finish requests in flight. Without the option vLLM neither
                   finishes nor closes them (transcript 131); with the option they stream to their ends (139)
    knows_shutdown_timeout  False for a vLLM that rejected the option as unknown

    The operator's arguments come first, since vLLM takes the last of two equal options and aiaas decides host, port and
    name. Raises EnvironmentFault for an engine of kind vllm if `vllm` is None.
    """
    seconds = str(math.ceil(drain_timeout))
    ours = ("--served-model-name", engine.served_name, "--host", HOST, "--port", str(engine.port))
    if engine.kind == "simulator":
        simulate = (python, *python_options, "-m", "aiaas", "simulate", SHUTDOWN_OPTION, f"{seconds}s")
        return (*simulate, *engine.args, *ours)
    if vllm is None:
        raise EnvironmentFault(NO_VLLM)
    argv = [vllm, "serve", engine.model, *engine.args]
    if knows_shutdown_timeout and not has_option(engine.args, SHUTDOWN_OPTION):
        argv += [SHUTDOWN_OPTION, seconds]
    return (*argv, *ours)


NO_VLLM = (
    "no `vllm` found on PATH or beside this Python: pip install 'aiaas[vllm]', or put your own vLLM on PATH, "
    "or use engine: {kind: simulator}"
)


def engine_environment(engine: EnginePlan, inherited: Mapping[str, str]) -> dict[str, str]:
    """`inherited` without the gateway's own variables, with the engine's on top.

    PYTHONUNBUFFERED is set unless the operator sets it, since the line that says why an engine died would otherwise be
    lost in its buffer.
    """
    kept = {name: value for name, value in inherited.items() if name not in GATEWAY_VARIABLES}
    return {"PYTHONUNBUFFERED": "1"} | kept | dict(engine.env)


def has_option(args: Iterable[str], option: str) -> bool:
    """Whether `option` is among `args`; vLLM also accepts `--a-b=1` and `--a_b 1`."""
    return any(arg.split("=", 1)[0].replace("_", "-") == option for arg in args)


def refused_shutdown_timeout(last_lines: Iterable[str]) -> bool:
    """Whether vLLM ended because it is too old for `--shutdown-timeout` (by argparse's message)."""
    return any("unrecognized arguments" in line and SHUTDOWN_OPTION in line for line in last_lines)
