"""Multi-head attention that is right, in many hands: the checker must find no mistake in any.

``notes`` of a specimen are slugs that may be reported as notes, never as mistakes. Most give NaN for
a query that may see nothing, or let it attend to everything; both are common choices.
"""

import math
from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import mha
from specimens import right as correct

NAN = ("dead-row-nan",)
EVEN = ("dead-row-uniform",)


# --- other people's modules -----------------------------------------------------------------------

correct(notes=(*NAN, "weights-after-dropout"))(nn.MultiheadAttention)


correct(notes=(*NAN, "weights-after-dropout"))(nn.MultiheadAttention(12, 3, batch_first=True))


@correct(notes=(*NAN, "weights-after-dropout"))
class BatchFirstTorch(nn.MultiheadAttention):
    """torch's own layer with another default; its masks are torch's."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__(embed_dim, num_heads, dropout=dropout, batch_first=True)


@correct(notes=NAN)
class TorchAdapter(nn.Module):
    """torch's own layer, batch first, with a mask that says which keys may be seen."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.inner = nn.MultiheadAttention(embed_dim, num_heads, dropout=dropout, batch_first=True)

    def forward(self, query, key, value, mask=None):
        if mask is not None:
            mask = ~mask.bool()
            if mask.dim() > 2:  # torch wants (B * H, T, S)
                shape = (query.size(0), self.num_heads, query.size(1), key.size(1))
                mask = mask.expand(shape).flatten(0, 1)
        output, _ = self.inner(query, key, value, attn_mask=mask, need_weights=False)
        return output


correct()(mha.MultiHeadAttention)
correct()(mha.heads.BatchedHeads)
correct()(mha.heads.LoopedHeads)


@correct()
class FromSingleHeads(nn.Module):
    """The first rung of the package, run once for each head."""

    def __init__(self, embed_dim, num_heads):
        super().__init__()
        width = embed_dim // num_heads
        self.heads = nn.ModuleList(
            mha.heads.SingleHeadAttention(embed_dim, width) for _ in range(num_heads)
        )
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, query, key=None, value=None, attn_mask=None):
        parts = []
        for i, head in enumerate(self.heads):
            m = attn_mask
            if m is not None and m.dim() == 4:
                m = m[:, i if m.size(1) > 1 else 0]
            parts.append(head(query, key, value, attn_mask=m))
        return self.proj(torch.cat(parts, -1))


# --- one Linear for each of Q, K, V and the output ------------------------------------------------


@correct(notes=NAN)
class Textbook(nn.Module):
    def __init__(self, d_model, num_heads, dropout=0.0):
        super().__init__()
        if d_model % num_heads != 0:
            raise ValueError("d_model must be a multiple of num_heads")
        self.d_model = d_model
        self.num_heads = num_heads
        self.d_k = d_model // num_heads
        self.W_q = nn.Linear(d_model, d_model)
        self.W_k = nn.Linear(d_model, d_model)
        self.W_v = nn.Linear(d_model, d_model)
        self.W_o = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def split_heads(self, x):
        batch, length, _ = x.shape
        return x.view(batch, length, self.num_heads, self.d_k).transpose(1, 2)

    def combine_heads(self, x):
        batch, _, length, _ = x.shape
        return x.transpose(1, 2).contiguous().view(batch, length, self.d_model)

    def attend(self, Q, K, V, mask=None):
        scores = torch.matmul(Q, K.transpose(-2, -1)) / math.sqrt(self.d_k)
        if mask is not None:
            scores = scores.masked_fill(mask == 0, float("-inf"))
        weights = self.dropout(torch.softmax(scores, dim=-1))
        return torch.matmul(weights, V)

    def forward(self, Q, K, V, mask=None):
        Q = self.split_heads(self.W_q(Q))
        K = self.split_heads(self.W_k(K))
        V = self.split_heads(self.W_v(V))
        return self.W_o(self.combine_heads(self.attend(Q, K, V, mask)))


def clones(layer, count):
    """``count`` fresh copies of a layer."""
    import copy

    return nn.ModuleList(copy.deepcopy(layer) for _ in range(count))


@correct(notes=EVEN)
class FourClones(nn.Module):
    """A list of four cloned Linears; the mask is (B, T, S), the head axis is added here."""

    def __init__(self, h, d_model, dropout=0.1):
        super().__init__()
        self.h, self.d_k = h, d_model // h
        self.linears = clones(nn.Linear(d_model, d_model), 4)
        self.attn = None
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, key, value, mask=None):
        n = query.size(0)
        if mask is not None:
            mask = mask.unsqueeze(1)
        q, k, v = (
            f(x).view(n, -1, self.h, self.d_k).transpose(1, 2)
            for f, x in zip(self.linears[:3], (query, key, value), strict=True)
        )
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.d_k)
        if mask is not None:
            scores = scores.masked_fill(mask == 0, torch.finfo(scores.dtype).min)
        self.attn = scores.softmax(dim=-1)
        x = self.dropout(self.attn) @ v
        return self.linears[-1](x.transpose(1, 2).reshape(n, -1, self.h * self.d_k))


@correct(notes=NAN)
class NoBiases(nn.Module):
    def __init__(self, dim, heads, dropout=0.0):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(dim, dim, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)
        self.drop = dropout

    def forward(self, q, k, v, mask=None):
        b, t, e = q.shape
        s = k.shape[1]
        d = e // self.heads
        q = self.to_q(q).reshape(b, t, self.heads, d).permute(0, 2, 1, 3)
        k = self.to_k(k).reshape(b, s, self.heads, d).permute(0, 2, 3, 1)  # (b, h, d, s)
        v = self.to_v(v).reshape(b, s, self.heads, d).permute(0, 2, 1, 3)
        dots = (q @ k) * d**-0.5
        if mask is not None:
            dots = torch.where(mask, dots, -torch.inf)
        attn = F.dropout(dots.softmax(-1), self.drop, self.training)
        return self.to_out((attn @ v).permute(0, 2, 1, 3).reshape(b, t, e))


@correct(notes=NAN)
class KeysWithoutBias(nn.Module):
    """A bias of the keys shifts a whole row of scores, which softmax undoes: so there is none."""

    def __init__(self, n_state: int, n_head: int):
        super().__init__()
        self.n_head = n_head
        self.query = nn.Linear(n_state, n_state)
        self.key = nn.Linear(n_state, n_state, bias=False)
        self.value = nn.Linear(n_state, n_state)
        self.out = nn.Linear(n_state, n_state)

    def forward(self, x: Tensor, xa: Tensor | None = None, mask: Tensor | None = None):
        source = x if xa is None else xa
        heads = [
            y.unflatten(-1, (self.n_head, -1)).transpose(1, 2)
            for y in (self.query(x), self.key(source), self.value(source))
        ]
        q, k, v = heads
        w = q @ k.mT / q.size(-1) ** 0.5
        if mask is not None:
            w = w.masked_fill(~mask, -math.inf)
        return self.out((w.softmax(-1) @ v).transpose(1, 2).flatten(-2))


@correct(notes=NAN)
class RootOfRoot(nn.Module):
    """Half of the scale goes to each side, so that the product stays small in half precision."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.H = num_heads
        self.linear_q = nn.Linear(embed_dim, embed_dim)
        self.linear_k = nn.Linear(embed_dim, embed_dim)
        self.linear_v = nn.Linear(embed_dim, embed_dim)
        self.linear_out = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, key, value, mask=None):
        B, T, E = query.shape
        S, D = key.shape[1], E // self.H
        share = math.sqrt(math.sqrt(D))
        q = self.linear_q(query).view(B, T, self.H, D).transpose(1, 2) / share
        k = self.linear_k(key).view(B, S, self.H, D).transpose(1, 2) / share
        v = self.linear_v(value).view(B, S, self.H, D).transpose(1, 2)
        scores = torch.einsum("bhtd,bhsd->bhts", q, k)
        if mask is not None:
            scores = scores.masked_fill(mask.logical_not(), float("-inf"))
        out = self.dropout(scores.softmax(dim=3)).matmul(v)
        return self.linear_out(out.transpose(1, 2).reshape(B, T, E))


@correct(notes=EVEN)
class SoftmaxInFloat32(nn.Module):
    """The softmax is taken in float32 and cast back, for inputs of a half type."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, embed_dim // num_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.o_proj = nn.Linear(embed_dim, embed_dim)
        self.p = dropout

    def _shape(self, t):
        return t.view(*t.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)

    def forward(self, query, key, value, mask=None):
        q = self._shape(self.q_proj(query))
        k = self._shape(self.k_proj(key))
        v = self._shape(self.v_proj(value))
        logits = torch.matmul(q, k.transpose(2, 3)) * self.head_dim**-0.5
        if mask is not None:
            logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
        wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
        probs = F.softmax(logits, dim=-1, dtype=wide).to(q.dtype)
        probs = F.dropout(probs, p=self.p, training=self.training)
        return self.o_proj((probs @ v).transpose(1, 2).flatten(2))


@correct(notes=NAN)
class OwnSoftmax(nn.Module):
    """exp and sum by hand, the largest score taken off first."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(embed_dim, embed_dim) for _ in range(4))
        self.dropout = nn.Dropout(dropout)

    @staticmethod
    def softmax(x):
        shifted = torch.exp(x - x.max(dim=-1, keepdim=True).values)
        return shifted / shifted.sum(dim=-1, keepdim=True)

    def forward(self, q, k, v, mask=None):
        q, k, v = self.wq(q), self.wk(k), self.wv(v)
        q, k, v = (torch.stack(x.chunk(self.num_heads, dim=-1), dim=1) for x in (q, k, v))
        energy = q @ k.transpose(-1, -2) / np.sqrt(q.shape[-1])
        if mask is not None:
            energy = energy.masked_fill(mask == 0, float("-inf"))
        context = self.dropout(self.softmax(energy)) @ v  # (B, H, T, D)
        return self.wo(torch.cat(list(context.unbind(1)), dim=-1))


@correct(notes=NAN)
class LogWeights(nn.Module):
    """Weights as exp(score - logsumexp)."""

    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.maps = nn.ModuleDict({name: nn.Linear(d_model, d_model) for name in "qkvo"})

    def forward(self, query, key, value, mask=None):
        def heads(name, x):
            return self.maps[name](x).unflatten(2, (self.n_heads, -1)).movedim(2, 1)

        q, k, v = heads("q", query), heads("k", key), heads("v", value)
        s = (q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1)
        if mask is not None:
            s = s.masked_fill(~mask, -torch.inf)
        w = (s - s.logsumexp(dim=-1, keepdim=True)).exp()
        return self.maps["o"]((w @ v).movedim(1, 2).flatten(2))


@correct()
class FusedInside(nn.Module):
    """torch's fused function does the attention; a row without keys is zero there."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.n = num_heads
        self.dropout = dropout
        self.q = nn.Linear(embed_dim, embed_dim)
        self.k = nn.Linear(embed_dim, embed_dim)
        self.v = nn.Linear(embed_dim, embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, query, key=None, value=None, attn_mask=None, is_causal=False):
        key = query if key is None else key
        value = key if value is None else value
        q, k, v = (
            layer(x).unflatten(-1, (self.n, -1)).transpose(1, 2)
            for layer, x in ((self.q, query), (self.k, key), (self.v, value))
        )
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=attn_mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=is_causal,
        )
        return self.proj(out.transpose(1, 2).flatten(2))


# --- other layouts of the heads and the weights ---------------------------------------------------


@correct(notes=NAN)
class SummedHeads(nn.Module):
    """Each head has an output map of its own, and the results are added: W_O cut into strips."""

    def __init__(self, embed_dim, num_heads):
        super().__init__()
        d = embed_dim // num_heads
        self.q_maps = nn.ModuleList(nn.Linear(embed_dim, d) for _ in range(num_heads))
        self.k_maps = nn.ModuleList(nn.Linear(embed_dim, d) for _ in range(num_heads))
        self.v_maps = nn.ModuleList(nn.Linear(embed_dim, d) for _ in range(num_heads))
        self.o_maps = nn.ModuleList(nn.Linear(d, embed_dim, bias=False) for _ in range(num_heads))
        self.bias = nn.Parameter(torch.zeros(embed_dim))

    def forward(self, query, key, value, mask=None):
        if mask is not None and mask.dim() == 4:
            mask = mask[:, 0]
        total = self.bias
        for q_map, k_map, v_map, o_map in zip(
            self.q_maps, self.k_maps, self.v_maps, self.o_maps, strict=True
        ):
            q, k, v = q_map(query), k_map(key), v_map(value)
            scores = q @ k.transpose(1, 2) / math.sqrt(q.size(-1))
            if mask is not None:
                scores = scores.masked_fill(~mask, float("-inf"))
            total = total + o_map(scores.softmax(-1) @ v)
        return total


@correct(notes=(*NAN, "split-dim-major", "merge-dim-major"))
class Interleaved(nn.Module):
    """Feature f belongs to head f % H: "b t (d h) -> b h t d", and back in the same way."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.heads = num_heads
        self.query = nn.Linear(embed_dim, embed_dim)
        self.key = nn.Linear(embed_dim, embed_dim)
        self.value = nn.Linear(embed_dim, embed_dim)
        self.out = nn.Linear(embed_dim, embed_dim)
        self.att_drop = nn.Dropout(dropout)

    def rearrange(self, x):
        b, n, e = x.shape
        return x.reshape(b, n, e // self.heads, self.heads).permute(0, 3, 1, 2)

    def forward(self, query, key, value, mask=None):
        q = self.rearrange(self.query(query))
        k = self.rearrange(self.key(key))
        v = self.rearrange(self.value(value))
        energy = torch.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5
        if mask is not None:
            energy = energy.masked_fill(~mask, float("-inf"))
        att = self.att_drop(F.softmax(energy, dim=-1))
        out = torch.einsum("bhal,bhlv->bhav", att, v)
        return self.out(out.permute(0, 2, 3, 1).flatten(2))  # (b, t, d, h) -> (b, t, d*h)


@correct(notes=NAN)
class PackedWeights(nn.Module):
    """The three maps in one parameter, one after another."""

    def __init__(self, embed_dim, num_heads, dropout=0.0, bias=True):
        super().__init__()
        self.embed_dim, self.num_heads, self.dropout = embed_dim, num_heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dim)) if bias else None
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, query, key, value, mask=None):
        weights = self.in_proj_weight.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = map(F.linear, (query, key, value), weights, biases)
        B, T, E = q.shape
        S = k.shape[1]
        shape = (self.num_heads, E // self.num_heads)
        q = q.view(B, T, *shape).transpose(1, 2)
        k = k.view(B, S, *shape).transpose(1, 2)
        v = v.view(B, S, *shape).transpose(1, 2)
        a = q @ k.transpose(-2, -1) / math.sqrt(shape[1])
        if mask is not None:
            a = a.masked_fill(mask == 0, float("-inf"))
        a = F.dropout(a.softmax(-1), self.dropout, self.training)
        return self.out_proj((a @ v).transpose(1, 2).reshape(B, T, E))


@correct(notes=NAN)
class PackedPerHead(nn.Module):
    """One Linear for all three; its features are (head, q or k or v, width), head by head."""

    def __init__(self, hidden_size, num_attention_heads, attention_dropout=0.0):
        super().__init__()
        self.num_heads = num_attention_heads
        self.head_size = hidden_size // num_attention_heads
        self.query_key_value = nn.Linear(hidden_size, 3 * hidden_size)
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(attention_dropout)

    def forward(self, x, mask=None):
        qkv = self.query_key_value(x)
        qkv = qkv.view(*x.shape[:2], self.num_heads, 3 * self.head_size).transpose(1, 2)
        q, k, v = qkv.split(self.head_size, dim=-1)  # each (B, H, T, D)
        scores = (q @ k.transpose(-1, -2)) / self.head_size**0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        out = self.dropout(scores.softmax(-1)) @ v
        return self.dense(out.transpose(1, 2).flatten(2))


@correct(notes=NAN)
class EinsumHeads(nn.Module):
    """Every map is a parameter with an axis for the heads, and no axis is ever reshaped."""

    def __init__(self, embed_dim, num_heads, head_dim=None):
        super().__init__()
        D = head_dim or embed_dim // num_heads
        bound = embed_dim**-0.5
        self.wq = nn.Parameter(torch.empty(num_heads, embed_dim, D).uniform_(-bound, bound))
        self.wk = nn.Parameter(torch.empty(num_heads, embed_dim, D).uniform_(-bound, bound))
        self.wv = nn.Parameter(torch.empty(num_heads, embed_dim, D).uniform_(-bound, bound))
        self.wo = nn.Parameter(torch.empty(num_heads, D, embed_dim).uniform_(-bound, bound))

    def forward(self, query, key, value, mask=None):
        q = torch.einsum("bte,hed->bhtd", query, self.wq)
        k = torch.einsum("bse,hed->bhsd", key, self.wk)
        v = torch.einsum("bse,hed->bhsd", value, self.wv)
        logits = torch.einsum("bhtd,bhsd->bhts", q, k) * q.shape[-1] ** -0.5
        if mask is not None:
            logits = torch.where(mask, logits, float("-inf"))
        weights = torch.softmax(logits, -1)
        return torch.einsum("bhts,bhsd,hde->bte", weights, v, self.wo)


class Head(nn.Module):
    """One head, as wide as told."""

    def __init__(self, n_embd, head_size, dropout):
        super().__init__()
        self.key = nn.Linear(n_embd, head_size, bias=False)
        self.query = nn.Linear(n_embd, head_size, bias=False)
        self.value = nn.Linear(n_embd, head_size, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, q, k, v, mask=None):
        q, k, v = self.query(q), self.key(k), self.value(v)
        wei = q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5
        if mask is not None:
            wei = wei.masked_fill(mask == 0, float("-inf"))
        return self.dropout(F.softmax(wei, dim=-1)) @ v


@correct(notes=NAN)
class ListOfHeads(nn.Module):
    def __init__(self, n_embd, num_heads, dropout=0.0):
        super().__init__()
        size = n_embd // num_heads
        self.heads = nn.ModuleList([Head(n_embd, size, dropout) for _ in range(num_heads)])
        self.proj = nn.Linear(n_embd, n_embd)

    def forward(self, q, k, v, mask=None):
        if mask is not None and mask.ndim == 4:
            mask = mask.squeeze(1)
        return self.proj(torch.cat([h(q, k, v, mask) for h in self.heads], dim=-1))


@correct(notes=NAN)
class SequenceFirst(nn.Module):
    """(T, B, E) in and out; batch and heads are folded into one axis inside."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.head_dim = embed_dim // num_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        self.dropout = dropout

    def forward(self, query, key, value, attn_mask=None):
        """query (T, B, E), key and value (S, B, E); attn_mask (T, S) or (B*H, T, S), True = keep."""
        T, B, E = query.size()
        S = key.size(0)
        q = self.q_proj(query) * self.head_dim**-0.5
        q = q.contiguous().view(T, B * self.num_heads, self.head_dim).transpose(0, 1)
        k = self.k_proj(key).contiguous().view(S, B * self.num_heads, self.head_dim).transpose(0, 1)
        v = self.v_proj(value).contiguous().view(S, B * self.num_heads, -1).transpose(0, 1)
        weights = torch.bmm(q, k.transpose(1, 2))
        if attn_mask is not None:
            weights = weights.masked_fill(~attn_mask, float("-inf"))
        weights = F.dropout(F.softmax(weights, -1), p=self.dropout, training=self.training)
        out = torch.bmm(weights, v).transpose(0, 1).contiguous().view(T, B, E)
        return self.out_proj(out)


@correct(notes=EVEN)
class Baddbmm(nn.Module):
    """Scale, product and mask by one call of baddbmm."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(embed_dim, embed_dim)
        self.to_k = nn.Linear(embed_dim, embed_dim)
        self.to_v = nn.Linear(embed_dim, embed_dim)
        self.to_out = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def fold(self, x):
        b, n, e = x.shape
        x = x.reshape(b, n, self.num_heads, e // self.num_heads).transpose(1, 2)
        return x.reshape(b * self.num_heads, n, e // self.num_heads)

    def unfold(self, x):
        x = x.reshape(-1, self.num_heads, *x.shape[1:])
        return x.transpose(1, 2).flatten(2)

    def forward(self, query, key, value, mask=None):
        q = self.fold(self.to_q(query))
        k = self.fold(self.to_k(key))
        v = self.fold(self.to_v(value))
        bias = torch.zeros(len(q), q.size(1), k.size(1), dtype=q.dtype, device=q.device)
        if mask is not None:
            full = mask.expand(query.size(0), self.num_heads, q.size(1), k.size(1))
            bias = bias.masked_fill(~full.flatten(0, 1), torch.finfo(q.dtype).min / 2)
        scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=q.size(-1) ** -0.5)
        return self.to_out(self.unfold(torch.bmm(self.dropout(scores.softmax(-1)), v)))


class Conv1D(nn.Module):
    """A Linear whose weight is (in, out)."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_in, n_out) * 0.2)
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x):
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).view(*x.shape[:-1], -1)


@correct(notes=EVEN)
class OfConv1D(nn.Module):
    """Causal self-attention with c_attn and c_proj of shape (in, out), and a mask buffer."""

    def __init__(self, n_embd, n_head, dropout=0.0, n_positions=64):
        super().__init__()
        self.n_head, self.n_embd = n_head, n_embd
        self.c_attn = Conv1D(n_embd, 3 * n_embd)
        self.c_proj = Conv1D(n_embd, n_embd)
        self.attn_dropout = nn.Dropout(dropout)
        tril = torch.tril(torch.ones(n_positions, n_positions, dtype=torch.bool))
        self.register_buffer("bias", tril[None, None], persistent=False)

    def forward(self, x, attention_mask=None):
        B, T, _ = x.shape
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        q, k, v = (y.view(B, T, self.n_head, -1).permute(0, 2, 1, 3) for y in (q, k, v))
        w = q @ k.transpose(-1, -2) / v.size(-1) ** 0.5
        keep = self.bias[:, :, :T, :T]
        if attention_mask is not None:
            keep = keep & attention_mask.bool()
        w = torch.where(keep, w, torch.finfo(w.dtype).min)
        w = self.attn_dropout(w.softmax(dim=-1))
        return self.c_proj((w @ v).permute(0, 2, 1, 3).reshape(B, T, -1))


@correct(notes=NAN)
class BareParameters(nn.Module):
    """No Linear anywhere: parameters (in, out), and @."""

    def __init__(self, embed_dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        for name in ("W_Q", "W_K", "W_V", "W_O"):
            w = torch.randn(embed_dim, embed_dim) / math.sqrt(embed_dim)
            setattr(self, name, nn.Parameter(w))
        for name in ("b_Q", "b_K", "b_V", "b_O"):
            setattr(self, name, nn.Parameter(torch.zeros(embed_dim)))

    def forward(self, Q, K, V, mask=None):
        Q = Q @ self.W_Q + self.b_Q
        K = K @ self.W_K + self.b_K
        V = V @ self.W_V + self.b_V
        D = Q.shape[-1] // self.num_heads
        heads = []
        for h in range(self.num_heads):
            part = slice(h * D, (h + 1) * D)
            A = Q[..., part] @ K[..., part].transpose(-2, -1) / D**0.5
            if mask is not None:
                m = mask if mask.dim() < 4 else mask[:, min(h, mask.shape[1] - 1)]
                A = A.masked_fill(~m, float("-inf"))
            heads.append(torch.softmax(A, -1) @ V[..., part])
        return torch.cat(heads, -1) @ self.W_O + self.b_O


@correct(notes=NAN)
class Pointwise(nn.Module):
    """The maps are convolutions of width one, over (B, E, T)."""

    def __init__(self, channels, n_heads, p_dropout=0.0):
        super().__init__()
        self.n_heads, self.k_channels = n_heads, channels // n_heads
        self.conv_q = nn.Conv1d(channels, channels, 1)
        self.conv_k = nn.Conv1d(channels, channels, 1)
        self.conv_v = nn.Conv1d(channels, channels, 1)
        self.conv_o = nn.Conv1d(channels, channels, 1)
        self.drop = nn.Dropout(p_dropout)

    def forward(self, x, c, mask=None):
        """x (B, T, E) asks, c (B, S, E) answers."""
        q = self.conv_q(x.mT)  # (B, E, T)
        k, v = self.conv_k(c.mT), self.conv_v(c.mT)
        q, k, v = (y.unflatten(1, (self.n_heads, self.k_channels)) for y in (q, k, v))
        scores = q.transpose(2, 3) @ k / math.sqrt(self.k_channels)  # (B, H, T, S)
        if mask is not None:
            scores = scores.masked_fill(mask == 0, -torch.inf)
        out = v @ self.drop(scores.softmax(-1)).transpose(2, 3)  # (B, H, D, T)
        return self.conv_o(out.flatten(1, 2)).mT


@correct(notes=EVEN)
class FoldedByCat(nn.Module):
    """Heads are laid behind one another along the batch: (H*B, T, D)."""

    def __init__(self, num_units, num_heads, dropout_rate=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.Q_proj = nn.Linear(num_units, num_units)
        self.K_proj = nn.Linear(num_units, num_units)
        self.V_proj = nn.Linear(num_units, num_units)
        self.O_proj = nn.Linear(num_units, num_units)
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, queries, keys, values, mask=None):
        Q, K, V = self.Q_proj(queries), self.K_proj(keys), self.V_proj(values)
        Q_, K_, V_ = (torch.cat(x.chunk(self.num_heads, dim=2), dim=0) for x in (Q, K, V))
        out = torch.bmm(Q_, K_.transpose(1, 2)) / K_.size(-1) ** 0.5  # (H*B, T, S)
        if mask is not None:
            if mask.dim() == 4:
                mask = mask[:, 0]
            if mask.dim() == 3 and mask.size(0) > 1:
                mask = mask.repeat(self.num_heads, 1, 1)
            out = out.masked_fill(~mask, torch.finfo(out.dtype).min)
        out = torch.bmm(self.dropout(out.softmax(-1)), V_)
        return self.O_proj(torch.cat(out.chunk(self.num_heads, dim=0), dim=2))


@correct(notes=NAN)
class HeadsByVmap(nn.Module):
    """One head is written as a function, and vmap runs it for every example and head."""

    def __init__(self, embed_dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.wq = nn.Linear(embed_dim, embed_dim)
        self.wk = nn.Linear(embed_dim, embed_dim)
        self.wv = nn.Linear(embed_dim, embed_dim)
        self.wo = nn.Linear(embed_dim, embed_dim)

    @staticmethod
    def one_head(q, k, v, keep):
        s = q @ k.T / q.shape[-1] ** 0.5
        return s.masked_fill(~keep, float("-inf")).softmax(-1) @ v

    def forward(self, query, key, value, mask=None):
        q, k, v = (
            w(x).unflatten(-1, (self.num_heads, -1))
            for w, x in ((self.wq, query), (self.wk, key), (self.wv, value))
        )  # (B, T, H, D)
        if mask is None:
            mask = torch.ones((), dtype=torch.bool, device=q.device)
        keep = mask.expand(len(q), self.num_heads, q.shape[1], k.shape[1])
        over_heads = torch.vmap(self.one_head, in_dims=(1, 1, 1, 0), out_dims=1)
        out = torch.vmap(over_heads)(q, k, v, keep)  # (B, T, H, D)
        return self.wo(out.flatten(2))


@correct(notes=NAN)
class Loops(nn.Module):
    """Nothing but loops over batch, heads and queries."""

    def __init__(self, embed_dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(embed_dim, embed_dim)
        self.key = nn.Linear(embed_dim, embed_dim)
        self.value = nn.Linear(embed_dim, embed_dim)
        self.output = nn.Linear(embed_dim, embed_dim)

    def forward(self, q, k, v, mask=None):
        q, k, v = self.query(q), self.key(k), self.value(v)
        B, T, E = q.shape
        width = E // self.num_heads
        if mask is not None:
            mask = mask.expand(B, self.num_heads, T, k.shape[1])
        examples = []
        for b in range(B):
            rows = []
            for t in range(T):
                joined = []
                for h in range(self.num_heads):
                    cols = slice(h * width, (h + 1) * width)
                    score = (k[b, :, cols] * q[b, t, cols]).sum(-1) / width**0.5  # (S,)
                    if mask is not None:
                        score = score.masked_fill(~mask[b, h, t], float("-inf"))
                    w = torch.softmax(score, 0)
                    joined.append((w[:, None] * v[b, :, cols]).sum(0))
                rows.append(torch.cat(joined))
            examples.append(torch.stack(rows))
        return self.output(torch.stack(examples))


@correct(notes=NAN)
class QueriesInChunks(nn.Module):
    """Two queries at a time, so that no full table of scores ever stands in memory."""

    def __init__(self, dim, heads, chunk=2):
        super().__init__()
        self.heads, self.chunk = heads, chunk
        self.q, self.kv = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.o = nn.Linear(dim, dim)

    def forward(self, x, memory=None, mask=None):
        memory = x if memory is None else memory
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(memory).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if mask is not None:
            mask = mask.expand(*q.shape[:3], k.shape[2])
        outputs = []
        for start in range(0, q.shape[2], self.chunk):
            rows = slice(start, start + self.chunk)
            s = q[:, :, rows] @ k.mT / q.shape[-1] ** 0.5
            if mask is not None:
                s = s.masked_fill(~mask[:, :, rows], -torch.inf)
            outputs.append(s.softmax(-1) @ v)
        return self.o(torch.cat(outputs, 2).transpose(1, 2).flatten(2))


# --- configurations, unusual constructors ---------------------------------------------------------


@dataclass
class GPTConfig:
    block_size: int = 32
    n_head: int = 3
    n_embd: int = 12
    dropout: float = 0.0
    bias: bool = True


@correct()
class CausalSelfAttention(nn.Module):
    """Made from a config; always causal."""

    def __init__(self, config):
        super().__init__()
        assert config.n_embd % config.n_head == 0
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.attn_dropout = nn.Dropout(config.dropout)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.n_head, self.n_embd = config.n_head, config.n_embd
        tril = torch.ones(config.block_size, config.block_size).tril()
        self.register_buffer("mask", tril.view(1, 1, config.block_size, config.block_size))

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, nh, T, hs)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, nh, T, hs)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, nh, T, hs)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.mask[:, :, :T, :T] == 0, float("-inf"))
        y = self.attn_dropout(att.softmax(dim=-1)) @ v
        y = y.transpose(1, 2).contiguous().view(B, T, C)
        return self.resid_dropout(self.c_proj(y))


correct()(CausalSelfAttention(GPTConfig()))


@correct(notes=EVEN)
class EncoderSelfAttention(nn.Module):
    """Made from a config; the mask is added to the scores, the result is a tuple."""

    def __init__(self, config):
        super().__init__()
        self.num_attention_heads = config.num_attention_heads
        self.attention_head_size = config.hidden_size // config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(getattr(config, "attention_probs_dropout_prob", 0.0))

    def transpose_for_scores(self, x):
        shape = (*x.size()[:-1], self.num_attention_heads, self.attention_head_size)
        return x.view(shape).permute(0, 2, 1, 3)

    def forward(self, hidden_states, attention_mask=None, output_attentions=False):
        """attention_mask: 0 where a key may be seen and a huge negative number where not."""
        q = self.transpose_for_scores(self.query(hidden_states))
        k = self.transpose_for_scores(self.key(hidden_states))
        v = self.transpose_for_scores(self.value(hidden_states))
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(self.attention_head_size)
        if attention_mask is not None:
            scores = scores + attention_mask
        probs = nn.functional.softmax(scores, dim=-1)
        context = torch.matmul(self.dropout(probs), v).permute(0, 2, 1, 3)
        context = self.dense(context.reshape(hidden_states.shape))
        return (context, probs) if output_attentions else (context,)


@correct(notes=NAN)
class WithContextLength(nn.Module):
    """(d_in, d_out, context_length, dropout, num_heads): causal self-attention."""

    def __init__(self, d_in, d_out, context_length, dropout, num_heads, qkv_bias=False):
        super().__init__()
        assert d_out % num_heads == 0, "d_out must be divisible by num_heads"
        self.d_out, self.num_heads, self.head_dim = d_out, num_heads, d_out // num_heads
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)
        above = torch.triu(torch.ones(context_length, context_length), diagonal=1)
        self.register_buffer("mask", above)

    def forward(self, x):
        b, num_tokens, _ = x.shape
        keys = self.W_key(x).view(b, num_tokens, self.num_heads, self.head_dim)
        queries = self.W_query(x).view(b, num_tokens, self.num_heads, self.head_dim)
        values = self.W_value(x).view(b, num_tokens, self.num_heads, self.head_dim)
        keys, queries, values = (
            keys.transpose(1, 2),
            queries.transpose(1, 2),
            values.transpose(1, 2),
        )
        scores = queries @ keys.transpose(2, 3)
        blocked = self.mask.bool()[:num_tokens, :num_tokens]
        scores = scores.masked_fill(blocked, -torch.inf)
        weights = self.dropout(torch.softmax(scores / keys.shape[-1] ** 0.5, dim=-1))
        context = (weights @ values).transpose(1, 2)
        return self.out_proj(context.contiguous().view(b, num_tokens, self.d_out))


@correct(notes=NAN)
class WithContextDim(nn.Module):
    """(query_dim, context_dim, heads, dim_head): the heads need not be as wide as the model."""

    def __init__(self, query_dim, context_dim=None, heads=3, dim_head=4, dropout=0.0):
        super().__init__()
        inner_dim = dim_head * heads
        context_dim = query_dim if context_dim is None else context_dim
        self.scale = dim_head**-0.5
        self.heads = heads
        self.to_q = nn.Linear(query_dim, inner_dim, bias=False)
        self.to_k = nn.Linear(context_dim, inner_dim, bias=False)
        self.to_v = nn.Linear(context_dim, inner_dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner_dim, query_dim), nn.Dropout(dropout))

    def forward(self, x, context=None, mask=None):
        context = x if context is None else context
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2).flatten(0, 1)
            for y in (self.to_q(x), self.to_k(context), self.to_v(context))
        )  # (B*H, T, D)
        sim = torch.einsum("b i d, b j d -> b i j", q, k) * self.scale
        if mask is not None:
            mask = mask.expand(len(x), self.heads, *sim.shape[1:]).flatten(0, 1)
            sim = sim.masked_fill(~mask, -torch.inf)
        out = torch.einsum("b i j, b j d -> b i d", sim.softmax(dim=-1), v)
        out = out.unflatten(0, (-1, self.heads)).transpose(1, 2).flatten(2)
        return self.to_out(out)


correct(notes=NAN)(WithContextDim(12, heads=2, dim_head=5))


@correct()
class PatchAttention(nn.Module):
    """As in vision transformers: x alone, no mask, one packed Linear."""

    def __init__(self, dim, num_heads=8, qkv_bias=False, attn_drop=0.0, proj_drop=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x):
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attn = self.attn_drop(((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1))
        return self.proj_drop(self.proj((attn @ v).transpose(1, 2).reshape(B, N, C)))


@correct(notes=NAN)
class HeadDimFree(nn.Module):
    """head_dim is given apart, and W_O maps the H * D features back to E."""

    def __init__(self, embed_dim, num_heads, head_dim=7, dropout=0.0):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        self.q_proj = nn.Linear(embed_dim, num_heads * head_dim)
        self.k_proj = nn.Linear(embed_dim, num_heads * head_dim)
        self.v_proj = nn.Linear(embed_dim, num_heads * head_dim)
        self.o_proj = nn.Linear(num_heads * head_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, key, value, mask=None):
        def heads(x):
            return x.view(x.shape[0], x.shape[1], self.num_heads, self.head_dim).transpose(1, 2)

        q, k, v = heads(self.q_proj(query)), heads(self.k_proj(key)), heads(self.v_proj(value))
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        out = self.dropout(scores.softmax(-1)) @ v
        return self.o_proj(out.transpose(1, 2).reshape(*query.shape[:2], -1))


# --- fewer key heads ------------------------------------------------------------------------------


@correct(notes=NAN)
class GroupedQueries(nn.Module):
    def __init__(self, embed_dim, num_heads, num_kv_heads=None, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads or num_heads
        self.head_dim = embed_dim // num_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(embed_dim, self.num_kv_heads * self.head_dim)
        self.v_proj = nn.Linear(embed_dim, self.num_kv_heads * self.head_dim)
        self.o_proj = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, key, value, mask=None):
        q = self.q_proj(query).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k = self.k_proj(key).unflatten(-1, (self.num_kv_heads, -1)).transpose(1, 2)
        v = self.v_proj(value).unflatten(-1, (self.num_kv_heads, -1)).transpose(1, 2)
        group = self.num_heads // self.num_kv_heads
        k = k.repeat_interleave(group, dim=1)  # (B, H, S, D)
        v = v.repeat_interleave(group, dim=1)
        scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        weights = self.dropout(torch.softmax(scores, dim=-1))
        return self.o_proj((weights @ v).transpose(1, 2).flatten(2))


correct(notes=NAN)(GroupedQueries(16, 4, num_kv_heads=2))


@correct(notes=NAN)
class GroupsByExpand(nn.Module):
    """Grouped queries by expand and reshape; two query heads to a key head wherever that divides."""

    def __init__(self, d_model, n_heads, n_kv_heads=None):
        super().__init__()
        self.n_heads = n_heads
        self.n_kv_heads = n_kv_heads or (n_heads // 2 if n_heads % 2 == 0 else n_heads)
        self.n_rep = self.n_heads // self.n_kv_heads
        self.head_dim = d_model // n_heads
        self.wq = nn.Linear(d_model, d_model, bias=False)
        self.wk = nn.Linear(d_model, self.n_kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(d_model, self.n_kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(d_model, d_model, bias=False)

    def repeat_kv(self, x):
        b, s, n, d = x.shape
        return x[:, :, :, None].expand(b, s, n, self.n_rep, d).reshape(b, s, n * self.n_rep, d)

    def forward(self, x, mask=None):
        b, t, _ = x.shape
        xq = self.wq(x).view(b, t, self.n_heads, self.head_dim)
        xk = self.repeat_kv(self.wk(x).view(b, t, self.n_kv_heads, self.head_dim))
        xv = self.repeat_kv(self.wv(x).view(b, t, self.n_kv_heads, self.head_dim))
        xq, xk, xv = xq.transpose(1, 2), xk.transpose(1, 2), xv.transpose(1, 2)
        scores = torch.matmul(xq, xk.transpose(2, 3)) / math.sqrt(self.head_dim)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        scores = F.softmax(scores.float(), dim=-1).type_as(xq)
        return self.wo(torch.matmul(scores, xv).transpose(1, 2).contiguous().view(b, t, -1))


@correct(notes=NAN)
class MultiQuery(nn.Module):
    """All heads read the same keys and values, one head wide."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, embed_dim // num_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.kv_proj = nn.Linear(embed_dim, 2 * self.head_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, memory=None, mask=None):
        memory = query if memory is None else memory
        q = self.q_proj(query).view(*query.shape[:2], self.num_heads, self.head_dim)
        k, v = self.kv_proj(memory).chunk(2, dim=-1)  # (B, S, D)
        scores = torch.einsum("bthd,bsd->bhts", q, k) / math.sqrt(self.head_dim)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        out = torch.einsum("bhts,bsd->bthd", self.dropout(scores.softmax(-1)), v)
        return self.out_proj(out.flatten(2))


# --- masks in other forms -------------------------------------------------------------------------


@correct(notes=NAN)
class BlockedByDocstring(nn.Module):
    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.w_q = nn.Linear(embed_dim, embed_dim)
        self.w_k = nn.Linear(embed_dim, embed_dim)
        self.w_v = nn.Linear(embed_dim, embed_dim)
        self.w_o = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, q, k, v, mask=None):
        """Attend.

        Args:
            q: (batch, queries, embed_dim)
            k, v: (batch, keys, embed_dim)
            mask: True marks a key that must not be attended to (it is blocked).
        """
        H = self.num_heads
        q, k, v = (x.unflatten(-1, (H, -1)).transpose(1, 2) for x in self.maps(q, k, v))
        s = q @ k.mT / math.sqrt(q.shape[-1])
        if mask is not None:
            s = s.masked_fill(mask, float("-inf"))
        return self.w_o((self.dropout(s.softmax(-1)) @ v).transpose(1, 2).flatten(2))

    def maps(self, q, k, v):
        return self.w_q(q), self.w_k(k), self.w_v(v)


@correct(notes=NAN)
class BlockedByName(BlockedByDocstring):
    def forward(self, q, k, v, blocked=None):
        H = self.num_heads
        q, k, v = (x.unflatten(-1, (H, -1)).transpose(1, 2) for x in self.maps(q, k, v))
        s = q @ k.mT / math.sqrt(q.shape[-1])
        if blocked is not None:
            s = s.masked_fill(blocked, float("-inf"))
        return self.w_o((self.dropout(s.softmax(-1)) @ v).transpose(1, 2).flatten(2))


@correct(notes=NAN)
class TorchMasks(nn.Module):
    """Both masks as torch means them: True is blocked; a padding mask is (B, S), True is padding."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, key, value, key_padding_mask=None, attn_mask=None, need_weights=False):
        """The masks are those of nn.MultiheadAttention."""
        B, T, E = query.shape
        S = key.shape[1]
        q = self.q_proj(query).view(B, T, self.num_heads, -1).transpose(1, 2)
        k = self.k_proj(key).view(B, S, self.num_heads, -1).transpose(1, 2)
        v = self.v_proj(value).view(B, S, self.num_heads, -1).transpose(1, 2)
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                scores = scores.masked_fill(attn_mask, -torch.inf)
            else:
                scores = scores + attn_mask
        if key_padding_mask is not None:
            scores = scores.masked_fill(key_padding_mask[:, None, None, :], -torch.inf)
        weights = scores.softmax(-1)
        out = self.out_proj((self.dropout(weights) @ v).transpose(1, 2).reshape(B, T, E))
        return (out, weights) if need_weights else out


@correct(notes=EVEN)
class TokenMask(nn.Module):
    """attention_mask (B, S) holds 1 for a token and 0 for padding, as tokenizers give it."""

    def __init__(self, dim, n_heads, dropout=0.0):
        super().__init__()
        self.n_heads = n_heads
        self.q_lin = nn.Linear(dim, dim)
        self.k_lin = nn.Linear(dim, dim)
        self.v_lin = nn.Linear(dim, dim)
        self.out_lin = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, attention_mask=None):
        q, k, v = self.q_lin(x), self.k_lin(x), self.v_lin(x)
        q, k, v = (y.unflatten(2, (self.n_heads, -1)).transpose(1, 2) for y in (q, k, v))
        scores = (q / math.sqrt(q.size(-1))) @ k.transpose(2, 3)
        if attention_mask is not None:
            padding = (attention_mask == 0)[:, None, None, :]  # (B, 1, 1, S)
            scores = scores.masked_fill(padding, torch.finfo(scores.dtype).min)
        out = self.dropout(scores.softmax(-1)) @ v
        return self.out_lin(out.transpose(1, 2).flatten(2))


@correct(notes=NAN)
class TwoMasks(nn.Module):
    """attn_mask (T, S) and key_mask (B, S), both True where a key may be seen."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.wq = nn.Linear(embed_dim, embed_dim)
        self.wk = nn.Linear(embed_dim, embed_dim)
        self.wv = nn.Linear(embed_dim, embed_dim)
        self.wo = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, key, value, attn_mask=None, key_mask=None):
        shape = query.size(0), -1, self.num_heads, query.size(2) // self.num_heads
        q = self.wq(query).view(shape).transpose(1, 2)
        k = self.wk(key).view(shape).transpose(1, 2)
        v = self.wv(value).view(shape).transpose(1, 2)
        keep = torch.ones(q.size(2), k.size(2), dtype=torch.bool, device=q.device)
        if attn_mask is not None:
            keep = keep & attn_mask
        if key_mask is not None:
            keep = keep & key_mask[:, None, None, :]
        scores = (q @ k.mT / math.sqrt(q.size(-1))).masked_fill(~keep, -torch.inf)
        return self.wo((self.dropout(scores.softmax(-1)) @ v).transpose(1, 2).flatten(2))


@correct(notes=EVEN)
class ValidLengths(nn.Module):
    """valid_lens (B,) or (B, T): how many keys each example, or each query, may see."""

    def __init__(self, num_hiddens, num_heads, dropout=0.0, bias=False):
        super().__init__()
        self.num_heads = num_heads
        self.W_q = nn.LazyLinear(num_hiddens, bias=bias)
        self.W_k = nn.LazyLinear(num_hiddens, bias=bias)
        self.W_v = nn.LazyLinear(num_hiddens, bias=bias)
        self.W_o = nn.LazyLinear(num_hiddens, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def transpose_qkv(self, x):
        x = x.reshape(x.shape[0], x.shape[1], self.num_heads, -1).permute(0, 2, 1, 3)
        return x.reshape(-1, x.shape[2], x.shape[3])

    def masked_softmax(self, x, valid_lens):
        if valid_lens is None:
            return x.softmax(-1)
        if valid_lens.dim() == 1:
            valid_lens = valid_lens[:, None]  # (B, 1)
        valid_lens = valid_lens.repeat_interleave(self.num_heads, dim=0)
        inside = torch.arange(x.shape[2], device=x.device) < valid_lens[..., None]
        return x.masked_fill(~inside, torch.finfo(x.dtype).min).softmax(-1)

    def forward(self, queries, keys, values, valid_lens=None):
        queries = self.transpose_qkv(self.W_q(queries))
        keys = self.transpose_qkv(self.W_k(keys))
        values = self.transpose_qkv(self.W_v(values))
        scores = torch.bmm(queries, keys.transpose(1, 2)) / math.sqrt(queries.shape[-1])
        out = torch.bmm(self.dropout(self.masked_softmax(scores, valid_lens)), values)
        out = out.reshape(-1, self.num_heads, out.shape[1], out.shape[2]).permute(0, 2, 1, 3)
        return self.W_o(out.reshape(out.shape[0], out.shape[1], -1))


@correct()
class DeadRowsZeroed(nn.Module):
    """Filled with the smallest number; the rows that may see nothing are set to zero afterwards."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.fc_q = nn.Linear(embed_dim, embed_dim)
        self.fc_k = nn.Linear(embed_dim, embed_dim)
        self.fc_v = nn.Linear(embed_dim, embed_dim)
        self.fc_o = nn.Linear(embed_dim, embed_dim)

    def forward(self, query, key, value, mask=None):
        q, k, v = self.fc_q(query), self.fc_k(key), self.fc_v(value)
        q, k, v = (x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2) for x in (q, k, v))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1)
        if mask is not None:
            weights = weights * mask.any(dim=-1, keepdim=True)
        weights = F.dropout(weights, self.dropout, self.training)
        return self.fc_o((weights @ v).transpose(1, 2).flatten(2))


@correct(notes=NAN)
class AddedMask(nn.Module):
    """attn_mask holds 0 and -inf, and is added; nothing else is taken."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = nn.Linear(embed_dim, embed_dim)
        self.k_linear = nn.Linear(embed_dim, embed_dim)
        self.v_linear = nn.Linear(embed_dim, embed_dim)
        self.out = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query, key, value, attn_mask=None):
        if attn_mask is not None and not attn_mask.is_floating_point():
            raise TypeError("attn_mask must be a float mask: 0 to keep, -inf to drop")
        q = self.q_linear(query).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        k = self.k_linear(key).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        v = self.v_linear(value).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        scores = q @ k.mT * q.shape[-1] ** -0.5
        if attn_mask is not None:
            scores = scores + attn_mask.to(scores.dtype)
        return self.out((self.dropout(scores.softmax(-1)) @ v).transpose(1, 2).flatten(2))


@correct(notes=NAN)
class CausalFlag(nn.Module):
    def __init__(self, embed_dim, num_heads, dropout=0.0, causal=False):
        super().__init__()
        self.num_heads, self.causal = num_heads, causal
        self.q = nn.Linear(embed_dim, embed_dim)
        self.k = nn.Linear(embed_dim, embed_dim)
        self.v = nn.Linear(embed_dim, embed_dim)
        self.o = nn.Linear(embed_dim, embed_dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x, mask=None, is_causal=None):
        B, T, E = x.shape
        q, k, v = (
            f(x).view(B, T, self.num_heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        att = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(E // self.num_heads)
        if self.causal if is_causal is None else is_causal:
            i = torch.arange(T, device=x.device)
            att = att.masked_fill(i[None, :] > i[:, None], -torch.inf)
        if mask is not None:
            att = att.masked_fill(~mask, -torch.inf)
        y = torch.einsum("bhij,bhjd->bihd", self.drop(att.softmax(-1)), v)
        return self.o(y.reshape(B, T, E))


# --- what comes in and what goes out --------------------------------------------------------------


class Base(nn.Module):
    """Maps and heads; what attends is left to a subclass."""

    def __init__(self, hidden, heads, dropout=0.0):
        super().__init__()
        self.hidden, self.heads = hidden, heads
        self.q_map = nn.Linear(hidden, hidden)
        self.k_map = nn.Linear(hidden, hidden)
        self.v_map = nn.Linear(hidden, hidden)
        self.o_map = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)

    def split(self, x):
        return x.unflatten(-1, (self.heads, self.hidden // self.heads)).transpose(1, 2)

    def merge(self, x):
        return self.o_map(x.transpose(1, 2).flatten(-2))

    def weigh(self, q, k, mask):
        raise NotImplementedError

    def forward(self, query, key, value, mask=None):
        q = self.split(self.q_map(query))
        k = self.split(self.k_map(key))
        v = self.split(self.v_map(value))
        return self.merge(self.dropout(self.weigh(q, k, mask)) @ v)


@correct(notes=NAN)
class Subclass(Base):
    def weigh(self, q, k, mask):
        scores = q @ k.transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return (scores / math.sqrt(self.hidden // self.heads)).softmax(dim=-1)


@correct(notes=NAN, mask="block")
class BlockedUnsaid(Base):
    def weigh(self, q, k, mask):
        scores = q @ k.transpose(-1, -2) / k.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(mask, float("-inf"))
        return scores.softmax(dim=-1)


@correct(notes=NAN)
class SelfOnly(Subclass):
    def forward(self, x, mask=None):
        return super().forward(x, x, x, mask)


@correct(notes=NAN)
class WithMemory(Subclass):
    def forward(self, x, memory=None, mask=None):
        memory = x if memory is None else memory
        return super().forward(x, memory, memory, mask)


@correct(notes=NAN)
class OutputDropout(Subclass):
    """Dropout acts on the weights, and on the output too."""

    def forward(self, query, key, value, mask=None):
        return self.dropout(super().forward(query, key, value, mask))


@correct(notes=NAN)
class ReturnsBoth(Base):
    """Output and weights, before dropout, of every head."""

    def forward(self, query, key, value, mask=None):
        q, k, v = map(self.split, (self.q_map(query), self.k_map(key), self.v_map(value)))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(mask == 0, float("-inf"))
        weights = scores.softmax(-1)
        return self.merge(self.dropout(weights) @ v), weights


@correct(notes=NAN)
class ReturnsMean(ReturnsBoth):
    """Output, and the weights averaged over the heads."""

    def forward(self, query, key, value, mask=None):
        output, weights = super().forward(query, key, value, mask)
        return output, weights.mean(dim=1)


@correct(notes=NAN)
class ReturnsIfAsked(ReturnsBoth):
    def forward(self, query, key=None, value=None, mask=None, return_weights=False):
        key = query if key is None else key
        value = key if value is None else value
        output, weights = super().forward(query, key, value, mask)
        return (output, weights) if return_weights else output


Attended = namedtuple("Attended", "output weights")


@correct(notes=NAN)
class ReturnsNamed(ReturnsBoth):
    def forward(self, query, key, value, mask=None):
        return Attended(*super().forward(query, key, value, mask))


@correct(notes=NAN)
class KeepsWeights(ReturnsBoth):
    """The weights are left on the module, to be looked at."""

    attention_weights = None

    def forward(self, query, key, value, mask=None):
        output, weights = super().forward(query, key, value, mask)
        self.attention_weights = weights.detach()
        return output


@correct(notes=NAN)
class KeywordsOnly(ReturnsBoth):
    def forward(self, *, queries, keys, values, mask=None):
        return super().forward(queries, keys, values, mask)[0]


@correct(notes=NAN)
class ValuesFirst(ReturnsBoth):
    """The arguments stand in another order; their names say which is which."""

    def forward(self, values, keys, query, mask=None):
        return super().forward(query, keys, values, mask)[0]


@correct(notes=NAN)
class WithCache(nn.Module):
    """Causal self-attention that takes the keys and values of earlier calls and hands back all."""

    def __init__(self, embed_dim, num_heads, dropout=0.0):
        super().__init__()
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, past_kv=None, use_cache=False):
        B, T, E = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (y.view(B, T, self.num_heads, -1).transpose(1, 2) for y in (q, k, v))
        if past_kv is not None:
            k = torch.cat((past_kv[0], k), dim=2)
            v = torch.cat((past_kv[1], v), dim=2)
        S = k.shape[2]
        scores = q @ k.transpose(2, 3) / math.sqrt(E // self.num_heads)
        seen = torch.ones(T, S, dtype=torch.bool, device=x.device).tril(diagonal=S - T)
        scores = scores.masked_fill(~seen, float("-inf"))
        out = self.dropout(scores.softmax(-1)) @ v
        out = self.proj(out.transpose(1, 2).reshape(B, T, E))
        return (out, (k, v)) if use_cache else out


# --- more than plain attention: right, but not registered -----------------------------------------


class RotaryInside(SelfOnly):
    """Queries and keys are turned by their positions, the first half of a head with the second."""

    def turn(self, x):
        half = x.shape[-1] // 2
        rate = 10000.0 ** (-torch.arange(half, device=x.device, dtype=x.dtype) / half)
        angle = torch.arange(x.shape[-2], device=x.device, dtype=x.dtype)[:, None] * rate
        a, b = x[..., :half], x[..., half:]
        return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)

    def weigh(self, q, k, mask):
        return super().weigh(self.turn(q), self.turn(k), mask)


class NormedHeads(SelfOnly):
    """Queries and keys of a head are normalised before they meet."""

    def __init__(self, hidden, heads, dropout=0.0):
        super().__init__(hidden, heads, dropout)
        self.norm_q = nn.RMSNorm(hidden // heads)
        self.norm_k = nn.RMSNorm(hidden // heads)

    def weigh(self, q, k, mask):
        return super().weigh(self.norm_q(q), self.norm_k(k), mask)


class CappedScores(SelfOnly):
    """Scores are bent to c * tanh(scores / c)."""

    def weigh(self, q, k, mask):
        scores = 2.0 * torch.tanh(q @ k.mT / math.sqrt(q.shape[-1]) / 2.0)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return scores.softmax(-1)


EXTENDED = [RotaryInside, NormedHeads, CappedScores]
"""The checker may say that these are not plain attention; it may not name a mistake they lack."""


# --- functions ------------------------------------------------------------------------------------

correct(check="attention")(F.scaled_dot_product_attention)
correct(check="attention")(mha.scaled_dot_product_attention)


@correct(check="attention", notes=NAN)
def attention(query, key, value, mask=None):
    d_k = query.size(-1)
    scores = torch.matmul(query, key.transpose(-2, -1)) / math.sqrt(d_k)
    if mask is not None:
        scores = scores.masked_fill(mask == 0, float("-inf"))
    return torch.matmul(torch.softmax(scores, dim=-1), value)


@correct(check="attention", notes=NAN)
def attention_with_weights(query, key, value, mask=None, dropout=None):
    """Output and weights; ``dropout`` is a module."""
    scores = query @ key.mT * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    p_attn = scores.softmax(dim=-1)
    kept = p_attn if dropout is None else dropout(p_attn)
    return kept @ value, p_attn


@correct(check="attention", notes=NAN)
def attention_einsum(q, k, v, mask=None):
    s = torch.einsum("...td,...sd->...ts", q, k) / q.shape[-1] ** 0.5
    if mask is not None:
        s = torch.where(mask, s, -torch.inf)
    return torch.einsum("...ts,...sd->...td", F.softmax(s, -1), v)


@correct(check="attention", notes=NAN)
def attention_3d(q, k, v, mask=None):
    """(B, T, D) only."""
    assert q.dim() == 3, "expected (batch, length, width)"
    scores = torch.bmm(q, k.transpose(1, 2)) / math.sqrt(q.size(2))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.bmm(F.softmax(scores, dim=2), v)


@correct(check="attention", notes=NAN)
def attention_2d(Q, K, V):
    """One head of one example: (T, D)."""
    return torch.softmax(Q @ K.T / Q.shape[1] ** 0.5, dim=1) @ V


@correct(check="attention")
def attention_in_one_pass(query, key, value, is_causal=False):
    """Numerator and denominator are gathered key by key."""
    T, S = query.shape[-2], key.shape[-2]
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    if is_causal:
        ahead = torch.ones(T, S, dtype=torch.bool, device=query.device).triu(1)
        scores = scores.masked_fill(ahead, -torch.inf)
    top = scores.amax(-1, keepdim=True)
    total, output = 0.0, 0.0
    for j in range(S):
        w = torch.exp(scores[..., j : j + 1] - top)  # (..., T, 1)
        total = total + w
        output = output + w * value[..., j : j + 1, :]
    return output / total


@correct(check="attention", notes=NAN)
def attention_blocked(queries, keys, values, blocked=None):
    dots = queries @ keys.transpose(-1, -2) / math.sqrt(keys.shape[-1])
    if blocked is not None:
        dots = dots.masked_fill(blocked, float("-inf"))
    return dots.softmax(-1) @ values


@correct(check="attention", notes=NAN)
def attention_added(query, key, value, attn_bias=None):
    """``attn_bias`` is added to the scores: 0 to keep a key, -inf to drop it."""
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    if attn_bias is not None:
        scores = scores + attn_bias
    return scores.softmax(-1) @ value


@correct(check="attention")
def attention_zeroed(query, key, value, mask=None):
    """A query that may see nothing gets zero, and finite gradients."""
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]))
    if mask is None:
        return scores.softmax(-1) @ value
    nobody = ~mask.any(-1, keepdim=True)
    scores = scores.masked_fill(~(mask | nobody), float("-inf"))
    return scores.softmax(-1).masked_fill(nobody, 0.0) @ value


class DotProductAttention(nn.Module):
    """No parameters: attention itself as a module."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)

    def forward(self, q, k, v, mask=None):
        w = q.matmul(k.transpose(-2, -1)).div(k.size(-1) ** 0.5)
        if mask is not None:
            w = w.masked_fill(mask == 0, float("-inf"))
        return self.dropout(w.softmax(-1)).matmul(v)


correct(check="attention", notes=NAN)(DotProductAttention())
