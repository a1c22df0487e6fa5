"""One matrix product for queries, keys and values, while q_proj, k_proj and v_proj stay modules.

The three weights are moved to lie behind one another in one piece of memory, so that one product
can read them all. They remain three parameters, in the state dict and for the optimizer.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.module import _has_any_global_hook

from mha import _checks

NAMES = "q_proj", "k_proj", "v_proj"
HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def obstacle(module: nn.Module) -> str | None:
    """Why the three maps of a module must be called one by one, or None."""
    maps = [getattr(module, name) for name in NAMES]
    if _has_any_global_hook():
        return "hooks are set on all modules"
    for name, linear in zip(NAMES, maps, strict=True):
        if type(linear) is not nn.Linear:
            return f"{name} is a {type(linear).__name__} instead of an nn.Linear"
        if any(getattr(linear, hooks) for hooks in HOOKS):
            return f"{name} has hooks"
        if "forward" in vars(linear):
            return f"{name} has a forward of its own"
    if len({linear.in_features for linear in maps}) > 1:
        return "kdim or vdim differs from embed_dim"
    if len({linear.bias is None for linear in maps}) > 1:
        return "some of the maps have a bias and some have none"
    if len({(x.weight.dtype, x.weight.device, x.weight.requires_grad) for x in maps}) > 1:
        return "the weights differ in dtype, device or requires_grad"
    return None


@torch.no_grad()
def pack(module: nn.Module) -> None:
    """Move the weights, and the biases, of the three maps behind one another in memory."""
    maps = [getattr(module, name) for name in NAMES]
    for kind in ("weight", "bias"):
        parameters = [getattr(linear, kind) for linear in maps]
        if parameters[0] is None:
            continue
        packed = torch.cat([x.detach() for x in parameters])  # ((H + 2 H_kv) D, E) or without E
        parts = packed.split([len(x) for x in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.data = part


def project(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Queries, keys and values (B, T, ...) by one product, or None where that will not do."""
    if _checks.is_tracing(x) or _checks.is_autocast(x.device.type):
        return None
    maps = [getattr(module, name) for name in NAMES]
    if obstacle(module) is not None or not _adjacent(maps):
        return None
    weights = [linear.weight for linear in maps]
    biases = [linear.bias for linear in maps]
    sizes = [len(weight) for weight in weights]
    packed = _whole(weights[0], sum(sizes))  # ((H + 2 H_kv) D, E)
    bias = None if biases[0] is None else _whole(biases[0], sum(sizes))
    if not torch.is_grad_enabled():
        return F.linear(x, packed, bias).split(sizes, dim=-1)
    return _Product.apply(x, packed, bias, *weights, *biases).split(sizes, dim=-1)


def _adjacent(maps: list[nn.Linear]) -> bool:
    """Whether the parameters still lie as ``pack`` has laid them; ``.to()`` and copies move them."""
    for kind in ("weight", "bias"):
        parameters = [getattr(linear, kind, None) for linear in maps]
        if all(x is None for x in parameters):
            continue
        if not all(isinstance(x, Tensor) and x.is_contiguous() for x in parameters):
            return False
        for one, other in zip(parameters, parameters[1:], strict=False):
            alike = one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
            if not alike or one.data_ptr() + one.nbytes != other.data_ptr():
                return False
    return True


def _whole(first: Tensor, rows: int) -> Tensor:
    """The packed tensor, given its first part."""
    first = first.detach()
    return first.as_strided((rows, *first.shape[1:]), first.stride())


class _Product(torch.autograd.Function):
    """x W^T + b with W and b packed; gradients go to the parts."""

    @staticmethod
    def forward(ctx, x, packed, bias, *parts):
        ctx.save_for_backward(x, packed)
        ctx.sizes = [len(weight) for weight in parts[:3]]
        return F.linear(x, packed, bias)  # (B, T, (H + 2 H_kv) D)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, packed = ctx.saved_tensors
        wants_x, _, _, *wanted = ctx.needs_input_grad
        flat = grad.flatten(0, -2)  # (B*T, (H + 2 H_kv) D)
        weights = biases = (None,) * 3
        if any(wanted[:3]):
            weights = (flat.mT @ x.flatten(0, -2)).split(ctx.sizes)  # (..., E) each
        if any(wanted[3:]):
            biases = flat.sum(0).split(ctx.sizes)
        return grad @ packed if wants_x else None, None, None, *weights, *biases
