"""A mask that a reader clicks: its weights, its dead rows, and its form in other libraries."""

import numpy as np
import torch

from mha import masks, reference
from mha.viz.lessons.base import Lesson
from mha.viz.svg import Figure
from mha.viz.weights import heatmap

T, S = 4, 5
LEAST = torch.finfo(torch.float32).min

STARTS = {  # name -> the code that makes the mask, and the mask (T, S)
    "all": (f"torch.ones({T}, {S}).bool()", torch.ones(T, S).bool()),
    "causal": (f"mha.masks.causal({T}, {S})", masks.causal(T, S)),
    "padding": (
        f"mha.masks.padding([3], max_len={S}).expand({T}, {S})",
        masks.padding([3], max_len=S).expand(T, S),
    ),
    "window": (
        f"mha.masks.window({T}, {S}, left=1, right=1)",
        masks.window(T, S, left=1, right=1),
    ),
    "dead row": (
        f'mha.masks.causal({T}, {S}) & mha.masks.padding([4], max_len={S}, side="left")',
        masks.causal(T, S) & masks.padding([4], max_len=S, side="left"),
    ),
}
FATES = (  # what becomes of a query that sees nothing
    "mha, SDPA; Keras where it returns scores",
    "plain softmax of −inf; nn.MultiheadAttention",
    "finfo.min: Transformers; Keras otherwise",
)
LIBRARIES = {  # name -> the code, the same as a function, marks of (open, closed), places in FATES
    "mha, SDPA": ("mask", lambda mask: mask, "attend", (0,)),
    "nn.MultiheadAttention": (
        'mha.masks.to_torch(attn_mask=mask)["attn_mask"]',
        lambda mask: masks.to_torch(attn_mask=mask)["attn_mask"],
        "blocked",
        (1,),
    ),
    "Keras": (
        "mha.masks.to_keras(attn_mask=mask)",
        lambda mask: masks.to_keras(attn_mask=mask),
        "attend",
        (0, 2),
    ),
    "Transformers": (
        "mha.masks.to_transformers(attn_mask=mask)",
        lambda mask: masks.to_transformers(attn_mask=mask),
        "min",
        (2,),
    ),
    "plain softmax": ("mha.masks.to_additive(mask)", masks.to_additive, "inf", (1,)),
}
MEANS = {
    "attend": "True means may attend",
    "blocked": "True means blocked",
    "min": f"0 means may attend, and min ({LEAST:.1e}) blocked".replace("-", "−"),
    "inf": "0 means may attend, and −inf blocked",
}


class Masks(Lesson):
    """A mask of 4 queries by 5 keys that opens and closes by clicks: the weights under it.

    Beside the weights stand what becomes of a query that sees nothing, and the mask in the form
    of the library that the reader picks.

    Args:
        start: the mask it starts with, a name in ``STARTS``.
        library: the form it starts with, a name in ``LIBRARIES``.
    Errors: ValueError for another name.
    Source: the mask as -inf before the softmax, Vaswani et al. (2017), section 3.2.3.

    Examples:
        >>> from mha.viz import lessons
        >>> lessons.Masks("dead row")
        Masks('a mask of 4 queries by 5 keys, the weights under it, and its form in libraries')
    """

    script = "masks.js"

    def __init__(self, start: str = "causal", *, library: str = "mha, SDPA"):
        for name, given, known in (("start", start, STARTS), ("library", library, LIBRARIES)):
            if given not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(repr, known))}; got {given!r}"
                )
        scores, values = _data()
        state = {
            "scores": scores.tolist(),
            "values": values.tolist(),
            "mask": STARTS[start][1].tolist(),
            "starts": [[name, code, mask.tolist()] for name, (code, mask) in STARTS.items()],
            "forms": [_form(name) for name in LIBRARIES],
            "form": list(LIBRARIES).index(library),
            "fates": FATES,
            "least": LEAST,
        }
        alt = f"a mask of {T} queries by {S} keys, the weights under it, and its form in libraries"
        title = "Masks: who may attend to whom"
        super().__init__(state, _still(scores, alt), alt=alt, title=title, words=_words())


def _data() -> tuple[np.ndarray, np.ndarray]:
    """Scores (T, S) and values (S, 2), the same each time."""
    rng = np.random.default_rng(4)
    return rng.normal(size=(T, S)).round(1) + 0.0, rng.normal(size=(S, 2)).round(1) + 0.0


def _form(name: str) -> dict:
    """A library's form for the script: the code, the marks, and how many axes of 1 stand before."""
    code, convert, marks, fates = LIBRARIES[name]
    given = convert(STARTS["all"][1])
    return {
        "name": name,
        "code": code,
        "shape": f"{tuple(given.shape)}, {given.dtype}".replace("torch.", ""),
        "means": MEANS[marks],
        "marks": marks,
        "axes": given.ndim - 2,
        "fates": fates,
    }


def _weights(scores: np.ndarray, mask: torch.Tensor) -> np.ndarray:
    return reference.softmax(scores + reference.bias(scores.shape, mask.numpy()))


def _still(scores: np.ndarray, alt: str) -> Figure:
    """The weights under four masks; closed cells are hatched."""
    panels = []
    for name in ("causal", "padding", "window", "dead row"):
        mask = STARTS[name][1]
        title = name if mask.any(-1).all() else f"{name}: query {_blind(mask)}"
        weights = _weights(scores, mask)
        panels += heatmap(weights, allowed=mask, title=title, alt=alt, vmax=1).panels
    return Figure(panels, alt, columns=2)


def _blind(mask: torch.Tensor) -> int:
    """The first query that sees nothing."""
    return int((~mask.any(-1)).nonzero()[0])


def _words() -> list[str]:
    """The lesson as sentences; all numbers come from the package."""
    scores, values = _data()
    causal, dead = STARTS["causal"][1], STARTS["dead row"][1]
    last = ", ".join(f"{w:.3f}" for w in _weights(scores, causal)[-1])
    blind = _blind(dead)
    least = masks.to_additive(dead, torch.float64, fill=LEAST).numpy()
    even = reference.softmax(scores + least)[blind]
    average = ", ".join(f"{x:.2f}".replace("-", "−") for x in even @ values)
    told = [_row(name, causal) for name in LIBRARIES]
    return [
        f"A mask says for each of {T} queries and {S} keys whether the query may attend to the key. "
        "Where it may not, −∞ takes the place of the score before the softmax. The weight is then "
        "exactly 0, and the weights of the keys that are left sum to 1.",
        f"Under the causal mask query i sees the keys 0 to i, {int(causal.sum())} of "
        f"{causal.numel()} pairs. The weights of query {T - 1} are {last}.",
        f"A dead row is a query that sees nothing. Query {blind} is one where padding stands in "
        "front and the mask is causal: it may see only the first key, which is padding. In mha and "
        "in SDPA its weights and its output are 0. A plain softmax of a row of −inf is NaN, and so "
        "is the row in nn.MultiheadAttention where it returns weights. With finfo.min in place of "
        f"−inf, as in Transformers, each weight is {even[0]:.3f}: the query sees all keys evenly, "
        f"those that are closed too, and its output is the plain mean of the values, {average}. "
        "Keras gives zeros where it returns the scores, and the plain mean where it does not.",
        "Libraries write one mask in several ways. Query 0 of the causal mask is "
        + "; ".join(told)
        + ".",
        "A bool mask that is passed on untranslated raises no error: the queries of "
        "nn.MultiheadAttention then see just the keys that were meant to be closed.",
    ]


def _row(name: str, mask: torch.Tensor) -> str:
    """The first query of a mask as a library wants it, with the shape of the whole."""
    given = LIBRARIES[name][1](mask)
    row = given.reshape(T, S)[0].tolist()
    text = ", ".join("min" if x == LEAST else str(x).replace("-", "−") for x in row)
    return f"{text} for {name} (shape {tuple(given.shape)})"
