"""The same programs directly at an engine and through the gateway: print where an SDK sees something else.

    python -m tests.clients.compare                       # at the simulator
    python -m tests.clients.compare --vllm                # at the real vLLM of tests/e2e/vllm/setup.py
    python -m tests.clients.compare --engine http://127.0.0.1:8000    # at one that runs; its key in $ENGINE_KEY
    python -m tests.clients.compare --only ai-sdk,langchain

Each program of `programs/` prints the outcomes of its cases; a case's two outcomes are compared value by value, without
ids and times. A difference is explained by a row of `explained.py`; any other makes the exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.clients.coalesce import coalesced
from tests.clients.explained import reason_for
from tests.clients.setup import install
from tests.e2e import processes
from tests.e2e.vllm import setup as vllm_setup

PROGRAMS: Final = Path(__file__).resolve().parent / "programs"
ENGINE_KEY: Final = "sk-engine"
OPTIONS: Final = ("--api-key", ENGINE_KEY, "--enable-auto-tool-choice")
# Values that are new in each answer.
VOLATILE: Final = frozenset(
    {"id", "created", "created_at", "item_id", "call_id", "request_id", "completed_at", "tool_call_id", "signature"}
)


@dataclass(frozen=True, slots=True)
class Server:
    """One of the two: the URL without /v1, and its key."""

    url: str
    key: str


@dataclass(frozen=True, slots=True)
class Difference:
    """A value that differs: the case, its place in the outcome, and both values; `reason` is None if unexplained."""

    case: str
    place: str
    direct: object
    through: object
    reason: str | None

    def __str__(self) -> str:
        values = f"direct {_short(self.direct)}, through {_short(self.through)}"
        return f"{self.case}: {self.place}: {values}" + (f" ({self.reason})" if self.reason else "")


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}..."


def compare(direct: dict[str, Any], through: dict[str, Any], *, merges: bool = False) -> list[Difference]:
    """All differences between two runs of a program."""
    found = []
    for case in direct | through:
        for place, one, other in differing(direct.get(case), through.get(case), merges=merges):
            found.append(Difference(case, place, one, other, reason_for(case, place)))
    return found


def differing(one: Any, other: Any, place: str = "", merges: bool = False) -> Iterator[tuple[str, Any, Any]]:
    """The places where two JSON values differ, but for volatile ones.

    merges  the engine may put several tokens into one event
    """
    if isinstance(one, dict) and isinstance(other, dict):
        for name in one | other:
            if name not in VOLATILE:
                yield from differing(one.get(name), other.get(name), f"{place}.{name}" if place else name, merges)
    elif isinstance(one, list) and isinstance(other, list) and len(one) != len(other) and merges:
        yield from differing(coalesced(one), coalesced(other), place)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other, strict=True)):
            yield from differing(*pair, f"{place}[{index}]", merges)
    elif one != other:
        yield place, one, other


def run_program(name: str, server: Server) -> dict[str, Any]:
    """The outcomes of a program's cases at this server."""
    folder = install()
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"BASE_URL": server.url, "API_KEY": server.key, "MODEL": processes.MODEL, "DO_NOT_TRACK": "1"}
    python = str(folder / "venv" / "bin" / "python")
    if name == "langchain":
        return _run_tests(python, environment)
    # Node looks for packages beside the program.
    program = PROGRAMS / ("sdk_python.py" if name == "sdk-python" else f"{name.replace('-', '_')}.mjs")
    if program.suffix == ".mjs":
        copy = folder / program.name
        copy.write_bytes(program.read_bytes())
        program = copy
    command = [python if program.suffix == ".py" else "node", str(program)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    if ran.returncode:
        raise RuntimeError(f"{name} failed at {server.url}: {ran.stderr[-2000:]}")
    outcomes: dict[str, Any] = json.loads(ran.stdout)
    return outcomes


def _run_tests(python: str, environment: dict[str, str]) -> dict[str, Any]:
    """LangChain's tests: passed, skipped, or the kind of the failure."""
    with tempfile.TemporaryDirectory() as folder:
        report, tests = Path(folder) / "junit.xml", Path(folder) / "langchain_standard.py"
        tests.write_bytes((PROGRAMS / tests.name).read_bytes())  # away from this project's conftest.py
        command = [python, "-m", "pytest", "-q", f"--rootdir={folder}", f"--junitxml={report}", str(tests)]
        command += ["-p", "no:cacheprovider", "-o", "asyncio_mode=auto"]
        ran = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=900)
        if not report.exists():
            raise RuntimeError(f"pytest failed: {ran.stdout[-2000:]}{ran.stderr[-2000:]}")
        return {case.get("name", ""): _outcome(case) for case in ElementTree.parse(report).iter("testcase")}


def _outcome(case: ElementTree.Element) -> str:
    for kind in ("failure", "error", "skipped"):
        found = case.find(kind)
        if found is not None:
            return f"{kind}: {(found.get('message') or '').partition(':')[0].splitlines()[0][:80]}"
    return "passed"


NAMES: Final = ("sdk-python", "sdk-node", "ai-sdk", "langchain")


def main(arguments: list[str]) -> int:
    """Run the programs twice and print the differences; 1 if one is unexplained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", action="store_true", help="the real vLLM instead of the simulator")
    parser.add_argument("--engine", metavar="URL", help="an engine that runs already; its key is in $ENGINE_KEY")
    parser.add_argument("--only", default=",".join(NAMES), help="the programs to run")
    options = parser.parse_args(arguments)
    unexplained = 0
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if options.engine:
            engine = Server(options.engine, os.environ.get("ENGINE_KEY", ENGINE_KEY))
        else:
            engine = running_engine(stack, folder / "engine.log", real=options.vllm)
        direct, through = engine, gateway_before(stack, folder, engine)
        for name in options.only.split(","):
            outcomes = run_program(name, direct)
            differences = compare(outcomes, run_program(name, through), merges=bool(options.vllm or options.engine))
            wrong = [each for each in differences if each.reason is None]
            unexplained += len(wrong)
            explained = len(differences) - len(wrong)
            print(
                f"{name}: {len(outcomes)} cases, {len(wrong)} differences unexplained, {explained} explained",
                flush=True,
            )
            for difference in differences:
                print(f"  {difference}")
    return 1 if unexplained else 0


def running_engine(stack: ExitStack, log: Path, *, real: bool) -> Server:
    """The real vLLM or the simulator, until the stack closes."""
    if not real:
        return Server(stack.enter_context(processes.running_simulator(log, *OPTIONS)), ENGINE_KEY)
    there = vllm_setup.ensure()
    parser = ("--tool-call-parser", "hermes")
    url = stack.enter_context(processes.running_vllm(log, there.model, there.vllm, *OPTIONS, *parser))
    return Server(url, ENGINE_KEY)


def gateway_before(stack: ExitStack, folder: Path, engine: Server) -> Server:
    """A gateway in front of the engine, until the stack closes."""
    backend: dict[str, Any] = {"url": engine.url, "api_key_env": "ENGINE_KEY", "models": [processes.MODEL]}
    environment = {"ENGINE_KEY": engine.key}
    gateway = stack.enter_context(processes.running_gateway(folder, backend, environment=environment))
    return Server(gateway.url, gateway.key)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
