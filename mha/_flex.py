"""The backend "flex": torch's flex_attention, which compiles the masks of one call into its kernel.

Masks are two functions of (b, h, i, j): one says whether query i may see key j, the other changes
a score. A block mask lists, for each block of queries, the blocks of keys it has to read.

Axes: B batch, H heads, H_kv key heads, T queries, S keys, D width of one head, D_v of one value.
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

COMPILE_ENTRIES = 1 << 26
"""Scores B * H * T * S from which the CPU compiles a kernel: below, that costs more than it saves,
and the scores that are written instead are at most 256 MiB in float32."""

RECOMPILE_LIMIT = 64
"""Kernels of one process: torch gives up after 8, without a word, and writes all the scores."""

LOST = 1e16
"""Beside a number as large as this, a score is lost in rounding even in float64."""


def refusal(
    query: Tensor, key: Tensor, value: Tensor, rules: Rules, dropout_p: float
) -> tuple[str, str] | None:
    """What flex cannot do of a call, and a backend that can; None if it can do it all."""
    if dropout_p > 0:
        return "dropout", "reference"
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "torch.func transforms, such as vmap", "reference"
    if query.device.type == "cpu":
        bias = (rules.attn_mask,) if isinstance(rules.attn_mask, Tensor) else ()
        if torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value, *bias)):
            return "gradients on the CPU", "reference"
    elif query.dtype == torch.float64:
        return f"float64 on {query.device.type}", "reference"
    return None


def attend(
    query: Tensor, key: Tensor, value: Tensor, rules: Rules, scale: float, softcap: float | None
) -> Tensor:
    """Output (B, H, T, D_v) of query (B, H, T, D), key (B, H_kv, S, D), value (B, H_kv, S, D_v).

    No axis is empty. Half types are summed in float32.
    """
    sizes = query.shape[-2], key.shape[-2]  # (T, S)
    if not torch.compiler.is_compiling():
        rules = rules.simplified(*sizes)
    edges = _edges(rules, query)
    score_mod = _score_mod(query, key, rules, softcap)
    block_mask = _block_mask(rules, edges, sizes, query.device)
    dtype, width = query.dtype, value.shape[-1]
    run = _runner(query, sizes[1])
    if run is _eager and dtype in (torch.float16, torch.bfloat16):
        query, key, value = query.float(), key.float(), value.float()
    if query.device.type != "cpu":  # the kernels there want widths of at least 16
        query, key, value = (F.pad(x, (0, max(0, 16 - x.shape[-1]))) for x in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    output = run(query, key, value, score_mod, block_mask, scale, grouped)  # (B, H, T, D_v)
    return output[..., :width].to(dtype)


def _edges(rules: Rules, query: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The least and the greatest j - i that the bounds allow: (B,) each, None if unbounded."""
    left, right = rules.bounds
    offset = _offsets(rules, query)
    low = None if left is None else offset - left
    high = None if right is None else offset + right
    return low, high


def _offsets(rules: Rules, query: Tensor) -> Tensor:
    """q_offset of each example: (B,). A tensor, so that another number needs no other kernel."""
    offset, batch = rules.q_offset, query.shape[0]
    if isinstance(offset, Tensor):
        return offset.expand(batch)
    return torch.full((batch,), offset, device=query.device)


def _score_mod(query: Tensor, key: Tensor, rules: Rules, softcap: float | None):
    """What is done to a score: softcap, then the bias. None for nothing."""
    mask, changes = rules.attn_mask, []
    if softcap is not None:
        changes.append(lambda score, b, h, i, j: softcap * torch.tanh(score / softcap))
    if isinstance(mask, ALiBi):
        slopes, offset = mask.slopes.to(query.device), _offsets(rules, query)
        changes.append(lambda score, b, h, i, j: score - slopes[h] * (j - i - offset[b]).abs())
    elif mask is not None and mask.is_floating_point():
        changes.append(_bias(query, key, rules))
    if not changes:
        return None

    def score_mod(score, b, h, i, j):
        for change in changes:
            score = change(score, b, h, i, j)
        return score

    return score_mod


def _bias(query: Tensor, key: Tensor, rules: Rules):
    """Add a float mask, less the greatest number of its row that is to be seen.

    The softmax is the same, but no digit is lost: where all numbers of a row are huge, as in a row
    of finfo.min, the kernels' exp(score - log-sum) would be wrong.
    """
    top = rules.mask(query, key).detach().amax(-1, keepdim=True)  # (..., T, 1)
    top = _at(top.masked_fill(top == float("-inf"), 0.0))
    bias = _at(rules.attn_mask)

    def change(score, b, h, i, j):
        most = top(b, h, i, j)
        return torch.where(most.abs() > LOST, 0.0, score) + (bias(b, h, i, j) - most)

    return change


def _at(x: Tensor):
    """Read a tensor that broadcasts to (B, H, T, S) at (b, h, i, j)."""
    x = x[(None,) * (4 - x.ndim)]
    b1, h1, i1, j1 = (int(size > 1) for size in x.shape)  # an axis of size 1 is read at 0
    return lambda b, h, i, j: x[b * b1, h * h1, i * i1, j * j1]


def _block_mask(rules: Rules, edges, sizes: tuple[int, int], device: torch.device):
    """The rules, score changes aside, as torch's BlockMask; None where all see all.

    create_block_mask would write T x S booleans; this looks at the ends of each block.
    """
    from torch.nn.attention.flex_attention import BlockMask, and_masks

    (low, high), key_mask, seen = edges, rules.key_mask, rules.attn_mask
    first_i, first_j = (torch.arange(0, size, BLOCK, device=device) for size in sizes)
    first_i = first_i[:, None]  # (T / BLOCK, 1)
    least, most = first_j - first_i - (BLOCK - 1), first_j - first_i + (BLOCK - 1)  # of j - i
    some = torch.ones_like(least, dtype=torch.bool)[None, None]  # blocks in which some may see
    whole = ((first_i + BLOCK <= sizes[0]) & (first_j + BLOCK <= sizes[1]))[None, None]  # all may
    tests = []
    if low is not None:
        start = low[:, None, None, None]
        some, whole = some & (most >= start), whole & (least >= start)
        tests.append(lambda b, h, i, j: j - i >= low[b])
    if high is not None:
        end = high[:, None, None, None]
        some, whole = some & (least <= end), whole & (most <= end)
        tests.append(lambda b, h, i, j: j - i <= high[b])
    given = [] if key_mask is None else [key_mask[:, None, None, :]]  # (B, 1, 1, S)
    if isinstance(seen, Tensor) and seen.dtype == torch.bool:
        given.append(seen[(None,) * (4 - seen.ndim)])
    for mask in given:
        some = some & _tiles(_tiles(mask, -1, torch.any), -2, torch.any)
        whole = whole & _tiles(_tiles(mask, -1, torch.all), -2, torch.all)
        tests.append(_at(mask))
    if not tests:
        return None
    lists = *_ordered(some & ~whole), *_ordered(whole)
    return BlockMask.from_kv_blocks(*lists, BLOCK, and_masks(*tests), seq_lengths=sizes)


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
    return blocks.sum(-1, dtype=torch.int32), order.to(torch.int32)


def _runner(query: Tensor, size: int):
    """Compiled on a GPU, and for a large problem on a CPU; a compiler at work inlines flex."""
    if torch.compiler.is_compiling():
        return _inline
    if query.device.type == "cpu":
        small = query.shape[:-1].numel() * size < COMPILE_ENTRIES
        if small or query.dtype == torch.float64 or not _has_compiler():
            return _eager
    return _compiled


def _inline(query, key, value, score_mod, block_mask, scale, grouped):
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention(query, key, value, score_mod, block_mask, scale, grouped)


def _eager(*args):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        return _inline(*args)


def _compiled(*args):
    # Sizes that vary share one kernel on a GPU; on the CPU torch 2.13 fails to compile such a one.
    dynamic = False if args[0].device.type == "cpu" else None
    with torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT):
        return _compile(dynamic)(*args)


@functools.cache
def _compile(dynamic: bool | None):
    return torch.compile(_inline, dynamic=dynamic)


@functools.cache
def _has_compiler() -> bool:
    """Whether torch can compile for this CPU."""
    names = os.environ.get("CXX", "g++"), "clang++"
    capable = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return capable and any(shutil.which(name) for name in names)
