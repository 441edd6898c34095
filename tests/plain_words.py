"""Find turns of phrase that a colleague would not say aloud; `python -m tests.plain_words` is part of `nox -s lint`.

It reads docstrings, comments, string literals and the names of tests in Python files, and the Markdown pages without
their code. Each finding is one line: `path:line: words: what to write instead`.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
ROOTS: Final = (
    *("aiaas", "tests", "noxfile.py", "docs", "docker", "examples"),
    *("README.md", "CONTRIBUTING.md", "SECURITY.md"),
)
# `tests/plain_words.py` and its test contain an example of each bad phrase.
SKIP: Final = ("tests/plain_words.py", "tests/test_plain_words.py")
MAX_TEST_NAME: Final = 60
BAD_NAME: Final = re.compile(
    r"test_(?:what|who)_|_(?:is|are)_no_(?!longer|more)|_of_ours|_so_many|mended|_let_go|_the_world"
)
MAX_SUBJECT: Final = 72
SUBJECT: Final = re.compile(r"[a-z][\w ,./-]*: \S|Revert ")

# Where a sentence or a clause of its own begins.
START: Final = r"(?:\A|(?<=[.!?;:]\s)|(?<=\n\n)|(?<=\|\s))"
# The rest of a sentence that is not a question.
STATEMENT: Final = r"(?:[^.?!]|[.](?=\w)){0,300}?(?:[.!;]|:\s|\Z)"

NOUN: Final = "name the thing: a noun as subject, not a clause"
NOT: Final = "say 'not a …', 'returns None if …' or 'unknown'"

# A pattern, and what to write instead. A blank in a pattern stands for any white space, a line's end too.
PHRASES: Final[tuple[tuple[str, str], ...]] = (
    (START + r"(?:What|Who) " + STATEMENT, NOUN),
    (START + r"(?:what|who) (?:is|are|was|were|has) [^,.;:?|]{0,60}? (?:is|are|was|were|has|does|goes|stays) ", NOUN),
    (r"(?i)\bwho(?:so)?ever\b", "name the person or the part"),
    (r"\bnone of (?:ours|theirs|its)\b(?! \w)", "not one of our …"),
    (r"\b(?<!here\s)(?:is|are|was|were) none\b(?!-|, )", NOT),
    (r"\b(?<!here\s)(?:is|was) no (?!longer|more|less|fewer|better|worse|slower|faster|matter)[a-z]+", NOT),
    (r"\bso (?:much|many)(?= (?:of|as|is|are|at|stands?)\b|[.,;:])", "give the number, or say 'this length'"),
    (r"\b(?:for|in|after|within|every|these) so many\b", "give the number, or its constant's name"),
    (r"\b(?:is|are|was|be) not to be (?:had|found|seen|read|reached)\b", "cannot be read, is not available"),
    (r"\b(?:comes?|came) about\b", "happens, begins, is made"),
    (r"\blet(?:s|ting)? go of\b", "close, release, drop"),
    (r"\bthe world (?:was|is|stands)\b", "environment error"),
    (r"(?i)\bmend(?:s|ed|ing)?\b", "fix"),
    (r"(?i)\bcontract section|\bcapture \d", "state the fact; the document is not in this repository"),
    (r"(?i)\bthe open side\b", "the side that clients connect to"),
    (r"\bholds no \w+", "has no, does not contain"),
    (r"\bdoes without\b", "does not need, does not use"),
    (r"\bin (?:its|their) stead\b", "instead"),
)
RULES: Final = tuple((re.compile(pattern.replace(" ", r"\s+")), advice) for pattern, advice in PHRASES)


@dataclass(frozen=True)
class Text:
    """One docstring, string, block of comments or page, and the line on which it begins."""

    line: int
    words: str


def findings(text: Text) -> Iterator[tuple[int, str]]:
    """The line of each bad phrase with its words and the advice."""
    for pattern, advice in RULES:
        for match in pattern.finditer(text.words):
            words = " ".join(match.group().split())
            yield text.line + text.words.count("\n", 0, match.start()), f"{words[:70]!r}: {advice}"


def texts_of_python(source: str) -> Iterator[Text]:
    """Every string and block of comments of a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield Text(node.lineno, node.value)
    block: list[str] = []
    line = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if block and token.start[0] != line + len(block):
                yield Text(line, "\n".join(block))
                block = []
            line = line if block else token.start[0]
            block.append(token.string.strip("#:- "))
    if block:
        yield Text(line, "\n".join(block))


def texts_of_markdown(page: str) -> Iterator[Text]:
    """The page with its code blanked out, line for line."""
    blank = re.sub(r"(?ms)^ *(`{3,}).*?^ *\1", lambda match: "\n" * match.group().count("\n"), page)
    yield Text(1, re.sub(r"`[^`\n]*`", "`…`", blank))


def bad_test_names(source: str) -> Iterator[tuple[int, str]]:
    """The line and the name of each test that is too long or has a bad phrase in its name."""
    for node in ast.walk(ast.parse(source)):
        is_test = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
        if is_test and (len(node.name) > MAX_TEST_NAME or BAD_NAME.search(node.name)):
            yield node.lineno, f"{node.name}: subject_condition_result, at most {MAX_TEST_NAME} characters"


def bad_subjects(subjects: Iterable[str]) -> list[str]:
    """The commit subjects that are too long or do not begin with the area."""
    return [each for each in subjects if len(each) > MAX_SUBJECT or not SUBJECT.match(each)]


def subjects_since_this_check() -> list[str]:
    """The subjects of commits that follow the one which added this file; empty in a clone without history."""
    git = ("git", "log", "--no-merges")
    added = _lines(*git, "--diff-filter=A", "--format=%H", "--", "tests/plain_words.py")
    return _lines(*git, "--format=%s", "--ancestry-path", f"{added[-1]}..HEAD") if added else []


def _lines(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, check=True, cwd=ROOT, text=True).stdout.splitlines()


def judge(path: Path) -> list[str]:
    """Every finding in one file, by line."""
    source = path.read_text(encoding="utf-8")
    python = path.suffix == ".py"
    texts = texts_of_python(source) if python else texts_of_markdown(source)
    found = [each for text in texts for each in findings(text)]
    found += bad_test_names(source) if python else []
    return [f"{path.relative_to(ROOT).as_posix()}:{line}: {said}" for line, said in sorted(set(found))]


def files(roots: tuple[str, ...]) -> Iterator[Path]:
    """The Python files and Markdown pages in these folders and files."""
    for root in roots:
        path = ROOT / root
        inside = [path] if path.is_file() else sorted(path.rglob("*"))
        yield from (each for each in inside if each.suffix in (".py", ".md"))


def judge_all(roots: tuple[str, ...] = ROOTS) -> list[str]:
    """Every finding below these folders."""
    judged = (path for path in files(roots) if path.relative_to(ROOT).as_posix() not in SKIP)
    return [line for path in judged for line in judge(path)]


if __name__ == "__main__":
    lines = judge_all(tuple(sys.argv[1:]) or ROOTS)
    print("".join(f"{line}\n" for line in lines), end="")
    sys.exit(bool(lines))
