"""What attention costs on paper: FLOPs, bytes moved, and the least time a machine can need.

Axes: B examples, H query heads, H_kv key and value heads, T queries, S keys, D width of a head,
E width of the model. Counts are of one forward pass, where nothing else is said.

Examples:
    >>> from mha import cost
    >>> sizes = {"H": 2, "T": 1024, "S": 1024, "D": 64}
    >>> unfused, fused = cost.total(cost.naive(**sizes)), cost.fused(**sizes)
    >>> unfused.flops == fused.flops, unfused.bytes // fused.bytes  # the same work, less traffic
    (True, 17)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SOFTMAX_FLOPS = 5
"""For each score, by custom: compare, subtract, exponentiate, add, divide, one FLOP each."""

_OVERWRITING = {"copy_", "fill_", "zero_"}  # in place, yet they do not read what they replace


@dataclass(frozen=True)
class Cost:
    """Work and traffic of one operation; costs add up.

    Args:
        flops: floating-point operations.
        bytes: read from memory and written to it.

    Examples:
        >>> from mha.cost import Cost
        >>> Cost(flops=60, bytes=20) + Cost(flops=40, bytes=30)
        Cost(flops=100, bytes=50)
        >>> Cost(flops=100, bytes=50).intensity
        2.0
    """

    flops: int = 0
    bytes: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    @property
    def intensity(self) -> float:
        """FLOPs for each byte moved; NaN where nothing is moved."""
        return self.flops / self.bytes if self.bytes else math.nan


@dataclass(frozen=True)
class Machine:
    """Two rates of a machine, which make its roofline.

    Args:
        flops_per_second: the fastest it computes.
        bytes_per_second: the fastest it moves data.
    Source: Williams, Waterman and Patterson (2009).

    Examples:
        >>> from mha.cost import Cost, Machine
        >>> machine = Machine(flops_per_second=100.0, bytes_per_second=10.0)
        >>> machine.ridge, machine.rate(2.0)  # below the ridge memory is the bottleneck
        (10.0, 20.0)
        >>> machine.seconds(Cost(flops=200, bytes=100))  # 2 s of computing, behind 10 s of moving
        10.0
    """

    flops_per_second: float
    bytes_per_second: float

    @property
    def ridge(self) -> float:
        """The intensity, in FLOPs per byte, from which on computing is the bottleneck."""
        return self.flops_per_second / self.bytes_per_second

    def rate(self, intensity: float) -> float:
        """The roof: the most FLOPs per second at ``intensity`` FLOPs per byte."""
        return min(self.flops_per_second, intensity * self.bytes_per_second)

    def seconds(self, *costs: Cost) -> float:
        """The least time for ``costs``, done one after another, each to and from memory."""
        return sum(
            max(cost.flops / self.flops_per_second, cost.bytes / self.bytes_per_second)
            for cost in costs
        )


class ByteCounter(TorchDispatchMode):
    """Watches what runs inside ``with ByteCounter() as counter:``, as FlopCounterMode does.

    An operation reads each tensor it is given once and writes each result once; views and the
    mere allocation of memory move nothing. ``counter.bytes`` maps the name of an operation, such as
    "bmm", to a list with the bytes of each of its calls. What stays in a processor's own fast
    memory between two operations is counted as if it had gone to memory and back.

    Examples:
        >>> import torch
        >>> from mha import cost
        >>> x, w = torch.ones(3, 4), torch.ones(4, 5)
        >>> with cost.ByteCounter() as counter:
        ...     y = x @ w
        >>> counter.bytes, counter.total == cost.product(3, 4, 5).bytes
        ({'mm': [188]}, True)
    """

    def __init__(self):
        super().__init__()
        self.bytes: dict[str, list[int]] = {}

    @property
    def total(self) -> int:
        """The bytes of all calls together."""
        return sum(map(sum, self.bytes.values()))

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = operation(*args, **kwargs)
        name = operation.overloadpacket.__name__
        if not (operation.is_view or name == "_unsafe_view" or name.startswith("empty")):
            read = args[1:] if name in _OVERWRITING else args
            inputs = read, {key: x for key, x in kwargs.items() if key != "out"}
            moved = [x.nbytes for x in tree_leaves((inputs, result)) if isinstance(x, Tensor)]
            self.bytes.setdefault(name, []).append(sum(moved))
        return result


def total(parts: Mapping[str, Cost]) -> Cost:
    """The sum of named costs.

    Examples:
        >>> from mha import cost
        >>> cost.total({"first": cost.Cost(1, 2), "second": cost.Cost(3, 4)})
        Cost(flops=4, bytes=6)
    """
    return sum(parts.values(), Cost())


def product(m: int, k: int, n: int, *, batch: int = 1, itemsize: int = 4) -> Cost:
    """``batch`` products (m, k) @ (k, n): 2 m k n FLOPs each, two operands read, one result written.

    Args:
        m, k, n, batch: sizes.
        itemsize: bytes of one number.
    Errors: TypeError for a size that is no int, ValueError for one below 0.

    Examples:
        >>> from mha import cost
        >>> cost.product(3, 4, 5)  # 2 * 3 * 4 * 5 FLOPs; (12 + 20 + 15) * 4 bytes
        Cost(flops=120, bytes=188)
    """
    _check(m=m, k=k, n=n, batch=batch, itemsize=itemsize)
    return Cost(2 * batch * m * k * n, itemsize * batch * (m * k + k * n + m * n))


def projections(
    *,
    T: int,
    E: int,
    H: int,
    B: int = 1,
    S: int | None = None,
    H_kv: int | None = None,
    D: int | None = None,
    itemsize: int = 4,
) -> dict[str, Cost]:
    """The four linear maps of ``mha.MultiHeadAttention``, under their names; biases left out.

    Args:
        T, E, H, B, S, H_kv, D: sizes; S is T, H_kv is H and D is E / H unless given.
        itemsize: bytes of one number.
    Errors: as ``product``, and ValueError for heads that do not divide.

    Examples:
        >>> from mha import cost
        >>> maps = cost.projections(T=3, E=8, H=2, H_kv=1)  # one key head, half as wide
        >>> {name: part.flops for name, part in maps.items()}
        {'q_proj': 384, 'k_proj': 192, 'v_proj': 192, 'out_proj': 384}
    """
    S, H_kv = T if S is None else S, H if H_kv is None else H_kv
    _check_heads(H, H_kv)
    if D is None and E % H:
        raise ValueError(f"E must be a multiple of H where D is not given, got E={E} and H={H}")
    D = E // H if D is None else D
    maps = {
        "q_proj": (B * T, E, H * D),
        "k_proj": (B * S, E, H_kv * D),
        "v_proj": (B * S, E, H_kv * D),
        "out_proj": (B * T, H * D, E),
    }
    return {name: product(*sizes, itemsize=itemsize) for name, sizes in maps.items()}


def naive(
    *, H: int, T: int, S: int, D: int, B: int = 1, H_kv: int | None = None, itemsize: int = 4
) -> dict[str, Cost]:
    """Attention in three operations, each from memory to memory: scores, softmax, weighted sum.

    The scores and the weights, T x S for each head, are written once and read once each. A mask
    saves nothing: what it hides has been computed.

    Args:
        H, T, S, D, B, H_kv: sizes; H_kv is H unless given, and a key head is read once for the
            H / H_kv query heads that share it.
        itemsize: bytes of one number.
    Returns: the costs of "scores", "softmax" and "weighted sum", in this order.
    Errors: as ``product``, and ValueError for heads that do not divide.

    Examples:
        >>> from mha import cost
        >>> parts = cost.naive(H=2, T=3, S=5, D=4)
        >>> {name: part.flops for name, part in parts.items()}
        {'scores': 240, 'softmax': 150, 'weighted sum': 240}
    """
    H_kv = H if H_kv is None else H_kv
    _check_heads(H, H_kv)
    rows, options = H // H_kv * T, {"batch": B * H_kv, "itemsize": itemsize}
    scores = B * H * T * S
    return {
        "scores": product(rows, D, S, **options),
        "softmax": Cost(SOFTMAX_FLOPS * scores, 2 * itemsize * scores),
        "weighted sum": product(rows, S, D, **options),
    }


def fused(
    *,
    H: int,
    T: int,
    S: int,
    D: int,
    B: int = 1,
    H_kv: int | None = None,
    itemsize: int = 4,
    is_causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    q_offset: int = 0,
) -> Cost:
    """Attention in one operation: query, key and value read once, the output written, no scores.

    This is the least that any kernel moves. One whose blocks do not fit its fast memory reads keys
    and values again for each block of queries. Pairs that the rules hide cost nothing, nor do keys
    that no query sees.

    Args:
        H, T, S, D, B, H_kv, itemsize: as for ``naive``.
        is_causal, window, q_offset: as for ``mha.scaled_dot_product_attention``; one int q_offset.
    Errors: as ``naive`` and ``pairs``.
    Source: Dao et al. (2022).

    Examples:
        >>> from mha import cost
        >>> cost.fused(H=2, T=3, S=5, D=4)
        Cost(flops=630, bytes=512)
        >>> cost.fused(H=2, T=3, S=5, D=4, is_causal=True)  # the last two keys are never read
        Cost(flops=252, bytes=384)
    """
    H_kv = H if H_kv is None else H_kv
    _check(B=B, D=D, itemsize=itemsize)
    _check_heads(H, H_kv)
    bounds = _bounds(T, S, is_causal, window, q_offset)
    seen = sum(last - first for first, last in bounds)
    keys = max((last for _, last in bounds), default=0) - min((lo for lo, _ in bounds), default=0)
    return Cost(
        B * H * seen * (4 * D + SOFTMAX_FLOPS), itemsize * 2 * B * D * (H * T + H_kv * keys)
    )


def flash(
    *,
    H: int,
    T: int,
    S: int,
    D: int,
    B: int = 1,
    H_kv: int | None = None,
    itemsize: int = 4,
    share: float = 1.0,
    backward: bool = False,
) -> Cost:
    """One pass of attention in one kernel as such kernels are rated: the products alone.

    Forward makes two, 4 B H T S D FLOPs; backward five, 2.5 times as many, since it makes the
    scores again; what the softmax costs is left out. Forward reads query, key and value and
    writes the output; backward reads these four and the output's gradient, and writes three
    gradients. One or two numbers for each row, which pass from one to the other, are left out.

    Args:
        H, T, S, D, B, H_kv, itemsize: as for ``naive``.
        share: of the T x S pairs, the part that counts: by convention 0.5 where causal.
        backward: the backward pass alone.
    Errors: as ``naive``, and ValueError for a share outside [0, 1].
    Source: Dao (2024), "FlashAttention-2", section 4.1.

    Examples:
        >>> from mha import cost
        >>> sizes = {"H": 2, "T": 3, "S": 5, "D": 4}
        >>> cost.flash(**sizes).flops, cost.flash(**sizes, backward=True).flops
        (480, 1200)
        >>> cost.flash(**sizes, share=0.5).flops
        240
    """
    H_kv = H if H_kv is None else H_kv
    _check(T=T, S=S, D=D, B=B, itemsize=itemsize)
    _check_heads(H, H_kv)
    if not 0 <= share <= 1:
        raise ValueError(f"share must be between 0 and 1, got {share}")
    flops, bytes_ = 4 * B * H * T * S * D, itemsize * 2 * B * D * (H * T + H_kv * S)
    if backward:  # five products for two; eight tensors for four
        flops, bytes_ = flops // 2 * 5, 2 * bytes_
    return Cost(round(share * flops), bytes_)


def pairs(
    T: int,
    S: int | None = None,
    *,
    is_causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    q_offset: int = 0,
) -> int:
    """How many of the T x S pairs of query and key may see each other.

    Args:
        T, S: sizes; S is T unless given.
        is_causal, window, q_offset: as for ``mha.scaled_dot_product_attention``; one int q_offset.
    Errors: TypeError for a size or a side of the window that is no int, ValueError below 0.

    Examples:
        >>> from mha import cost
        >>> cost.pairs(3), cost.pairs(3, is_causal=True)
        (9, 6)
        >>> cost.pairs(3, 5, window=(1, 0), q_offset=2)  # two keys for each query
        6
    """
    bounds = _bounds(T, T if S is None else S, is_causal, window, q_offset)
    return sum(last - first for first, last in bounds)


def _bounds(T, S, is_causal, window, q_offset) -> list[tuple[int, int]]:
    """The first key and the one after the last that each query sees, where it sees any."""
    left, right = (None, None) if window is None else window
    _check(T=T, S=S, **{f"window[{i}]": n for i, n in enumerate((left, right)) if n is not None})
    if is_causal:
        right = 0 if right is None else min(right, 0)
    bounds = []
    for place in range(q_offset, q_offset + T):
        first = 0 if left is None else max(0, place - left)
        last = S if right is None else min(S, place + right + 1)
        if first < last:
            bounds.append((first, last))
    return bounds


def _check(**sizes: int) -> None:
    for name, size in sizes.items():
        if not isinstance(size, int):
            raise TypeError(f"{name} must be an int of at least 0, got {type(size).__name__}")
        if size < 0:
            raise ValueError(f"{name} must be an int of at least 0, got {size}")


def _check_heads(H: int, H_kv: int) -> None:
    _check(H=H, H_kv=H_kv)
    if H == 0 or H_kv == 0 or H % H_kv:
        raise ValueError(f"H must be a multiple of H_kv, both at least 1, got H={H}, H_kv={H_kv}")
