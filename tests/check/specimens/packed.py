"""Mistakes in modules with packed projections: ``in_proj_weight``, one ``qkv`` layer, GPT's ``c_attn``.

A mask is bool, True = may attend, and broadcasts to (B, H, T, S), where nothing else is said.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from specimens import specimen


class InProjection(nn.Module):
    """The parameters of attention as ``nn.MultiheadAttention`` keeps them."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.embed_dim, self.num_heads, self.dropout = embed_dim, num_heads, dropout
        self.head_dim = embed_dim // num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dim))
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def project(self, query, key, value):
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        pairs = zip((query, key, value), weights, biases, strict=True)
        return [self.split(F.linear(x, w, b)) for x, w, b in pairs]

    def split(self, x):
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)  # (B, H, T, D)

    def merge(self, x):
        return x.transpose(1, 2).flatten(2)  # (B, T, E)

    def scores(self, q, k, mask=None):
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)
        return scores if mask is None else scores.masked_fill(~mask, float("-inf"))


@specimen("scale-model-dim")
class PackedModelScale(InProjection):
    def forward(self, query, key, value, attn_mask=None):
        """True in attn_mask = may attend."""
        q, k, v = self.project(query, key, value)
        scores = q @ k.mT / math.sqrt(self.embed_dim)
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, float("-inf"))
        return self.out_proj(self.merge(scores.softmax(-1) @ v))


@specimen("softmax-heads")
class PackedHeadSoftmax(InProjection):
    def forward(self, query, key, value, mask=None):
        q, k, v = self.project(query, key, value)
        scores = q @ k.mT / math.sqrt(self.head_dim)
        if mask is not None:
            scores = scores.masked_fill(~mask, -6e4)
        weights = F.softmax(scores, 1)
        return self.out_proj(self.merge(weights @ v)), weights


@specimen("bias-missing")
class PackedBiasMissing(InProjection):
    def forward(self, query, key, value, mask=None):
        w_q, w_k, w_v = self.in_proj_weight.chunk(3)
        q = self.split(F.linear(query, w_q))
        k = self.split(F.linear(key, w_k))
        v = self.split(F.linear(value, w_v))
        return self.out_proj(self.merge(self.scores(q, k, mask).softmax(-1) @ v))


@specimen("qk-shared")
class PackedSlicesWrong(InProjection):
    """in_proj_weight holds the rows of W_Q, then those of W_K, then those of W_V."""

    def forward(self, query, key, value, mask=None):
        E, W, b = self.embed_dim, self.in_proj_weight, self.in_proj_bias
        q = self.split(F.linear(query, W[:E], b[:E]))
        k = self.split(F.linear(key, W[:E], b[:E]))
        v = self.split(F.linear(value, W[2 * E :], b[2 * E :]))
        return self.out_proj(self.merge(self.scores(q, k, mask).softmax(-1) @ v))


@specimen("dropout-unscaled")
class PackedOwnDropout(InProjection):
    def forward(self, query, key, value, mask=None):
        q, k, v = self.project(query, key, value)
        attn = self.scores(q, k, mask).softmax(-1)
        if self.training and self.dropout > 0:
            keep = torch.rand_like(attn) >= self.dropout
            attn = attn * keep
        return self.out_proj(self.merge(attn @ v))


@specimen("weights-after-dropout")
class PackedReturnsDropped(InProjection):
    def forward(self, query, key, value, mask=None):
        q, k, v = self.project(query, key, value)
        weights = self.scores(q, k, mask).softmax(-1)
        weights = F.dropout(weights, self.dropout, self.training)
        return self.out_proj(self.merge(weights @ v)), weights


# One layer for queries, keys and values


@specimen("split-no-transpose")
class QKVViewed(nn.Module):
    """Self-attention of x (B, T, E)."""

    def __init__(self, dim, num_heads=8, dropout=0.0):
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attn_drop = nn.Dropout(dropout)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x, mask=None):
        B, T, C = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q = q.reshape(B, self.num_heads, T, C // self.num_heads)
        k = k.reshape(B, self.num_heads, T, C // self.num_heads)
        v = v.reshape(B, self.num_heads, T, C // self.num_heads)
        attn = q @ k.transpose(-2, -1) * self.scale
        if mask is not None:
            attn = attn.masked_fill(~mask, -6e4)
        attn = self.attn_drop(attn.softmax(dim=-1))
        return self.proj((attn @ v).transpose(1, 2).reshape(B, T, C))


@specimen("split-dim-major")
class QKVInterleaved(nn.Module):
    def __init__(self, dim, heads, dropout=0.0):
        super().__init__()
        self.heads, self.dim_head = heads, dim // heads
        self.to_qkv = nn.Linear(dim, dim * 3, bias=False)
        self.to_out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, mask=None):
        b, n, e = x.shape
        qkv = self.to_qkv(x).view(b, n, 3, self.dim_head, self.heads)
        q, k, v = qkv.permute(2, 0, 4, 1, 3)  # each (b, h, n, d)
        dots = torch.einsum("bhid,bhjd->bhij", q, k) * self.dim_head**-0.5
        if mask is not None:
            dots = dots.masked_fill(~mask, float("-inf"))
        attn = self.dropout(dots.softmax(dim=-1))
        out = torch.einsum("bhij,bhjd->bihd", attn, v)
        return self.to_out(out.reshape(b, n, e))


@specimen("merge-dim-major")
class QKVMergedAcross(nn.Module):
    """The layer gives, for each head in turn, its query, key and value."""

    def __init__(self, hidden, n_heads, dropout=0.0):
        super().__init__()
        self.n_heads, self.width = n_heads, hidden // n_heads
        self.query_key_value = nn.Linear(hidden, 3 * hidden)
        self.dense = nn.Linear(hidden, hidden)
        self.p = dropout

    def forward(self, hidden_states, mask=None):
        mixed = self.query_key_value(hidden_states)
        mixed = mixed.unflatten(-1, (self.n_heads, 3 * self.width)).transpose(1, 2)
        q, k, v = mixed.chunk(3, dim=-1)  # each (B, H, T, D)
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(self.width)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        probs = F.dropout(scores.softmax(-1), self.p, self.training)
        context = torch.matmul(probs, v)
        context = context.permute(0, 2, 3, 1).reshape(hidden_states.shape)
        return self.dense(context)


@specimen("dropout-in-eval")
class QKVFused(nn.Module):
    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.out = nn.Linear(embed_dim, embed_dim)

    def forward(self, x, attn_mask=None):
        """True in attn_mask = takes part, as in F.scaled_dot_product_attention."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=self.dropout)
        return self.out(y.transpose(1, 2).flatten(-2))


@specimen("gqa-tiled")
class GroupedFused(nn.Module):
    """Fewer heads of keys and values than of queries: each serves num_heads // num_kv_heads in a row."""

    def __init__(self, embed_dim, num_heads, num_kv_heads=None, dropout=0.0):
        super().__init__()
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads or num_heads
        self.head_dim = embed_dim // num_heads
        self.sizes = [embed_dim] + 2 * [self.num_kv_heads * self.head_dim]
        self.qkv_proj = nn.Linear(embed_dim, sum(self.sizes), bias=False)
        self.o_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.dropout = dropout

    def forward(self, x, mask=None):
        B, T, _ = x.shape
        q, k, v = self.qkv_proj(x).split(self.sizes, dim=-1)
        q = q.view(B, T, self.num_heads, self.head_dim).transpose(1, 2)
        k = k.view(B, T, self.num_kv_heads, self.head_dim).transpose(1, 2)
        v = v.view(B, T, self.num_kv_heads, self.head_dim).transpose(1, 2)
        group = self.num_heads // self.num_kv_heads
        k, v = k.repeat(1, group, 1, 1), v.repeat(1, group, 1, 1)
        p = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))


# GPT


@dataclass
class Config:
    n_embd: int = 12
    n_head: int = 3
    block_size: int = 64
    dropout: float = 0.0
    bias: bool = True


class GPTAttention(nn.Module):
    """Causal self-attention as in GPT: c_attn and c_proj, and the mask as a buffer."""

    def __init__(self, n_embd, n_head, dropout=0.0, block_size=64):
        super().__init__()
        self.n_embd, self.n_head = n_embd, n_head
        self.c_attn = nn.Linear(n_embd, 3 * n_embd)
        self.c_proj = nn.Linear(n_embd, n_embd)
        self.attn_dropout = nn.Dropout(dropout)
        allowed = torch.ones(block_size, block_size).tril().bool()
        self.register_buffer("bias", allowed[None, None], persistent=False)

    def heads(self, x):
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split(C, dim=2)
        shape = (B, T, self.n_head, C // self.n_head)
        return [t.view(shape).transpose(1, 2) for t in (q, k, v)]  # each (B, H, T, D)

    def attend(self, q, k, v, allowed):
        att = q @ k.transpose(-2, -1) / math.sqrt(k.size(-1))
        att = att.masked_fill(~allowed, float("-inf"))
        return self.attn_dropout(F.softmax(att, dim=-1)) @ v

    def join(self, y):
        return self.c_proj(y.transpose(1, 2).contiguous().flatten(2))


@specimen("merge-no-transpose")
class GPTMergeViewed(GPTAttention):
    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.heads(x)
        y = self.attend(q, k, v, self.bias[:, :, :T, :T])
        return self.c_proj(y.contiguous().view(B, T, C))


@specimen("heads-ignored")
class GPTOneHead(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        assert config.n_embd % config.n_head == 0
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = config.dropout

    def forward(self, x):
        q, k, v = self.c_attn(x).chunk(3, dim=-1)
        p = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=p)
        return self.c_proj(y)


@specimen("causal-upper")
class GPTUpper(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.n_head, self.n_embd = config.n_head, config.n_embd
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.attn_dropout = nn.Dropout(config.dropout)
        ones = torch.ones(config.block_size, config.block_size)
        self.register_buffer("mask", torch.triu(ones)[None, None])

    def forward(self, x):
        B, T, C = x.size()
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        att = q @ k.mT * k.size(-1) ** -0.5
        att = att.masked_fill(self.mask[:, :, :T, :T] == 0, float("-inf"))
        y = self.attn_dropout(att.softmax(-1)) @ v
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


@specimen("causal-strict")
class GPTStrict(GPTAttention):
    def __init__(self, n_embd, n_head, dropout=0.0, block_size=64):
        super().__init__(n_embd, n_head, dropout, block_size)
        ones = torch.ones(block_size, block_size, dtype=torch.bool)
        self.register_buffer("future", torch.triu(ones), persistent=False)

    def forward(self, x):
        T = x.size(1)
        q, k, v = self.heads(x)
        att = q @ k.transpose(-2, -1) / math.sqrt(k.size(-1))
        att = att.masked_fill(self.future[:T, :T], -6e4)
        return self.join(self.attn_dropout(att.softmax(dim=-1)) @ v)


@specimen("causal-leak-one")
class GPTSeesNext(GPTAttention):
    def forward(self, x):
        T = x.size(1)
        position = torch.arange(T, device=x.device)
        return self.join(self.attend(*self.heads(x), position <= position[:, None] + 1))


@specimen("causal-top-left")
class GPTWithPast(GPTAttention):
    """``layer_past`` holds the keys and values of the tokens before x; returns the new ones too."""

    def forward(self, x, layer_past=None):
        q, k, v = self.heads(x)
        if layer_past is not None:
            k = torch.cat((layer_past[0], k), dim=-2)
            v = torch.cat((layer_past[1], v), dim=-2)
        T, S = q.size(-2), k.size(-2)
        y = self.attend(q, k, v, self.bias[:, :, :T, :S])
        return self.join(y), (k, v)


@specimen("out-proj-missing")
class GPTNoProjection(GPTAttention):
    def forward(self, x):
        T = x.size(1)
        q, k, v = self.heads(x)
        y = self.attend(q, k, v, self.bias[:, :, :T, :T])
        return y.transpose(1, 2).flatten(2)


@specimen("device-buffer")
class GPTMaskOnCPU(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.heads = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.mask = torch.tril(torch.ones(config.block_size, config.block_size))

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        att = q @ k.transpose(-1, -2) / math.sqrt(C // self.heads)
        att = att.masked_fill(self.mask[:T, :T] == 0, float("-inf"))
        y = self.drop(F.softmax(att, dim=-1)) @ v
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


# Two at once


@specimen("scale-missing", "merge-no-transpose")
class TwoScaleAndMerge(InProjection):
    def forward(self, query, key, value, mask=None):
        B, T, E = query.shape
        q, k, v = self.project(query, key, value)
        scores = q @ k.mT
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return self.out_proj((scores.softmax(-1) @ v).reshape(B, T, E))


@specimen("out-proj-missing", "causal-leak-one")
class TwoProjectionAndLeak(GPTAttention):
    def forward(self, x):
        T = x.size(1)
        allowed = torch.ones(T, T, dtype=torch.bool, device=x.device).tril(diagonal=1)
        return self.attend(*self.heads(x), allowed).transpose(1, 2).flatten(2)


@specimen("gqa-tiled", "scale-missing")
class TwoGroupsAndScale(GroupedFused):
    """True in mask = may attend."""

    def forward(self, x, mask=None):
        B, T, _ = x.shape
        q, k, v = (
            t.unflatten(-1, (-1, self.head_dim)) for t in self.qkv_proj(x).split(self.sizes, -1)
        )
        group = self.num_heads // self.num_kv_heads
        k = torch.cat([k] * group, dim=2)
        v = torch.cat([v] * group, dim=2)
        scores = torch.einsum("bthd,bshd->bhts", q, k)
        if mask is not None:
            scores = scores.masked_fill(~mask, -6e4)
        y = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v)
        return self.o_proj(y.reshape(B, T, -1))


@specimen("split-no-transpose", "dropout-in-eval")
class TwoSplitAndDropout(GPTAttention):
    """In both directions: the mask is the caller's."""

    def forward(self, x, mask=None):
        B, T, C = x.shape
        q, k, v = (t.reshape(B, self.n_head, T, -1) for t in self.c_attn(x).split(C, dim=-1))
        p = self.attn_dropout.p
        return self.join(F.scaled_dot_product_attention(q, k, v, mask, dropout_p=p))
