"""Why the square root: scores of a growing width, with and without their scale, side by side."""

import numpy as np

from mha import reference
from mha.viz.explorer_view import entropy
from mha.viz.lessons.base import Lesson
from mha.viz.svg import Figure, Panel
from mha.viz.theme import COLORS

WIDEST = 7  # 2 ** 7 = 128 numbers in a vector
STILLS = (2, 5, 7)
BAR, ROW = 72, 20  # pixels


class SquareRoot(Lesson):
    """One query's weights on a few keys, with scores q · k and q · k / sqrt(D), for D from 1 to 128.

    Queries and keys are standard normal draws. A smaller D takes the first D numbers of each.

    Args:
        num_keys: S, from 2 to 8. num_queries: how many queries there are to choose from, 1 to 6.
        seed: of the draws.
        exponent: the width it starts at is 2 ** exponent, from 0 to 7.
    Errors: ValueError for a number outside these bounds.
    Source: Vaswani et al. (2017), section 3.2.1, footnote 4.

    Examples:
        >>> from mha.viz import lessons
        >>> lessons.SquareRoot(num_keys=4).state["exponent"]
        5
    """

    script = "square_root.js"

    def __init__(
        self, *, num_keys: int = 6, num_queries: int = 4, seed: int = 0, exponent: int = 5
    ):
        bounds = {"num_keys": (2, 8), "num_queries": (1, 6), "exponent": (0, WIDEST)}
        given = {"num_keys": num_keys, "num_queries": num_queries, "exponent": exponent}
        for name, (low, high) in bounds.items():
            if not low <= given[name] <= high:
                raise ValueError(f"{name} must be from {low} to {high}; got {given[name]}")
        rng = np.random.default_rng(seed)
        queries, keys = (
            rng.normal(size=(count, 2**WIDEST)).round(2) + 0.0 for count in (num_queries, num_keys)
        )
        rows = {n: _rows(queries[0], keys, 2**n) for n in STILLS}
        alt = "weights of one query with plain and with scaled scores, at a width that you set"
        super().__init__(
            {
                "queries": queries.tolist(),
                "keys": keys.tolist(),
                "query": 0,
                "exponent": exponent,
                "widest": WIDEST,
            },
            Figure([_panel(2**n, *rows[n]) for n in STILLS], alt),
            alt=alt,
            title="Why the square root",
            words=_words(rows),
        )


def _rows(query: np.ndarray, keys: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The weights (S,) of plain and of scaled scores."""
    scores = keys[:, :width] @ query[:width]
    return reference.softmax(scores), reference.softmax(scores / np.sqrt(width))


def _panel(width: int, plain: np.ndarray, scaled: np.ndarray) -> Panel:
    """Both rows of weights as bars that grow from the middle."""
    panel = Panel(2 * BAR + 88, ROW * (len(plain) + 3) + 6)
    left, right = 22 + BAR, 66 + BAR
    panel.text(0, 10, f"D = {width}", 13, font_weight="bold")
    panel.text(left, ROW + 10, "q · k", text_anchor="end")
    panel.text(right, ROW + 10, "q · k / √D")
    for n, (bare, held) in enumerate(zip(plain, scaled, strict=True)):
        y = ROW * (n + 2) + 10
        panel.text((left + right) / 2, y, f"key {n}", 11, text_anchor="middle")
        fill = {"height": 14, "y": y - 7, "fill": COLORS["weights"]}
        panel.add("rect", x=left - BAR * bare, width=BAR * bare, **fill)
        panel.add("rect", x=right, width=BAR * held, **fill)
    for x, weights, anchor in ((left, plain, "end"), (right, scaled, "start")):
        told = f"{entropy(weights):.2f} bits"
        panel.text(x, ROW * (len(plain) + 2) + 12, told, 11, text_anchor=anchor)
    return panel


def _slope(weights: np.ndarray) -> float:
    """The Frobenius norm of the Jacobian of the softmax."""
    rows = [reference.softmax_backward(weights, one) for one in np.eye(len(weights))]
    return float(np.linalg.norm(rows))


def _words(rows: dict[int, tuple[np.ndarray, np.ndarray]]) -> list[str]:
    words = [
        "A score is a sum of D products. For standard normal entries its spread over many pairs is "
        "the square root of D, so plain scores grow with the width; divided by the root they keep a "
        "spread of 1."
    ]
    for n, (plain, scaled) in rows.items():
        words.append(
            f"At D = {2**n}, query 0 gives its favorite key {plain.max():.3f} of its weight with "
            f"plain scores, {scaled.max():.3f} with scaled ones. The entropies are "
            f"{entropy(plain):.2f} and {entropy(scaled):.2f} bits, the slopes of the softmax "
            f"{_slope(plain):.3f} and {_slope(scaled):.3f}."
        )
    return [
        *words,
        "Where one weight is nearly 1, the slope is nearly 0 and nothing is left to learn from. The "
        "root keeps the softmax where it can still move, whatever the width.",
    ]
