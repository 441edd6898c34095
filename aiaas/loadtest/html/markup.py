"""Build HTML and SVG as a tree of elements, so that text from a run's file cannot become markup.

The standard library's serializer escapes text and attributes, and the functions here do not accept markup as text.
"""

from __future__ import annotations

import re
from typing import Final
from xml.etree.ElementTree import Element, tostring

Child = Element | str | None

# Characters that neither HTML nor XML allows: control characters, and the halves of surrogate pairs.
_UNPRINTABLE: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def tag(name: str, /, *children: Child, **attributes: str | float | None) -> Element:
    """Make an element. A child or an attribute that is None is left out.

    attributes   `class_` is written `class`, `stroke_width` `stroke-width`; numbers with at most three decimals
    """
    made = Element(name)
    for key, value in attributes.items():
        if value is not None:
            made.set(key.rstrip("_").replace("_", "-"), printable(value) if isinstance(value, str) else plain(value))
    for child in children:
        append(made, child)
    return made


def append(parent: Element, child: Child) -> None:
    """Append a child."""
    if isinstance(child, Element):
        parent.append(child)
    elif child is not None and len(parent):
        parent[-1].tail = (parent[-1].tail or "") + printable(child)
    elif child is not None:
        parent.text = (parent.text or "") + printable(child)


def printable(text: str) -> str:
    """Replace characters that cannot be shown with U+FFFD."""
    return _UNPRINTABLE.sub("\ufffd", text)


def plain(value: float) -> str:
    """Write a coordinate with at most three decimals."""
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def to_html(root: Element) -> str:
    """Return the whole document as text."""
    return "<!DOCTYPE html>\n" + tostring(root, encoding="unicode", method="html") + "\n"
