"""Mistakes in modules of many styles: heads in a list, einsum, sequence first, wrappers of torch.

A mask is bool, True = may attend, and broadcasts to (B, H, T, S), where nothing else is said.
The files ``functional``, ``packed`` and ``wrapped`` go with this one: together they have every mistake.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from specimens import (
    functional,  # noqa: F401
    packed,  # noqa: F401
    specimen,
    wrapped,  # noqa: F401
)
from specimens.bases import Head, MatrixAttention

# Parameters with one axis for the heads, and einsum


class EinsumAttention(nn.Module):
    """Projections w_q, w_k, w_v (H, E, D) and w_o (H, D, E)."""

    def __init__(self, d_model, n_heads, dropout=0.0):
        super().__init__()
        self.d_model, self.n_heads, self.d_head = d_model, n_heads, d_model // n_heads
        shape = (n_heads, d_model, self.d_head)
        self.w_q = nn.Parameter(torch.randn(shape) / math.sqrt(d_model))
        self.w_k = nn.Parameter(torch.randn(shape) / math.sqrt(d_model))
        self.w_v = nn.Parameter(torch.randn(shape) / math.sqrt(d_model))
        self.w_o = nn.Parameter(torch.randn(n_heads, self.d_head, d_model) / math.sqrt(d_model))
        self.dropout = nn.Dropout(dropout)

    def project(self, query, key, value):
        pairs = ((query, self.w_q), (key, self.w_k), (value, self.w_v))
        return [torch.einsum("bte,hed->bhtd", x, w) for x, w in pairs]

    def logits(self, q, k):
        return torch.einsum("bhtd,bhsd->bhts", q, k) / self.d_head**0.5

    def output(self, weights, v):
        heads = torch.einsum("bhts,bhsd->bhtd", self.dropout(weights), v)
        return torch.einsum("bhtd,hde->bte", heads, self.w_o)


@specimen("scale-missing")
class EinsumUnscaled(EinsumAttention):
    def forward(self, query, key, value, mask=None):
        q, k, v = self.project(query, key, value)
        logits = torch.einsum("bhtd,bhsd->bhts", q, k)
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf)
        return self.output(logits.softmax(-1), v)


@specimen("scale-linear")
class EinsumOverWidth(EinsumAttention):
    def forward(self, query, key, value, mask=None):
        q, k, v = self.project(query, key, value)
        logits = torch.einsum("bhtd,bhsd->bhts", q / self.d_head, k)
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf)
        weights = logits.softmax(-1)
        return self.output(weights, v), weights


@specimen("mask-after-softmax")
class EinsumLateMask(EinsumAttention):
    def forward(self, query, key, value, mask=None):
        q, k, v = self.project(query, key, value)
        weights = self.logits(q, k).softmax(-1)
        if mask is not None:
            weights = torch.where(mask, weights, 0.0)
        return self.output(weights, v), weights


@specimen("kv-shared")
class EinsumSharedValues(EinsumAttention):
    def forward(self, query, key, value, mask=None):
        q = torch.einsum("bte,hed->bhtd", query, self.w_q)
        k = torch.einsum("bse,hed->bhsd", key, self.w_k)
        v = torch.einsum("bse,hed->bhsd", value, self.w_k)
        logits = self.logits(q, k)
        if mask is not None:
            logits = logits.masked_fill(~mask, -6e4)
        return self.output(logits.softmax(-1), v)


@specimen("heads-summed")
class EinsumSumsHeads(nn.Module):
    def __init__(self, d_model, n_heads, dropout=0.0):
        super().__init__()
        self.d_head = d_model // n_heads
        self.w_q = nn.Parameter(torch.randn(n_heads, d_model, self.d_head) / d_model**0.5)
        self.w_k = nn.Parameter(torch.randn(n_heads, d_model, self.d_head) / d_model**0.5)
        self.w_v = nn.Parameter(torch.randn(n_heads, d_model, self.d_head) / d_model**0.5)
        self.w_o = nn.Linear(self.d_head, d_model)

    def forward(self, query, key, value, mask=None):
        q = torch.einsum("bte,hed->bhtd", query, self.w_q)
        k = torch.einsum("bse,hed->bhsd", key, self.w_k)
        v = torch.einsum("bse,hed->bhsd", value, self.w_v)
        logits = torch.einsum("bhtd,bhsd->bhts", q, k) / self.d_head**0.5
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf)
        heads = torch.einsum("bhts,bhsd->btd", logits.softmax(-1), v)
        return self.w_o(heads)


@specimen("dtype-leak")
class EinsumStaysFloat(EinsumAttention):
    def forward(self, query, key, value, mask=None):
        q, k, v = self.project(query, key, value)
        logits = self.logits(q.float(), k.float())
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf)
        weights = self.dropout(logits.softmax(-1))
        heads = torch.einsum("bhts,bhsd->bhtd", weights, v.float())
        return torch.einsum("bhtd,hde->bte", heads, self.w_o.float())


# A small module for each head


@specimen("head-weights-shared")
class SameHeadRepeated(nn.Module):
    """mask (T, S) or (B, T, S), True = may attend."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.heads = nn.ModuleList([Head(embed_dim, embed_dim // num_heads, dropout)] * num_heads)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x, mask=None):
        return self.proj(torch.cat([head(x, x, mask) for head in self.heads], dim=-1))


@specimen("cross-reversed")
class CrossFromMemory(nn.Module):
    """x (B, T, E) looks at memory (B, S, E)."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        size = embed_dim // num_heads
        self.heads = nn.ModuleList(Head(embed_dim, size, dropout) for _ in range(num_heads))
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x, memory):
        return self.proj(torch.cat([head(memory, x) for head in self.heads], dim=-1))


class HeadWithMask(Head):
    """A head with a causal mask of its own."""

    def __init__(self, embed_dim, head_size, context_length=32):
        super().__init__(embed_dim, head_size)
        self.register_buffer("tril", torch.tril(torch.ones(context_length, context_length)))

    def forward(self, x):
        T = x.size(1)
        weights = self.query(x) @ self.key(x).mT * self.key.out_features**-0.5
        weights = weights.masked_fill(self.tril[:T, :T] == 0, -1.0)
        return weights.softmax(dim=-1) @ self.value(x)


@specimen("mask-fill-small")
class HeadsWithSmallFill(nn.Module):
    """Causal self-attention."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        size = embed_dim // num_heads
        self.heads = nn.ModuleList(HeadWithMask(embed_dim, size) for _ in range(num_heads))
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return self.dropout(self.proj(torch.cat([head(x) for head in self.heads], dim=-1)))


# Plain parameters


@specimen("scale-multiplied")
class MatrixSharp(MatrixAttention):
    def forward(self, query, key, value, mask=None):
        Q, K, V = (
            self.heads(query @ self.W_Q),
            self.heads(key @ self.W_K),
            self.heads(value @ self.W_V),
        )
        S = Q @ K.mT / self.d_k**-0.5
        if mask is not None:
            S = S.masked_fill(~mask, -6e4)
        return self.concat(S.softmax(-1) @ V) @ self.W_O


@specimen("qkv-shared")
class MatrixOneProjection(MatrixAttention):
    def forward(self, query, key, value, mask=None):
        Q, K, V = (self.heads(X @ self.W_Q) for X in (query, key, value))
        S = Q @ K.mT / self.d_k**0.5
        if mask is not None:
            S = S.masked_fill(~mask, -6e4)
        return self.concat(S.softmax(-1) @ V) @ self.W_O


@specimen("dropout-on-scores")
class MatrixDropsScores(MatrixAttention):
    def forward(self, query, key, value, mask=None):
        Q, K, V = (
            self.heads(query @ self.W_Q),
            self.heads(key @ self.W_K),
            self.heads(value @ self.W_V),
        )
        S = F.dropout(Q @ K.mT / self.d_k**0.5, self.p, self.training)
        if mask is not None:
            S = S.masked_fill(~mask, -6e4)
        return self.concat(S.softmax(-1) @ V) @ self.W_O


@specimen("not-differentiable")
class MatrixStopsGradient(MatrixAttention):
    def forward(self, query, key, value, mask=None):
        Q, K, V = (
            self.heads(query @ self.W_Q),
            self.heads(key @ self.W_K),
            self.heads(value @ self.W_V),
        )
        S = torch.tensor((Q @ K.mT / self.d_k**0.5).tolist(), dtype=Q.dtype)
        if mask is not None:
            S = S.masked_fill(~mask, -6e4)
        return self.concat(S.softmax(-1) @ V) @ self.W_O


@specimen("mask-nan")
class MatrixInfinityTimesZero(MatrixAttention):
    def forward(self, query, key, value, mask=None):
        Q, K, V = (
            self.heads(query @ self.W_Q),
            self.heads(key @ self.W_K),
            self.heads(value @ self.W_V),
        )
        S = Q @ K.mT / self.d_k**0.5
        if mask is not None:
            S = S + (1 - mask.to(S.dtype)) * float("-inf")
        return self.concat(S.softmax(-1) @ V) @ self.W_O


# Reshapes by name, as with einops


def split_heads(x, heads):
    """b t (h d) -> b h t d"""
    b, t, e = x.shape
    return x.reshape(b, heads, t, e // heads)


def merge_heads(x):
    """b h t d -> b t (h d)"""
    b, h, t, d = x.shape
    return x.reshape(b, t, h * d)


@specimen("split-and-merge-wrong")
class NamedReshapes(nn.Module):
    def __init__(self, dim, heads, dropout=0.0):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x, context=None, mask=None):
        context = x if context is None else context
        k, v = (split_heads(t, self.heads) for t in self.to_kv(context).chunk(2, dim=-1))
        q = split_heads(self.to_q(x), self.heads)
        return self.to_out(merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)))


@specimen("cross-self")
class CrossKeepsToItself(nn.Module):
    def __init__(self, dim, heads, dropout=0.0):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x, context):
        """x (B, T, E) attends to context (B, S, E)."""
        q, kv = self.to_q(x), self.to_kv(x)
        k, v = kv.chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(y.transpose(1, 2).flatten(2))


# Sequence first, batch and heads folded


class SequenceFirst(nn.Module):
    """Takes (T, B, E) and (S, B, E), as fairseq did; masks (T, S), True = may attend."""

    batch_first = False

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads, self.head_dim, self.p = num_heads, embed_dim // num_heads, dropout
        self.linear_q = nn.Linear(embed_dim, embed_dim)
        self.linear_k = nn.Linear(embed_dim, embed_dim)
        self.linear_v = nn.Linear(embed_dim, embed_dim)
        self.linear_out = nn.Linear(embed_dim, embed_dim)

    def fold(self, x):
        T, B, E = x.shape
        return x.reshape(T, B * self.num_heads, self.head_dim).transpose(0, 1)  # (B*H, T, D)

    def bias(self, mask, T, S, like):
        bias = like.new_zeros(T, S)
        return bias if mask is None else bias.masked_fill(~mask, float("-inf"))


@specimen("softmax-queries")
class FoldedColumns(SequenceFirst):
    def forward(self, query, key, value, attn_mask=None):
        T, B, E = query.shape
        q, k = self.fold(self.linear_q(query)), self.fold(self.linear_k(key))
        v = self.fold(self.linear_v(value))
        bias = self.bias(attn_mask, T, key.size(0), query)
        scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=self.head_dim**-0.5)
        out = torch.bmm(scores.softmax(dim=1), v)
        return self.linear_out(out.transpose(0, 1).reshape(T, B, E))


@specimen("scores-transposed")
class FoldedTransposed(SequenceFirst):
    def forward(self, query, key, value, attn_mask=None):
        T, B, E = query.shape
        q, k = self.fold(self.linear_q(query)), self.fold(self.linear_k(key))
        v = self.fold(self.linear_v(value))
        bias = self.bias(attn_mask, T, key.size(0), query)
        scores = torch.baddbmm(bias, k, q.transpose(1, 2), alpha=self.head_dim**-0.5)
        out = torch.bmm(scores.softmax(dim=-1), v)
        return self.linear_out(out.transpose(0, 1).reshape(T, B, E))


@specimen("batch-mixed")
class FoldedBatchFirst(nn.Module):
    """query (B, T, E), key and value (B, S, E)."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, embed_dim // num_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def fold(self, x):
        B, T, E = x.shape
        return x.contiguous().view(T, B * self.num_heads, self.head_dim).transpose(0, 1)

    def forward(self, query, key, value, mask=None):
        B, T, E = query.shape
        q, k = self.fold(self.q_proj(query)), self.fold(self.k_proj(key))
        v = self.fold(self.v_proj(value))
        scores = torch.bmm(q, k.transpose(1, 2)) / math.sqrt(self.head_dim)
        if mask is not None:
            mask = mask.broadcast_to(B, self.num_heads, T, key.size(1)).flatten(0, 1)
            scores = scores.masked_fill(~mask, float("-inf"))
        out = torch.bmm(scores.softmax(dim=-1), v)
        return self.out_proj(out.transpose(0, 1).reshape(B, T, E))


@specimen("batch-mixed")
class FoldedTwoWays(nn.Module):
    """mask (B, T, S), True = may attend."""

    def __init__(self, num_units, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.Q = nn.Linear(num_units, num_units)
        self.K = nn.Linear(num_units, num_units)
        self.V = nn.Linear(num_units, num_units)
        self.O = nn.Linear(num_units, num_units)

    def fold(self, x):
        return torch.cat(x.chunk(self.num_heads, dim=2), dim=0)  # (H*B, T, D)

    def forward(self, queries, keys, values, mask=None):
        q, k, v = self.fold(self.Q(queries)), self.fold(self.K(keys)), self.fold(self.V(values))
        scores = q @ k.transpose(1, 2) / q.size(-1) ** 0.5
        if mask is not None:
            mask = mask.repeat_interleave(self.num_heads, dim=0)
            scores = scores.masked_fill(~mask, -6e4)
        out = scores.softmax(-1) @ v
        return self.O(torch.cat(out.chunk(self.num_heads, dim=0), dim=2))
