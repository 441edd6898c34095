"""`aiaas init`: a starter config that validates, and that never overwrites."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiaas.cli.main import run
from aiaas.plan.read import read_plan


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AIAAS_CONFIG", raising=False)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--url", "http://[::1]:8000/base", "--model", "Qwen/Qwen3-0.6B"],
        ["--model", 'a "b": #c'],
        ["--model", "true"],
    ],
    ids=["as it is", "url and model", "a model that needs quotes", "a model that YAML takes for a flag"],
)
def test_the_starter_is_valid(arguments: list[str]) -> None:
    """The written config compiles without a problem and holds the address and the model that were given."""
    assert run(["init", *arguments]) == 0
    plan, problems = read_plan(Path("aiaas.yaml"), {})
    assert problems == ()
    assert plan is not None
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert plan.backends[0].endpoints[0].url == given.get("--url", "http://localhost:8000")
    assert plan.backends[0].served_models == (given.get("--model", "my-model"),)


def test_further_models_are_aliases() -> None:
    """The first --model is vLLM's, the others are aliases for it; a repeated one counts once."""
    arguments = ["--model", "Qwen/Qwen3-0.6B", "--model", "small", "--model", "off", "--model", "small"]
    assert run(["init", *arguments]) == 0
    plan, problems = read_plan(Path("aiaas.yaml"), {})
    assert problems == ()
    assert plan is not None
    assert plan.backends[0].served_models == ("Qwen/Qwen3-0.6B",)
    assert {model.name for model in plan.models} == {"Qwen/Qwen3-0.6B", "small", "off"}


def test_the_commented_alternatives_are_valid_too() -> None:
    """Each commented line of the starter, put in place of url, is a config that compiles."""
    assert run(["init"]) == 0
    lines = Path("aiaas.yaml").read_text().splitlines()
    url = next(index for index, line in enumerate(lines) if line.startswith("    url:"))
    alternatives = [line.replace("# ", "", 1) for line in lines if "instead of url" in line]
    assert len(alternatives) == 3
    for number, alternative in enumerate(alternatives):
        path = Path(f"{number}.yaml")
        path.write_text("\n".join([*lines[:url], alternative, *lines[url + 1 :]]))
        assert read_plan(path, {})[1] == ()


def test_the_next_steps_are_told_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """stdout stays empty; stderr names the file and the next commands, with the option they need."""
    assert run(["init", "-c", "my.yaml"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("wrote my.yaml; now:\n")
    assert "aiaas validate -c my.yaml" in err
    assert "aiaas serve -c my.yaml" in err


def test_an_existing_file_stays_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """A second run changes nothing and says so with exit code 1."""
    Path("aiaas.yaml").write_text("mine")
    assert run(["init"]) == 1
    assert Path("aiaas.yaml").read_text() == "mine"
    assert capsys.readouterr().err == "aiaas: aiaas.yaml exists and is left as it is; name another file with --config\n"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--url", "vllm:8000"], 2, "--url must start with http://"),
        (["--model", "a\nb"], 2, "--model must be the name of a model"),
        (["--kubernetes", "a b"], 2, "--kubernetes must be a host name"),
        (["-c", "none/aiaas.yaml"], 3, "the folder does not exist"),
    ],
    ids=["bad address", "bad model", "bad public name", "no such folder"],
)
def test_failed_write_is_one_line(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bad arguments are exit code 2, a folder that is missing is 3; nothing is written."""
    assert run(["init", *arguments]) == code
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
    assert not Path("aiaas.yaml").exists()


def test_the_starter_for_a_cluster_is_valid_and_renders(capsys: pytest.CaptureFixture[str]) -> None:
    """Pods listen on all addresses; the next step that it names is the one that deploys."""
    arguments = ["--kubernetes", "api.example.com", "--url", "http://vllm.default:8000", "--model", "m"]
    assert run(["init", "-c", "cluster.yaml", *arguments]) == 0
    assert "  4. aiaas render -c cluster.yaml | kubectl apply -f -" in capsys.readouterr().err
    assert run(["keys", "create", "alice", "-c", "cluster.yaml"]) == 0
    assert run(["validate", "-c", "cluster.yaml"]) == 0
    assert run(["render", "-c", "cluster.yaml", "--only", "Ingress"]) == 0
    assert "host: api.example.com" in capsys.readouterr().out
