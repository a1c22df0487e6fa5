"""Each specimen of ``specimens.fancy`` and its companions has just the mistakes that it is entered with.

A case tells how to repair the source, mistake by mistake. Repaired, the specimen gives the numbers of ``mha``
with the same weights; with one mistake left, it fails the probes named for that mistake and no others.
"""

import inspect
import math
import sys
from dataclasses import dataclass, field

import pytest
import specimens.fancy  # noqa: F401
import torch
from specimens import SPECIMENS
from torch import nn

import mha

FILES = ("fancy", "functional", "packed", "wrapped")
ENTERED = {s.subject.__name__: s for s in SPECIMENS if s.subject.__module__.split(".")[-1] in FILES}
B, T, S, E = 2, 5, 7, 12
COPIES = 3000
"""Draws over which the probe of dropout takes the mean."""


@dataclass(frozen=True)
class Case:
    """``repairs[i]`` undoes mistake i, (old, new) by (old, new); ``fails[i]`` are the probes it fails."""

    repairs: tuple
    fails: tuple
    heads: int = 3
    causal: bool = False  # the subject hides the future by itself
    square: bool = False  # it can take as many keys as queries only
    mask: str = (
        "BHTS"  # what its mask is: BHTS, TS, BTS, keys (B, S), pads (B, S) with True = padding
    )
    flags: dict = field(default_factory=dict)  # further arguments of the call
    parts: tuple[str, ...] = ()  # what the repairs change beside the subject, by name


def one(*changes, fails="plain masked", **kwargs):
    """A case with one mistake."""
    return Case((changes,), (tuple(fails.split()),), **kwargs)


def two(first, second, fails, **kwargs):
    """A case with two mistakes."""
    return Case((first, second), tuple(tuple(f.split()) for f in fails), **kwargs)


INF = 'float("-inf")'
OVER_D = ("q @ k.mT", "q @ k.mT / math.sqrt(self.head_dim)")
CAUSAL = {"causal": True, "fails": "plain"}

CASES = {
    # functional
    "dot_attention": one(("(-2, -1))\n", "(-2, -1)) / math.sqrt(q.size(-1))\n")),
    "scaled_attention": one(("* math.sqrt(d_k)", "/ math.sqrt(d_k)")),
    "attend": one(("/ Q.size(-1)", "/ Q.size(-1) ** 0.5")),
    "attention_by_hand": one(("e.sum(dim=-2", "e.sum(dim=-1")),
    "attention_dim_one": one(("dim=1", "dim=-1")),
    "keys_times_queries": one(
        ("matmul(key, query.transpose(-2, -1))", "matmul(query, key.transpose(-2, -1))"),
        square=True,
    ),
    "attention_with_allowed": one(("masked_fill(allowed", "masked_fill(~allowed"), fails="masked"),
    "attention_forgets": one(("scores.masked_fill(", "scores.masked_fill_("), fails="masked"),
    "soft_then_mask": one(
        ("    weights = (q @ k.mT * q.size(-1) ** -0.5).softmax(dim=-1)\n", ""),
        ("    if mask", "    scores = q @ k.mT * q.size(-1) ** -0.5\n    if mask"),
        ("weights = weights * mask", "scores = scores.masked_fill(~mask, -6e4)"),
        ("return weights @ v", "return scores.softmax(-1) @ v"),
        fails="masked",
    ),
    "masked_product": one(
        ("scores = scores * attn_mask", "scores = scores.masked_fill(~attn_mask, -6e4)"),
        fails="masked",
    ),
    "additive_attention": one(
        ("scores = scores + mask", "scores = scores.masked_fill(~mask, -6e4)"), fails="masked"
    ),
    "attention_typo": one(("-1e-9", "-6e4"), fails="masked"),
    "attention_cleaned": one(
        (INF, "torch.finfo(scores.dtype).min"),
        ("weights = torch.nan_to_num(scores.softmax(dim=-1))", "weights = scores.softmax(dim=-1)"),
        ("    return", "    weights = weights if mask is None else weights * mask\n    return"),
        fails="dead-gradient",
    ),
    "attention_big_number": one(("-1e20", "torch.finfo(scores.dtype).min"), fails="half"),
    "attention_with_padding": one(
        ("[:, None, :, None]", "[:, None, None, :]"), fails="masked", square=True, mask="keys"
    ),
    "attention_minus_inf": one(
        ("    e = ", "    top = top.clamp_min(-1e30)\n    e = "),
        ("/ e.sum(dim=-1, keepdim=True)", "/ e.sum(dim=-1, keepdim=True).clamp_min(1e-30)"),
        fails="dead",
    ),
    "attention_finfo": one(
        (
            "attn = scores.softmax(-1)\n",
            "attn = scores.softmax(-1)\n    attn = attn if mask is None else attn * mask\n",
        ),
        fails="dead",
    ),
    "causal_attention": one((".triu()", ".tril()"), **CAUSAL),
    "causal_without_self": one(("j >= i", "j > i"), flags={"is_causal": True}, **CAUSAL),
    "autoregressive_attention": one(("diagonal=2", "diagonal=1"), **CAUSAL),
    "lookup": one(("query @ value.", "query @ key."), ("dim=-1) @ key", "dim=-1) @ value")),
    "grouped_attention": one(
        ("torch.cat([k] * groups, dim=1)", "k.repeat_interleave(groups, 1)"),
        ("torch.cat([v] * groups, dim=1)", "v.repeat_interleave(groups, 1)"),
        heads=4,
    ),
    "attention_returns_dropped": one(
        ("F.dropout(scores.softmax(dim=-1), p=dropout_p)", "scores.softmax(dim=-1)"),
        ("return weights @ v", "return F.dropout(weights, dropout_p) @ v"),
        fails="weights",
    ),
    "attention_drops_scores": one(
        ("    scores = F.dropout(scores, p=dropout_p)\n", ""),
        ("return scores.softmax(dim=-1)", "return F.dropout(scores.softmax(dim=-1), dropout_p)"),
        fails="mean",
    ),
    "attention_in_numpy": one(
        (".detach().numpy()", ""), ("    scores = torch.from_numpy(scores)\n", ""), fails="gradient"
    ),
    "attention_in_float": one(("-6e4", "-1e4"), (".float()", ""), fails="half"),
    "two_scale_and_mask": two(
        (("/ q.size(-1)", "/ q.size(-1) ** 0.5"),),
        (("scores = scores + mask", "scores = scores.masked_fill(~mask, -6e4)"),),
        fails=("plain masked", "masked"),
    ),
    "two_scale_and_late_mask": two(
        (("query, key)", "query / query.size(-1) ** 0.5, key)"),),
        (
            ("    weights = torch.softmax(", "    scores = ("),
            (", key), dim=-1)", ", key))"),
            (
                "weights = weights.masked_fill(~mask, 0.0)",
                "scores = scores.masked_fill(~mask, -6e4)",
            ),
            ("    return", "    weights = scores.softmax(-1)\n    return"),
        ),
        fails=("plain masked", "masked"),
    ),
    "two_axis_and_polarity": two(
        (("softmax(dim=-2)", "softmax(dim=-1)"),),
        (("masked_fill(keep", "masked_fill(~keep"),),
        fails=("plain masked", "masked"),
    ),
    # packed
    "PackedModelScale": one(("self.embed_dim", "self.head_dim")),
    "PackedHeadSoftmax": one(("scores, 1)", "scores, -1)")),
    "PackedBiasMissing": one(
        ("        q = ", "        b_q, b_k, b_v = self.in_proj_bias.chunk(3)\n        q = "),
        ("w_q))", "w_q, b_q))"),
        ("w_k))", "w_k, b_k))"),
        ("w_v))", "w_v, b_v))"),
        fails="plain masked gradients",
    ),
    "PackedSlicesWrong": one(
        ("F.linear(key, W[:E], b[:E])", "F.linear(key, W[E:-E], b[E:-E])"),
    ),
    "PackedOwnDropout": one(("attn * keep", "attn * keep / (1 - self.dropout)"), fails="mean"),
    "PackedReturnsDropped": one(
        ("        weights = F.dropout(weights, self.dropout, self.training)\n", ""),
        (
            "self.merge(weights @ v)",
            "self.merge(F.dropout(weights, self.dropout, self.training) @ v)",
        ),
        fails="weights",
    ),
    "QKVViewed": one(
        (
            ".reshape(B, self.num_heads, T, C // self.num_heads)",
            ".view(B, T, self.num_heads, C // self.num_heads).transpose(1, 2)",
        ),
    ),
    "QKVInterleaved": one(
        ("3, self.dim_head, self.heads)", "3, self.heads, self.dim_head)"),
        ("(2, 0, 4, 1, 3)", "(2, 0, 3, 1, 4)"),
    ),
    "QKVMergedAcross": one(("permute(0, 2, 3, 1)", "permute(0, 2, 1, 3)")),
    "QKVFused": one(
        ("dropout_p=self.dropout", "dropout_p=self.dropout * self.training"), fails="eval"
    ),
    "GroupedFused": one(
        (
            "k.repeat(1, group, 1, 1), v.repeat(1, group, 1, 1)",
            "k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)",
        ),
        heads=4,
    ),
    "GPTMergeViewed": one(("y.contiguous().view(", "y.transpose(1, 2).reshape("), **CAUSAL),
    "GPTOneHead": one(
        (
            "        p = ",
            "        q, k, v = (t.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for t in (q, k, v))\n        p = ",
        ),
        ("self.c_proj(y)", "self.c_proj(y.transpose(1, 2).flatten(2))"),
        **CAUSAL,
    ),
    "GPTUpper": one(("torch.triu", "torch.tril"), **CAUSAL),
    "GPTStrict": one(("torch.triu(ones)", "torch.triu(ones, 1)"), **CAUSAL),
    "GPTSeesNext": one(("position[:, None] + 1", "position[:, None]"), **CAUSAL),
    "GPTWithPast": one(
        ("self.bias[:, :, :T, :S]", "self.bias[:, :, S - T : S, :S]"), causal=True, fails="cached"
    ),
    "GPTNoProjection": one(
        ("return y.transpose(1, 2).flatten(2)", "return self.join(y)"),
        causal=True,
        fails="plain gradients",
    ),
    "GPTMaskOnCPU": one(
        (
            "self.mask = torch.tril(torch.ones(config.block_size, config.block_size))",
            "self.register_buffer('mask', torch.tril(torch.ones(config.block_size, config.block_size)))",
        ),
        causal=True,
        fails="device",
    ),
    "TwoScaleAndMerge": two(
        (OVER_D,),
        (("(scores.softmax(-1) @ v).reshape", "(scores.softmax(-1) @ v).transpose(1, 2).reshape"),),
        fails=("plain masked", "plain masked"),
    ),
    "TwoProjectionAndLeak": two(
        (
            ("return self.attend", "return self.join(self.attend"),
            (".transpose(1, 2).flatten(2)", ")"),
        ),
        (("diagonal=1", "diagonal=0"),),
        fails=("plain gradients", "plain"),
        causal=True,
    ),
    "TwoGroupsAndScale": two(
        (
            ("torch.cat([k] * group, dim=2)", "k.repeat_interleave(group, 2)"),
            ("torch.cat([v] * group, dim=2)", "v.repeat_interleave(group, 2)"),
        ),
        (("q, k)\n", "q, k) / self.head_dim**0.5\n"),),
        fails=("plain masked", "plain masked"),
        heads=4,
    ),
    "TwoSplitAndDropout": two(
        (("t.reshape(B, self.n_head, T, -1)", "t.reshape(B, T, self.n_head, -1).transpose(1, 2)"),),
        (("= self.attn_dropout.p", "= self.attn_dropout.p * self.training"),),
        fails=("plain masked eval", "eval"),
    ),
    # fancy
    "EinsumUnscaled": one(("q, k)\n", "q, k) / self.d_head**0.5\n")),
    "EinsumOverWidth": one(("q / self.d_head", "q / self.d_head**0.5")),
    "EinsumLateMask": one(
        ("weights = self.logits(q, k).softmax(-1)", "logits = self.logits(q, k)"),
        ("weights = torch.where(mask, weights, 0.0)", "logits = torch.where(mask, logits, -6e4)"),
        ("        return", "        weights = logits.softmax(-1)\n        return"),
        fails="masked",
    ),
    "EinsumSharedValues": one(
        ("value, self.w_k", "value, self.w_v"), fails="plain masked gradients"
    ),
    "EinsumSumsHeads": one(
        ("->btd", "->bthd"),
        ("self.w_o(heads)", "self.w_o(heads.flatten(2))"),
        ("nn.Linear(self.d_head, d_model)", "nn.Linear(d_model, d_model)"),
        fails="count",
    ),
    "EinsumStaysFloat": one((".float()", ""), fails="half"),
    "SameHeadRepeated": one(
        (
            "[Head(embed_dim, embed_dim // num_heads, dropout)] * num_heads",
            "Head(embed_dim, embed_dim // num_heads, dropout) for _ in range(num_heads)",
        ),
        fails="count",
        mask="BTS",
    ),
    "CrossFromMemory": one(("head(memory, x)", "head(x, memory)"), fails="plain"),
    "HeadsWithSmallFill": one(("-1.0", "-6e4"), parts=("HeadWithMask",), **CAUSAL),
    "MatrixSharp": one(("self.d_k**-0.5", "self.d_k**0.5")),
    "MatrixOneProjection": one(
        (
            "(self.heads(X @ self.W_Q) for X in (query, key, value))",
            "(self.heads(X @ W) for X, W in ((query, self.W_Q), (key, self.W_K), (value, self.W_V)))",
        ),
        fails="plain masked gradients",
    ),
    "MatrixDropsScores": one(
        ("F.dropout(Q @ K.mT / self.d_k**0.5, self.p, self.training)", "Q @ K.mT / self.d_k**0.5"),
        ("S.softmax(-1)", "F.dropout(S.softmax(-1), self.p, self.training)"),
        fails="mean",
    ),
    "MatrixStopsGradient": one(
        ("torch.tensor((", "("), (".tolist(), dtype=Q.dtype)", ""), fails="gradient gradients"
    ),
    "MatrixInfinityTimesZero": one(
        ('S + (1 - mask.to(S.dtype)) * float("-inf")', "S.masked_fill(~mask, -6e4)"), fails="masked"
    ),
    "NamedReshapes": one(
        (
            "x.reshape(b, heads, t, e // heads)",
            "x.reshape(b, t, heads, e // heads).transpose(1, 2)",
        ),
        ("x.reshape(b, t, h * d)", "x.transpose(1, 2).reshape(b, t, h * d)"),
        parts=("split_heads", "merge_heads"),
    ),
    "CrossKeepsToItself": one(("self.to_kv(x)", "self.to_kv(context)"), fails="plain"),
    "FoldedColumns": one(("softmax(dim=1)", "softmax(dim=-1)"), mask="TS"),
    "FoldedTransposed": one(
        ("k, q.transpose(1, 2)", "q, k.transpose(1, 2)"), mask="TS", square=True
    ),
    "FoldedBatchFirst": one(
        (
            "x.contiguous().view(T, B * self.num_heads, self.head_dim)",
            "x.transpose(0, 1).reshape(T, B * self.num_heads, self.head_dim)",
        ),
        (
            "out.transpose(0, 1).reshape(B, T, E)",
            "out.transpose(0, 1).reshape(T, B, E).transpose(0, 1)",
        ),
    ),
    "FoldedTwoWays": one(
        ("mask.repeat_interleave(self.num_heads, dim=0)", "mask.repeat(self.num_heads, 1, 1)"),
        fails="masked",
        mask="BTS",
    ),
    # wrapped
    "TorchWithMask": one(
        ("attn_mask=mask", "attn_mask=None if mask is None else ~mask"), fails="masked", mask="TS"
    ),
    "FusedWithPadding": one(
        ("key_padding_mask[:, None", "~key_padding_mask[:, None"), fails="masked", mask="pads"
    ),
    "TorchInAnotherOrder": one(("(query, value, key", "(query, key, value"), fails="plain"),
    "FusedForgetsMask": one(("(q, k, v, dropout_p", "(q, k, v, mask, dropout_p"), fails="masked"),
    "FusedFloatMask": one(("mask.to(q.dtype)", "mask.bool()"), fails="masked"),
    "OwnSoftmax": one(
        ("keepdim=True)).exp()", "keepdim=True).clamp_min(-1e30)).exp()"),
        ("e.sum(-1, keepdim=True)", "e.sum(-1, keepdim=True).clamp_min(1e-30)"),
        fails="dead",
    ),
    "AdditiveMask": one(
        (
            "return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)",
            "y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)\n"
            "        return y if mask is None else y * (mask == 0).any(-1, keepdim=True)",
        ),
        fails="dead",
    ),
    "ConvZeroScores": one(
        (
            "w * attention_mask[:, None, None, :].to(w.dtype)",
            "w.masked_fill(attention_mask[:, None, None, :] == 0, -6e4)",
        ),
        fails="masked",
        mask="keys",
    ),
    "ConvBigFill": one(("-1e10", "torch.finfo(w.dtype).min"), fails="half"),
    "ConvPadsQueries": one(
        ("[:, None, :, None]", "[:, None, None, :]"), fails="masked", mask="keys"
    ),
    "BertAttention": one(
        ("context @ self.dense.weight.T", "self.dense(context)"), fails="plain gradients"
    ),
    "TwoValuesAndDropout": two(
        (("self.key(value)", "self.value(value)"),),
        (("dropout_p=self.dropout", "dropout_p=self.dropout * self.training"),),
        fails=("plain masked gradients eval", "eval"),
    ),
    "TwoBiasAndMask": two(
        (("return y.permute(0, 2, 1, 3).flatten(2) @ self.c_proj.weight", "return self.merge(y)"),),
        (("w = w * mask", "w = w.masked_fill(~mask, -6e4)"),),
        fails=("plain masked gradients", "masked"),
    ),
    "TwoMatrixAndAxis": two(
        (
            (
                "(self.heads(X @ self.W_V) for X in (query, key, value))",
                "(self.heads(X @ W) for X, W in ((query, self.W_Q), (key, self.W_K), (value, self.W_V)))",
            ),
        ),
        (("softmax(1)", "softmax(-1)"),),
        fails=("plain masked gradients", "plain masked"),
    ),
    "TwoScaleAndPolarity": two(
        (("math.sqrt(query.size(-1))", "math.sqrt(self.d_k)"),),
        (("masked_fill(allowed", "masked_fill(~allowed"),),
        fails=("plain masked", "masked"),
        mask="TS",
    ),
    "TwoHeadsAndProjection": two(
        (
            ("        head = Head(embed_dim, embed_dim // num_heads, dropout)\n", ""),
            (
                "nn.ModuleList(head for",
                "nn.ModuleList(Head(embed_dim, embed_dim // num_heads, dropout) for",
            ),
        ),
        (
            (
                "return torch.cat([head(x, x, mask) for head in self.heads], dim=-1)",
                "return self.proj(torch.cat([head(x, x, mask) for head in self.heads], dim=-1))",
            ),
        ),
        fails=("count", "plain masked gradients"),
        mask="BTS",
    ),
}


def repaired(name, mistakes):
    """The subject with the repairs of ``mistakes`` (indices) carried out in its source."""
    subject, case = ENTERED[name].subject, CASES[name]
    module = sys.modules[subject.__module__]
    things = [getattr(module, part) for part in case.parts] + [subject]
    source = "\n\n".join(inspect.getsource(thing) for thing in things)
    for i in mistakes:
        for old, new in case.repairs[i]:
            assert old in source, f"{name}: {old!r} is not in its source"
            source = source.replace(old, new)
    space = dict(vars(module), specimen=lambda *slugs, **options: lambda subject: subject)
    exec(compile(source, f"<{name} repaired>", "exec"), space)
    return space[name]


# Calling a subject, and mha with the same weights


MASKS = {
    "mask",
    "attn_mask",
    "attention_mask",
    "key_mask",
    "key_padding_mask",
    "allowed",
    "keep",
    "M",
}
OTHER = {"layer_past", "is_causal", "dropout_p"}


def names(subject):
    """The names of the arguments of a function, a module or its class."""
    function = subject if inspect.isfunction(subject) else subject.forward
    return [name for name in inspect.signature(function).parameters if name != "self"]


def build(subject, case, dropout=0.0):
    """The module with random weights, or the function as it is."""
    if inspect.isfunction(subject):
        return subject
    first = next(iter(inspect.signature(subject).parameters.values()))
    kwargs = {"num_kv_heads": 2} if "num_kv_heads" in inspect.signature(subject).parameters else {}
    if first.name == "config":
        module = subject(
            first.annotation(E, case.heads, **{_dropout_of(first.annotation): dropout})
        )
    else:
        module = subject(E, case.heads, dropout=dropout, **kwargs)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(
                torch.randn(p.shape, generator=generator) / math.sqrt(E) * (3 if p.dim() > 1 else 1)
            )
    return module.double().eval()


def _dropout_of(config):
    return next(name for name in config.__dataclass_fields__ if "dropout" in name)


def tensors(subject, case, batch=B, length=None):
    """Inputs for each argument that takes queries, keys or values."""
    generator = torch.Generator().manual_seed(5)
    count = len([name for name in names(subject) if name not in MASKS | OTHER])
    short, long = length or T, T if case.square or count == 1 else S
    if case.causal and not isinstance(subject, nn.Module):
        long = T
    if isinstance(subject, nn.Module):
        shapes = [(batch, short, E)] + [(batch, long, E)] * (count - 1)
    else:
        kv = 2 if subject.__name__ == "grouped_attention" else case.heads
        shapes = [(batch, case.heads, short, 4)] + [(batch, kv, long, 4)] * (count - 1)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def mask_for(case, queries, keys, dead=False):
    """A mask as mha takes it, and as the subject does."""
    generator = torch.Generator().manual_seed(7)
    lengths = {"BHTS": (B, 1, queries, keys), "TS": (queries, keys), "BTS": (B, queries, keys)}
    shape = lengths.get(case.mask, (B, keys))
    mask = torch.rand(shape, generator=generator) < 0.6
    mask[..., 1] = True
    mask[..., 2] = False
    if case.mask == "BTS" or case.mask == "keys" or case.mask == "pads":
        mask[0, ..., 0], mask[1, ..., 0] = True, False
    if dead:
        mask[0, ..., 1, :] = False
    full = {"BTS": mask[:, None], "keys": mask[:, None, None], "pads": mask[:, None, None]}
    return full.get(case.mask, mask), ~mask if case.mask == "pads" else mask


def call(subject, case, inputs, mask=None, **flags):
    """The output (batch first) and what came with it, or None."""
    masks = [name for name in names(subject) if name in MASKS]
    flags = case.flags | flags
    if mask is not None:
        flags[masks[0]] = mask
    first = getattr(subject, "batch_first", True) is False
    inputs = [x.transpose(0, 1) for x in inputs] if first else inputs
    result = subject(*inputs, **flags)
    output, *more = result if isinstance(result, tuple) else (result,)
    return output.transpose(0, 1) if first else output, more[0] if more else None


def linear(layer):
    """Weight (out, in) and bias of a layer in one of the styles."""
    if isinstance(layer, nn.Parameter):
        return (layer.T if layer.dim() == 2 else layer), None
    weight = layer.weight if isinstance(layer, nn.Linear) else layer.weight.T
    return weight, layer.bias


def weights_of(module):
    """[(W (out, in), b or None)] of queries, keys, values and output."""
    inner = next((m for m in module.modules() if hasattr(m, "in_proj_weight")), module)
    layers = {n: getattr(inner, n) for n in dir(inner) if not n.startswith("_")}

    def pick(*options):
        return next(
            linear(layers[n])
            for n in options
            if isinstance(layers.get(n), nn.Module | nn.Parameter)
        )

    out = pick(
        "out_proj",
        "proj",
        "to_out",
        "out",
        "dense",
        "c_proj",
        "linear_out",
        "O",
        "o_proj",
        "w_o",
        "W_O",
    )
    if "in_proj_weight" in layers:
        return [*zip(inner.in_proj_weight.chunk(3), inner.in_proj_bias.chunk(3), strict=True), out]
    if "w_q" in layers:
        flat = [(getattr(inner, n).mT.flatten(0, 1), None) for n in ("w_q", "w_k", "w_v")]
        if out[0].dim() == 3:
            return [*flat, (out[0].flatten(0, 1).T, None)]
        # heads summed before W_O (E, D) are heads side by side before that W_O, once for each head
        return [*flat, (out[0].repeat(1, E // out[0].size(1)), out[1])]
    if isinstance(layers.get("heads"), nn.ModuleList):
        return [
            *(
                (torch.cat([getattr(h, n).weight for h in inner.heads]), None)
                for n in ("query", "key", "value")
            ),
            out,
        ]
    for names_ in (
        ("q_proj", "k_proj", "v_proj"),
        ("linear_q", "linear_k", "linear_v"),
        ("Q", "K", "V"),
        ("query", "key", "value"),
        ("W_Q", "W_K", "W_V"),
    ):
        if all(n in layers for n in names_):
            return [*(linear(layers[n]) for n in names_), out]
    for q, kv in (("to_q", "to_kv"), ("q_proj", "kv_proj")):
        if q in layers and kv in layers:
            W, b = linear(layers[kv])
            return [
                linear(layers[q]),
                *zip(W.chunk(2), b.chunk(2) if b is not None else (None, None), strict=True),
                out,
            ]
    W, b = pick("qkv", "to_qkv", "c_attn", "query_key_value", "qkv_proj")
    if "query_key_value" in layers:  # a head at a time
        W = W.unflatten(0, (inner.n_heads, 3, -1)).transpose(0, 1).flatten(0, 2)
        b = b.unflatten(0, (inner.n_heads, 3, -1)).transpose(0, 1).flatten(0, 2)
    sizes = getattr(inner, "sizes", [E, E, E])
    biases = b.split(sizes) if b is not None else [None] * 3
    return [*zip(W.split(sizes), biases, strict=True), out]


def oracle(subject, case, inputs, mask=None):
    """What mha gives: output and weights."""
    if not isinstance(subject, nn.Module):
        return mha.scaled_dot_product_attention(
            *inputs, mask, is_causal=case.causal, enable_gqa=True, return_weights=True
        )
    layers = weights_of(subject)
    has_bias, out_bias = layers[0][1] is not None, layers[3][1] is not None
    right = mha.MultiHeadAttention(
        E,
        case.heads,
        num_kv_heads=2 if hasattr(subject, "num_kv_heads") else None,
        bias=has_bias,
        out_bias=out_bias,
        is_causal=case.causal,
        dtype=torch.float64,
    )
    state = {}
    for name, (W, b) in zip(("q_proj", "k_proj", "v_proj", "out_proj"), layers, strict=True):
        state |= {f"{name}.weight": W} | ({} if b is None else {f"{name}.bias": b})
    return torch.func.functional_call(
        right,
        {n: t.double() for n, t in state.items()},
        tuple(inputs),
        {"attn_mask": mask, "return_weights": True},
    )


# The probes: each tells whether the subject does what is right


def close(a, b, tolerance=1e-5):
    """The same numbers, whatever their dtype."""
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=0, atol=tolerance)


def compare(subject, case, mask=False, dead=False):
    module = build(subject, case)
    inputs = tensors(module, case)
    right_mask, own_mask = mask_for(case, T, inputs[-1].size(-2), dead) if mask else (None, None)
    output, more = call(module, case, inputs, own_mask)
    expected, weights = oracle(module, case, inputs, right_mask)
    same = close(output, expected)
    return same and (not torch.is_tensor(more) or close(more, weights))


def gradient(subject, case, dead=False):
    """The gradients of the inputs are those of mha."""
    module = build(subject, case)
    inputs = [x.requires_grad_() for x in tensors(module, case)]
    right_mask, own_mask = mask_for(case, T, inputs[-1].size(-2), True) if dead else (None, None)
    output, _ = call(module, case, inputs, own_mask)
    expected, _ = oracle(module, case, inputs, right_mask)
    up = torch.randn(
        expected.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64
    )
    if not output.requires_grad:
        return False
    want = torch.autograd.grad((expected * up).sum(), inputs)
    got = torch.autograd.grad((output * up).sum(), inputs, allow_unused=True)
    return all(g is not None and close(g, w) for g, w in zip(got, want, strict=True))


def gradients(subject, case):
    """Every parameter gets a gradient; that of a bias of the keys alone is 0 by nature."""
    module = build(subject, case)
    call(module, case, tensors(module, case))[0].square().sum().backward()
    params = [p for n, p in module.named_parameters() if n not in ("key.bias", "k_proj.bias")]
    return all(p.grad is not None and p.grad.any() for p in params)


def half(subject, case):
    """Half precision stays half, and near the numbers of double."""
    module = build(subject, case)
    inputs = tensors(module, case)
    right_mask, own_mask = mask_for(case, T, inputs[-1].size(-2))
    expected, _ = oracle(module, case, inputs, right_mask)
    module = module.half() if isinstance(module, nn.Module) else module
    try:
        output, _ = call(module, case, [x.half() for x in inputs], own_mask)
    except RuntimeError as error:
        assert "overflow" in str(error)
        return False
    return output.dtype == torch.float16 and close(output.double(), expected, 0.05)


def evaluated(subject, case):
    """With dropout, eval gives the numbers of mha."""
    module = build(subject, case, dropout=0.5)
    inputs = tensors(module, case)
    return close(call(module, case, inputs)[0], oracle(module, case, inputs)[0])


def dropped(subject, case, batch=B):
    """One call with dropout of a half: output, weights, and what both are without."""
    torch.manual_seed(0)
    module = build(subject, case, dropout=0.5)
    one = tensors(module, case, batch=1)
    inputs = [x.expand(batch, *x.shape[1:]) for x in one]
    flags = {} if isinstance(module, nn.Module) else {"dropout_p": 0.5}
    module = module.train() if isinstance(module, nn.Module) else module
    return *call(module, case, inputs, **flags), *oracle(module, case, one)


def mean(subject, case):
    """The mean over many draws of dropout is the output without."""
    output, _, expected, _ = dropped(subject, case, COPIES)
    error = output.std(0) / math.sqrt(COPIES)
    assert (error > 0).all()
    return ((output.mean(0) - expected[0]).abs() < 6 * error).all().item()


def weights(subject, case):
    """The weights returned under dropout are those before it."""
    output, more, expected, right = dropped(subject, case)
    assert not close(output, expected.expand_as(output))
    return close(more, right.expand_as(more))


def cached(subject, case):
    """Two parts, the second with the keys of the first, give what the whole gives."""
    module = build(subject, case)
    (x,) = tensors(module, case)
    expected, _ = oracle(module, case, [x])
    first, past = call(module, case, [x[:, :2]])
    second, _ = call(module, case, [x[:, 2:]], layer_past=past)
    return close(torch.cat((first, second), dim=1), expected)


def device(subject, case):
    """Everything moves with the module."""
    module = build(subject, case).to("meta")
    return all(t.is_meta for t in vars(module).values() if torch.is_tensor(t))


def count(subject, case):
    """As many numbers to learn as four projections have."""
    module = build(subject, case)
    total = sum(p.numel() for p in module.parameters())
    return total == sum(W.numel() + (0 if b is None else b.numel()) for W, b in weights_of(module))


PROBES = {
    "plain": compare,
    "masked": lambda subject, case: compare(subject, case, mask=True),
    "dead": lambda subject, case: compare(subject, case, mask=True, dead=True),
    "dead-gradient": lambda subject, case: gradient(subject, case, dead=True),
    "gradient": gradient,
    "gradients": gradients,
    "half": half,
    "eval": evaluated,
    "mean": mean,
    "weights": weights,
    "cached": cached,
    "device": device,
    "count": count,
}


def tried(name):
    """The probes of a case: both plain ones, where there is a mask, and those that its mistakes fail."""
    masked = MASKS & set(names(ENTERED[name].subject))
    return {
        "plain",
        *(["masked"] if masked else []),
        *(f for fails in CASES[name].fails for f in fails),
    }


def failed(subject, name):
    return {probe for probe in tried(name) if not PROBES[probe](subject, CASES[name])}


@pytest.mark.parametrize("name", ENTERED)
def test_repaired_it_gives_the_numbers_of_mha(name):
    every = range(len(CASES[name].repairs))
    assert failed(repaired(name, every), name) == set()


@pytest.mark.parametrize("name", ENTERED)
def test_each_mistake_alone_fails_its_probes_and_no_others(name):
    case = CASES[name]
    assert len(case.repairs) == len(case.fails) == len(ENTERED[name].slugs)
    for i in range(len(case.repairs)):
        others = [j for j in range(len(case.repairs)) if j != i]
        assert failed(repaired(name, others), name) == set(case.fails[i]), ENTERED[name].slugs[i]


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if len(case.repairs) > 1])
def test_two_mistakes_fail_what_each_fails(name):
    assert failed(ENTERED[name].subject, name) >= set(CASES[name].fails[1])


def test_the_number_of_heads_changes_nothing():
    numbers = []
    for heads in (1, 2, 3):
        case = Case((), (), heads=heads, causal=True)
        module = build(ENTERED["GPTOneHead"].subject, case)
        numbers.append(call(module, case, tensors(module, case))[0])
    assert torch.equal(numbers[0], numbers[1]) and torch.equal(numbers[0], numbers[2])


def test_every_mistake_is_there():
    from specimens import load

    load()
    plain = {
        s.slugs for s in SPECIMENS if s.subject.__module__.endswith("plain") and len(s.slugs) == 1
    }
    assert plain == {s.slugs for s in ENTERED.values() if len(s.slugs) == 1}
    assert set(CASES) == set(ENTERED)
