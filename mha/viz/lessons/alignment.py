"""Causal alignment and the cache: a decoder that a reader steps, and the offset it needs."""

from collections.abc import Sequence

import numpy as np

from mha import masks, reference
from mha.viz.lessons.base import Lesson
from mha.viz.svg import Figure, Panel
from mha.viz.theme import COLORS

CORNERS = ("cache", "top left", "bottom right")
CELL, LEFT = 34, 54  # pixels


class Alignment(Lesson):
    """A decoder that reads a prompt and then writes: the cache fills, and q_offset moves with it.

    Args:
        tokens: N tokens, 3 to 8.
        prompt: how many are read in the first step, from 1 to N - 1. chunk: tokens of each later
            step, 1 to 3.
        corner: where the offset comes from at first: "cache", the number of keys in the cache;
            "top left", always 0; "bottom right", S - T.
        seed: of the scores, one for each query and key.
    Errors: ValueError for what is outside.
    Source: the offset of `mha.scaled_dot_product_attention`; both corners are those of
        PyTorch's ``torch.nn.attention.bias``.

    Examples:
        >>> from mha.viz import lessons
        >>> lesson = lessons.Alignment(["we", "read", "on"], prompt=2)
        >>> lesson.state["done"], lesson.state["corner"]
        (2, 'cache')
    """

    script = "alignment.js"

    def __init__(
        self,
        tokens: Sequence[str] = ("we", "read", "a", "book", "and", "write"),
        *,
        prompt: int = 3,
        chunk: int = 1,
        corner: str = "cache",
        seed: int = 0,
    ):
        tokens = list(map(str, tokens))
        N = len(tokens)
        if not 3 <= N <= 8:
            raise ValueError(f"tokens must be 3 to 8; got {N}")
        for name, given, high in (("prompt", prompt, N - 1), ("chunk", chunk, 3)):
            if not 1 <= given <= high:
                raise ValueError(f"{name} must be from 1 to {high}; got {given}")
        if corner not in CORNERS:
            raise ValueError(f"corner must be one of {CORNERS}; got {corner!r}")
        scores = np.random.default_rng(seed).normal(size=(N, N)).round(2) + 0.0
        state = {"tokens": tokens, "scores": scores.tolist(), "prompt": prompt, "chunk": chunk}
        alt = "a decoder step by step: its cache, its offset, and the weights of its new queries"
        steps = _steps(N, prompt, chunk)
        stills = [_panel(tokens, scores, *steps[1], corner) for corner in ("cache", "top left")]
        super().__init__(
            state | {"corners": list(CORNERS), "corner": corner, "done": 2},
            Figure([_panel(tokens, scores, *steps[0], "cache"), *stills], alt),
            alt=alt,
            title="The offset and the cache",
            words=_words(tokens, scores, steps),
        )


def _steps(N: int, prompt: int, chunk: int) -> list[tuple[int, int]]:
    """Tokens before and after each step, the prompt's first."""
    ends = [prompt, *range(prompt + chunk, N, chunk), N]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _rows(scores: np.ndarray, before: int, after: int, offset: int) -> np.ndarray:
    """The weights (T, S) of the queries of one step."""
    allowed = masks.causal(after - before, after, q_offset=offset).numpy()
    return reference.softmax(np.where(allowed, scores[before:after, :after], -np.inf))


def _panel(tokens, scores: np.ndarray, before: int, after: int, corner: str) -> Panel:
    offset = before if corner == "cache" else 0
    weights, right = (_rows(scores, before, after, each) for each in (offset, before))
    panel = Panel(LEFT + CELL * len(tokens), CELL * (after - before) + 92)
    ok = np.allclose(weights, right)
    panel.text(0, 10, f"q_offset = {offset}: {'right' if ok else 'wrong'}", 13, font_weight="bold")
    panel.text(0, 30, f"T = {after - before}, S = {after}, {before} in the cache")
    for j, token in enumerate(tokens[:after]):
        panel.text(LEFT + CELL * (j + 0.5), 52, token, 11, text_anchor="middle")
    for i, row in enumerate(weights):
        y = 64 + CELL * i
        panel.text(LEFT - 8, y + CELL / 2, tokens[before + i], 12, text_anchor="end")
        for j, weight in enumerate(row):
            box = {"x": LEFT + CELL * j, "y": y, "width": CELL - 1, "height": CELL - 1}
            panel.add("rect", fill=COLORS["weights"], fill_opacity=round(0.38 * weight, 2), **box)
            panel.add("rect", fill="none", stroke="currentColor", stroke_opacity=0.3, **box)
            text = f"{weight:.2f}" if j <= i + offset else "–"
            panel.text(LEFT + CELL * (j + 0.5), y + CELL / 2, text, 11, text_anchor="middle")
    return panel


def _words(tokens: list[str], scores: np.ndarray, steps: list[tuple[int, int]]) -> list[str]:
    words = ["A decoder reads a text in steps. Query i may see key j if j <= i + q_offset."]
    for n, (before, after) in enumerate(steps, start=1):
        T = after - before
        wrong = np.abs(_rows(scores, before, after, 0) - _rows(scores, before, after, before)).max()
        told = ", ".join(tokens[before:after])
        zero = f"With offset 0 a weight would be wrong by {wrong:.2f}." if wrong > 0 else ""
        words.append(
            f"Step {n} reads {told}: T = {T}, S = {after}, {before} keys come from the cache, so "
            f"q_offset is {before}. {zero}".strip()
        )
    return [
        *words,
        "With the number of cached keys as its offset, each step gives the rows of the whole text "
        "read at once. Aligned top left, as with offset 0, a single new query sees the first key "
        "alone. Bottom right, S − T, is the same as the cache's count, as long as no key is padding.",
    ]
