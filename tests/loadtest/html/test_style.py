"""The style sheet: text and lines can be read, on light and on dark ground."""

from __future__ import annotations

import re

import pytest

from aiaas.loadtest.html.style import STYLE

LIGHT, DARK = (
    dict(re.findall(r"--(\w+): (#[0-9a-f]+);", block)) for block in re.findall(r":root \{(.*?)\}", STYLE, re.S)
)


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
    shares = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """From 1 to 21 (WCAG 2.2)."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_the_standard() -> None:
    """Its two extremes."""
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert contrast("#123456", "#123456") == 1


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("ground", ["ground", "panel"])
def test_words_and_lines_stand_out(colours: dict[str, str], ground: str) -> None:
    """Words by 4.5:1, series by 3:1."""
    for name, least in [("text", 4.5), ("quiet", 4.5), ("bound", 4.5), *((f"c{n}", 3) for n in range(1, 7))]:
        assert contrast(colours[name], colours[ground]) >= least, name


def test_both_schemes_have_every_colour() -> None:
    """None of the light ones is left on dark ground."""
    assert set(LIGHT) == set(DARK)
