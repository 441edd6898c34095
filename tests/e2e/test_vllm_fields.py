"""The table of engine fields, compared with the request models of the installed vLLM. No server is started."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from aiaas.openai.engine_fields import on_path
from aiaas.openai.paths import GENERATE
from tests.e2e.processes import VLLM_ENVIRONMENT
from tests.e2e.vllm.setup import HERE, Installation

pytestmark = pytest.mark.vllm

WHAT_TO_DO = (
    "read in vLLM what the field does, and give it a row in aiaas/openai/engine_fields.py: `pass` if it concerns its "
    "own request only; `reject` if it reaches other requests, other keys' data, hosts, files or code; `bound` if "
    "others wait for its work. Then `python -m tests.openai.engine_fields_page`"
)


def test_table_has_every_field_of_the_installed_vllm(vllm_installation: Installation) -> None:
    """A new field of vLLM needs a decision; a field that vLLM dropped is `known=False`, or goes."""
    done = subprocess.run(
        [vllm_installation.folder / "venv" / "bin" / "python", HERE / "request_fields.py"],
        capture_output=True,
        text=True,
        check=True,
        timeout=280,
        env=os.environ | VLLM_ENVIRONMENT,
    )
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    assert sorted(found) == sorted(GENERATE)
    unknown = [(path, name) for path, names in found.items() for name in names if name not in on_path(path)]
    assert unknown == [], WHAT_TO_DO
    table = {(path, name) for path in GENERATE for name, field in on_path(path).items() if field.known}
    gone = sorted(table - {(path, name) for path, names in found.items() for name in names})
    assert gone == [], "the installed vLLM does not have these fields: set known=False, or remove them from the table"
