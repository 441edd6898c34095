"""The deployed form of a config, and that its Plan is the intended one."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiaas.config.environment import OVERRIDES
from aiaas.config.load import load_text
from aiaas.config.write import to_yaml
from aiaas.plan.compile import compile_plan
from aiaas.plan.deployed import deployed_form
from aiaas.plan.kubernetes import plan_of_text
from aiaas.plan.model import Plan, TrustPlan

CASES = [
    path
    for path in sorted((Path(__file__).parents[1] / "config" / "cases").glob("*.case"))
    if "\n----------\n{" in path.read_text(encoding="utf-8")
]
PLAN = """
backends:
  vllm: {url: "http://vllm-gpt-oss-20b.system:8000", timeout: 120s, models: [unsloth/gpt-oss-20b, gpt-oss-20b]}
"""


def deployed(text: str, env: dict[str, str], urls: dict[str, str]) -> tuple[Plan, str]:
    """The Plan of a config as it stands, and the text of its deployed form."""
    loaded = load_text(text, file="f", env=env)
    assert loaded.config is not None, loaded.problems
    return compile_plan(loaded.config, env=env), to_yaml(deployed_form(loaded.written, loaded.config, urls))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(PLAN, id="the plan"),
        pytest.param(PLAN + "auth: {keys_file: secrets/prod.yaml}\n", id="keys elsewhere"),
        pytest.param(PLAN + "auth:\n  enabled: false\n", id="without keys"),
        pytest.param(PLAN + "kubernetes: {replicas: {min: 3, max: 3}, host: a.example.com}\n", id="with kubernetes"),
        pytest.param(
            "backends:\n  a: {enabled: false, engine: {kind: vllm}, models: [x]}\n"
            "  b: {engine: {kind: simulator}, models: [y]}\n",
            id="a simulator, whose port follows from its name",
        ),
        pytest.param(
            "backends:\n  a: {url: 'http://${HOST}:8000', models: ['no', '1e3', '010'], api_key_env: KEY}\n",
            id="variables, and words that look like something else",
        ),
    ],
)
def test_deployed_config_does_as_written(text: str) -> None:
    """Without a vLLM engine the deployed form has the digest of the config itself: only places of files differ."""
    env = {"HOST": "vllm.gpu", "KEY": "k"}
    plan, form = deployed(text, env, {"a": "http://e:8000"} if "enabled: false, engine" in text else {})
    assert plan_of_text(form, env).digest == plan.digest


@pytest.mark.parametrize("section", ["{host: a.b}", "{replicas: {min: 1, max: 3}}", "{}", ""])
def test_a_gateways_share_is_the_same_where_it_is_deployed(section: str) -> None:
    """The number of replicas that it is divided by is written down, also where it is the default."""
    text = "backends: {a: {url: 'http://e:8000', models: [x]}}\nrate_limit: {store: 'redis://r'}\n"
    plan, form = deployed(text + (section and f"kubernetes: {section}\n"), {}, {})
    assert plan_of_text(form, {}).limits == plan.limits


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_every_config_that_has_a_case_is_deployed_as_it_is(case: Path) -> None:
    """Whatever the format has: the deployed form of each valid case has the digest of the case."""
    text, _, expected = case.read_text(encoding="utf-8").partition("----------\n")
    env = dict(line[6:].split("=", 1) for line in text.splitlines() if line.startswith("# env "))
    env = {name: value for name, value in env.items() if name not in OVERRIDES}
    plan, form = deployed(text, env, {})
    assert plan_of_text(form, env).digest == plan.digest
    assert expected.startswith("{")


def test_an_engine_becomes_the_address_of_its_service() -> None:
    """The Plan is the one of a config that names that Service; everything else of the backend stays."""
    text = "backends:\n  a: {engine: {kind: vllm, env: {HF_TOKEN: '${T}'}}, models: [x], timeout: 9s}\n"
    _, form = deployed(text, {"T": "t"}, {"a": "http://api-router-engine-a.system:8000"})
    expected = "backends:\n  a: {url: 'http://api-router-engine-a.system:8000', models: [x], timeout: 9s}\n"
    by_hand, _ = deployed(expected, {}, {})
    assert plan_of_text(form, {}).digest == by_hand.digest


def test_files_are_where_they_are_mounted() -> None:
    """Keys, certificate and usage have places of their own in the pod."""
    text = PLAN + "auth: {api_key_prefix: 'x-', keys_file: here.yaml}\n"
    _, form = deployed(text, {}, {})
    assert str(plan_of_text(form, {}).auth.keys_file) == "/etc/aiaas/keys/keys.yaml"
    assert "here.yaml" not in form


def test_variables_stay_variables() -> None:
    """No value from the environment stands in the ConfigMap."""
    _, form = deployed("backends:\n  a: {url: 'http://${HOST}:8000', models: [m]}\n", {"HOST": "hunter2"}, {})
    assert '"http://${HOST}:8000"' in form
    assert "hunter2" not in form


def form_with(most: int, rest: str) -> str:
    """The deployed form of a config with so many replicas at most."""
    section = f"kubernetes: {{host: a.example.com, replicas: {{max: {most}}}, ingress: {{class: traefik}}}}\n"
    return deployed(PLAN + section + rest, {}, {})[1]


def test_of_kubernetes_only_replicas_are_kept() -> None:
    """A changed annotation of the ingress must not roll the pods; the number of replicas divides limits."""
    form = form_with(4, "rate_limit: {store: 'redis://r'}\naccept: {AIA510: 'our class'}\n")
    assert "accept" not in form
    assert "kubernetes:\n  replicas:\n    max: 4\nauth:\n" in form
    assert "kubernetes" not in form_with(4, "")


def test_a_higher_maximum_of_replicas_rolls_no_pod() -> None:
    """The ConfigMap has the next power of two; with counts in memory it has no number at all."""
    shared = "rate_limit: {store: 'redis://r'}\n"
    assert form_with(9, shared) == form_with(10, shared) == form_with(16, shared) != form_with(17, shared)
    assert form_with(2, "") == form_with(100, "")


@pytest.mark.parametrize(
    ("written", "mounted"),
    [
        ("certs/ca.pem", "/etc/aiaas/authorities/ca.pem"),
        ("/etc/ssl/company.pem", "/etc/ssl/company.pem"),
        ("${CA}", "/run/company.pem"),
    ],
    ids=["beside the config", "in the image", "a variable"],
)
def test_authorities_are_where_they_are_mounted(written: str, mounted: str) -> None:
    """Of backends and of a store; the rest of the store's address, with its variable, stays as it is."""
    text = (
        f"backends:\n  a: {{url: 'https://e:8000', models: [x], tls: {{ca_file: '{written}', server_name: e.i}}}}\n"
        f"  b: {{url: 'https://f:8000', models: [y]}}\n"
        "rate_limit:\n"
        f"  store: 'rediss://:${{PASSWORD}}@r/0?ssl_ca_certs={written}&ssl_certfile=/c&ssl_keyfile=/k'\n"
    )
    env = {"PASSWORD": "p/w", "CA": "/run/company.pem"}
    plan, form = deployed(text, env, {})
    there = plan_of_text(form, env)
    assert there.digest == plan.digest
    assert there.backends[0].endpoints[0].trust == TrustPlan(Path(mounted), "e.i", "backends.a.tls")
    assert there.backends[1].endpoints[0].trust == TrustPlan(None, None, "backends.b.tls")
    store = there.limits.store_url
    assert store is not None
    assert (store.password, store.ca_file, store.cert_file) == ("p/w", Path(mounted), Path("/c"))
    assert "${PASSWORD}" in form
