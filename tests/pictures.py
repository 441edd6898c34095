"""Draw the pictures of docs/page.md from the stand-in for a busy gateway: `python -m tests.pictures docs/images`.

The page in a real Chromium (`tests/browser.py`), and the screen of `aiaas top` as SVG. The stand-in's time runs twenty
times as fast, so that the lines of the last ten minutes are full after half a minute. The PNGs in git have a palette
(a third of the bytes), which any image program can make.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console

from aiaas.cli.top import KEYS, coloured
from aiaas.cli.topscreen import GatewayLook, screen
from aiaas.proxy.admin.attention import attention
from aiaas.proxy.admin.model import RequestView, Status
from tests.browser import opened_browser
from tests.fakes.admin import FakeAdmin

FASTER: Final = "const later = window.setTimeout; window.setTimeout = (call, ms) => later(call, ms / 20);"
HALF_A_MINUTE: Final = 32_000  # milliseconds
SHAPES: Final = (
    ("page-light", 1280, 900, "light"),
    ("page-dark", 1280, 900, "dark"),
    ("page-phone-light", 390, 844, "light"),
    ("page-phone-dark", 390, 844, "dark"),
)
COLUMNS, LINES = 112, 36
# As rich's own, but for its font, which would be loaded from another server.
SVG: Final = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img" aria-label="aiaas top">
<style>
.{unique_id}-matrix {{ font-family: "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: {char_height}px;
  line-height: {line_height}px; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
<rect fill="#14171b" width="{width}" height="{height}" rx="8"/>
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def draw_page(folder: Path) -> None:
    """Write a PNG for each of SHAPES."""
    with opened_browser() as browser:
        for name, width, height, scheme in SHAPES:
            with FakeAdmin(moving=True) as fake:
                page: Any = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
                page.add_init_script(FASTER)
                page.goto(fake.url)
                page.wait_for_timeout(HALF_A_MINUTE)
                page.screenshot(path=str(folder / f"{name}.png"))
                page.close()


def draw_chat(folder: Path) -> None:
    """Write page-chat.png: the chat of a quickstart, after one answer."""
    text = "This is the aiaas simulator, not a model. harbor lantern summit each request its amber valley"
    event = json.dumps({"choices": [{"delta": {"content": text}}]})
    with FakeAdmin(chat=True) as fake, opened_browser() as browser:
        fake.chunks = [f"data: {event}\n\n".encode()]
        page: Any = browser.new_page(viewport={"width": 900, "height": 700}, color_scheme="light")
        page.goto(fake.url)
        page.fill("#words", "Hello!")
        page.press("#words", "Enter")
        page.locator("#talk", has_text="complete after").wait_for()
        page.locator("#chat").screenshot(path=str(folder / "page-chat.png"))


def draw_top(folder: Path) -> None:
    """Write top.svg."""
    with FakeAdmin(moving=True) as fake:
        looks = [_look_of(fake)]
        for _ in range(5):
            fake.move(2.0)
            looks.append(_look_of(fake))
    text = coloured(screen([looks[0]], [looks[-1]], COLUMNS, LINES, note=KEYS))
    console = Console(width=COLUMNS, record=True, file=io.StringIO(), force_terminal=True, highlight=False)
    console.print(text)
    console.save_svg(str(folder / "top.svg"), title="", code_format=SVG, unique_id="top", font_aspect_ratio=0.602)


def _look_of(fake: FakeAdmin) -> GatewayLook:
    status = msgspec.convert(fake.status, Status)
    status.attention = attention(status)
    return GatewayLook("http://127.0.0.1:9091", status, tuple(msgspec.convert(fake.live, list[RequestView])))


if __name__ == "__main__":
    draw_top(Path(sys.argv[1]))
    draw_chat(Path(sys.argv[1]))
    draw_page(Path(sys.argv[1]))
