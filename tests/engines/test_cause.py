"""aiaas.engines.cause: the one line that names the cause, out of vLLM 0.32's own output (frames and banners cut)."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiaas.engines.cause import HIDDEN, LONGEST_CAUSE, RECENT, CauseFinder, hide, secrets_of

TRANSCRIPTS = Path(__file__).parent / "transcripts"


def cause_of(text: str, since: float = 0.0) -> str:
    """The cause found for an engine that wrote these lines at once and died."""
    finder = CauseFinder()
    for line in text.splitlines():
        if line.strip():
            finder.read(line, 1.0)
    return finder.cause(since)


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("wrong-model", "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached snapshot"),
        (
            "no-weights",
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig Value error, In",
        ),
        ("bad-argument", "vllm: error: unrecognized arguments: --no-such-option 3"),
        ("bad-value", "vllm serve: error: argument --max-model-len: invalid human_readable_int_or_auto value: 'many'"),
        ("dtype", "vllm serve: error: argument --dtype: invalid choice: 'float99' (choose from"),
        (
            "max-model-len",
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig Value error, "
            "User-specified max_model_len (999999) is greater than the derived max_model_len",
        ),
        ("core-killed", "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue."),
        ("port-taken", "OSError: [Errno 98] Address already in use"),
        ("kv-cache", "ValueError: Available memory on node 0 (7.05/11.84 GiB) on kv cache allocation is less than"),
        (
            "tensor-parallel",
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig Value error, "
            "Cannot find the config file for awq",
        ),
    ],
)
def test_the_cause_is_what_vllm_said_first(name: str, cause: str) -> None:
    """Not the last line of the cascade, which says "see root cause above"."""
    found = cause_of((TRANSCRIPTS / f"{name}.txt").read_text())
    assert found.startswith(cause)
    assert len(found) <= LONGEST_CAUSE


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        pytest.param("", "", id="nothing"),
        pytest.param("loading\nSegmentation fault", "Segmentation fault", id="only a last line"),
        pytest.param("(A pid=1) ERROR 11-26 23:37:11 [x.py:3] it broke\nbye", "it broke", id="an ERROR line"),
        pytest.param("ERROR 11-26 23:37:11 [x.py:3] it broke\nTraceback (most recent call last):\n  File\nKeyError: 3",
                     "KeyError: 3", id="an exception before an ERROR line"),
        pytest.param("Traceback (most recent call last):\n  File", "Traceback (most recent call last):",
                     id="killed within a traceback"),
        pytest.param("(A pid=1) Traceback (most recent call last):\n(B pid=2) ValueError: of another\n"
                     "(A pid=1)   File\n(A pid=1) ValueError: mine", "ValueError: mine", id="two processes at once"),
        pytest.param("Traceback (most recent call last):\n  File\nValueError: cause\n\n"
                     "The above exception was the direct cause of the following exception:\n\n"
                     "Traceback (most recent call last):\n  File\nRuntimeError: effect",
                     "ValueError: cause", id="a chain"),
        pytest.param("Traceback (most recent call last):\n  File\nValueError: x\nbye\n  indented", "ValueError: x",
                     id="what is indented later"),
    ],
)  # fmt: skip
def test_a_cause_is_found_in_whatever_an_engine_writes(text: str, cause: str) -> None:
    """An engine may be any program."""
    assert cause_of(text) == cause


def test_an_old_traceback_is_not_the_cause() -> None:
    """The traceback belonged to a request a week ago; the engine went on."""
    finder = CauseFinder()
    for line in ("Traceback (most recent call last):", "  File", "ValueError: of a request"):
        finder.read(line, 100.0)
    finder.read("out of memory", 1000.0)
    assert finder.cause(1000.0 - RECENT) == "out of memory"
    assert finder.cause(0.0) == "ValueError: of a request"


def test_a_flood_of_errors_is_bounded() -> None:
    """The first of the last errors."""
    finder = CauseFinder()
    for number in range(100_000):
        finder.read(f"ERROR 11-26 23:37:11 [x.py:3] number {number}", 1.0)
    assert finder.cause(0.0) == f"number {100_000 - 64}"


def test_secrets_are_known_by_their_names() -> None:
    """As options, with either spelling, and as variables; short values are no secrets."""
    args = ("--api-key", "sk-one-1", "sk-two-2", "--hf-token=hf-three", "--max-model-len", "4096000", "--ssl-keyfile=k")
    env = {"HF_TOKEN": "hf-four", "LOG_LEVEL": "verbose-debug", "MY_PASSWORD": "five-5555", "X_KEY": "ab"}
    assert set(secrets_of(args, env)) == {"sk-one-1", "sk-two-2", "hf-three", "hf-four", "five-5555"}


def test_hidden_secrets_do_not_show_in_part() -> None:
    """One secret may begin like another."""
    secrets = secrets_of((), {"A_KEY": "secret", "B_KEY": "secret-longer"})
    assert hide("secret-longer and secret", secrets) == f"{HIDDEN} and {HIDDEN}"
