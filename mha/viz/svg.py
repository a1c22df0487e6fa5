"""Small SVG pictures written by hand, for a page that is light or dark, wide or narrow."""

import re
import unicodedata
from html import escape
from pathlib import Path

GAP = 16  # pixels between two panels
SMALLEST = 0.75  # of its natural width: where a panel stops shrinking, and scrolls
SAVE_WIDTH = 760  # pixels, the width at which a saved figure wraps
# The theme of Jupyter Book puts HTML outputs on a pale box in dark mode; figures need none.
BOX = (
    "<style>.text_html:has(>.mha-figure){background:none!important;"
    "color:inherit!important;padding:0!important}</style>"
)
CJK = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff"


def number(value: float) -> str:
    """A coordinate with at most two decimals, so that no last digit depends on the processor."""
    text = f"{round(float(value), 2) + 0.0:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def start(x: float, y: float) -> str:
    """The start of a path at (x, y)."""
    return f"M{number(x)} {number(y)}"


def visible(token: object, limit: int = 14) -> str:
    """A token as it is shown: outer spaces and control characters as signs, a long one cut."""
    signs = {10: "⏎", 9: "⇥", 127: "␡"}
    text = re.sub(r"^ +| +$", lambda spaces: "␣" * len(spaces[0]), str(token))
    text = re.sub(
        "[\x00-\x1f\x7f]", lambda c: signs.get(ord(c[0]), chr(0x2400 + ord(c[0]) % 127)), text
    )
    return text if len(text) <= limit else text[: limit - 1] + "…"


def text_width(text: str, size: float) -> float:
    """About how many pixels ``text`` takes at a font size in pixels."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return size * (wide + 0.6 * (len(text) - wide))


def check_alt(alt: str) -> str:
    """``alt``, on one line.

    Errors: TypeError if it is no string, ValueError if it has fewer than four words.
    """
    if not isinstance(alt, str):
        raise TypeError(f"alt must be a string that says what the figure shows; got {alt!r}")
    if len(re.findall(rf"[{CJK}]|[^\s{CJK}]+", alt)) < 4:
        raise ValueError(f"alt must say what the figure shows in at least four words; got {alt!r}")
    return " ".join(alt.split())


class Panel:
    """One picture of ``width`` x ``height`` pixels; ``parts`` collects its elements."""

    def __init__(self, width: float = 0, height: float = 0):
        self.width, self.height = width, height
        self.parts: list[str] = []

    def add(self, tag: str, **attributes: object) -> None:
        """Add an element; ``_`` in a name stands for ``-``, and None is left out."""
        self.parts.append(f"<{tag}{_attributes(attributes)}/>")

    def text(self, x: float, y: float, text: str, size: float = 12, **attributes: object) -> None:
        """Write ``text`` with its middle at height ``y``; ``turn`` turns it by so many degrees."""
        turn = attributes.pop("turn", None)
        if turn is None:
            place = {"x": x, "y": y + 0.35 * size}
        else:
            place = {
                "transform": f"translate({number(x)} {number(y)}) rotate({turn})",
                "y": 0.35 * size,
            }
        attributes = place | {"font_size": size} | attributes
        self.parts.append(f"<text{_attributes(attributes)}>{escape(text)}</text>")

    def inner(self) -> str:
        return "".join(self.parts)

    def svg(self) -> str:
        width, height = number(self.width), number(self.height)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" aria-hidden="true" fill="currentColor" '
            f'style="min-width:{number(SMALLEST * self.width)}px;height:auto;overflow:visible">'
            f"{self.inner()}</svg>"
        )


def _attributes(attributes: dict[str, object]) -> str:
    out = ""
    for name, value in attributes.items():
        if value is None:
            continue
        value = number(value) if isinstance(value, (int, float)) else escape(str(value))
        out += f' {name.rstrip("_").replace("_", "-")}="{value}"'
    return out


class Figure:
    """Panels that stand in a row and wrap where the page is narrow, with one alternative text.

    Args:
        panels: in their order, as the ``panels`` of other figures.
        alt: what the figure shows, at least four words.
        columns: at most so many panels in a row; None = as fit.
    Errors: ValueError for a short ``alt``, TypeError if it is no string.

    Examples:
        >>> import mha
        >>> figure = mha.viz.mask(mha.masks.causal(3))
        >>> figure
        Figure('Mask of 3 queries by 3 keys: 6 of 9 pairs may attend.')
        >>> 'role="img" aria-label="Mask of 3 queries by 3 keys' in figure.html
        True
        >>> both = mha.viz.Figure(2 * figure.panels, "The same causal mask twice.", columns=1)
        >>> len(both.panels), both.alt
        (2, 'The same causal mask twice.')
    """

    def __init__(self, panels: list[Panel], alt: str, columns: int | None = None):
        self.panels = panels
        self.alt = check_alt(alt)
        self.columns = columns

    @property
    def html(self) -> str:
        """The figure as HTML, the same to the letter each time."""
        width = ""
        if self.columns is not None:
            widest = max(panel.width for panel in self.panels)
            width = f"max-width:{number(self.columns * (widest + GAP))}px;"
        pictures = BOX + "".join(panel.svg() for panel in self.panels)
        return (
            f'<div class="mha-figure" role="img" aria-label="{escape(self.alt)}" '
            f'style="display:flex;flex-wrap:wrap;align-items:flex-end;gap:{GAP}px;{width}'
            f'margin:.5em 0;line-height:1.2">{pictures}</div>'
        )

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"Figure({self.alt!r})"

    def save(self, path: str | Path) -> None:
        """Write one SVG file to ``path``, its panels laid out as on a page of 760 pixels."""
        whole, y = Panel(), 0.0
        for row in self._rows():
            height, x = max(panel.height for panel in row), 0.0
            for panel in row:
                place = f"translate({number(x)} {number(y + height - panel.height)})"
                whole.parts.append(f'<g transform="{place}">{panel.inner()}</g>')
                x += panel.width + GAP
            whole.width = max(whole.width, x - GAP)
            y += height + GAP
        width, height = number(whole.width), number(y - GAP)
        Path(path).write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" aria-label="{escape(self.alt)}" '
            f'fill="currentColor" font-family="sans-serif">{whole.inner()}</svg>\n',
            encoding="utf-8",
        )

    def _rows(self) -> list[list[Panel]]:
        rows: list[list[Panel]] = []
        for panel in self.panels:
            taken = sum(other.width + GAP for other in rows[-1]) if rows else SAVE_WIDTH
            if taken + panel.width > SAVE_WIDTH or len(rows[-1]) == self.columns:
                rows.append([])
            rows[-1].append(panel)
        return rows
