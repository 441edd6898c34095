"""The admin endpoint's page in a real Chromium, phone and desktop, light and dark: `nox -s report`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.browser import opened_browser
from tests.cli.test_quickstart import Quickstart, start
from tests.fakes.admin import FakeAdmin, endpoint, refusal, request
from tests.ports import free_port

__all__ = ["start"]  # a fixture

pytestmark = pytest.mark.browser

NASTY = "<script>alert(1)</script><img src=x onerror=alert(2)>\u202e{{7*7}}"
# Elements whose text has a contrast of less than 4.5:1 (WCAG 2.2 AA) to the next ground behind it.
FAINT = """() => {
  const parse = colour => colour.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => [r, g, b].map(v => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = element => {
    for (let at = element; at; at = at.parentElement) {
      const found = parse(getComputedStyle(at).backgroundColor);
      if (found.length < 4 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  return [...document.body.querySelectorAll('*')].filter(each => each.getClientRects().length
    && [...each.childNodes].some(node => node.nodeType === 3 && node.data.trim())).filter(each => {
    const [a, b] = [light(parse(getComputedStyle(each).color)), light(ground(each))].sort((x, y) => y - x);
    return (a + .05) / (b + .05) < 4.5;
  }).map(each => each.tagName + ' ' + each.className + ' ' + each.textContent.slice(0, 40));
}"""
UNNAMED = """() => [...document.querySelectorAll('table')].filter(each => !each.hidden).flatMap(table =>
  [...table.tHead.querySelectorAll('th')].filter(th => th.scope !== 'col' || !th.textContent).map(() => 'column')
    .concat([...table.tBodies[0].rows].filter(row => row.cells[0].scope !== 'row').map(() => 'row')))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium without a screen."""
    with opened_browser() as opened:
        yield opened


@pytest.fixture
def fake() -> Iterator[FakeAdmin]:
    """An endpoint with 500 live requests."""
    with FakeAdmin() as running:
        yield running


class Opened:
    """A page that is open. `said` is its console and its errors, `asked` what it asked for."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.said: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("dialog", lambda dialog: self.said.append(dialog.message))
        page.on("request", lambda request: self.asked.append(request.url))

    def text(self, place: str) -> str:
        """The text of the element with this id."""
        found: str = self.page.inner_text(f"#{place}")
        return found

    def until(self, place: str, words: str) -> None:
        """Wait until an element's text holds `words`. (The page's policy forbids `wait_for_function`.)"""
        self.page.locator(f"#{place}", has_text=words).wait_for(timeout=30_000)


@pytest.fixture
def show(browser: Any, fake: FakeAdmin) -> Iterator[Callable[..., Opened]]:
    """Open the fake's page."""
    pages: list[Any] = []

    def opened(width: int = 1280, scheme: str = "light", fake: FakeAdmin = fake) -> Opened:
        pages.append(browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme))
        one = Opened(pages[-1])
        one.page.goto(fake.url)
        one.until("state", "Version")
        return one

    yield opened
    for page in pages:
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280], ids=["phone", "desktop"])
def test_page_fits_and_is_readable(show: Callable[..., Opened], fake: FakeAdmin, width: int, scheme: str) -> None:
    """Nothing to scroll sideways, enough contrast, named tables, nothing on the console, no other server."""
    one = show(width, scheme)
    assert one.page.evaluate("document.documentElement.scrollWidth") <= width
    assert one.page.evaluate(FAINT) == []
    assert one.page.evaluate(UNNAMED) == []
    assert one.said == []
    assert [url for url in one.asked if not url.startswith(fake.url) and url != "data:,"] == []


def test_live_requests_show_the_100_oldest_of_500(show: Callable[..., Opened], fake: FakeAdmin) -> None:
    """The oldest first, however they are sent; the caption says how many there are."""
    fake.live.reverse()
    fake.live = fake.live[-100:]
    one = show()
    rows = one.page.locator("#live tbody tr")
    assert rows.count() == 100
    assert "req-00000" in rows.first.inner_text()
    assert "The 100 oldest of 500" in one.text("live")


def test_values_of_clients_stay_text(show: Callable[..., Opened], fake: FakeAdmin) -> None:
    """A user's name, a model, an error or a URL with a script in it is shown and never run."""
    status = fake.status
    status["backends"][0]["endpoints"] = [endpoint(NASTY, up=False, reason=NASTY, missing=[NASTY])]
    status["backends"][0]["name"] = status["config"]["source"] = status["address"] = NASTY
    status["models"][0]["model"] = status["keys_near"][0]["user"] = NASTY
    fake.live = [request(0, user=NASTY, model=NASTY, waiting_for=NASTY, client_address=NASTY)]
    fake.refusals = {"refusals": [refusal(0, 429, NASTY, NASTY)], "by_code": {NASTY: 1}}
    one = show()
    for place in ("live", "backends", "models", "keys", "refusals", "codes", "notes", "facts", "address"):
        assert NASTY[:25] in one.text(place), place
    assert one.page.evaluate("document.querySelectorAll('main script, main img').length") == 0
    assert one.said == []


def test_notes_stand_at_the_top_with_their_age(show: Callable[..., Opened], fake: FakeAdmin) -> None:
    """The faults that the gateway names, in words, and how many in the title."""
    fake.status["store"]["up"] = False
    one = show()
    notes = one.text("notes")
    assert "http://10.0.0.13:8000 (chat) is down: connection refused (for 1 min 15 s)" in notes
    assert "The store of the limits does not answer" in notes
    assert one.page.title() == f"({one.page.locator('#notes li').count()}) aiaas 0.0.0.0:8000"


def test_gateway_gone_is_said_and_asked_again(show: Callable[..., Opened], fake: FakeAdmin) -> None:
    """The last answer stays; the page goes on by itself once the gateway answers again."""
    one = show()
    fake.stop()
    one.page.wait_for_selector("#gone:not([hidden])", timeout=30_000)
    assert "has not answered since" in one.text("gone")
    assert one.page.locator("#live tbody tr").count() == 100
    assert one.page.title() == "(gone) aiaas"
    fake.start()
    one.page.wait_for_selector("#gone", state="hidden", timeout=30_000)


def test_answer_of_another_form_is_said(show: Callable[..., Opened], fake: FakeAdmin) -> None:
    """It is not the gateway that is gone; and the page of another version is loaded by itself."""
    one = show()
    fake.live = [None]  # type: ignore[list-item]
    one.until("gone", "reload the page")
    fake.live = []
    with one.page.expect_navigation(timeout=30_000):
        fake.status["version"] = "0.2.0"
    one.until("state", "Version 0.2.0")
    assert one.page.is_hidden("#gone")


def test_rates_are_differences_of_counters(show: Callable[..., Opened], fake: FakeAdmin) -> None:
    """Tokens and requests a second, and a point of the line."""
    fake.status["totals"].update(output_tokens=0, requests=0)
    one = show()
    totals = fake.status["totals"] | {"output_tokens": 4_936, "requests": 50}
    fake.status = fake.status | {"now": fake.status["now"] + 4, "totals": totals}
    one.until("tiles", "1,234")
    assert "12.5" in one.page.inner_text("#tiles .requests") or "13" in one.page.inner_text("#tiles .requests")
    assert one.page.get_attribute("#tiles .tokens path", "d").startswith("M")


def test_hidden_page_asks_nothing(show: Callable[..., Opened], fake: FakeAdmin) -> None:
    """A tab in the background costs the gateway nothing; it asks at once when it is looked at again."""
    one = show()
    hide = "hidden => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true}); "
    hide += "document.dispatchEvent(new Event('visibilitychange')); }"
    one.page.evaluate(hide, True)
    one.page.wait_for_timeout(1_000)  # an answer that was under way
    before = len(fake.asked)
    one.page.wait_for_timeout(4_500)
    assert len(fake.asked) == before
    with one.page.expect_response(f"{fake.url}status", timeout=30_000):
        one.page.evaluate(hide, False)


def test_empty_gateway_says_so_in_each_part(show: Callable[..., Opened], fake: FakeAdmin) -> None:
    """A gateway that has just started has no empty tables."""
    fake.status.update(backends=[], models=[], keys_near=[], reloads=[], certificate=None)
    fake.status["config"]["restart_needed"] = []
    fake.live, fake.refusals = [], {"refusals": [], "by_code": {}}
    one = show(390)
    assert one.text("notes") == "Nothing."
    assert one.page.locator("table:visible").count() == 0
    for place, words in (("live", "No request"), ("keys", "No key"), ("refusals", "Nothing was refused")):
        assert words in one.text(place)
    assert one.said == []


def test_serve_has_no_chat(show: Callable[..., Opened]) -> None:
    """Only a quickstart offers it."""
    assert show().page.is_hidden("#chat")


def test_chat_sends_the_conversation_and_streams(show: Callable[..., Opened]) -> None:
    """JSON of model and messages goes to /chat; the answer's pieces are shown as text."""
    with FakeAdmin(chat=True) as fake:
        pieces = ("Hel", "lo <b>", "there")
        events = [json.dumps({"choices": [{"delta": {"content": piece}}]}) for piece in pieces]
        fake.chunks = [f"data: {event}\n\n".encode() for event in events] + [b"data: [DONE]\n\n"]
        one = show(fake=fake)
        one.page.fill("#words", "Hi!")
        one.page.press("#words", "Enter")
        one.until("talk", "Hello <b>there")
        one.until("talk", "complete after")
        headers, body = fake.sent[0]
        assert headers["content-type"] == "application/json"
        assert json.loads(body) == {"model": "llama-3.3-70b", "messages": [{"role": "user", "content": "Hi!"}]}
        one.page.fill("#words", "And?")
        one.page.press("#words", "Enter")
        one.page.locator("#talk .mine").nth(1).wait_for(timeout=30_000)
        one.page.wait_for_selector("#send:visible", timeout=30_000)
        assert len(json.loads(fake.sent[1][1])["messages"]) == 3
        assert one.said == []


def test_quickstart_shows_itself_and_chats(browser: Any, start: Callable[..., Quickstart]) -> None:
    """The page of a real gateway: the chat's request is answered, counted, and listed nowhere with its text."""
    running = start("--port", str(free_port(1, 2, 3)))
    running.until("Ctrl-C stops all")
    found = re.search(r"In a browser: (\S+)", running.said)
    assert found is not None, running.said
    one = Opened(browser.new_page(viewport={"width": 1280, "height": 800}))
    one.page.goto(found[1])
    one.until("notes", "Nothing.")
    one.until("backends", "✓ up")
    one.page.fill("#words", "Hello, quickstart!")
    one.page.press("#words", "Enter")
    one.until("talk", "complete after")
    one.until("models", "simulator")
    assert one.page.locator("#facts", has_text="1 key").count() == 1
    assert "Hello, quickstart!" not in one.page.inner_text("#live")
    one.page.close()
    assert one.said == []
    assert running.stop() == 0
