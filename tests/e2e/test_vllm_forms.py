"""Forms that the gateway accepts, as the parser of the installed vLLM reads them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.e2e.vllm.setup import HERE, Installation

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("seed", [1, 2])
def test_vllm_reads_each_accepted_form_alike(vllm_installation: Installation, seed: int) -> None:
    """The same names, files and contents, of thousands of mutated forms; otherwise a field could pass unseen."""
    done = subprocess.run(
        [vllm_installation.folder / "venv" / "bin" / "python", HERE / "forms.py", str(seed), "10"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["differ"] == []
    assert found["read"] > 500
    assert found["refused"] > 500
