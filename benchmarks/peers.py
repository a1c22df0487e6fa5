"""The contestants of attention.py: one computation, written by many hands.

All are self-attention of width E with H heads, D = E // H, four maps with biases, no dropout, and
carry the weights of one `mha.MultiHeadAttention`. Transformers' BERT attention ends before W_O,
which is set behind it. x-transformers' maps have no biases of their own; here they get them. Masks
are made before the clock starts. Where a library wants a mask for causal attention, it has one.
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mha

PACKAGES = ("transformers", "x-transformers")  # pip install "mha[peers]"


class Point(NamedTuple):
    """Sizes of one comparison; `module` holds the weights, and where and in which dtype."""

    module: mha.MultiHeadAttention
    length: int
    causal: bool


class Contestant(NamedTuple):
    """`call(x)` is the output for x (B, T, E); `parameters` are what it learns."""

    call: Callable[[Tensor], Tensor]
    parameters: list[nn.Parameter]


class FusedAttention(nn.Module):
    """By hand: queries, keys and values in one product, then torch's fused kernel."""

    def __init__(self, embed_dim: int, num_heads: int, causal: bool):
        super().__init__()
        self.num_heads, self.causal = num_heads, causal
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.out = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, T, 3, H, D)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (3, B, H, T, D)
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)  # (B, H, T, D)
        return self.out(heads.transpose(1, 2).flatten(2))  # (B, T, E)


def _mha(point: Point, *, weights: bool = False, fused: bool = False) -> Contestant:
    source = point.module
    place = {"device": source.q_proj.weight.device, "dtype": source.q_proj.weight.dtype}
    sizes = source.embed_dim, source.num_heads
    module = mha.MultiHeadAttention(*sizes, is_causal=point.causal, **place)
    module.load_state_dict(source.state_dict())
    if fused:
        module.fuse_qkv_()
    if weights:
        return _contestant(point, module, lambda x: module(x, return_weights=True)[0])
    return _contestant(point, module, module)


def _by_hand(point: Point) -> Contestant:
    source = point.module
    module = FusedAttention(source.embed_dim, source.num_heads, point.causal)
    maps = source.q_proj, source.k_proj, source.v_proj
    with torch.no_grad():
        module.qkv.weight.copy_(torch.cat([linear.weight for linear in maps]))
        module.qkv.bias.copy_(torch.cat([linear.bias for linear in maps]))
    module.out.load_state_dict(source.out_proj.state_dict())
    return _contestant(point, module, module)


def _torch(point: Point, *, weights: bool, fast_path: bool) -> Contestant:
    module = mha.interop.to_torch(point.module)
    hidden = _hidden(point) if point.causal else None
    options = {"need_weights": weights, "average_attn_weights": False, "is_causal": point.causal}

    def call(x: Tensor) -> Tensor:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        output = module(x, x, x, attn_mask=hidden, **options)[0]
        torch.backends.mha.set_fastpath_enabled(True)
        return output

    return _contestant(point, module, call)


def _bert(point: Point, *, kernel: str) -> Contestant:
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertSelfAttention

    source = point.module
    sizes = {"hidden_size": source.embed_dim, "num_attention_heads": source.num_heads}
    config = BertConfig(**sizes, attention_probs_dropout_prob=0.0, attn_implementation=kernel)
    module = nn.ModuleDict(
        {
            "self": BertSelfAttention(config, is_causal=point.causal),
            "dense": nn.Linear(source.embed_dim, source.embed_dim),
        }
    )
    _load(module["self"], source, query="q_proj", key="k_proj", value="v_proj")
    _load(module, source, dense="out_proj")
    mask = None
    if kernel == "eager" and point.causal:  # added to the scores; the other kernel has a flag
        mask = mha.masks.to_additive(~_hidden(point), dtype=source.q_proj.weight.dtype)
        mask = mask[None, None]  # (1, 1, T, T)
    attention, dense = module["self"], module["dense"]
    return _contestant(point, module, lambda x: dense(attention(x, attention_mask=mask)[0]))


def _x_transformers(point: Point) -> Contestant:
    from x_transformers.x_transformers import Attention

    source = point.module
    sizes = {"dim": source.embed_dim, "heads": source.num_heads, "dim_head": source.head_dim}
    module = Attention(**sizes, causal=point.causal, flash=True)
    names = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
    for name in names:
        setattr(module, name, nn.Linear(source.embed_dim, source.embed_dim))
    _load(module, source, **names)
    return _contestant(point, module, module)


def _load(module: nn.Module, source: nn.Module, **names: str) -> None:
    """Copy weights and biases: names of layers in `module` to those in `source`."""
    layers = dict(module.named_children())
    for mine, theirs in names.items():
        layers[mine].load_state_dict(getattr(source, theirs).state_dict())


def _hidden(point: Point) -> Tensor:
    """True above the diagonal, (T, T): torch's own sense of a mask."""
    return ~mha.masks.causal(point.length, device=point.module.q_proj.weight.device)


def _contestant(point: Point, module: nn.Module, call: Callable) -> Contestant:
    weight = point.module.q_proj.weight
    module.to(weight.device, weight.dtype).train(point.module.training)
    return Contestant(call, list(module.parameters()))


class Entry(NamedTuple):
    """How to make a contestant. One with all weights in memory at once is `quadratic`; the fast
    path of torch works in eval mode without gradients only: `forward_only`."""

    make: Callable[[Point], Contestant]
    needs: str | None = None
    quadratic: bool = False
    forward_only: bool = False
    ours: bool = False


ENTRIES = {
    "mha": Entry(_mha, ours=True),
    "mha, fused": Entry(partial(_mha, fused=True), ours=True),
    "mha, weights": Entry(partial(_mha, weights=True), quadratic=True, ours=True),
    "by hand, fused": Entry(_by_hand),
    "torch.nn": Entry(partial(_torch, weights=False, fast_path=False)),
    "torch.nn, weights": Entry(partial(_torch, weights=True, fast_path=False), quadratic=True),
    "torch.nn, fast path": Entry(
        partial(_torch, weights=False, fast_path=True), quadratic=True, forward_only=True
    ),
    "torch.nn, fast path, weights": Entry(
        partial(_torch, weights=True, fast_path=True), quadratic=True, forward_only=True
    ),
    "BERT, eager": Entry(partial(_bert, kernel="eager"), "transformers", quadratic=True),
    "BERT, sdpa": Entry(partial(_bert, kernel="sdpa"), "transformers"),
    "x-transformers, flash": Entry(_x_transformers, "x_transformers"),
}


def missing() -> set[str]:
    """The packages that contestants need and that are not installed."""
    needs = {entry.needs for entry in ENTRIES.values() if entry.needs}
    return {name for name in needs if importlib.util.find_spec(name) is None}
