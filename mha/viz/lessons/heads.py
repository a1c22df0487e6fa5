"""Heads: one width cut into more or fewer of them, and what that changes."""

from mha import cost
from mha.viz.lessons.base import Lesson
from mha.viz.svg import Figure, Panel
from mha.viz.theme import HEAD_COLORS

STRIP = 210  # pixels
ROW = 22
PARTS = ("projections", "scores", "softmax", "weighted sum")


class Heads(Lesson):
    """The number of heads at equal width: shapes, parameters, FLOPs and bytes of one layer.

    The layer is self-attention on the readable path, with biases, in float32.

    Args:
        width: E, a power of two from 8 to 512. batch: B, at least 1.
        heads: H that it starts with, a power of two up to E. length: T, a power of two, 8 to 4096.
    Errors: ValueError for a number outside these bounds.
    Source: Vaswani et al. (2017), section 3.2.2: the cost is that of one head of full width.

    Examples:
        >>> from mha.viz import lessons
        >>> lessons.Heads(width=64, heads=4)
        Heads('a layer of width 64 cut into heads, with its shapes, parameters and costs')
    """

    script = "heads.js"

    def __init__(self, *, width: int = 64, batch: int = 2, heads: int = 4, length: int = 128):
        bounds = {"width": (8, 512), "heads": (1, width), "length": (8, 4096)}
        for name, given in (("width", width), ("heads", heads), ("length", length)):
            low, high = bounds[name]
            if not low <= given <= high or given & (given - 1):
                raise ValueError(f"{name} must be a power of two from {low} to {high}; got {given}")
        if batch < 1:
            raise ValueError(f"batch must be at least 1; got {batch}")
        alt = f"a layer of width {width} cut into heads, with its shapes, parameters and costs"
        stills = sorted({1, heads, min(16, width)})
        state = {"width": width, "batch": batch, "most": width.bit_length() - 1}
        start = {"heads": heads.bit_length() - 1, "length": length.bit_length() - 1}
        super().__init__(
            state | start,
            Figure([_panel(width, batch, H, length) for H in stills], alt),
            alt=alt,
            title="One width, more or fewer heads",
            words=_words(width, batch, stills, length),
        )


def flops(E: int, B: int, H: int, T: int) -> dict[str, int]:
    """FLOPs of a forward pass by `mha.cost`, the four projections as one."""
    parts = cost.naive(H=H, T=T, S=T, D=E // H, B=B)
    maps = cost.total(cost.projections(T=T, E=E, H=H, B=B))
    return {"projections": maps.flops} | {name: part.flops for name, part in parts.items()}


def parameters(E: int) -> int:
    """Weights and biases of the four maps; H does not enter."""
    return 4 * E * E + 4 * E


def _panel(E: int, B: int, H: int, T: int) -> Panel:
    D = E // H
    panel = Panel(STRIP + 20, 7 * ROW)
    panel.text(0, 10, f"H = {H}, D = {D}", 13, font_weight="bold")
    each = STRIP / H
    for h in range(H):
        fill = HEAD_COLORS[h % len(HEAD_COLORS)]
        panel.add("rect", x=h * each, y=ROW, width=max(each - 1, 1), height=18, fill=fill)
    lines = (
        f"q, k, v: ({B}, {H}, {T}, {D})",
        f"weights: ({B}, {H}, {T}, {T})",
        f"parameters: {parameters(E):,}",
        f"FLOPs: {sum(flops(E, B, H, T).values()):,}",
        f"bytes of weights: {4 * B * H * T * T:,}",
    )
    for n, line in enumerate(lines):
        panel.text(0, ROW * (n + 2) + 12, line)
    return panel


def _words(E: int, B: int, heads: list[int], T: int) -> list[str]:
    words = [
        f"A layer of width {E} reads {B} examples of {T} tokens. It cuts the width into H heads of "
        f"{E} / H numbers each."
    ]
    for H in heads:
        parts = flops(E, B, H, T)
        products = sum(parts.values()) - parts["softmax"]
        words.append(
            f"With {H} {'heads' if H > 1 else 'head'} of width {E // H}: queries ({B}, {H}, {T}, "
            f"{E // H}), weights ({B}, {H}, {T}, {T}), {parameters(E):,} parameters, {products:,} "
            f"FLOPs of products, {parts['softmax']:,} of softmax, {4 * B * H * T * T:,} bytes of "
            "weights."
        )
    return [
        *words,
        "Parameters and the FLOPs of the products are the same for any number of heads, since more "
        "heads are narrower ones. What grows with H is the number of weights, each of which is "
        "made, sent through the softmax, and kept.",
    ]
