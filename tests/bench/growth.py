"""Measure growth with the models, the keys and the rows of usage: time, memory, and the gap that a reload leaves.

    python -m tests.bench.growth                # all tables; or some of: models keys usage scrapes bodies

Each row starts a gateway (`aiaas serve`) or runs a command. A gap is the longest time that a client waited for an
answer of /health while a reload, a scrape or a large request ran; it asks all the time on one connection. A stream
stands still for as long. The table has the median of RELOADS of them, and beside it the gap of the same time without
one, which shows how busy the machine is. Compare the rows of one run with each other.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from aiaas.keys.format import make_key
from aiaas.keys.hashing import digest_key
from aiaas.keys.model import KeyRecord
from aiaas.keys.records import render_records
from aiaas.limits.usage import UsageKey, UsageSums, day_of
from aiaas.limits.usage_sqlite import SqliteUsage
from tests.bench import process
from tests.ports import free_port

MODELS: Final = (500, 1_000, 2_000, 5_000)
KEYS: Final = (5_000, 20_000)
ROWS: Final = (2_000, 16_000)
USED_KEYS: Final = (1_000, 10_000, 50_000)
BODIES: Final = (1, 4, 8)  # MiB
RELOADS: Final = 5
PATIENCE: Final = 30.0  # seconds for one reload
AFTERWARDS: Final = 0.05  # seconds after its log line in which a reload still counts: it frees the old Plan
PAUSE: Final = 0.001  # seconds between two requests
QUESTION: Final = b"GET /health HTTP/1.1\r\nHost: aiaas\r\n\r\n"
MIB: Final = 1024 * 1024


class Served:
    """A running gateway and one connection to it."""

    def __init__(self, pid: int, sock: socket.socket, log: Path, start: float) -> None:
        self.pid = pid
        self.start = start  # seconds from its command to its first answer
        self._sock = sock
        self._log = log

    def gap(self, until: Callable[[], bool]) -> float:
        """The longest wait for an answer, in seconds, until `until` holds."""
        longest, began = 0.0, time.perf_counter()
        while not until():
            asked = time.perf_counter()
            self._sock.sendall(QUESTION)
            self._sock.recv(65536)
            longest = max(longest, time.perf_counter() - asked)
            if asked - began > PATIENCE:
                raise process.NotStartedError(f"no reload: {self._log.read_text()[-1000:]}")
            time.sleep(PAUSE)
        return longest

    def reload_gap(self, event: str) -> tuple[float, float]:
        """Reload the changed files; the gap until `event` is logged, and the time that it took, in seconds."""
        seen, began = self._count(event), time.perf_counter()
        os.kill(self.pid, signal.SIGHUP)
        longest = self.gap(lambda: self._count(event) > seen)
        took = time.perf_counter() - began
        return max(longest, self.gap(_after(AFTERWARDS))), took

    def peak(self) -> float:
        """The most memory that it has had, in MiB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def _count(self, event: str) -> int:
        return self._log.read_bytes().count(f'"{event}"'.encode())


@contextmanager
def serving(folder: Path, config: dict[str, Any]) -> Iterator[Served]:
    """A gateway with this config, on any core."""
    file, port = folder / "aiaas.yaml", config["server"]["port"]
    write_config(file, config)
    command = [sys.executable, "-m", "aiaas", "serve", "-c", str(file)]
    began = time.perf_counter()
    with process.started(command, os.cpu_count() or 1, folder, "aiaas", {}) as child:
        process.wait_for_answer(port, QUESTION, child, folder, "aiaas")
        start = time.perf_counter() - began
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
            yield Served(child.pid, sock, folder / "aiaas.out", start)


def write_config(file: Path, config: dict[str, Any]) -> None:
    """JSON is YAML; in one step, so that no half of it is read."""
    new = file.with_suffix(".new")
    new.write_text(json.dumps(config, indent=0))
    new.replace(file)


def config_of(models: Sequence[str], **auth: object) -> dict[str, Any]:
    """A config with these models in one backend, which is not there."""
    return {
        "server": {"host": "127.0.0.1", "port": free_port()},
        "auth": auth,
        "monitoring": {"prometheus": False, "admin_port": 0},
        "backends": {"vllm": {"url": "http://127.0.0.1:9", "models": list(models)}},
    }


def models_row(folder: Path, count: int) -> list[str]:
    """Start, reload and memory with this number of names in one backend."""
    config = config_of([f"org/model-{index:05d}" for index in range(count)], enabled=False)
    with serving(folder, config) as served:
        at_start, reloads = served.peak(), []
        for index in range(RELOADS):
            config["backends"]["vllm"]["timeout"] = f"{100 + index}s"
            config["backends"]["vllm"]["models"][-1] = f"org/new-{index}"
            write_config(folder / "aiaas.yaml", config)
            reloads.append(served.reload_gap("config_reloaded"))
        return _row(count, served, reloads, [f"{at_start:.0f}", f"{served.peak():.0f}"])


def keys_row(folder: Path, count: int) -> list[str]:
    """Start, reload and memory with this number of keys; then add one key by the command line."""
    file, now = folder / "keys.yaml", datetime.now(UTC)
    made = [make_key("sk-", os.urandom) for _ in range(count)]
    records = [KeyRecord(key.key_id, f"user-{index}", digest_key(key.text), now) for index, key in enumerate(made)]
    file.write_text(render_records(records))
    with serving(folder, config_of(["m"], enabled=True, keys_file=str(file))) as served:
        at_start, reloads = served.peak(), []
        for index in range(RELOADS):
            file.write_text(render_records(records[index + 1 :]))
            reloads.append(served.reload_gap("keys_loaded"))
        memory = [f"{at_start:.0f}", f"{served.peak():.0f}"]
        row = _row(count, served, reloads, memory)
    return [*row, _seconds("keys", "create", "one-more", "--keys-file", str(file))]


def usage_row(folder: Path, count: int) -> list[str]:
    """Show this number of rows of usage."""
    config = config_of(["m"], enabled=False)
    config["monitoring"]["usage_file"] = str(folder / "usage.sqlite")
    write_config(folder / "aiaas.yaml", config)
    rows = {
        UsageKey(day_of(time.time()), f"key{index:05d}", "org/model"): UsageSums(f"user-{index}", 1, 2, 3)
        for index in range(count)
    }

    async def fill() -> None:
        store = SqliteUsage(folder / "usage.sqlite")
        await store.add("batch", rows)
        await store.close()

    asyncio.run(fill())
    return [f"{count:,}", _seconds("usage", "-c", str(folder / "aiaas.yaml"))]


def scrapes_row(folder: Path, count: int) -> list[str]:
    """Scrape the metrics of a gateway that has served this number of keys."""
    file, now, port = folder / "keys.yaml", datetime.now(UTC), free_port()
    made = [make_key("sk-", os.urandom) for _ in range(count)]
    file.write_text(render_records([KeyRecord(key.key_id, key.key_id, digest_key(key.text), now) for key in made]))
    config = config_of(["m"], enabled=True, keys_file=str(file))
    config["monitoring"] = {"metrics_port": port, "admin_port": 0, "log_level": "error"}
    with serving(folder, config) as served:
        with socket.create_connection(("127.0.0.1", config["server"]["port"]), timeout=PATIENCE) as sock:
            for key in made:
                sock.sendall(_post(b'{"model":"unknown"}', f"Authorization: Bearer {key.text}\r\n"))
                sock.recv(65536)
        return [f"{count:,}", *_gaps(served, port, b"GET /metrics HTTP/1.1\r\nHost: aiaas\r\n\r\n")]


def bodies_row(folder: Path, mib: int) -> list[str]:
    """Send a request with a body of this size, for a model that does not exist."""
    config = config_of(["m"], enabled=False)
    config["server"]["max_body_size"] = "16MiB"
    body = json.dumps({"model": "unknown", "messages": [{"role": "user", "content": 'say "this"\n' * (mib * 70_000)}]})
    with serving(folder, config) as served:
        return [str(mib), *_gaps(served, config["server"]["port"], _post(body.encode(), "Connection: close\r\n"))]


def _post(body: bytes, lines: str) -> bytes:
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: aiaas\r\nContent-Type: application/json\r\n"
    return f"{head}{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _gaps(served: Served, port: int, request: bytes) -> list[str]:
    """Send `request` RELOADS times, each on a connection that its answer ends; the time of one, its gap, and the gap
    of a quiet gateway."""
    took, gaps = [], []

    def ask() -> None:
        began = time.perf_counter()
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
            sock.sendall(request)
            while sock.recv(1024 * 1024):
                pass
        took.append(time.perf_counter() - began)

    for _ in range(RELOADS):
        asking = threading.Thread(target=ask)
        asking.start()
        gaps.append(served.gap(lambda thread=asking: not thread.is_alive()))  # type: ignore[misc]
    time_taken, gap = statistics.median(took), statistics.median(gaps)
    return [f"{value * 1000:.0f}" for value in (time_taken, gap, served.gap(_after(time_taken)))]


def _row(count: int, served: Served, reloads: Sequence[tuple[float, float]], memory: list[str]) -> list[str]:
    gap, took = (statistics.median(values) for values in zip(*reloads, strict=True))
    quiet = served.gap(_after(took + AFTERWARDS))
    return [f"{count:,}", f"{served.start:.2f}", f"{took:.2f}", f"{gap * 1000:.0f}", f"{quiet * 1000:.0f}", *memory]


def _after(seconds: float) -> Callable[[], bool]:
    ends = time.perf_counter() + seconds
    return lambda: time.perf_counter() > ends


def _seconds(*command: str) -> str:
    """Run `aiaas` with these arguments."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "aiaas", *command], check=True, capture_output=True)
    return f"{time.perf_counter() - began:.2f}"


_GATEWAY: Final = ("start s", "reload s", "reload gap ms", "quiet gap ms", "start MiB", "peak MiB")
TABLES: Final[dict[str, tuple[Callable[[Path, int], list[str]], tuple[int, ...], tuple[str, ...]]]] = {
    "models": (models_row, MODELS, ("models", *_GATEWAY)),
    "keys": (keys_row, KEYS, ("keys", *_GATEWAY, "`keys create` s")),
    "usage": (usage_row, ROWS, ("rows", "`usage` s")),
    "scrapes": (scrapes_row, USED_KEYS, ("keys used", "scrape ms", "gap ms", "quiet gap ms")),
    "bodies": (bodies_row, BODIES, ("body MiB", "request ms", "gap ms", "quiet gap ms")),
}


def main(names: Sequence[str]) -> None:
    """Print the tables, row by row."""
    for name in names or TABLES:
        measure, counts, heads = TABLES[name]
        print(f"| {' | '.join(heads)} |\n|{' ---: |' * len(heads)}", flush=True)
        for count in counts:
            with tempfile.TemporaryDirectory() as folder:
                print(f"| {' | '.join(measure(Path(folder), count))} |", flush=True)
        print()


if __name__ == "__main__":
    main(sys.argv[1:])
