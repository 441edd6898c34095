"""Elements into HTML: any text that goes in comes out as text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aiaas.loadtest.html.markup import plain, tag, to_html
from tests.loadtest.html.runs import read, words

NASTY = '</p></style><script>alert(1)</script><img src=x onerror="a" \'&amp;'


def test_text_and_attributes_are_never_markup() -> None:
    """Read back by a parser, both are what was put in, and no element came of them."""
    found = read(to_html(tag("p", NASTY, tag("b", NASTY), NASTY, title=NASTY)))
    assert words(found) == NASTY * 3
    assert found.attrib["title"] == NASTY
    assert [element.tag for element in found.iter()] == ["p", "b"]


@given(text=st.text())
def test_any_text_can_be_shown(text: str) -> None:
    """Control characters and halves of surrogate pairs, too: the page can be written as UTF-8."""
    html = to_html(tag("p", text, title=text))
    html.encode("utf-8")
    assert len(words(read(html)).replace("\n", "")) <= len(text)


def test_unprintable_character_leaves_a_mark() -> None:
    """A reader sees that a character was there."""
    assert words(read(to_html(tag("p", "a\x00b\x1bc\ud800d\te")))) == "a\ufffdb\ufffdc\ufffdd\te"


def test_none_leaves_out() -> None:
    """A child or an attribute."""
    assert to_html(tag("p", None, "a", class_=None)) == "<!DOCTYPE html>\n<p>a</p>\n"


def test_names_and_numbers_are_written_as_svg_has_them() -> None:
    """`class_` is `class`, `stroke_width` is `stroke-width`."""
    found = tag("p", class_="a", stroke_width=1.5, x=2.0)
    assert found.attrib == {"class": "a", "stroke-width": "1.5", "x": "2"}
    assert [plain(value) for value in (1 / 3, 10.0, 7)] == ["0.333", "10", "7"]
