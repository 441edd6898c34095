"""The repository as a whole keeps its own rules: layers, purity, no hidden state, sizes, start-up, documentation."""

from __future__ import annotations

import importlib
import re
import resource
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, Final

import pytest
from typer.main import get_command

from aiaas.cli.main import COMMANDS, run
from tests import plain_words
from tests import repository_rules as rules
from tests.repository_rules import ROOT, Module, all_modules, module_of

Rule = Callable[[Module], Iterator[str]]

# Pure: no clock, socket, randomness or file of their own; time comes in as `now`.
PURE: Final = ("aiaas/plan/", "aiaas/limits/", "aiaas/openai/", "aiaas/manifests/", "aiaas/config/check.py")
# Stores hold the limiter's state, and use `time` to name the UTC day of a moment that is passed in.
NOT_PURE: Final = tuple(
    f"aiaas/limits/{name}.py"
    for name in ("memory", "redis", "connection", "node", "servers", "topology", "usage_sqlite", "usage_redis")
)

# The last resort of the command line: a fault of ours becomes one line and never a traceback.
MAY_CATCH_ALL: Final = ("aiaas/cli/outcome.py", "aiaas/proxy/client/handler.py")

# Files and functions that are larger than the rule. Reasons only; the list may shrink and never grow.
MAY_BE_LARGE: Final[dict[str, str]] = {}

# Public names that two modules or more define. The list may shrink and never grow.
MAY_STAND_TWICE: Final = {
    "app": "each command's own",
    "main": "each process begins with its own",
    "Hooks": "the callbacks of a connection, and of the door",
    "P": "a type variable",
    "overloaded": "503 for want of a place, and for want of a free endpoint",
    "refusal": "429 of a limit, and 4xx for bytes that are not a request",
}

# Modules whose tests stand elsewhere.
TESTED_ELSEWHERE: Final = {
    "aiaas/__main__.py": "one call of aiaas.cli.entry; test_repository.py starts it as a process",
    "aiaas/cli/chatanswer.py": "tests/cli/test_chat.py",
    "aiaas/cli/completion.py": "tests/cli/test_complete.py",
    "aiaas/cli/diagnosis.py": "tests/cli/test_doctor.py",
    "aiaas/cli/outcome.py": "tests/cli/test_main.py",
    "aiaas/cli/keyoptions.py": "tests/cli/test_keys.py",
    "aiaas/cli/keytarget.py": "tests/cli/test_keys.py",
    "aiaas/cli/keyview.py": "tests/cli/test_keys.py",
    "aiaas/cli/loadoptions.py": "tests/cli/test_loadtest.py",
    "aiaas/cli/loadview.py": "tests/cli/test_loadtest.py",
    "aiaas/config/addresses.py": "the cases of tests/config/cases",
    "aiaas/config/backend.py": "the cases of tests/config/cases",
    "aiaas/config/environment.py": "the cases of tests/config/cases",
    "aiaas/config/fields.py": "the cases of tests/config/cases",
    "aiaas/config/problem.py": "the cases of tests/config/cases: each expects Problems as they are printed",
    "aiaas/config/secret.py": "the cases of tests/config/cases",
    "aiaas/config/section.py": "the cases of tests/config/cases",
    "aiaas/config/tree.py": "the cases of tests/config/cases",
    "aiaas/proxy/telemetry/record.py": "tests/proxy/upstream/test_relay.py, tests/proxy/upstream/test_slots.py",
    "aiaas/proxy/upstream/endpoint.py": "tests/proxy/upstream/test_backends.py",
    "aiaas/proxy/upstream/refusals.py": "tests/proxy/upstream/test_forward.py, tests/proxy/test_faults.py",
    "aiaas/yamltree.py": "tests/keys/test_tree.py, and the cases of tests/config/cases",
    "aiaas/simulator/answers.py": "the wire suite (tests/e2e/wire_cases.py), which a real vLLM passes, too",
    "aiaas/simulator/checks.py": "the wire suite (tests/e2e/wire_refusals.py)",
    "aiaas/simulator/errors.py": "the wire suite (tests/e2e/wire_refusals.py)",
    "aiaas/simulator/forms.py": "the wire suite (tests/e2e/wire_refusals.py)",
    "aiaas/simulator/metrics.py": "the wire suite (tests/e2e/wire_cases.py)",
    "aiaas/simulator/replies.py": "the wire suite (tests/e2e/wire_cases.py)",
    "aiaas/proxy/upstream/attempt.py": "tests/proxy/upstream/test_relay.py and test_forward.py",
    "aiaas/proxy/upstream/usage_tap.py": "tests/proxy/upstream/test_relay.py",
}

# Declared dependencies that no import names.
NOT_IMPORTED: Final = {
    "argon2-cffi": "libpass loads it by name for its argon2 handler",
}
# Modules that come with a declared dependency and are part of its API.
COMES_WITH: Final = {"pydantic-core": "pydantic"}

START_UP_SECONDS: Final = 0.3
# Packages that make a command slow to start; `--help` must not import them.
HEAVY: Final = ("aiohttp", "pydantic", "passlib", "prometheus_client", "uvloop", "asyncio", "yaml")


def broken(rule: Rule, *, allowed: tuple[str, ...] = ()) -> list[str]:
    """The findings of a rule in the whole tree, but for the allowed files."""
    return [found for module in all_modules() if module.path not in allowed for found in rule(module)]


# -- the rules themselves: each finds what breaks it, and nothing in what does not ------------------------------------

BAD: Final = [
    pytest.param(rules.layers, "aiaas/keys/a.py", "from aiaas.plan.model import Plan", id="import of a layer above"),
    pytest.param(rules.layers, "aiaas/keys/a.py", "from aiaas.limits import gcra", id="import within one group"),
    pytest.param(rules.layers, "aiaas/keys/a.py", "from aiaas import proxy", id="import of a package by name"),
    pytest.param(rules.layers, "aiaas/keys/a.py", "from ..proxy import app", id="relative import of a layer above"),
    pytest.param(rules.layers, "aiaas/keys/a.py", "def f():\n    import aiaas.cli.main", id="import in a function"),
    pytest.param(
        rules.wings, "aiaas/proxy/client/a.py", "from aiaas.proxy.upstream.relay import Relay", id="a wing above"
    ),
    pytest.param(rules.wings, "aiaas/proxy/tasks.py", "from aiaas.proxy.reload import Reloader", id="the root above"),
    pytest.param(
        rules.layers,
        "aiaas/errors.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from aiaas.keys.model import Principal",
        id="import for types only",
    ),
    pytest.param(rules.layers, "aiaas/proxy/a.py", "import rich.console", id="rich outside cli"),
    pytest.param(rules.layers, "aiaas/extra/a.py", "", id="package without a layer"),
    pytest.param(rules.private_names, "aiaas/cli/a.py", "from aiaas.keys.file import _read", id="private name"),
    pytest.param(rules.purity, "aiaas/plan/a.py", "import os.path", id="os.path"),
    pytest.param(rules.purity, "aiaas/plan/a.py", "from random import random", id="randomness"),
    pytest.param(rules.purity, "aiaas/plan/a.py", "x = datetime.now(UTC)", id="clock by datetime"),
    pytest.param(rules.purity, "aiaas/plan/a.py", "x = Path('a').read_text()", id="file by pathlib"),
    pytest.param(rules.purity, "aiaas/plan/a.py", "x = open('a')", id="file by open"),
    pytest.param(rules.module_state, "aiaas/a.py", "cache = {}", id="dict that is not a constant"),
    pytest.param(rules.module_state, "aiaas/a.py", "A = {}\ndef f(): A['x'] = 1", id="dict written to"),
    pytest.param(rules.module_state, "aiaas/a.py", "A = []\ndef f(): A.append(1)", id="list appended to"),
    pytest.param(rules.module_state, "aiaas/a.py", "A = {1}\ndef f():\n    del A[1]", id="entry deleted"),
    pytest.param(rules.module_state, "aiaas/a.py", "A: Final = deque()", id="queue at module level"),
    pytest.param(rules.module_state, "aiaas/a.py", "def f():\n    global x\n    x = 1", id="global"),
    pytest.param(rules.module_state, "aiaas/a.py", "@cache\ndef f(): pass", id="cache without a bound"),
    pytest.param(rules.function_imports, "aiaas/keys/a.py", "def f():\n    import json", id="import inside a function"),
    pytest.param(rules.blind_excepts, "aiaas/a.py", "try: pass\nexcept Exception: pass", id="except Exception"),
    pytest.param(rules.blind_excepts, "aiaas/a.py", "try: pass\nexcept: pass", id="bare except"),
    pytest.param(rules.blind_excepts, "aiaas/a.py", "with suppress(Exception): pass", id="suppress Exception"),
    pytest.param(rules.sizes, "aiaas/a.py", "\n" * 400, id="file of 400 lines"),
    pytest.param(rules.sizes, "aiaas/a.py", "def f():\n" + "    pass\n" * 59, id="function of 60 lines"),
    pytest.param(rules.docstrings, "aiaas/a.py", "x = 1", id="file without a docstring"),
    pytest.param(rules.docstrings, "aiaas/a.py", '"""A."""\nclass E(ValueError): pass', id="exception without one"),
]

GOOD: Final = [
    pytest.param(rules.layers, "aiaas/cli/a.py", "import rich\nfrom aiaas.proxy.server import serve", id="cli"),
    pytest.param(rules.layers, "aiaas/keys/a.py", "from aiaas import __version__, errors", id="the layer below"),
    pytest.param(rules.layers, "aiaas/keys/a.py", "from aiaas.keys.model import NO_LIMITS", id="own package"),
    pytest.param(
        rules.purity, "aiaas/plan/a.py", "from pathlib import Path\nx = Path('a') / 'b'", id="paths as values"
    ),
    pytest.param(
        rules.module_state, "aiaas/a.py", "A: Final = {1: 2}\nb = A[1]\ndef f(): c = {}; c[1] = 2", id="table"
    ),
    pytest.param(rules.module_state, "aiaas/a.py", "@lru_cache(maxsize=9)\ndef f(): pass", id="bounded cache"),
    pytest.param(rules.function_imports, "aiaas/cli/a.py", "def f():\n    import json", id="import in a command"),
    pytest.param(rules.blind_excepts, "aiaas/a.py", "try: pass\nexcept Exception:\n    raise", id="raised again"),
    pytest.param(rules.blind_excepts, "aiaas/a.py", "try: pass\nexcept OSError: pass", id="named exception"),
    pytest.param(rules.sizes, "aiaas/a.py", "def f():\n" + "    pass\n" * 58, id="function of 59 lines"),
]


@pytest.mark.parametrize(("rule", "path", "source"), BAD)
def test_each_rule_finds_what_breaks_it(rule: Rule, path: str, source: str) -> None:
    """A module that breaks a rule is found."""
    assert list(rule(module_of(path, source)))


@pytest.mark.parametrize(("rule", "path", "source"), GOOD)
def test_no_rule_finds_fault_with_what_is_allowed(rule: Rule, path: str, source: str) -> None:
    """A module that keeps a rule passes it."""
    assert list(rule(module_of(path, source))) == []


# -- the source -------------------------------------------------------------------------------------------------------


def test_there_are_modules_to_judge() -> None:
    """The tree is found; otherwise every test below would pass on nothing."""
    assert len(all_modules()) > 50


def test_packages_import_only_from_layers_below() -> None:
    """cli -> smoke -> proxy | manifests | loadtest | engines | simulator -> httpclient -> plan -> config -> keys |
    limits | openai -> errors."""
    assert broken(rules.layers) == []


def test_the_wings_of_the_proxy_import_only_from_below() -> None:
    """workers -> server, gateway, reload -> upstream -> request -> client -> tasks -> telemetry."""
    assert broken(rules.wings) == []


def test_no_module_uses_the_private_names_of_another() -> None:
    """A name that begins with an underscore may be changed without looking elsewhere."""
    assert broken(rules.private_names) == []


def test_a_public_name_stands_in_one_module_only() -> None:
    """A reader of a name knows its module; an exception that is no longer needed has to go."""
    owners: dict[str, list[str]] = {}
    for module in all_modules():
        for name in set(rules.public_names(module)):
            owners.setdefault(name, []).append(module.path)
    twins = {name: paths for name, paths in owners.items() if len(paths) > 1}
    assert {name: paths for name, paths in twins.items() if name not in MAY_STAND_TWICE} == {}
    assert sorted(set(MAY_STAND_TWICE) - set(twins)) == []


def test_public_names_are_classes_functions_and_constants() -> None:
    """An import, or a name that begins with an underscore, does not count."""
    source = (
        "from a import B\nC: Final = 1\nD = E = 2\n_F = 3\nclass G:\n    H = 4\nasync def i(): pass\ndef _j(): pass"
    )
    assert list(rules.public_names(module_of("aiaas/a.py", source))) == ["C", "D", "E", "G", "i"]


def test_the_pure_packages_are_pure() -> None:
    """Plan, limits, openai, manifests and config.check have no clock, socket, randomness or file of their own."""
    pure = [m for m in all_modules() if m.path.startswith(PURE) and m.path not in NOT_PURE]
    assert len(pure) > 10
    assert [found for module in pure for found in rules.purity(module)] == []


def test_no_module_holds_state() -> None:
    """State is passed in, never found at module level."""
    assert broken(rules.module_state) == []


def test_imports_stand_at_the_top() -> None:
    """Only commands import late, for the sake of their start-up time."""
    assert broken(rules.function_imports) == []


def test_no_error_is_swallowed() -> None:
    """Nothing catches everything without raising it again, but the command line's last resort."""
    assert broken(rules.blind_excepts, allowed=MAY_CATCH_ALL) == []


def test_files_and_functions_stay_small() -> None:
    """Files under 400 lines, functions under 60; an exception that is no longer needed has to go."""
    found = {finding.partition(":")[0] for finding in broken(rules.sizes)}
    assert sorted(broken(rules.sizes, allowed=tuple(MAY_BE_LARGE))) == []
    assert sorted(set(MAY_BE_LARGE) - found) == []


def test_each_file_and_each_exception_says_what_it_is() -> None:
    """Files open with their one idea; exceptions say when they are raised."""
    assert broken(rules.docstrings) == []


def test_each_module_with_behaviour_has_a_test_file_of_its_name() -> None:
    """aiaas/keys/file.py is tested by tests/keys/test_file.py; values without behaviour, where they are used."""
    missing = [
        rules.tests_of(module)
        for module in all_modules()
        if rules.has_behaviour(module)
        and module.path not in TESTED_ELSEWHERE
        and not (ROOT / rules.tests_of(module)).is_file()
    ]
    assert missing == []


# -- the words --------------------------------------------------------------------------------------------------------


def test_words_are_plain() -> None:
    """No text has a phrase of `tests/plain_words.py`."""
    assert plain_words.judge_all() == []


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="an unpacked sdist has no history")
def test_commit_subjects_are_short_and_begin_with_an_area() -> None:
    """`area: verb object`, at most 72 characters, for each commit after the one that added the check."""
    assert plain_words.bad_subjects(plain_words.subjects_since_this_check()) == []


# -- the command line -------------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, ...]]:
    """Every command that can be run, with the group it is in."""
    for name, (module, _) in COMMANDS.items():
        command: Any = get_command(importlib.import_module(module).app)
        yield from ((name, inner) for inner in command.commands) if hasattr(command, "commands") else ((name,),)


@pytest.mark.parametrize("command", [pytest.param(c, id=" ".join(c)) for c in commands()])
def test_the_help_of_each_command_has_an_example(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """`aiaas COMMAND --help` shows at least one line that can be typed."""
    assert run([*command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"^\s+.*\baiaas {' '.join(command)}\b", shown.partition("Example")[2], re.MULTILINE), shown


def test_help_answers_at_once() -> None:
    """`aiaas --help` takes less than 300 ms of CPU, the best of three: it waits for nothing, and other work on the
    machine does not count."""
    best = min(_seconds_of_help() for _ in range(3))
    assert best < START_UP_SECONDS


def _seconds_of_help() -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "aiaas", "--help"], capture_output=True, check=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert b"quickstart" in done.stdout
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_imports_nothing_heavy() -> None:
    """`aiaas --help` imports neither the server nor the config's model nor the hash library."""
    code = "import sys; from aiaas.cli.main import run; run(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = done.stderr.split()
    assert "typer" in loaded
    assert [name for name in HEAVY if name in loaded] == []


# -- the package ------------------------------------------------------------------------------------------------------


def normal(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements: list[str]) -> set[str]:
    """The names in a list of requirements."""
    return {normal(found.group()) for text in requirements if (found := re.match(r"[A-Za-z0-9._-]+", text))}


def imported_distributions() -> dict[str, str]:
    """Distributions whose modules are imported under aiaas/, each with a place where that happens."""
    distributions = packages_distributions()
    found: dict[str, str] = {}
    for module in all_modules():
        for each in rules.imports(module):
            top = each.dotted.partition(".")[0]
            if top != "aiaas" and top not in sys.stdlib_module_names:
                owner = normal(distributions.get(top, [top])[0])
                found[COMES_WITH.get(owner, owner)] = f"{module.path}:{each.line}"
    return found


def test_each_import_is_a_declared_dependency() -> None:
    """Nothing is imported that only happens to be installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    known = declared(project["dependencies"]) | declared([*extras["vllm"], *extras["schemas"]])
    assert {name: place for name, place in imported_distributions().items() if name not in known} == {}


def test_each_declared_dependency_is_used() -> None:
    """Few dependencies: one that nothing imports has to go."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert sorted(declared(project["dependencies"]) - set(imported_distributions()) - set(NOT_IMPORTED)) == []


# -- what is checked in -----------------------------------------------------------------------------------------------

# Places that exist on one machine only, and where packages come from: neither belongs to the project.
FOREIGN: Final = re.compile(
    r"(?<![\w.$}])/(?:root|work|opt/(?:wheels|pypi)[\w-]*)/|/home/(?!dev/ai-aas)\w+/"
    r"|files[.]pythonhosted[.]org|pypi[.]org/simple|://[\w.-]*(?:artifactory|nexus|devpi)[\w.-]*[/:]"
)


def checked_in() -> list[Path]:
    """Every file that git tracks."""
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, check=True, cwd=ROOT).stdout
    return [path for name in listed.decode().split("\0") if name and (path := ROOT / name).is_file()]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("see /ro" + "ot/notes", id="home of root"),
        pytest.param("FOLDER=/wo" + "rk/main", id="working folder"),
        pytest.param("pip install -i https://nex" + "us.example.com/pypi", id="a company's index"),
        pytest.param("https://files.python" + "hosted.org/a", id="package address"),
    ],
)
def test_a_foreign_place_is_recognised(text: str) -> None:
    """The pattern below finds what it is for."""
    assert FOREIGN.search(text)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="an unpacked sdist has no list of tracked files")
def test_no_file_names_a_place_on_somebodys_machine() -> None:
    """No path of a developer's machine and no package index stands in a tracked file."""
    found = []
    for path in checked_in():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        name = path.relative_to(ROOT).as_posix()
        found += [f"{name}: {match.group()}" for match in FOREIGN.finditer(text)]
    assert found == []
