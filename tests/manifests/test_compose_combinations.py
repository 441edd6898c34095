"""Options that no example has together, as a compose file: whatever is chosen, it is sound and contradicts nothing."""

from __future__ import annotations

from pathlib import Path

import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from aiaas.config.check import check
from aiaas.config.compose import check_compose
from aiaas.config.load import load_text
from aiaas.config.problem import has_errors
from aiaas.manifests.compose import compose_files
from aiaas.plan.compile import compile_plan
from aiaas.plan.compose import plan_compose
from tests.manifests import compose_model
from tests.manifests.rendering import KEYS
from tests.manifests.test_combinations import BACKENDS, FIELDS, REST, SECRET, config

STORE = "rate_limit: {store: 'redis://:${SECRET}@redis:6379/0'}\n"
SERVER = st.sampled_from(["", "server: {host: 127.0.0.1, drain_timeout: 9m, port: 81}\n", STORE])


@settings(max_examples=40, deadline=None)
@given(BACKENDS, FIELDS, REST, SERVER, st.sampled_from([None, "api.example.com"]))
def test_whatever_is_chosen_is_sound(
    backends: list[str], fields: dict[str, str], rest: list[str], server: str, domain: str | None
) -> None:
    """Its forms and references hold, secrets are not in it, the container runs its Plan, and nothing that drains is
    killed before its time."""
    text = config(backends, fields, [part for part in rest if part[:6] != server[:6]]) + server
    loaded = load_text(text, file="aiaas.yaml", env=SECRET)
    assume(not has_errors(loaded.problems + check(loaded, SECRET, deployed=False) + check_compose(loaded)))
    plan = plan_compose(loaded, SECRET, domain=domain)
    files = compose_files(plan, "aiaas.yaml", KEYS)
    assert "hunter2" not in "".join(files.values())
    made = yaml.safe_load(files["compose.yaml"])
    assert compose_model.findings(made) == []
    inside = load_text(files["config/config.yaml"], file="config.yaml", env=SECRET).config
    assert inside is not None
    assert compile_plan(inside, source=Path("/etc/aiaas/config/config.yaml"), env=SECRET) == plan.gateway
    drain = plan.gateway.server.drain_timeout
    for name, service in made["services"].items():
        if name in ("gateway", "caddy") or name.startswith("engine-"):
            assert int(service["stop_grace_period"][:-1]) > drain
