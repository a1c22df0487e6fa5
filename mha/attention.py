"""Scaled dot-product attention: a readable path in plain PyTorch, and the fused one of torch.

Axes: B batch, H heads, T queries, S keys, D width of one head, D_v width of one value.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from mha import _checks, masks


def scaled_dot_product_attention(
    query: Float[Tensor, "*q T D"],
    key: Float[Tensor, "*k S D"],
    value: Float[Tensor, "*v S Dv"],
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    key_mask: Bool[Tensor, "*m S"] | None = None,
    q_offset: int = 0,
    return_weights: bool = False,
    backend: str = "auto",
) -> Float[Tensor, "*out T Dv"] | tuple[Float[Tensor, "*out T Dv"], Float[Tensor, "*out T S"]]:
    """softmax(scale Q K^T + mask) V for each head, as ``F.scaled_dot_product_attention``.

    The first six arguments are torch's, in torch's order. Masks compose by AND. A query that may
    see nothing gets output 0, weights 0 and finite gradients. A NaN or inf at a key that
    ``key_mask`` excludes reaches neither output nor gradient.

    Args:
        query: (..., H, T, D); three axes mean (H, T, D).
        key: (..., H, S, D).
        value: (..., H, S, D_v). Leading axes of the three broadcast.
        attn_mask: broadcasts to (..., H, T, S). Bool, True = may attend; or floating (the query's
            dtype or float32), added to the scores, which are log-odds.
        dropout_p: probability of dropping a weight, applied whenever it is above 0.
        is_causal: query i sees key j only if j <= i + q_offset, besides any mask.
        scale: factor of the scores, 1/sqrt(D) by default.
        key_mask: bool (..., S), True = a real key; its leading axes broadcast to those before H.
        q_offset: position of the first query among the keys; may be negative.
        return_weights: also return the weights, before dropout. The output stays the same.
        backend: "reference" (readable PyTorch, float32 inside for half types), "sdpa" (torch's
            fused kernels; the readable path for empty axes, and for a float attn_mask while
            gradients are on), or "auto" ("sdpa"). The fused CPU kernel has no second derivative
            and no forward mode; "reference" has both.
    Returns: output (..., H, T, D_v) in the query's dtype, and weights (..., H, T, S) if asked for.
    Errors: TypeError or ValueError naming the argument, what came and what was expected.
    Source: Vaswani et al. (2017), equation 1.
    """
    _checks.check_options(dropout_p, is_causal, scale, q_offset, backend)
    query, key, value, attn_mask = _autocast(query, key, value, attn_mask)
    lead = _checks.check_tensors(query, key, value)
    bare = len(lead) == 0  # no head axis came: give it one, and take it away again
    lead = torch.Size([1]) if bare else lead
    sizes = query.shape[-2], key.shape[-2]  # (T, S)
    _checks.check_attn_mask(attn_mask, query, (*lead, *sizes))
    _checks.check_key_mask(key_mask, query, (*lead[:-1], sizes[1]))
    _checks.warn_of_zero_one(attn_mask, stacklevel=2)

    query, key, value = (x.expand(*lead, *x.shape[-2:]) for x in (query, key, value))
    if key_mask is not None:
        padding = ~key_mask[..., None, :, None]  # (..., 1, S, 1)
        key, value = key.masked_fill(padding, 0.0), value.masked_fill(padding, 0.0)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if is_causal and not torch.compiler.is_compiling() and 0 < q_offset >= sizes[1] - 1:
        is_causal = False  # even the first query sees the last key: one step of a decoder
    rules = attn_mask, key_mask, is_causal, q_offset
    with _no_autocast(query.device.type):
        output, weights = _run(query, key, value, rules, dropout_p, scale, backend, return_weights)
    if bare:
        output, weights = output[0], None if weights is None else weights[0]
    return (output, weights) if return_weights else output


def _run(query, key, value, rules, dropout_p, scale, backend, return_weights):
    """Take the path; compute weights where it needs them or the caller wants them."""
    bias = rules[0]
    # A fused backward rebuilds weights as exp(score - log-sum). In a row of huge negative numbers
    # the log-sum drowns in rounding and the weights come out as 1: no such kernel with gradients.
    fragile = bias is not None and bias.is_floating_point() and torch.is_grad_enabled()
    empty = 0 in (*query.shape[:-1], key.shape[-2])  # the fused kernels refuse these
    if backend == "reference" or fragile or empty:
        weights = _weights(query, key, rules, scale)  # (..., H, T, S)
        dropped = F.dropout(weights, dropout_p) if dropout_p > 0 else weights
        output = (dropped @ value.to(weights.dtype)).to(query.dtype)  # (..., H, T, D_v)
    else:
        output = _sdpa(query, key, value, rules, dropout_p, scale)
        weights = _weights(query, key, rules, scale) if return_weights else None
    return output, weights.to(query.dtype) if return_weights else None


def _weights(query: Tensor, key: Tensor, rules: tuple, scale: float) -> Tensor:
    """Weights (..., H, T, S), in float32 for half types; a row that sees nothing is zero."""
    dtype = _accumulation_dtype(query)
    scores = (query.to(dtype) @ key.to(dtype).mT) * scale  # (..., H, T, S)
    mask = _mask(query, key, rules)
    if mask is None:
        return scores.softmax(-1)
    if mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, float("-inf"))
    else:
        scores = scores + mask
    # A row of -inf has no softmax. Give it zeros to chew on, then take its weights away:
    # what is filled receives no gradient, so nothing undefined flows back.
    dead = (scores == float("-inf")).all(-1, keepdim=True)  # (..., H, T, 1)
    return scores.masked_fill(dead, 0.0).softmax(-1).masked_fill(dead, 0.0)


def _sdpa(query, key, value, rules, dropout_p, scale):
    """torch's fused kernels; the causal flag is theirs only where no other mask is given."""
    attn_mask, key_mask, is_causal, q_offset = rules
    lone = attn_mask is None and key_mask is None
    flag = True if lone and is_causal and q_offset == 0 else False  # a plain bool under tracing
    mask = None if flag else _mask(query, key, rules)
    dtype, three_axes, dead = query.dtype, query.ndim == 3, None
    if mask is not None:
        mask, dead = _revive(mask)
        mask = mask[(None,) * (4 - mask.ndim)]  # the fused kernel on the CPU wants four axes
        if mask.is_floating_point():  # a float32 mask on half tensors would lose digits in half
            query, key, value = (x.to(mask.dtype) for x in (query, key, value))
    if three_axes:  # (H, T, D) -> (1, H, T, D), for the same reason
        query, key, value = query[None], key[None], value[None]
    output = F.scaled_dot_product_attention(
        query, key, value, mask, dropout_p, flag, scale=scale
    ).to(dtype)  # (..., H, T, D_v)
    output = output[0] if three_axes else output
    return output if dead is None else output.masked_fill(dead, 0.0)


def _revive(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Let rows that see nothing see everything, and say which they are: (..., T, 1).

    What a fused kernel makes of such a row depends on the kernel and the torch release. So no
    kernel ever gets one; its output is set to zero afterwards.
    """
    if mask.dtype == torch.bool:
        dead = ~mask.any(-1, keepdim=True)
        return mask | dead, dead
    dead = (mask == float("-inf")).all(-1, keepdim=True)
    return mask.masked_fill(dead, 0.0), dead


def _mask(query: Tensor, key: Tensor, rules: tuple) -> Tensor | None:
    """All rules as one mask that broadcasts to (..., H, T, S), or None."""
    attn_mask, key_mask, is_causal, q_offset = rules
    causal = None
    if is_causal:
        length, size = query.shape[-2], key.shape[-2]
        causal = masks.causal(length, size, q_offset=q_offset, device=query.device)  # (T, S)
    if key_mask is not None:
        key_mask = key_mask[..., None, None, :]  # (..., 1, 1, S)
    if attn_mask is not None and attn_mask.is_floating_point():
        attn_mask = attn_mask.to(torch.promote_types(attn_mask.dtype, query.dtype))
    return masks.combine(attn_mask, key_mask, causal)


def _accumulation_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def _autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Under autocast, cast as torch's own function does: every float but float64.

    A float32 mask stays as it is, last of the four: its digits are kept, and float32 is allowed.
    """
    query = tensors[0]
    if not isinstance(query, Tensor) or not _checks.is_autocast(query.device.type):
        return tensors
    dtype = torch.get_autocast_dtype(query.device.type)

    def cast(x, kept):
        skip = not isinstance(x, Tensor) or not x.is_floating_point() or x.dtype in kept
        return x if skip else x.to(dtype)

    *operands, mask = tensors
    operands = [cast(x, kept=(torch.float64,)) for x in operands]
    return *operands, cast(mask, kept=(torch.float64, torch.float32))


def _no_autocast(device_type: str):
    """Autocast off: what is to be cast has been cast."""
    return (
        torch.autocast(device_type, enabled=False)
        if _checks.is_autocast(device_type)
        else nullcontext()
    )
