"""Every error code of the code stands in docs/errors.md with its statuses, and no other."""

import ast
import re
from pathlib import Path
from types import SimpleNamespace

import openai
import pytest

from aiaas.proxy.telemetry.metrics import LIMIT_OF

ROOT = Path(__file__).parents[2]
KINDS = ("ClientError", "LimitError", "UpstreamError")
ROWS = re.findall(r"^\| (\d{3}) \| `(\w+)` \| (\w+) \|", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE)


def raised() -> set[tuple[str, str]]:
    """(status, code) of every error that the code makes with both written out, and the limits' codes."""
    found = set()
    for file in (ROOT / "aiaas").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) in KINDS and len(node.args) >= 2:
                status, code = node.args[:2]
                if isinstance(status, ast.Constant) and isinstance(code, ast.Constant):
                    found.add((str(status.value), str(code.value)))
            elif isinstance(node, ast.Call) and getattr(node.func, "id", None) == "Unauthorized":
                found.add(("401", str(ast.literal_eval(node.args[1]))))
    return found | {("429", code) for code in LIMIT_OF}


def test_the_manual_has_every_code_with_its_status() -> None:
    """In both directions."""
    documented = {(status, code) for status, code, _ in ROWS}
    assert len(documented) == len(ROWS)
    assert documented == raised()


@pytest.mark.parametrize(("status", "name"), sorted({(status, name) for status, _, name in ROWS}))
def test_the_manual_names_the_exception_that_the_sdk_raises(status: str, name: str) -> None:
    """By the SDK's own table."""
    response = SimpleNamespace(status_code=int(status), request=None, headers={})
    client = openai.OpenAI(api_key="x", base_url="http://x")
    error = client._make_status_error("", body=None, response=response)  # type: ignore[arg-type]
    assert type(error).__name__ == name
