"""FlashAttention as one operator of torch: Triton's kernels on CUDA, tiles in PyTorch elsewhere.

An operator, so that torch.compile and torch.export take it as it is, and autograd calls the backward
pass that belongs to it. Operators take tensors and numbers: the rules of a call are taken apart here
and put together again inside.
"""

import importlib
import importlib.util
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mha import _checks
from mha._rules import Rules
from mha.positions import ALiBi

WIDEST = 256
"""The widest head that a kernel's tiles have room for."""

HAS_TRITON = importlib.util.find_spec("triton") is not None

_RULES = (
    "Tensor? mask, Tensor? slopes, Tensor? key_mask, Tensor? offsets, SymInt offset, "
    "SymInt? left, SymInt? right, float scale, float? softcap, bool kernel"
)


def refusal(
    query: Tensor, value: Tensor, rules: Rules, dropout_p: float, kernel: bool
) -> tuple[str, str] | None:
    """What flash cannot do of a call, and a backend that can; None if it can do it all."""
    bias = rules.attn_mask
    if dropout_p > 0:
        return "dropout", "reference"
    if torch._C._functorch.get_dynamic_layer_stack_depth() > 0:  # a number for the compiler too
        return "torch.func transforms such as vmap", "reference"
    if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
        return "forward-mode derivatives", "reference"
    if torch.is_grad_enabled() and isinstance(bias, Tensor) and bias.requires_grad:
        return "a gradient to attn_mask", "reference"
    if not kernel:
        return None
    if query.dtype == torch.float64:
        return f"float64 on {query.device.type}", "reference"
    if max(query.shape[-1], value.shape[-1]) > WIDEST:
        return f"heads wider than {WIDEST} on {query.device.type}", "reference"
    return None


def suits(device: torch.device) -> bool:
    """Whether "auto" may take kernels on this GPU: triton is there, and so are the fast products."""
    return HAS_TRITON and torch.cuda.get_device_properties(device).major >= 8


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rules: Rules,
    scale: float,
    softcap: float | None,
    kernel: bool,
) -> Tensor:
    """Output (B, H, T, D_v) of query (B, H, T, D), key (B, H_kv, S, D), value (B, H_kv, S, D_v).

    No axis is empty. ``kernel``: by Triton, else by `tiles`. No gradient to attn_mask.
    """
    bias, offset = rules.attn_mask, rules.q_offset
    mask, slopes = (None, bias.slopes) if isinstance(bias, ALiBi) else (bias, None)
    mask = None if mask is None else mask.detach()
    offsets, offset = (offset, 0) if isinstance(offset, Tensor) else (None, offset)
    given = mask, slopes, rules.key_mask, offsets, offset, *rules.bounds, scale, softcap, kernel
    return torch.ops.mha.flash(query, key, value, *given)[0]


@torch.library.custom_op(
    "mha::flash",
    mutates_args=(),
    schema=f"(Tensor query, Tensor key, Tensor value, {_RULES}) -> (Tensor, Tensor, Tensor)",
)
def _forward(query, key, value, *given):
    """Output, and of each row the greatest score and the sum of exponentials, for the way back."""
    run, rules, scale, softcap = _unpack(query.device, *given)
    return run.forward(query, key, value, rules, scale, softcap)


@torch.library.custom_op(
    "mha::flash_backward",
    mutates_args=(),
    schema=(
        "(Tensor grad_output, Tensor query, Tensor key, Tensor value, Tensor output, Tensor top, "
        f"Tensor total, {_RULES}) -> (Tensor, Tensor, Tensor)"
    ),
)
def _backward(grad_output, query, key, value, output, top, total, *given):
    """Gradients of query, key and value."""
    run, rules, scale, softcap = _unpack(query.device, *given)
    saved = query, key, value, output, top, total
    with _checks.no_autocast(query.device.type):  # where backward() is called inside its context
        return run.backward(grad_output, *saved, rules, scale, softcap)


def _unpack(device, mask, slopes, key_mask, offsets, offset, left, right, scale, softcap, kernel):
    """The module that runs the call, and the call's rules, scale and softcap."""
    bias = mask if slopes is None else ALiBi(len(slopes), slopes=slopes)
    offset = offset if offsets is None else offsets
    run = _kernels(device) if kernel else importlib.import_module("mha.flash.tiles")
    return run, Rules(bias, key_mask, False, (left, right), offset), scale, softcap


def _kernels(device: torch.device) -> ModuleType:
    """Triton's kernels, unless they cannot run: without triton, or on the CPU uninterpreted."""
    kernels = importlib.import_module("mha.flash.kernels")
    if device.type != "cuda" and not kernels.INTERPRETED:
        raise ValueError(
            f"a kernel takes CUDA tensors, got {device}; on the CPU it runs in Triton's interpreter, "
            "if the environment says TRITON_INTERPRET=1 before triton is first imported"
        )
    return kernels


@_forward.register_fake
def _(query, key, value, *given):
    exact = torch.promote_types(query.dtype, torch.float32)
    top, total = (query.new_empty(query.shape[:-1], dtype=exact) for _ in range(2))
    return query.new_empty(*query.shape[:-1], value.shape[-1]), top, total


@_backward.register_fake
def _(grad_output, query, key, value, *given):
    return tuple(x.new_empty(x.shape) for x in (query, key, value))


def _save(ctx, inputs, output):
    tensors, ctx.numbers = inputs[:7], inputs[7:]
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx, grad_output, *_):
    query, key, value, *masks, output, top, total = ctx.saved_tensors
    grads = torch.ops.mha.flash_backward(
        grad_output, query, key, value, output, top, total, *masks, *ctx.numbers
    )
    return *grads, *(None for _ in (*masks, *ctx.numbers))


_forward.register_autograd(_differentiate, setup_context=_save)
