"""The page at `/` of the admin endpoint: one self-contained file, and headers that let it load and run nothing else.

The policy names the page's one style sheet and one script by their hashes. A user's name that holds a script stays text
for three reasons: the page sets text only, the browser refuses to parse HTML from a string (trusted types), and runs no
script without this hash.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

PAGE_TYPE: Final = b"text/html; charset=utf-8"
_STYLE: Final = re.compile(r"<style>(.*?)</style>", re.DOTALL)
_SCRIPT: Final = re.compile(r'<script type="module">(.*?)</script>', re.DOTALL)
_CHAT: Final = ('<body data-chat="off">', '<body data-chat="on">')


@dataclass(frozen=True, slots=True)
class Page:
    """The page's bytes, and the header lines that it needs beside those of every answer of the admin endpoint."""

    body: bytes
    headers: bytes


def read_page(*, chat: bool = False) -> Page:
    """Read the page from the package. With `chat` it shows a form that sends to `POST /chat`."""
    text = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    policy = _policy(_hashes(_STYLE, text), _hashes(_SCRIPT, text))
    if chat:
        text = text.replace(*_CHAT)
    lines = f"content-security-policy: {policy}\r\ncross-origin-opener-policy: same-origin\r\n"
    return Page(text.encode(), lines.encode())


def _policy(style: str, script: str) -> str:
    return "; ".join(
        (
            "default-src 'none'",
            f"style-src {style}",
            f"script-src {script}",
            "connect-src 'self'",
            "img-src data:",  # the empty icon, so that the browser does not ask for one
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


def _hashes(part: re.Pattern[str], text: str) -> str:
    """Return the sources of a policy that allow just these parts of the page."""
    digests = (hashlib.sha256(found.encode()).digest() for found in part.findall(text))
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
