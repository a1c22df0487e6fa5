"""The online softmax: one row of attention, read tile by tile, and always right so far."""

from collections.abc import Sequence

import numpy as np

from mha import reference
from mha.flash import rows
from mha.viz.lessons.base import Lesson
from mha.viz.svg import Figure, Panel
from mha.viz.theme import COLORS

COLUMN, ROW = 28, 22  # pixels
GROWING = (0.5, 1.2, 2.1, -0.4, 0.3, 2.9, 1.0, -1.3)  # a greater score comes twice


class OnlineSoftmax(Lesson):
    """One query that reads its keys tile by tile and keeps a maximum, a sum and an output.

    Args:
        scores: S numbers, 2 to 12. values: (S, D_v) numbers, D_v from 1 to 3; None = drawn.
        block: keys in a tile that it starts with, one of 1, 2, 3, 4.
        seed: of values that are drawn.
    Errors: ValueError for other sizes.
    Source: Milakov and Gimelshein (2018), algorithm 3; Dao et al. (2022), section 3.1.

    Examples:
        >>> from mha.viz import lessons
        >>> lessons.OnlineSoftmax([1.0, 3.0], [[1.0], [2.0]], block=1).state["scores"]
        [1.0, 3.0]
    """

    script = "online.js"
    blocks = (1, 2, 3, 4)

    def __init__(
        self,
        scores: Sequence[float] = GROWING,
        values: Sequence[Sequence[float]] | None = None,
        *,
        block: int = 2,
        seed: int = 0,
    ):
        row = np.array(scores, float)
        if row.ndim != 1 or not 2 <= len(row) <= 12:
            raise ValueError(f"scores must be 2 to 12 numbers; got shape {row.shape}")
        drawn = np.random.default_rng(seed).normal(size=(len(row), 2)).round(1) + 0.0
        v = drawn if values is None else np.array(values, float)
        if v.ndim != 2 or len(v) != len(row) or not 1 <= v.shape[1] <= 3:
            raise ValueError(f"values must be ({len(row)}, 1 to 3); got shape {v.shape}")
        if block not in self.blocks:
            raise ValueError(f"block must be one of {self.blocks}; got {block}")
        states = rows.online_softmax(row, v, block=block)
        done = min(2, len(states) - 1)
        alt = "one row of attention, read tile by tile, beside the exact row"
        stills = sorted({1, done, len(states) - 1})
        super().__init__(
            {
                "scores": row.tolist(),
                "values": v.tolist(),
                "blocks": list(self.blocks),
                "block": block,
                "done": done,
            },
            Figure([_panel(row, states, n, block) for n in stills], alt),
            alt=alt,
            title="The online softmax",
            words=_words(row, v, states, block),
        )


def _listed(numbers: np.ndarray, digits: int = 3) -> str:
    return ", ".join(f"{x + 0.0:.{digits}f}" for x in numbers)


def _panel(scores: np.ndarray, states: list, n: int, block: int) -> Panel:
    """The row of scores after n tiles: the last tile filled, what was met before it pale."""
    panel = Panel(max(COLUMN * len(scores), 190), 5 * ROW)
    panel.text(0, 10, f"after {n} of {len(states) - 1} tiles", 13, font_weight="bold")
    for s, score in enumerate(scores):
        opacity = 0.38 if (n - 1) * block <= s < n * block else 0.12 if s < n * block else 0
        box = {"x": COLUMN * s, "y": ROW, "width": COLUMN - 2, "height": 20}
        panel.add("rect", fill=COLORS["weights"], fill_opacity=opacity, **box)
        panel.add("rect", fill="none", stroke="currentColor", stroke_opacity=0.4, **box)
        panel.text(COLUMN * s + COLUMN / 2 - 1, ROW + 10, f"{score:.1f}", text_anchor="middle")
    state = states[n]
    lines = (
        f"maximum {state.maximum:.1f}, sum {state.total:.3f}",
        f"output {_listed(state.output)}",
        f"output ÷ sum {_listed(state.average)}",
    )
    for line, text in enumerate(lines, start=2):
        panel.text(0, line * ROW + 12, text)
    return panel


def _words(scores: np.ndarray, values: np.ndarray, states: list, block: int) -> list[str]:
    exact = reference.softmax(scores) @ values
    words = [
        f"One query meets the scores {_listed(scores, 1)}, {block} at a time. It keeps three "
        "things: the greatest score so far, the sum of exp(score - maximum), and the same sum with "
        "each term times its value."
    ]
    for n, (before, state) in enumerate(zip(states, states[1:], strict=False), start=1):
        grown = state.maximum > before.maximum
        rescale = np.exp(before.maximum - state.maximum)
        change = f"The maximum grows, so what was kept is multiplied by {rescale:.3f}. "
        words.append(
            f"After tile {n}: maximum {state.maximum:.1f}, sum {state.total:.3f}. "
            f"{change if grown and n > 1 else ''}Output over sum is {_listed(state.average)}."
        )
    return [
        *words,
        f"The exact row, by a softmax that sees all scores at once, gives {_listed(exact)}: the "
        "same. After each tile the output over the sum is the exact attention to the keys met so "
        "far, and no row of weights was ever kept.",
    ]
