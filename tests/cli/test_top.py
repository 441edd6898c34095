"""`aiaas top`: once as plain text, and live in a terminal of its own."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from fcntl import ioctl
from struct import pack

import pytest

from aiaas.cli.main import run
from aiaas.cli.top import coloured, look_at
from aiaas.clients.check import connected
from aiaas.httpclient.target import parse_target
from tests.fakes.admin import FakeAdmin
from tests.ports import free_port

PATIENCE = 30.0  # seconds


@pytest.fixture
def fake() -> Iterator[FakeAdmin]:
    """An admin endpoint of a busy gateway, each answer 2 s after the last one."""
    with FakeAdmin(moving=True) as running:
        yield running


async def test_look_has_status_and_live_requests(fake: FakeAdmin) -> None:
    """All requests under way, since keys are summed over them."""
    async with connected(parse_target(fake.url)) as client:
        look = await look_at(client)
    assert look.error == ""
    assert look.status is not None
    assert look.status.requests.in_flight == len(look.live) == 500


async def test_gateway_of_another_version_is_an_error_of_the_look() -> None:
    """It says where to look."""
    with FakeAdmin() as fake:
        async with connected(parse_target(fake.url)) as client:
            fake.status = {"version": "9"}
            assert "monitoring.admin_port" in (await look_at(client)).error


async def test_gateway_that_is_gone_is_an_error_of_the_look(fake: FakeAdmin) -> None:
    """The others are shown all the same."""
    fake.stop()
    async with connected(parse_target(fake.url)) as client:
        look = await look_at(client)
    assert look.status is None
    assert look.error.startswith("connection refused; ")


def test_once_prints_a_screen_with_rates(fake: FakeAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    """Two looks, an interval apart, so that rates are known; plain text without a terminal."""
    assert run(["top", fake.url, "--interval", "500ms"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^requests/s \d", printed, re.MULTILINE)
    assert "http://10.0.0.13:8000  ✗ down" in printed
    assert "\x1b" not in printed
    assert "q quit" not in printed


def test_once_without_a_gateway_fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A script sees it by the exit code, a person by the line."""
    monkeypatch.setenv("COLUMNS", "120")
    assert run(["top", "--once", f"http://127.0.0.1:{free_port()}"]) == 1
    printed = capsys.readouterr().out
    assert "connection refused; the admin endpoint is at monitoring.admin_port" in printed


def test_once_with_one_of_two_gateways_succeeds(fake: FakeAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    """The other one is named."""
    gone = f"http://127.0.0.1:{free_port()}"
    assert run(["top", fake.url, gone, "--interval", "500ms"]) == 0
    printed = capsys.readouterr().out
    assert "1 of 2 gateways" in printed
    assert f"✗ {gone}" in printed


def test_interval_has_a_lower_bound(capsys: pytest.CaptureFixture[str]) -> None:
    """Ten looks a second would cost the gateway more than they show."""
    assert run(["top", "--interval", "100ms"]) == 2
    assert "the shortest is 0.5s" in capsys.readouterr().err


class Terminal:
    """`aiaas top` in a terminal of so many columns and lines. `shown` is what it has written."""

    def __init__(self, url: str, columns: int, lines: int, interval: str, *, has_input: bool, **env: str) -> None:
        self.fd, inner = pty.openpty()
        self.resize(columns, lines)
        command = [sys.executable, "-m", "aiaas", "top", url, "--interval", interval]
        env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")} | env
        env = {"TERM": "xterm-256color"} | env
        self.process = subprocess.Popen(
            command,
            stdin=inner if has_input else subprocess.DEVNULL,
            stdout=inner,
            stderr=inner,
            env=env,
            start_new_session=True,
        )
        self._inner = inner
        self.shown = ""

    def resize(self, columns: int, lines: int) -> None:
        """Change the size. A window's terminal would send the signal."""
        ioctl(self.fd, termios.TIOCSWINSZ, pack("HHHH", lines, columns, 0, 0))

    def press(self, key: str) -> None:
        """Press a key, and forget all that was shown."""
        self.shown = ""
        os.write(self.fd, key.encode())

    def until(self, words: str) -> None:
        """Read until `words` are shown."""
        end = time.monotonic() + PATIENCE
        while words not in self.shown:
            assert time.monotonic() < end, f"{words!r} is not in {self.shown[-3000:]}"
            self.read()

    def read(self) -> None:
        """Read what is written next."""
        readable, _, _ = select.select([self.fd], [], [], PATIENCE)
        assert readable, self.shown[-3000:]
        self.shown += os.read(self.fd, 65_536).decode("utf-8", "replace")

    def read_for(self, seconds: float) -> None:
        """Read what is written in that time."""
        end = time.monotonic() + seconds
        while select.select([self.fd], [], [], max(0.0, end - time.monotonic()))[0]:
            self.read()

    def modes(self) -> list[object]:
        """The terminal's settings; those of echo and lines are among them."""
        return termios.tcgetattr(self._inner)

    def vanish(self) -> None:
        """Close the terminal's own side, as a window that is killed does. It does not control the process, so there is
        no signal."""
        os.close(self.fd)

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        with suppress(OSError):  # it has vanished
            os.close(self.fd)
        os.close(self._inner)


@pytest.fixture
def terminal(fake: FakeAdmin) -> Iterator[Callable[..., Terminal]]:
    """Start it in a terminal."""
    opened: list[Terminal] = []

    def begin(
        columns: int = 100, lines: int = 30, interval: str = "500ms", *, has_input: bool = True, **env: str
    ) -> Terminal:
        opened.append(Terminal(fake.url, columns, lines, interval, has_input=has_input, **env))
        return opened[-1]

    yield begin
    for one in opened:
        one.close()


def test_keys_sort_pause_and_quit(terminal: Callable[..., Terminal], fake: FakeAdmin) -> None:
    """Without Enter; the terminal is as before at the end."""
    one = terminal()
    before = one.modes()
    one.until("REQUEST OF")
    one.press("s")
    one.until("sort: tokens")
    one.press("p")
    one.until("PAUSED")
    asked = len(fake.asked)
    one.read_for(1.0)
    one.press("s")
    one.until("sort: key")
    assert len(fake.asked) == asked
    one.press("p")
    one.until("q quit, s sort, p pause")
    assert len(fake.asked) > asked
    one.press("q")
    assert one.process.wait(PATIENCE) == 0
    one.until("\x1b[?1049l")
    assert one.modes() == before


def test_terminal_is_given_back_at_sigterm(terminal: Callable[..., Terminal]) -> None:
    """`kill` does not leave a terminal that echoes nothing."""
    one = terminal()
    before = one.modes()
    one.until("REQUEST OF")
    one.process.terminate()
    assert one.process.wait(PATIENCE) == 0
    one.until("\x1b[?1049l")
    assert one.modes() == before


@pytest.mark.parametrize(
    ("has_input", "paused", "env"),
    [(True, False, {}), (True, True, {}), (False, False, {}), (False, False, {"FORCE_COLOR": "1"})],
    ids=["waiting", "paused", "without input", "without input, colour forced"],
)
def test_terminal_that_vanishes_ends_it(
    terminal: Callable[..., Terminal], has_input: bool, paused: bool, env: dict[str, str]
) -> None:
    """At the end of its input; where it has none, before the next picture. It would ask the gateway for ever."""
    one = terminal(interval="10m" if has_input else "500ms", has_input=has_input, **env)
    one.until("REQUEST OF")
    if paused:
        one.press("p")
        one.until("PAUSED")
    one.vanish()
    assert one.process.wait(PATIENCE) == 0


def test_screen_follows_the_size_of_the_terminal(terminal: Callable[..., Terminal]) -> None:
    """A window that grows shows more of the long lines."""
    one = terminal(columns=40, interval="10m")
    one.until("aiaas top")
    assert "q quit" not in one.shown
    one.resize(140, 40)
    one.process.send_signal(signal.SIGWINCH)
    one.until("q quit, s sort, p pause")


def test_no_color_writes_no_colour(terminal: Callable[..., Terminal]) -> None:
    """With NO_COLOR bold and reverse stay, which are not colours."""
    one = terminal(NO_COLOR="1")
    one.until("REQUEST OF")
    assert re.findall(r"\x1b\[[\d;]*3[0-7][\d;]*m", one.shown) == []
    other = terminal(NO_COLOR="")
    other.until("REQUEST OF")
    assert re.findall(r"\x1b\[[\d;]*3[0-7][\d;]*m", other.shown)


def test_terminal_without_motion_gets_plain_text(terminal: Callable[..., Terminal]) -> None:
    """TERM=dumb: one screen, and the end."""
    one = terminal(TERM="dumb")
    one.until("REQUEST OF")
    assert one.process.wait(PATIENCE) == 0
    assert "\x1b" not in one.shown


def test_colours_change_no_word() -> None:
    """The text is the same without colour."""
    text = "aiaas top\n\nBACKEND\nchat  ✗ down  3 s\nchat  ✓ up\n! draining"
    found = coloured(text)
    assert found.plain == text
    assert {str(span.style) for span in found.spans} >= {"bold red", "green", "bold yellow"}
