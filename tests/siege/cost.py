"""`python -m tests.siege.cost`: what one connection costs, by where its client stopped (sums: `aiaas.config.chain`).

1,000 connections of each kind against a gateway of their own; its resident memory before and after, divided.
"""

from __future__ import annotations

import argparse
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psutil

from tests.certificate import self_signed
from tests.e2e.processes import running_gateway
from tests.siege.attack import asked, client_hello, head

COUNT: Final = 1000
_LARGE: Final = b"GET /health HTTP/1.1\r\nHost: gateway\r\nContent-Length: 120000\r\n\r\n" + b"x" * 120_000
# Each kind: its name, whether TLS is on, whether the client ends its handshake, what it sends then, whether it reads.
KINDS: Final = (
    ("silent", False, False, b"", False),
    ("idle after a request", False, False, asked(""), True),
    ("unfinished head of 31 kB", False, False, head(""), False),
    ("TLS: silent", True, False, b"", False),
    ("TLS: in the handshake", True, False, client_hello(""), False),
    ("TLS: after the handshake", True, True, b"", False),
    ("TLS: idle after a request", True, True, asked(""), True),
    ("TLS: unfinished head of 31 kB", True, True, head(""), False),
    ("TLS: idle after a request of 120 kB", True, True, _LARGE, True),
)


def cost(folder: Path, tls: bool, shakes: bool, sent: bytes, reads: bool, count: int) -> tuple[float, float]:
    """Bytes of memory for each of `count` connections, and what each counted for in the budget."""
    cert, key = self_signed(folder)
    server = {"header_timeout": "10m", "max_connections": 100_000}
    certificate = {"tls": {"cert_file": str(cert), "key_file": str(key)}} if tls else {}
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with running_gateway(
        folder, {"url": "http://127.0.0.1:9"}, sections={"server": {**server, **certificate}}
    ) as gateway:
        process = psutil.Process(gateway.pid)
        port = int(gateway.url.rpartition(":")[2])
        before = process.memory_info().rss
        clients: list[socket.socket] = []
        for _ in range(count):
            client = socket.create_connection(("127.0.0.1", port))
            if shakes:
                client = context.wrap_socket(client)
            clients.append(client)
            client.sendall(sent)
            if reads:
                client.recv(4096)
        deadline = time.monotonic() + 30
        while gateway.metric("aiaas_connections") < count and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1.0)
        used, held = process.memory_info().rss - before, gateway.metric("aiaas_held_bytes")
        for client in clients:
            client.close()
    return used / count, held / count


def main(arguments: list[str]) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.siege.cost", description="The memory of one connection.")
    parser.add_argument("--count", type=int, default=COUNT, help="connections of each kind")
    options = parser.parse_args(arguments)
    say: Callable[[str], None] = print
    say("| connection | KiB of memory | KiB in the budget |\n| --- | --- | --- |")
    for name, tls, shakes, sent, reads in KINDS:
        with tempfile.TemporaryDirectory(prefix="aiaas-cost-") as folder:
            used, held = cost(Path(folder), tls, shakes, sent, reads, options.count)
        say(f"| {name} | {used / 1024:.0f} | {held / 1024:.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
