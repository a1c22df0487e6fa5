"""Pictures of masks."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool

from mha.viz import legend
from mha.viz.grid import Grid, as_mask, check_labels
from mha.viz.svg import Figure, text_width
from mha.viz.theme import COLORS

Array = torch.Tensor | np.ndarray


def mask(
    mask: Bool[Array, "*T S"],
    query_labels: Sequence[object] | None = None,
    key_labels: Sequence[object] | None = None,
    *,
    title: str | None = None,
    alt: str | None = None,
    rows: str = "queries",
    columns: str = "keys",
    meaning: tuple[str, str] = ("may attend", "may not"),
) -> Figure:
    """A picture of a mask: filled cells may be attended to, hatched cells may not.

    Args:
        mask: bool (T, S), or (S,) for all queries alike; True = may attend.
        query_labels: T tokens; None = 0, 1, ...; with a mask (S,) they say how many rows to draw.
        key_labels: S tokens; None = 0, 1, ...
        title: stands above.
        alt: what the figure shows, at least four words; None = the counts in words.
        rows, columns: what the axes are called.
        meaning: what filled and hatched cells stand for.
    Returns: the figure. A row that may see nothing says so.
    Errors: TypeError if ``mask`` is not bool; ValueError for another number of axes or
        labels, and for a short ``alt``.

    Examples:
        >>> import torch
        >>> import mha
        >>> allowed = mha.masks.causal(3) & torch.tensor([False, True, True])  # (T, S)
        >>> figure = mha.viz.mask(allowed, ["<pad>", "a", "b"], title="Causal, padded on the left")
        >>> print(figure.alt)
        Mask of 3 queries by 3 keys: 3 of 9 pairs may attend. Rows that see nothing: <pad>.
        >>> "sees nothing" in figure.html
        True
    """
    allowed = as_mask(mask, "mask")
    if allowed.ndim not in (1, 2) or 0 in allowed.shape:
        raise ValueError(
            f"mask must have shape (T, S) or (S,), not empty; got {allowed.shape}: "
            "pick one batch item and head"
        )
    if allowed.ndim == 1:
        count = 1 if query_labels is None else len(query_labels)
        allowed = np.broadcast_to(allowed, (count, len(allowed)))
    query_labels = check_labels(query_labels, allowed.shape[0], "query_labels")
    key_labels = check_labels(key_labels, allowed.shape[1], "key_labels")
    dead = ~allowed.any(axis=1)
    if alt is None:
        alt = (
            f"Mask of {allowed.shape[0]} {rows} by {allowed.shape[1]} {columns}: "
            f"{allowed.sum()} of {allowed.size} pairs may attend."
        )
        if dead.any():
            blind = ", ".join(query_labels[i] for i in np.flatnonzero(dead))
            alt += f" Rows that see nothing: {blind}."
    note = text_width("← sees nothing", 11) + 6 if dead.any() else 0
    panel = Grid(query_labels, key_labels, rows, columns, title, note_width=note)
    panel.fill(np.where(allowed, 0.75, 0.0), COLORS["weights"])
    panel.hatch(~allowed)
    panel.rule()
    for i in np.flatnonzero(dead):
        panel.text(panel.right + 6, panel.top + (i + 0.5) * panel.cell, "← sees nothing", 11)
    _draw_key(panel, *meaning)
    return Figure([panel], alt)


def _draw_key(panel: Grid, filled: str, hatched: str) -> None:
    """Say below the picture what filled and hatched cells mean."""
    x, y = panel.left, panel.bottom + 12
    legend.swatch(panel, x, y, COLORS["weights"], 0.75)
    x = legend.word(panel, x + 17, y, filled) + 12
    legend.hatched(panel, x, y)
    legend.word(panel, x + 17, y, hatched)
