"""What the fillings mean, in words, below a picture."""

from mha.viz.svg import Panel, number, start, text_width
from mha.viz.theme import mixed

SIZE, FONT = 12, 11


def swatch(
    panel: Panel, x: float, y: float, color: str, opacity: float, width: float = SIZE
) -> None:
    """Draw a filled piece ``width`` wide, with its upper left corner at (x, y)."""
    panel.add(
        "path",
        d=start(x, y + SIZE / 2) + f"h{number(width)}",
        stroke=color,
        style=mixed(color),
        stroke_width=SIZE,
        stroke_opacity=opacity,
        shape_rendering="crispEdges",
    )


def hatched(panel: Panel, x: float, y: float) -> None:
    """Draw a hatched piece with its upper left corner at (x, y)."""
    d = start(x, y) + "h12v12h-12z" + start(x, y + 6) + "l6 -6m-6 12l12 -12m-6 12l6 -6"
    panel.add("path", d=d, fill="none", stroke="currentColor", stroke_opacity=0.55)


def word(panel: Panel, x: float, y: float, text: str) -> float:
    """Write ``text`` beside a piece drawn at (x, y); return where it ends."""
    panel.text(x, y + SIZE / 2, text, FONT)
    panel.width = max(panel.width, x + text_width(text, FONT))
    panel.height = max(panel.height, y + SIZE + 2)
    return x + text_width(text, FONT)
