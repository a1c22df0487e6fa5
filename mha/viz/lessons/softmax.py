"""Softmax and temperature: scores that a reader drags, and the weights that come of them."""

from collections.abc import Sequence

import numpy as np

from mha import reference
from mha.viz.explorer_view import entropy
from mha.viz.lessons.base import Lesson
from mha.viz.svg import Figure, Panel
from mha.viz.theme import COLORS

STILLS = (-2, 0, 2)  # powers of two: a cold, a plain and a hot softmax
BAR, ROW = 120, 24  # pixels


class Softmax(Lesson):
    """One row of scores and a temperature: its weights, their entropy, and the slopes.

    Weights are softmax(scores / temperature). Slope (i, j) says how weight i changes with score j.

    Args:
        scores: n numbers from -4 to 4, 2 to 6 of them.
        keys: n names; None = "key 0", "key 1", ...
        exponent: the temperature the figure starts at is 2 ** exponent, from -3 to 3.
    Errors: ValueError for another number of scores or names, or a score outside.
    Source: softmax with a temperature, Hinton et al. (2015), equation 1.

    Examples:
        >>> from mha.viz import lessons
        >>> lessons.Softmax([2.0, 1.0, 0.0])
        Softmax('softmax of three scores at a temperature that you set')
    """

    script = "softmax.js"

    def __init__(
        self,
        scores: Sequence[float] = (2.0, 1.0, 0.0, -1.0),
        keys: Sequence[str] | None = None,
        *,
        exponent: float = 0.0,
    ):
        scores = [float(score) for score in scores]
        if not 2 <= len(scores) <= 6 or max(map(abs, scores)) > 4:
            raise ValueError(f"scores must be 2 to 6 numbers from -4 to 4; got {scores}")
        if not -3 <= exponent <= 3:
            raise ValueError(f"exponent must be from -3 to 3; got {exponent}")
        names = [f"key {n}" for n in range(len(scores))] if keys is None else list(map(str, keys))
        if len(names) != len(scores):
            raise ValueError(f"keys must be {len(scores)} names; got {len(names)}")
        count = ("two", "three", "four", "five", "six")[len(scores) - 2]
        alt = f"softmax of {count} scores at a temperature that you set"
        super().__init__(
            {"scores": scores, "keys": names, "exponent": exponent},
            Figure([_panel(scores, names, 2.0**n) for n in STILLS], alt),
            alt=alt,
            title="Softmax and temperature",
            words=_words(scores, names),
        )


def _weights(scores: list[float], temperature: float) -> np.ndarray:
    return reference.softmax(np.array(scores) / temperature)


def _panel(scores: list[float], keys: list[str], temperature: float) -> Panel:
    """The weights as bars."""
    weights = _weights(scores, temperature)
    panel = Panel(BAR + 110, ROW * (len(keys) + 2))
    panel.text(0, 12, f"temperature {temperature:g}", 13, font_weight="bold")
    for n, (key, weight) in enumerate(zip(keys, weights, strict=True)):
        y = ROW * (n + 1) + 12
        panel.text(0, y, key)
        panel.add("rect", x=56, y=y - 8, width=BAR * weight, height=16, fill=COLORS["weights"])
        panel.text(62 + BAR * weight, y, f"{weight:.3f}")
    panel.text(0, ROW * (len(keys) + 1) + 12, f"entropy {entropy(weights):.2f} bits")
    return panel


def _words(scores: list[float], keys: list[str]) -> list[str]:
    """The lesson as sentences, with numbers of the three temperatures of the still picture."""
    told = ", ".join(f"{key} {score:g}" for key, score in zip(keys, scores, strict=True))
    words = [f"The scores are {told}. Softmax of the scores over a temperature gives the weights."]
    for n in STILLS:
        weights = _weights(scores, 2.0**n)
        slope = (weights * (1 - weights) / 2.0**n).max()
        words.append(
            f"At temperature {2.0**n:g} the weights are {', '.join(f'{w:.3f}' for w in weights)}. "
            f"Their entropy is {entropy(weights):.2f} bits, the steepest slope {slope:.3f}."
        )
    return [
        *words,
        "A cold softmax gives nearly all weight to the greatest score; once it has, no slope is "
        "left to learn from. A hot one spreads the weight, and each score moves it little. A "
        "number added to all scores changes nothing: each row of slopes sums to 0.",
    ]
