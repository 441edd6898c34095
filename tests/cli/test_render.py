"""`aiaas render`: manifests on stdout, words on stderr."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from aiaas.cli.main import run
from aiaas.config.environment import OVERRIDES

CONFIG = """backends:
  vllm: {url: 'http://vllm-gpt-oss-20b.system:8000', models: [m]}
rate_limit: {store: 'redis://redis.data:6379/0'}
kubernetes: {image: 'r/aiaas:1', host: api.example.com, ingress: {class: nginx-internal, controller: nginx-inc}}
"""
SECRETS = """rate_limit: {enabled: false}
backends:
  vllm: {url: 'http://${HOST}:8000', models: [m], api_key_env: KEY}
kubernetes:
  image: r/aiaas:1
  host: api.example.com
  ingress: {class: nginx-internal, controller: nginx-inc}
  env: {HOST: {secret: s, key: host}, KEY: {secret: s, key: key}}
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (*OVERRIDES, "AIAAS_CONFIG", "HOST", "KEY"):
        monkeypatch.delenv(name, raising=False)


def write(text: str = CONFIG, *, keys: bool = True) -> None:
    """A config, and a key file beside it, in the working directory."""
    Path("aiaas.yaml").write_text(text)
    if keys:
        Path("keys.yaml").write_text("version: 1\nkeys: []\n")


def rendered(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[list[Any], str]:
    """The documents on stdout and the text on stderr of a run that succeeds."""
    assert run(["render", *arguments]) == 0
    out, err = capsys.readouterr()
    return list(yaml.safe_load_all(out)), err


def test_the_stream_is_on_stdout_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    """A config with an image and keys gives manifests and an empty stderr."""
    write()
    assert run(["keys", "create", "alice"]) == 0
    capsys.readouterr()
    documents, err = rendered(capsys)
    assert err == ""
    assert {"Deployment", "Service", "ConfigMap", "Secret"} <= {each["kind"] for each in documents}


def test_without_a_key_file_no_secret_is_rendered(capsys: pytest.CaptureFixture[str]) -> None:
    """Applied in a clone without it, the rendering must not take everybody's access away."""
    write(keys=False)
    documents, err = rendered(capsys)
    assert "Secret" not in [each["kind"] for each in documents]
    said = "warning AIA401 auth.keys_file: keys.yaml does not exist, so its Secret is not rendered: one in the cluster"
    assert err.count("warning") == 1
    assert said in err


def test_a_key_file_without_keys_is_rendered_and_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    """A person who revoked and pruned the last key means it."""
    write()
    Path("keys.yaml").write_text("version: 1\nkeys: []\n")
    documents, err = rendered(capsys)
    [secret] = [each for each in documents if each["kind"] == "Secret"]
    assert "keys: []" in base64.b64decode(secret["data"]["keys.yaml"]).decode()
    assert "warning AIA401 auth.keys_file: keys.yaml has no keys; applying the Secret replaces one that has" in err


def test_the_local_keys_go_into_the_secret(capsys: pytest.CaptureFixture[str]) -> None:
    """The pods read the file that `aiaas keys create` wrote; the key itself is nowhere."""
    write()
    assert run(["keys", "create", "alice"]) == 0
    key = capsys.readouterr().out.strip()
    documents, _ = rendered(capsys, "--only", "Secret")
    assert base64.b64decode(documents[0]["data"]["keys.yaml"]) == Path("keys.yaml").read_bytes()
    assert key.encode() not in base64.b64decode(documents[0]["data"]["keys.yaml"])


def test_overrides_of_the_shell_are_ignored_and_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable that is set here by chance must not reach a cluster: neither a limit nor an edge of the policy."""
    write()
    assert run(["render"]) == 0
    plain = capsys.readouterr().out
    monkeypatch.setenv("RATE_LIMIT_REQUESTS_PER_MINUTE", "99999")
    monkeypatch.setenv("VLLM_BACKEND_URL", "http://elsewhere.other:1")
    assert run(["render"]) == 0
    out, err = capsys.readouterr()
    assert out == plain
    expected = "ignored, since they apply to this shell only: VLLM_BACKEND_URL, RATE_LIMIT_REQUESTS_PER_MINUTE"
    assert err.splitlines()[0] == expected


def test_variables_need_not_be_set_here_and_are_never_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`${NAME}` stays literal whether the secret is in this shell or not."""
    write(SECRETS)
    unset, err = rendered(capsys)
    monkeypatch.setenv("KEY", "hunter2")
    assert rendered(capsys)[0] == unset
    [config] = [each for each in unset if each["kind"] == "ConfigMap"]
    assert "http://${HOST}:8000" in config["data"]["config.yaml"]
    assert "HOST" not in err


def test_a_variable_of_the_kubernetes_section_is_filled_in_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`image: r/aiaas:${TAG}` has its value from the shell that renders, and without one nothing is rendered."""
    write(CONFIG.replace("r/aiaas:1", "r/aiaas:${TAG}"))
    monkeypatch.delenv("TAG", raising=False)
    assert run(["render"]) == 1
    assert "error AIA005 kubernetes.image: the environment variable TAG is not set" in capsys.readouterr().err
    monkeypatch.setenv("TAG", "2.0")
    documents, _ = rendered(capsys, "--only", "Deployment")
    assert documents[0]["spec"]["template"]["spec"]["containers"][0]["image"] == "r/aiaas:2.0"


def test_only_some_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    """--only takes kinds in any case and keeps the order of application."""
    write()
    documents, _ = rendered(capsys, "--only", "deployment, ConfigMap")
    assert [each["kind"] for each in documents] == ["ConfigMap", "Deployment"]


def test_a_kind_that_this_config_does_not_have_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """An empty stream is intended then."""
    write()
    documents, err = rendered(capsys, "--only", "HTTPRoute,Service")
    assert [each["kind"] for each in documents] == ["Service"]
    assert "note: this config has nothing of kind HTTPRoute" in err


def test_an_unknown_kind_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """A typo must not look like an empty rendering."""
    write()
    assert run(["render", "--only", "Deploymnet"]) == 2
    assert "names a kind that is never rendered; choose from Namespace, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("backends: {a: {url: 'http://a', models: [m]}}\n", "error AIA405 kubernetes.host", id="no host"),
        pytest.param(CONFIG + "foo: 1\n", "error AIA101 foo", id="not valid"),
    ],
)
def test_unrenderable_config_is_reported_and_prints_nothing(
    text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, the problems on stderr, an empty stdout, which kubectl applies as nothing."""
    write(text)
    assert run(["render"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert "cannot be rendered; fix it and run again" in err


def test_missing_config_is_an_environment_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 3, as everywhere."""
    assert run(["render"]) == 3
    assert "no such file" in capsys.readouterr().err


def test_the_hash_seed_does_not_count() -> None:
    """Two processes with different seeds print equal bytes."""
    write(SECRETS)

    def printed(seed: str) -> bytes:
        env = os.environ | {"PYTHONHASHSEED": seed}
        return subprocess.run(
            [sys.executable, "-m", "aiaas", "render"], capture_output=True, check=True, env=env
        ).stdout

    first = printed("1")
    assert b"kind: Deployment" in first
    assert printed("2") == first


def test_a_folder_holds_a_file_for_each_object(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing on stdout; the kustomization lists the files; a ConfigMap of another content keeps its file's name."""
    write()
    assert run(["render", "--output-dir", "out"]) == 0
    assert capsys.readouterr().out == ""
    files = {path.name for path in Path("out").iterdir()}
    assert {"deployment-api-router-service.yaml", "configmap-api-router-config.yaml"} < files
    listing = yaml.safe_load(Path("out/kustomization.yaml").read_text())
    assert {*listing["resources"], "kustomization.yaml"} == files
    write(CONFIG + "request: {max_choices: 2}\n")
    assert run(["render", "--output-dir", "out"]) == 0
    assert {path.name for path in Path("out").iterdir()} == files


@pytest.mark.parametrize("more", [["--diff"], ["--only", "Service"]], ids=["diff", "only"])
def test_a_folder_is_all_or_nothing(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Half a folder would remove the other half."""
    write()
    assert run(["render", "--output-dir", "out", *more]) == 2
    assert not Path("out").exists()


def kubectl(exit_code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for kubectl, alone on PATH, that keeps what it was given and ends with `exit_code`."""
    folder = Path("bin").absolute()
    folder.mkdir()
    script = folder / "kubectl"
    script.write_text(
        f"#!{sys.executable}\nimport sys\nopen('stdin', 'w').write(sys.stdin.read())\n"
        f"open('arguments', 'w').write(' '.join(sys.argv[1:]))\nprint('-old +new')\nsys.exit({exit_code})\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.parametrize(
    ("answer", "code"), [(0, 0), (1, 1), (2, 3), (127, 3)], ids=["the same", "differs", "no cluster", "broken"]
)
def test_a_diff_is_kubectls(
    answer: int, code: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """kubectl gets the stream and prints the difference; an exit code other than 0 and 1 is an environment error."""
    write()
    kubectl(answer, monkeypatch)
    assert run(["render", "--diff"]) == code
    out, err = capfd.readouterr()
    assert out == "-old +new\n"
    assert ("kubectl diff failed" in err) is (code == 3)
    assert Path("arguments").read_text() == "diff -f -"
    given = Path("stdin").read_text()
    assert run(["render"]) == 0
    assert capfd.readouterr().out == given


def test_diff_needs_kubectl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 3 and a message."""
    write()
    monkeypatch.setenv("PATH", "")
    assert run(["render", "--diff"]) == 3
    assert "kubectl is not on PATH" in capsys.readouterr().err


def test_unset_variable_in_a_backend_address_is_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy would let through to our own namespace, which is where a name without dots is."""
    write(SECRETS)
    said = "warning AIA509 backends.vllm.url: the variable in backends.vllm.url is not set here"
    assert said in rendered(capsys)[1]
    write(SECRETS.replace("models: [m]", "network: {namespace: models}, models: [m]"))
    assert said not in rendered(capsys)[1]
    monkeypatch.setenv("HOST", "vllm.models")
    write(SECRETS)
    assert said not in rendered(capsys)[1]


def test_unset_variable_in_a_collectors_address_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    """But where the operator says which pods are meant."""
    traced = SECRETS + "monitoring: {traces: {endpoint: 'http://${HOST}:4318'}}\n"
    said = "monitoring.traces.endpoint: the variable in monitoring.traces.endpoint is not set here"
    write(traced)
    assert said in rendered(capsys)[1]
    write(traced.replace("  image: r/aiaas:1\n", "  network_policy: {collector: {namespace: o}}\n  image: r/aiaas:1\n"))
    assert said not in rendered(capsys)[1]


def test_an_address_that_is_a_variable_has_to_be_set(capsys: pytest.CaptureFixture[str]) -> None:
    """The fault is that it is not set, whatever the stand-in looks like."""
    write(SECRETS.replace("http://${HOST}:8000", "${HOST}"))
    assert run(["render"]) == 1
    assert (
        "error AIA005 backends.vllm.url: HOST is not set here, and the rendering depends on" in capsys.readouterr().err
    )


def test_missing_key_file_does_not_remove_the_folders_keys(capsys: pytest.CaptureFixture[str]) -> None:
    """A tool that prunes would delete the live Secret. Without authentication there is none to keep."""
    write()
    assert run(["render", "--output-dir", "out"]) == 0
    secret = Path("out/secret-api-router-keys.yaml")
    before = secret.read_text()
    Path("keys.yaml").unlink()
    capsys.readouterr()
    assert run(["render", "--output-dir", "out"]) == 3
    assert "the key file is missing; render where the key file is" in capsys.readouterr().err
    assert secret.read_text() == before
    Path("aiaas.yaml").write_text("auth: {enabled: false}\n" + CONFIG)
    assert run(["render", "--output-dir", "out"]) == 0
    assert not secret.exists()
