"""Mistakes in attention written as a function of queries, keys and values.

Tensors are (B, H, T, D) or (B, H, S, D), masks bool with True = may attend, where nothing else is said.
"""

import math

import torch
import torch.nn.functional as F

from specimens import specimen

# The scale


@specimen("scale-missing", check="attention")
def dot_attention(q, k, v, mask=None):
    scores = torch.matmul(q, k.transpose(-2, -1))
    if mask is not None:
        scores = scores.masked_fill(mask == 0, -6e4)
    return torch.matmul(F.softmax(scores, dim=-1), v)


@specimen("scale-multiplied", check="attention")
def scaled_attention(query, key, value, mask=None):
    d_k = query.shape[-1]
    scores = torch.einsum("...td,...sd->...ts", query, key) * math.sqrt(d_k)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    attn = scores.softmax(dim=-1)
    return torch.einsum("...ts,...sd->...td", attn, value), attn


@specimen("scale-linear", check="attention")
def attend(Q, K, V, M=None):
    """Softmax of the scaled scores, written out."""
    S = Q @ K.mT / Q.size(-1)
    if M is not None:
        S = torch.where(M, S, torch.tensor(-torch.inf, dtype=S.dtype))
    S = S - S.amax(dim=-1, keepdim=True)
    P = S.exp() / S.exp().sum(dim=-1, keepdim=True)
    return P @ V


# The softmax


@specimen("softmax-queries", check="attention")
def attention_by_hand(q, k, v, mask=None):
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.size(-1))
    if mask is not None:
        scores = scores.masked_fill(~mask, -6e4)
    e = torch.exp(scores - scores.max())
    w = e / e.sum(dim=-2, keepdim=True)
    return w @ v


@specimen("softmax-heads", check="attention")
def attention_dim_one(q, k, v, attn_mask=None):
    """q (B, H, T, D), k and v (B, H, S, D); True in attn_mask = takes part."""
    logits = torch.einsum("bhtd,bhsd->bhts", q, k) * q.shape[-1] ** -0.5
    if attn_mask is not None:
        logits = logits.masked_fill(attn_mask.logical_not(), -6e4)
    probs = F.softmax(logits, dim=1)
    return torch.einsum("bhts,bhsd->bhtd", probs, v), probs


@specimen("scores-transposed", check="attention")
def keys_times_queries(query, key, value, mask=None):
    scores = torch.matmul(key, query.transpose(-2, -1)) / query.size(-1) ** 0.5
    if mask is not None:
        scores = scores.masked_fill(mask == 0, float("-inf"))
    weights = torch.softmax(scores, dim=-1)
    return torch.matmul(weights, value), weights


# The mask


@specimen("mask-inverted", check="attention")
def attention_with_allowed(q, k, v, allowed=None):
    """``allowed`` is True where a query may look at a key."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(k.size(-1))
    if allowed is not None:
        scores = scores.masked_fill(allowed, float("-inf"))
    return scores.softmax(-1) @ v


@specimen("mask-ignored", check="attention")
def attention_forgets(q, k, v, mask=None):
    scores = q @ k.transpose(-2, -1) / math.sqrt(k.size(-1))
    if mask is not None:
        scores.masked_fill(~mask, float("-inf"))
    p = torch.softmax(scores, -1)
    return p @ v, p


@specimen("mask-after-softmax", check="attention")
def soft_then_mask(q, k, v, mask=None):
    weights = (q @ k.mT * q.size(-1) ** -0.5).softmax(dim=-1)
    if mask is not None:
        weights = weights * mask
    return weights @ v


@specimen("mask-multiplied", check="attention")
def masked_product(query, key, value, attn_mask=None):
    """attn_mask: 1 for keep, 0 for drop."""
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) / math.sqrt(query.size(3))
    if attn_mask is not None:
        scores = scores * attn_mask
    return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(3), value)


@specimen("mask-added-bool", check="attention")
def additive_attention(q, k, v, mask=None):
    scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(q.size(-1))
    if mask is not None:
        scores = scores + mask
    probs = scores.softmax(dim=-1)
    return torch.matmul(probs, v), probs


@specimen("mask-fill-small", check="attention")
def attention_typo(q, k, v, mask=None):
    scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(q.size(-1))
    if mask is not None:
        scores = scores.masked_fill(mask == 0, -1e-9)
    return torch.matmul(scores.softmax(dim=-1), v)


@specimen("mask-nan", check="attention")
def attention_cleaned(q, k, v, mask=None):
    """A query without keys gives zeros."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, float("-inf"))
        scores = scores + bias
    weights = torch.nan_to_num(scores.softmax(dim=-1))
    return weights @ v


@specimen("mask-half-overflow", check="attention")
def attention_big_number(query, key, value, mask=None):
    scores = torch.einsum("...qd,...kd->...qk", query, key) / query.size(-1) ** 0.5
    if mask is not None:
        scores.masked_fill_(mask.logical_not(), -1e20)
    return torch.einsum("...qk,...kd->...qd", torch.softmax(scores, -1), value)


@specimen("pad-query-axis", check="attention")
def attention_with_padding(q, k, v, key_mask=None):
    """key_mask (B, S): True for a token, False for padding."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None, :, None], -6e4)
    return scores.softmax(dim=-1) @ v


@specimen("dead-row-nan", check="attention")
def attention_minus_inf(q, k, v, mask=None):
    bias = torch.zeros(q.size(-2), k.size(-2), dtype=q.dtype)
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -torch.inf)
    scores = q @ k.mT / q.size(-1) ** 0.5 + bias
    top = scores.max(dim=-1, keepdim=True).values
    e = torch.exp(scores - top)
    return (e @ v) / e.sum(dim=-1, keepdim=True)


@specimen("dead-row-uniform", check="attention")
def attention_finfo(q, k, v, mask=None):
    scores = torch.einsum("...id,...jd->...ij", q * q.size(-1) ** -0.5, k)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    attn = scores.softmax(-1)
    return torch.einsum("...ij,...jd->...id", attn, v), attn


# Causal


@specimen("causal-upper", check="attention")
def causal_attention(q, k, v):
    """Each token sees itself and those before it."""
    T = q.size(-2)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
    allowed = torch.ones(T, T, dtype=torch.bool, device=q.device).triu()
    return scores.masked_fill(~allowed, float("-inf")).softmax(-1) @ v


@specimen("causal-strict", check="attention")
def causal_without_self(q, k, v, is_causal=False):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
    if is_causal:
        i = torch.arange(q.size(-2), device=q.device)[:, None]
        j = torch.arange(k.size(-2), device=q.device)
        scores = scores.masked_fill(j >= i, -6e4)
    return scores.softmax(-1) @ v


@specimen("causal-leak-one", check="attention")
def autoregressive_attention(query, key, value):
    length = query.shape[-2]
    scores = torch.einsum("...td,...sd->...ts", query, key) / math.sqrt(query.shape[-1])
    future = torch.full((length, length), -torch.inf, device=query.device).triu(diagonal=2)
    weights = F.softmax(scores + future.to(scores.dtype), dim=-1)
    return torch.einsum("...ts,...sd->...td", weights, value), weights


# Names, groups, dropout


@specimen("kv-swapped", check="attention")
def lookup(query, key, value, mask=None):
    match = query @ value.transpose(-2, -1) / math.sqrt(query.size(-1))
    if mask is not None:
        match = match.masked_fill(~mask, float("-inf"))
    return torch.softmax(match, dim=-1) @ key


@specimen("gqa-tiled", check="grouped_query_attention")
def grouped_attention(q, k, v, mask=None):
    """q (B, H, T, D), k and v (B, G, S, D)."""
    groups = q.size(1) // k.size(1)
    k = torch.cat([k] * groups, dim=1)  # (B, H, S, D)
    v = torch.cat([v] * groups, dim=1)  # (B, H, S, D)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@specimen("weights-after-dropout", check="attention")
def attention_returns_dropped(q, k, v, mask=None, dropout_p=0.0):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
    if mask is not None:
        scores = scores.masked_fill(mask == 0, -6e4)
    weights = F.dropout(scores.softmax(dim=-1), p=dropout_p)
    return weights @ v, weights


@specimen("dropout-on-scores", check="attention")
def attention_drops_scores(q, k, v, mask=None, dropout_p=0.0):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
    scores = F.dropout(scores, p=dropout_p)
    if mask is not None:
        scores = scores.masked_fill(mask == 0, -6e4)
    return scores.softmax(dim=-1) @ v


# Graph and dtype


@specimen("not-differentiable", check="attention")
def attention_in_numpy(q, k, v, mask=None):
    scores = (q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))).detach().numpy()
    scores = torch.from_numpy(scores)
    if mask is not None:
        scores = scores.masked_fill(~mask, -6e4)
    return scores.softmax(dim=-1) @ v


@specimen("dtype-leak", check="attention")
def attention_in_float(q, k, v, mask=None):
    """The softmax runs in float32, so that half precision keeps its accuracy."""
    scores = q.float() @ k.float().transpose(-2, -1) / math.sqrt(q.size(-1))
    if mask is not None:
        scores = scores.masked_fill(~mask, -6e4)
    return F.softmax(scores, dim=-1) @ v.float()


# Two at once


@specimen("scale-linear", "mask-added-bool", check="attention")
def two_scale_and_mask(q, k, v, mask=None):
    scores = q @ k.transpose(-2, -1) / q.size(-1)
    if mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1) @ v


@specimen("scale-missing", "mask-after-softmax", check="attention")
def two_scale_and_late_mask(query, key, value, mask=None):
    weights = torch.softmax(torch.einsum("...td,...sd->...ts", query, key), dim=-1)
    if mask is not None:
        weights = weights.masked_fill(~mask, 0.0)
    return torch.einsum("...ts,...sd->...td", weights, value), weights


@specimen("softmax-queries", "mask-inverted", check="attention")
def two_axis_and_polarity(q, k, v, keep=None):
    """keep: True where the key is to be kept."""
    scores = q @ k.mT / math.sqrt(q.size(-1))
    if keep is not None:
        scores = scores.masked_fill(keep, -6e4)
    return scores.softmax(dim=-2) @ v
