"""The gate of `aiaas validate` and `aiaas render`: both find the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiaas.cli.gate import Judged, pass_gate
from aiaas.cli.main import run
from aiaas.config.environment import OVERRIDES
from tests.repository_rules import ROOT

EXAMPLES = [path for path in sorted((ROOT / "examples").glob("*.yaml")) if path.name != "keys.yaml"]
CASES = sorted((ROOT / "tests" / "config" / "cases").glob("*.case"))
DEPLOYED = """backends:
  vllm: {url: 'http://vllm.models:8000', models: [m], api_key_env: VLLM_KEY}
server: {tls: {cert_file: none.crt, key_file: none.key}, max_connections_per_address: 200}
rate_limit: {store: 'rediss://:${REDIS_PASSWORD}@redis.data:6379/0?ssl_ca_certs=/etc/ssl/none.pem'}
kubernetes:
  image: r/aiaas:1
  expose: loadbalancer
  keys_secret: {create: false}
  env: {VLLM_KEY: {secret: s, key: a}, REDIS_PASSWORD: {secret: s, key: b}}
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (*OVERRIDES, "AIAAS_CONFIG", "VLLM_KEY", "REDIS_PASSWORD", "HOST", "HF_TOKEN", "PARTNER_KEY"):
        monkeypatch.delenv(name, raising=False)


def judged(text: str, *, given: bool = True) -> Judged:
    """The verdict on a config without a key file beside it."""
    Path("aiaas.yaml").write_text(text)
    return pass_gate([Path("aiaas.yaml")], given=given)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_each_example_passes_the_strict_gate(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the cluster's secrets and files; each accepted warning has its reason."""
    assert run(["validate", "--strict", "--deployed", "-c", str(path)]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_validate_finds_what_render_finds(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every config that has a case, valid or not."""
    Path("aiaas.yaml").write_text(case.read_text(encoding="utf-8").partition("----------\n")[0])
    validated = run(["validate", "--deployed"])
    out = capsys.readouterr().out.splitlines()
    rendered = run(["render"])
    err = capsys.readouterr().err.splitlines()
    assert validated == rendered
    assert out == [line for line in err if line.startswith(("aiaas.yaml", "$"))]


def test_a_section_for_a_cluster_is_judged_without_being_asked() -> None:
    """All problems at once: those of single fields, between fields, and of the deployment."""
    text = "server: {port: 80, heartbeat: 0}\nbackends: {a: {url: 'http://localhost', models: [m], foo: 1}}\n"
    assert not judged(text, given=False).in_cluster
    verdict = judged(text + "kubernetes: {replicas: {min: 1}}\n", given=False)
    assert verdict.cluster is None
    codes = [problem.code for problem in verdict.problems]
    assert {"AIA101", "AIA405", "AIA503", "AIA505", "AIA512"} <= set(codes)
    assert [problem.line for problem in verdict.problems] == sorted(problem.line for problem in verdict.problems)


def test_deployed_takes_secrets_and_files_as_given() -> None:
    """Secrets, certificates and keys: a clean CI has none of them."""
    verdict = judged(DEPLOYED)
    assert verdict.problems == ()
    assert verdict.cluster is not None
    found = {problem.code for problem in judged(DEPLOYED, given=False).problems}
    assert found == {"AIA005", "AIA213"}


def test_files_of_the_cluster_are_warnings_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --deployed a missing certificate is reported, since somebody may want to run the config here."""
    monkeypatch.setenv("VLLM_KEY", "a")
    monkeypatch.setenv("REDIS_PASSWORD", "b")
    verdict = judged(DEPLOYED, given=False)
    assert sorted(problem.code for problem in verdict.problems) == ["AIA401", "AIA406", "AIA406"]
    assert {problem.severity for problem in verdict.problems} == {"warning"}


def test_the_secret_of_a_cache_is_given() -> None:
    """A stand-in is as long as the real one has to be."""
    text = DEPLOYED.replace("api_key_env: VLLM_KEY", "isolate_cache: key, isolate_cache_secret_env: VLLM_KEY")
    assert judged(text).problems == ()


def test_a_variable_that_manifests_depend_on_has_to_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A NetworkPolicy needs the address, and a number has no stand-in; the message names the variable."""
    text = DEPLOYED.replace("'http://vllm.models:8000'", "'${VLLM_KEY}'") + "monitoring: {metrics_port: '${HOST}'}\n"
    found = [str(problem).partition(": ")[2] for problem in judged(text).problems]
    assert [line.partition(",")[0] for line in found] == [
        "error AIA005 backends.vllm.url: VLLM_KEY is not set here",
        "error AIA405 kubernetes.env: HOST is used",
        "error AIA005 monitoring.metrics_port: HOST is not set here",
    ]
    monkeypatch.setenv("VLLM_KEY", "http://vllm.models:8000")
    assert "backends.vllm.url" not in {problem.path for problem in judged(text).problems}


def test_a_plain_value_of_the_config_decides_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the one that the pods have, whatever this shell has."""
    monkeypatch.setenv("HOST", "localhost")
    text = DEPLOYED.replace("vllm.models", "${HOST}").replace("env: {", "env: {HOST: {value: vllm.gpu}, ")
    judged_now = judged(text)
    assert judged_now.problems == ()
    assert judged_now.cluster is not None
    assert {edge.namespace for edge in judged_now.cluster.outgoing} == {"gpu", "data"}


def test_an_accepted_warning_is_shown_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr, and --strict passes; render is silent about it."""
    text = DEPLOYED.replace("  image:", "  network_policy: {monitoring_namespace: null}\n  image:")
    text += "accept: {AIA509: 'no metrics are scraped'}\n"
    Path("aiaas.yaml").write_text(text)
    assert run(["validate", "--strict", "--deployed"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "accepted AIA509 kubernetes.network_policy.monitoring_namespace: no metrics are scraped\n" in err
    assert run(["render"]) == 0
    assert "AIA509" not in capsys.readouterr().err


def test_an_entry_for_a_warning_that_is_gone_fails_strictly(capsys: pytest.CaptureFixture[str]) -> None:
    """The list of accepted warnings stays true."""
    Path("aiaas.yaml").write_text(DEPLOYED + "accept: {AIA510: 'still nginx'}\n")
    assert run(["validate", "--strict", "--deployed"]) == 1
    assert "warning AIA226 accept.AIA510: this warning does not occur" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["validate", "--deployed"], ["render"], ["render", "--diff"]])
def test_a_patch_that_takes_too_much_is_an_error_everywhere(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """At its place in the file, and nothing is rendered."""
    patches = "\n  patches:\n    - {kind: Service, merge: {spec: {selector: null}}}\n  image:"
    Path("aiaas.yaml").write_text(DEPLOYED.replace("\n  image:", patches))
    assert run(command) == 1
    captured = capsys.readouterr()
    said = "aiaas.yaml:7:7: error AIA409 kubernetes.patches[0]: Service/api-router-service: spec.selector has to stay"
    assert said in captured.out + captured.err
    assert "apiVersion" not in captured.out


def test_a_patch_with_a_misspelt_field_is_an_error() -> None:
    """Kubernetes' own schemas are asked, where they are installed."""
    patches = "\n  patches: [{kind: Service, merge: {spec: {sessionAfinity: None}}}]\n  image:"
    [problem] = judged(DEPLOYED.replace("\n  image:", patches)).problems
    assert (problem.code, problem.path) == ("AIA409", "kubernetes.patches[0]")
    assert "sessionAfinity" in problem.message


def test_connect_needs_real_values(capsys: pytest.CaptureFixture[str]) -> None:
    """Never send a stand-in to a backend."""
    Path("aiaas.yaml").write_text(DEPLOYED)
    assert run(["validate", "--deployed", "--connect"]) == 2
    assert "--connect needs the values that --deployed takes as given" in capsys.readouterr().err


def test_files_are_laid_over_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    """By validate and by render, which names them all; without a later file the first one is incomplete."""
    Path("base.yaml").write_text(DEPLOYED.replace("  expose: loadbalancer\n", "").replace("server:", "#"))
    Path("prod.yaml").write_text("kubernetes: {expose: none, replicas: {min: 3}}\n")
    assert run(["validate", "--deployed", "-c", "base.yaml"]) == 1
    assert "kubernetes.host: is required" in capsys.readouterr().out
    assert run(["validate", "--deployed", "-c", "base.yaml", "-c", "prod.yaml"]) == 0
    assert "base.yaml + prod.yaml is valid" in capsys.readouterr().err
    assert run(["render", "-c", "base.yaml", "-c", "prod.yaml"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("# Made by `aiaas render` (aiaas ")
    assert " from base.yaml + prod.yaml: change that, not this.\n" in out.splitlines(keepends=True)[0]
    assert "minReplicas: 3" in out


def test_a_problem_of_an_overlay_names_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    """Between fields of two files, the field that the rule is about."""
    Path("base.yaml").write_text(DEPLOYED)
    Path("prod.yaml").write_text("kubernetes:\n  replicas: {min: 99}\n")
    assert run(["validate", "--deployed", "-c", "base.yaml", "-c", "prod.yaml"]) == 1
    assert capsys.readouterr().out.startswith(
        "prod.yaml:2:19: error AIA505 kubernetes.replicas.min: is 99, more than max"
    )
