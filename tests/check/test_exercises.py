"""The checks of the exercises: right code passes, and each mistake is named."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mha import KVCache, check, heads, masks, positions
from mha.check.exercises_catalogue import ENTRIES

CASES: list = []


def case(what: str, slug: str, *notes: str, **options):
    """A function or class, the check it is for, and the slug that it must get ("" = none)."""

    def register(fn):
        CASES.append(pytest.param(what, fn, slug, notes, options, id=f"{what}-{fn.__name__}"))
        return fn

    return register


@pytest.mark.parametrize("what, fn, slug, notes, options", CASES)
def test_each_mistake_is_named_and_right_code_passes(what, fn, slug, notes, options):
    report = getattr(check, what)(fn, **options)
    mistakes = {found.slug for found in report.findings if found.severity == "mistake"}
    told = {found.slug for found in report.findings if found.severity == "note"}
    assert mistakes == set(slug.split()), str(report)
    assert told == set(notes), str(report)
    assert report.ok == (slug == "")
    assert all(found.evidence for found in report.findings)
    assert str(report) and report._repr_html_()


# --- split


case("split_heads", "")(heads.split_heads)


@case("split_heads", "")
def split_permute(num_heads, x):
    b, t, e = x.size()
    return x.view(b, t, num_heads, e // num_heads).permute(0, 2, 1, 3).contiguous()


@case("split_heads", "")
def split_by_chunks(x, h):
    return torch.stack(x.chunk(h, dim=-1), dim=1)


@case("split_heads", "")
def split_numpy(x, n_heads):
    b, t, e = x.shape
    return np.transpose(np.reshape(x, (b, t, n_heads, -1)), (0, 2, 1, 3))


@case("split_heads", "")
def split_folded(X, num_heads):
    X = X.reshape(X.shape[0], X.shape[1], num_heads, -1).permute(0, 2, 1, 3)
    return X.reshape(-1, X.shape[2], X.shape[3])


@case("split_heads", "split-no-transpose")
def split_view(x, num_heads):
    b, t, e = x.shape
    return x.view(b, num_heads, t, e // num_heads)


@case("split_heads", "split-dim-major")
def split_interleaved(x, num_heads):
    b, t, e = x.shape
    return x.view(b, t, e // num_heads, num_heads).permute(0, 3, 1, 2)


@case("split_heads", "split-heads-behind")
def split_behind(x, num_heads):
    return x.reshape(*x.shape[:2], num_heads, -1)


@case("split_heads", "split-sizes-swapped")
def split_swapped(x, num_heads):
    b, t, e = x.shape
    return x.view(b, t, e // num_heads, num_heads).transpose(1, 2)


@case("split_heads", "batch-mixed")
def split_mixes_examples(x, num_heads):
    b, t, e = x.shape
    return x.reshape(t, b, num_heads, -1).permute(1, 2, 0, 3)


@case("split_heads", "unknown")
def split_wrong_in_its_own_way(x, num_heads):
    return heads.split_heads(x, num_heads).flip(2)


@case("split_heads", "not-differentiable")
def split_detached(x, num_heads):
    return heads.split_heads(x.detach(), num_heads)


@case("split_heads", "exception")
def split_for_one_size(x, num_heads):
    return x.view(3, 5, 4, 6).transpose(1, 2)


@case("split_heads", "returns-nothing")
def split_without_return(x, num_heads):
    x.reshape(*x.shape[:2], num_heads, -1)


@case("split_heads", "timeout", seconds=0.3)
def split_forever(x, num_heads):
    while True:
        pass


# --- merge


case("merge_heads", "")(heads.merge_heads)


@case("merge_heads", "")
def merge_cat(x):
    return torch.cat(list(x.unbind(1)), dim=-1)


@case("merge_heads", "")
def merge_folded(X, num_heads):
    X = X.reshape(-1, num_heads, X.shape[1], X.shape[2]).permute(0, 2, 1, 3)
    return X.reshape(X.shape[0], X.shape[1], -1)


@case("merge_heads", "merge-no-transpose")
def merge_view(x):
    b, h, t, d = x.shape
    return x.reshape(b, t, h * d)


@case("merge_heads", "merge-dim-major")
def merge_interleaved(x):
    b, h, t, d = x.shape
    return x.permute(0, 2, 3, 1).reshape(b, t, -1)


@case("merge_heads", "heads-summed")
def merge_sum(x):
    return x.sum(dim=1)


@case("merge_heads", "merge-not-joined")
def merge_four_axes(x):
    return x.transpose(1, 2)


@case("merge_heads", "batch-mixed")
def merge_other_batch(x):
    b, h, t, d = x.shape
    return x.permute(2, 0, 1, 3).reshape(b, t, h * d)


@case("merge_heads", "exception")
def merge_not_contiguous(x):
    b, h, t, d = x.shape
    return x.transpose(1, 2).view(b, t, h * d)


# --- softmax


case("softmax", "")(F.softmax)
case("softmax", "")(torch.softmax)


@case("softmax", "")
def softmax_by_hand(x, dim=-1):
    e = torch.exp(x - x.max(dim=dim, keepdim=True).values)
    return e / e.sum(dim=dim, keepdim=True)


@case("softmax", "")
def softmax_rows(scores):
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@case("softmax", "not-differentiable")
def softmax_half_numpy(x, dim=-1):
    return torch.softmax(torch.as_tensor(np.asarray(x)), dim)


@case("softmax", "softmax-overflow")
def softmax_overflows(x, dim=-1):
    return x.exp() / x.exp().sum(dim, keepdim=True)


@case("softmax", "softmax-overflow")
def softmax_small_epsilon(x, dim=-1):
    return x.exp() / (x.exp().sum(dim, keepdim=True) + 1e-12)


@case("softmax", "softmax-global-max")
def softmax_one_max(x, dim=-1):
    e = (x - x.max()).exp()
    return e / e.sum(dim, keepdim=True)


@case("softmax", "softmax-no-normalise")
def softmax_exp_only(x, dim=-1):
    return (x - x.amax(dim, keepdim=True)).exp()


@case("softmax", "softmax-wrong-axis")
def softmax_first_axis(x, dim=-1):
    return torch.softmax(x, 0)


@case("softmax", "softmax-wrong-axis")
def softmax_ignores_dim(x, dim=-1):
    return torch.softmax(x, -1)


@case("softmax", "softmax-joint")
def softmax_of_all(x, dim=-1):
    e = (x - x.max()).exp()
    return e / e.sum()


@case("softmax", "softmax-keepdim")
def softmax_keepdim(x, dim=-1):
    e = (x - x.amax(dim, keepdim=True)).exp()
    return e / e.sum(dim)


@case("softmax", "softmax-log")
def softmax_log(x, dim=-1):
    return F.log_softmax(x, dim)


@case("softmax", "softmax-negated")
def softmax_of_minus(x, dim=-1):
    e = (x.amin(dim, keepdim=True) - x).exp()
    return e / e.sum(dim, keepdim=True)


@case("softmax", "softmax-linear")
def softmax_no_exp(x, dim=-1):
    return x / x.sum(dim, keepdim=True)


@case("softmax", "softmax-sigmoid")
def softmax_sigmoid(x, dim=-1):
    return x.sigmoid()


@case("softmax", "softmax-base")
def softmax_powers_of_two(x, dim=-1):
    e = 2 ** (x - x.amax(dim, keepdim=True))
    return e / e.sum(dim, keepdim=True)


@case("softmax", "softmax-shift-once")
def softmax_shifted_above_only(x, dim=-1):
    return (x - x.amax(dim, keepdim=True)).exp() / x.exp().sum(dim, keepdim=True)


@case("softmax", "input-changed")
def softmax_in_place(x, dim=-1):
    x -= x.amax(dim, keepdim=True)
    e = x.exp()
    return e / e.sum(dim, keepdim=True)


@case("softmax", "dtype-leak")
def softmax_stays_in_float32(x, dim=-1):
    return torch.softmax(x.float(), dim)


@case("softmax", "dtype-leak not-differentiable")
def softmax_through_numpy(x, dim=-1):
    e = np.exp(np.asarray(x.detach(), dtype=np.float32))
    e = e - 0.0
    x = x.detach().float()
    return torch.softmax(x, dim)


# --- causal masks


@case("causal_mask", "")
def causal_tril(T):
    return torch.tril(torch.ones(T, T, dtype=torch.bool))


@case("causal_mask", "")
def causal_two_lengths(T, S=None):
    S = T if S is None else S
    return torch.arange(S) <= torch.arange(T)[:, None]


@case("causal_mask", "", "causal-bottom-right")
def causal_aligned_right(T, S=None):
    S = T if S is None else S
    return torch.ones(T, S, dtype=torch.bool).tril(S - T)


@case("causal_mask", "")
def causal_with_offset(T, S, q_offset=0):
    return torch.arange(S) <= torch.arange(T)[:, None] + q_offset


@case("causal_mask", "causal-top-left")
def causal_offset_ignored(T, S, q_offset=0):
    return torch.arange(S) <= torch.arange(T)[:, None]


@case("causal_mask", "")
def causal_four_axes(size):
    return torch.ones(size, size).tril().bool()[None, None]


@case("causal_mask", "", "mask-numbers")
def causal_numbers(n):
    return torch.tril(torch.ones(n, n))


@case("causal_mask", "")
def causal_additive(n):
    return torch.full((n, n), float("-inf")).triu(1)


@case("causal_mask", "mask-fill-small")
def causal_additive_small(n):
    return torch.full((n, n), -10.0).triu(1)


@case("causal_mask", "")
def causal_block_told(n):
    """True marks blocked positions."""
    return torch.ones(n, n, dtype=torch.bool).triu(1)


@case("causal_mask", "", mask="block")
def causal_block_by_option(n):
    return torch.ones(n, n, dtype=torch.bool).triu(1)


@case("causal_mask", "mask-inverted")
def causal_inverted(T):
    return torch.ones(T, T, dtype=torch.bool).triu(1)


@case("causal_mask", "causal-upper")
def causal_upper(T):
    return torch.ones(T, T, dtype=torch.bool).triu()


@case("causal_mask", "causal-strict")
def causal_strict(T):
    return torch.ones(T, T, dtype=torch.bool).tril(-1)


@case("causal_mask", "causal-leak-one")
def causal_leak(T):
    return torch.ones(T, T, dtype=torch.bool).tril(1)


@case("causal_mask", "causal-strict", mask="block")
def causal_block_strict(T):
    return torch.ones(T, T, dtype=torch.bool).triu()


@case("causal_mask", "mask-all-true")
def causal_nothing(T):
    return torch.ones(T, T, dtype=torch.bool)


@case("causal_mask", "wrong-shape")
def causal_fixed_size(T):
    return torch.ones(8, 8, dtype=torch.bool).tril()


@case("causal_mask", "wrong-shape")
def causal_ignores_keys(T, S=None):
    return torch.ones(T, T, dtype=torch.bool).tril()


# --- padding masks


@case("padding_mask", "")
def padding_lengths(lengths, max_len=None):
    max_len = int(lengths.max()) if max_len is None else max_len
    return torch.arange(max_len) < lengths[:, None]


@case("padding_mask", "")
def padding_ids(ids, pad_id=0):
    return (ids != pad_id)[:, None, None, :]


@case("padding_mask", "")
def padding_source(src, pad):
    return (src != pad).unsqueeze(-2)


@case("padding_mask", "")
def padding_block_told(ids, pad_id=0):
    return ids == pad_id  # True = ignore this key


@case("padding_mask", "", "pad-both-axes")
def padding_both(ids, pad_id=0):
    real = ids != pad_id
    return real[:, :, None] & real[:, None, :]


@case("padding_mask", "mask-inverted")
def padding_inverted(ids, pad_id=0):
    return ids == pad_id


@case("padding_mask", "pad-query-axis")
def padding_queries(ids, pad_id=0):
    return (ids != pad_id)[:, None, :, None]


@case("padding_mask", "pad-query-axis")
def padding_queries_expanded(lengths, max_len):
    real = torch.arange(max_len) < lengths[:, None]
    return real[:, :, None].expand(-1, -1, max_len)


@case("padding_mask", "padding-off-by-one")
def padding_one_more(lengths, max_len):
    return torch.arange(max_len) <= lengths[:, None]


@case("padding_mask", "padding-off-by-one")
def padding_one_less(lengths, max_len):
    return torch.arange(max_len) < lengths[:, None] - 1


@case("padding_mask", "padding-shared")
def padding_longest(lengths, max_len):
    return (torch.arange(max_len) < lengths.max()).repeat(len(lengths), 1)


@case("padding_mask", "padding-id-fixed")
def padding_zero_always(ids, pad_id=0):
    return ids != 0


@case("padding_mask", "wrong-shape")
def padding_ignores_length(lengths, max_len=None):
    return torch.arange(int(lengths.max())) < lengths[:, None]


# --- positions


case("positional_encoding", "")(positions.sinusoidal)


@case("positional_encoding", "")
def pe_loop(max_len, d_model):
    pe = torch.zeros(max_len, d_model)
    for p in range(max_len):
        for i in range(0, d_model, 2):
            pe[p, i] = math.sin(p / 10000 ** (i / d_model))
            pe[p, i + 1] = math.cos(p / 10000 ** (i / d_model))
    return pe


@case("positional_encoding", "")
def pe_numpy(d_model, seq_len):
    angle = np.arange(seq_len)[:, None] / 10000 ** (np.arange(0, d_model, 2) / d_model)
    pe = np.zeros((1, seq_len, d_model))
    pe[0, :, 0::2], pe[0, :, 1::2] = np.sin(angle), np.cos(angle)
    return pe


@case("positional_encoding", "")
class PositionalEncoding(nn.Module):
    def __init__(self, d_model, dropout=0.1, max_len=500):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("pe", pe_loop(max_len, d_model)[None])

    def forward(self, x):
        return self.dropout(x + self.pe[:, : x.size(1)])


def _pe(T, E, power, position=None, wave=(torch.sin, torch.cos), size=1.0, base=10000.0):
    position = torch.arange(T).float() if position is None else position
    power = torch.tensor([power(i) for i in range(E // 2)])
    angle = position[:, None] * base**-power
    return size * torch.stack((wave[0](angle), wave[1](angle)), -1).flatten(1)


@case("positional_encoding", "", "pe-halves")
def pe_halves(length, dim):
    return torch.cat((positions.sinusoidal(length, dim)[:, 0::2],
                      positions.sinusoidal(length, dim)[:, 1::2]), -1)  # fmt: skip


@case("positional_encoding", "", "pe-cos-first")
def pe_cos_first(length, dim):
    return _pe(length, dim, lambda i: 2 * i / dim, wave=(torch.cos, torch.sin))


@case("positional_encoding", "pe-sin-only")
def pe_sines(length, dim):
    return _pe(length, dim, lambda i: 2 * i / dim, wave=(torch.sin, torch.sin))


@case("positional_encoding", "pe-exponent")
def pe_half_power(length, dim):
    return _pe(length, dim, lambda i: i / dim)


@case("positional_encoding", "pe-exponent")
def pe_double_power(length, dim):
    return _pe(length, dim, lambda i: 4 * i / dim)


@case("positional_encoding", "pe-exponent")
def pe_two_loops(max_len, d_model):
    """As much copied code has it: i counts in twos, and is doubled once more."""
    pe = torch.zeros(max_len, d_model)
    for pos in range(max_len):
        for i in range(0, d_model, 2):
            pe[pos, i] = math.sin(pos / 10000 ** (2 * i / d_model))
            pe[pos, i + 1] = math.cos(pos / 10000 ** (2 * (i + 1) / d_model))
    return pe


@case("positional_encoding", "pe-growing")
def pe_growing(length, dim):
    return _pe(length, dim, lambda i: -2 * i / dim)


@case("positional_encoding", "pe-own-frequency")
def pe_each_feature(length, dim):
    pe = torch.zeros(length, dim)
    for p in range(length):
        for j in range(dim):
            pe[p, j] = (math.sin if j % 2 == 0 else math.cos)(p / 10000 ** (j / dim))
    return pe


@case("positional_encoding", "pe-from-one")
def pe_from_one(length, dim):
    return _pe(length, dim, lambda i: 2 * i / dim, torch.arange(1, length + 1).float())


@case("positional_encoding", "pe-base")
def pe_base(length, dim):
    return _pe(length, dim, lambda i: 2 * i / dim, base=1000.0)


@case("positional_encoding", "pe-degrees")
def pe_degrees(length, dim):
    return _pe(length, dim, lambda i: 2 * i / dim, torch.arange(length).float() * math.pi / 180)


@case("positional_encoding", "pe-scaled")
def pe_scaled(length, dim):
    return _pe(length, dim, lambda i: 2 * i / dim, size=dim**0.5)


@case("positional_encoding", "pe-sin-only pe-from-one")
def pe_two_mistakes(length, dim):
    return _pe(length, dim, lambda i: 2 * i / dim, torch.arange(1, length + 1).float(),
               (torch.sin, torch.sin))  # fmt: skip


@case("positional_encoding", "wrong-shape")
def pe_transposed(length, dim):
    return positions.sinusoidal(length, dim).T


@case("positional_encoding", "unknown")
def pe_random(length, dim):
    return torch.randn(length, dim, generator=torch.Generator().manual_seed(0))


# --- caches


@case("kv_cache", "", "cache-shares-memory")
class CacheCat:
    def __init__(self):
        self.k = self.v = None

    def append(self, k, v):
        self.k = k if self.k is None else torch.cat([self.k, k], dim=2)
        self.v = v if self.v is None else torch.cat([self.v, v], dim=2)
        return self.k, self.v


@case("kv_cache", "")
class CacheBuffer:
    def __init__(self, batch_size, num_heads, max_len, head_dim):
        self.keys_ = torch.zeros(batch_size, num_heads, max_len, head_dim)
        self.values_ = torch.zeros(batch_size, num_heads, max_len, head_dim)
        self.length = 0

    def update(self, key, value):
        end = self.length + key.shape[2]
        self.keys_[:, :, self.length : end] = key
        self.values_[:, :, self.length : end] = value
        self.length = end
        return self.keys_[:, :, :end], self.values_[:, :, :end]

    def reset(self):
        self.length = 0


@case("kv_cache", "")
class CacheList:
    def __init__(self):
        self.keys_list, self.values_list = [], []

    def append(self, k, v):
        self.keys_list.append(k.clone())
        self.values_list.append(v.clone())

    def get(self):
        return torch.cat(self.keys_list, -2), torch.cat(self.values_list, -2)

    def __len__(self):
        return sum(k.shape[2] for k in self.keys_list)


@case("kv_cache", "cache-overwrites")
class CacheOverwrites(CacheCat):
    def append(self, k, v):
        self.k, self.v = k, v
        return self.k, self.v


@case("kv_cache", "cache-overwrites")
class CacheValuesOverwritten(CacheCat):
    def append(self, k, v):
        self.k = k if self.k is None else torch.cat([self.k, k], dim=2)
        return self.k, v


@case("kv_cache", "cache-wrong-axis")
class CacheHeadsAxis(CacheCat):
    def append(self, k, v):
        self.k = k if self.k is None else torch.cat([self.k, k], dim=1)
        self.v = v if self.v is None else torch.cat([self.v, v], dim=1)
        return self.k, self.v


@case("kv_cache", "wrong-shape")
class OneStepAtATime:
    """Counts calls where tokens are meant; two caches share nothing."""

    def __init__(self, batch_size, num_heads, max_len, head_dim):
        self.k, self.v = torch.zeros(2, batch_size, num_heads, max_len, head_dim).unbind()
        self.length = 0

    def append(self, k, v):
        end = self.length + k.shape[2]
        self.k[:, :, self.length : end], self.v[:, :, self.length : end] = k, v
        self.length += 1
        return self.k[:, :, : self.length], self.v[:, :, : self.length]


@case("kv_cache", "cache-order")
class CacheOrder(CacheCat):
    def append(self, k, v):
        self.k = k if self.k is None else torch.cat([k, self.k], dim=2)
        self.v = v if self.v is None else torch.cat([v, self.v], dim=2)
        return self.k, self.v


@case("kv_cache", "cache-keys-twice")
class CacheKeysTwice(CacheCat):
    def append(self, k, v):
        super().append(k, k)
        return self.k, self.v


@case("kv_cache", "kv-swapped")
class CacheSwapped(CacheCat):
    def append(self, k, v):
        return super().append(k, v)[::-1]


@case("kv_cache", "cache-duplicates")
class CacheDuplicates(CacheCat):
    def append(self, k, v):
        super().append(k, v)
        return super().append(k, v)


@case("kv_cache", "cache-late")
class CacheLate(CacheCat):
    def append(self, k, v):
        old = (self.k, self.v) if self.k is not None else (k, v)
        super().append(k, v)
        return old


@case("kv_cache", "cache-unfilled")
class CacheUnfilled(CacheBuffer):
    def update(self, key, value):
        super().update(key, value)
        return self.keys_, self.values_


@case("kv_cache", "cache-length")
class CacheLength(CacheBuffer):
    def __init__(self, batch_size, num_heads, max_len, head_dim):
        super().__init__(batch_size, num_heads, max_len, head_dim)
        self.cur_len = 0

    def update(self, key, value):
        self.cur_len += 1
        return super().update(key, value)

    length_ = 0

    @property
    def length(self):
        return self.length_ if not hasattr(self, "cur_len") else Hidden(self.length_)

    @length.setter
    def length(self, value):
        self.length_ = int(value)


class Hidden(int):
    """A number that is used for slicing and still is an int."""

    def __eq__(self, other):
        return False

    __hash__ = int.__hash__


@case("kv_cache", "cache-shared")
class CacheShared:
    ks, vs = [], []

    def append(self, k, v):
        self.ks.append(k.clone())
        self.vs.append(v.clone())
        return torch.cat(self.ks, 2), torch.cat(self.vs, 2)


@case("kv_cache", "cache-reset")
class CacheReset(CacheList):
    def append(self, k, v):
        super().append(k, v)
        return self.get()

    def reset(self):
        self.keys_list = []


# --- grouped queries


def _attend(q, k, v, mask=None, scale=None):
    return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)


@case("grouped_query_attention", "")
def gqa_repeat(q, k, v, mask=None):
    n = q.shape[1] // k.shape[1]
    return _attend(q, k.repeat_interleave(n, 1), v.repeat_interleave(n, 1), mask)


@case("grouped_query_attention", "")
def gqa_grouped(query, key, value):
    b, h, t, d = query.shape
    q = query.view(b, key.shape[1], -1, t, d)
    w = torch.einsum("bgntd,bgsd->bgnts", q, key).div(d**0.5).softmax(-1)
    return torch.einsum("bgnts,bgsd->bgntd", w, value).reshape(b, h, t, d), w


@case("grouped_query_attention", "gqa-tiled")
def gqa_tiles(q, k, v, mask=None):
    n = q.shape[1] // k.shape[1]
    return _attend(q, k.repeat(1, n, 1, 1), v.repeat(1, n, 1, 1), mask)


@case("grouped_query_attention", "gqa-tiled")
def gqa_tiles_values(q, k, v, mask=None):
    n = q.shape[1] // k.shape[1]
    return _attend(q, k.repeat_interleave(n, 1), v.repeat(1, n, 1, 1), mask)


@case("grouped_query_attention", "gqa-first-head")
def gqa_first(q, k, v, mask=None):
    return _attend(q, k[:, :1], v[:, :1], mask)


@case("grouped_query_attention", "gqa-averaged")
def gqa_mean(q, k, v, mask=None):
    return _attend(q, k.mean(1, keepdim=True), v.mean(1, keepdim=True), mask)


@case("grouped_query_attention", "scale-missing")
def gqa_unscaled(q, k, v, mask=None):
    n = q.shape[1] // k.shape[1]
    return _attend(q, k.repeat_interleave(n, 1), v.repeat_interleave(n, 1), mask, 1.0)


@case("grouped_query_attention", "mask-ignored")
def gqa_no_mask(q, k, v, mask=None):
    return gqa_repeat(q, k, v)


@case("grouped_query_attention", "mask-inverted")
def gqa_inverted(q, k, v, mask=None):
    return gqa_repeat(q, k, v, None if mask is None else ~mask)


@case("grouped_query_attention", "", mask="block")
def gqa_block(q, k, v, mask=None):
    return gqa_repeat(q, k, v, None if mask is None else ~mask)


@case("grouped_query_attention", "gqa-tiled scale-linear")
def gqa_two_mistakes(q, k, v, mask=None):
    n = q.shape[1] // k.shape[1]
    return _attend(q, k.repeat(1, n, 1, 1), v.repeat(1, n, 1, 1), mask, 1 / q.shape[-1])


# --- tiles


def make_flash(
    *, alpha=None, alpha_o=None, start=-math.inf, tile_max=False, end=None, divide=True,
    inside=True, scale=True, every=False,
):  # fmt: skip
    """Attention in tiles with one thing changed."""

    def flash(q, k, v, block_size, causal=False):
        T, S, D = q.shape[-2], k.shape[-2], q.shape[-1]
        out = torch.zeros_like(q)
        for i in range(0, T, block_size):
            qi = q[..., i : i + block_size, :]
            m = torch.full((*qi.shape[:-1], 1), start)
            total, o = torch.zeros_like(m), torch.zeros_like(qi)
            for j in range(0, S if end is None else end(S, T, block_size), block_size):
                if causal and j > i:
                    break
                kj, vj = k[..., j : j + block_size, :], v[..., j : j + block_size, :]
                s = qi @ kj.mT * (D**-0.5 if scale else 1.0)
                if causal and inside:
                    rows = torch.arange(i, i + qi.shape[-2])[:, None]
                    s = s.masked_fill(torch.arange(j, j + kj.shape[-2]) > rows, -math.inf)
                new = s.amax(-1, keepdim=True)
                new = new if tile_max else torch.maximum(m, new)
                a = (m - new).exp()
                p = (s - new).exp()
                total = total * (a if alpha is None else alpha) + p.sum(-1, keepdim=True)
                o = o * (a if alpha_o is None else alpha_o) + p @ vj
                o = o / total if every else o
                m = new
            out[..., i : i + block_size, :] = o / total if divide and not every else o
        return out

    return flash


FLASH = {
    "right": ("", {}),
    "sum": ("flash-no-rescale-sum", {"alpha": 1.0}),
    "output": ("flash-no-rescale-output", {"alpha_o": 1.0}),
    "both": ("flash-no-rescale", {"alpha": 1.0, "alpha_o": 1.0}),
    "tile_max": ("flash-tile-max", {"alpha": 1.0, "alpha_o": 1.0, "tile_max": True}),
    "overwrites": ("flash-tile-overwrites", {"alpha": 0.0, "alpha_o": 0.0}),
    "dropped": ("flash-last-tile-dropped", {"end": lambda S, T, b: S // b * b}),
    "queries_length": ("flash-one-length", {"end": lambda S, T, b: T}),
    "undivided": ("flash-not-normalised", {"divide": False}),
    "every_tile": ("flash-normalised-each-tile", {"every": True}),
    "zero_start": ("flash-overflow", {"start": 0.0}),
    "unscaled": ("scale-missing", {"scale": False}),
    "causal_tiles": ("flash-causal-tiles", {"inside": False}),
    "two": ("flash-no-rescale-sum scale-missing", {"alpha": 1.0, "scale": False}),
}
for _name, (_slug, _changed) in FLASH.items():
    _fn = make_flash(**_changed)
    _fn.__name__ = _name
    case("flash_attention", _slug)(_fn)


@case("flash_attention", "", "flash-materialises")
def flash_is_plain(q, k, v):
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v


case("flash_attention", "")(F.scaled_dot_product_attention)


@case("flash_attention", "flash-no-rescale")
def flash_fixed_tiles(q, k, v):
    return make_flash(alpha=1.0, alpha_o=1.0)(q, k, v, 64)


@case("flash_attention", "")
def flash_two_axes(Q, K, V, Br=4, Bc=4):
    (N, d), M = Q.shape, K.shape[0]
    rows = []
    for i in range(0, N, Br):
        m, total, o = torch.full((Q[i : i + Br].shape[0], 1), -math.inf), 0.0, 0.0
        for j in range(0, M, Bc):
            s = Q[i : i + Br] @ K[j : j + Bc].T / math.sqrt(d)
            new = torch.maximum(m, s.max(1, keepdim=True).values)
            p, a = torch.exp(s - new), torch.exp(m - new)
            total, o, m = a * total + p.sum(1, keepdim=True), a * o + p @ V[j : j + Bc], new
        rows.append(o / total)
    return torch.cat(rows)


@case("flash_attention", "flash-overflow")
def flash_no_maximum(q, k, v, block_size=4):
    total = o = 0.0
    for j in range(0, k.shape[-2], block_size):
        p = (q @ k[..., j : j + block_size, :].mT / q.shape[-1] ** 0.5).exp()
        total, o = total + p.sum(-1, keepdim=True), o + p @ v[..., j : j + block_size, :]
    return o / total


@case("flash_attention", "", "flash-must-divide")
def flash_whole_tiles(q, k, v, block_size):
    assert k.shape[-2] % block_size == 0, "the length must be a multiple of the block size"
    return make_flash()(q, k, v, block_size)


@case("flash_attention", "flash-tile-softmax")
def flash_softmaxes(q, k, v, block_size):
    o = 0.0
    for j in range(0, k.shape[-2], block_size):
        s = q @ k[..., j : j + block_size, :].mT / q.shape[-1] ** 0.5
        o = o + s.softmax(-1) @ v[..., j : j + block_size, :]
    return o


# --- other ways to be right


case("kv_cache", "")(KVCache)
case("causal_mask", "")(masks.causal)


@case("causal_mask", "")
def causal_of_a_tensor(batch):
    n = batch.size(1)
    return torch.tril(torch.ones(n, n, dtype=torch.bool))


@case("positional_encoding", "")
class SequenceFirst(nn.Module):
    def __init__(self, d_model: int, dropout: float = 0.1, max_len: int = 500):
        super().__init__()
        self.register_buffer("pe", pe_loop(max_len, d_model)[:, None])

    def forward(self, x):
        return x * x.shape[-1] ** 0.5 + self.pe[: x.size(0)]


@case("kv_cache", "")
class CacheOtherLayout:
    """Keys and values are (B, T, H, D)."""

    def __init__(self):
        self.k = self.v = None

    def update(self, k, v):
        self.k = k.clone() if self.k is None else torch.cat([self.k, k], 1)
        self.v = v.clone() if self.v is None else torch.cat([self.v, v], 1)
        return self.k, self.v


@case("grouped_query_attention", "")
def gqa_bias(q, k, v, attn_bias=None):
    return gqa_repeat(q, k, v, attn_bias)


@case("flash_attention", "")
def flash_positions_before_heads(q, k, v, block_size=4):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return make_flash()(q, k, v, block_size).transpose(1, 2)


@case("flash_attention", "flash-no-rescale-sum")
def flash_positions_before_heads_sum(q, k, v, block_size=4):
    """q, k and v are (batch, seq, heads, dim)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return make_flash(alpha=1.0)(q, k, v, block_size).transpose(1, 2)


@case("flash_attention", "")
def flash_causal_always(q, k, v, block_size=4):
    return make_flash()(q, k, v, block_size, causal=True)


@case("flash_attention", "")
def flash_causal_by_default(q, k, v, block_size=4, causal=True):
    return make_flash()(q, k, v, block_size, causal=causal)


@case("positional_encoding", "", "pe-halves", "pe-last-pair")
def pe_to_the_end(length, dim):
    speed = 10000.0 ** -torch.linspace(0, 1, dim // 2)
    angle = torch.arange(length)[:, None] * speed
    return torch.cat((angle.sin(), angle.cos()), -1)


class Layer(nn.Module):
    def __init__(self, d_model=12, num_heads=3):
        super().__init__()
        self.d_model, self.num_heads = d_model, num_heads

    def split(self, x):
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)

    def split_wrong(self, x):
        return x.view(x.shape[0], self.num_heads, x.shape[1], -1)

    def merge(self, x):
        return x.transpose(1, 2).reshape(x.shape[0], -1, self.d_model)


case("split_heads", "")(Layer().split)
case("split_heads", "split-no-transpose")(Layer().split_wrong)
case("merge_heads", "")(Layer().merge)


@case("padding_mask", "")
def padding_for_each_query(valid_lens, T, S):
    return (torch.arange(S) < valid_lens[:, None])[:, None].expand(-1, T, -1)


# --- the rest


def test_every_entry_of_the_exercises_is_reached_by_a_case_or_listed():
    named = {word for p in CASES for word in [*p.values[2].split(), *p.values[3]]}
    rare = {"not-as-asked", "split-last-swapped", "mask-all-false", "padding-left", "gqa-reversed",
            "gqa-queries-averaged", "flash-rescale-reversed", "flash-causal-skips"}  # fmt: skip
    assert set(ENTRIES) - named == rare


def test_what_cannot_be_called_is_a_question():
    for what in ("split_heads", "softmax", "flash_attention"):
        report = getattr(check, what)(3)
        assert [found.slug for found in report.findings] == ["question"]
    report = check.softmax(lambda: 3)
    assert [found.slug for found in report.findings] == ["question"]
    report = check.padding_mask(lambda something_else: 3)
    assert [found.slug for found in report.findings] == ["question"]


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="mask"):
        check.causal_mask(causal_tril, mask="additive")


def test_evidence_shows_the_smallest_example_in_numbers():
    report = check.split_heads(split_view)
    (found,) = report.findings
    assert "x (B=1, T=2, E=2), H=2: [[[0 1] [2 3]]]" in found.evidence
    assert "yours: [[[[0] [1]] [[2] [3]]]]" in found.evidence
    assert "right: [[[[0] [2]] [[1] [3]]]]" in found.evidence
    (found,) = check.causal_mask(causal_strict).findings
    assert found.evidence.endswith(
        "T = 2, 1 = may attend:\n  yours   right\n  0 0     1 0\n  1 0     1 1"
    )
