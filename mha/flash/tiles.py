"""FlashAttention tile by tile, in plain PyTorch: forward, and backward by recomputation.

No tensor of T x S is ever made. A block of queries meets one tile of keys after the other, and all
that is kept of the tiles it has met is three things to a row: ``top``, the greatest score so far,
``total``, the sum of exp(score - top), and ``summed``, that of exp(score - top) times the values.
The batch and the heads stay axes; the G query heads that share a key head lie below one another,
as G * t rows, so that a tile is one product for all of them and keys are never repeated.

Axes: B batch, H heads, H_kv key heads, G = H / H_kv, T queries, t of one block, S keys, s of one
tile, D width of one head, D_v of one value.
Source: Dao (2024), "FlashAttention-2", algorithms 1 and 2.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from mha._rules import Rules

BLOCK_Q = 128
"""Queries to a block."""

TILE = 128 * 128
"""Scores of one head in a tile: where there are few queries, they meet more keys at a time."""


@torch.no_grad()
def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rules: Rules,
    scale: float,
    softcap: float | None,
    *,
    block_q: int = BLOCK_Q,
    block_k: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention, and of each row what the backward pass rebuilds its weights from.

    Args:
        query: (B, H, T, D); no axis is empty.
        key: (B, H_kv, S, D).
        value: (B, H_kv, S, D_v).
        rules: all masks. What stands at a key that its key_mask excludes is never used.
        scale: factor of the scores.
        softcap: bound of the scores, or None.
        block_q, block_k: queries to a block, keys to a tile; by default as many as make ``TILE``.
    Returns: output (B, H, T, D_v) in the query's dtype, and in the accumulation dtype, float32 for
        half types, top (B, H, T), the row's greatest score, and total (B, H, T), its sum of
        exp(score - top). A row that sees nothing has output 0, top 0 and total 1.

    Examples:
        >>> import torch
        >>> from mha.flash import Rules, tiles
        >>> query, key = torch.zeros(2, 2, 3, 4), torch.ones(2, 1, 5, 4)  # all scores are 0
        >>> options = {"scale": 0.5, "softcap": None, "block_k": 2}
        >>> output, top, total = tiles.forward(query, key, key, Rules(is_causal=True), **options)
        >>> tuple(output.shape), top[0, 0].tolist(), total[0, 0].tolist()  # 1, 2, 3 keys seen
        ((2, 2, 3, 4), [0.0, 0.0, 0.0], [1.0, 2.0, 3.0])
    """
    dtype, block_k = _accumulation_dtype(query), block_k or _keys_to(block_q, query)
    output = query.new_empty(*query.shape[:-1], value.shape[-1])  # (B, H, T, D_v)
    tops, totals = (query.new_empty(query.shape[:-1], dtype=dtype) for _ in range(2))  # (B, H, T)
    for rows in _blocks(slice(0, query.shape[2]), block_q):
        q = _below_one_another(query, rows, key.shape[1], dtype) * scale  # (B*H_kv, G*t, D)
        top = q.new_full((*q.shape[:2], 1), float("-inf"))  # (B*H_kv, G*t, 1)
        total = torch.zeros_like(top)
        summed = q.new_zeros(*q.shape[:2], value.shape[-1])  # (B*H_kv, G*t, D_v)
        for columns in _blocks(rules.visible(rows, key.shape[2]), block_k):
            k, v = (_tile(x, columns, rules.key_mask, dtype) for x in (key, value))
            scores = _capped(torch.bmm(q, k.mT), softcap)  # (B*H_kv, G*t, s)
            _mask(scores, query, key, rules, rows, columns)
            new_top = torch.maximum(top, scores.amax(-1, keepdim=True))
            finite = new_top.masked_fill(new_top == float("-inf"), 0.0)  # where none is seen yet
            weights = scores.sub_(finite).exp_()  # (B*H_kv, G*t, s)
            rescale = top.sub_(finite).exp_()  # what was summed so far rests on the old top
            total.mul_(rescale).add_(weights.sum(-1, keepdim=True))
            summed.mul_(rescale).baddbmm_(weights, v)
            top = new_top
        dead = top == float("-inf")
        top.masked_fill_(dead, 0.0)
        total.masked_fill_(dead, 1.0)
        for whole, block in (output, summed.div_(total)), (tops, top), (totals, total):
            part = whole[:, :, rows]  # (B, H, t, D_v) or (B, H, t)
            part.copy_(block.view(part.shape))
    return output, tops, totals


@torch.no_grad()
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
    block_q: int = BLOCK_Q,
    block_k: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value; each tile of the weights is computed a second time.

    With P = exp(S - top) / total and O = P V: dV = P^T dO, dP = dO V^T, dS = P * (dP - delta),
    dQ = scale dS K, dK = scale dS^T Q. Delta, the sum of P * dP along a row, is that of O * dO,
    which takes no tiles. (Algorithm 2 has the loops the other way round, so that blocks of keys can
    go to different processors; here one sums all of dK and dV.)

    Args:
        grad_output: (B, H, T, D_v), gradient of the loss with respect to the output.
        output, top, total: what ``forward`` returned.
        the rest: as given to ``forward``.
    Returns: gradients of query, key and value, in their shapes and dtypes.

    Examples:
        >>> import torch
        >>> from mha.flash import Rules, tiles
        >>> query, key = torch.zeros(2, 2, 3, 4), torch.ones(2, 1, 5, 4)
        >>> given = query, key, key
        >>> options = {"rules": Rules(), "scale": 0.5, "softcap": None}
        >>> kept = tiles.forward(*given, **options)
        >>> grads = tiles.backward(torch.ones(2, 2, 3, 4), *given, *kept, **options)
        >>> [tuple(grad.shape) for grad in grads]
        [(2, 2, 3, 4), (2, 1, 5, 4), (2, 1, 5, 4)]
    """
    dtype, block_k = _accumulation_dtype(query), block_k or _keys_to(block_q, query)
    groups = key.shape[1]
    grad_query = torch.empty_like(query, memory_format=torch.contiguous_format)
    grad_key, grad_value = (  # (B*H_kv, S, D), (B*H_kv, S, D_v)
        x.new_zeros(x.shape[0] * groups, *x.shape[2:], dtype=dtype) for x in (key, value)
    )
    for rows in _blocks(slice(0, query.shape[2]), block_q):
        q, do, o, m, z = (  # each (B*H_kv, G*t, its width)
            _below_one_another(x, rows, groups, dtype)
            for x in (query, grad_output, output, top[..., None], total[..., None])
        )
        q = q * scale
        delta = (do * o).sum(-1, keepdim=True)  # (B*H_kv, G*t, 1)
        dq = torch.zeros_like(q)
        for columns in _blocks(rules.visible(rows, key.shape[2]), block_k):
            k, v = (_tile(x, columns, rules.key_mask, dtype) for x in (key, value))
            scores = _capped(torch.bmm(q, k.mT), softcap)  # (B*H_kv, G*t, s)
            slope = None if softcap is None else 1.0 - (scores / softcap).square()
            _mask(scores, query, key, rules, rows, columns)
            weights = scores.sub_(m).exp_().div_(z)
            grad_value[:, columns].baddbmm_(weights.mT, do)
            grad_scores = torch.bmm(do, v.mT).sub_(delta).mul_(weights)
            if slope is not None:
                grad_scores.mul_(slope)
            dq.baddbmm_(grad_scores, k)
            grad_key[:, columns].baddbmm_(grad_scores.mT, q)  # q has the scale in it
        part = grad_query[:, :, rows]  # (B, H, t, D)
        part.copy_(dq.mul_(scale).view(part.shape))
    pairs = (grad_key, key), (grad_value, value)
    return grad_query, *(grad.view(x.shape).to(x.dtype) for grad, x in pairs)


def _keys_to(block_q: int, query: Tensor) -> int:
    """How many keys to a tile, for that many queries to a block."""
    return max(1, TILE // min(block_q, query.shape[2]))


def _blocks(where: slice, size: int) -> Iterator[slice]:
    """Slices of ``size``, the last one perhaps shorter."""
    for start in range(where.start, where.stop, size):
        yield slice(start, min(start + size, where.stop))


def _below_one_another(x: Tensor, rows: slice, groups: int, dtype: torch.dtype) -> Tensor:
    """A block of queries, or of what belongs to them: (B, H, T, D) -> (B*H_kv, G*t, D)."""
    block = x[:, :, rows].unflatten(1, (groups, -1))  # (B, H_kv, G, t, D)
    return block.flatten(2, 3).flatten(0, 1).to(dtype)


def _tile(x: Tensor, columns: slice, key_mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """A tile of keys or values, 0 where the key mask excludes them: (B*H_kv, s, D)."""
    tile = x[:, :, columns].to(dtype)  # (B, H_kv, s, D)
    if key_mask is not None:  # 0 times a NaN would be NaN
        tile = tile.masked_fill(~key_mask[:, None, columns, None], 0.0)
    return tile.flatten(0, 1)


def _capped(scores: Tensor, softcap: float | None) -> Tensor:
    """c tanh(s / c), in place."""
    return scores if softcap is None else scores.div_(softcap).tanh_().mul_(softcap)


def _mask(scores: Tensor, query: Tensor, key: Tensor, rules: Rules, rows: slice, columns: slice):
    """Apply the rules of one tile to its scores, in place; no mask is made where all see all."""
    q, k = query[:, :, rows], key[:, :, columns]
    size = q.shape[2], k.shape[2]  # (t, s)
    mask = rules.part(rows, columns).simplified(*size).mask(q, k)
    scores = scores.view(*query.shape[:2], *size)  # (B, H, t, s)
    if mask is not None and mask.dtype == torch.bool:
        scores.masked_fill_(~mask, float("-inf"))
    elif mask is not None:
        scores.add_(mask)


def _accumulation_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
