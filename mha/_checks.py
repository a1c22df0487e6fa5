"""What the attention function refuses, and in which words. Only shapes and types are read here,
with one exception that is named: a float mask of 0 and 1 on the CPU."""

import math
import warnings
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

BACKENDS = ("auto", "reference", "sdpa", "flash", "flex")


def check_tensors(
    query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool
) -> tuple[torch.Size, int]:
    """Refuse operands that do not fit; return the leading axes (..., H), and H_kv."""
    named = {"query": query, "key": key, "value": value}
    for name, x in named.items():
        check_floating(name, x)
        if x.ndim < 2:
            raise ValueError(f"{name} must have shape (..., H, length, D), got {tuple(x.shape)}")
    if not query.dtype == key.dtype == value.dtype:
        got = ", ".join(f"{name} {x.dtype}" for name, x in named.items())
        raise ValueError(f"query, key and value must share one dtype, got {got}")
    if not query.device == key.device == value.device:
        got = ", ".join(f"{name} {x.device}" for name, x in named.items())
        raise ValueError(f"query, key and value must share one device, got {got}")
    if query.shape[-1] != key.shape[-1] or query.shape[-1] == 0:
        raise ValueError(
            f"query and key must have the same head width D >= 1, got query {tuple(query.shape)} "
            f"with D={query.shape[-1]} and key {tuple(key.shape)} with D={key.shape[-1]}"
        )
    if key.shape[-2] != value.shape[-2]:
        raise ValueError(
            f"key and value must have the same length S, got key {tuple(key.shape)} with "
            f"S={key.shape[-2]} and value {tuple(value.shape)} with S={value.shape[-2]}"
        )
    lead = query.shape[:-2]
    if lead == key.shape[:-2] == value.shape[:-2]:  # as most often
        return lead, lead[-1] if lead else 1
    heads = {name: x.shape[-3] if x.ndim > 2 else 1 for name, x in named.items()}
    if enable_gqa:
        _check_groups(heads)
    try:
        if not enable_gqa:
            lead = torch.broadcast_shapes(*(x.shape[:-2] for x in named.values()))
            return lead, lead[-1] if lead else 1
        batch = query.shape[:-3]
        if not batch == key.shape[:-3] == value.shape[:-3]:
            batch = torch.broadcast_shapes(*(x.shape[:-3] for x in named.values()))
        return torch.Size((*batch, heads["query"])), heads["key"]
    except RuntimeError:
        got = ", ".join(f"{name} {tuple(x.shape[:-2])}" for name, x in named.items())
        hint = "" if enable_gqa else "; for fewer key heads than query heads say enable_gqa=True"
        raise ValueError(
            f"batch and head axes of query, key and value must be equal or 1, got {got}{hint}"
        ) from None


def _check_groups(heads: dict[str, int]) -> None:
    """Refuse numbers of heads that make no groups."""
    alike = heads["key"] == heads["value"]
    if alike and heads["query"] == heads["key"]:
        return
    if not alike or heads["key"] == 0 or heads["query"] % heads["key"]:
        got = ", ".join(f"{name} {number}" for name, number in heads.items())
        raise ValueError(
            "with enable_gqa key and value must have the same number of heads, a divisor of the "
            f"query's, got heads of {got}"
        )


def check_floating(name: str, x: Tensor) -> None:
    """Refuse what is not a floating-point tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {x.dtype}")


def check_attn_mask(mask: Tensor | None, query: Tensor, target: tuple[int, ...]) -> None:
    """Refuse a score mask of the wrong type, device or shape; ``target`` is (..., H, T, S)."""
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise TypeError(f"attn_mask must be a tensor, got {type(mask).__name__}")
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(
            f"attn_mask must be bool (True = may attend) or floating (added to the scores), "
            f"got {mask.dtype}; for 0 and 1 say attn_mask.bool()"
        )
    if mask.dtype not in (torch.bool, torch.float32, query.dtype):
        raise TypeError(
            f"a floating attn_mask must be {query.dtype} like the query, or torch.float32, "
            f"got {mask.dtype}"
        )
    _check_mask_place("attn_mask", mask, query, target)


def warn_of_zero_one(mask: Tensor | None, stacklevel: int) -> None:
    """One warning for a float mask on the CPU with at least one 1 and nothing but 0 and 1."""
    if mask is None or mask.dtype == torch.bool or not may_read(mask):
        return
    ones = mask == 1
    if ones.any() and (ones | (mask == 0)).all():
        warnings.warn(
            "attn_mask is a float mask of 0 and 1, which is added to the scores and hides "
            "nothing; if 1 means 'may attend', say attn_mask.bool()",
            stacklevel=stacklevel + 1,
        )


def check_key_mask(mask: Tensor | None, query: Tensor, target: tuple[int, ...]) -> None:
    """Refuse a key mask that is not bool, or does not broadcast to ``target``, (..., S)."""
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise TypeError(f"key_mask must be a tensor, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise TypeError(
            f"key_mask must be bool (True = a real key), got {mask.dtype}; say key_mask.bool()"
        )
    if mask.ndim == 0 or mask.shape[-1] != target[-1]:
        raise ValueError(
            f"key_mask must have one entry for each of the S={target[-1]} keys on its last axis, "
            f"got shape {tuple(mask.shape)}"
        )
    _check_mask_place("key_mask", mask, query, target)


def _check_mask_place(name: str, mask: Tensor, query: Tensor, target: tuple[int, ...]) -> None:
    """Refuse a mask on another device, or one that would enlarge what it is broadcast to."""
    if mask.device != query.device:
        raise ValueError(f"{name} must be on {query.device} like the query, got {mask.device}")
    pairs = zip(reversed(mask.shape), reversed(target), strict=False)
    fits = mask.ndim <= len(target) and all(_stretches(have, want) for have, want in pairs)
    if not fits:
        hint = ""
        if name == "attn_mask" and mask.ndim == 3 and len(target) == 4:
            hint = "; a mask (B, T, S) needs a head axis: attn_mask[:, None]"
        raise ValueError(
            f"{name} cannot broadcast from {tuple(mask.shape)} to {tuple(target)}{hint}"
        )


def _stretches(have: int, want: int) -> bool:
    """Whether an axis broadcasts. (``in (1, want)`` would not compare sizes under dynamo.)"""
    if have == 1:
        return True
    return have == want


def check_options(dropout_p, is_causal, scale) -> None:
    """Refuse options of the wrong type or outside their range."""
    check_dropout("dropout_p", dropout_p)
    check_flag("is_causal", is_causal)
    check_scale(scale)


def check_shaping(enable_gqa, softcap, window, q_offset) -> None:
    """Refuse wrong types and values of what goes beyond torch's own arguments."""
    check_flag("enable_gqa", enable_gqa)
    check_softcap(softcap)
    check_window(window)
    check_offset(q_offset)


def is_int(number) -> bool:
    """Whether it is an int, perhaps a symbolic one; a bool is none."""
    return isinstance(number, int | torch.SymInt) and not isinstance(number, bool)


def holds_ints(x: Tensor) -> bool:
    """Whether a tensor's dtype is one of integers."""
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def check_offset(q_offset) -> None:
    """Refuse what is neither an int nor a tensor of ints."""
    is_tensor = isinstance(q_offset, Tensor)
    if not (holds_ints(q_offset) if is_tensor else is_int(q_offset)):
        got = q_offset.dtype if is_tensor else repr(q_offset)
        raise TypeError(f"q_offset must be an int or a tensor of ints, got {got}")


def check_softcap(softcap) -> None:
    """Refuse a softcap that is neither None nor a finite number above 0."""
    if softcap is None:
        return
    if isinstance(softcap, bool) or not isinstance(softcap, int | float | torch.SymFloat):
        raise TypeError(f"softcap must be None or a number, got {type(softcap).__name__}")
    if not 0 < softcap < math.inf:
        raise ValueError(f"softcap must be finite and above 0, got {softcap}")


def check_window(window) -> None:
    """Refuse a window that is not (left, right), each None or 0 or more."""
    if window is None:
        return
    if not isinstance(window, tuple | list) or len(window) != 2:
        raise TypeError(f"window must be None or a pair (left, right), got {window!r}")
    for bound in window:
        if bound is None:
            continue
        if not is_int(bound):
            raise TypeError(f"window must hold ints or None, got {window!r}")
        if bound < 0:
            raise ValueError(f"window must hold 0 or more, or None, got {window!r}")


def check_offset_place(q_offset, query: Tensor, target: tuple[int, ...]) -> None:
    """Refuse offsets on another device, or that do not broadcast to the axes before H."""
    if isinstance(q_offset, Tensor):
        _check_mask_place("q_offset", q_offset, query, target)


def check_flag(name: str, flag) -> None:
    """Refuse what is not a Python bool."""
    if not isinstance(flag, bool):
        raise TypeError(f"{name} must be True or False, got {flag!r}")


def check_size(name: str, size) -> None:
    """Refuse what is not an int of at least 1."""
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"{name} must be an int, got {size!r}")
    if size < 1:
        raise ValueError(f"{name} must be at least 1, got {size}")


def check_dropout(name: str, probability) -> None:
    """Refuse a dropout probability that is not a number in [0, 1]."""
    if not isinstance(probability, int | float):
        raise TypeError(f"{name} must be a number, got {type(probability).__name__}")
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"{name} must be a probability in [0, 1], got {probability}")


def check_scale(scale) -> None:
    """Refuse a scale that is neither None nor a finite number."""
    if scale is None:
        return
    if not isinstance(scale, int | float | torch.SymFloat):
        raise TypeError(f"scale must be None or a number, got {type(scale).__name__}")
    if not -math.inf < scale < math.inf:
        raise ValueError(f"scale must be finite, got {scale}")


def check_backend(backend) -> None:
    """Refuse an unknown backend, and list the known ones."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")


def is_autocast(device_type: str) -> bool:
    """Whether autocast is on; some devices (meta) know no autocast."""
    known = device_type in ("cpu", "cuda") or torch.amp.is_autocast_available(device_type)
    return known and torch.is_autocast_enabled(device_type)


def no_autocast(device_type: str):
    """Autocast off: what is to be cast has been cast."""
    return torch.autocast(device_type, enabled=False) if is_autocast(device_type) else nullcontext()


def may_read(x: Tensor) -> bool:
    """Whether a tensor's values may be looked at: on the CPU, outside tracing and vmap."""
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return False
    dispatched = _get_current_dispatch_mode() is not None  # fake tensors, make_fx
    return not dispatched and not is_tracing(x)


def is_tracing(x: Tensor) -> bool:
    """Whether the call is being compiled or exported, or transformed by torch.func."""
    if torch.compiler.is_compiling():
        return True
    transformed = torch._C._functorch.peek_interpreter_stack() is not None
    return transformed or isinstance(x.numel(), torch.SymInt)
