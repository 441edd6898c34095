"""Text -> Config, or its problems, each at its line. The cases are files: YAML, a line of dashes, the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from aiaas.config.check import check
from aiaas.config.code_texts import CODES
from aiaas.config.fields import all_fields
from aiaas.config.load import Loaded, load_file, load_text, load_texts
from aiaas.config.model import Config
from aiaas.errors import EnvironmentFault
from aiaas.plan.compile import canonical, compile_plan

CASES = sorted((Path(__file__).parent / "cases").glob("*.case"))
MINIMAL = "backends:\n  vllm:\n    url: http://vllm:8000\n    models: [m]\n"


def problems_of(loaded: Loaded, env: dict[str, str]) -> list[str]:
    """All problems, as lines in the file's order."""
    found = loaded.problems + check(loaded, env)
    return [str(problem) for problem in sorted(found, key=lambda problem: (problem.line, problem.column))]


def assert_within(expected: Any, actual: Any, where: str = "plan") -> None:
    """`expected` is an excerpt of `actual`: each of its keys, and each item of its lists, is there."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            assert key in actual, f"{where}.{key} is missing"
            assert_within(value, actual[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(expected) == len(actual), where
        for index, value in enumerate(expected):
            assert_within(value, actual[index], f"{where}[{index}]")
    else:
        assert expected == actual, where


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_case_gives_its_plan_or_its_problems(case: Path) -> None:
    """Each case file gives the Plan excerpt, or exactly the problem lines, that stand below its dashes."""
    text, _, expected = case.read_text(encoding="utf-8").partition("----------\n")
    env = dict(line[6:].split("=", 1) for line in text.splitlines() if line.startswith("# env "))
    loaded = load_text(text, file="aiaas.yaml", env=env)
    if expected.startswith("{"):
        assert problems_of(loaded, env) == []
        assert loaded.config is not None
        plan = compile_plan(loaded.config, overrides=loaded.overrides, env=env)
        assert_within(json.loads(expected), canonical(plan))
    else:
        assert problems_of(loaded, env) == expected.splitlines()
        assert "secret@" not in expected


def test_every_code_that_a_text_can_earn_has_a_case() -> None:
    """No rule is without a case; AIA001, AIA4xx and AIA516 concern files, AIA6xx what backends answer."""
    seen = "".join(case.read_text(encoding="utf-8").partition("----------\n")[2] for case in CASES)
    assert [code for code in CODES if code not in seen and not code.startswith(("AIA4", "AIA6"))] == [
        "AIA001",
        "AIA516",
    ]


# One text for every field, with a value that its type cannot take, on a line of its own.
FIELDS = sorted({path for path, _ in all_fields(Config)})
LISTS = ("models", "urls", "tolerations", "ingress", "egress", "patches")


def with_value(path: tuple[str, ...], value: Any) -> tuple[str, str]:
    """A config with `value` at `path`, each field on a line of its own, and the path as messages write it."""
    root: dict[str, Any] = {"backends": {"vllm": {"url": "http://vllm:8000", "models": ["m"]}}}
    node: Any = root
    shown = ""
    names: dict[str | int, Any] = {"backends": "vllm", "env": "X", "fields": "logprobs"} | dict.fromkeys(LISTS, 0)
    names |= dict.fromkeys(("interactive", "default", "batch"), "logprobs")
    for index, part in enumerate(path):
        last = index == len(path) - 1
        name: Any = names[path[index - 1]] if part == "*" else part
        shown += f"[{name}]" if isinstance(name, int) else f".{name}" if shown else str(name)
        if isinstance(node, list):
            node[0] = node[0] if isinstance(node[0], dict) else {"name": "m"}
            node = node[0]
            continue
        if last:
            node[name] = value
        else:
            following = path[index + 1]
            existing = node.get(name)
            node[name] = (
                existing if isinstance(existing, dict | list) else [{}] if following == "*" and part in LISTS else {}
            )
            if part == "engine":
                node[name].setdefault("kind", "simulator")
                node.pop("url", None)
            if part == "cors":
                node[name].setdefault("allow_origins", ["*"])
            if part == "tls" and path[0] == "server":
                node[name] |= {key: "f" for key in ("cert_file", "key_file") if key not in node[name]}
            if part == "*" and path[index - 1] == "env":
                node[name].setdefault("secret", "f")
            node = node[name]
    return yaml.safe_dump(root, sort_keys=False), shown


def wrong_for(path: tuple[str, ...]) -> Any:
    """A value that no field at `path` can take: text where there is structure, structure where there is a value."""
    free = {
        "args",
        "labels",
        "annotations",
        "pod_labels",
        "namespace_labels",
        "env",
        "node_selector",
        "accept",
        "headers",
    }
    is_container = path[-1] in free or path[-1] in ("backends", "models", "urls", "endpoints", "extra", "merge")
    is_section = any(other[: len(path)] == path and len(other) > len(path) for other in FIELDS)
    lists = path[-1] in ("aliases", "forward_headers", "trusted_proxies", "allow_origins")
    is_container |= path[-1].endswith("_annotations")
    return "WRONG" if is_container or is_section or lists else {"WRONG": 1}


@pytest.mark.parametrize("path", FIELDS, ids=".".join)
def test_a_wrong_type_is_reported_at_its_field_and_line(path: tuple[str, ...]) -> None:
    """Whichever field has a value of the wrong type, its path and its line are named."""
    text, shown = with_value(path, wrong_for(path))
    loaded = load_text(text, file="f", env={})
    assert loaded.config is None
    [problem] = [found for found in loaded.problems if found.path == shown]
    assert problem.code == "AIA103"
    assert f"{path[-1]}:" in text.splitlines()[problem.line - 1] or "WRONG" in text.splitlines()[problem.line - 1]


@pytest.mark.parametrize("path", FIELDS, ids=".".join)
def test_an_unknown_field_beside_any_field_is_reported(path: tuple[str, ...]) -> None:
    """In every section a field that does not exist is an error at its own line."""
    text, shown = with_value((*path[:-1], "nonsense"), 1)
    loaded = load_text(text, file="f", env={})
    [problem] = [found for found in loaded.problems if found.code == "AIA101"]
    assert problem.path == shown
    assert "nonsense: 1" in text.splitlines()[problem.line - 1]


@pytest.mark.parametrize("path", FIELDS, ids=".".join)
def test_a_field_written_twice_is_reported(path: tuple[str, ...]) -> None:
    """Whichever field appears twice, the second one's line is named."""
    text, shown = with_value((*path[:-1], "nonsense"), 1)
    lines = text.splitlines()
    at = next(index for index, line in enumerate(lines) if "nonsense: 1" in line)
    lines.insert(at + 1, lines[at].replace("- ", "  "))
    loaded = load_text("\n".join(lines), file="f", env={})
    [problem] = [found for found in loaded.problems if found.code == "AIA003"]
    assert (problem.path, problem.line) == (shown, at + 2)


@given(st.text())
@example("{")
@example("\x00")
@example("\ufeff" + MINIMAL)
@example("? ")
@example("&a")
@example("%YAML 9.9\n---\n")
@example("apiVersion: v1\nkind: ConfigMap\ndata: {config.yaml: '['}")
@example("- " * 100)
@example("[" * 5000)
def test_any_text_gives_a_config_or_problems(text: str) -> None:
    """Whatever the text, nothing is raised, and without a config there is an error that says why."""
    loaded = load_text(text, file="f", env={})
    check(loaded, {})
    assert loaded.config is not None or any(problem.severity == "error" for problem in loaded.problems)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(FIELDS), json_like)
def test_any_value_in_any_field_gives_a_config_or_problems(path: tuple[str, ...], value: Any) -> None:
    """Whatever stands in a field, nothing is raised, by the checks and the compiler neither."""
    text, _ = with_value(path, value)
    loaded = load_text(text, file="f", env={})
    errors = [problem for problem in loaded.problems + check(loaded, {}) if problem.severity == "error"]
    assert loaded.config is not None or errors
    if loaded.config is not None and not errors:
        assert compile_plan(loaded.config).digest


@given(st.binary(max_size=200))
def test_any_bytes_in_a_file_give_a_config_or_problems(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Whatever the file's bytes, nothing is raised."""
    path = tmp_path_factory.mktemp("bytes") / "aiaas.yaml"
    path.write_bytes(data)
    assert load_file(path, {}).problems


@pytest.mark.parametrize(
    ("data", "line", "words"),
    [
        pytest.param(b"", 1, "is empty", id="empty"),
        pytest.param(b"# nothing\n", 1, "is empty", id="only a comment"),
        pytest.param(b"a: 1\nb: \xff\n", 2, "is not UTF-8 (byte 0xFF)", id="not UTF-8"),
        pytest.param("a: 1".encode("utf-16"), 1, "is not UTF-8", id="UTF-16"),
        pytest.param(b"#" * (1024 * 1024 + 1), 0, "larger than 1024 KiB", id="too large"),
    ],
)
def test_binary_file_is_one_problem(tmp_path: Path, data: bytes, line: int, words: str) -> None:
    """A file that cannot be read as a config says so in one AIA001, with the place where there is one."""
    path = tmp_path / "aiaas.yaml"
    path.write_bytes(data)
    [problem] = load_file(path, {}).problems
    assert (problem.code, problem.line) == ("AIA001", line)
    assert words in problem.message


def test_a_folder_is_a_problem(tmp_path: Path) -> None:
    """A folder in place of a file is a problem, not a traceback."""
    [problem] = load_file(tmp_path, {}).problems
    assert "is a folder" in problem.message


def test_missing_file_is_an_environment_error(tmp_path: Path) -> None:
    """A missing file ends the command, with advice."""
    with pytest.raises(EnvironmentFault, match="no such file; `aiaas init` writes one"):
        load_file(tmp_path / "aiaas.yaml", {})


def test_an_exploding_alias_is_refused_quickly() -> None:
    """Nine levels of nine aliases each would be 387 million values; they are refused after 10,000."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 9)]
    [problem] = load_text("\n".join(lines), file="f", env={}).problems
    assert problem.code == "AIA004"
    assert "more than 10000 values" in problem.message


def test_secrets_and_values_from_the_environment_are_never_shown() -> None:
    """A wrong value that is a secret, or came from the environment, is not repeated in any message or repr."""
    text = MINIMAL + "server: {port: sk-very-secret-value}\nauth:\n  api_key_prefix: ${P}\nrate_limit:\n  store: ${S}\n"
    loaded = load_text(text, file="f", env={"P": "hidden prefix!", "S": "redis://:hunter2@redis"})
    shown = "".join(problems_of(loaded, {})) + repr(loaded)
    assert "AIA006" in shown
    for secret in ("very-secret", "hidden prefix", "hunter2"):
        assert secret not in shown
    good = load_text(MINIMAL + "rate_limit:\n  store: ${S}\n", file="f", env={"S": "redis://:hunter2@redis"})
    assert good.config is not None
    assert "hunter2" not in repr(good)
    engine = "backends:\n  v: {engine: {kind: vllm, env: {HF_TOKEN: '${S}'}}, models: [m]}\n"
    assert "hunter2" not in repr(load_text(engine, file="f", env={"S": "hunter2"}).config)


@pytest.mark.parametrize("line_end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_a_config_from_an_editor_on_windows_is_read(tmp_path: Path, line_end: str) -> None:
    """The file has a byte order mark and CR LF; places are those of the file."""
    file = tmp_path / "aiaas.yaml"
    file.write_bytes(("\ufeff" + MINIMAL).replace("\n", line_end).encode())
    assert load_file(file, {}).config is not None
    file.write_bytes(("\ufeffbogus: 1\n" + MINIMAL).replace("\n", line_end).encode())
    assert [(problem.line, problem.column) for problem in load_file(file, {}).problems] == [(1, 1)]


# -- several files -------------------------------------------------------------------------------------------------

BASE = """backends:
  v: {url: 'http://v:8000', models: [m, alias], timeout: 60s}
rate_limit:
  requests_per_minute: 10
kubernetes:
  labels: {team: a}
"""


def laid_over(*texts: str) -> Loaded:
    """The config of several texts: f0, f1, ..."""
    return load_texts([(f"f{index}", text) for index, text in enumerate(texts)], {"X": "hunter2"})


def test_a_later_file_wins_by_field() -> None:
    """Mappings merge, lists are replaced, null is a value, and what a file does not name stays."""
    over = "backends: {v: {models: [other], total_timeout: 5m}}\nrate_limit: {requests_per_minute: null}\n"
    config = laid_over(BASE, over, "kubernetes: {labels: {app: b}}\nbackends: {v: {total_timeout: 6m}}\n").config
    assert config is not None
    backend = config.backends["v"]
    assert (backend.url, backend.models, backend.timeout, backend.total_timeout) == (
        "http://v:8000",
        ("other",),
        60,
        360,
    )
    assert config.rate_limit.requests_per_minute is None
    assert config.kubernetes.labels == {"team": "a", "app": "b"}


def test_problems_name_the_file_that_wrote_the_field() -> None:
    """A replaced value is no longer reported; a missing field belongs to the file that has its section."""
    base = BASE + "server: {port: 0, workers: x}\n"
    over = "server:\n  port: 99999\n  foo: 1\nbackends:\n  w: {url: 'http://w'}\n  v:\n    models: [3, 4]\n"
    assert [f"{problem.file}:{problem.line} {problem.path}" for problem in laid_over(base, over).problems] == [
        "f0:7 server.workers",
        "f1:2 server.port",
        "f1:3 server.foo",
        "f1:5 backends.w.models",
        "f1:7 backends.v.models[0]",
        "f1:7 backends.v.models[1]",
    ]


def test_the_fields_as_written_are_those_of_all_files() -> None:
    """The ConfigMap is made of them, with `${NAME}` unresolved."""
    loaded = laid_over(BASE, "backends: {v: {url: 'http://${X}'}}\n")
    assert loaded.written["backends"]["v"] == {"url": "http://${X}", "models": ["m", "alias"], "timeout": "60s"}
    assert loaded.config is not None
    assert loaded.config.backends["v"].url == "http://hunter2"


@pytest.mark.parametrize(
    ("over", "found"),
    [
        ("", ["f1:1 AIA001"]),
        ("a: [", ["f1:1 AIA002"]),
        ("server: {port: 1, port: 2}\nfoo: 1\n", ["f1:1 AIA003", "f1:2 AIA101"]),
        ("backends: 3\n", ["f1:1 AIA103"]),
        ("- a\n", ["f1:1 AIA103"]),
    ],
    ids=["empty", "not YAML", "a field twice", "a section that is a number", "a list"],
)
def test_a_wrong_file_is_reported_by_its_name(over: str, found: list[str]) -> None:
    """Whichever of them it is."""
    loaded = laid_over(BASE, over)
    assert loaded.config is None
    assert [f"{problem.file}:{problem.line} {problem.code}" for problem in loaded.problems] == found


def test_a_config_map_may_lie_under_a_plain_file() -> None:
    """Its places are those of the outer file."""
    outer = "apiVersion: v1\nkind: ConfigMap\ndata:\n  config.yaml: |\n" + "".join(
        f"    {line}\n" for line in (BASE + "server: {port: 0}\n").splitlines()
    )
    [problem] = laid_over(outer, "kubernetes: {host: a.example.com}\n").problems
    assert (problem.file, problem.line, problem.path) == ("f0", 11, "server.port")


TEXTS = st.sampled_from(
    [BASE, "backends: {v: {models: [a]}}\n", "server: {port: 1}\n", "server: 3\n", "x: [\n", "null\n"]
)


@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_any_files_give_a_config_or_problems(texts: list[str]) -> None:
    """And each problem is in one of them."""
    loaded = laid_over(*texts)
    assert loaded.config is not None or loaded.problems
    assert {problem.file for problem in loaded.problems} <= {f"f{index}" for index in range(len(texts))}


@pytest.mark.parametrize("text", ["${X}", "'http://user:hunter2@host'", "value"])
def test_a_file_of_one_text_is_a_problem(text: str) -> None:
    """Without any field, and without showing the text."""
    loaded = load_text(text, file="f", env={"X": "hunter2"})
    assert loaded.config is None
    assert loaded.problems
    assert "hunter2" not in " ".join(map(str, loaded.problems))
