"""The fuzzer's findings stay found: the corpus, bytes near to it, and no reader that is slower than linear."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.errors import ClientError
from aiaas.openai import paths
from aiaas.openai.peek import peek
from aiaas.openai.splice import set_fields
from aiaas.openai.sse import EventSplitter
from aiaas.openai.toplevel import top_level
from aiaas.openai.usage import usage_of
from aiaas.openai.usagescan import UsageScan
from aiaas.proxy.upstream.usage_tap import split_events
from tests.cputime import cpu_time
from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).resolve().parent / "corpus"
INPUTS = [(path.parent.name, path) for path in sorted(CORPUS.glob("*/*"))]


@pytest.mark.parametrize(
    ("target", "path"), [pytest.param(target, path, id=f"{target}, {path.name}") for target, path in INPUTS]
)
def test_an_input_of_the_corpus_holds(target: str, path: Path) -> None:
    """Seeds, and all that ever failed."""
    TARGETS[target](path.read_bytes())


@pytest.mark.parametrize("target", TARGETS)
@given(data=st.data())
def test_bytes_near_to_the_corpus_hold(target: str, data: st.DataObject) -> None:
    """A plain mutation of the seeds, for machines without the fuzzer."""
    seeds = [path.read_bytes() for name, path in INPUTS if name == target]
    text = data.draw(st.sampled_from(seeds))
    for _ in range(data.draw(st.integers(1, 4))):
        at, wide = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 4))
        piece = data.draw(
            st.binary(max_size=4) | st.sampled_from([*seeds, b'"model"', b"\\u006d", b"\r\n", b"\n\n", b"{", b"]"])
        )
        text = text[:at] + piece[:200] + text[at + wide :]
    TARGETS[target](text)


def _prompts(body: bytes) -> object:
    return peek(body, paths.COMPLETIONS)


def _with_model(body: bytes) -> object:
    return set_fields(body, {"model": b"1"})


def _in_pieces(data: bytes) -> object:
    splitter = EventSplitter()
    return [splitter.feed(data[at : at + 64]) for at in range(0, len(data), 64)]


def _events(data: bytes) -> object:
    return EventSplitter().feed(data)


def _usage(data: bytes) -> object:
    return usage_of(b'data: "usage"\n' + data)


def _scan(data: bytes) -> object:
    scan = UsageScan()
    for at in range(0, len(data), 8192):
        scan.feed(data[at : at + 8192])
        assert len(scan._rest) < 16
    return scan.usage


# A reader; what stands before, again and again, and behind.
REPEATED: dict[str, tuple[Callable[[bytes], object], bytes, bytes, bytes]] = {
    "backslashes in a prompt": (_prompts, b'{"model":"m","prompt":["', b"\\\\", b'"]}'),
    "escaped quotes in a prompt": (_prompts, b'{"model":"m","prompt":["', b'\\"', b'"]}'),
    "texts in a prompt": (_prompts, b'{"model":"m","prompt":["', b'","', b'"]}'),
    "escapes that hide nothing": (_prompts, b'{"model":"m","x":"', b"\\u0061", b'"}'),
    "brackets in a text": (_prompts, b'{"model":"m","x":"', b"[{", b'"}'),
    "the key's name in a text": (_with_model, b'{"x":"', b'\\"model\\"', b'","model":"m"}'),
    "blanks before the key": (_with_model, b'{"x":{"model":1},', b" ", b'"model":"m"}'),
    "quotes and commas in a value": (top_level, b'{"x":"', b'\\",\\"', b'"}'),
    "an event without an end, in pieces": (_in_pieces, b"data: ", b"x", b""),
    "CRs": (_events, b"", b"\r", b""),
    "lines that end with CR LF": (_events, b"", b"a\r\n", b""),
    "one event of many lines": (_usage, b"", b"data: x\n", b"\n"),
    "many usages": (_scan, b'{"a":[', b'{"usage":1},', b"]}"),
    "usages as values": (_scan, b'{"a":[', b'"usage",', b"]}"),
    "usages behind an escaped quote": (_scan, b'{"a":"', b'\\"usage" ', b'"}'),
    "many braces behind a usage": (_scan, b'{"usage":', b'{"a":', b""),
    "backslashes in an answer": (_scan, b'{"a":"', b"\\\\", b'"}'),
    "log probabilities": (_scan, b'{"a":[', b'{"1":{"logprob":-1.5,"decoded_token":"x"}},', b"]}"),
    "empty events": (split_events, b"", b"\n", b""),
}


@pytest.mark.parametrize(("read", "before", "again", "behind"), REPEATED.values(), ids=REPEATED)
def test_no_reader_is_slower_than_linear(
    read: Callable[[bytes], object], before: bytes, again: bytes, behind: bytes
) -> None:
    """Sixteen times the bytes take far less than 256 times the time, as they would were it quadratic."""

    def seconds(size: int) -> float:
        data = before + again * (size // len(again)) + behind

        def work() -> None:
            with contextlib.suppress(ClientError):
                read(data)

        return cpu_time(work)

    assert seconds(400_000) < 80 * seconds(25_000) + 0.002
