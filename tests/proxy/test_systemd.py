"""aiaas.proxy.systemd: passed sockets, reports and the watchdog, with sockets of our own in systemd's place."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiaas.errors import EnvironmentFault
from aiaas.proxy import systemd
from aiaas.proxy.systemd import Systemd, take_from_systemd


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket to which a service reports."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        yield sock


def pass_as_first(sock: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the passed descriptors begin at this socket."""
    monkeypatch.setattr(systemd, "FIRST_PASSED", sock.detach())


def environment(count: int) -> dict[str, str]:
    """The variables of a socket unit with `count` sockets."""
    return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(count), "LISTEN_FDNAMES": "aiaas.socket"}


def test_without_systemd_nothing_is_passed_or_reported() -> None:
    """A gateway in a shell reports to nobody."""
    found = take_from_systemd(environ := {"HOME": "/root"})
    assert found == Systemd((), None, None)
    assert environ == {"HOME": "/root"}
    found.ready("listening")


def test_passed_socket_is_taken_and_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that inherited the port would keep it from the next gateway."""
    sock = socket.create_server(("127.0.0.1", 0))
    address = sock.getsockname()
    sock.set_inheritable(True)
    pass_as_first(sock, monkeypatch)
    (passed,) = take_from_systemd(environment(1)).passed
    with passed:
        assert passed.getsockname() == address
        assert not passed.get_inheritable()


def test_variables_are_taken_out_of_the_environment() -> None:
    """Children would take them for their own."""
    names = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
    environ = environment(0) | dict.fromkeys(names, "1") | {"PATH": "/bin"}
    take_from_systemd(environ)
    assert environ == {"PATH": "/bin"}


def test_variables_for_another_process_have_no_effect() -> None:
    """A shell that systemd started hands them on."""
    found = take_from_systemd(environment(1) | {"LISTEN_PID": "1", "WATCHDOG_PID": "1", "WATCHDOG_USEC": "1"})
    assert (found.passed, found.beat) == ((), None)


@pytest.mark.parametrize("kind", ["not listening", "unix", "closed"])
def test_unfit_descriptor_is_one_clear_message(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The message says what to write in the socket unit."""
    with socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET) as sock:
        if kind == "unix":
            sock.bind(str(tmp_path / "x"))
            sock.listen()
        monkeypatch.setattr(systemd, "FIRST_PASSED", 999_999 if kind == "closed" else sock.dup().detach())
        with pytest.raises(EnvironmentFault, match="ListenStream=ADDRESS:PORT"):
            take_from_systemd(environment(1))


@pytest.mark.parametrize("is_abstract", [False, True], ids=["file", "abstract"])
def test_ready_is_one_datagram_with_a_status(is_abstract: bool, tmp_path: Path) -> None:
    """`systemctl status` shows the status."""
    address = f"@aiaas-test-{os.getpid()}" if is_abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address.replace("@", "\0"))
        sock.settimeout(5)
        take_from_systemd({"NOTIFY_SOCKET": address}).ready("listening on x")
        assert sock.recv(4096) == b"READY=1\nSTATUS=listening on x"


def test_report_that_nobody_takes_is_an_error(tmp_path: Path) -> None:
    """Otherwise systemd would stop the service after its patience, and nobody would know why."""
    with pytest.raises(EnvironmentFault, match=r"gone.*NOTIFY_SOCKET"):
        Systemd(address=str(tmp_path / "gone")).ready("x")


def test_watchdog_is_told_twice_in_its_time() -> None:
    """Its time is in microseconds."""
    assert take_from_systemd({"WATCHDOG_USEC": "30000000"}).beat == 15


async def test_watchdog_hears_of_a_running_loop_only(manager: socket.socket) -> None:
    """The reports begin with the life of the server, and end with it."""

    async def live() -> None:
        while len(heard) < 2:
            heard.append(await asyncio.get_running_loop().sock_recv(manager, 100))

    heard: list[bytes] = []
    await Systemd(address=manager.getsockname(), beat=0.01).watched(live())
    assert heard == [b"WATCHDOG=1", b"WATCHDOG=1"]
    assert [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "watchdog"] == []


async def test_missing_watchdog_ends_nothing(tmp_path: Path) -> None:
    """While systemd starts anew, its socket is away."""
    reached = asyncio.Event()

    async def live() -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        reached.set()

    await Systemd(address=str(tmp_path / "gone"), beat=0.001).watched(live())
    assert reached.is_set()


async def test_end_of_the_life_is_passed_on() -> None:
    """The exit code depends on the error."""

    async def live() -> None:
        raise EnvironmentFault("no port")

    with pytest.raises(EnvironmentFault, match="no port"):
        await Systemd().watched(live())
