"""aiaas.proxy.active: a Plan in force."""

from aiaas.plan.model import Route, Target
from aiaas.proxy.active import targets_of
from aiaas.proxy.backends import BackendState
from tests.proxy.conftest import config_of, plan_of


async def test_each_target_comes_with_the_state_of_its_backend() -> None:
    """In the order of preference."""
    plan = plan_of(config_of(["http://127.0.0.1:1"], {}, {}))
    (backend,) = plan.backends
    state = BackendState(backend, lambda _endpoint, _up, _reason: None)
    targets = (Target(backend, "m", None), Target(backend, "m", b'"m"'))
    route = Route("/v1/chat/completions", "m", targets, None, None, "reject")
    assert list(targets_of(route, {"vllm": state})) == [(targets[0], state), (targets[1], state)]
    state.close()
