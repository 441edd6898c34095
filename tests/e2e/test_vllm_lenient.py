"""The column "vLLM 0.32" of the table of what is accepted, asked of vLLM's own request models and routes.

No server is started: vLLM's Python imports them (`tests/e2e/vllm/reading.py`), which takes about 15 s.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from typing import Any

import pytest

from aiaas.openai import paths
from tests.e2e.processes import VLLM_ENVIRONMENT
from tests.e2e.vllm.setup import HERE, Installation
from tests.openai.lenient_table import (
    BODIES,
    NOT_FOUND,
    REDIRECTS,
    REFUSED,
    TARGETS,
    TRUTH,
    TRUTH_FIELDS,
    WHOLE,
    WHOLE_FIELDS,
    Reading,
)

pytestmark = pytest.mark.vllm

LEAST = {
    paths.CHAT: '"messages": [{"role": "user", "content": "a"}]',
    paths.COMPLETIONS: '"prompt": "a"',
    paths.RESPONSES: '"input": "a"',
    paths.MESSAGES: '"messages": [{"role": "user", "content": "a"}], "max_tokens": 9',
}
ROWS: list[tuple[str, str, str, Reading]] = [
    (path, field, written, reads)
    for fields, rows in ((WHOLE_FIELDS, WHOLE), (TRUTH_FIELDS, TRUTH))
    for path, field in fields
    for row in rows
    for written, reads in row.written.items()
]


def body_of(path: str, field: str, written: str) -> bytes:
    """A request that vLLM takes, with `field`."""
    outer, _, inner = field.partition(".")
    value = f'{{"{inner}": {written}}}' if inner else written
    streams = '"stream": true, ' if inner else ""
    return f'{{{LEAST[path]}, "model": "m", {streams}"{outer}": {value}}}'.encode()


def ask(installation: Installation, bodies: list[tuple[str, bytes, list[str]]]) -> tuple[list[Any], list[int]]:
    """vLLM's reading of each body's fields (None: refused), and the status of each target."""
    asked = {
        "bodies": [[path, base64.b64encode(body).decode(), fields] for path, body, fields in bodies],
        "targets": [[row.method, row.target] for row in TARGETS],
    }
    done = subprocess.run(
        [installation.folder / "venv" / "bin" / "python", HERE / "reading.py"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
        timeout=280,
        env=os.environ | VLLM_ENVIRONMENT,
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer["bodies"], answer["targets"]


def test_vllm_reads_what_the_table_says(vllm_installation: Installation) -> None:
    """Every value of every field, every body, every path."""
    bodies = [(path, body_of(path, field, written), [field]) for path, field, written, _ in ROWS]
    bodies += [(row.path, row.body, []) for row in BODIES]
    answers, statuses = ask(vllm_installation, bodies)
    wrong = []
    for (path, field, written, reads), answer in zip(ROWS, answers, strict=False):
        # Refused by the model's own validator: Anthropic's bound must be above 0.
        refused = reads == REFUSED or (path == paths.MESSAGES and type(reads) is int and reads <= 0)
        if answer != (None if refused else [reads]):
            wrong.append((path, field, written[:60], answer))
    for row, answer in zip(BODIES, answers[len(ROWS) :], strict=True):
        if (answer is not None) != row.taken:
            wrong.append((row.path, row.what, repr(row.body), answer))
    for target, status in zip(TARGETS, statuses, strict=True):
        said = {REDIRECTS: status == 307, NOT_FOUND: status == 404}.get(target.vllm, status not in (307, 404))
        if not said:
            wrong.append((target.method, target.target, target.vllm, status))
    assert wrong == []
