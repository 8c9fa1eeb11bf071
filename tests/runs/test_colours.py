"""The colours of a drawing."""

from __future__ import annotations

import pytest
from rich.color import Color

from local_vllm.runs.colours import COLOURS

SMALLEST_CONTRAST = 3.0  # of large or bold text, by WCAG


def luminance(number: int) -> float:
    channels = [value / 255 for value in Color.parse(f"color({number})").get_truecolor()]
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("number", COLOURS)
def test_a_colour_is_read_on_black_and_on_white(number: int) -> None:
    assert (luminance(number) + 0.05) / 0.05 >= SMALLEST_CONTRAST
    assert 1.05 / (luminance(number) + 0.05) >= SMALLEST_CONTRAST


def test_servers_beside_each_other_have_colours_of_their_own() -> None:
    assert len(set(COLOURS)) == len(COLOURS)
