"""aiaas.engines.command: the command that runs an engine."""

from __future__ import annotations

import pytest

from aiaas.cli.loadoptions import HEAVY_VARIABLE, KEY_VARIABLE
from aiaas.engines.command import GATEWAY_VARIABLES, engine_argv, engine_environment, refused_shutdown_timeout
from aiaas.errors import EnvironmentFault
from aiaas.plan.model import EnginePlan


def engine(kind="vllm", args=(), env=None) -> EnginePlan:
    return EnginePlan(kind, "/models/llama", "llama", tuple(args), env or {}, port=8001, start_timeout=600)


def argv(plan: EnginePlan, vllm="/bin/vllm", drain_timeout=30.0, **more) -> tuple[str, ...]:
    return engine_argv(plan, python="/bin/python", vllm=vllm, drain_timeout=drain_timeout, **more)


def test_vllm_command_sets_host_name_and_shutdown_timeout():
    """The whole command line, as a person would write it."""
    assert " ".join(argv(engine(args=["--dtype", "bfloat16"]))) == (
        "/bin/vllm serve /models/llama --dtype bfloat16 --shutdown-timeout 30 "
        "--served-model-name llama --host 127.0.0.1 --port 8001"
    )


def test_the_simulator_runs_under_the_gateways_own_python():
    """No console script has to be on PATH."""
    assert " ".join(argv(engine("simulator", ["--ttft", "50ms"]), vllm=None)) == (
        "/bin/python -m aiaas simulate --shutdown-timeout 30s --ttft 50ms "
        "--served-model-name llama --host 127.0.0.1 --port 8001"
    )


def test_the_simulators_python_gets_options_of_its_own():
    """The simulator's options do not have them, and vLLM gets none."""
    assert argv(engine("simulator"), python_options=("-P",))[:5] == ("/bin/python", "-P", "-m", "aiaas", "simulate")
    assert "-P" not in argv(engine(), python_options=("-P",))


@pytest.mark.parametrize("args", [["--shutdown-timeout", "5"], ["--shutdown-timeout=5"], ["--shutdown_timeout", "5"]])
def test_the_operators_own_shutdown_timeout_stays(args):
    """The option is added only where the operator does not give it, in any spelling that vLLM accepts."""
    assert [arg for arg in argv(engine(args=args)) if "shutdown" in arg] == args[:1]


def test_a_part_of_a_second_is_rounded_up():
    """vLLM takes whole seconds; rounding down would cut the last stream."""
    assert argv(engine(), drain_timeout=0.2)[3:5] == ("--shutdown-timeout", "1")


def test_vllm_too_old_for_the_option_is_recognised():
    """argparse names the unknown arguments; the next start leaves the gateway's out."""
    assert refused_shutdown_timeout(["usage: vllm", "vllm: error: unrecognized arguments: --shutdown-timeout 30"])
    assert not refused_shutdown_timeout(["vllm: error: unrecognized arguments: --max-modle-len 3"])
    assert "--shutdown-timeout" not in argv(engine(), knows_shutdown_timeout=False)


def test_host_port_and_name_override_the_operators():
    """Of two equal options vLLM takes the last, and an engine on 0.0.0.0 would be open to everyone without a key."""
    line = argv(engine(args=["--host", "0.0.0.0", "--port", "1"]))
    assert line[-4:] == ("--host", "127.0.0.1", "--port", "8001")


def test_a_missing_vllm_says_what_to_do():
    """One line with the three ways to fix it."""
    with pytest.raises(EnvironmentFault, match=r"pip install 'aiaas\[vllm\]'.*own vLLM on PATH.*kind: simulator"):
        argv(engine(), vllm=None)


def test_the_gateways_variables_do_not_reach_the_engine():
    """vLLM warns about an unknown VLLM_TIMEOUT, and would read LOG_LEVEL as its own."""
    inherited = dict.fromkeys(GATEWAY_VARIABLES, "x") | {"HOME": "/home/op", "VLLM_USE_V1": "1", "HF_TOKEN": "t"}
    found = engine_environment(engine(env={"VLLM_USE_V1": "0", "VLLM_TIMEOUT": "own"}), inherited)
    assert found == {
        "HOME": "/home/op", "HF_TOKEN": "t", "VLLM_USE_V1": "0", "VLLM_TIMEOUT": "own", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip


def test_keys_of_clients_do_not_reach_the_engine():
    """`aiaas smoke` and `aiaas loadtest` read them in the same shell."""
    assert {KEY_VARIABLE, HEAVY_VARIABLE} <= GATEWAY_VARIABLES


def test_every_override_of_the_contract_is_taken_out():
    """The eight names of docs/config.md."""
    overrides = {
        "VLLM_BACKEND_URL", "VLLM_TIMEOUT", "VLLM_MAX_RETRIES", "API_KEY_VALIDATION_ENABLED",
        "RATE_LIMIT_REQUESTS_PER_MINUTE", "PROMETHEUS_ENABLED", "PROMETHEUS_PORT", "LOG_LEVEL",
    }  # fmt: skip
    assert overrides <= GATEWAY_VARIABLES
