"""HTML and SVG as a tree of elements, so that nothing that a run's file says can become markup.

Text and attributes are escaped by the serializer of the standard library, and no function here takes markup as text.
"""

from __future__ import annotations

import re
from typing import Final
from xml.etree.ElementTree import Element, tostring

Child = Element | str | None

# What neither HTML nor XML can carry: control characters, and the halves of surrogate pairs.
_UNPRINTABLE: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def tag(name: str, /, *children: Child, **attributes: str | float | None) -> Element:
    """An element. None leaves a child or an attribute out.

    attributes   `class_` is written `class`, `stroke_width` `stroke-width`; numbers with three decimals at the most
    """
    made = Element(name)
    for key, value in attributes.items():
        if value is not None:
            made.set(key.rstrip("_").replace("_", "-"), printable(value) if isinstance(value, str) else plain(value))
    for child in children:
        append(made, child)
    return made


def append(parent: Element, child: Child) -> None:
    """Put a child at the end."""
    if isinstance(child, Element):
        parent.append(child)
    elif child is not None and len(parent):
        parent[-1].tail = (parent[-1].tail or "") + printable(child)
    elif child is not None:
        parent.text = (parent.text or "") + printable(child)


def printable(text: str) -> str:
    """The text with a mark in place of what cannot be shown."""
    return _UNPRINTABLE.sub("\ufffd", text)


def plain(value: float) -> str:
    """A coordinate: three decimals at the most."""
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def to_html(root: Element) -> str:
    """The whole document as text."""
    return "<!DOCTYPE html>\n" + tostring(root, encoding="unicode", method="html") + "\n"
