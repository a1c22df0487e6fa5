"""Heat maps of attention weights, one head or several."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float

from mha.viz import legend
from mha.viz.grid import Grid, as_array, as_mask, check_labels
from mha.viz.svg import Figure, Panel, start, text_width
from mha.viz.theme import COLORS, resolve, tone

Array = torch.Tensor | np.ndarray
ANNOTATED = 34  # pixels of a cell that holds a number


def heatmap(
    weights: Float[Array, "T S"],
    query_labels: Sequence[object] | None = None,
    key_labels: Sequence[object] | None = None,
    *,
    alt: str,
    title: str | None = None,
    allowed: Bool[Array, "#T #S"] | None = None,
    annotate: bool | None = None,
    decimals: int = 2,
    vmin: float | None = None,
    vmax: float | None = None,
    rows: str = "queries",
    columns: str = "keys",
    color: str = "weights",
) -> Figure:
    """A heat map with queries on the rows and keys on the columns, both labeled.

    Args:
        weights: (T, S) numbers; -inf, a masked score, is hatched.
        query_labels, key_labels: T and S tokens; None = 0, 1, ...
        alt: what the figure shows, at least four words.
        title: stands above.
        allowed: bool, broadcasts to (T, S); True = may attend, the rest is hatched.
        annotate: write the numbers into the cells; None = where few.
        decimals: to which the written numbers are rounded.
        vmin, vmax: the ends of the scale; None = 0, or -vmax where a number is negative, and a
            round number not below the largest.
        rows, columns: what the axes are called.
        color: a name in ``COLORS`` or '#rrggbb'.
    Returns: the figure; where no numbers are written, with its scale below.
    Errors: ValueError for another number of axes or labels, nan or +inf, an empty scale, a short
        ``alt``; TypeError if ``allowed`` is not bool.

    Examples:
        >>> import torch
        >>> import mha
        >>> weights = torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.75, 0.0]])  # (T, S)
        >>> figure = mha.viz.heatmap(weights, ["a", "b"], alt="Weights of two queries on three keys.")
        >>> figure
        Figure('Weights of two queries on three keys.')
        >>> ">0.75</text>" in figure.html
        True
    """
    weights = as_array(weights, "weights", 2)
    query_labels = check_labels(query_labels, weights.shape[0], "query_labels")
    key_labels = check_labels(key_labels, weights.shape[1], "key_labels")
    weights, blocked = _split_blocked(weights, allowed)
    if annotate is None:
        annotate = weights.shape[0] <= 12 and weights.shape[1] <= 8
    scale = _scale(weights, blocked, vmin, vmax)
    texts = _texts(weights, blocked, decimals) if annotate else None
    cell = None
    if texts is not None:
        cell = max(ANNOTATED, 6 + max(text_width(text, 11) for row in texts for text in row))
    panel = Grid(query_labels, key_labels, rows, columns, title, cell=cell)
    _paint(panel, weights, blocked, scale, resolve(color), texts)
    if texts is None:
        draw_scale(panel, panel.left, panel.bottom + 12, scale, resolve(color), blocked.any())
    return Figure([panel], alt)


def head_grid(
    weights: Float[Array, "H T S"],
    query_labels: Sequence[object] | None = None,
    key_labels: Sequence[object] | None = None,
    *,
    alt: str,
    titles: Sequence[str] | None = None,
    ncols: int | None = None,
    allowed: Bool[Array, "#H #T #S"] | None = None,
    annotate: bool = False,
    decimals: int = 2,
    vmax: float | None = None,
) -> Figure:
    """One heat map for each head, all on one scale; they wrap where the page is narrow.

    Args:
        weights: (H, T, S).
        query_labels, key_labels: T and S tokens; None = 0, 1, ...
        alt: what the figure shows, at least four words.
        titles: H titles; None = head 0, head 1, ...
        ncols: at most so many panels in a row; None = as fit.
        allowed: bool, broadcasts to (H, T, S); True = may attend, the rest is hatched.
        annotate, decimals, vmax: as in ``heatmap``.
    Returns: the figure.
    Errors: ValueError for another number of axes, labels or titles, nan or +inf, a short ``alt``;
        TypeError if ``allowed`` is not bool.

    Examples:
        >>> import torch
        >>> import mha
        >>> weights = torch.full((2, 3, 3), 1 / 3)  # (H, T, S)
        >>> figure = mha.viz.head_grid(weights, list("abc"), list("abc"), alt="Two heads, all even.")
        >>> len(figure.panels)  # a head each, and the scale
        3
        >>> "head 1" in figure.html
        True
    """
    weights = as_array(weights, "weights", 3)
    heads = weights.shape[0]
    query_labels = check_labels(query_labels, weights.shape[1], "query_labels")
    key_labels = check_labels(key_labels, weights.shape[2], "key_labels")
    titles = [f"head {h}" for h in range(heads)] if titles is None else list(titles)
    if len(titles) != heads:
        raise ValueError(f"titles must be {heads} titles; got {len(titles)}")
    if ncols is not None and ncols < 1:
        raise ValueError(f"ncols must be at least 1; got {ncols}")
    weights, blocked = _split_blocked(weights, allowed)
    scale = _scale(weights, blocked, None, vmax)
    panels = []
    for h in range(heads):
        texts = _texts(weights[h], blocked[h], decimals) if annotate else None
        panel = Grid(
            query_labels,
            key_labels,
            "queries",
            "keys",
            titles[h],
            room=130,
            cell=ANNOTATED if annotate else None,
        )
        _paint(panel, weights[h], blocked[h], scale, COLORS["weights"], texts)
        panels.append(panel)
    if not annotate:
        key = Panel(0, 0)
        draw_scale(key, 0, 0, scale, COLORS["weights"], blocked.any())
        panels.append(key)
    return Figure(panels, alt, columns=ncols)


def round_up(value: float) -> float:
    """The least round number, such as 0.4 or 3, that is not below ``value``; 1 for 0."""
    value = round(value, 6)
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    steps = (1, 1.5, 2, 3, 4, 5, 6, 8, 10)
    return round(next(s for s in steps if s * power >= value * (1 - 1e-9)) * power, 9)


def _split_blocked(weights, allowed):
    blocked = np.isneginf(weights)
    if allowed is not None:
        blocked = blocked | ~as_mask(allowed, "allowed", weights.shape)
    if not np.isfinite(weights[~blocked]).all():
        raise ValueError("weights must hold no nan and no +inf where attention is allowed")
    return np.where(blocked, 0.0, weights), blocked


def _scale(weights, blocked, vmin, vmax):
    seen = weights[~blocked] if not blocked.all() else np.zeros(1)
    if vmax is None:
        vmax = round_up(float(np.abs(seen).max()))
    if vmin is None:
        vmin = -vmax if seen.min() < 0 else 0.0
    if not vmin < vmax:
        raise ValueError(f"vmin must be below vmax; got {vmin} and {vmax}")
    return vmin, vmax


def _texts(weights, blocked, decimals):
    def write(value, hidden):
        if hidden:
            return ""
        return f"{round(value, decimals) + 0.0:.{decimals}f}".replace("-", "−")

    return [
        [write(float(v), b) for v, b in zip(row, hidden, strict=True)]
        for row, hidden in zip(weights, blocked, strict=True)
    ]


def _levels(weights, scale):
    vmin, vmax = scale
    if vmin < 0:
        return np.clip(np.abs(weights) / max(-vmin, vmax), 0, 1)
    return np.clip((weights - vmin) / (vmax - vmin), 0, 1)


def _paint(panel, weights, blocked, scale, color, texts):
    levels = np.where(blocked, 0.0, _levels(weights, scale))
    # A level that rounds to zero has no sign: that of a rounding error differs between machines.
    negative = (weights < 0) & (levels.round(4) > 0) & (scale[0] < 0)
    panel.fill(np.where(negative, 0.0, levels), color, stepped=texts is not None)
    if negative.any():
        panel.fill(np.where(negative, levels, 0.0), COLORS["negative"], stepped=texts is not None)
    panel.hatch(blocked)
    panel.rule()
    if texts is not None:
        panel.write(texts, levels)
    elif negative.any():
        panel.minus(negative)


def draw_scale(panel, x, y, scale, color, hatched):
    """Draw the scale, and what hatched cells mean, at (x, y)."""
    vmin, vmax = scale
    low, high = (f"{v:g}".replace("-", "−") for v in scale)
    x = math.ceil(legend.word(panel, x, y, low)) + 5
    steps, width = 20, 5
    d = start(x, y) + f"h{steps * width}v{legend.SIZE}h-{steps * width}z"
    for i in range(steps):
        value = vmin + (i + 0.5) / steps * (vmax - vmin)
        hue = COLORS["negative"] if value < 0 else color
        level = tone(float(_levels(np.array(value), scale)))
        legend.swatch(panel, x + i * width, y, hue, level, width)
    panel.add("path", d=d, fill="none", stroke="currentColor", stroke_opacity=0.55)
    x = legend.word(panel, x + steps * width + 5, y, high) + 14
    if hatched:
        legend.hatched(panel, x, y)
        legend.word(panel, x + 17, y, "masked")
