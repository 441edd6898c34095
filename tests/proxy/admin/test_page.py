"""The page as bytes: self-contained, and its policy allows its own style and script and nothing else."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest

from aiaas.proxy.admin.page import Page, read_page


@pytest.fixture(params=[False, True], ids=["serve", "quickstart"])
def page(request: pytest.FixtureRequest) -> Page:
    """The page without and with the chat."""
    return read_page(chat=request.param)


def source_of(part: str) -> str:
    """The source of a policy that allows this part of a page."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'"


def policy_of(page: Page) -> dict[str, str]:
    """The page's policy by directive."""
    found = re.search(rb"content-security-policy: (.*?)\r\n", page.headers)
    assert found is not None
    return {name: rest for name, _, rest in (each.partition(" ") for each in found[1].decode().split("; "))}


def test_policy_names_the_style_and_the_script_by_hash(page: Page) -> None:
    """The hashes are those of the bytes that are sent, with and without the chat."""
    text = page.body.decode()
    [style] = re.findall(r"<style[^>]*>(.*?)</style>", text, re.DOTALL)
    [script] = re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL)
    policy = policy_of(page)
    assert policy["style-src"] == source_of(style)
    assert policy["script-src"] == source_of(script)


def test_policy_allows_nothing_else(page: Page) -> None:
    """Nothing inline without its hash, no other origin, no frame, no HTML from a string."""
    policy = policy_of(page)
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert b"unsafe" not in page.headers


def test_page_loads_nothing_and_builds_no_html(page: Page) -> None:
    """No address of another server, no attribute that runs a script, and no way to turn a value into HTML."""
    text = page.body.decode().replace("http://www.w3.org/2000/svg", "")
    assert re.findall(r"https?:|\bsrc=|url\(|@import|\son[a-z]+=|\sstyle=", text) == []
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|DOMParser", text) == []


def test_chat_is_offered_only_where_asked_for() -> None:
    """`aiaas serve` has the same page without the chat."""
    assert b'data-chat="off"' in read_page().body
    assert b'data-chat="on"' in read_page(chat=True).body
