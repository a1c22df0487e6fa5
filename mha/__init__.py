"""mha: multi-head attention, from one head to the full masked module.

``import mha`` loads torch, numpy and jaxtyping only. Submodules load when they are first used.

Examples:
    >>> import torch
    >>> import mha
    >>> attention = mha.MultiHeadAttention(embed_dim=8, num_heads=2)
    >>> x, memory = torch.randn(2, 3, 8), torch.randn(2, 5, 8)  # (B, T, E), (B, S, E)
    >>> tuple(attention(x, is_causal=True).shape)  # self-attention
    (2, 3, 8)
    >>> output, weights = attention(x, memory, return_weights=True)  # cross-attention
    >>> tuple(weights.shape), bool(torch.allclose(weights.sum(-1), torch.ones(2, 2, 3)))
    ((2, 2, 3, 5), True)
"""

import importlib

from mha.attention import explain, scaled_dot_product_attention
from mha.cache import KVCache
from mha.multihead import MultiHeadAttention

__version__ = "0.1.0"

__all__ = [
    "KVCache",
    "MultiHeadAttention",
    "check",
    "cost",
    "data",
    "explain",
    "flash",
    "heads",
    "interop",
    "masks",
    "models",
    "positions",
    "reference",
    "results",
    "scaled_dot_product_attention",
    "training",
    "viz",
]


def __getattr__(name: str):
    if name in __all__:  # the submodules; the names above are defined already
        return importlib.import_module(f"mha.{name}")
    raise AttributeError(f"module 'mha' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
