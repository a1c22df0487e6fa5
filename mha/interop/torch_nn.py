"""Weights to and from ``torch.nn.MultiheadAttention``.

Both modules compute the same function of the same numbers; they store them differently. Ours
keeps four maps: ``q_proj.weight`` (E, E), ``k_proj.weight`` (E, kdim), ``v_proj.weight`` (E, vdim)
and ``out_proj.weight`` (E, E). torch keeps the three input maps as the rows of one matrix,
``in_proj_weight`` (3E, E), as long as keys and values are as wide as queries, and their biases as
one vector, ``in_proj_bias`` (3E,), always.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from mha import _checks
from mha.multihead import MultiHeadAttention

_ALL = slice(None)


def from_torch(module: nn.MultiheadAttention) -> MultiHeadAttention:
    """An ``mha.MultiHeadAttention`` with the weights of torch's module.

    The copy shares no memory with the original, and draws no random numbers. It has the original's
    dropout, dtype, device, training flag and frozen parameters; hooks stay behind, and tied
    parameters come apart. It is batch first, whatever ``module.batch_first`` says. Masks cross by
    ``mha.masks.from_torch``.

    Args:
        module: torch's module, with packed or separate projections.
    Errors: ValueError for a module made with ``add_bias_kv`` or ``add_zero_attn``, or whose
        parameters differ in dtype or device; TypeError for another class, or one with a forward
        of its own.

    Examples:
        >>> import torch
        >>> import mha
        >>> theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        >>> ours = mha.interop.from_torch(theirs)
        >>> x, memory = torch.randn(2, 3, 8), torch.randn(2, 5, 8)  # (B, T, E), (B, S, E)
        >>> torch.allclose(ours(x, memory), theirs(x, memory, memory)[0], atol=1e-5)
        True
    """
    _check_class("module", module, nn.MultiheadAttention)
    if module.bias_k is not None or module.bias_v is not None:
        raise ValueError(
            "add_bias_kv must be False, got a module with bias_k and bias_v: "
            "mha has no learned extra key and value"
        )
    if module.add_zero_attn:
        raise ValueError("add_zero_attn must be False, got True: mha adds no key of zeros")
    ours = skip_init(
        MultiHeadAttention,
        module.embed_dim,
        module.num_heads,
        kdim=module.kdim,
        vdim=module.vdim,
        bias=module.in_proj_bias is not None,
        out_bias=module.out_proj.bias is not None,
        dropout=module.dropout,
        **_place(module),
    )
    pairs = list(_pairs(ours, module))
    with torch.no_grad():
        for mine, theirs, rows in pairs:
            mine.copy_(theirs[rows])
            mine.requires_grad_(theirs.requires_grad)
    return ours.train(module.training)


def to_torch(module: MultiHeadAttention, *, batch_first: bool = True) -> nn.MultiheadAttention:
    """A ``torch.nn.MultiheadAttention`` with the weights of ours.

    The copy shares no memory with the original, and draws no random numbers. It has the original's
    dropout, dtype, device, training flag and frozen parameters; hooks and ``backend`` stay behind,
    and tied parameters come apart. Masks cross by ``mha.masks.to_torch``.

    Args:
        module: ours.
        batch_first: whether the copy takes (B, T, E), or torch's own default (T, B, E).
    Errors: ValueError for what torch's module cannot hold: a ``head_dim`` with H*D != E, a
        ``scale`` other than 1/sqrt(D), ``is_causal=True``, fewer key heads, ``rope``, ``qk_norm``,
        ``softcap``, a ``window``, biases on some of the four maps only, input maps of which some
        are frozen and some not, parameters that differ in dtype or device. TypeError for another
        class, or one with a forward of its own; and for a projection that is no ``nn.Linear``, or
        one with a forward of its own.

    Examples:
        >>> import torch
        >>> import mha
        >>> ours = mha.MultiHeadAttention(8, 2, kdim=6, vdim=6)
        >>> theirs = mha.interop.to_torch(ours)
        >>> x, memory = torch.randn(2, 3, 8), torch.randn(2, 5, 6)  # (B, T, E), (B, S, kdim)
        >>> torch.allclose(theirs(x, memory, memory)[0], ours(x, memory), atol=1e-5)
        True
    """
    _checks.check_flag("batch_first", batch_first)
    _check_class("module", module, MultiHeadAttention)
    _check_settings(module)
    _check_maps(module)
    theirs = skip_init(
        nn.MultiheadAttention,
        module.embed_dim,
        module.num_heads,
        kdim=module.kdim,
        vdim=module.vdim,
        bias=module.q_proj.bias is not None,
        dropout=module.dropout,
        batch_first=batch_first,
        **_place(module),
    )
    pairs = list(_pairs(module, theirs))
    with torch.no_grad():
        for mine, target, rows in pairs:
            target[rows].copy_(mine)
            target.requires_grad_(mine.requires_grad)
    return theirs.train(module.training)


def _pairs(
    ours: MultiHeadAttention, theirs: nn.MultiheadAttention
) -> Iterator[tuple[Tensor, Tensor, slice]]:
    """Our parameter, torch's, and the rows of torch's that hold ours."""
    width = ours.embed_dim
    for index, name in enumerate(("q_proj", "k_proj", "v_proj")):
        linear = getattr(ours, name)
        rows = slice(index * width, (index + 1) * width)
        if theirs.in_proj_weight is None:
            yield linear.weight, getattr(theirs, f"{name}_weight"), _ALL
        else:
            yield linear.weight, theirs.in_proj_weight, rows
        if linear.bias is not None:
            yield linear.bias, theirs.in_proj_bias, rows
    yield ours.out_proj.weight, theirs.out_proj.weight, _ALL
    if ours.out_proj.bias is not None:
        yield ours.out_proj.bias, theirs.out_proj.bias, _ALL


def _check_class(name: str, module: nn.Module, wanted: type[nn.Module]) -> None:
    """Refuse another class, and a module that computes something else."""
    expected, got = (f"{kind.__module__}.{kind.__qualname__}" for kind in (wanted, type(module)))
    if not isinstance(module, wanted):
        raise TypeError(f"{name} must be of class {expected}, got {got}")
    if getattr(module.forward, "__func__", None) is not wanted.forward:
        raise TypeError(
            f"{name} must compute what {expected} computes, got {got} with a forward of its own"
        )


def _check_settings(module: MultiHeadAttention) -> None:
    """Refuse settings that torch's module does not have."""
    inner = module.num_heads * module.head_dim
    if inner != module.embed_dim:
        raise ValueError(
            f"head_dim must be embed_dim / num_heads for torch.nn, got head_dim={module.head_dim}, "
            f"so H*D={inner} with embed_dim={module.embed_dim}"
        )
    if module.num_kv_heads != module.num_heads:
        raise ValueError(
            f"num_kv_heads must be num_heads={module.num_heads} for torch.nn, "
            f"got {module.num_kv_heads}"
        )
    options = {"rope": module.rope, "qk_norm": module.q_norm}
    options |= {"softcap": module.softcap, "window": module.window}
    for name, option in options.items():
        if option is not None:
            raise ValueError(f"{name} must be None for torch.nn, got {option}")
    default = module.head_dim**-0.5
    if module.scale is not None and not math.isclose(module.scale, default):
        raise ValueError(
            f"scale must be None or 1/sqrt(D)={default:.6g} for torch.nn, got {module.scale}; "
            f"multiply q_proj's weight and bias by {module.scale / default:.6g} to the same effect"
        )
    if module.is_causal:
        raise ValueError(
            "is_causal must be False for torch.nn, whose module keeps no such setting, got True; "
            "pass the causal mask at each call"
        )


def _check_maps(module: MultiHeadAttention) -> None:
    """Refuse projections that torch's module cannot store side by side."""
    names = ("q_proj", "k_proj", "v_proj", "out_proj")
    linears = {name: getattr(module, name) for name in names}
    for name, linear in linears.items():
        _check_class(name, linear, nn.Linear)
    having = [name for name, linear in linears.items() if linear.bias is not None]
    if 0 < len(having) < len(names):
        raise ValueError(
            "bias and out_bias must agree for torch.nn, which gives all four maps a bias or none, "
            f"got a bias on {', '.join(having)} only; add a bias of zeros to the others"
        )
    packed = {"bias": having[:3]}
    if module.kdim == module.vdim == module.embed_dim:
        packed["weight"] = list(names[:3])
    for kind, stored in packed.items():
        frozen = [name for name in stored if not getattr(linears[name], kind).requires_grad]
        if 0 < len(frozen) < len(stored):
            raise ValueError(
                f"requires_grad must be the same for each {kind} of q_proj, k_proj and v_proj, "
                f"which torch.nn stores in one parameter, got {', '.join(frozen)} frozen"
            )


def _place(module: nn.Module) -> dict:
    """The dtype and device that all parameters share."""
    places = {(p.dtype, p.device) for p in module.parameters()}
    if len(places) > 1:
        got = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in places))
        raise ValueError(f"parameters of module must share one dtype and device, got {got}")
    dtype, device = places.pop()
    return {"dtype": dtype, "device": device}
