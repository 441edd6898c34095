"""aiaas.engines.claim: one aiaas to a port."""

from __future__ import annotations

import socket
import subprocess
import sys

from aiaas.engines.claim import Claim, port_is_free
from tests.ports import free_port


def test_a_port_is_claimed_by_one_at_a_time() -> None:
    """The same owner may claim it again."""
    port = free_port()
    one, other = Claim(), Claim()
    assert one.take(port)
    assert one.take(port)
    assert not other.take(port)
    assert other.take(free_port())
    one.release()
    one.release()
    assert other.take(port)
    other.release()


def test_another_port_gives_up_the_first() -> None:
    """An engine has one port."""
    one, other = Claim(), Claim()
    port = free_port()
    assert one.take(port)
    assert one.take(free_port())
    assert other.take(port)
    one.release()
    other.release()


def test_a_claim_ends_with_its_process() -> None:
    """However the process ends; and the claim holds between processes."""
    port = free_port()
    code = f"from aiaas.engines.claim import Claim; c = Claim(); print(c.take({port}), flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"True\n"
        mine = Claim()
        assert not mine.take(port)
        process.kill()
        process.wait(60)
        assert mine.take(port)
        mine.release()


def test_a_port_is_free_until_somebody_listens() -> None:
    """On the address that engines listen on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not port_is_free(port)
    assert port_is_free(port)
