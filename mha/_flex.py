"""The backend "flex": torch's flex_attention, which compiles the masks of a call into its kernel.

Masks are two functions of (b, h, i, j): one says whether query i may see key j, the other changes
a score. A block mask lists, for each block of queries, the blocks of keys it has to read.

Axes: B batch, H heads, H_kv key heads, T queries, S keys, D width of one head, D_v of one value.
Source: Dong et al. (2024), "Flex Attention".
"""

import functools
import os
import shutil
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from mha._rules import Rules
from mha.positions import ALiBi

BLOCK = 128
"""Queries, and keys, to a block of the block mask."""

COMPILE_SCORES = 1 << 26
"""Scores, B * H * T * S, from which a kernel is compiled on the CPU. That costs seconds, as much as
two or three calls of this size without; below it they write 256 MiB of scores at most, or twice."""

RECOMPILE_LIMIT = 64
"""Kernels compiled before torch gives up and writes all scores; by default it would be 8."""

LOST = 1e16
"""Beside a number as large as this a score is lost in rounding, even in float64."""


def refusal(
    query: Tensor, key: Tensor, value: Tensor, rules: Rules, dropout_p: float
) -> tuple[str, str] | None:
    """What flex cannot do of a call, and a backend that can; None if it can do it all."""
    if dropout_p > 0:
        return "dropout", "reference"
    if not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack():
        return "torch.func transforms such as vmap", "reference"
    if torch.is_grad_enabled():
        if isinstance(rules.attn_mask, Tensor) and rules.attn_mask.requires_grad:
            return (
                "a gradient to attn_mask",
                "reference",
            )  # torch's is wrong, or fails, now and then
        if query.device.type == "cpu" and any(x.requires_grad for x in (query, key, value)):
            return "gradients on the CPU", "reference"
    if query.device.type != "cpu" and query.dtype == torch.float64:
        return f"float64 on {query.device.type}", "reference"
    return None


def attend(
    query: Tensor, key: Tensor, value: Tensor, rules: Rules, scale: float, softcap: float | None
) -> Tensor:
    """Output (B, H, T, D_v) of query (B, H, T, D), key (B, H_kv, S, D), value (B, H_kv, S, D_v).

    No axis is empty. Half types are summed in float32.
    """
    compiling = torch.compiler.is_compiling()
    rules = rules if compiling else rules.simplified(query.shape[-2], key.shape[-2])
    bias, offset, (left, right) = rules.attn_mask, rules.q_offset, rules.bounds
    if isinstance(offset, Tensor):
        offset = offset.expand(query.shape[0]).contiguous()  # (B,)
    elif not compiling:  # a tensor too: another number needs no other kernel
        offset = torch.full((query.shape[0],), offset, device=query.device)
    slopes = bias.slopes.to(query.device) if isinstance(bias, ALiBi) else None
    bias = None if isinstance(bias, ALiBi) else bias
    given = bias, slopes, rules.key_mask, left, right, offset, scale, softcap
    if query.device.type == "cpu":
        # an outer compiler leaves it alone: torch's own fails on most such graphs on the CPU
        return torch.compiler.disable(_attend_on_cpu)(query, key, value, *given)
    widths = query.shape[-1], value.shape[-1]
    if min(widths) < 16:  # which the kernels do not take
        query, key, value = (F.pad(x, (0, max(0, 16 - x.shape[-1]))) for x in (query, key, value))
    return _attend(query, key, value, *given)[..., : widths[1]]


def _attend_on_cpu(query, key, value, *given):
    dtype = torch.promote_types(query.dtype, torch.float32)
    operands = (x.detach().to(dtype) for x in (query, key, value))
    return _attend(*operands, *given).to(query.dtype)


def _attend(query, key, value, bias, slopes, key_mask, left, right, offset, scale, softcap):
    rules = Rules(bias, key_mask, False, (left, right), offset)
    sizes = query.shape[-2], key.shape[-2]  # (T, S)
    block_mask = _block_mask(rules, sizes, query.device)
    changes = []
    if softcap is not None:
        changes.append(lambda score, b, h, i, j: softcap * torch.tanh(score / softcap))
    if slopes is not None:
        at = _offset_at(offset)
        changes.append(lambda score, b, h, i, j: score - slopes[h] * (j - i - at(b)).abs())
    elif bias is not None and bias.is_floating_point():
        changes.append(_bias(query, key, rules))

    def score_mod(score, b, h, i, j):
        for change in changes:
            score = change(score, b, h, i, j)
        return score

    grouped = query.shape[1] != key.shape[1]
    run = _runner(query, sizes[1])
    return run(query, key, value, score_mod if changes else None, block_mask, scale, grouped)


def _bias(query: Tensor, key: Tensor, rules: Rules):
    """Add a float mask, less the greatest number of its row that is to be seen.

    The softmax is the same, but no digit is lost: where all numbers of a row are huge, as in a row
    of finfo.min, the kernels' exp(score - log-sum) would be wrong.
    """
    top = rules.mask(query, key).amax(-1, keepdim=True)  # (..., T, 1)
    top, bias = _at(top.masked_fill(top == float("-inf"), 0.0)), _at(rules.attn_mask)

    def change(score, b, h, i, j):
        most = top(b, h, i, j)
        return torch.where(most.abs() > LOST, 0.0, score) + (bias(b, h, i, j) - most)

    return change


def _at(x: Tensor):
    """Read a tensor that broadcasts to (B, H, T, S) at (b, h, i, j)."""
    x = x[(None,) * (4 - x.ndim)]
    for axis, step in enumerate(x.stride()):
        x = x.narrow(axis, 0, 1) if step == 0 else x  # an expanded axis: kernels fail on it
    b1, h1, i1, j1 = (int(size > 1) for size in x.shape)  # an axis of size 1 is read at 0
    return lambda b, h, i, j: x[b * b1, h * h1, i * i1, j * j1]


def _offset_at(offset: Tensor | int):
    return (lambda b: offset[b]) if isinstance(offset, Tensor) else (lambda b: offset)


def _block_mask(rules: Rules, sizes: tuple[int, int], device: torch.device):
    """The rules, score changes aside, as torch's BlockMask; None where all see all.

    create_block_mask would write T x S booleans; this looks at the ends of each block.
    """
    from torch.nn.attention.flex_attention import BlockMask, and_masks

    (left, right), offset, at = rules.bounds, rules.q_offset, _offset_at(rules.q_offset)
    (i, last_i), (j, last_j) = (_ends(size, device) for size in sizes)  # of each block
    shift = offset[:, None, None, None] if isinstance(offset, Tensor) else offset
    least = j - last_i[:, None] - shift  # of j - (i + q_offset): (T / BLOCK, S / BLOCK)
    most = last_j - i[:, None] - shift  # or (B, 1, T / BLOCK, S / BLOCK)
    some = torch.ones_like(least, dtype=torch.bool)  # blocks where a query may see a key
    whole = (last_i - i == BLOCK - 1)[:, None] & (last_j - j == BLOCK - 1)  # and where all may
    tests = []
    if left is not None:
        some, whole = some & (most >= -left), whole & (least >= -left)
        tests.append(lambda b, h, i, j: j - i - at(b) >= -left)
    if right is not None:
        some, whole = some & (least <= right), whole & (most <= right)
        tests.append(lambda b, h, i, j: j - i - at(b) <= right)
    given = [] if rules.key_mask is None else [rules.key_mask[:, None, None, :]]  # (B, 1, 1, S)
    if rules.attn_mask is not None and rules.attn_mask.dtype == torch.bool:
        given.append(rules.attn_mask[(None,) * (4 - rules.attn_mask.ndim)])
    for mask in given:
        some = some & _tiles(_tiles(mask, -1, torch.any), -2, torch.any)
        whole = whole & _tiles(_tiles(mask, -1, torch.all), -2, torch.all)
        tests.append(_at(mask))
    if not tests:
        return None
    # the kernels read both lists with the strides of one
    part, whole = torch.broadcast_tensors(some & ~whole, whole)
    part, whole = (x[(None,) * (4 - x.ndim)] for x in (part, whole))
    lists = (pair for x in (part, whole, part.mT, whole.mT) for pair in _ordered(x))
    return BlockMask(sizes, *lists, (BLOCK, BLOCK), and_masks(*tests))


def _ends(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """First and last index of each block."""
    first = torch.arange(0, size, BLOCK, device=device)
    return first, (first + BLOCK - 1).clamp(max=size - 1)


def _tiles(mask: Tensor, axis: int, reduce) -> Tensor:
    """Any or all along each block of an axis, which is filled up with False; not if it is 1."""
    if mask.shape[axis] == 1:
        return mask
    mask = mask.movedim(axis, -1)
    mask = F.pad(mask, (0, -mask.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    return reduce(mask, -1).movedim(-1, axis)


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(..., T / BLOCK, S / BLOCK) -> how many keys' blocks a row has, and which, those first."""
    order = blocks.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    lists = blocks.sum(-1, dtype=torch.int32), order.to(torch.int32)
    return tuple(x.contiguous() for x in lists)  # kernels read past the end of any other layout


def _runner(query: Tensor, size: int):
    """flex_attention, compiled on a GPU and for a large problem on the CPU."""
    if torch.compiler.is_compiling():
        return _flex  # by the compiler that is at work
    if query.device.type != "cpu":
        return functools.partial(_compiled, None)  # sizes that vary share one kernel
    large = query.shape[:-1].numel() * size >= COMPILE_SCORES
    if large and query.dtype == torch.float32 and _has_compiler():
        return functools.partial(_compiled, False)  # on the CPU such kernels do not always compile
    return _eager


def _flex(*args):
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention(*args)


def _eager(*args):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        return _flex(*args)


def _compiled(dynamic: bool | None, *args):
    with torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT):
        return _compile(dynamic)(*args)


@functools.cache
def _compile(dynamic: bool | None):
    return torch.compile(_flex, dynamic=dynamic)


@functools.cache
def _has_compiler() -> bool:
    """Whether torch can compile for this CPU."""
    names = os.environ.get("CXX", "g++"), "clang++"
    capable = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return capable and any(shutil.which(name) for name in names)
