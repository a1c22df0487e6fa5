"""Every mistake once, in plain modules with four linear layers, each in another hand.

A mask is bool, True = may attend, and broadcasts to (B, H, T, S), where nothing else is said.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from specimens import specimen

NEG = float("-inf")


# The scale


@specimen("scale-model-dim")
class ScaleModelDim(nn.Module):
    def __init__(self, d_model, num_heads, dropout=0.0):
        super().__init__()
        assert d_model % num_heads == 0
        self.d_model = d_model
        self.num_heads = num_heads
        self.d_k = d_model // num_heads
        self.W_q = nn.Linear(d_model, d_model)
        self.W_k = nn.Linear(d_model, d_model)
        self.W_v = nn.Linear(d_model, d_model)
        self.W_o = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def split_heads(self, x):
        batch, length, _ = x.size()
        return x.view(batch, length, self.num_heads, self.d_k).transpose(1, 2)

    def forward(self, Q, K, V, mask=None):
        Q, K, V = self.W_q(Q), self.W_k(K), self.W_v(V)
        Q, K, V = self.split_heads(Q), self.split_heads(K), self.split_heads(V)
        scores = torch.matmul(Q, K.transpose(-2, -1)) / math.sqrt(self.d_model)
        if mask is not None:
            scores = scores.masked_fill(mask == 0, NEG)
        attn = self.dropout(torch.softmax(scores, dim=-1))
        out = torch.matmul(attn, V)
        batch, _, length, _ = out.size()
        out = out.transpose(1, 2).contiguous().view(batch, length, self.d_model)
        return self.W_o(out)


@specimen("scale-missing")
class ScaleMissing(nn.Module):
    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.heads = num_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, query, key, value, mask=None):
        B, T, E = query.shape
        S = key.shape[1]
        q = self.q_proj(query).reshape(B, T, self.heads, -1).permute(0, 2, 1, 3)
        k = self.k_proj(key).reshape(B, S, self.heads, -1).permute(0, 2, 3, 1)
        v = self.v_proj(value).reshape(B, S, self.heads, -1).permute(0, 2, 1, 3)
        energy = q @ k
        if mask is not None:
            energy = energy.masked_fill(~mask, torch.finfo(energy.dtype).min)
        weights = self.drop(energy.softmax(-1))
        return self.out_proj((weights @ v).permute(0, 2, 1, 3).reshape(B, T, E))


@specimen("scale-multiplied")
class ScaleMultiplied(nn.Module):
    """Self-attention only."""

    def __init__(self, d_model, n_heads, dropout=0.0):
        super().__init__()
        self.n_heads = n_heads
        self.head_size = d_model // n_heads
        self.scale = self.head_size**0.5
        self.wq = nn.Linear(d_model, d_model, bias=False)
        self.wk = nn.Linear(d_model, d_model, bias=False)
        self.wv = nn.Linear(d_model, d_model, bias=False)
        self.wo = nn.Linear(d_model, d_model, bias=False)
        self.attn_dropout = nn.Dropout(dropout)

    def forward(self, x, mask=None):
        b, t, c = x.shape
        q = self.wq(x).view(b, t, self.n_heads, self.head_size).transpose(1, 2)
        k = self.wk(x).view(b, t, self.n_heads, self.head_size).transpose(1, 2)
        v = self.wv(x).view(b, t, self.n_heads, self.head_size).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * self.scale
        if mask is not None:
            att = att.masked_fill(mask == 0, NEG)
        att = self.attn_dropout(F.softmax(att, dim=-1))
        y = (att @ v).transpose(1, 2).reshape(b, t, c)
        return self.wo(y)


@specimen("scale-linear")
class ScaleLinear(nn.Module):
    def __init__(self, num_hiddens, num_heads, dropout=0.0, bias=False):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = nn.Dropout(dropout)
        self.W_q = nn.Linear(num_hiddens, num_hiddens, bias=bias)
        self.W_k = nn.Linear(num_hiddens, num_hiddens, bias=bias)
        self.W_v = nn.Linear(num_hiddens, num_hiddens, bias=bias)
        self.W_o = nn.Linear(num_hiddens, num_hiddens, bias=bias)

    def transpose_qkv(self, X):
        X = X.reshape(X.shape[0], X.shape[1], self.num_heads, -1)
        return X.permute(0, 2, 1, 3)

    def transpose_output(self, X):
        X = X.permute(0, 2, 1, 3)
        return X.reshape(X.shape[0], X.shape[1], -1)

    def forward(self, queries, keys, values, mask=None):
        queries = self.transpose_qkv(self.W_q(queries))
        keys = self.transpose_qkv(self.W_k(keys))
        values = self.transpose_qkv(self.W_v(values))
        d = queries.shape[-1]
        scores = torch.matmul(queries, keys.transpose(2, 3)) / d
        if mask is not None:
            scores = torch.where(mask, scores, torch.full_like(scores, NEG))
        self.attention_weights = torch.softmax(scores, dim=-1)
        output = torch.matmul(self.dropout(self.attention_weights), values)
        return self.W_o(self.transpose_output(output))


# Splitting and merging heads


@specimen("split-no-transpose")
class SplitNoTranspose(nn.Module):
    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.query = nn.Linear(embed_dim, embed_dim)
        self.key = nn.Linear(embed_dim, embed_dim)
        self.value = nn.Linear(embed_dim, embed_dim)
        self.out = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, q, k, v, mask=None):
        bs, tgt, src = q.size(0), q.size(1), k.size(1)
        q = self.query(q).view(bs, self.num_heads, tgt, self.head_dim)
        k = self.key(k).view(bs, self.num_heads, src, self.head_dim)
        v = self.value(v).view(bs, self.num_heads, src, self.head_dim)
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.head_dim)
        if mask is not None:
            scores = scores.masked_fill(mask == 0, NEG)
        attn = self.dropout(scores.softmax(dim=-1))
        context = (attn @ v).transpose(1, 2).contiguous()
        return self.out(context.view(bs, tgt, self.num_heads * self.head_dim))


@specimen("merge-no-transpose")
class MergeNoTranspose(nn.Module):
    def __init__(self, d_model, h, dropout=0.0):
        super().__init__()
        self.d_k = d_model // h
        self.h = h
        self.linear_q = nn.Linear(d_model, d_model)
        self.linear_k = nn.Linear(d_model, d_model)
        self.linear_v = nn.Linear(d_model, d_model)
        self.linear_out = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(p=dropout)

    def forward(self, query, key, value, mask=None):
        nbatches = query.size(0)
        q = self.linear_q(query).view(nbatches, -1, self.h, self.d_k).transpose(1, 2)
        k = self.linear_k(key).view(nbatches, -1, self.h, self.d_k).transpose(1, 2)
        v = self.linear_v(value).view(nbatches, -1, self.h, self.d_k).transpose(1, 2)
        scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(self.d_k)
        if mask is not None:
            scores = scores.masked_fill(mask == 0, torch.finfo(scores.dtype).min)
        p_attn = self.dropout(F.softmax(scores, dim=-1))
        x = torch.matmul(p_attn, v)
        x = x.contiguous().view(nbatches, -1, self.h * self.d_k)
        return self.linear_out(x)


@specimen("split-and-merge-wrong")
class SplitAndMergeWrong(nn.Module):
    def __init__(self, hidden_size, num_attention_heads, dropout=0.0):
        super().__init__()
        self.num_attention_heads = num_attention_heads
        self.attention_head_size = hidden_size // num_attention_heads
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)

    def to_heads(self, x):
        b, length, _ = x.shape
        return x.reshape(b, self.num_attention_heads, length, self.attention_head_size)

    def forward(self, hidden_states, attention_mask=None):
        """attention_mask: bool, True where a position may be attended to."""
        q = self.to_heads(self.query(hidden_states))
        k = self.to_heads(self.key(hidden_states))
        v = self.to_heads(self.value(hidden_states))
        scores = torch.matmul(q, k.transpose(-1, -2))
        scores = scores / math.sqrt(self.attention_head_size)
        if attention_mask is not None:
            scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        probs = self.dropout(nn.functional.softmax(scores, dim=-1))
        context = torch.matmul(probs, v)
        return self.dense(context.reshape(hidden_states.shape))


@specimen("split-dim-major")
class SplitDimMajor(nn.Module):
    def __init__(self, dim, heads, dropout=0.0):
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.Linear(dim, dim)
        self.drop = nn.Dropout(dropout)

    def split(self, x):
        # (b, n, dim) -> (b, n, d, h) -> (b, h, n, d)
        b, n, dim = x.shape
        return x.view(b, n, dim // self.heads, self.heads).permute(0, 3, 1, 2)

    def forward(self, query, key, value, mask=None):
        q = self.split(self.to_q(query)) * self.scale
        k = self.split(self.to_k(key))
        v = self.split(self.to_v(value))
        sim = torch.einsum("bhid,bhjd->bhij", q, k)
        if mask is not None:
            sim.masked_fill_(~mask, NEG)
        attn = self.drop(sim.softmax(dim=-1))
        out = torch.einsum("bhij,bhjd->bhid", attn, v)
        # (b, h, n, d) -> (b, n, h * d)
        out = out.transpose(1, 2).flatten(2)
        return self.to_out(out)


@specimen("merge-dim-major")
class MergeDimMajor(nn.Module):
    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.head_dim = embed_dim // num_heads
        self.fc_q = nn.Linear(embed_dim, embed_dim)
        self.fc_k = nn.Linear(embed_dim, embed_dim)
        self.fc_v = nn.Linear(embed_dim, embed_dim)
        self.fc_o = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, key, value, mask=None):
        batch_size = query.shape[0]
        Q = self.fc_q(query).view(batch_size, -1, self.num_heads, self.head_dim)
        K = self.fc_k(key).view(batch_size, -1, self.num_heads, self.head_dim)
        V = self.fc_v(value).view(batch_size, -1, self.num_heads, self.head_dim)
        Q, K, V = (x.permute(0, 2, 1, 3) for x in (Q, K, V))
        energy = torch.matmul(Q, K.permute(0, 1, 3, 2)) / self.head_dim**0.5
        if mask is not None:
            energy = energy.masked_fill(mask == 0, NEG)
        attention = torch.softmax(energy, dim=-1)
        x = torch.matmul(self.dropout(attention), V)  # [batch, heads, query len, head dim]
        x = x.permute(0, 2, 3, 1).contiguous()
        x = x.view(batch_size, -1, self.embed_dim)
        return self.fc_o(x)


@specimen("batch-mixed")
class BatchMixed(nn.Module):
    """Folds the heads into the batch, to use bmm."""

    def __init__(self, num_hiddens, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.Wq = nn.Linear(num_hiddens, num_hiddens)
        self.Wk = nn.Linear(num_hiddens, num_hiddens)
        self.Wv = nn.Linear(num_hiddens, num_hiddens)
        self.Wo = nn.Linear(num_hiddens, num_hiddens)
        self.dropout = nn.Dropout(dropout)

    def fold(self, x):
        b, n, e = x.shape
        x = x.view(b, n, self.num_heads, e // self.num_heads)
        return x.permute(2, 0, 1, 3).reshape(b * self.num_heads, n, e // self.num_heads)

    def forward(self, q, k, v, mask=None):
        b, n, e = q.shape
        s = k.shape[1]
        q, k, v = self.fold(self.Wq(q)), self.fold(self.Wk(k)), self.fold(self.Wv(v))
        scores = torch.bmm(q, k.transpose(1, 2)) / math.sqrt(q.shape[-1])
        if mask is not None:
            mask = mask.expand(b, self.num_heads, n, s)
            folded = mask.transpose(0, 1).reshape(b * self.num_heads, n, s)
            scores = scores.masked_fill(~folded, torch.finfo(scores.dtype).min)
        weights = self.dropout(torch.softmax(scores, dim=-1))
        out = torch.bmm(weights, v)
        out = out.view(b, self.num_heads, n, -1).transpose(1, 2).reshape(b, n, e)
        return self.Wo(out)


@specimen("batch-mixed")
class BatchAndTimeMixed(nn.Module):
    """Works sequence first inside."""

    def __init__(self, d_model, nhead, dropout=0.0):
        super().__init__()
        self.nhead = nhead
        self.q_linear = nn.Linear(d_model, d_model)
        self.k_linear = nn.Linear(d_model, d_model)
        self.v_linear = nn.Linear(d_model, d_model)
        self.out = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, mask=None):
        batch, seq, width = x.shape
        x = x.reshape(seq, batch, width)  # sequence first
        q = self.q_linear(x).view(seq, batch, self.nhead, -1).permute(1, 2, 0, 3)
        k = self.k_linear(x).view(seq, batch, self.nhead, -1).permute(1, 2, 0, 3)
        v = self.v_linear(x).view(seq, batch, self.nhead, -1).permute(1, 2, 0, 3)
        scores = q @ k.mT / math.sqrt(width // self.nhead)
        if mask is not None:
            scores = scores.masked_fill(~mask, NEG)
        y = self.dropout(scores.softmax(-1)) @ v
        y = y.permute(2, 0, 1, 3).reshape(seq, batch, width)
        return self.out(y).reshape(batch, seq, width)


@specimen("heads-summed")
class HeadsSummed(nn.Module):
    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.o_proj = nn.Linear(self.head_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def shape(self, x):
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def forward(self, query, key, value, mask=None):
        q = self.shape(self.q_proj(query))
        k = self.shape(self.k_proj(key))
        v = self.shape(self.v_proj(value))
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.head_dim)
        if mask is not None:
            scores = scores.masked_fill(~mask, NEG)
        heads = self.dropout(torch.softmax(scores, dim=-1)) @ v
        combined = heads.sum(dim=1)  # combine the heads
        return self.o_proj(combined)


@specimen("heads-summed")
class HeadsAveraged(nn.Module):
    """Each head is as wide as the model, and the heads are averaged."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.W_q = nn.Linear(embed_dim, embed_dim * num_heads)
        self.W_k = nn.Linear(embed_dim, embed_dim * num_heads)
        self.W_v = nn.Linear(embed_dim, embed_dim * num_heads)
        self.W_o = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, mask=None):
        B, T, E = x.shape
        q = self.W_q(x).view(B, T, self.num_heads, E).transpose(1, 2)
        k = self.W_k(x).view(B, T, self.num_heads, E).transpose(1, 2)
        v = self.W_v(x).view(B, T, self.num_heads, E).transpose(1, 2)
        scores = q @ k.transpose(2, 3) / math.sqrt(E)
        if mask is not None:
            scores = scores.masked_fill(mask == 0, NEG)
        out = self.dropout(F.softmax(scores, -1)) @ v
        return self.W_o(out.mean(1))


@specimen("heads-ignored")
class HeadsIgnored(nn.Module):
    def __init__(self, d_model, num_heads, dropout=0.0):
        super().__init__()
        assert d_model % num_heads == 0, "d_model must be divisible by num_heads"
        self.num_heads = num_heads
        self.head_dim = d_model // num_heads
        self.W_query = nn.Linear(d_model, d_model)
        self.W_key = nn.Linear(d_model, d_model)
        self.W_value = nn.Linear(d_model, d_model)
        self.W_out = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def attention(self, q, k, v, mask):
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
        if mask is not None:
            scores = scores.masked_fill(mask == 0, NEG)
        return self.dropout(scores.softmax(-1)) @ v

    def forward(self, query, key, value, mask=None):
        """mask: (T, S) or (B, T, S), True = may attend; (B, 1, T, S) loses its head axis."""
        if mask is not None and mask.dim() == 4:
            mask = mask[:, 0]
        q, k, v = self.W_query(query), self.W_key(key), self.W_value(value)
        return self.W_out(self.attention(q, k, v, mask))


# The softmax


@specimen("softmax-queries")
class SoftmaxQueries(nn.Module):
    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.queries = nn.Linear(embed_dim, embed_dim)
        self.keys = nn.Linear(embed_dim, embed_dim)
        self.values = nn.Linear(embed_dim, embed_dim)
        self.fc_out = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, keys, values, mask=None):
        N, query_len, embed = query.shape
        key_len = keys.shape[1]
        queries = self.queries(query).reshape(N, query_len, self.num_heads, self.head_dim)
        keys = self.keys(keys).reshape(N, key_len, self.num_heads, self.head_dim)
        values = self.values(values).reshape(N, key_len, self.num_heads, self.head_dim)
        energy = torch.einsum("nqhd,nkhd->nhqk", queries, keys) / self.head_dim**0.5
        if mask is not None:
            energy = energy.masked_fill(mask == 0, torch.finfo(energy.dtype).min)
        attention = self.dropout(torch.softmax(energy, dim=2))
        out = torch.einsum("nhqk,nkhd->nqhd", attention, values)
        return self.fc_out(out.reshape(N, query_len, embed))


@specimen("softmax-heads")
class SoftmaxHeads(nn.Module):
    def __init__(self, embed_size, heads, dropout=0.0):
        super().__init__()
        self.heads = heads
        self.wq = nn.Linear(embed_size, embed_size)
        self.wk = nn.Linear(embed_size, embed_size)
        self.wv = nn.Linear(embed_size, embed_size)
        self.wo = nn.Linear(embed_size, embed_size)
        self.softmax = nn.Softmax(dim=1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, q, k, v, mask=None):
        split = lambda x: x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)  # noqa: E731
        q, k, v = split(self.wq(q)), split(self.wk(k)), split(self.wv(v))
        scores = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(mask == 0, torch.finfo(scores.dtype).min)
        attn = self.dropout(self.softmax(scores))
        out = torch.matmul(attn, v).transpose(1, 2)
        return self.wo(out.reshape(*out.shape[:2], -1))


@specimen("softmax-heads")
class SoftmaxBatch(nn.Module):
    """A softmax over the first axis, which is the batch."""

    def __init__(self, d_model, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.q_lin = nn.Linear(d_model, d_model)
        self.k_lin = nn.Linear(d_model, d_model)
        self.v_lin = nn.Linear(d_model, d_model)
        self.out_lin = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, mask=None):
        bs, n, e = x.shape
        dk = e // self.num_heads
        q = self.q_lin(x).view(bs, n, self.num_heads, dk).transpose(1, 2)
        k = self.k_lin(x).view(bs, n, self.num_heads, dk).transpose(1, 2)
        v = self.v_lin(x).view(bs, n, self.num_heads, dk).transpose(1, 2)
        scores = (q / math.sqrt(dk)) @ k.transpose(2, 3)
        if mask is not None:
            scores = scores.masked_fill(mask == 0, torch.finfo(scores.dtype).min)
        attn = self.dropout(F.softmax(scores, 0))
        context = (attn @ v).transpose(1, 2).reshape(bs, n, e)
        return self.out_lin(context)


@specimen("scores-transposed")
class ScoresTransposed(nn.Module):
    def __init__(self, d_model, n_heads, dropout=0.0):
        super().__init__()
        self.n_heads = n_heads
        self.d_head = d_model // n_heads
        self.query = nn.Linear(d_model, d_model)
        self.key = nn.Linear(d_model, d_model)
        self.value = nn.Linear(d_model, d_model)
        self.proj = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, mask=None):
        B, T, C = x.shape
        q = self.query(x).view(B, T, self.n_heads, self.d_head).transpose(1, 2)
        k = self.key(x).view(B, T, self.n_heads, self.d_head).transpose(1, 2)
        v = self.value(x).view(B, T, self.n_heads, self.d_head).transpose(1, 2)
        wei = k @ q.transpose(-2, -1) * self.d_head**-0.5
        if mask is not None:
            wei = wei.masked_fill(mask == 0, NEG)
        wei = self.dropout(F.softmax(wei, dim=-1))
        out = (wei @ v).transpose(1, 2).contiguous().view(B, T, C)
        return self.proj(out)


# Masks


@specimen("mask-inverted")
class MaskInverted(nn.Module):
    """Multi-head attention.

    mask: bool, broadcasts to (batch, heads, queries, keys), True = may be attended to.
    """

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.W_q = nn.Linear(embed_dim, embed_dim)
        self.W_k = nn.Linear(embed_dim, embed_dim)
        self.W_v = nn.Linear(embed_dim, embed_dim)
        self.W_o = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def heads(self, x):
        batch, length, width = x.shape
        return x.view(batch, length, self.num_heads, width // self.num_heads).transpose(1, 2)

    def forward(self, query, key, value, mask=None):
        q, k, v = (
            self.heads(self.W_q(query)),
            self.heads(self.W_k(key)),
            self.heads(self.W_v(value)),
        )
        scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(mask, NEG)
        weights = self.dropout(torch.softmax(scores, dim=-1))
        return self.W_o(torch.matmul(weights, v).transpose(1, 2).flatten(2))


@specimen("mask-inverted", mask="attend")
class MaskInvertedWhere(nn.Module):
    def __init__(self, d_model, num_heads, dropout=0.0):
        super().__init__()
        self.h, self.d_k = num_heads, d_model // num_heads
        self.linear_q = nn.Linear(d_model, d_model)
        self.linear_k = nn.Linear(d_model, d_model)
        self.linear_v = nn.Linear(d_model, d_model)
        self.linear_o = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, mask=None):
        b, n, _ = x.shape
        q = self.linear_q(x).view(b, n, self.h, self.d_k).transpose(1, 2)
        k = self.linear_k(x).view(b, n, self.h, self.d_k).transpose(1, 2)
        v = self.linear_v(x).view(b, n, self.h, self.d_k).transpose(1, 2)
        scores = q @ k.transpose(-2, -1) / self.d_k**0.5
        if mask is not None:
            low = torch.tensor(torch.finfo(scores.dtype).min, dtype=scores.dtype, device=x.device)
            scores = torch.where(mask == 0, scores, low)
        out = self.dropout(scores.softmax(-1)) @ v
        return self.linear_o(out.transpose(1, 2).reshape(b, n, -1))


@specimen("mask-ignored")
class MaskIgnored(nn.Module):
    def __init__(self, d_model, num_heads, dropout=0.0):
        super().__init__()
        self.d_model, self.num_heads = d_model, num_heads
        self.depth = d_model // num_heads
        self.wq = nn.Linear(d_model, d_model)
        self.wk = nn.Linear(d_model, d_model)
        self.wv = nn.Linear(d_model, d_model)
        self.dense = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def scaled_dot_product(self, q, k, v, mask=None):
        logits = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(self.depth)
        if mask is not None:
            logits = logits.masked_fill(mask == 0, NEG)
        weights = torch.softmax(logits, dim=-1)
        return torch.matmul(self.dropout(weights), v), weights

    def split_heads(self, x, batch_size):
        return x.view(batch_size, -1, self.num_heads, self.depth).permute(0, 2, 1, 3)

    def forward(self, q, k, v, mask=None):
        batch_size = q.shape[0]
        q = self.split_heads(self.wq(q), batch_size)
        k = self.split_heads(self.wk(k), batch_size)
        v = self.split_heads(self.wv(v), batch_size)
        attention, weights = self.scaled_dot_product(q, k, v)
        attention = attention.permute(0, 2, 1, 3).reshape(batch_size, -1, self.d_model)
        return self.dense(attention), weights


@specimen("mask-ignored")
class MaskFilledInACopy(nn.Module):
    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.o_proj = nn.Linear(embed_dim, embed_dim)
        self.dropout = dropout

    def forward(self, x, mask=None):
        B, L, E = x.shape
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        q, k, v = (y.view(B, L, self.num_heads, -1).transpose(1, 2) for y in (q, k, v))
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if mask is not None:
            scores.masked_fill(mask == 0, float("-inf"))
        weights = F.dropout(F.softmax(scores, dim=-1), self.dropout, self.training)
        y = (weights @ v).transpose(1, 2).contiguous().view(B, L, E)
        return self.o_proj(y)


@specimen("mask-after-softmax")
class MaskAfterSoftmax(nn.Module):
    def __init__(self, d_model, n_head, dropout=0.0):
        super().__init__()
        self.n_head = n_head
        self.w_q = nn.Linear(d_model, d_model)
        self.w_k = nn.Linear(d_model, d_model)
        self.w_v = nn.Linear(d_model, d_model)
        self.w_concat = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def split(self, tensor):
        batch, length, d_model = tensor.size()
        return tensor.view(batch, length, self.n_head, d_model // self.n_head).transpose(1, 2)

    def concat(self, tensor):
        batch, head, length, d = tensor.size()
        return tensor.transpose(1, 2).contiguous().view(batch, length, head * d)

    def forward(self, q, k, v, mask=None):
        q, k, v = self.split(self.w_q(q)), self.split(self.w_k(k)), self.split(self.w_v(v))
        score = (q @ k.transpose(2, 3)) / math.sqrt(q.size(-1))
        score = torch.softmax(score, dim=-1)
        if mask is not None:
            score = score.masked_fill(mask == 0, 0.0)
        return self.w_concat(self.concat(self.dropout(score) @ v))


@specimen("mask-multiplied")
class MaskMultiplied(nn.Module):
    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.query_layer = nn.Linear(embed_dim, embed_dim)
        self.key_layer = nn.Linear(embed_dim, embed_dim)
        self.value_layer = nn.Linear(embed_dim, embed_dim)
        self.output_layer = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, key, value, mask=None):
        """mask: True (1) where a query may look, False (0) where not."""
        b, t, e = query.shape
        q = self.query_layer(query).reshape(b, t, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.key_layer(key).reshape(b, -1, self.num_heads, self.head_dim).transpose(1, 2)
        v = self.value_layer(value).reshape(b, -1, self.num_heads, self.head_dim).transpose(1, 2)
        scores = q @ k.transpose(2, 3) / self.head_dim**0.5
        if mask is not None:
            scores = scores * mask
        attn = self.dropout(torch.softmax(scores, dim=-1))
        return self.output_layer((attn @ v).transpose(1, 2).reshape(b, t, e))


@specimen("mask-added-bool")
class MaskAddedBool(nn.Module):
    """mask: True = may attend."""

    def __init__(self, d_model, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.d_head = d_model // num_heads
        self.W_q = nn.Linear(d_model, d_model, bias=False)
        self.W_k = nn.Linear(d_model, d_model, bias=False)
        self.W_v = nn.Linear(d_model, d_model, bias=False)
        self.W_o = nn.Linear(d_model, d_model, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, key, value, mask=None):
        B, T, _ = query.shape
        S = key.shape[1]
        q = self.W_q(query).view(B, T, self.num_heads, self.d_head).transpose(1, 2)
        k = self.W_k(key).view(B, S, self.num_heads, self.d_head).transpose(1, 2)
        v = self.W_v(value).view(B, S, self.num_heads, self.d_head).transpose(1, 2)
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.d_head)  # (B, H, T, S)
        if mask is not None:
            scores += mask
        weights = self.dropout(F.softmax(scores, dim=-1))
        out = (weights @ v).transpose(1, 2).reshape(B, T, -1)
        return self.W_o(out)


@specimen("mask-fill-small")
class MaskFillTinyExponent(nn.Module):
    def __init__(self, d_model, h, dropout=0.0):
        super().__init__()
        self.h, self.d_k = h, d_model // h
        self.w_q = nn.Linear(d_model, d_model)
        self.w_k = nn.Linear(d_model, d_model)
        self.w_v = nn.Linear(d_model, d_model)
        self.w_o = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    @staticmethod
    def attention(query, key, value, mask, dropout):
        d_k = query.shape[-1]
        scores = (query @ key.transpose(-2, -1)) / math.sqrt(d_k)
        if mask is not None:
            scores.masked_fill_(mask == 0, -1e-9)
        scores = scores.softmax(dim=-1)
        return dropout(scores) @ value, scores

    def forward(self, q, k, v, mask):
        query, key, value = self.w_q(q), self.w_k(k), self.w_v(v)
        query = query.view(query.shape[0], query.shape[1], self.h, self.d_k).transpose(1, 2)
        key = key.view(key.shape[0], key.shape[1], self.h, self.d_k).transpose(1, 2)
        value = value.view(value.shape[0], value.shape[1], self.h, self.d_k).transpose(1, 2)
        x, self.attention_scores = self.attention(query, key, value, mask, self.dropout)
        x = x.transpose(1, 2).contiguous().view(x.shape[0], -1, self.h * self.d_k)
        return self.w_o(x)


@specimen("mask-fill-small")
class MaskFillHundred(nn.Module):
    """mask: bool, True = attend."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, key, value, mask=None):
        q, k, v = (
            project(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for project, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask, -100.0)
        heads = self.dropout(scores.softmax(-1)) @ v
        return self.out_proj(heads.transpose(1, 2).flatten(-2))


@specimen("mask-nan")
class MaskZeroTimesInfinity(nn.Module):
    """mask: True = may attend."""

    def __init__(self, d_model, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.Wq = nn.Linear(d_model, d_model)
        self.Wk = nn.Linear(d_model, d_model)
        self.Wv = nn.Linear(d_model, d_model)
        self.Wo = nn.Linear(d_model, d_model)
        self.drop = nn.Dropout(dropout)

    def forward(self, q, k, v, mask=None):
        b, t, e = q.shape
        d = e // self.num_heads
        q = self.Wq(q).view(b, t, self.num_heads, d).permute(0, 2, 1, 3)
        k = self.Wk(k).view(b, -1, self.num_heads, d).permute(0, 2, 1, 3)
        v = self.Wv(v).view(b, -1, self.num_heads, d).permute(0, 2, 1, 3)
        scores = q @ k.transpose(-1, -2) / math.sqrt(d)
        if mask is not None:
            scores = scores + (1 - mask.to(scores.dtype)) * float("-inf")
        out = self.drop(scores.softmax(dim=-1)) @ v
        return self.Wo(out.permute(0, 2, 1, 3).reshape(b, t, e))


@specimen("mask-nan")
class MaskNanCleanedLate(nn.Module):
    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.to_queries = nn.Linear(embed_dim, embed_dim)
        self.to_keys = nn.Linear(embed_dim, embed_dim)
        self.to_values = nn.Linear(embed_dim, embed_dim)
        self.to_out = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, key, value, mask=None):
        b, t = query.shape[:2]
        q = self.to_queries(query).view(b, t, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.to_keys(key).view(b, -1, self.num_heads, self.head_dim).transpose(1, 2)
        v = self.to_values(value).view(b, -1, self.num_heads, self.head_dim).transpose(1, 2)
        scores = q @ k.transpose(-1, -2) / self.head_dim**0.5
        if mask is not None:
            scores = scores.masked_fill(mask == 0, NEG)
        weights = self.dropout(torch.softmax(scores, dim=-1))
        out = torch.nan_to_num(weights @ v, nan=0.0)  # rows without any key
        return self.to_out(out.transpose(1, 2).reshape(b, t, -1))


@specimen("mask-nan")
class AddedMaskNanCleanedLate(nn.Module):
    def __init__(self, d_model, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(d_model, d_model)
        self.k_proj = nn.Linear(d_model, d_model)
        self.v_proj = nn.Linear(d_model, d_model)
        self.o_proj = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, q, k, v, mask=None):
        q, k, v = self.q_proj(q), self.k_proj(k), self.v_proj(v)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if mask is not None:
            bias = torch.zeros_like(scores).masked_fill(mask == 0, NEG)
            scores = scores + bias
        weights = torch.softmax(scores, dim=-1)
        weights = torch.where(weights.isnan(), torch.zeros_like(weights), weights)
        heads = self.dropout(weights) @ v
        return self.o_proj(heads.transpose(1, 2).flatten(2))


@specimen("mask-half-overflow")
class MaskBillion(nn.Module):
    """Query, key and value: [batch, length, hid dim]; mask: 1 where a key may be seen."""

    def __init__(self, hid_dim, n_heads, dropout=0.0):
        super().__init__()
        self.hid_dim, self.n_heads = hid_dim, n_heads
        self.head_dim = hid_dim // n_heads
        self.fc_q = nn.Linear(hid_dim, hid_dim)
        self.fc_k = nn.Linear(hid_dim, hid_dim)
        self.fc_v = nn.Linear(hid_dim, hid_dim)
        self.fc_o = nn.Linear(hid_dim, hid_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, key, value, mask=None):
        batch_size = query.shape[0]
        Q = self.fc_q(query).view(batch_size, -1, self.n_heads, self.head_dim).transpose(1, 2)
        K = self.fc_k(key).view(batch_size, -1, self.n_heads, self.head_dim).transpose(1, 2)
        V = self.fc_v(value).view(batch_size, -1, self.n_heads, self.head_dim).transpose(1, 2)
        energy = torch.matmul(Q, K.transpose(-1, -2)) / math.sqrt(self.head_dim)
        if mask is not None:
            energy = energy.masked_fill(mask == 0, -1e9)
        attention = torch.softmax(energy, dim=-1)
        x = torch.matmul(self.dropout(attention), V)
        x = x.transpose(1, 2).contiguous().view(batch_size, -1, self.hid_dim)
        return self.fc_o(x), attention


@specimen("pad-query-axis")
class PadQueryAxis(nn.Module):
    """pad_mask: (batch, length), True at real tokens, False at padding."""

    def __init__(self, d_model, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.d_k = d_model // num_heads
        self.query = nn.Linear(d_model, d_model)
        self.key = nn.Linear(d_model, d_model)
        self.value = nn.Linear(d_model, d_model)
        self.output = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, pad_mask=None):
        B, T, E = x.shape
        q = self.query(x).view(B, T, self.num_heads, self.d_k).transpose(1, 2)
        k = self.key(x).view(B, T, self.num_heads, self.d_k).transpose(1, 2)
        v = self.value(x).view(B, T, self.num_heads, self.d_k).transpose(1, 2)
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.d_k)
        if pad_mask is not None:
            mask = pad_mask.unsqueeze(1).unsqueeze(-1)
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        attn = self.dropout(scores.softmax(dim=-1))
        return self.output((attn @ v).transpose(1, 2).reshape(B, T, E))


@specimen("pad-query-axis")
class KeyPaddingOnQueries(nn.Module):
    """key_padding_mask: (batch, length), True at padding, as in torch."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, key, value, key_padding_mask=None):
        b, t, e = query.shape
        h, d = self.num_heads, e // self.num_heads
        q = self.q_proj(query).view(b, t, h, d).transpose(1, 2)
        k = self.k_proj(key).view(b, -1, h, d).transpose(1, 2)
        v = self.v_proj(value).view(b, -1, h, d).transpose(1, 2)
        scores = q @ k.transpose(2, 3) / math.sqrt(d)
        if key_padding_mask is not None:
            scores = scores.masked_fill(
                key_padding_mask[:, None, :, None], torch.finfo(scores.dtype).min
            )
        out = self.dropout(torch.softmax(scores, -1)) @ v
        return self.out_proj(out.transpose(1, 2).reshape(b, t, e))


@specimen("dead-row-nan")
class DeadRowNan(nn.Module):
    """Scaled dot products in several heads; mask: True = may attend."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError("embed_dim must be a multiple of num_heads")
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.Wq = nn.Linear(embed_dim, embed_dim)
        self.Wk = nn.Linear(embed_dim, embed_dim)
        self.Wv = nn.Linear(embed_dim, embed_dim)
        self.Wo = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, key, value, mask=None):
        q = self._split(self.Wq(query))
        k = self._split(self.Wk(key))
        v = self._split(self.Wv(value))
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / self.head_dim**0.5
        if mask is not None:
            scores = scores.masked_fill(mask.logical_not(), float("-inf"))
        weights = self.dropout(scores.softmax(dim=-1))
        context = torch.einsum("bhqk,bhkd->bqhd", weights, v)
        return self.Wo(context.flatten(2))

    def _split(self, x):
        return x.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)


@specimen("dead-row-uniform")
class DeadRowUniform(nn.Module):
    def __init__(self, dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.wq, self.wk = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.wv, self.wo = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, q, k, v, mask=None):
        B, N, C = q.shape
        M = k.shape[1]
        q = self.wq(q).reshape(B, N, self.num_heads, C // self.num_heads).transpose(1, 2)
        k = self.wk(k).reshape(B, M, self.num_heads, C // self.num_heads).transpose(1, 2)
        v = self.wv(v).reshape(B, M, self.num_heads, C // self.num_heads).transpose(1, 2)
        attn = (q @ k.transpose(-2, -1)) * self.scale
        if mask is not None:
            attn = attn.masked_fill(mask == 0, torch.finfo(attn.dtype).min)
        attn = self.dropout(attn.softmax(dim=-1))
        return self.wo((attn @ v).transpose(1, 2).reshape(B, N, C))


# Causal masks


@specimen("causal-upper")
class CausalUpper(nn.Module):
    """Causal self-attention."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.W_q = nn.Linear(embed_dim, embed_dim)
        self.W_k = nn.Linear(embed_dim, embed_dim)
        self.W_v = nn.Linear(embed_dim, embed_dim)
        self.W_o = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        B, T, E = x.shape
        q = self.W_q(x).view(B, T, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.W_k(x).view(B, T, self.num_heads, self.head_dim).transpose(1, 2)
        v = self.W_v(x).view(B, T, self.num_heads, self.head_dim).transpose(1, 2)
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)
        mask = torch.triu(torch.ones(T, T, device=x.device))
        scores = scores.masked_fill(mask == 0, NEG)
        weights = self.dropout(torch.softmax(scores, dim=-1))
        return self.W_o((weights @ v).transpose(1, 2).reshape(B, T, E))


@specimen("causal-upper")
class CausalUpperFlag(nn.Module):
    def __init__(self, d_model, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(d_model, d_model)
        self.k_proj = nn.Linear(d_model, d_model)
        self.v_proj = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, key, value, is_causal=False):
        b, t, e = query.shape
        s = key.shape[1]
        q = self.q_proj(query).view(b, t, self.num_heads, -1).transpose(1, 2)
        k = self.k_proj(key).view(b, s, self.num_heads, -1).transpose(1, 2)
        v = self.v_proj(value).view(b, s, self.num_heads, -1).transpose(1, 2)
        scores = q @ k.mT * q.size(-1) ** -0.5
        if is_causal:
            past = torch.ones(t, s, dtype=torch.bool, device=q.device).tril(-1)
            scores = scores.masked_fill(past, NEG)
        out = self.dropout(scores.softmax(-1)) @ v
        return self.out_proj(out.transpose(1, 2).reshape(b, t, e))


@specimen("causal-strict")
class CausalStrict(nn.Module):
    def __init__(self, n_embd, n_head, dropout=0.0):
        super().__init__()
        self.n_head = n_head
        self.query = nn.Linear(n_embd, n_embd)
        self.key = nn.Linear(n_embd, n_embd)
        self.value = nn.Linear(n_embd, n_embd)
        self.proj = nn.Linear(n_embd, n_embd)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        B, T, C = x.shape
        k = self.key(x).view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = self.query(x).view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = self.value(x).view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        wei = q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5
        future = torch.triu(torch.ones(T, T, dtype=torch.bool, device=x.device))
        wei = wei.masked_fill(future, torch.finfo(wei.dtype).min)
        wei = self.dropout(F.softmax(wei, dim=-1))
        return self.proj((wei @ v).transpose(1, 2).contiguous().view(B, T, C))


@specimen("causal-strict")
class CausalStrictInfinite(nn.Module):
    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.h = num_heads
        self.to_q = nn.Linear(embed_dim, embed_dim, bias=False)
        self.to_k = nn.Linear(embed_dim, embed_dim, bias=False)
        self.to_v = nn.Linear(embed_dim, embed_dim, bias=False)
        self.to_out = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, key, value, is_causal=False):
        q, k, v = self.to_q(query), self.to_k(key), self.to_v(value)
        q, k, v = (x.unflatten(-1, (self.h, -1)).transpose(1, 2) for x in (q, k, v))
        sim = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if is_causal:
            keep = torch.tril(torch.ones_like(sim[0, 0]), diagonal=-1).bool()
            sim = sim.masked_fill(~keep, NEG)
        out = self.dropout(sim.softmax(dim=-1)) @ v
        return self.to_out(out.transpose(1, 2).flatten(2))


@specimen("causal-leak-one")
class CausalLeakOne(nn.Module):
    def __init__(self, d_model, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.linear_q = nn.Linear(d_model, d_model)
        self.linear_k = nn.Linear(d_model, d_model)
        self.linear_v = nn.Linear(d_model, d_model)
        self.linear_out = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        b, t, e = x.size()
        d = e // self.num_heads
        q = self.linear_q(x).view(b, t, self.num_heads, d).transpose(1, 2)
        k = self.linear_k(x).view(b, t, self.num_heads, d).transpose(1, 2)
        v = self.linear_v(x).view(b, t, self.num_heads, d).transpose(1, 2)
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(d)
        scores = scores + torch.triu(torch.full_like(scores[0, 0], NEG), diagonal=2)
        attn = self.dropout(torch.softmax(scores, dim=-1))
        return self.linear_out(torch.matmul(attn, v).transpose(1, 2).reshape(b, t, e))


@specimen("causal-leak-one")
class CausalLeakOneFlag(nn.Module):
    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.wq = nn.Linear(embed_dim, embed_dim)
        self.wk = nn.Linear(embed_dim, embed_dim)
        self.wv = nn.Linear(embed_dim, embed_dim)
        self.wo = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, is_causal=True):
        B, T, E = x.shape
        q, k, v = (
            linear(x).reshape(B, T, self.num_heads, E // self.num_heads).permute(0, 2, 1, 3)
            for linear in (self.wq, self.wk, self.wv)
        )
        scores = q @ k.permute(0, 1, 3, 2) / (E // self.num_heads) ** 0.5
        if is_causal:
            i = torch.arange(T, device=x.device)
            scores = scores.masked_fill(i[None, :] > i[:, None] + 1, torch.finfo(x.dtype).min)
        out = self.dropout(scores.softmax(-1)) @ v
        return self.wo(out.permute(0, 2, 1, 3).reshape(B, T, E))


@specimen("causal-top-left")
class CausalTopLeft(nn.Module):
    """Causal self-attention; cache: the keys and values so far, or None at the start.

    Returns the output and the new cache.
    """

    def __init__(self, d_model, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = d_model // num_heads
        self.q_proj = nn.Linear(d_model, d_model)
        self.k_proj = nn.Linear(d_model, d_model)
        self.v_proj = nn.Linear(d_model, d_model)
        self.o_proj = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, cache=None):
        B, T, E = x.shape
        q = self.q_proj(x).view(B, T, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(B, T, self.num_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(B, T, self.num_heads, self.head_dim).transpose(1, 2)
        if cache is not None:
            k = torch.cat([cache[0], k], dim=2)
            v = torch.cat([cache[1], v], dim=2)
        S = k.shape[2]
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)  # (B, H, T, S)
        causal = torch.tril(torch.ones(T, S, dtype=torch.bool, device=x.device))
        scores = scores.masked_fill(~causal, NEG)
        weights = self.dropout(scores.softmax(dim=-1))
        out = (weights @ v).transpose(1, 2).reshape(B, T, E)
        return self.o_proj(out), (k, v)


@specimen("causal-top-left")
class CausalTopLeftPast(nn.Module):
    """past_key_value: what an earlier call returned beside its output."""

    def __init__(self, hidden_size, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)

    def split(self, x):
        return x.view(x.shape[0], x.shape[1], self.num_heads, -1).transpose(1, 2)

    def forward(self, x, past_key_value=None):
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        if past_key_value is not None:
            k = torch.cat((past_key_value[0], k), dim=-2)
            v = torch.cat((past_key_value[1], v), dim=-2)
        rows = torch.arange(q.shape[2], device=x.device)[:, None]
        columns = torch.arange(k.shape[2], device=x.device)[None, :]
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
        scores = torch.where(columns <= rows, scores, torch.finfo(scores.dtype).min)
        context = torch.matmul(self.dropout(scores.softmax(-1)), v)
        return self.dense(context.transpose(1, 2).flatten(2)), (k, v)


# Projections


@specimen("kv-swapped")
class KeysAndValuesSwapped(nn.Module):
    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.W_q = nn.Linear(embed_dim, embed_dim)
        self.W_k = nn.Linear(embed_dim, embed_dim)
        self.W_v = nn.Linear(embed_dim, embed_dim)
        self.W_o = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def attend(self, query, key, value, mask=None):
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(mask == 0, NEG)
        return self.dropout(scores.softmax(dim=-1)) @ value

    def split(self, x):
        return x.view(x.shape[0], x.shape[1], self.num_heads, -1).transpose(1, 2)

    def forward(self, query, key, value, mask=None):
        q = self.split(self.W_q(query))
        k = self.split(self.W_k(key))
        v = self.split(self.W_v(value))
        out = self.attend(q, v, k, mask)
        return self.W_o(out.transpose(1, 2).reshape(query.shape))


@specimen("kv-swapped")
class KeysMixedByWeights(nn.Module):
    """Self-attention; mask: True = may attend."""

    def __init__(self, d_model, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(d_model, d_model)
        self.k_proj = nn.Linear(d_model, d_model)
        self.v_proj = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, mask=None):
        B, T, E = x.shape
        Q = self.q_proj(x).view(B, T, self.num_heads, -1).transpose(1, 2)
        K = self.k_proj(x).view(B, T, self.num_heads, -1).transpose(1, 2)
        V = self.v_proj(x).view(B, T, self.num_heads, -1).transpose(1, 2)
        scores = torch.einsum("bhtd,bhsd->bhts", Q, V) / math.sqrt(Q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask, NEG)
        weights = self.dropout(torch.softmax(scores, dim=-1))
        out = torch.einsum("bhts,bhsd->bthd", weights, K).reshape(B, T, E)
        return self.out_proj(out)


@specimen("qk-shared")
class QueryMapUsedForKeys(nn.Module):
    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.W_q = nn.Linear(embed_dim, embed_dim)
        self.W_k = nn.Linear(embed_dim, embed_dim)
        self.W_v = nn.Linear(embed_dim, embed_dim)
        self.W_o = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, key, value, mask=None):
        B, T, E = query.shape
        S = key.shape[1]
        q = self.W_q(query).view(B, T, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.W_q(key).view(B, S, self.num_heads, self.head_dim).transpose(1, 2)
        v = self.W_v(value).view(B, S, self.num_heads, self.head_dim).transpose(1, 2)
        scores = q @ k.transpose(-2, -1) / self.head_dim**0.5
        if mask is not None:
            scores = scores.masked_fill(mask == 0, NEG)
        out = self.dropout(torch.softmax(scores, dim=-1)) @ v
        return self.W_o(out.transpose(1, 2).reshape(B, T, E))


@specimen("kv-shared")
class KeyMapUsedForValues(nn.Module):
    def __init__(self, d_model, nhead, dropout=0.0):
        super().__init__()
        self.nhead = nhead
        self.query_proj = nn.Linear(d_model, d_model)
        self.key_proj = nn.Linear(d_model, d_model)
        self.value_proj = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, key, value, mask=None):
        batch, length, d_model = query.size()
        query = self.query_proj(query)
        keys = self.key_proj(key)
        values = self.key_proj(value)
        query, keys, values = (
            x.reshape(batch, -1, self.nhead, d_model // self.nhead).transpose(1, 2)
            for x in (query, keys, values)
        )
        scores = torch.matmul(query, keys.transpose(2, 3)) / math.sqrt(d_model // self.nhead)
        if mask is not None:
            scores = scores.masked_fill(mask == 0, torch.finfo(scores.dtype).min)
        context = torch.matmul(self.dropout(scores.softmax(3)), values)
        return self.out_proj(context.transpose(1, 2).reshape(batch, length, d_model))


@specimen("qkv-shared")
class OneMapForAll(nn.Module):
    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.W_q = self.W_k = self.W_v = nn.Linear(embed_dim, embed_dim)
        self.W_o = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, key, value, mask=None):
        q, k, v = self.W_q(query), self.W_k(key), self.W_v(value)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask, NEG)
        heads = self.dropout(scores.softmax(-1)) @ v
        return self.W_o(heads.transpose(1, 2).flatten(2))


@specimen("cross-self")
class CrossReadsQuery(nn.Module):
    """Cross-attention from a decoder to an encoder's output."""

    def __init__(self, d_model, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.W_q = nn.Linear(d_model, d_model)
        self.W_k = nn.Linear(d_model, d_model)
        self.W_v = nn.Linear(d_model, d_model)
        self.W_o = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def heads(self, x):
        return x.view(x.shape[0], x.shape[1], self.num_heads, -1).transpose(1, 2)

    def forward(self, x, memory):
        q, k, v = self.heads(self.W_q(x)), self.heads(self.W_k(x)), self.heads(self.W_v(x))
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        out = self.dropout(torch.softmax(scores, dim=-1)) @ v
        return self.W_o(out.transpose(1, 2).reshape(x.shape))


@specimen("cross-self")
class CrossKeysFromQuery(nn.Module):
    """Works while query and key are equally long."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, key, value, mask=None):
        B, T, E = query.shape
        q = self.q_proj(query).view(B, T, self.num_heads, -1).transpose(1, 2)
        k = self.k_proj(query).view(B, T, self.num_heads, -1).transpose(1, 2)
        v = self.v_proj(value).view(B, value.shape[1], self.num_heads, -1).transpose(1, 2)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(mask == 0, NEG)
        out = self.dropout(torch.softmax(scores, dim=-1)) @ v
        return self.out_proj(out.transpose(1, 2).reshape(B, T, E))


@specimen("cross-reversed")
class CrossReversed(nn.Module):
    """The decoder's x asks, the encoder's memory answers."""

    def __init__(self, d_model, n_heads, dropout=0.0):
        super().__init__()
        self.n_heads = n_heads
        self.d_head = d_model // n_heads
        self.to_q = nn.Linear(d_model, d_model)
        self.to_k = nn.Linear(d_model, d_model)
        self.to_v = nn.Linear(d_model, d_model)
        self.to_out = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, memory):
        b = x.size(0)
        q = self.to_q(memory).view(b, -1, self.n_heads, self.d_head).transpose(1, 2)
        k = self.to_k(x).view(b, -1, self.n_heads, self.d_head).transpose(1, 2)
        v = self.to_v(x).view(b, -1, self.n_heads, self.d_head).transpose(1, 2)
        attn = (q @ k.transpose(-2, -1) / math.sqrt(self.d_head)).softmax(dim=-1)
        out = (self.dropout(attn) @ v).transpose(1, 2).reshape(b, -1, self.n_heads * self.d_head)
        return self.to_out(out)


@specimen("head-weights-shared")
class OneHeadForAll(nn.Module):
    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.query = nn.Linear(embed_dim, self.head_dim)
        self.key = nn.Linear(embed_dim, self.head_dim)
        self.value = nn.Linear(embed_dim, self.head_dim)
        self.out = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def head(self, query, key, value, mask):
        q, k, v = self.query(query), self.key(key), self.value(value)
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)
        if mask is not None:
            scores = scores.masked_fill(mask == 0, NEG)
        return self.dropout(scores.softmax(dim=-1)) @ v

    def forward(self, query, key, value, mask=None):
        """mask: (T, S) or (B, T, S), or (B, 1, T, S), True = may attend."""
        if mask is not None and mask.ndim == 4:
            mask = mask.squeeze(1)
        heads = [self.head(query, key, value, mask) for _ in range(self.num_heads)]
        return self.out(torch.cat(heads, dim=-1))


class Head(nn.Module):
    """One head of self-attention; mask: True = may attend."""

    def __init__(self, n_embd, head_size, dropout):
        super().__init__()
        self.key = nn.Linear(n_embd, head_size, bias=False)
        self.query = nn.Linear(n_embd, head_size, bias=False)
        self.value = nn.Linear(n_embd, head_size, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, mask=None):
        k, q, v = self.key(x), self.query(x), self.value(x)
        wei = q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5
        if mask is not None:
            wei = wei.masked_fill(mask == 0, NEG)
        return self.dropout(F.softmax(wei, dim=-1)) @ v


@specimen("head-weights-shared")
class HeadsTimesList(nn.Module):
    def __init__(self, n_embd, num_heads, dropout=0.0):
        super().__init__()
        self.heads = nn.ModuleList([Head(n_embd, n_embd // num_heads, dropout)] * num_heads)
        self.proj = nn.Linear(n_embd, n_embd)

    def forward(self, x, mask=None):
        """mask: (T, T), True = may attend."""
        return self.proj(torch.cat([head(x, mask) for head in self.heads], dim=-1))


@specimen("out-proj-missing")
class OutputNotProjected(nn.Module):
    def __init__(self, d_model, num_heads, dropout=0.0):
        super().__init__()
        self.d_model, self.num_heads, self.d_k = d_model, num_heads, d_model // num_heads
        self.W_q = nn.Linear(d_model, d_model)
        self.W_k = nn.Linear(d_model, d_model)
        self.W_v = nn.Linear(d_model, d_model)
        self.W_o = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, Q, K, V, mask=None):
        n = Q.size(0)
        Q = self.W_q(Q).view(n, -1, self.num_heads, self.d_k).transpose(1, 2)
        K = self.W_k(K).view(n, -1, self.num_heads, self.d_k).transpose(1, 2)
        V = self.W_v(V).view(n, -1, self.num_heads, self.d_k).transpose(1, 2)
        scores = torch.matmul(Q, K.transpose(-2, -1)) / math.sqrt(self.d_k)
        if mask is not None:
            scores = scores.masked_fill(mask == 0, NEG)
        probs = self.dropout(torch.softmax(scores, dim=-1))
        output = torch.matmul(probs, V)
        output = output.transpose(1, 2).contiguous().view(n, -1, self.d_model)
        return output


@specimen("out-proj-missing")
class NoOutputMap(nn.Module):
    """Three maps only."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.lin_q = nn.Linear(embed_dim, embed_dim, bias=False)
        self.lin_k = nn.Linear(embed_dim, embed_dim, bias=False)
        self.lin_v = nn.Linear(embed_dim, embed_dim, bias=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, x, mask=None):
        b, t, e = x.shape
        d = e // self.num_heads
        q = self.lin_q(x).view(b, t, self.num_heads, d).transpose(1, 2)
        k = self.lin_k(x).view(b, t, self.num_heads, d).transpose(1, 2)
        v = self.lin_v(x).view(b, t, self.num_heads, d).transpose(1, 2)
        scores = q @ k.mT / math.sqrt(d)
        if mask is not None:
            scores = scores.masked_fill(~mask, NEG)
        return (self.drop(scores.softmax(-1)) @ v).transpose(1, 2).reshape(b, t, e)


@specimen("bias-missing")
class BiasMissingInOutput(nn.Module):
    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, key, value, mask=None):
        b, t, e = query.shape
        q = self.q_proj(query).view(b, t, self.num_heads, -1).transpose(1, 2)
        k = self.k_proj(key).view(b, key.size(1), self.num_heads, -1).transpose(1, 2)
        v = self.v_proj(value).view(b, value.size(1), self.num_heads, -1).transpose(1, 2)
        scores = q @ k.transpose(-2, -1) / math.sqrt(e // self.num_heads)
        if mask is not None:
            scores = scores.masked_fill(mask == 0, NEG)
        out = self.dropout(F.softmax(scores, dim=-1)) @ v
        out = out.transpose(1, 2).reshape(b, t, e)
        return F.linear(out, self.out_proj.weight)


@specimen("bias-missing")
class BiasMissingInQueries(nn.Module):
    """The maps are applied by hand."""

    def __init__(self, d_model, heads, dropout=0.0):
        super().__init__()
        self.heads = heads
        self.wq = nn.Linear(d_model, d_model)
        self.wk = nn.Linear(d_model, d_model)
        self.wv = nn.Linear(d_model, d_model)
        self.wo = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, q, k, v, mask=None):
        b, t, e = q.shape
        q = torch.matmul(q, self.wq.weight.t())
        k = torch.matmul(k, self.wk.weight.t()) + self.wk.bias
        v = torch.matmul(v, self.wv.weight.t()) + self.wv.bias
        q, k, v = (x.reshape(b, -1, self.heads, e // self.heads).transpose(1, 2) for x in (q, k, v))
        scores = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(e // self.heads)
        if mask is not None:
            scores = scores.masked_fill(mask == 0, torch.finfo(scores.dtype).min)
        out = torch.matmul(self.dropout(scores.softmax(-1)), v).transpose(1, 2).reshape(b, t, e)
        return torch.matmul(out, self.wo.weight.t()) + self.wo.bias


@specimen("gqa-tiled")
class GroupsTiled(nn.Module):
    """Grouped-query attention: several query heads read one key head."""

    def __init__(self, embed_dim, num_heads, num_kv_heads, dropout=0.0):
        super().__init__()
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.head_dim = embed_dim // num_heads
        self.q_proj = nn.Linear(embed_dim, num_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(embed_dim, num_kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(embed_dim, num_kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * self.head_dim, embed_dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, mask=None):
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(B, T, self.num_kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(B, T, self.num_kv_heads, self.head_dim).transpose(1, 2)
        groups = self.num_heads // self.num_kv_heads
        k = k.repeat(1, groups, 1, 1)
        v = v.repeat(1, groups, 1, 1)
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)
        if mask is not None:
            scores = scores.masked_fill(~mask, NEG)
        out = self.dropout(scores.softmax(dim=-1)) @ v
        return self.o_proj(out.transpose(1, 2).reshape(B, T, -1))


# Dropout


@specimen("dropout-in-eval")
class DropoutInEval(nn.Module):
    def __init__(self, d_model, num_heads, dropout=0.1):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.W_q = nn.Linear(d_model, d_model)
        self.W_k = nn.Linear(d_model, d_model)
        self.W_v = nn.Linear(d_model, d_model)
        self.W_o = nn.Linear(d_model, d_model)

    def forward(self, query, key, value, mask=None):
        B, T, E = query.shape
        q = self.W_q(query).view(B, T, self.num_heads, -1).transpose(1, 2)
        k = self.W_k(key).view(B, key.shape[1], self.num_heads, -1).transpose(1, 2)
        v = self.W_v(value).view(B, key.shape[1], self.num_heads, -1).transpose(1, 2)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(mask == 0, NEG)
        weights = F.dropout(F.softmax(scores, dim=-1), self.dropout)
        return self.W_o((weights @ v).transpose(1, 2).reshape(B, T, E))


@specimen("dropout-on-scores")
class DropoutOnScores(nn.Module):
    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(embed_dim, embed_dim)
        self.key = nn.Linear(embed_dim, embed_dim)
        self.value = nn.Linear(embed_dim, embed_dim)
        self.out = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, mask=None):
        b, n, e = x.shape
        q = self.query(x).view(b, n, self.num_heads, -1).transpose(1, 2)
        k = self.key(x).view(b, n, self.num_heads, -1).transpose(1, 2)
        v = self.value(x).view(b, n, self.num_heads, -1).transpose(1, 2)
        scores = self.dropout(q @ k.transpose(-2, -1) / math.sqrt(q.size(-1)))
        if mask is not None:
            scores = scores.masked_fill(mask == 0, NEG)
        y = scores.softmax(dim=-1) @ v
        return self.out(y.transpose(1, 2).reshape(b, n, e))


@specimen("dropout-unscaled")
class DropoutUnscaled(nn.Module):
    def __init__(self, d_model, n_heads, dropout=0.1):
        super().__init__()
        self.n_heads, self.p = n_heads, dropout
        self.wq = nn.Linear(d_model, d_model)
        self.wk = nn.Linear(d_model, d_model)
        self.wv = nn.Linear(d_model, d_model)
        self.wo = nn.Linear(d_model, d_model)

    def drop(self, weights):
        if not self.training:
            return weights
        keep = torch.rand_like(weights) >= self.p
        return weights * keep

    def forward(self, q, k, v, mask=None):
        b, t, e = q.shape
        q = self.wq(q).view(b, t, self.n_heads, -1).transpose(1, 2)
        k = self.wk(k).view(b, k.size(1), self.n_heads, -1).transpose(1, 2)
        v = self.wv(v).view(b, v.size(1), self.n_heads, -1).transpose(1, 2)
        scores = q @ k.transpose(-2, -1) / (e // self.n_heads) ** 0.5
        if mask is not None:
            scores = scores.masked_fill(mask == 0, NEG)
        out = self.drop(torch.softmax(scores, dim=-1)) @ v
        return self.wo(out.transpose(1, 2).reshape(b, t, e))


@specimen("weights-after-dropout")
class WeightsAfterDropout(nn.Module):
    """Returns the output and the weights, (B, H, T, S)."""

    def __init__(self, d_model, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.linear_q = nn.Linear(d_model, d_model)
        self.linear_k = nn.Linear(d_model, d_model)
        self.linear_v = nn.Linear(d_model, d_model)
        self.linear_out = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, key, value, mask=None):
        b, t, e = query.shape
        q = self.linear_q(query).view(b, t, self.num_heads, -1).transpose(1, 2)
        k = self.linear_k(key).view(b, key.shape[1], self.num_heads, -1).transpose(1, 2)
        v = self.linear_v(value).view(b, key.shape[1], self.num_heads, -1).transpose(1, 2)
        scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(mask == 0, NEG)
        attn = torch.softmax(scores, dim=-1)
        attn = self.dropout(attn)
        out = torch.matmul(attn, v).transpose(1, 2).reshape(b, t, e)
        return self.linear_out(out), attn


# Gradients, dtypes, devices


@specimen("not-differentiable")
class ScoresDetached(nn.Module):
    """Keeps the last weights, for pictures."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.W_q = nn.Linear(embed_dim, embed_dim)
        self.W_k = nn.Linear(embed_dim, embed_dim)
        self.W_v = nn.Linear(embed_dim, embed_dim)
        self.W_o = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.attn = None

    def forward(self, query, key, value, mask=None):
        q, k, v = self.W_q(query), self.W_k(key), self.W_v(value)
        q, k, v = (x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2) for x in (q, k, v))
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(mask == 0, NEG)
        self.attn = scores.softmax(dim=-1).detach()
        out = self.dropout(self.attn) @ v
        return self.W_o(out.transpose(1, 2).reshape(query.shape))


@specimen("not-differentiable")
class SoftmaxInNumpy(nn.Module):
    def __init__(self, d_model, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.d_head = d_model // num_heads
        self.wq = nn.Linear(d_model, d_model)
        self.wk = nn.Linear(d_model, d_model)
        self.wv = nn.Linear(d_model, d_model)
        self.wo = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    @staticmethod
    def softmax(scores):
        exps = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return exps / exps.sum(axis=-1, keepdims=True)

    def forward(self, x, mask=None):
        B, T, E = x.shape
        q = self.wq(x).view(B, T, self.num_heads, self.d_head).transpose(1, 2)
        k = self.wk(x).view(B, T, self.num_heads, self.d_head).transpose(1, 2)
        v = self.wv(x).view(B, T, self.num_heads, self.d_head).transpose(1, 2)
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.d_head)
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = torch.from_numpy(self.softmax(scores.detach().numpy()))
        out = self.dropout(weights) @ v
        return self.wo(out.transpose(1, 2).reshape(B, T, E))


@specimen("dtype-leak")
class StaysInFloat32(nn.Module):
    """The products are computed in float32, for the sake of half precision."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def heads(self, x):
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2).float()

    def forward(self, query, key, value, mask=None):
        q = self.heads(self.q_proj(query))
        k = self.heads(self.k_proj(key))
        v = self.heads(self.v_proj(value))
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask, NEG)
        out = (self.dropout(scores.softmax(-1)) @ v).transpose(1, 2).flatten(2)
        return F.linear(out, self.out_proj.weight.float(), self.out_proj.bias.float())


@specimen("device-buffer")
class MaskMadeOnTheCPU(nn.Module):
    """Causal self-attention."""

    def __init__(self, d_model, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(d_model, d_model)
        self.key = nn.Linear(d_model, d_model)
        self.value = nn.Linear(d_model, d_model)
        self.proj = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        B, T, C = x.shape
        q = self.query(x).view(B, T, self.num_heads, -1).transpose(1, 2)
        k = self.key(x).view(B, T, self.num_heads, -1).transpose(1, 2)
        v = self.value(x).view(B, T, self.num_heads, -1).transpose(1, 2)
        att = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
        tril = torch.tril(torch.ones(T, T))
        att = att.masked_fill(tril == 0, NEG)
        y = self.dropout(F.softmax(att, dim=-1)) @ v
        return self.proj(y.transpose(1, 2).contiguous().view(B, T, C))


@specimen("device-buffer")
class ScaleIsNoBuffer(nn.Module):
    def __init__(self, hid_dim, n_heads, dropout=0.0):
        super().__init__()
        self.hid_dim, self.n_heads = hid_dim, n_heads
        self.head_dim = hid_dim // n_heads
        self.fc_q = nn.Linear(hid_dim, hid_dim)
        self.fc_k = nn.Linear(hid_dim, hid_dim)
        self.fc_v = nn.Linear(hid_dim, hid_dim)
        self.fc_o = nn.Linear(hid_dim, hid_dim)
        self.dropout = nn.Dropout(dropout)
        self.scale = torch.sqrt(torch.FloatTensor([self.head_dim]))

    def forward(self, query, key, value, mask=None):
        batch_size = query.shape[0]
        Q = self.fc_q(query).view(batch_size, -1, self.n_heads, self.head_dim)
        K = self.fc_k(key).view(batch_size, -1, self.n_heads, self.head_dim)
        V = self.fc_v(value).view(batch_size, -1, self.n_heads, self.head_dim)
        Q, K, V = Q.transpose(1, 2), K.transpose(1, 2), V.transpose(1, 2)
        energy = torch.matmul(Q, K.transpose(2, 3)) / self.scale.to(Q.dtype)
        if mask is not None:
            energy = energy.masked_fill(mask == 0, NEG)
        attention = torch.softmax(energy, dim=-1)
        x = torch.matmul(self.dropout(attention), V)
        return self.fc_o(x.transpose(1, 2).reshape(batch_size, -1, self.hid_dim))


# Two mistakes at once


@specimen("scale-missing", "mask-ignored")
class UnscaledAndUnmasked(nn.Module):
    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.W_q = nn.Linear(embed_dim, embed_dim)
        self.W_k = nn.Linear(embed_dim, embed_dim)
        self.W_v = nn.Linear(embed_dim, embed_dim)
        self.W_o = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, key, value, mask=None):
        q, k, v = self.W_q(query), self.W_k(key), self.W_v(value)
        q, k, v = (x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2) for x in (q, k, v))
        weights = self.dropout(torch.softmax(q @ k.transpose(-2, -1), dim=-1))
        return self.W_o((weights @ v).transpose(1, 2).flatten(2))


@specimen("scale-model-dim", "merge-no-transpose")
class WideScaleAndFlatMerge(nn.Module):
    def __init__(self, d_model, h, dropout=0.0):
        super().__init__()
        self.d_model, self.h, self.d_k = d_model, h, d_model // h
        self.linear_q = nn.Linear(d_model, d_model)
        self.linear_k = nn.Linear(d_model, d_model)
        self.linear_v = nn.Linear(d_model, d_model)
        self.linear_o = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, key, value, mask=None):
        b, t = query.shape[:2]
        q = self.linear_q(query).view(b, -1, self.h, self.d_k).transpose(1, 2)
        k = self.linear_k(key).view(b, -1, self.h, self.d_k).transpose(1, 2)
        v = self.linear_v(value).view(b, -1, self.h, self.d_k).transpose(1, 2)
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.d_model)
        if mask is not None:
            scores = scores.masked_fill(mask == 0, NEG)
        x = self.dropout(scores.softmax(dim=-1)) @ v
        return self.linear_o(x.contiguous().view(b, t, self.d_model))


@specimen("mask-after-softmax", "dropout-in-eval")
class LateMaskAndEndlessDropout(nn.Module):
    """mask: True = may attend."""

    def __init__(self, embed_dim, num_heads, dropout=0.2):
        super().__init__()
        self.num_heads, self.p = num_heads, dropout
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x, mask=None):
        b, t, e = x.shape
        q = self.q_proj(x).view(b, t, self.num_heads, -1).transpose(1, 2)
        k = self.k_proj(x).view(b, t, self.num_heads, -1).transpose(1, 2)
        v = self.v_proj(x).view(b, t, self.num_heads, -1).transpose(1, 2)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))).softmax(-1)
        if mask is not None:
            weights = weights * mask
        weights = F.dropout(weights, p=self.p, training=True)
        return self.out_proj((weights @ v).transpose(1, 2).reshape(b, t, e))


@specimen("softmax-queries", "out-proj-missing")
class ColumnsAndNoOutput(nn.Module):
    def __init__(self, d_model, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.wq = nn.Linear(d_model, d_model)
        self.wk = nn.Linear(d_model, d_model)
        self.wv = nn.Linear(d_model, d_model)
        self.wo = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, q, k, v, mask=None):
        b, t, e = q.shape
        q = self.wq(q).view(b, t, self.num_heads, -1).transpose(1, 2)
        k = self.wk(k).view(b, k.size(1), self.num_heads, -1).transpose(1, 2)
        v = self.wv(v).view(b, v.size(1), self.num_heads, -1).transpose(1, 2)
        scores = q @ k.transpose(-2, -1) / (e // self.num_heads) ** 0.5
        if mask is not None:
            scores = scores.masked_fill(mask == 0, torch.finfo(scores.dtype).min)
        weights = self.dropout(F.softmax(scores, dim=-2))
        return (weights @ v).transpose(1, 2).reshape(b, t, e)


@specimen("causal-leak-one", "scale-linear")
class LeakAndLinearScale(nn.Module):
    def __init__(self, n_embd, n_head, dropout=0.0):
        super().__init__()
        self.n_head = n_head
        self.query = nn.Linear(n_embd, n_embd)
        self.key = nn.Linear(n_embd, n_embd)
        self.value = nn.Linear(n_embd, n_embd)
        self.proj = nn.Linear(n_embd, n_embd)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        B, T, C = x.shape
        hs = C // self.n_head
        q = self.query(x).view(B, T, self.n_head, hs).transpose(1, 2)
        k = self.key(x).view(B, T, self.n_head, hs).transpose(1, 2)
        v = self.value(x).view(B, T, self.n_head, hs).transpose(1, 2)
        wei = q @ k.transpose(-2, -1) / hs
        keep = torch.tril(torch.ones(T, T, device=x.device), diagonal=1)
        wei = wei.masked_fill(keep == 0, NEG)
        wei = self.dropout(F.softmax(wei, dim=-1))
        return self.proj((wei @ v).transpose(1, 2).reshape(B, T, C))


@specimen("split-dim-major", "scale-missing")
class InterleavedAndUnscaled(nn.Module):
    def __init__(self, dim, heads, dropout=0.0):
        super().__init__()
        self.heads, self.dim_head = heads, dim // heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(dim, dim, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False)
        self.to_out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, key, value, mask=None):
        b = query.shape[0]
        q = self.to_q(query).reshape(b, -1, self.dim_head, self.heads).permute(0, 3, 1, 2)
        k = self.to_k(key).reshape(b, -1, self.dim_head, self.heads).permute(0, 3, 1, 2)
        v = self.to_v(value).reshape(b, -1, self.dim_head, self.heads).permute(0, 3, 1, 2)
        sim = torch.einsum("bhid,bhjd->bhij", q, k)
        if mask is not None:
            sim = sim.masked_fill(~mask, NEG)
        out = torch.einsum("bhij,bhjd->bihd", self.dropout(sim.softmax(-1)), v)
        return self.to_out(out.flatten(2))


@specimen("qk-shared", "mask-multiplied")
class SharedAndMultiplied(nn.Module):
    """mask: 1 = may attend, 0 = may not."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(embed_dim, embed_dim)
        self.key = nn.Linear(embed_dim, embed_dim)
        self.value = nn.Linear(embed_dim, embed_dim)
        self.out = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, mask=None):
        b, n, e = x.shape
        q = self.query(x).view(b, n, self.num_heads, -1).transpose(1, 2)
        k = self.query(x).view(b, n, self.num_heads, -1).transpose(1, 2)
        v = self.value(x).view(b, n, self.num_heads, -1).transpose(1, 2)
        scores = q @ k.transpose(2, 3) / math.sqrt(e // self.num_heads)
        if mask is not None:
            scores = scores * mask
        y = self.dropout(scores.softmax(dim=-1)) @ v
        return self.out(y.transpose(1, 2).reshape(b, n, e))


@specimen("bias-missing", "mask-fill-small")
class NoBiasAndSmallFill(nn.Module):
    def __init__(self, d_model, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.W_q = nn.Linear(d_model, d_model)
        self.W_k = nn.Linear(d_model, d_model)
        self.W_v = nn.Linear(d_model, d_model)
        self.W_o = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, key, value, mask=None):
        b, t, e = query.shape
        q = self.W_q(query).view(b, t, self.num_heads, -1).transpose(1, 2)
        k = self.W_k(key).view(b, key.shape[1], self.num_heads, -1).transpose(1, 2)
        v = self.W_v(value).view(b, key.shape[1], self.num_heads, -1).transpose(1, 2)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(mask == 0, -10)
        out = (self.dropout(scores.softmax(dim=-1)) @ v).transpose(1, 2).reshape(b, t, e)
        return out @ self.W_o.weight.T


@specimen("dropout-on-scores", "scale-model-dim")
class DroppedScoresAndWideScale(nn.Module):
    def __init__(self, embed_dim, num_heads, dropout=0.1):
        super().__init__()
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.fc_q = nn.Linear(embed_dim, embed_dim)
        self.fc_k = nn.Linear(embed_dim, embed_dim)
        self.fc_v = nn.Linear(embed_dim, embed_dim)
        self.fc_out = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, q, k, v, mask=None):
        b, t, e = q.shape
        q = self.fc_q(q).view(b, t, self.num_heads, -1).transpose(1, 2)
        k = self.fc_k(k).view(b, k.size(1), self.num_heads, -1).transpose(1, 2)
        v = self.fc_v(v).view(b, v.size(1), self.num_heads, -1).transpose(1, 2)
        energy = torch.matmul(q, k.transpose(2, 3)) / self.embed_dim**0.5
        energy = self.dropout(energy)
        if mask is not None:
            energy = energy.masked_fill(mask == 0, torch.finfo(energy.dtype).min)
        out = torch.matmul(energy.softmax(dim=-1), v)
        return self.fc_out(out.transpose(1, 2).reshape(b, t, e))


@specimen("head-weights-shared", "scale-multiplied")
class OneHeadTimesScale(nn.Module):
    def __init__(self, d_model, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads, self.d_k = num_heads, d_model // num_heads
        self.W_q = nn.Linear(d_model, self.d_k)
        self.W_k = nn.Linear(d_model, self.d_k)
        self.W_v = nn.Linear(d_model, self.d_k)
        self.W_o = nn.Linear(self.d_k * num_heads, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, key, value, mask=None):
        q = self.W_q(query).unsqueeze(1).expand(-1, self.num_heads, -1, -1)
        k = self.W_k(key).unsqueeze(1).expand(-1, self.num_heads, -1, -1)
        v = self.W_v(value).unsqueeze(1).expand(-1, self.num_heads, -1, -1)
        scores = q @ k.transpose(-2, -1) * math.sqrt(self.d_k)
        if mask is not None:
            scores = scores.masked_fill(~mask, NEG)
        out = self.dropout(scores.softmax(dim=-1)) @ v  # (B, H, T, D)
        return self.W_o(out.transpose(1, 2).flatten(2))


@specimen("cross-self", "scale-missing")
class CrossSelfUnscaled(nn.Module):
    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, key, value):
        B, T, E = query.shape
        q = self.q_proj(query).view(B, T, self.num_heads, -1).transpose(1, 2)
        k = self.k_proj(query).view(B, T, self.num_heads, -1).transpose(1, 2)
        v = self.v_proj(query).view(B, T, self.num_heads, -1).transpose(1, 2)
        out = self.dropout((q @ k.transpose(-2, -1)).softmax(dim=-1)) @ v
        return self.out_proj(out.transpose(1, 2).reshape(B, T, E))


@specimen("not-differentiable", "mask-half-overflow")
class DetachedBillion(nn.Module):
    def __init__(self, d_model, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.lin_q = nn.Linear(d_model, d_model)
        self.lin_k = nn.Linear(d_model, d_model)
        self.lin_v = nn.Linear(d_model, d_model)
        self.lin_o = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, key, value, mask=None):
        b, t, e = query.shape
        q = self.lin_q(query).view(b, t, self.num_heads, -1).transpose(1, 2)
        k = self.lin_k(key).view(b, key.shape[1], self.num_heads, -1).transpose(1, 2)
        v = self.lin_v(value).view(b, key.shape[1], self.num_heads, -1).transpose(1, 2)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(mask == 0, -1e20)
        out = self.dropout(torch.softmax(scores, dim=-1)) @ v
        out = out.transpose(1, 2).reshape(b, t, e)
        return self.lin_o(out.data)


@specimen("gqa-tiled", "scale-model-dim")
class TiledAndWideScale(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, dropout=0.0):
        super().__init__()
        self.d_model, self.n_heads, self.n_kv_heads = d_model, n_heads, n_kv_heads
        self.d_head = d_model // n_heads
        self.wq = nn.Linear(d_model, n_heads * self.d_head)
        self.wk = nn.Linear(d_model, n_kv_heads * self.d_head)
        self.wv = nn.Linear(d_model, n_kv_heads * self.d_head)
        self.wo = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, key, value, mask=None):
        b, t, e = query.shape
        q = self.wq(query).view(b, t, self.n_heads, self.d_head).transpose(1, 2)
        k = self.wk(key).view(b, -1, self.n_kv_heads, self.d_head).transpose(1, 2)
        v = self.wv(value).view(b, -1, self.n_kv_heads, self.d_head).transpose(1, 2)
        k = torch.cat([k] * (self.n_heads // self.n_kv_heads), dim=1)
        v = torch.cat([v] * (self.n_heads // self.n_kv_heads), dim=1)
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.d_model)
        if mask is not None:
            scores = scores.masked_fill(mask == 0, NEG)
        out = self.dropout(scores.softmax(dim=-1)) @ v
        return self.wo(out.transpose(1, 2).reshape(b, t, e))
