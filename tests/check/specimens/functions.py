"""The small functions of the exercises, right and wrong, in many hands.

``NEW_SLUGS`` are mistakes that only such a function can have.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

from specimens import right as correct
from specimens import specimen

NEW_SLUGS = {
    # split_heads, merge_heads
    "split-wrong-axes": "heads are split rightly, but the axes come out in another order",
    "split-batch-lost": "batch and heads are folded into one axis where four were asked for",
    "merge-wrong-axes": "features of heads and positions come out in another order than asked for",
    # softmax
    "softmax-overflow": "exp of large scores is inf, and the result NaN",
    "softmax-wrong-axis": "normalised over another axis than `dim`",
    "softmax-global": "normalised over all numbers together",
    "softmax-no-normalise": "exp is never divided by its sum",
    "softmax-log": "the logarithm of the softmax is returned",
    "softmax-max-global": "the largest score of all is taken off: small rows underflow to 0 / 0",
    "softmax-shifts-input": "the input is changed in place",
    "softmax-no-exp": "divided by the sum of the scores rather than of their exponentials",
    # causal_mask
    "mask-not-bool": "0 and 1, or 0 and -inf, where a bool mask was asked for",
    # padding_mask
    "pad-off-by-one": "one position too many or too few counts as real",
    "pad-all-lengths-alike": "one length is used for all examples",
    "pad-left": "the padding is taken to stand in front",
    # positional_encoding
    "pe-sin-only": "sine in every feature",
    "pe-sin-cos-exchanged": "cosine in the even features and sine in the odd ones",
    "pe-exponent": "the exponent grows by feature, not by pair of features",
    "pe-base": "another base than 10000",
    "pe-from-one": "positions count from 1",
    "pe-frequency-multiplied": "positions are multiplied by base ** (2i / E), not divided",
    "pe-degrees": "positions are turned into degrees or radians once more",
    "pe-transposed": "(E, T) rather than (T, E)",
    # kv_cache
    "cache-overwrites": "only the newest keys and values are kept",
    "cache-wrong-axis": "tokens are joined along another axis than that of the length",
    "cache-order": "new tokens are put in front of the old ones",
    "cache-values-stale": "the values are not, or not rightly, kept: keys alone grow",
    "cache-aliases-input": "the cache shares memory with what was passed in (a note)",
    "cache-shared-between-instances": "the store belongs to the class, so two caches share it",
    "cache-returns-new-only": "all is kept, but the new tokens alone are returned",
    # grouped_query_attention
    "gqa-mean": "the key heads are averaged into one",
    "gqa-first-head": "all query heads read the first key head",
    "gqa-values-tiled": "the keys are repeated and the values tiled",
    # flash_attention
    "flash-no-rescale": "output and sum are not rescaled when the maximum grows",
    "flash-sum-no-rescale": "the output is rescaled when the maximum grows, the sum is not",
    "flash-output-no-rescale": "the sum is rescaled when the maximum grows, the output is not",
    "flash-tile-softmax": "each tile is normalised by itself, and the results are averaged",
    "flash-tail-dropped": "keys beyond the last whole tile are left out",
    "flash-no-normalise": "the output is never divided by the sum",
    "flash-overflow": "no maximum is taken off: large scores give inf or NaN",
}


# --- split_heads: (B, T, E) -> (B, H, T, D) -------------------------------------------------------


@correct(check="split_heads")
def split_by_view(x, num_heads):
    B, T, E = x.shape
    return x.view(B, T, num_heads, E // num_heads).transpose(1, 2)


@correct(check="split_heads")
def split_by_chunks(x, n_heads):
    return torch.stack(torch.chunk(x, n_heads, dim=-1), dim=1)


@correct(check="split_heads")
def split_by_permute(tensor, h):
    b, n, e = tensor.size()
    return tensor.reshape(b, n, h, -1).permute(0, 2, 1, 3).contiguous()


@correct(check="split_heads")
def split_by_einsum(x, num_heads):
    """Each head picks its features by a matrix of zeros and ones."""
    width = x.shape[-1] // num_heads
    pick = torch.eye(x.shape[-1], dtype=x.dtype).view(x.shape[-1], num_heads, width)
    return torch.einsum("bte,ehd->bhtd", x, pick)


@specimen("split-no-transpose", check="split_heads")
def split_without_transpose(x, num_heads):
    B, T, E = x.shape
    return x.view(B, num_heads, T, E // num_heads)


@specimen("split-dim-major", check="split_heads")
def split_interleaved(x, num_heads):
    B, T, E = x.shape
    return x.reshape(B, T, E // num_heads, num_heads).permute(0, 3, 1, 2)


@specimen("split-wrong-axes", check="split_heads")
def split_and_left(x, num_heads):
    B, T, E = x.shape
    return x.view(B, T, num_heads, E // num_heads)


@specimen("split-wrong-axes", check="split_heads")
def split_heads_in_front(x, num_heads):
    return torch.stack(x.split(x.size(-1) // num_heads, dim=-1))


@specimen("split-batch-lost", check="split_heads")
def split_folded(x, num_heads):
    B, T, E = x.shape
    x = x.view(B, T, num_heads, E // num_heads).transpose(1, 2)
    return x.reshape(B * num_heads, T, E // num_heads)


@specimen("batch-mixed", check="split_heads")
def split_batch_mixed(x, num_heads):
    """The heads are laid along the batch, and then read as if the batch came first."""
    B, T, E = x.shape
    x = torch.cat(x.chunk(num_heads, dim=-1), dim=0)  # (H*B, T, D)
    return x.view(B, num_heads, T, E // num_heads)


# --- merge_heads: (B, H, T, D) -> (B, T, E) -------------------------------------------------------


@correct(check="merge_heads")
def merge_by_view(x):
    B, H, T, D = x.shape
    return x.transpose(1, 2).contiguous().view(B, T, H * D)


@correct(check="merge_heads")
def merge_by_cat(heads):
    return torch.cat([heads[:, i] for i in range(heads.size(1))], dim=-1)


@correct(check="merge_heads")
def merge_by_flatten(x):
    return x.permute(0, 2, 1, 3).flatten(start_dim=2)


@correct(check="merge_heads")
def merge_given_width(x, embed_dim):
    return x.movedim(1, 2).reshape(x.shape[0], -1, embed_dim)


@specimen("merge-no-transpose", check="merge_heads")
def merge_without_transpose(x):
    B, H, T, D = x.shape
    return x.reshape(B, T, H * D)


@specimen("merge-dim-major", check="merge_heads")
def merge_interleaved(x):
    B, H, T, D = x.shape
    return x.permute(0, 2, 3, 1).reshape(B, T, D * H)


@specimen("merge-wrong-axes", check="merge_heads")
def merge_last_two(x):
    """The last two axes change places, and the reshape then takes them as they come."""
    B, H, T, D = x.shape
    return x.transpose(2, 3).reshape(B, T, H * D)


@specimen("heads-summed", check="merge_heads")
def merge_by_sum(x):
    return x.sum(dim=1)


@specimen("heads-summed", check="merge_heads")
def merge_by_mean(x):
    return x.mean(dim=1).repeat(1, 1, x.size(1))


@specimen("batch-mixed", check="merge_heads")
def merge_batch_mixed(x):
    """Batch and heads are folded, and unfolded with the heads in front."""
    B, H, T, D = x.shape
    x = x.reshape(B * H, T, D).view(H, B, T, D)
    return x.permute(1, 2, 0, 3).reshape(B, T, H * D)


# --- softmax: (x, dim=-1) -------------------------------------------------------------------------


@correct(check="softmax")
def softmax_stable(x, dim=-1):
    e = torch.exp(x - x.max(dim=dim, keepdim=True).values)
    return e / e.sum(dim=dim, keepdim=True)


@correct(check="softmax")
def softmax_by_logsumexp(scores, dim=-1):
    return (scores - torch.logsumexp(scores, dim, keepdim=True)).exp()


@correct(check="softmax")
def softmax_along_last(x, dim=-1):
    x = x.movedim(dim, -1)
    x = (x - x.amax(-1)[..., None]).exp()
    return (x / x.sum(-1)[..., None]).movedim(-1, dim)


@specimen("softmax-overflow", check="softmax")
def softmax_naive(x, dim=-1):
    return torch.exp(x) / torch.exp(x).sum(dim=dim, keepdim=True)


@specimen("softmax-wrong-axis", check="softmax")
def softmax_ignores_dim(x, dim=-1):
    e = torch.exp(x - x.max(dim=0, keepdim=True).values)
    return e / e.sum(dim=0, keepdim=True)


@specimen("softmax-wrong-axis", check="softmax")
def softmax_second_last(x, dim=-1):
    return F.softmax(x, dim=dim - 1)


@specimen("softmax-global", check="softmax")
def softmax_of_all(x, dim=-1):
    e = torch.exp(x - x.max())
    return e / e.sum()


@specimen("softmax-no-normalise", check="softmax")
def softmax_unnormalised(x, dim=-1):
    return torch.exp(x - x.max(dim=dim, keepdim=True).values)


@specimen("softmax-log", check="softmax")
def softmax_logged(x, dim=-1):
    return x - torch.logsumexp(x, dim=dim, keepdim=True)


@specimen("softmax-max-global", check="softmax")
def softmax_one_max(x, dim=-1):
    e = torch.exp(x - x.max())
    return e / e.sum(dim=dim, keepdim=True)


@specimen("softmax-shifts-input", check="softmax")
def softmax_in_place(x, dim=-1):
    x -= x.max(dim=dim, keepdim=True).values
    e = x.exp()
    return e / e.sum(dim=dim, keepdim=True)


@specimen("softmax-no-exp", check="softmax")
def softmax_of_scores(x, dim=-1):
    return x / x.sum(dim=dim, keepdim=True)


# --- causal_mask: (T, S=None) -> bool (T, S) ------------------------------------------------------


@correct(check="causal_mask")
def causal_tril(T):
    return torch.tril(torch.ones(T, T)).bool()


@correct(check="causal_mask")
def causal_compare(T, S=None):
    S = T if S is None else S
    return torch.arange(S)[None, :] <= torch.arange(T)[:, None]


@correct(check="causal_mask")
def causal_not_triu(size):
    return ~torch.triu(torch.ones(size, size, dtype=torch.bool), diagonal=1)


@correct(check="causal_mask")
def causal_loops(T, S=None):
    return torch.tensor([[j <= i for j in range(S or T)] for i in range(T)])


@correct(check="causal_mask")
def causal_with_batch_axes(n):
    """(1, 1, T, T), ready for scores (B, H, T, T)."""
    return torch.ones(1, 1, n, n, dtype=torch.bool).tril()


@correct(check="causal_mask")
def causal_with_offset(T, S=None, offset=0):
    """The first query stands at position ``offset``."""
    return torch.ones(T, S or T, dtype=torch.bool).tril(diagonal=offset)


@specimen("causal-upper", check="causal_mask")
def causal_triu(T):
    return torch.triu(torch.ones(T, T)).bool()


@specimen("causal-strict", check="causal_mask")
def causal_below_diagonal(T):
    return torch.tril(torch.ones(T, T, dtype=torch.bool), diagonal=-1)


@specimen("causal-leak-one", check="causal_mask")
def causal_one_ahead(T):
    return torch.tril(torch.ones(T, T, dtype=torch.bool), diagonal=1)


@specimen("mask-inverted", check="causal_mask")
def causal_inverted(sz):
    """True above the diagonal."""
    return torch.triu(torch.ones(sz, sz), diagonal=1) == 1


@specimen("mask-not-bool", check="causal_mask")
def causal_numbers(T):
    return torch.tril(torch.ones(T, T))


@specimen("mask-not-bool", check="causal_mask")
def causal_additive(T):
    return torch.zeros(T, T).masked_fill(torch.ones(T, T).triu(1).bool(), float("-inf"))


@specimen("causal-strict", check="causal_mask")
def causal_strict_compare(T, S=None):
    i, j = torch.arange(T), torch.arange(S or T)
    return j[None, :] < i[:, None]


# --- padding_mask: lengths, or (ids, pad_id) -> bool, True = real ---------------------------------


@correct(check="padding_mask")
def padding_from_lengths(lengths, max_len=None):
    max_len = int(lengths.max()) if max_len is None else max_len
    return torch.arange(max_len) < lengths[:, None]


@correct(check="padding_mask")
def padding_from_ids(ids, pad_id=0):
    return ids != pad_id


@correct(check="padding_mask")
def padding_for_scores(token_ids, pad_id=0):
    """(B, 1, 1, S), ready for scores (B, H, T, S)."""
    return token_ids.ne(pad_id).unsqueeze(1).unsqueeze(2)


@correct(check="padding_mask")
def padding_by_loop(lengths):
    mask = torch.zeros(len(lengths), int(max(lengths)), dtype=torch.bool)
    for row, n in zip(mask, lengths, strict=True):
        row[: int(n)] = True
    return mask


@specimen("mask-inverted", check="padding_mask")
def padding_inverted(ids, pad_id=0):
    return ids == pad_id


@specimen("mask-inverted", check="padding_mask")
def padding_inverted_lengths(lengths):
    return torch.arange(int(lengths.max())) >= lengths[:, None]


@specimen("pad-query-axis", check="padding_mask")
def padding_of_queries(ids, pad_id=0):
    """(B, 1, T, 1): whole rows are blocked, and pads are attended to."""
    return (ids != pad_id)[:, None, :, None]


@specimen("pad-off-by-one", check="padding_mask")
def padding_one_more(lengths):
    return torch.arange(int(lengths.max())) <= lengths[:, None]


@specimen("pad-off-by-one", check="padding_mask")
def padding_one_less(lengths):
    return torch.arange(int(lengths.max())) < lengths[:, None] - 1


@specimen("pad-all-lengths-alike", check="padding_mask")
def padding_of_the_first(lengths):
    keep = torch.arange(int(lengths.max())) < lengths[0]
    return keep.expand(len(lengths), -1)


@specimen("pad-left", check="padding_mask")
def padding_in_front(lengths):
    S = int(lengths.max())
    return torch.arange(S) >= S - lengths[:, None]


@specimen("mask-not-bool", check="padding_mask")
def padding_numbers(ids, pad_id=0):
    return (ids != pad_id).float()


# --- positional_encoding: (T, E) ------------------------------------------------------------------


@correct(check="positional_encoding")
def encoding_by_slices(length, d_model):
    pe = torch.zeros(length, d_model)
    position = torch.arange(length, dtype=torch.float32).unsqueeze(1)
    div_term = torch.exp(torch.arange(0, d_model, 2).float() * (-math.log(10000.0) / d_model))
    pe[:, 0::2] = torch.sin(position * div_term)
    pe[:, 1::2] = torch.cos(position * div_term)
    return pe


@correct(check="positional_encoding")
def encoding_by_loops(T, E):
    table = torch.zeros(T, E)
    for pos in range(T):
        for i in range(E // 2):
            angle = pos / 10000 ** (2 * i / E)
            table[pos, 2 * i] = math.sin(angle)
            table[pos, 2 * i + 1] = math.cos(angle)
    return table


@correct(check="positional_encoding")
def encoding_by_complex(length, width):
    """Sine and cosine as the parts of exp(i * angle)."""
    pair = torch.arange(width // 2, dtype=torch.float64)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * 10000 ** (-2 * pair / width)
    turned = torch.view_as_real(torch.polar(torch.ones_like(angle), angle))  # cosine, sine
    return turned.flip(-1).flatten(1).float()


@correct(check="positional_encoding")
def encoding_by_numpy(n_position, d_hid):
    angles = np.arange(n_position)[:, None] / np.power(10000, 2 * (np.arange(d_hid) // 2) / d_hid)
    table = np.where(np.arange(d_hid) % 2 == 0, np.sin(angles), np.cos(angles))
    return torch.from_numpy(table).float()


@specimen("pe-sin-only", check="positional_encoding")
def encoding_sine(length, d_model):
    position = torch.arange(length).float()[:, None]
    rate = 10000.0 ** (-2 * (torch.arange(d_model) // 2) / d_model)
    return torch.sin(position * rate)


@specimen("pe-sin-cos-exchanged", check="positional_encoding")
def encoding_exchanged(length, d_model):
    pe = torch.zeros(length, d_model)
    position = torch.arange(length).float()[:, None]
    rate = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10000.0) / d_model))
    pe[:, 0::2] = torch.cos(position * rate)
    pe[:, 1::2] = torch.sin(position * rate)
    return pe


@specimen("pe-exponent", check="positional_encoding")
def encoding_exponent(length, d_model):
    """i runs over the features, so 2 * i / d_model goes up to 2."""
    pe = torch.zeros(length, d_model)
    for pos in range(length):
        for i in range(0, d_model, 2):
            pe[pos, i] = math.sin(pos / (10000 ** ((2 * i) / d_model)))
            pe[pos, i + 1] = math.cos(pos / (10000 ** ((2 * i) / d_model)))
    return pe


@specimen("pe-exponent", check="positional_encoding")
def encoding_by_feature(length, d_model):
    """Sine and cosine of a pair turn at different rates."""
    angle = torch.arange(length).float()[:, None] / 10000 ** (torch.arange(d_model) / d_model)
    return torch.where(torch.arange(d_model) % 2 == 0, angle.sin(), angle.cos())


@specimen("pe-base", check="positional_encoding")
def encoding_base(length, d_model):
    position = torch.arange(length).float()[:, None]
    rate = 1000.0 ** (-torch.arange(0, d_model, 2) / d_model)
    return torch.stack(((position * rate).sin(), (position * rate).cos()), -1).flatten(1)


@specimen("pe-from-one", check="positional_encoding")
def encoding_from_one(length, d_model):
    position = torch.arange(1, length + 1).float()[:, None]
    rate = 10000.0 ** (-torch.arange(0, d_model, 2) / d_model)
    return torch.stack(((position * rate).sin(), (position * rate).cos()), -1).flatten(1)


@specimen("pe-frequency-multiplied", check="positional_encoding")
def encoding_multiplied(length, d_model):
    position = torch.arange(length).double()[:, None]
    rate = 10000.0 ** (torch.arange(0, d_model, 2).double() / d_model)
    angle = position * rate
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(1).float()


@specimen("pe-degrees", check="positional_encoding")
def encoding_degrees(length, d_model):
    position = torch.arange(length).float()[:, None]
    rate = 10000.0 ** (-torch.arange(0, d_model, 2) / d_model)
    angle = torch.deg2rad(position * rate)
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(1)


@specimen("pe-transposed", check="positional_encoding")
def encoding_transposed(length, d_model):
    return encoding_by_slices(length, d_model).T


# --- kv_cache: append(k, v) -> (k_all, v_all), each (B, H, S, D) ----------------------------------


@correct(check="kv_cache", notes=("cache-aliases-input",))
class CacheByCat:
    """The first keys and values are kept as they came, so that a later change of them shows."""

    def __init__(self):
        self.k = None
        self.v = None

    def append(self, k, v):
        if self.k is None:
            self.k, self.v = k, v
        else:
            self.k = torch.cat([self.k, k], dim=2)
            self.v = torch.cat([self.v, v], dim=2)
        return self.k, self.v


@correct(check="kv_cache")
class CacheByList:
    def __init__(self):
        self.keys, self.values = [], []

    def append(self, key, value):
        self.keys.append(key.detach().clone())
        self.values.append(value.detach().clone())
        return torch.cat(self.keys, dim=-2), torch.cat(self.values, dim=-2)


@correct(check="kv_cache")
class CacheThatDoubles:
    """Room is made ahead, twice as much each time it runs out."""

    def __init__(self):
        self.length = 0
        self.room = None

    def append(self, k, v):
        needed = self.length + k.size(2)
        if self.room is None or needed > self.room.size(3):
            B, H, _, D = k.shape
            room = k.new_zeros(2, B, H, 2 * needed, D)
            if self.length:
                room[:, :, :, : self.length] = self.room[:, :, :, : self.length]
            self.room = room
        self.room[0, :, :, self.length : needed] = k
        self.room[1, :, :, self.length : needed] = v
        self.length = needed
        return self.room[0, :, :, :needed], self.room[1, :, :, :needed]


@correct(check="kv_cache")
class CacheAsModule(torch.nn.Module):
    """Buffers, so that the cache moves with the model."""

    def __init__(self):
        super().__init__()
        self.register_buffer("k_cache", None, persistent=False)
        self.register_buffer("v_cache", None, persistent=False)

    def append(self, k_new, v_new):
        old = (k_new[:, :, :0], v_new[:, :, :0]) if self.k_cache is None else self.stored()
        self.k_cache = torch.cat((old[0], k_new), dim=2)
        self.v_cache = torch.cat((old[1], v_new), dim=2)
        return self.stored()

    def stored(self):
        return self.k_cache, self.v_cache


@specimen("cache-overwrites", check="kv_cache")
class CacheOverwrites:
    def __init__(self):
        self.k = self.v = None

    def append(self, k, v):
        self.k, self.v = k.clone(), v.clone()
        return self.k, self.v


@specimen("cache-wrong-axis", check="kv_cache")
class CacheAlongBatch:
    def __init__(self):
        self.k, self.v = [], []

    def append(self, k, v):
        self.k.append(k.clone())
        self.v.append(v.clone())
        return torch.cat(self.k), torch.cat(self.v)


@specimen("cache-wrong-axis", check="kv_cache")
class CacheAlongHeads:
    def __init__(self):
        self.k = None

    def append(self, k, v):
        if self.k is None:
            self.k, self.v = k.clone(), v.clone()
        else:
            self.k, self.v = torch.cat((self.k, k), dim=1), torch.cat((self.v, v), dim=1)
        return self.k, self.v


@specimen("cache-order", check="kv_cache")
class CacheInFront:
    def __init__(self):
        self.past = None

    def append(self, k, v):
        if self.past is None:
            self.past = k.clone(), v.clone()
        else:
            old_k, old_v = self.past
            self.past = torch.cat((k, old_k), dim=2), torch.cat((v, old_v), dim=2)
        return self.past


@specimen("cache-values-stale", check="kv_cache")
class CacheOfKeysTwice:
    """A slip of the pen: the values grow by keys."""

    def __init__(self):
        self.k = self.v = None

    def append(self, k, v):
        self.k = k.clone() if self.k is None else torch.cat((self.k, k), dim=2)
        self.v = v.clone() if self.v is None else torch.cat((self.v, k), dim=2)
        return self.k, self.v


@specimen("cache-shared-between-instances", check="kv_cache")
class CacheOfTheClass:
    keys, values = [], []

    def append(self, k, v):
        self.keys.append(k.clone())
        self.values.append(v.clone())
        return torch.cat(self.keys, dim=2), torch.cat(self.values, dim=2)


@specimen("cache-returns-new-only", check="kv_cache")
class CacheThatReturnsTheNew:
    def __init__(self):
        self.keys, self.values = [], []

    def append(self, k, v):
        self.keys.append(k.clone())
        self.values.append(v.clone())
        return self.keys[-1], self.values[-1]


# --- grouped_query_attention: q (B, H, T, D), k and v (B, H_kv, S, D) -----------------------------


@correct(check="grouped_query_attention")
def grouped_by_repeat(q, k, v, mask=None):
    group = q.size(1) // k.size(1)
    k = k.repeat_interleave(group, dim=1)  # (B, H, S, D)
    v = v.repeat_interleave(group, dim=1)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.softmax(scores, dim=-1) @ v


@correct(check="grouped_query_attention")
def grouped_by_axis(query, key, value, mask=None):
    """The group is an axis of its own, and nothing is repeated."""
    B, H, T, D = query.shape
    G = key.shape[1]
    scores = torch.einsum("bgrtd,bgsd->bgrts", query.view(B, G, H // G, T, D), key) * D**-0.5
    if mask is not None:
        mask = mask.expand(B, H, T, key.shape[2]).unflatten(1, (G, H // G))
        scores = scores.masked_fill(~mask, -torch.inf)
    return torch.einsum("bgrts,bgsd->bgrtd", scores.softmax(-1), value).flatten(1, 2)


@correct(check="grouped_query_attention")
def grouped_by_sdpa(q, k, v, mask=None):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


@correct(check="grouped_query_attention")
def grouped_by_loop(q, k, v, mask=None):
    per_group = q.shape[1] // k.shape[1]
    heads = []
    for h in range(q.shape[1]):
        g = h // per_group
        s = q[:, h] @ k[:, g].transpose(1, 2) / q.shape[-1] ** 0.5
        if mask is not None:
            full = mask.expand(*q.shape[:3], k.shape[2])
            s = s.masked_fill(~full[:, h], float("-inf"))
        heads.append(F.softmax(s, dim=-1) @ v[:, g])
    return torch.stack(heads, dim=1)


def _attend(q, k, v, mask=None, scale=None):
    s = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        s = s.masked_fill(~mask, -torch.inf)
    return s.softmax(-1) @ v


@specimen("gqa-tiled", check="grouped_query_attention")
def grouped_tiled(q, k, v, mask=None):
    n = q.size(1) // k.size(1)
    return _attend(q, k.repeat(1, n, 1, 1), v.repeat(1, n, 1, 1), mask)


@specimen("gqa-mean", check="grouped_query_attention")
def grouped_mean(q, k, v, mask=None):
    return _attend(q, k.mean(1, keepdim=True), v.mean(1, keepdim=True), mask)


@specimen("gqa-first-head", check="grouped_query_attention")
def grouped_first(q, k, v, mask=None):
    return _attend(q, k[:, :1], v[:, :1], mask)


@specimen("gqa-values-tiled", check="grouped_query_attention")
def grouped_half_tiled(q, k, v, mask=None):
    n = q.size(1) // k.size(1)
    return _attend(q, k.repeat_interleave(n, 1), v.repeat(1, n, 1, 1), mask)


@specimen("scale-missing", check="grouped_query_attention")
def grouped_unscaled(q, k, v, mask=None):
    n = q.size(1) // k.size(1)
    return _attend(q, k.repeat_interleave(n, 1), v.repeat_interleave(n, 1), mask, scale=1.0)


@specimen("scale-model-dim", check="grouped_query_attention")
def grouped_scaled_by_model(q, k, v, mask=None):
    n = q.size(1) // k.size(1)
    scale = (q.size(1) * q.size(-1)) ** -0.5
    return _attend(q, k.repeat_interleave(n, 1), v.repeat_interleave(n, 1), mask, scale)


@specimen("mask-ignored", check="grouped_query_attention")
def grouped_unmasked(q, k, v, mask=None):
    n = q.size(1) // k.size(1)
    return _attend(q, k.repeat_interleave(n, 1), v.repeat_interleave(n, 1))


# --- flash_attention: tiles of keys, online softmax -----------------------------------------------


@correct(check="flash_attention")
def flash_online(q, k, v, block_size=4):
    """Maximum, sum and output are carried from tile to tile."""
    m = torch.full((*q.shape[:-1], 1), -torch.inf, dtype=q.dtype)
    total = torch.zeros_like(m)
    out = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=q.dtype)
    for start in range(0, k.shape[-2], block_size):
        kb, vb = (x[..., start : start + block_size, :] for x in (k, v))
        s = q @ kb.transpose(-2, -1) / math.sqrt(q.shape[-1])
        new_m = torch.maximum(m, s.amax(-1, keepdim=True))
        p = torch.exp(s - new_m)
        shrink = torch.exp(m - new_m)
        total = total * shrink + p.sum(-1, keepdim=True)
        out = out * shrink + p @ vb
        m = new_m
    return out / total


@correct(check="flash_attention")
def flash_both_axes(Q, K, V, Br=2, Bc=3):
    """Tiles of queries outside, tiles of keys inside; the output is kept normalised."""
    out = torch.empty(*Q.shape[:-1], V.shape[-1], dtype=Q.dtype)
    for i in range(0, Q.shape[-2], Br):
        Qi = Q[..., i : i + Br, :] * Q.shape[-1] ** -0.5
        Oi = torch.zeros(*Qi.shape[:-1], V.shape[-1], dtype=Q.dtype)
        mi = torch.full((*Qi.shape[:-1], 1), -torch.inf, dtype=Q.dtype)
        li = torch.zeros_like(mi)
        for j in range(0, K.shape[-2], Bc):
            Sij = Qi @ K[..., j : j + Bc, :].mT
            mij = Sij.max(-1, keepdim=True).values
            Pij = (Sij - mij).exp()
            lij = Pij.sum(-1, keepdim=True)
            m_new = torch.maximum(mi, mij)
            old, new = (mi - m_new).exp() * li, (mij - m_new).exp()
            l_new = old + new * lij
            Oi = (old * Oi + new * (Pij @ V[..., j : j + Bc, :])) / l_new
            mi, li = m_new, l_new
        out[..., i : i + Br, :] = Oi
    return out


@correct(check="flash_attention")
def flash_by_logsumexp(q, k, v, tile=4):
    """Whole results of tiles are joined by their logsumexp."""
    result, lse = None, None
    for kb, vb in zip(k.split(tile, -2), v.split(tile, -2), strict=True):
        s = q @ kb.mT / q.shape[-1] ** 0.5
        part, part_lse = s.softmax(-1) @ vb, s.logsumexp(-1, keepdim=True)
        if result is None:
            result, lse = part, part_lse
            continue
        both = torch.logaddexp(lse, part_lse)
        result = result * (lse - both).exp() + part * (part_lse - both).exp()
        lse = both
    return result


@correct(check="flash_attention")
def flash_two_passes(q, k, v, block_size=4, is_causal=False):
    """The first pass finds maximum and sum, the second one averages; causal if asked."""
    rows = torch.arange(q.shape[-2])[:, None]

    def tiles():
        for start in range(0, k.shape[-2], block_size):
            part = slice(start, min(start + block_size, k.shape[-2]))
            s = q @ k[..., part, :].mT * q.shape[-1] ** -0.5
            if is_causal:
                ahead = torch.arange(part.start, part.stop) > rows
                s = s.masked_fill(ahead, -torch.inf)
            yield s, v[..., part, :]

    top = torch.stack([s.amax(-1, keepdim=True) for s, _ in tiles()]).amax(0)
    total = sum((s - top).exp().sum(-1, keepdim=True) for s, _ in tiles())
    return sum(((s - top).exp() / total) @ vb for s, vb in tiles())


def _tiles(q, k, v, size, rescale_sum=True, rescale_out=True, shift=True, whole=False):
    """Online softmax whose steps can be left out: unnormalised output, and the sum."""
    m = torch.full((*q.shape[:-1], 1), -torch.inf, dtype=q.dtype)
    total = torch.zeros_like(m)
    out = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=q.dtype)
    length = k.shape[-2]
    for j in range(0, length - length % size if whole else length, size):
        s = q @ k[..., j : j + size, :].mT / q.shape[-1] ** 0.5
        new = torch.maximum(m, s.amax(-1, keepdim=True))
        p = (s - new).exp() if shift else s.exp()
        shrink = (m - new).exp() if shift else torch.ones_like(m)
        total = (total * shrink if rescale_sum else total) + p.sum(-1, keepdim=True)
        out = (out * shrink if rescale_out else out) + p @ v[..., j : j + size, :]
        m = new
    return out, total


@specimen("flash-no-rescale", check="flash_attention")
def flash_no_rescale(q, k, v, block_size=4):
    out, total = _tiles(q, k, v, block_size, rescale_sum=False, rescale_out=False)
    return out / total


@specimen("flash-sum-no-rescale", check="flash_attention")
def flash_sum_not_rescaled(q, k, v, block_size=4):
    out, total = _tiles(q, k, v, block_size, rescale_sum=False)
    return out / total


@specimen("flash-output-no-rescale", check="flash_attention")
def flash_output_not_rescaled(q, k, v, block_size=4):
    out, total = _tiles(q, k, v, block_size, rescale_out=False)
    return out / total


@specimen("flash-no-rescale", check="flash_attention")
def flash_max_of_tile(Q, K, V, block=4):
    """Each tile takes off its own maximum, and the sums are added as if it were one."""
    num, den = 0.0, 0.0
    for Kj, Vj in zip(K.split(block, dim=-2), V.split(block, dim=-2), strict=True):
        S = Q @ Kj.transpose(-1, -2) * Q.size(-1) ** -0.5
        P = torch.exp(S - S.max(dim=-1, keepdim=True).values)
        num, den = num + P @ Vj, den + P.sum(-1, keepdim=True)
    return num / den


@specimen("flash-tile-softmax", check="flash_attention")
def flash_softmax_of_tiles(q, k, v, block_size=4):
    parts = []
    for j in range(0, k.shape[-2], block_size):
        s = q @ k[..., j : j + block_size, :].mT / math.sqrt(q.shape[-1])
        parts.append(F.softmax(s, dim=-1) @ v[..., j : j + block_size, :])
    return sum(parts) / len(parts)


@specimen("flash-tail-dropped", check="flash_attention")
def flash_whole_tiles(q, k, v, block_size=4):
    out, total = _tiles(q, k, v, block_size, whole=True)
    return out / total


@specimen("flash-no-normalise", check="flash_attention")
def flash_not_normalised(q, k, v, block_size=4):
    return _tiles(q, k, v, block_size)[0]


@specimen("flash-overflow", check="flash_attention")
def flash_without_maximum(q, k, v, block_size=4):
    out, total = _tiles(q, k, v, block_size, shift=False)
    return out / total


@specimen("scale-missing", check="flash_attention")
def flash_unscaled(q, k, v, block_size=4):
    return flash_online(q * q.shape[-1] ** 0.5, k, v, block_size)
