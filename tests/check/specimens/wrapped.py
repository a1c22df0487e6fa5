"""Mistakes around torch's own attention, in Conv1D layers, in subclasses and behind a config.

A mask is bool, True = may attend, and broadcasts to (B, H, T, S), where nothing else is said.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from specimens import specimen
from specimens.bases import Head, MatrixAttention

# Around nn.MultiheadAttention and F.scaled_dot_product_attention


@specimen("mask-inverted")
class TorchWithMask(nn.Module):
    """mask (T, S): True where a query may attend."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.attn = nn.MultiheadAttention(embed_dim, num_heads, dropout, batch_first=True)

    def forward(self, query, key, value, mask=None):
        return self.attn(query, key, value, attn_mask=mask, need_weights=False)[0]


@specimen("mask-inverted")
class FusedWithPadding(nn.Module):
    """key_padding_mask (B, S): True at padding, as in nn.MultiheadAttention."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.kv_proj = nn.Linear(embed_dim, 2 * embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def split(self, x):
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, query, memory, key_padding_mask=None):
        k, v = self.kv_proj(memory).chunk(2, dim=-1)
        q, k, v = self.split(self.q_proj(query)), self.split(k), self.split(v)
        mask = None if key_padding_mask is None else key_padding_mask[:, None, None, :]
        p = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        return self.out_proj(y.transpose(1, 2).flatten(2))


@specimen("kv-swapped")
class TorchInAnotherOrder(nn.Module):
    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.mha = nn.MultiheadAttention(embed_dim, num_heads, dropout, batch_first=True)

    def forward(self, query, key, value):
        output, weights = self.mha(query, value, key, average_attn_weights=False)
        return output, weights


class FusedAttention(nn.Module):
    """What torch does, with four layers of its own."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query = nn.Linear(embed_dim, embed_dim)
        self.key = nn.Linear(embed_dim, embed_dim)
        self.value = nn.Linear(embed_dim, embed_dim)
        self.out = nn.Linear(embed_dim, embed_dim)

    def core(self, q, k, v, mask):
        p = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)

    def forward(self, query, key, value, mask=None):
        q, k, v = self.query(query), self.key(key), self.value(value)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        return self.out(self.core(q, k, v, mask).transpose(1, 2).flatten(2))


@specimen("mask-ignored")
class FusedForgetsMask(FusedAttention):
    def core(self, q, k, v, mask):
        p = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, dropout_p=p)


@specimen("mask-added-bool")
class FusedFloatMask(FusedAttention):
    def core(self, q, k, v, mask):
        if mask is not None:
            mask = mask.to(q.dtype)
        p = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)


@specimen("dead-row-nan")
class OwnSoftmax(FusedAttention):
    def core(self, q, k, v, mask):
        scores = q @ k.mT / math.sqrt(q.size(-1))
        if mask is not None:
            scores = torch.where(mask, scores, float("-inf"))
        e = (scores - scores.amax(-1, keepdim=True)).exp()
        return F.dropout(e / e.sum(-1, keepdim=True), self.dropout, self.training) @ v


@specimen("dead-row-uniform")
class AdditiveMask(FusedAttention):
    def core(self, q, k, v, mask):
        if mask is not None:
            lowest = torch.finfo(q.dtype).min
            mask = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(
                ~mask, lowest
            )
        p = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)


# Conv1D: a linear layer that keeps its weight as (in, out)


class Conv1D(nn.Module):
    def __init__(self, n_out, n_in):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_in, n_out) * n_in**-0.5)
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x):
        return x @ self.weight + self.bias


class ConvAttention(nn.Module):
    """Self-attention in the manner of GPT-2, without the causal mask."""

    def __init__(self, nx, n_head, dropout=0.0):
        super().__init__()
        self.n_head = n_head
        self.c_attn = Conv1D(3 * nx, nx)
        self.c_proj = Conv1D(nx, nx)
        self.attn_dropout = nn.Dropout(dropout)

    def heads(self, x):
        x = self.c_attn(x).chunk(3, dim=2)
        return [t.view(*t.shape[:2], self.n_head, -1).permute(0, 2, 1, 3) for t in x]

    def merge(self, x):
        return self.c_proj(x.permute(0, 2, 1, 3).flatten(2))


@specimen("mask-multiplied")
class ConvZeroScores(ConvAttention):
    def forward(self, x, attention_mask=None):
        """attention_mask (B, T): 1 for a token, 0 for padding."""
        q, k, v = self.heads(x)
        w = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(v.size(-1))
        if attention_mask is not None:
            w = w * attention_mask[:, None, None, :].to(w.dtype)
        return self.merge(self.attn_dropout(w.softmax(dim=-1)) @ v)


@specimen("mask-half-overflow")
class ConvBigFill(ConvAttention):
    def forward(self, x, mask=None):
        q, k, v = self.heads(x)
        w = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(v.size(-1))
        if mask is not None:
            w = w.masked_fill(mask == 0, -1e10)
        return self.merge(self.attn_dropout(w.softmax(dim=-1)) @ v)


@specimen("pad-query-axis")
class ConvPadsQueries(ConvAttention):
    def forward(self, x, attention_mask=None):
        """attention_mask (B, T): 1 for a token, 0 for padding."""
        q, k, v = self.heads(x)
        w = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(v.size(-1))
        if attention_mask is not None:
            w = w.masked_fill(attention_mask[:, None, :, None] == 0, -1e4)
        return self.merge(self.attn_dropout(w.softmax(dim=-1)) @ v)


# Behind a config, as BERT


@dataclass
class BertConfig:
    hidden_size: int = 12
    num_attention_heads: int = 3
    attention_probs_dropout_prob: float = 0.0


@specimen("bias-missing")
class BertAttention(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.num_attention_heads = config.num_attention_heads
        self.head_size = config.hidden_size // config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def transpose_for_scores(self, x):
        return x.view(*x.shape[:2], self.num_attention_heads, self.head_size).permute(0, 2, 1, 3)

    def forward(self, hidden_states):
        q = self.transpose_for_scores(self.query(hidden_states))
        k = self.transpose_for_scores(self.key(hidden_states))
        v = self.transpose_for_scores(self.value(hidden_states))
        probs = self.dropout((q @ k.transpose(-1, -2) / math.sqrt(self.head_size)).softmax(-1))
        context = (probs @ v).permute(0, 2, 1, 3).flatten(2)
        return context @ self.dense.weight.T


# Two at once


@specimen("kv-shared", "dropout-in-eval")
class TwoValuesAndDropout(FusedAttention):
    def core(self, q, k, v, mask):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=self.dropout)

    def forward(self, query, key, value, mask=None):
        q, k, v = self.query(query), self.key(key), self.key(value)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        return self.out(self.core(q, k, v, mask).transpose(1, 2).flatten(2))


@specimen("bias-missing", "mask-multiplied")
class TwoBiasAndMask(ConvAttention):
    def forward(self, x, mask=None):
        q, k, v = self.heads(x)
        w = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(v.size(-1))
        if mask is not None:
            w = w * mask
        y = self.attn_dropout(w.softmax(dim=-1)) @ v
        return y.permute(0, 2, 1, 3).flatten(2) @ self.c_proj.weight


@specimen("qkv-shared", "softmax-heads")
class TwoMatrixAndAxis(MatrixAttention):
    def forward(self, query, key, value, mask=None):
        Q, K, V = (self.heads(X @ self.W_V) for X in (query, key, value))
        S = Q @ K.mT / self.d_k**0.5
        if mask is not None:
            S = S.masked_fill(~mask, -6e4)
        return self.concat(S.softmax(1) @ V) @ self.W_O


@specimen("scale-model-dim", "mask-inverted")
class TwoScaleAndPolarity(MatrixAttention):
    """``allowed`` (T, S) is True where a query may look at a key."""

    def forward(self, query, key, value, allowed=None):
        Q, K, V = (
            self.heads(query @ self.W_Q),
            self.heads(key @ self.W_K),
            self.heads(value @ self.W_V),
        )
        S = Q @ K.mT / math.sqrt(query.size(-1))
        if allowed is not None:
            S = S.masked_fill(allowed, -6e4)
        return self.concat(S.softmax(-1) @ V) @ self.W_O


@specimen("head-weights-shared", "out-proj-missing")
class TwoHeadsAndProjection(nn.Module):
    """mask (T, S) or (B, T, S), True = may attend."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        head = Head(embed_dim, embed_dim // num_heads, dropout)
        self.heads = nn.ModuleList(head for _ in range(num_heads))
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x, mask=None):
        return torch.cat([head(x, x, mask) for head in self.heads], dim=-1)
