"""A table of cells with a label on each row and column: the ground of heat maps and masks."""

import textwrap
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

from mha.viz.svg import Panel, number, start, text_width, visible
from mha.viz.theme import COLORS, PAPER, mixed, tone

FONT = 12
WIDTH, HEIGHT = 300, 420  # pixels of the cells together: they fit a phone
AXIS_COLORS = {"queries": COLORS["query"], "keys": COLORS["key"]}


def as_array(values, argument: str, ndim: int) -> np.ndarray:
    """A float64 array with ``ndim`` axes, none empty.

    Errors: TypeError if it holds no numbers, ValueError for another shape, naming ``argument``.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().to("cpu", torch.float64).numpy()
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{argument} must hold numbers; got {type(values).__name__}") from error
    if array.ndim != ndim or 0 in array.shape:
        raise ValueError(f"{argument} must have {ndim} axes, none empty; got shape {array.shape}")
    return array


def as_mask(mask, argument: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """A bool array, broadcast to ``shape`` if one is given.

    Errors: TypeError unless it is bool, ValueError if it does not fit, naming ``argument``.
    """
    array = mask.detach().cpu().numpy() if isinstance(mask, torch.Tensor) else np.asarray(mask)
    if array.dtype != bool:
        raise TypeError(
            f"{argument} must be bool, True = may attend; got {array.dtype}: call .bool()"
        )
    if shape is None:
        return array
    try:
        return np.broadcast_to(array, shape)
    except ValueError as error:
        raise ValueError(
            f"{argument} of shape {array.shape} does not broadcast to {shape}"
        ) from error


def check_labels(labels: Sequence[object] | None, count: int, argument: str) -> list[str]:
    """The labels as they are shown; 0, 1, 2, ... where there are none.

    Errors: ValueError unless there are ``count``, naming ``argument``.
    """
    if labels is None:
        return [str(i) for i in range(count)]
    labels = [visible(label) for label in labels]
    if len(labels) != count:
        raise ValueError(f"{argument} must be {count} labels; got {len(labels)}")
    return labels


def _counted(labels: list[str]) -> bool:
    """Whether the labels are 0, 1, 2, ..., so that one may be left out where there is no room."""
    return labels == [str(i) for i in range(len(labels))]


def _every(least: float) -> int:
    """The smallest round step that is at least ``least``."""
    return next(step for step in (1, 2, 5, 10, 20, 50, 100, 10**9) if step >= least)


class Grid(Panel):
    """A panel with one square cell for each pair of a row and a column label.

    Args:
        row_labels, column_labels: as ``check_labels`` gives them.
        rows, columns: what the axes are called.
        title: stands above. room: about how many pixels wide the cells are together.
        cell: pixels of a cell's side; None = what fits ``room``.
        note_width: pixels kept free at the right.
    """

    def __init__(
        self,
        row_labels: list[str],
        column_labels: list[str],
        rows: str,
        columns: str,
        title: str | None = None,
        *,
        room: float = WIDTH,
        cell: float | None = None,
        note_width: float = 0,
    ):
        super().__init__()
        self.rows, self.columns = len(row_labels), len(column_labels)
        least = 4 if _counted(row_labels) and _counted(column_labels) else 13
        self.cell = cell or max(least, min(room // self.columns, HEIGHT // self.rows, 36))
        self.font = min(FONT, max(9.0, 0.8 * self.cell))
        widths = [text_width(label, self.font) for label in column_labels]
        turned = max(widths) > self.cell - 2 and not _counted(column_labels)
        self.left = 30 + max(text_width(label, self.font) for label in row_labels)
        self.right = self.left + self.columns * self.cell
        reach = self.right + max(note_width, 2)  # how far to the right anything is drawn
        if turned:
            ends = (self.left + (j + 0.5) * self.cell + 0.71 * w for j, w in enumerate(widths))
            reach = max(reach, max(ends) + 6)
        self.width = max(reach, self.left + text_width(columns, FONT) + 24)
        top = self._draw_title(title or "")
        self.top = top + 23 + (0.71 * max(widths) + self.font if turned else self.font + 4)
        self.bottom = self.top + self.rows * self.cell
        self.height = self.bottom + 3
        self._draw_axes(rows, columns, top)
        self._draw_row_labels(row_labels)
        self._draw_column_labels(column_labels, turned, max(widths))

    def _draw_title(self, title: str) -> float:
        lines = textwrap.wrap(title, max(28, int(self.width / 7.6)), break_long_words=False)
        self.width = max([self.width, *(text_width(line, 13) for line in lines)])
        for i, line in enumerate(lines):
            self.text(0, 9 + 19 * i, line, 13, font_weight="bold")
        return 19 * len(lines)

    def _draw_axes(self, rows: str, columns: str, top: float) -> None:
        look = {"font_style": "italic", "opacity": 0.8}
        self.text(self.left, top + 8, f"{columns} →", FONT, **look)
        length = text_width(rows, FONT) + 20
        middle = self.top + max(self.rows * self.cell, length) / 2
        self.height = max(self.height, middle + length / 2)
        self.text(8, middle, f"← {rows}", FONT, turn=-90, text_anchor="middle", **look)
        x0, y0, x1, y1 = map(number, (self.left - 3, self.top - 3, self.right, self.bottom))
        for name, d in (
            (rows, f"M{x0} {number(self.top)}V{y1}"),
            (columns, f"M{number(self.left)} {y0}H{x1}"),
        ):
            if name in AXIS_COLORS:
                self.add("path", d=d, stroke=AXIS_COLORS[name], stroke_width=3)

    def _draw_row_labels(self, labels: list[str]) -> None:
        every = _every(11 / self.cell)
        for i in range(0, self.rows, every):
            y = self.top + (i + 0.5) * self.cell
            self.text(self.left - 8, y, labels[i], self.font, text_anchor="end")

    def _draw_column_labels(self, labels: list[str], turned: bool, widest: float) -> None:
        every = _every((widest + 6) / self.cell) if _counted(labels) else 1
        for j in range(0, self.columns, every):
            x = self.left + (j + 0.5) * self.cell
            if turned:
                self.text(x, self.top - 9, labels[j], self.font, turn=-45)
            else:
                y = self.top - 8 - self.font / 2
                self.text(x, y, labels[j], self.font, text_anchor="middle")

    def fill(self, levels: np.ndarray, color: str, stepped: bool = False) -> None:
        """Fill each cell as strongly as its level in [0, 1] says; one at 0 stays empty."""
        runs: dict[float, str] = defaultdict(str)
        tones = [[tone(level, stepped) for level in row] for row in levels.round(4).tolist()]
        for i, row in enumerate(tones):
            first = 0  # of a run of cells of one tone
            for j in range(1, self.columns + 1):
                if j == self.columns or row[j] != row[first]:
                    runs[row[first]] += f"M{first} {i}h{j - first}"
                    first = j
        runs.pop(0.0, None)
        middle = number(self.top + self.cell / 2)
        place = f"translate({number(self.left)} {middle}) scale({number(self.cell)})"
        strokes = "".join(
            f'<path stroke-opacity="{number(level)}" d="{runs[level]}"/>' for level in sorted(runs)
        )
        self.parts.append(
            f'<g transform="{place}" fill="none" stroke="{color}" style="{mixed(color)}" '
            f'shape-rendering="crispEdges">{strokes}</g>'
        )

    def hatch(self, blocked: np.ndarray) -> None:
        """Hatch the cells where ``blocked`` is True."""
        c, half = self.cell, self.cell / 2
        stripes = [(0, c, c)] if c < 12 else [(0, half, half), (0, c, c), (half, c, half)]
        d = "".join(
            start(self.left + j * c + x, self.top + i * c + y)
            + f"l{number(length)} -{number(length)}"
            for i, j in np.argwhere(blocked)
            for x, y, length in stripes
        )
        if d:
            self.add(
                "path",
                d=d,
                stroke="currentColor",
                stroke_opacity=0.45,
                fill="none",
                class_="mha-hatch",
            )

    def minus(self, negative: np.ndarray) -> None:
        """Draw a minus sign into the cells where ``negative`` is True."""
        c = self.cell
        d = "".join(
            start(self.left + (j + 0.3) * c, self.top + (i + 0.5) * c) + f"h{number(0.4 * c)}"
            for i, j in np.argwhere(negative)
        )
        self.add("path", d=d, stroke="currentColor", stroke_opacity=0.7)

    def rule(self) -> None:
        """Draw the frame, and lines between cells that are large enough."""
        x0, y0, x1, y1 = map(number, (self.left, self.top, self.right, self.bottom))
        if self.cell >= 10:
            d = "".join(
                f"M{x0} {number(self.top + i * self.cell)}H{x1}" for i in range(1, self.rows)
            ) + "".join(
                f"M{number(self.left + j * self.cell)} {y0}V{y1}" for j in range(1, self.columns)
            )
            self.add("path", d=d, stroke="currentColor", stroke_opacity=0.2)
        d = f"M{x0} {y0}H{x1}V{y1}H{x0}z"
        self.add("path", d=d, stroke="currentColor", stroke_opacity=0.55, fill="none")

    def write(self, texts: list[list[str]], levels: np.ndarray) -> None:
        """Write a text into each cell, in paper where the cell's level is at least a half."""
        ink, paper = [], []
        for i, row in enumerate(texts):
            for j, text in enumerate(row):
                x = number(self.left + (j + 0.5) * self.cell)
                y = number(self.top + (i + 0.5) * self.cell + 4)
                side = paper if levels[i, j].round(4) >= 0.5 else ink
                side.append(f'<text x="{x}" y="{y}">{text}</text>')
        self.parts.append(
            f'<g font-size="11" text-anchor="middle">{"".join(ink)}'
            f'<g fill="#fff" style="fill:{PAPER}">{"".join(paper)}</g></g>'
        )
