"""The shape strip: how (B, T, E) becomes (B, H, T, D), and back."""

from collections.abc import Sequence
from itertools import groupby

import torch

from mha.heads import merge_heads, split_heads
from mha.viz.svg import Figure, Panel, number, start, text_width
from mha.viz.theme import HEAD_COLORS, resolve

Step = tuple[str, str, Sequence[int]]
ARROW, FONT, MOST_CELLS, MOST_SHEETS, STEP = 34, 12, 16, 4, 5


def shape_strip(steps: Sequence[Step], *, alt: str | None = None, color: str = "weights") -> Figure:
    """A row of labeled blocks, one a step, with the shape beneath; wraps where the page is narrow.

    Args:
        steps: (what was done, axis letters such as "B H T D", sizes), one to four axes each.
            The last two axes are a sheet of cells, the first is depth, one between more sheets.
        alt: what the figure shows; None = the steps and their shapes in words.
        color: of the cells, a name in ``COLORS`` or '#rrggbb'.
    Returns: the figure.
    Errors: ValueError without a step, for another number of axes, or sizes below 1.

    Examples:
        >>> import mha
        >>> figure = mha.viz.shape_strip(
        ...     [("x", "B T E", (2, 5, 8)), ("split", "B H T D", (2, 4, 5, 2))]
        ... )
        >>> print(figure.alt)
        The shape, step by step: x gives (B, T, E) = (2, 5, 8); split gives (B, H, T, D) = (2, 4, 5, 2).
    """
    if not steps:
        raise ValueError("steps must hold at least one step; got none")
    parsed = [_parse(step) for step in steps]
    if alt is None:
        said = (f"{name} gives {_shape(axes)} = {_shape(sizes)}" for name, axes, sizes in parsed)
        alt = "The shape, step by step: " + "; ".join(said) + "."
    panels = [_block(*step, resolve(color), first=i == 0) for i, step in enumerate(parsed)]
    return Figure(panels, alt)


def split_strip(
    batch: int = 2,
    length: int = 3,
    num_heads: int = 2,
    head_dim: int = 4,
    *,
    alt: str | None = None,
) -> Figure:
    """What ``split_heads`` and ``merge_heads`` do: numbers keep their names, heads their colors.

    Args:
        batch: B, at most 64; item 0 is drawn, in front.
        length: T, at most 6.
        num_heads: H, at most 8.
        head_dim: D; H times D is at most 16.
        alt: what the figure shows; None = the shapes in words.
    Returns: the figure; cell "b5" is feature 5 of token b.
    Errors: ValueError for sizes out of range.

    Examples:
        >>> import mha
        >>> figure = mha.viz.split_strip(batch=2, length=3, num_heads=2, head_dim=4)
        >>> len(figure.panels)  # from q_proj(x) to the merged heads
        5
        >>> print(figure.alt.partition(":")[0])
        Splitting 8 features into 2 heads and merging them again
    """
    for name, size, most in (
        ("batch", batch, 64),
        ("length", length, 6),
        ("num_heads", num_heads, len(HEAD_COLORS)),
        ("head_dim", head_dim, 16 // max(1, min(num_heads, 16))),
    ):
        if not 1 <= size <= most:
            raise ValueError(f"{name} must be from 1 to {most}; got {size}")
    width = num_heads * head_dim
    x = torch.arange(batch * length * width).view(batch, length, width)  # (B, T, H*D)
    apart = x.unflatten(-1, (num_heads, head_dim))  # (B, T, H, D)
    split = split_heads(x, num_heads)  # (B, H, T, D)
    merged = merge_heads(split)  # (B, T, H*D)
    shapes = [
        ("q_proj(x)", "B T H·D", x),
        ("view", "B T H D", apart),
        ("transpose(1, 2)", "B H T D", split),
        ("transpose(1, 2)", "B T H D", split.transpose(1, 2)),
        ("reshape", "B T H·D", merged),
    ]
    if alt is None:
        said = ", ".join(f"{name} {_shape(tuple(values.shape))}" for name, _, values in shapes)
        alt = f"Splitting {width} features into {num_heads} heads and merging them again: {said}."
    panels = []
    for i, (name, axes, values) in enumerate(shapes):
        panels.append(_numbered(name, axes, values, num_heads, head_dim, first=i == 0))
    return Figure(panels, alt)


def _parse(step: Step) -> tuple[str, tuple[str, ...], tuple[int, ...]]:
    name, axes, sizes = step
    letters = tuple(axes.replace("(", " ").replace(")", " ").replace(",", " ").split())
    sizes = tuple(int(size) for size in sizes)
    if len(letters) != len(sizes) or not 1 <= len(sizes) <= 4 or min(sizes) < 1:
        raise ValueError(
            f"step {name!r} must have one to four axes, each with a size; got {axes!r} and {sizes}"
        )
    return str(name), letters, sizes


def _shape(sizes: Sequence[object]) -> str:
    return f"({', '.join(map(str, sizes))}{',' if len(sizes) == 1 else ''})"


def _start(name: str, first: bool) -> tuple[Panel, float]:
    """A panel with the step's name, and where its picture begins: after room for an arrow."""
    panel = Panel()
    left = 4 if first else ARROW
    panel.text(left, 9, name, 13, font_weight="bold")
    panel.width = left + text_width(name, 13) + 6
    return panel, left


def _finish(panel: Panel, left: float, bottom: float, axes, sizes, first: bool) -> Panel:
    """Write the shape below the picture, draw the arrow at its middle."""
    mono = {"font_family": "ui-monospace,monospace"}
    panel.text(left, bottom + 14, _shape(axes), FONT, **mono)
    panel.text(left, bottom + 30, _shape(sizes), FONT, opacity=0.8, **mono)
    panel.width = max(panel.width, left + text_width(_shape(axes), 12.4) + 4)
    panel.width = max(panel.width, left + text_width(_shape(sizes), 12.4) + 4)
    panel.height = bottom + 39
    if not first:
        y = number((22 + bottom) / 2)
        d = f"M2 {y}h20m-6 -5l6 5l-6 5"
        panel.add("path", d=d, fill="none", stroke="currentColor", stroke_width=1.8)
    return panel


def _block(name, axes, sizes, color, first):
    panel, left = _start(name, first)

    def paint(sheet, x, y, wide, high):
        d = start(x, y + high / 2) + f"h{wide}"
        look = {"stroke": color, "stroke_opacity": 0.28}
        panel.add("path", d=d, stroke_width=high, **look)

    bottom = _sheets(panel, left, axes, sizes, 12, paint)
    return _finish(panel, left, bottom, axes, sizes, first)


def _numbered(name, axes, values, num_heads, head_dim, first):
    panel, left = _start(name, first)
    cell, axes, sizes = 25, axes.split(), tuple(values.shape)
    width = num_heads * head_dim
    item = values[0] if values.ndim == 4 else values[:1]  # (sheets, rows, columns)

    def paint(sheet, x, y, wide, high):
        names = ""
        for i, row in enumerate(item[sheet].tolist()):
            middle, j = y + (i + 0.5) * cell, 0
            for head, run in groupby(row, lambda value: value % width // head_dim):
                values = list(run)
                d = start(x + j * cell, middle) + f"h{len(values) * cell}"
                look = {"stroke": HEAD_COLORS[head], "stroke_opacity": 0.35}
                panel.add("path", d=d, stroke_width=cell, **look)
                for value in values:
                    place = f'x="{number(x + (j + 0.5) * cell)}" y="{number(middle + 4)}"'
                    names += f"<text {place}>{'abcdef'[value // width]}{value % width}</text>"
                    j += 1
        panel.parts.append(f'<g font-size="11" text-anchor="middle">{names}</g>')

    bottom = _sheets(panel, left, axes, sizes, cell, paint)
    return _finish(panel, left, bottom, axes, sizes, first)


def _sheets(panel, left, axes, sizes, cell, paint) -> float:
    """Draw the axes as depth, sheets, rows and columns; return the lower edge."""
    letters = (None,) * (4 - len(axes)) + tuple(axes)
    depth, sheets, rows, columns = (1,) * (4 - len(sizes)) + tuple(sizes)
    if len(sizes) == 3:  # the axis before the sheet is the batch: depth, not further sheets
        letters, depth, sheets = (letters[1], None, *letters[2:]), sheets, 1
    shown, behind = min(sheets, MOST_SHEETS), min(depth, MOST_SHEETS) - 1
    wide, high = min(columns, MOST_CELLS) * cell, min(rows, MOST_CELLS) * cell
    x, y = left + (16 if letters[2] else 0), 26 + STEP * behind
    right = x + wide + STEP * behind + 5
    note = {"font_style": "italic", "opacity": 0.8}
    if behind:
        panel.text(right, 24, letters[0], 11, **note)
    for sheet in range(shown):
        paint(sheet, x, y, wide, high)
        ink = {"fill": "none", "stroke": "currentColor"}
        panel.add("path", d=_lines(x, y, rows, columns, cell), stroke_opacity=0.3, **ink)
        panel.add("path", d=_cards(x, y, wide, high, behind), stroke_opacity=0.6, **ink)
        if letters[2]:
            panel.text(x - 10, y + high / 2, letters[2], 11, text_anchor="middle", **note)
        if letters[1]:
            panel.text(right, y + high / 2, f"{letters[1]} {sheet}", 11, **note)
        y += high + STEP * behind + 8
    panel.width = max(panel.width, right + (30 if letters[1] else 11))
    y -= STEP * behind + 8  # the lower edge of the last sheet
    more = f" (+{sheets - shown} more)" if sheets > shown else ""
    panel.text(x + wide / 2, y + 10, f"{letters[3]}{more}", 11, text_anchor="middle", **note)
    return y + 18


def _cards(x, y, wide, high, behind) -> str:
    """The outline of a sheet, and what shows of the sheets behind it."""
    front = start(x, y) + f"h{wide}v{high}h-{wide}z"
    back = (
        start(x + k * STEP, y - (k - 1) * STEP) + f"v-{STEP}h{wide}v{high}h-{STEP}"
        for k in range(1, behind + 1)
    )
    return front + "".join(back)


def _lines(x, y, rows, columns, cell) -> str:
    """The lines between the cells of a sheet; none along an axis that is too long to draw."""
    wide, high = min(columns, MOST_CELLS) * cell, min(rows, MOST_CELLS) * cell
    across = range(1, rows if rows <= MOST_CELLS else 1)
    down = range(1, columns if columns <= MOST_CELLS else 1)
    return "".join(start(x, y + i * cell) + f"h{wide}" for i in across) + "".join(
        start(x + j * cell, y) + f"v{high}" for j in down
    )
