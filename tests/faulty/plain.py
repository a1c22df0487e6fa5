"""The correct function and module, step by step, and the lists of their faulty variants."""

import re
import warnings
from functools import reduce

import torch
import torch.nn.functional as F

import mha

FUNCTIONS: dict[str, type["Function"]] = {}
MODULES: dict[str, type["Module"]] = {}


def mistake(*caught_by):
    """Enter a class in the list of its kind; the named properties must catch it."""

    def enter(cls):
        cls.caught_by = caught_by
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
        key_mask=None,
        q_offset=0,
        return_weights=False,
    ):
        if key_mask is not None:
            key, value = self.clean(key, key_mask), self.clean(value, key_mask)
        scores = self.score(query, key, self.factor(query, scale))
        added = self.rules(scores, attn_mask, key_mask, is_causal, q_offset)
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

    def rules(self, scores, attn_mask, key_mask, is_causal, q_offset):
        """What is added to the scores, (B, H, T, S)."""
        parts = [torch.zeros_like(scores)]
        if attn_mask is not None:
            parts.append(self.additive(attn_mask))
        if key_mask is not None:
            parts.append(self.additive(key_mask[:, None, None, :]))
        if is_causal:
            ones = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
            parts.append(self.additive(self.causal(ones, q_offset)))
        return self.together(parts)

    def causal(self, ones, q_offset):
        return ones.tril(q_offset)

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

    def forward(
        self,
        query,
        key=None,
        value=None,
        *,
        attn_mask=None,
        key_mask=None,
        is_causal=None,
        return_weights=False,
    ):
        key = query if key is None else key
        value = key if value is None else value
        if key_mask is not None:
            query = self.clean_query(query, key_mask) if key is query else query
            key, value = self.clean(key, key_mask), self.clean(value, key_mask)
        rules = {"attn_mask": attn_mask, "key_mask": key_mask, "is_causal": self.causal(is_causal)}
        joined = self.attend(
            *self.project(query, key, value),
            **self.masks(rules),
            dropout_p=self.dropout_now(),
            scale=self.factor(),
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
        return x.view(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)

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
