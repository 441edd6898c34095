"""aiaas.cli.credentials: a folder of secrets, as systemd or a container engine gives it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aiaas.cli.credentials import add_credentials
from aiaas.errors import EnvironmentFault

CONFIG = """
server: {host: 127.0.0.1}
backends: {vllm: {url: "http://${VLLM_HOST}:8000", api_key_env: VLLM_KEY, models: [m]}}
auth: {enabled: false}
"""


def test_each_file_becomes_the_variable_of_its_name(tmp_path: Path) -> None:
    """Without the newline that an editor adds."""
    (tmp_path / "VLLM_KEY").write_bytes(b"secret\n")
    (tmp_path / "B").write_bytes(b" b \n\n")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    add_credentials(environ)
    assert environ == {"CREDENTIALS_DIRECTORY": str(tmp_path), "VLLM_KEY": "secret", "B": " b \n"}


def test_files_of_other_names_are_left_alone(tmp_path: Path) -> None:
    """A certificate's key is not a variable; nor is a folder."""
    (tmp_path / "tls.key").write_bytes(b"\xff")
    (tmp_path / "FOLDER").mkdir()
    add_credentials(environ := {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert list(environ) == ["CREDENTIALS_DIRECTORY"]


def test_variable_that_is_set_wins(tmp_path: Path) -> None:
    """Also one that is set to nothing."""
    (tmp_path / "A").write_text("file")
    (tmp_path / "B").write_text("file")
    add_credentials(environ := {"CREDENTIALS_DIRECTORY": str(tmp_path), "A": "set", "B": ""})
    assert (environ["A"], environ["B"]) == ("set", "")


@pytest.mark.parametrize("environ", [{}, {"CREDENTIALS_DIRECTORY": ""}], ids=["unset", "empty"])
def test_without_a_folder_nothing_changes(environ: dict[str, str]) -> None:
    """As in a shell."""
    before = dict(environ)
    add_credentials(environ)
    assert environ == before


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a\0b"], ids=["binary", "zero byte"])
def test_credential_that_is_not_text_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    """The message does not show the content."""
    (tmp_path / "KEY").write_bytes(content)
    with pytest.raises(EnvironmentFault, match=r"KEY: a credential must"):
        add_credentials({"CREDENTIALS_DIRECTORY": str(tmp_path)})


def test_missing_folder_is_an_error_that_names_the_variable(tmp_path: Path) -> None:
    """A typing error would otherwise show as unset variables."""
    with pytest.raises(EnvironmentFault, match=r"none: No such file.*CREDENTIALS_DIRECTORY"):
        add_credentials({"CREDENTIALS_DIRECTORY": str(tmp_path / "none")})


def test_validate_reads_the_credentials_of_a_service(tmp_path: Path) -> None:
    """So that an operator can check a config with the service's own secrets."""
    (tmp_path / "aiaas.yaml").write_text(CONFIG)
    (tmp_path / "VLLM_HOST").write_text("vllm.example.com\n")
    (tmp_path / "VLLM_KEY").write_text("secret\n")
    command = [sys.executable, "-m", "aiaas", "validate", "-c", "aiaas.yaml"]
    env = os.environ | {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    codes = []
    for given in (env, dict(os.environ)):
        codes.append(subprocess.run(command, cwd=tmp_path, env=given, capture_output=True, check=False).returncode)
    assert codes == [0, 1]
