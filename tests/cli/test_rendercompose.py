"""`aiaas render --target compose`: files, words on stderr, and the mistakes that people make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from aiaas.cli.main import run
from aiaas.config.environment import OVERRIDES

CONFIG = """server: {host: 127.0.0.1}
backends: {vllm: {url: 'http://10.0.0.7:8000', models: [m], api_key_env: VLLM_KEY}}
"""
TLS = "server: {host: 127.0.0.1, tls: {cert_file: a.pem, key_file: a.key}}"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (*OVERRIDES, "AIAAS_CONFIG", "VLLM_KEY", "MODEL"):
        monkeypatch.delenv(name, raising=False)
    Path("aiaas.yaml").write_text(CONFIG)
    Path("keys.yaml").write_text("version: 1\nkeys: []\n")


def rendered(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    """Stdout and stderr of a run that ends with `code`."""
    assert run(["render", "--target", "compose", *arguments]) == code
    out, err = capsys.readouterr()
    return out, err


def test_file_is_on_stdout_and_words_are_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """The notes say what the file needs beside it."""
    out, err = rendered(capsys)
    made: Any = yaml.safe_load(out)
    assert list(made["services"]) == ["gateway"]
    assert "note: compose.yaml needs config/config.yaml, keys/keys.yaml beside it; --output-dir DIR writes all\n" in err


def test_folder_holds_all_files(capsys: pytest.CaptureFixture[str]) -> None:
    """And the last line is what to type there; no longer to make an .env where there is one."""
    assert run(["keys", "create", "alice"]) == 0
    key = capsys.readouterr().out.strip()
    out, err = rendered(capsys, "--output-dir", "deploy")
    assert out == ""
    written = {
        str(path.relative_to("deploy")): path.read_text() for path in Path("deploy").rglob("*") if path.is_file()
    }
    assert written.keys() == {"compose.yaml", "config/config.yaml", "keys/keys.yaml", ".env.example"}
    assert written["keys/keys.yaml"].endswith(Path("keys.yaml").read_text())
    assert key not in "".join(written.values())
    last = "wrote 4 files to deploy; there: copy .env.example to .env, fill it in, and run docker compose up -d"
    assert err.splitlines()[-1] == last
    Path("deploy/.env").write_text("VLLM_KEY=x\n")
    assert rendered(capsys, "--output-dir", "deploy")[1].endswith("there: docker compose up -d\n")


def test_same_rendering_touches_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """A running gateway must not read its files again for nothing."""
    rendered(capsys, "--output-dir", "deploy")
    before = {path: path.stat().st_mtime_ns for path in Path("deploy").rglob("*") if path.is_file()}
    rendered(capsys, "--output-dir", "deploy")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_variables_need_not_be_set_and_are_never_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rendering is the same with and without them."""
    unset = rendered(capsys)
    monkeypatch.setenv("VLLM_KEY", "hunter2")
    assert rendered(capsys) == unset
    assert "hunter2" not in "".join(unset)


def test_value_that_decides_the_rendering_has_to_be_set(capsys: pytest.CaptureFixture[str]) -> None:
    """The message says where."""
    Path("aiaas.yaml").write_text(CONFIG.replace("127.0.0.1", "'${BIND}'"))
    _, err = rendered(capsys, code=1)
    assert "error AIA005 server.host: BIND is not set here, and the rendering depends on this field's value" in err
    assert err.endswith("aiaas.yaml cannot be rendered for compose; fix it and run again\n")


def test_missing_key_file_is_a_warning_without_a_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    """It says how to make one; the folder that the gateway mounts is there."""
    Path("keys.yaml").unlink()
    _, err = rendered(capsys, "--output-dir", "deploy")
    assert "warning AIA401 auth.keys_file: keys.yaml does not exist, so every request is refused; `aiaas keys" in err
    assert "Secret" not in err
    assert list(Path("deploy/keys").iterdir()) == []
    assert "wrote 3 files to deploy" in err


def test_loopback_is_refused_with_the_machines_name(capsys: pytest.CaptureFixture[str]) -> None:
    """The config of `aiaas init` is for a process on the machine itself."""
    Path("aiaas.yaml").write_text(CONFIG.replace("10.0.0.7", "localhost"))
    _, err = rendered(capsys, code=1)
    assert "error AIA405 backends.vllm.url: localhost is the gateway's own container" in err
    assert "write host.docker.internal" in err


def test_warnings_may_be_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    """An accepted warning of a cluster is not reported as stale, since there is no cluster here."""
    Path("aiaas.yaml").write_text(CONFIG + "auth: {enabled: false}\naccept: {AIA209: a test, AIA219: in a cluster}\n")
    assert "warning" not in rendered(capsys)[1]


def test_overlay_makes_the_same_config_fit_containers(capsys: pytest.CaptureFixture[str]) -> None:
    """One file for the machine, one for what differs in containers."""
    Path("aiaas.yaml").write_text(CONFIG.replace("10.0.0.7", "localhost"))
    Path("docker.yaml").write_text("backends: {vllm: {url: 'http://host.docker.internal:8000'}}\n")
    out, _ = rendered(capsys, "-c", "aiaas.yaml", "-c", "docker.yaml")
    assert "from aiaas.yaml + docker.yaml: change that" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["--diff"], "--only and --diff are about objects in a cluster; --target compose has", id="diff"),
        pytest.param(["--only", "Service"], "--only and --diff are about objects in a cluster", id="only"),
        pytest.param(["--domain", "https://a.b"], "is not a public name; write one such as", id="a URL"),
        pytest.param(["--domain", "localhost"], "is not a public name; write one such as", id="no public name"),
        pytest.param(["-t", "kubernetes", "--domain", "a.b"], "only --target compose can; remove it", id="cluster"),
    ],
)
def test_wrong_options_say_what_to_do(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is read or written."""
    assert said in rendered(capsys, *arguments, "-c", "aiaas.yaml", code=2)[1]


def test_tls_ends_in_one_place(capsys: pytest.CaptureFixture[str]) -> None:
    """Caddy and the gateway cannot both end it."""
    assert "caddy" in rendered(capsys, "--domain", "api.example.com")[0]
    Path("aiaas.yaml").write_text(CONFIG.replace("server: {host: 127.0.0.1}", TLS))
    assert "/etc/aiaas/tls" in rendered(capsys)[0]
    assert "server.tls ends it in the gateway; remove one" in rendered(capsys, "--domain", "a.b", code=2)[1]


def test_key_file_may_be_in_the_folder_itself(capsys: pytest.CaptureFixture[str]) -> None:
    """Then there is nothing to copy, and `aiaas keys` changes what the gateway reads."""
    Path("deploy/keys").mkdir(parents=True)
    Path("keys.yaml").rename("deploy/keys/keys.yaml")
    Path("aiaas.yaml").write_text(CONFIG + "auth: {keys_file: deploy/keys/keys.yaml}\n")
    before = Path("deploy/keys/keys.yaml").read_text()
    rendered(capsys, "--output-dir", "deploy")
    assert Path("deploy/keys/keys.yaml").read_text() == before


def test_keys_that_others_put_into_the_folder_stay(capsys: pytest.CaptureFixture[str]) -> None:
    """The message does not say to remove them: clients may use them."""
    Path("deploy/keys").mkdir(parents=True)
    Path("deploy/keys/keys.yaml").write_text("version: 1\nkeys: []\n")
    _, err = rendered(capsys, "--output-dir", "deploy", code=3)
    assert "deploy/keys/keys.yaml has keys that aiaas render did not put there; let auth.keys_file name it" in err
    assert [path.name for path in Path("deploy").iterdir()] == ["keys"]


def test_foreign_file_is_not_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    """The key file of somebody else, or a compose file with changes by hand and without the mark."""
    Path("deploy").mkdir()
    Path("deploy/compose.yaml").write_text("services: {}\n")
    _, err = rendered(capsys, "--output-dir", "deploy", code=3)
    assert "deploy/compose.yaml was not made by aiaas render; remove it, or choose another folder" in err
    assert [path.name for path in Path("deploy").iterdir()] == ["compose.yaml"]
