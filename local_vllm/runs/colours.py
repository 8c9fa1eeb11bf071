"""A colour for each server of a drawing, readable on a dark and on a light terminal."""

from __future__ import annotations

from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style
from rich.text import Text

from local_vllm.plan.drawing import Paint

# Of middling brightness, each unlike those beside it: blue, orange, green, magenta, teal, brown, violet, red.
COLOURS = (33, 166, 28, 163, 30, 130, 99, 160)


def painter(console: Console) -> Paint:
    """Wraps a text in the colour of a server; where `console` shows no colours, it leaves the text alone."""
    if console.color_system is None or console.no_color:
        return lambda text, server: text
    styles = [Style.parse(f"bold color({number})") for number in COLOURS]
    return lambda text, server: styles[server % len(styles)].render(text, color_system=ColorSystem.EIGHT_BIT)


def print_painted(console: Console, text: str) -> None:
    """Print a painted text in what colours the terminal has, no line folded: lines are there to be copied."""
    console.print(Text.from_ansi(text), soft_wrap=True)


def drawing_width(console: Console) -> int | None:
    """How wide a drawing may be; a file has no width."""
    return console.width if console.is_terminal else None
