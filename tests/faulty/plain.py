"""The correct function and module, step by step, and the lists of their faulty variants."""

import re
import warnings
from functools import reduce

import torch
import torch.nn.functional as F

import mha

FUNCTIONS: dict[str, type["Function"]] = {}
MODULES: dict[str, type["Module"]] = {}


def mistake(*caught_by, options=None, in_training=True):
    """Enter a class in the list of its kind; the named properties must catch it.

    ``options`` are arguments of the module without which the mistake has no effect. One that has
    none ``in_training`` (causal, in one pass) shows only with a cache, with positions, or where
    nothing else is causal.
    """

    def enter(cls):
        cls.caught_by = caught_by
        cls.options, cls.in_training = options or {}, in_training
        slug = re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()
        (MODULES if issubclass(cls, Module) else FUNCTIONS)[slug] = cls
        return cls

    return enter


def verdict(holds, subject):
    """What a property says of ``subject``: "passes", "fails", or "raises" another error."""
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            holds(subject)
    except AssertionError:
        return "fails"
    except Exception:
        return "raises"
    return "passes"


class Function:
    """``mha.scaled_dot_product_attention``, correct. Subclasses break one step."""

    fill = float("-inf")
    options, in_training = {}, True

    def __call__(
        self,
        query,
        key,
        value,
        attn_mask=None,
        dropout_p=0.0,
        is_causal=False,
        *,
        scale=None,
        enable_gqa=False,
        softcap=None,
        key_mask=None,
        window=None,
        q_offset=0,
        return_weights=False,
    ):
        if key_mask is not None:
            key, value = self.clean(key, key_mask), self.clean(value, key_mask)
        if enable_gqa:
            key, value = self.group(key, value, query.shape[1])
        scores = self.score(query, key, self.factor(query, scale))
        scores = scores if softcap is None else self.cap(scores, softcap)
        added = self.rules(scores, attn_mask, key_mask, is_causal, q_offset, window)
        weights = self.normalise(scores, added)
        dropped = self.drop(weights, dropout_p)
        output = self.finish(self.join(dropped, value), value)
        if return_weights:
            return output, self.finish(self.shown(weights, dropped), value)
        return output

    def clean(self, x, key_mask):
        return x.masked_fill(~key_mask[:, None, :, None], 0.0)

    def factor(self, query, scale):
        return query.shape[-1] ** -0.5 if scale is None else scale

    def score(self, query, key, factor):
        return query.double() @ key.double().mT * factor

    def group(self, key, value, num_heads):
        """A key head for each query head: (B, H_kv, S, D) -> (B, H, S, D)."""
        return self.repeat(key, num_heads), self.repeat(value, num_heads)

    def repeat(self, x, num_heads):
        return x.repeat_interleave(num_heads // x.shape[1], dim=1)

    def cap(self, scores, softcap):
        return softcap * torch.tanh(scores / softcap)

    def rules(self, scores, attn_mask, key_mask, is_causal, q_offset, window):
        """What is added to the scores, (B, H, T, S)."""
        parts = [torch.zeros_like(scores)]
        if attn_mask is not None:
            parts.append(self.additive(attn_mask))
        if key_mask is not None:
            parts.append(self.additive(key_mask[:, None, None, :]))
        if is_causal:
            parts.append(self.additive(self.causal(self.distance(scores, q_offset))))
        if window is not None:
            parts.append(self.additive(self.band(self.distance(scores, q_offset), *window)))
        return self.together(parts)

    def distance(self, scores, q_offset):
        """Of key j from the position of query i: (T, S), or (B, 1, T, S)."""
        query, key = (torch.arange(n, device=scores.device) for n in scores.shape[-2:])
        if isinstance(q_offset, torch.Tensor):
            q_offset = self.offset(q_offset)
        return key - (query[:, None] + q_offset)

    def offset(self, q_offset):
        return q_offset[:, None, None, None]

    def causal(self, distance):
        return distance <= 0

    def band(self, distance, left, right):
        """Where -left <= distance <= right."""
        inside = torch.ones_like(distance, dtype=torch.bool)
        inside = inside if left is None else inside & self.within_left(distance, left)
        return inside if right is None else inside & self.within_right(distance, right)

    def within_left(self, distance, left):
        return distance >= -left

    def within_right(self, distance, right):
        return distance <= right

    def additive(self, mask):
        if mask.dtype != torch.bool:
            return mask.double()
        return torch.zeros_like(mask, dtype=torch.float64).masked_fill(~mask, self.fill)

    def together(self, parts):
        return reduce(torch.add, parts)

    def normalise(self, scores, added):
        scores = scores + added
        dead = (added == float("-inf")).all(-1, keepdim=True)
        return scores.masked_fill(dead, 0.0).softmax(-1).masked_fill(dead, 0.0)

    def drop(self, weights, dropout_p):
        return F.dropout(weights, dropout_p) if dropout_p > 0 else weights

    def join(self, weights, value):
        return weights @ value.double()

    def finish(self, result, value):
        return result.to(value.dtype)

    def shown(self, weights, dropped):
        return weights


class Module(mha.MultiHeadAttention):
    """``mha.MultiHeadAttention``, correct. Subclasses break one step, or what they call."""

    attend = Function()
    options, in_training = {}, True

    def forward(
        self,
        query,
        key=None,
        value=None,
        *,
        attn_mask=None,
        key_mask=None,
        is_causal=None,
        positions=None,
        cache=None,
        return_weights=False,
    ):
        alone = key is None or key is query
        key = query if key is None else key
        value = key if value is None else value
        if key_mask is not None:
            query = self.clean_query(query, key_mask) if key is query else query
            key, value = self.clean(key, key_mask), self.clean(value, key_mask)
        rules = {"attn_mask": attn_mask, "key_mask": key_mask, "is_causal": self.causal(is_causal)}
        rules["window"] = self.window
        q, k, v = self.project(query, key, value)
        places = self.places(positions, query, cache)
        q, k, v = self.arrange(q, k, v, places, places if alone else self.count(key))
        if cache is not None:
            k, v, rules = self.remember(cache, k, v, rules)
        joined = self.attend(
            *(q, k, v),
            **self.masks(rules),
            dropout_p=self.dropout_now(),
            scale=self.factor(),
            enable_gqa=self.num_kv_heads != self.num_heads,
            softcap=self.softcap,
            return_weights=return_weights,
        )
        joined, weights = joined if return_weights else (joined, None)
        output = self.output(self.merge(joined))
        return (output, self.shown(weights)) if return_weights else output

    def clean(self, x, key_mask):
        return x.masked_fill(~key_mask[..., None], 0.0)

    def clean_query(self, x, key_mask):
        return x.masked_fill(~key_mask[..., None] & ~x.isfinite(), 0.0)

    def causal(self, is_causal):
        return self.is_causal if is_causal is None else is_causal

    def project(self, query, key, value):
        return (
            self.split(self.q_proj(query)),
            self.split(self.k_proj(key)),
            self.split(self.v_proj(value)),
        )

    def split(self, x):
        return x.view(*x.shape[:2], self.heads(x), self.head_dim).transpose(1, 2)

    def heads(self, x):
        """H for queries, H_kv for keys and values."""
        return x.shape[-1] // self.head_dim

    def count(self, x):
        return torch.arange(x.shape[1], device=x.device)

    def places(self, positions, query, cache):
        """Where the queries stand: (T,) or (B, T)."""
        if positions is not None:
            return positions
        first = 0 if cache is None else self.first(cache)
        first = first[:, None] if isinstance(first, torch.Tensor) else first  # (B, 1)
        return self.count(query) + first

    def first(self, cache):
        return cache.position

    def arrange(self, q, k, v, places, key_places):
        """Norm, then rotation, of queries and keys."""
        q, k = self.norm(q, k)
        return *self.rotate(q, k, places, key_places), v

    def norm(self, q, k):
        return (q, k) if self.q_norm is None else (self.q_norm(q), self.k_norm(k))

    def rotate(self, q, k, places, key_places):
        return self.turn(q, places), self.turn(k, key_places)

    def turn(self, x, places):
        return x if self.rope is None else self.rope(x, places)

    def remember(self, cache, k, v, rules):
        """Append to the cache: all keys and values, and the rules that go with them."""
        k, v, key_mask, q_offset = cache.append(k, v, rules["key_mask"])
        return k, v, {**rules, "key_mask": key_mask, "q_offset": q_offset}

    def masks(self, rules):
        return rules

    def dropout_now(self):
        return self.dropout if self.training else 0.0

    def factor(self):
        return self.scale

    def merge(self, x):
        return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], self.embed_dim)

    def output(self, joined):
        return self.out_proj(joined)

    def shown(self, weights):
        return weights
