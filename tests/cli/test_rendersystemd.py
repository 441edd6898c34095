"""aiaas.cli.rendersystemd: `aiaas render --target systemd`, its files and its words."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiaas.cli.main import run
from aiaas.config.environment import OVERRIDES

CONFIG = """server: {port: 443, tls: {cert_file: a.pem, key_file: a.key}, max_connections_per_address: 200}
backends: {vllm: {url: 'http://${HOST}:8000', api_key_env: KEY, models: [m]}}
"""
ENGINE = """backends: {qwen: {models: [m], engine: {kind: vllm, env: {HF_TOKEN: '${HF_TOKEN}'}}}}
rate_limit: {store: 'redis://127.0.0.1:6379/0'}
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (*OVERRIDES, "AIAAS_CONFIG", "HOST", "KEY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def render(text: str, *arguments: str) -> int:
    """Run the command on a config; its exit code."""
    Path("aiaas.yaml").write_text(text)
    return run(["render", "--target", "systemd", *arguments])


def test_all_files_are_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a `kubernetes` section and without the variables of the machine."""
    assert render(CONFIG) == 0
    out, err = capsys.readouterr()
    assert out.startswith("# FILE /etc/systemd/system/aiaas.socket\n# Made by")
    assert out.endswith("keys_file: /etc/aiaas/keys/keys.yaml\n")
    assert "LoadCredential=HOST:/etc/aiaas/credentials/HOST" in out
    assert err == "note: --output-dir DIR writes these files, and says how to install them\n"


def test_folder_has_the_form_of_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """So that one copy installs it; the commands for the rest follow, in order."""
    assert render(CONFIG, "--output-dir", "machine") == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert Path("machine/etc/systemd/system/aiaas@.service").exists()
    assert Path("machine/etc/aiaas/config/config.yaml").exists()
    words = [
        "sudo cp -R machine/etc/. /etc/",
        "systemd-sysusers",
        "/etc/aiaas/credentials/HOST ",
        "/etc/aiaas/credentials/KEY ",
        "/etc/aiaas/tls/tls.crt",
        "keys create NAME",
        "systemctl enable --now aiaas@blue.service aiaas.service",
    ]
    places = [err.find(word) for word in words]
    assert -1 not in places
    assert places == sorted(places)


def test_second_rendering_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """And a file that somebody else made stops it."""
    assert render(CONFIG, "--output-dir", "m") == 0
    unit = Path("m/etc/systemd/system/aiaas.service")
    before = unit.stat().st_mtime_ns
    assert render(CONFIG, "--output-dir", "m") == 0
    assert unit.stat().st_mtime_ns == before
    unit.write_text("[Service]\n")
    assert render(CONFIG, "--output-dir", "m") == 3
    assert "was not made by aiaas render" in capsys.readouterr().err


def test_unit_of_a_removed_engine_is_removed(capsys: pytest.CaptureFixture[str]) -> None:
    """With the command that removes it from the machine; a unit of somebody else stays."""
    assert render(ENGINE, "--output-dir", "m") == 0
    folder = Path("m/etc/systemd/system")
    (folder / "vllm-other.service").write_text("[Service]\n")
    assert render(CONFIG, "--output-dir", "m") == 0
    assert {path.name for path in folder.iterdir()} == {
        "aiaas.service",
        "aiaas.socket",
        "aiaas@.service",
        "vllm-other.service",
    }
    assert "systemctl disable --now vllm-qwen.service" in capsys.readouterr().err


def test_notes_name_what_the_machine_needs(capsys: pytest.CaptureFixture[str]) -> None:
    """The store, vLLM, and TLS in front of a port that is open."""
    assert render(ENGINE, "--output-dir", "m") == 0
    err = capsys.readouterr().err
    assert "port 8080 speaks plain HTTP to everybody" in err
    assert "apt-get install redis-server" in err
    assert "vllm-qwen.service runs /opt/vllm/current/bin/vllm" in err
    assert "/etc/aiaas/credentials/HF_TOKEN " in err
    assert "enable --now vllm-qwen.service aiaas@blue.service aiaas.service" in err


def test_invalid_config_renders_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Each error has its line."""
    assert render(f"{CONFIG}auth: {{enabled: 5}}\n") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "aiaas.yaml:3:" in err
    assert "cannot be rendered for systemd" in err


def test_problem_of_services_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """systemd opens ports at addresses."""
    assert render(CONFIG.replace("port: 443", "host: gateway.example.com")) == 1
    assert "server.host" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--diff"], ["--only", "Service"]])
def test_options_of_a_cluster_are_wrong_usage(option: list[str]) -> None:
    """There are no objects."""
    assert render(CONFIG, *option) == 2
