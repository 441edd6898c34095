"""aiaas.proxy.telemetry.log: one JSON line each, whatever the reader does; and docs/logs.md describes
each of them."""

import asyncio
import fcntl
import json
import logging
import os
import re
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from aiaas.proxy.telemetry.log import BACKLOG_LIMIT, FLUSH_INTERVAL, FdWriter, JsonLog, LibraryLog
from aiaas.proxy.telemetry.record import Record, Resumption
from aiaas.proxy.telemetry.trace import Trace

ROOT = Path(__file__).parents[3]
FIELDS = [
    "time", "level", "event", "request_id", "user", "key_id", "model", "backend", "upstream", "endpoint", "status",
    "error_code", "reason", "class", "stream", "input_tokens", "output_tokens", "cached_tokens",
    "duration_seconds", "ttft_seconds", "queue_seconds", "retries", "session_turn", "request_bytes", "response_bytes",
    "ended_by", "client_address",
]  # fmt: skip


def lines_of(blocks: list[bytes]) -> list[dict[str, Any]]:
    """The written bytes, decoded."""
    return [json.loads(line) for line in b"".join(blocks).splitlines()]


RESUMED = [
    "resumed",
    "resume_outcome",
    "resume_way",
    "resume_reason",
    "resume_gap_seconds",
    "first_upstream",
]


def new_log(level: str = "info") -> tuple[JsonLog, list[bytes]]:
    """A log into a list, at 2026-11-23T07:16:08.250Z."""
    blocks: list[bytes] = []
    return JsonLog(blocks.append, lambda: 1_795_418_168.25, level), blocks


def test_a_request_is_one_line_with_all_its_fields() -> None:
    """In the order of docs/logs.md, times rounded to the microsecond."""
    log, blocks = new_log()
    log.request(Record("id", "/v1/x", 0.0, "1.2.3.4", status=200, ttft=0.12345678), 1.23456789)
    log.flush()
    (line,) = lines_of(blocks)
    assert list(line) == FIELDS
    assert (line["time"], line["level"], line["event"]) == ("2026-11-23T07:16:08.250Z", "info", "inference_request")
    assert (line["duration_seconds"], line["ttft_seconds"], line["user"]) == (1.234568, 0.123457, None)
    assert blocks[0].endswith(b"\n")


def test_a_traced_request_names_its_trace() -> None:
    """As the last field; without a trace it is not there."""
    log, blocks = new_log()
    log.request(Record("id", "/v1/x", 0.0, "1.2.3.4", trace=Trace("a" * 32, None, "", False, "b" * 16, "")), 0.0)
    log.flush()
    (line,) = lines_of(blocks)
    assert list(line.items())[len(FIELDS) :] == [("trace_id", "a" * 32)]


@pytest.mark.parametrize(("level", "count"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_less_important_lines_are_left_out(level: str, count: int) -> None:
    """Requests are logged at level info."""
    log, blocks = new_log(level)
    for one in ("debug", "warning", "error"):
        log.event(one, "x")
    log.request(Record("id", "/v1/x", 0.0, "1.2.3.4"), 0.0)
    log.flush()
    assert len(lines_of(blocks)) == count


def test_values_unknown_to_json_are_written() -> None:
    """A log must not fail: surrogates, objects, exceptions."""
    log, blocks = new_log()
    log.event("error", "x", text="a\udcff\n", path=Path("/x"), error=ZeroDivisionError("y"))
    log.flush()
    (line,) = lines_of(blocks)
    assert line["text"] == "a\\udcff\n"
    assert "/x" in line["path"]
    assert line["error"] == "ZeroDivisionError('y')"


def test_lines_beyond_the_backlog_are_dropped_and_counted() -> None:
    """The next line that is written says how many."""
    log, blocks = new_log()
    line = "x" * 1_000_000
    for _ in range(BACKLOG_LIMIT // len(line) + 6):
        log.event("info", "big", text=line)
    log.flush()
    log.event("info", "after")
    log.flush()
    events = [line["event"] for line in lines_of(blocks)]
    dropped = next(line["lines"] for line in lines_of(blocks) if line["event"] == "log_lines_lost")
    assert events.count("big") + dropped == BACKLOG_LIMIT // len(line) + 6
    assert dropped > 0
    assert events[-1] == "after"


async def test_a_write_that_failed_is_counted_as_lost() -> None:
    """The disk was full for a while."""
    blocks: list[bytes] = []
    full = True

    def write(data: bytes) -> bool:
        if not full:
            blocks.append(data)
        return not full

    log = JsonLog(write, time.time, "info")
    task = asyncio.create_task(log.flush_forever())
    for _ in range(3):
        log.event("info", "x")
    await asyncio.sleep(2 * FLUSH_INTERVAL)
    full = False
    await asyncio.sleep(2 * FLUSH_INTERVAL)
    task.cancel()
    assert [(line["event"], line.get("lines")) for line in lines_of(blocks)] == [("log_lines_lost", 3)]


async def test_lines_of_a_thread_that_never_began_are_not_lost() -> None:
    """The process ends while all threads are busy: the line of the last request was missing once."""
    blocks: list[bytes] = []
    go_on = threading.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    busy = loop.run_in_executor(None, go_on.wait)
    log = JsonLog(lambda data: blocks.append(data) or True, time.time, "info")
    task = asyncio.create_task(log.flush_forever())
    log.event("info", "first")
    await asyncio.sleep(2 * FLUSH_INTERVAL)
    log.event("info", "second")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    log.flush()
    log.flush()
    go_on.set()
    await busy
    assert [line["event"] for line in lines_of(blocks)] == ["first", "second"]


def test_behind_a_line_that_a_full_disk_cut_begins_a_new_one(tmp_path: Path) -> None:
    """The cut line cannot be saved; the next one is whole."""
    script = """
import resource, sys
from aiaas.proxy.telemetry.log import FdWriter

writer = FdWriter(1)
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (15, most))
results = [writer(b"first line\\nsecond line\\n")]
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
results += [writer(b"third line\\n"), writer(b"fourth line\\n")]
assert results == [False, True, True]
"""
    with (tmp_path / "log").open("wb") as file:
        subprocess.run([sys.executable, "-c", script], stdout=file, timeout=20, check=True)
    assert (tmp_path / "log").read_text() == "first line\nseco\nthird line\nfourth line\n"


def test_stopped_reader_is_waited_for_until_the_deadline() -> None:
    """Not a byte is lost to a reader that goes on; one that does not is given up soon after `hurry`."""
    read_end, write_end = os.pipe()
    writer = FdWriter(write_end)
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(writer(b"x" * 1_000_000)))
    thread.start()
    got = 0
    while got < 1_000_000:
        got += len(os.read(read_end, 65536))
    thread.join(5)
    assert results == [True]
    thread = threading.Thread(target=lambda: results.append(writer(b"x" * 1_000_000)))
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    writer.hurry(0.1)
    thread.join(2)
    assert results == [True, False]
    os.close(read_end)
    assert writer(b"x") is False
    os.close(write_end)


def test_pieces_are_as_large_as_cannot_block(tmp_path: Path) -> None:
    """All of it into a file, half a buffer into an empty pipe, PIPE_BUF into a pipe whose reader is behind."""
    read_end, write_end = os.pipe()
    writer = FdWriter(write_end)
    assert writer._piece() == fcntl.fcntl(write_end, fcntl.F_GETPIPE_SZ) // 2 > select.PIPE_BUF
    os.write(write_end, b"x")
    assert writer._piece() == select.PIPE_BUF
    os.read(read_end, 1)
    assert writer._piece() > select.PIPE_BUF
    os.close(read_end)
    os.close(write_end)
    with (tmp_path / "log").open("wb") as file:
        assert FdWriter(file.fileno())._piece() > 16 * 1024 * 1024
    one, other = socket.socketpair()
    with one, other:
        assert FdWriter(one.fileno())._piece() == select.PIPE_BUF


def test_library_log_record_is_a_line_with_its_traceback() -> None:
    """From level warning up."""
    log, blocks = new_log()
    logger = logging.getLogger("some.library")
    logger.addHandler(handler := LibraryLog(log))
    try:
        logger.info("no")
        logger.warning("careful: %d", 1)
        try:
            raise ZeroDivisionError("oh")
        except ZeroDivisionError:
            logger.exception("it broke")
    finally:
        logger.removeHandler(handler)
    log.flush()
    first, second = lines_of(blocks)
    assert (first["level"], first["logger"], first["message"]) == ("warning", "some.library", "careful: 1")
    assert (second["level"], second["message"]) == ("error", "it broke")
    assert "ZeroDivisionError: oh" in second["traceback"]


# -- docs/logs.md --------------------------------------------------------------------------------------------------

MANUAL = (ROOT / "docs" / "logs.md").read_text()


def test_stream_that_broke_off_has_fields_of_its_own() -> None:
    """Behind all others; those without a value are absent."""
    lines: list[bytes] = []
    log = JsonLog(lines.append, lambda: 0.0, "info")
    record = Record("r", "/v1/chat/completions", 0.0, "a")
    record.resumption = Resumption("http://a", way="continue", outcome="differs", reason="thinking", gap=0.25)
    log.request(record, 1.0)
    record.resumption = Resumption("http://a")
    log.request(record, 1.0)
    log.flush()
    whole, left = map(json.loads, b"".join(lines).splitlines())
    assert list(whole.items())[len(FIELDS) :] == [
        ("resumed", 0),
        ("resume_outcome", "differs"),
        ("resume_way", "continue"),
        ("resume_reason", "thinking"),
        ("resume_gap_seconds", 0.25),
        ("first_upstream", "http://a"),
    ]
    assert {name: left[name] for name in RESUMED if name in left} == {
        "resumed": 0,
        "resume_outcome": "client_left",
        "first_upstream": "http://a",
    }


def test_the_manual_has_every_field_of_a_request() -> None:
    """In the order in which the fields are written."""
    table = MANUAL.partition("## Requests")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [*FIELDS, "trace_id", *RESUMED]


def test_the_manual_has_every_event() -> None:
    """Each name that the code logs, and no other."""
    named: set[str] = set()
    for file in [*(ROOT / "aiaas" / "proxy").rglob("*.py"), ROOT / "aiaas" / "cli" / "gateway.py"]:
        text = file.read_text()
        named |= set(re.findall(r'\.event\(\s*"?[^,]+?"?,\s*"(\w+)"', text))
        named |= {word for pair in re.findall(r'"(endpoint_up)" if up else "(endpoint_down)"', text) for word in pair}
    named |= {"log_lines_lost", "engine", "models_disagree", "models_unknown", "traces_not_exported", "traces_refused"}
    named -= {"info", "warning"}
    table = MANUAL.partition("## Other events")[2]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == named


# -- several processes ---------------------------------------------------------------------------------------------

WRITER = """
import sys
from aiaas.proxy.telemetry.log import FdWriter
writer = FdWriter(1, int(sys.argv[1]))
line = sys.argv[2].encode() * 9_999 + b"\\n"
sys.stdin.read()
for _ in range(60):
    assert writer(line * 2 + b"short\\n")
"""


def test_lines_of_several_processes_never_mix() -> None:
    """Also lines that are longer than a pipe writes in one piece."""
    read_end, write_end = os.pipe()
    with tempfile.TemporaryFile() as lock:
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(lock.fileno()), letter],
                stdin=subprocess.PIPE,
                stdout=write_end,
                pass_fds=[lock.fileno()],
            )
            for letter in "ab"
        ]
        os.close(write_end)
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.close()
        with open(read_end, "rb") as reader:
            lines = reader.read().splitlines()
        assert [writer.wait(10) for writer in writers] == [0, 0]
    assert sorted(set(lines)) == [b"a" * 9_999, b"b" * 9_999, b"short"]
    assert len(lines) == 2 * 60 * 3


def test_hurried_writer_does_not_wait_for_another_processs_lock() -> None:
    """The writer gives up, as for a reader that does not read; the lock of a process that died is free."""
    holder = "import fcntl, sys, time; fcntl.lockf(int(sys.argv[1]), fcntl.LOCK_EX); print(flush=True); time.sleep(60)"
    with tempfile.TemporaryFile() as lock, open(os.devnull, "wb") as nowhere:
        with subprocess.Popen(
            [sys.executable, "-c", holder, str(lock.fileno())], pass_fds=[lock.fileno()], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            writer = FdWriter(nowhere.fileno(), lock.fileno())
            writer.hurry(0.05)
            assert writer(b"line\n") is False
            process.kill()
            process.wait(10)
        assert FdWriter(nowhere.fileno(), lock.fileno())(b"line\n") is True
