"""`aiaas top`: what one gateway or several do now, live in a terminal, or once as plain text."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Final

import typer

from aiaas.cli.askadmin import ADMIN_ADDRESS, ask_admin
from aiaas.cli.common import console, new_app, read_duration
from aiaas.errors import EnvironmentFault, UsageError

if TYPE_CHECKING:
    from rich.text import Text

    from aiaas.cli.topscreen import GatewayLook
    from aiaas.httpclient.client import HttpClient
    from aiaas.httpclient.target import HttpTarget

app = new_app()

SHORTEST: Final = 0.5  # seconds between two looks
RATES_OVER: Final = 10.0  # seconds
MOST_LIVE: Final = 2000  # rows of requests under way: 2 MB
PLAIN_SIZE: Final = (120, 60)  # columns and lines without a terminal
KEYS: Final = "q quit, s sort, p pause"
INPUT_END: Final = "\x04"  # Ctrl-D; also what the end of the input counts as
# Colours on a terminal; the words say the same without them.
COLOURS: Final = (
    (r"(?m)^aiaas top", "bold"),
    (r"(?m)^(BACKEND|KEY|REQUEST OF) .*$", "bold"),
    (r"✗ .*?(?=  |\n|$)", "bold red"),
    (r"✓ up", "green"),
    (r"(?m)^! .*$", "bold yellow"),
    (r"! \d+%", "bold red"),
    (r"PAUSED", "reverse"),
)

_EPILOG = """Examples:

\b
  aiaas top
  aiaas top http://127.0.0.1:9091 http://127.0.0.1:9191      two gateways, summed
  kubectl port-forward deploy/aiaas 9091 & aiaas top          a gateway in a pod
  aiaas top --once | head -20

Keys: q quits, s changes the order (age, tokens, key), p pauses. With several gateways the rows are summed.
Exit codes: 0 done, 1 no gateway answered (--once), 2 wrong usage.
"""


@app.command("top", epilog=_EPILOG)
def top(
    urls: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[URL]...", help="Admin endpoints. [default: http://127.0.0.1:9091]", show_default=False
        ),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Print one screen as plain text. [default: if stdout is not a terminal]")
    ] = False,
    interval: Annotated[str, typer.Option(metavar="TIME", help="Time between two looks.")] = "2s",
) -> None:
    """Show what a running gateway does now: rates, endpoints, keys, requests."""
    from aiaas.httpclient.target import parse_target

    seconds = read_duration("--interval", interval)
    if seconds < SHORTEST:
        raise UsageError(f"--interval {interval}: the shortest is {SHORTEST}s")
    targets = [parse_target(url) for url in dict.fromkeys(urls or [ADMIN_ADDRESS])]
    plain = once or not console().is_terminal or console().is_dumb_terminal
    asyncio.run(_show(targets, seconds, plain=plain))


async def _show(targets: list[HttpTarget], interval: float, *, plain: bool) -> None:
    from aiaas.clients.check import connected

    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(target)) for target in targets]
        if plain:
            await _print_once(clients, interval)
        else:
            await _Watch(clients, interval).run()


async def _print_once(clients: list[HttpClient], interval: float) -> None:
    """Look twice, since rates need two looks. Raises typer.Exit(1) if no gateway answers."""
    from aiaas.cli.topscreen import screen

    before = await _look(clients)
    if any(look.status is not None for look in before):
        await asyncio.sleep(interval)
    now = await _look(clients)
    print(screen(before, now, *shutil.get_terminal_size(PLAIN_SIZE)))
    if all(look.status is None for look in now):
        raise typer.Exit(1)


async def _look(clients: list[HttpClient]) -> list[GatewayLook]:
    return list(await asyncio.gather(*map(look_at, clients)))


async def look_at(client: HttpClient) -> GatewayLook:
    """The gateway now, or why it cannot be seen."""
    from aiaas.cli.topscreen import GatewayLook
    from aiaas.proxy.admin.model import Requests, Status

    try:
        status = await ask_admin(client, "/status", Status)
        requests = await ask_admin(client, f"/requests?live=1&limit={MOST_LIVE}", Requests)
    except EnvironmentFault as fault:
        return GatewayLook(client.target.url, error=fault.message)
    return GatewayLook(client.target.url, status, tuple(requests.live))


class _Watch:
    """The live view. `_looks` are those of the last RATES_OVER seconds, the newest last."""

    def __init__(self, clients: list[HttpClient], interval: float) -> None:
        self._clients = clients
        self._interval = interval
        self._looks: deque[list[GatewayLook]] = deque(maxlen=1 + max(1, round(RATES_OVER / interval)))
        self._sort = 0
        self._paused = self._ended = False
        self._touched = asyncio.Event()

    async def run(self) -> None:
        """Look and draw until `q`, or until the terminal is gone.

        Three cases: its input ends; stdout is a terminal no more; or a write fails with EIO, where rich takes it for a
        terminal in any case (FORCE_COLOR).
        """
        try:
            await self._run()
        except OSError as error:
            if error.errno != errno.EIO:
                raise

    async def _run(self) -> None:
        from rich.live import Live

        loop = asyncio.get_running_loop()
        with _pressed_keys(self._press), Live(console=console(), screen=True, auto_refresh=False) as live:
            loop.add_signal_handler(signal.SIGWINCH, self._touched.set)
            loop.add_signal_handler(signal.SIGTERM, self._press, "q")  # give the terminal back first
            due = loop.time()
            while not self._ended and live.console.is_terminal:
                if loop.time() >= due and not self._paused:
                    self._looks.append(await _look(self._clients))
                    due = loop.time() + self._interval
                live.update(self._picture(live.console.width, live.console.height), refresh=True)
                await self._rest(due - loop.time())

    async def _rest(self, seconds: float) -> None:
        """Wait for the time of the next look, a key or a new size."""
        try:
            async with asyncio.timeout(None if self._paused else max(0.0, seconds)):
                await self._touched.wait()
        except TimeoutError:
            return
        self._touched.clear()

    def _press(self, key: str) -> None:
        from aiaas.cli.topscreen import SORTS

        if key in ("q", "Q", "\x03", INPUT_END):
            self._ended = True
        elif key in "sS":
            self._sort = (self._sort + 1) % len(SORTS)
        elif key in "pP ":
            self._paused = not self._paused
        self._touched.set()

    def _picture(self, width: int, height: int) -> Text:
        from aiaas.cli.topscreen import SORTS, screen

        before, now = self._looks[0], self._looks[-1]
        note = "PAUSED" if self._paused else KEYS
        return coloured(screen(before, now, width, height, sort=SORTS[self._sort], note=note))


def coloured(text: str) -> Text:
    """Colour a screen for a terminal."""
    from rich.text import Text

    found = Text(text, no_wrap=True, overflow="crop")
    for pattern, style in COLOURS:
        found.highlight_regex(pattern, style)
    return found


@contextmanager
def _pressed_keys(press: Callable[[str], None]) -> Iterator[None]:
    """Call `press` with each key, without waiting for Enter, and INPUT_END at the end. Nothing happens if
    stdin is not a terminal."""
    import termios
    import tty

    if not sys.stdin.isatty():
        yield
        return
    loop, fd = asyncio.get_running_loop(), sys.stdin.fileno()

    def read() -> None:
        try:
            letters = os.read(fd, 64).decode("utf-8", "replace")
        except OSError:  # EIO: the terminal is gone, or belongs to another program now
            letters = ""
        if not letters:
            loop.remove_reader(fd)
            press(INPUT_END)
        elif not letters.startswith("\x1b"):  # an arrow key, ...
            for letter in letters:
                press(letter)

    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    loop.add_reader(fd, read)
    try:
        yield
    finally:
        loop.remove_reader(fd)
        with suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(fd, termios.TCSADRAIN, before)
