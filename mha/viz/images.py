"""Attention drawn on the image it looks at."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from mha.viz import legend
from mha.viz.grid import as_array
from mha.viz.svg import Figure, Panel, number, start
from mha.viz.theme import COLORS, mixed, tone
from mha.viz.weights import draw_scale, round_up

Array = torch.Tensor | np.ndarray
SIDE, LARGEST = 144, 64


def image_attention(
    image: Float[Array, "h w"],
    weights: Float[Array, "H P"],
    patch_size: int,
    *,
    alt: str,
    titles: Sequence[str] | None = None,
    query: int | None = None,
    vmax: float | None = None,
) -> Figure:
    """One panel a head: the image as dots of ink, and behind each patch the head's weight on it.

    Args:
        image: (h, w) gray values, at most 64 x 64; the largest is drawn as the most ink.
        weights: (H, P), what one query gives to each patch, row by row;
            P = (h // patch_size) * (w // patch_size).
        patch_size: pixels of a patch's side; divides h and w.
        alt: what the figure shows, at least four words.
        titles: H titles; None = head 0, head 1, ...
        query: index of the patch that asks, drawn with a dashed frame.
        vmax: the weight drawn strongest; None = a round number above the largest.
    Returns: the figure. The strongest patch of each head has a frame, and its weight stands below.
    Errors: ValueError for a size that does not fit, weights that are negative or not finite, and
        a short ``alt``; TypeError for what holds no numbers.

    Examples:
        >>> import torch
        >>> import mha
        >>> image = torch.zeros(8, 8)
        >>> image[2:6, 3:5] = 1
        >>> weights = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]])  # (H, P)
        >>> figure = mha.viz.image_attention(image, weights, 4, alt="Two heads on a bar.", query=0)
        >>> ["strongest patch: 0.70" in panel.inner() for panel in figure.panels]
        [False, True, False]
    """
    image, weights = as_array(image, "image", 2), as_array(weights, "weights", 2)
    height, width = image.shape
    if max(height, width) > LARGEST:
        raise ValueError(f"image must be at most {LARGEST} x {LARGEST}; got {height} x {width}")
    if patch_size < 1 or height % patch_size or width % patch_size:
        raise ValueError(f"patch_size must divide {height} and {width}; got {patch_size}")
    patches = (height // patch_size) * (width // patch_size)
    if weights.shape[1] != patches:
        raise ValueError(f"weights must be (H, {patches}); got shape {weights.shape}")
    if query is not None and not 0 <= query < patches:
        raise ValueError(f"query must be a patch from 0 to {patches - 1}; got {query}")
    titles = [f"head {h}" for h in range(len(weights))] if titles is None else list(titles)
    if len(titles) != len(weights):
        raise ValueError(f"titles must be {len(weights)} titles; got {len(titles)}")
    if not np.isfinite(weights).all() or weights.min() < 0:
        raise ValueError("weights must be finite and not negative")
    vmax = round_up(float(weights.max())) if vmax is None else vmax
    if vmax <= 0:
        raise ValueError(f"vmax must be positive; got {vmax}")
    panels = [
        _picture(image, row, patch_size, title, query, vmax)
        for row, title in zip(weights, titles, strict=True)
    ]
    key = Panel()
    draw_scale(key, 0, 0, (0.0, vmax), COLORS["weights"], hatched=False)
    if query is not None:
        key.add("path", d="M1 23h10v10h-10z", **_frame("3 2"))
        legend.word(key, 17, 22, "the patch that asks")
    return Figure([*panels, key], alt)


def _frame(dashes: str | None = None) -> dict[str, object]:
    return {
        "fill": "none",
        "stroke": "currentColor",
        "stroke_width": 2,
        "stroke_dasharray": dashes,
    }


def _square(x: float, y: float, side: float, inset: float) -> str:
    inner = number(side - 2 * inset)
    return start(x + inset, y + inset) + f"h{inner}v{inner}h-{inner}z"


def _picture(image, weights, patch_size, title, query, vmax):
    height, width = image.shape
    pixel = max(2, SIDE // max(height, width))
    side, across = pixel * patch_size, width // patch_size
    panel = Panel(width * pixel + 2, height * pixel + 42)
    panel.text(1, 9, title, 13, font_weight="bold")

    def corner(patch):
        return 1 + patch % across * side, 21 + patch // across * side

    for patch, weight in enumerate(weights):
        x, y = corner(patch)
        level = tone(min(1.0, round(float(weight) / vmax, 4)))
        d = start(x, y + side / 2) + f"h{side}"
        if level:
            look = {"stroke": COLORS["weights"], "style": mixed(COLORS["weights"])}
            panel.add("path", d=d, stroke_width=side, stroke_opacity=level, **look)
    panel.add("path", d=_dots(image, pixel))
    edges = f"M1 21h{width * pixel}v{height * pixel}h-{width * pixel}z"
    panel.add("path", d=edges, fill="none", stroke="currentColor", stroke_opacity=0.55)
    best = int(weights.round(6).argmax())
    x, y = corner(best)
    panel.add("path", d=_square(x, y, side, min(1, side / 8)), **_frame())
    if query is not None:
        x, y = corner(query)
        panel.add("path", d=_square(x, y, side, min(4, side / 4)), **_frame("3 2"))
    panel.text(1, panel.height - 9, f"strongest patch: {weights[best]:.2f}", 11)
    return panel


def _dots(image: np.ndarray, pixel: int) -> str:
    """Squares whose area grows with the gray value: a picture that needs no background."""
    top = image.max() if image.max() > 0 else 1.0
    sides = np.sqrt(np.clip(image / top, 0, 1)) * pixel * 0.85
    return "".join(
        start(1 + (j + 0.5) * pixel - s / 2, 21 + (i + 0.5) * pixel - s / 2)
        + f"h{number(s)}v{number(s)}h-{number(s)}z"
        for (i, j), s in np.ndenumerate(sides)
        if s > 0.5
    )
