"""FlashAttention in Triton: one kernel forward, two backward.

Each program owns one tile of rows, walks over the tiles of the other side, and writes its rows once.
Nothing is added from two programs to one place, so the same input gives the same bits. The order is
that of `tiles.py`: scale, softcap, bias or mask, softmax.

A tile that every row sees whole needs no comparison. So each walk is done twice: first over the whole
tiles, then over those on an edge of the window or of the tensors.

Axes: B batch, H heads, H_kv key heads, T queries, S keys, D width of one head, D_V of one value.
Source: Dao (2024), "FlashAttention-2", algorithms 1 and 2.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mha._extras import require
from mha._rules import Rules
from mha.positions import ALiBi

triton, tl = (require(name, "triton") for name in ("triton", "triton.language"))


@triton.jit
def dot(a, b, total, UPCAST: tl.constexpr):
    """total + a b, summed in float32. The interpreter is wrong for bfloat16: UPCAST mends it."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def product(a, b, UPCAST: tl.constexpr):
    """The products of each row of a with each row of b: a times the transpose of b."""
    return dot(a, tl.trans(b), tl.zeros((a.shape[0], b.shape[0]), tl.float32), UPCAST)


@triton.jit
def tanh(x):
    """tanh of float32, by an exponential that cannot overflow, or near 0 by its power series."""
    t = tl.exp2(tl.abs(x) * -2.8853900817779268)  # exp(-2 |x|)
    size = (1.0 - t) / (1.0 + t)
    y = x * x
    near = x * (1.0 + y * (-1 / 3 + y * (2 / 15 + y * (-17 / 315 + y * (62 / 2835)))))
    return tl.where(y < 0.0625, near, tl.where(x < 0.0, -size, size))


@triton.jit
def power(x, NATURAL: tl.constexpr):
    """e to the x, or 2 to the x."""
    return tl.exp(x) if NATURAL else tl.exp2(x)


@triton.jit
def walk(first, last, size, low, high, BLOCK: tl.constexpr):
    """The tiles of columns j that rows i, first to last, see, where low <= j - i <= high.

    Four tile numbers a <= b <= c <= d: a to d are seen at all, b to c by each row whole.
    """
    a = 0
    b = 0
    c = size // BLOCK
    d = tl.cdiv(size, BLOCK)
    if low is not None:  # the first row begins first, the last row begins last
        a = tl.minimum(tl.maximum(first + low, 0) // BLOCK, d)
        b = tl.cdiv(tl.maximum(last + low, 0), BLOCK)
    if high is not None:  # and the same of where they end
        c = tl.minimum(tl.maximum(first + high + 1, 0), size) // BLOCK
        d = tl.maximum(tl.cdiv(tl.minimum(tl.maximum(last + high + 1, 0), size), BLOCK), a)
    b = tl.minimum(tl.maximum(b, a), d)
    c = tl.maximum(tl.minimum(c, d), b)
    return a, b, c, d


@triton.jit
def step_of(n, a, b, c, EDGE: tl.constexpr):
    """The n-th tile of a walk: of those from b to c, or else of those from a to b and from c on."""
    if EDGE:
        tile = tl.where(n < b - a, a + n, c + n - (b - a))
    else:
        tile = b + n
    return tile


@triton.jit
def load_tile(
    base, strides, first, size, keep,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """Rows first, first + 1, ... of a (size, WIDTH) matrix: (ROWS, COLUMNS), zeros outside.

    What ``keep`` (ROWS,) leaves out is never read, so a NaN there does no harm.
    """
    r = tl.arange(0, ROWS)
    w = tl.arange(0, COLUMNS)
    start = base + first.to(tl.int64) * strides[2]  # 64 bits: beyond 2**31 numbers too
    place = start + r.to(tl.int64)[:, None] * strides[2] + w[None, :] * strides[3]
    if EDGE or keep is not None or WIDTH != COLUMNS:
        inside = (w < WIDTH)[None, :]
        if EDGE:
            inside = inside & (first + r < size)[:, None]
        if keep is not None:
            inside = inside & keep[:, None]
        x = tl.load(place, mask=inside, other=0.0)
    else:
        x = tl.load(place)
    return x


@triton.jit
def store_tile(
    base, strides, first, size, x,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write x (ROWS, COLUMNS) to the rows first, first + 1, ... of a (size, WIDTH) matrix."""
    r = tl.arange(0, ROWS)
    w = tl.arange(0, COLUMNS)
    start = base + first.to(tl.int64) * strides[2]
    place = start + r.to(tl.int64)[:, None] * strides[2] + w[None, :] * strides[3]
    inside = (first + r < size)[:, None] & (w < WIDTH)[None, :]
    tl.store(place, x.to(base.dtype.element_ty), mask=inside)


@triton.jit
def head_of(base, strides, b, h):
    """Where the matrix of example b and head h begins."""
    return base + b.to(tl.int64) * strides[0] + h.to(tl.int64) * strides[1]


@triton.jit
def key_mask_tile(key_mask, strides, b, j, S):
    """Which of the keys j of example b are real, (BLOCK_K,); None if there is no key mask."""
    keep = None
    if key_mask is not None:
        place = key_mask + b.to(tl.int64) * strides[0] + j.to(tl.int64) * strides[1]
        keep = tl.load(place, mask=j < S, other=0) != 0
    return keep


@triton.jit
def shift_of(offsets, offset, b):
    """The position of the first query of example b among the keys, in 64 bits."""
    shift = tl.cast(offset, tl.int64)
    if offsets is not None:
        shift = tl.load(offsets + b)
    return shift


@triton.jit
def limit(x, T, S):
    """A bound of j - i, in 32 bits: cut to -T and S, which all j - i lie between."""
    return tl.minimum(tl.maximum(x, -T), S).to(tl.int32)


@triton.jit
def score_tile(
    q, k, i, j, b, h, mask, mask_strides, slopes, keep, low, high, shift, T, S, scale, softcap,
    UPCAST: tl.constexpr, EDGE: tl.constexpr, TURNED: tl.constexpr,
):  # fmt: skip
    """Scores (BLOCK_Q, BLOCK_K), -inf where query i may not see key j; and tanh of the softcap.

    TURNED: both transposed, (BLOCK_K, BLOCK_Q).
    """
    if TURNED:
        scores = product(k, q, UPCAST) * scale
        i = i[None, :]
        j = j[:, None]
    else:
        scores = product(q, k, UPCAST) * scale
        i = i[:, None]
        j = j[None, :]
    bent = scores  # read by nobody where there is no softcap
    if softcap is not None:
        bent = tanh(scores / softcap)
        scores = softcap * bent
    if slopes is not None:  # a cut shift adds the same to a whole row, so the softmax stays
        scores -= tl.load(slopes + h) * tl.abs(j - i - shift)
    if mask is not None:
        rows = head_of(mask, mask_strides, b, h) + i.to(tl.int64) * mask_strides[2]
        entry = tl.load(rows + j.to(tl.int64) * mask_strides[3], mask=(i < T) & (j < S), other=0)
        if mask.dtype.element_ty == tl.int8:
            scores = tl.where(entry != 0, scores, float("-inf"))
        else:
            scores += entry.to(tl.float32)
    if keep is not None:
        real = keep[:, None] if TURNED else keep[None, :]
        scores = tl.where(real, scores, float("-inf"))
    if EDGE:
        seen = (i < T) & (j < S)
        if low is not None:
            seen = seen & (j - i >= low)
        if high is not None:
            seen = seen & (j - i <= high)
        scores = tl.where(seen, scores, float("-inf"))
    return scores, bent


@triton.jit(do_not_specialize=["T", "S", "left", "right", "offset"])
def forward_kernel(
    query, key, value, output, top, total, mask, slopes, key_mask, offsets,
    q_strides, k_strides, v_strides, o_strides, mask_strides, key_mask_strides,
    H, T, S, left, right, offset, scale, softcap,
    GROUP: tl.constexpr, NATURAL: tl.constexpr, UPCAST: tl.constexpr,
    D: tl.constexpr, D_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Output, greatest score and sum of BLOCK_Q queries of one head."""
    blocks = tl.cdiv(T, BLOCK_Q)
    first = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK_Q  # the last see most: they go first
    b = tl.program_id(0) // blocks // H
    h = tl.program_id(0) // blocks % H
    query = head_of(query, q_strides, b, h)
    key = head_of(key, k_strides, b, h // GROUP)
    value = head_of(value, v_strides, b, h // GROUP)

    i = first + tl.arange(0, BLOCK_Q)
    q = load_tile(query, q_strides, first, T, None, D, BLOCK_Q, BLOCK_D, True)  # (BLOCK_Q, BLOCK_D)
    m = tl.full((BLOCK_Q,), float("-inf"), tl.float32)  # greatest score so far
    l = tl.zeros((BLOCK_Q,), tl.float32)  # noqa: E741  sum so far
    acc = tl.zeros((BLOCK_Q, BLOCK_DV), tl.float32)  # output so far, times that sum
    shift = shift_of(offsets, offset, b)
    low = None if left is None else limit(shift - left, T, S)  # query i sees key j
    high = None if right is None else limit(shift + right, T, S)  # where low <= j - i <= high
    shift = limit(shift, T, S)
    last = tl.minimum(first + BLOCK_Q, T) - 1
    t0, t1, t2, t3 = walk(first, last, S, low, high, BLOCK_K)
    for EDGE in tl.static_range(2):
        for n in range((t1 - t0) + (t3 - t2) if EDGE else t2 - t1):
            start = step_of(n, t0, t1, t2, EDGE) * BLOCK_K
            j = start + tl.arange(0, BLOCK_K)
            keep = key_mask_tile(key_mask, key_mask_strides, b, j, S)
            k = load_tile(key, k_strides, start, S, keep, D, BLOCK_K, BLOCK_D, EDGE)
            scores, _ = score_tile(
                q, k, i, j, b, h, mask, mask_strides, slopes, keep, low, high, shift, T, S,
                scale, softcap, UPCAST, EDGE, False,
            )  # (BLOCK_Q, BLOCK_K)  # fmt: skip
            m_new = tl.maximum(m, tl.max(scores, 1))
            safe = tl.where(m_new == float("-inf"), 0.0, m_new)  # nothing seen yet
            rescale = power(m - safe, NATURAL)
            p = power(scores - safe[:, None], NATURAL)
            l = l * rescale + tl.sum(p, 1)  # noqa: E741
            v = load_tile(value, v_strides, start, S, keep, D_V, BLOCK_K, BLOCK_DV, EDGE)
            acc = dot(p.to(v.dtype), v, acc * rescale[:, None], UPCAST)
            m = m_new

    l = tl.where(l == 0.0, 1.0, l)  # noqa: E741  a query that saw nothing: output 0
    output = head_of(output, o_strides, b, h)
    store_tile(output, o_strides, first, T, acc / l[:, None], D_V, BLOCK_Q, BLOCK_DV)
    row = (b * H + h).to(tl.int64) * T + i
    tl.store(top + row, tl.where(m == float("-inf"), 0.0, m), mask=i < T)
    tl.store(total + row, l, mask=i < T)


@triton.jit(do_not_specialize=["T", "S", "left", "right", "offset"])
def grad_query_kernel(
    query, key, value, output, top, total, mask, slopes, key_mask, offsets,
    grad_output, delta, grad_query,
    q_strides, k_strides, v_strides, o_strides, mask_strides, key_mask_strides,
    go_strides, gq_strides,
    H, T, S, left, right, offset, scale, factor, softcap,
    GROUP: tl.constexpr, NATURAL: tl.constexpr, UPCAST: tl.constexpr,
    D: tl.constexpr, D_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The gradient of BLOCK_Q queries of one head; and delta, each row's sum of P dP."""
    blocks = tl.cdiv(T, BLOCK_Q)
    first = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK_Q
    b = tl.program_id(0) // blocks // H
    h = tl.program_id(0) // blocks % H
    query = head_of(query, q_strides, b, h)
    key = head_of(key, k_strides, b, h // GROUP)
    value = head_of(value, v_strides, b, h // GROUP)
    output = head_of(output, o_strides, b, h)
    grad_output = head_of(grad_output, go_strides, b, h)

    i = first + tl.arange(0, BLOCK_Q)
    row = (b * H + h).to(tl.int64) * T + i
    q = load_tile(query, q_strides, first, T, None, D, BLOCK_Q, BLOCK_D, True)
    o = load_tile(output, o_strides, first, T, None, D_V, BLOCK_Q, BLOCK_DV, True)
    do = load_tile(grad_output, go_strides, first, T, None, D_V, BLOCK_Q, BLOCK_DV, True)
    m = tl.load(top + row, mask=i < T, other=0.0)
    l = tl.load(total + row, mask=i < T, other=1.0)  # noqa: E741
    # the sum over keys of P dP is that over features of O dO: one number a row
    d = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    tl.store(delta + row, d, mask=i < T)
    dq = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    shift = shift_of(offsets, offset, b)
    low = None if left is None else limit(shift - left, T, S)  # query i sees key j
    high = None if right is None else limit(shift + right, T, S)  # where low <= j - i <= high
    shift = limit(shift, T, S)
    last = tl.minimum(first + BLOCK_Q, T) - 1
    t0, t1, t2, t3 = walk(first, last, S, low, high, BLOCK_K)
    for EDGE in tl.static_range(2):
        for n in range((t1 - t0) + (t3 - t2) if EDGE else t2 - t1):
            start = step_of(n, t0, t1, t2, EDGE) * BLOCK_K
            j = start + tl.arange(0, BLOCK_K)
            keep = key_mask_tile(key_mask, key_mask_strides, b, j, S)
            k = load_tile(key, k_strides, start, S, keep, D, BLOCK_K, BLOCK_D, EDGE)
            v = load_tile(value, v_strides, start, S, keep, D_V, BLOCK_K, BLOCK_DV, EDGE)
            scores, bent = score_tile(
                q, k, i, j, b, h, mask, mask_strides, slopes, keep, low, high, shift, T, S,
                scale, softcap, UPCAST, EDGE, False,
            )  # fmt: skip
            p = power(scores - m[:, None], NATURAL)  # (BLOCK_Q, BLOCK_K), l times too great
            ds = p * (product(do, v, UPCAST) - d[:, None])
            if softcap is not None:
                ds *= 1.0 - bent * bent
            dq = dot(ds.to(k.dtype), k, dq, UPCAST)
    grad_query = head_of(grad_query, gq_strides, b, h)
    store_tile(grad_query, gq_strides, first, T, dq * (factor / l)[:, None], D, BLOCK_Q, BLOCK_D)


@triton.jit(do_not_specialize=["T", "S", "left", "right", "offset"])
def grad_key_value_kernel(
    query, key, value, top, total, mask, slopes, key_mask, offsets,
    grad_output, delta, grad_key, grad_value,
    q_strides, k_strides, v_strides, mask_strides, key_mask_strides,
    go_strides, gk_strides, gv_strides,
    H, T, S, left, right, offset, scale, factor, softcap,
    GROUP: tl.constexpr, NATURAL: tl.constexpr, UPCAST: tl.constexpr,
    D: tl.constexpr, D_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The gradients of BLOCK_K keys and values of one key head, over all queries of its group."""
    blocks = tl.cdiv(S, BLOCK_K)
    first = (tl.program_id(0) % blocks) * BLOCK_K  # the first are seen most
    b = tl.program_id(0) // blocks // (H // GROUP)
    h_kv = tl.program_id(0) // blocks % (H // GROUP)
    key = head_of(key, k_strides, b, h_kv)
    value = head_of(value, v_strides, b, h_kv)

    j = first + tl.arange(0, BLOCK_K)
    keep = key_mask_tile(key_mask, key_mask_strides, b, j, S)
    k = load_tile(key, k_strides, first, S, keep, D, BLOCK_K, BLOCK_D, True)
    v = load_tile(value, v_strides, first, S, keep, D_V, BLOCK_K, BLOCK_DV, True)
    dk = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK_K, BLOCK_DV), tl.float32)
    shift = shift_of(offsets, offset, b)
    low = None if left is None else limit(shift - left, T, S)  # query i sees key j
    high = None if right is None else limit(shift + right, T, S)  # where low <= j - i <= high
    shift = limit(shift, T, S)
    last = tl.minimum(first + BLOCK_K, S) - 1
    # seen from the keys: -high <= i - j <= -low
    low_i = None if high is None else -high
    high_i = None if low is None else -low
    t0, t1, t2, t3 = walk(first, last, T, low_i, high_i, BLOCK_Q)
    t2 = tl.where(first + BLOCK_K > S, t1, t2)  # keys beyond the last: no tile is whole
    for g in range(GROUP):
        h = h_kv * GROUP + g
        q_head = head_of(query, q_strides, b, h)
        do_head = head_of(grad_output, go_strides, b, h)
        for EDGE in tl.static_range(2):
            for n in range((t1 - t0) + (t3 - t2) if EDGE else t2 - t1):
                start = step_of(n, t0, t1, t2, EDGE) * BLOCK_Q
                i = start + tl.arange(0, BLOCK_Q)
                row = (b * H + h).to(tl.int64) * T + i
                q = load_tile(q_head, q_strides, start, T, None, D, BLOCK_Q, BLOCK_D, EDGE)
                do = load_tile(do_head, go_strides, start, T, None, D_V, BLOCK_Q, BLOCK_DV, EDGE)
                m = tl.load(top + row, mask=i < T, other=0.0)
                share = 1.0 / tl.load(total + row, mask=i < T, other=1.0)
                d = tl.load(delta + row, mask=i < T, other=0.0)
                scores, bent = score_tile(
                    q, k, i, j, b, h, mask, mask_strides, slopes, keep, low, high, shift, T, S,
                    scale, softcap, UPCAST, EDGE, True,
                )  # (BLOCK_K, BLOCK_Q): no product below needs it transposed  # fmt: skip
                p = power(scores - m[None, :], NATURAL) * share[None, :]
                dv = dot(p.to(do.dtype), do, dv, UPCAST)
                ds = p * (product(v, do, UPCAST) - d[None, :])
                if softcap is not None:
                    ds *= 1.0 - bent * bent
                dk = dot(ds.to(q.dtype), q, dk, UPCAST)
    grad_key = head_of(grad_key, gk_strides, b, h_kv)
    grad_value = head_of(grad_value, gv_strides, b, h_kv)
    store_tile(grad_key, gk_strides, first, S, dk * factor, D, BLOCK_K, BLOCK_D)
    store_tile(grad_value, gv_strides, first, S, dv, D_V, BLOCK_K, BLOCK_DV)


INTERPRETED = not isinstance(forward_kernel, triton.JITFunction)
"""Whether kernels run in Triton's interpreter: TRITON_INTERPRET=1 when triton was imported."""

LOG2_E = math.log2(math.e)


class Blocks(NamedTuple):
    """How a kernel is cut up: queries and keys to a tile, warps to a program, loads in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


def blocks(kind: str, width: int, dtype: torch.dtype, capability: tuple[int, int]) -> Blocks:
    """The tiles of a kernel: large, yet within the shared memory and the registers of the device.

    Args: kind "forward", "grad_query" or "grad_key_value"; width, the larger of D and D_v, as a
        power of two; dtype of the operands; capability of the device, such as (9, 0).
    """
    if dtype == torch.float32 or capability < (8, 0):
        return Blocks(32, 32, 4, 1) if width <= 128 else Blocks(16, 16, 4, 1)
    large = capability[0] in (9, 10)  # 227 KiB of shared memory; of the others some have 99
    column = 0 if width <= 64 else 1 if width <= 128 else 2
    return Blocks(*TILES[kind, large][column])


TILES = {  # for widths to 64, to 128, to 256
    ("forward", True): ((128, 64, 8, 3), (128, 64, 8, 3), (128, 32, 8, 2)),
    ("forward", False): ((128, 64, 8, 2), (64, 64, 4, 2), (64, 64, 8, 1)),
    ("grad_query", True): ((128, 64, 8, 2), (128, 64, 8, 2), (64, 32, 8, 1)),
    ("grad_query", False): ((128, 32, 8, 2), (64, 64, 4, 2), (32, 32, 4, 1)),
    ("grad_key_value", True): ((32, 128, 8, 2), (32, 128, 8, 2), (32, 64, 8, 1)),
    ("grad_key_value", False): ((32, 128, 8, 2), (64, 64, 8, 2), (32, 32, 8, 1)),
}
"""The tiles for half types, by kind and whether there is much shared memory.

Chosen by what the compiler tells of bfloat16 under a causal mask, for no time was measured. KiB of
shared memory of a program, and bytes that a thread spills of its registers, for the three widths:

    capability         9.0                     8.0
    forward            64, 128, 128 / 0 0 0    32, 56, 72 / 0 0 0
    grad_query         64, 128, 96 / 0 0 368   40, 72, 64 / 0 0 0
    grad_key_value     48, 96, 96 / 0 16 592   40, 73, 80 / 0 0 0

At 9.0 all have wgmma, which smaller tiles at width 256 would not have. With 64 queries and 128
keys, grad_key_value would spill 64 and 104 bytes at the first two widths.
"""


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rules: Rules,
    scale: float,
    softcap: float | None,
    *,
    cut: Blocks | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output (B, H, T, D_v), and of each row the greatest score and the sum, (B, H, T) float32.

    Args: query (B, H, T, D), key (B, H_kv, S, D), value (B, H_kv, S, D_v), no axis empty; rules,
        scale, softcap as in `tiles.forward`; cut, the tiles, by default those of `blocks`.
    """
    output = query.new_empty(*query.shape[:-1], value.shape[-1])
    top, total = (query.new_empty(query.shape[:-1], dtype=torch.float32) for _ in range(2))
    call = _Call(query, key, value, rules, scale, softcap)
    call.launch(
        *(forward_kernel, "forward", "queries", cut),
        *(query, key, value, output, top, total, *call.masks),
        *(x.stride() for x in (query, key, value, output)),
        *call.mask_strides,
        *call.sizes,
        *(call.scale, call.softcap),
    )
    return output, top, total


def backward(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    top: Tensor,
    total: Tensor,
    rules: Rules,
    scale: float,
    softcap: float | None,
    *,
    cuts: tuple[Blocks | None, Blocks | None] = (None, None),
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, in their dtypes; none of attn_mask.

    Args: grad_output like output; output, top and total from `forward`; cuts, the tiles of the two
        kernels.
    """
    grads = [
        torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value)
    ]
    delta = torch.empty_like(top)
    call = _Call(query, key, value, rules, scale, softcap)
    numbers = call.scale, scale, call.softcap
    call.launch(
        *(grad_query_kernel, "grad_query", "queries", cuts[0]),
        *(query, key, value, output, top, total, *call.masks, grad_output, delta, grads[0]),
        *(x.stride() for x in (query, key, value, output)),
        *call.mask_strides,
        *(grad_output.stride(), grads[0].stride(), *call.sizes, *numbers),
    )
    call.launch(
        *(grad_key_value_kernel, "grad_key_value", "keys", cuts[1]),
        *(query, key, value, top, total, *call.masks, grad_output, delta, *grads[1:]),
        *(x.stride() for x in (query, key, value)),
        *call.mask_strides,
        *(grad_output.stride(), grads[1].stride(), grads[2].stride(), *call.sizes, *numbers),
    )
    return tuple(grads)


class _Call:
    """What the three kernels of one call have in common.

    Scores are kept in units of log 2, so that exp is exp2 without a product more; the log2(e) is in
    the scale. Not under a float mask, where finfo.min times log2(e) would be -inf: they are natural.
    """

    def __init__(self, query, key, value, rules: Rules, scale: float, softcap: float | None):
        rules = rules.simplified(query.shape[-2], key.shape[-2])
        bias = rules.attn_mask
        natural = isinstance(bias, Tensor) and bias.is_floating_point()
        unit = 1.0 if natural else LOG2_E
        self.scale, self.softcap = scale * unit, None if softcap is None else softcap * unit
        self.query, self.widths = query, (query.shape[-1], value.shape[-1])
        batch, heads, length, _ = query.shape
        size = key.shape[-2]
        mask = slopes = key_mask = offsets = None
        if isinstance(bias, ALiBi):
            slopes = (bias.slopes.to(query.device, torch.float32) * unit).contiguous()
        elif bias is not None:
            mask = bias if natural else bias.view(torch.int8)
            mask = mask.expand(batch, heads, length, size)
        if rules.key_mask is not None:
            key_mask = rules.key_mask.view(torch.int8).expand(batch, size)
        offset = rules.q_offset
        if isinstance(offset, Tensor):
            offsets, offset = offset.to(torch.int64).expand(batch).contiguous(), 0
        self.masks = mask, slopes, key_mask, offsets
        self.mask_strides = [None if x is None else x.stride() for x in (mask, key_mask)]
        self.sizes = heads, length, size, *rules.bounds, offset
        self.options = {
            "GROUP": heads // key.shape[1],
            "NATURAL": natural,
            "UPCAST": INTERPRETED and query.dtype != torch.float32,
            "D": self.widths[0],
            "D_V": self.widths[1],
            "BLOCK_D": _power(self.widths[0]),
            "BLOCK_DV": _power(self.widths[1]),
        }

    def launch(self, kernel, kind: str, over: str, cut: Blocks | None, *args) -> None:
        """Run a kernel with a program for each tile of queries, or of keys."""
        heads, length, size = self.sizes[:3]
        if cut is None:
            width = _power(max(self.widths))
            cut = blocks(kind, width, self.query.dtype, _capability(self.query.device))
        if over == "queries":
            programs = triton.cdiv(length, cut.queries) * heads
        else:
            programs = triton.cdiv(size, cut.keys) * (heads // self.options["GROUP"])
        with torch.cuda.device_of(self.query):
            kernel[(programs * self.query.shape[0],)](
                *args,
                **self.options,
                BLOCK_Q=cut.queries,
                BLOCK_K=cut.keys,
                num_warps=cut.warps,
                num_stages=cut.stages,
            )


def _power(width: int) -> int:
    """The power of two, 16 or more, that holds a head."""
    return max(16, triton.next_power_of_2(width))


def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
