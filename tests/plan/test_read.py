"""File -> Plan in one call."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiaas.config.problem import has_errors
from aiaas.errors import EnvironmentFault
from aiaas.plan.read import read, read_plan

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = [path for path in sorted(FOLDER.glob("*.yaml")) if path.name != "keys.yaml"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_valid(path: Path) -> None:
    """Each example compiles without an error, and mentions each of its warnings."""
    names = ("HF_TOKEN", "PARTNER_KEY", "REDIS_PASSWORD", "VLLM_KEY")
    plan, problems = read_plan(path, dict.fromkeys(names, "a-secret") | {"REDIS_DATABASE": "2"})
    assert not has_errors(problems)
    text = path.read_text()
    assert [problem for problem in problems if problem.code not in text] == []
    assert plan is not None
    assert plan.source == path


def test_a_running_gateway_ignores_the_cluster(tmp_path: Path) -> None:
    """In a pod, `kubernetes` has the replicas alone: its defaults (class nginx) are nobody's choice."""
    path = tmp_path / "aiaas.yaml"
    path.write_text("backends:\n  a: {url: 'http://a', models: [m]}\nkubernetes: {replicas: {min: 9, max: 4}}\n")
    assert {problem.code for problem in read(path, {}).problems} >= {"AIA505", "AIA510"}
    reading = read(path, {}, deployed=False)
    assert reading.problems == ()
    assert reading.plan is not None


def test_accepted_warnings_are_apart(tmp_path: Path) -> None:
    """A gateway does not report them; `aiaas validate` shows them with their reason."""
    path = tmp_path / "aiaas.yaml"
    path.write_text("backends:\n  a: {url: 'http://a', models: [m]}\nauth: {enabled: false}\naccept: {AIA209: a lab}\n")
    reading = read(path, {})
    assert reading.problems == ()
    assert [problem.code for problem in reading.accepted_problems] == ["AIA209"]
    assert reading.plan is not None


def test_problems_of_text_and_checks_come_in_the_files_order(tmp_path: Path) -> None:
    """One list, sorted by line, whichever step found it; and no Plan."""
    path = tmp_path / "aiaas.yaml"
    path.write_text("backends:\n  a: {url: 'ftp://x', models: [m]}\nnonsense: 1\nauth: {enabled: false}\n")
    reading = read(path, {})
    assert reading.plan is None
    assert [(problem.line, problem.code) for problem in reading.problems] == [
        (2, "AIA203"),
        (3, "AIA101"),
        (4, "AIA209"),
    ]


def test_the_overrides_in_force_are_named(tmp_path: Path) -> None:
    """The Plan knows which environment variables changed it."""
    path = tmp_path / "aiaas.yaml"
    path.write_text("backends:\n  a: {url: 'http://x', models: [m]}\n")
    plan, _ = read_plan(path, {"LOG_LEVEL": "debug", "OTHER": "x"})
    assert plan is not None
    assert plan.overrides == ("LOG_LEVEL",)


def test_a_missing_file_raises(tmp_path: Path) -> None:
    """A missing file is not read."""
    with pytest.raises(EnvironmentFault):
        read_plan(tmp_path / "none.yaml", {})


def test_overlays_are_part_of_the_plan(tmp_path: Path) -> None:
    """It names all files; their relative paths begin at the first one's folder."""
    base, over = tmp_path / "aiaas.yaml", tmp_path / "over" / "prod.yaml"
    over.parent.mkdir()
    base.write_text("backends:\n  a: {url: 'http://x', models: [m]}\n")
    over.write_text("auth: {keys_file: team.yaml}\n")
    plan, problems = read_plan(base, {}, [over])
    assert (problems, has_errors(problems)) == ((), False)
    assert plan is not None
    assert (plan.source, plan.overlays, plan.files) == (base, (over,), (base, over))
    assert plan.auth.keys_file == tmp_path / "team.yaml"
    alone, _ = read_plan(base, {})
    assert alone is not None
    assert alone.files == (base,)


def test_digest_depends_on_settings_and_not_on_files(tmp_path: Path) -> None:
    """The same settings in one file and in two are the same Plan."""
    base, over, whole = (tmp_path / name for name in ("aiaas.yaml", "prod.yaml", "whole.yaml"))
    base.write_text("backends:\n  a: {url: 'http://x', models: [m]}\n")
    over.write_text("server: {port: 99}\n")
    whole.write_text(base.read_text() + over.read_text())
    laid, one = read(base, {}, overlays=[over]).plan, read(whole, {}).plan
    assert laid is not None
    assert one is not None
    assert (laid.digest, laid) == (one.digest, one)


def test_earlier_texts_take_the_place_of_the_files(tmp_path: Path) -> None:
    """One for each file, and a problem names the file that would have it."""
    files = [tmp_path / name for name in ("aiaas.yaml", "prod.yaml")]
    base = "backends:\n  a: {url: 'http://x', models: [m]}\n"
    plan = read(files[0], {}, (base, "server: {port: 99}\n"), overlays=files[1:]).plan
    assert plan is not None
    assert plan.server.port == 99
    (problem,) = read(files[0], {}, (base, "server: {port: no}\n"), overlays=files[1:]).problems
    assert (problem.file, problem.line) == (str(files[1]), 1)
