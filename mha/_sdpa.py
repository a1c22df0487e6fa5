"""torch's fused attention: by its own flags where they say the masks, else on chunks of queries.

Axes: B batch, H heads, H_kv key heads, T queries, S keys, D width of one head, D_v of one value.
Nothing of size T x S is made here, unless torch itself makes it (dropout, D_v != D), the caller
brought it (attn_mask), or the call is being traced.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend

from mha import _checks
from mha._rules import Rules
from mha.positions import ALiBi

CHUNK_ROWS = 1024
"""Most queries in a chunk."""

CHUNK_ENTRIES = {"cpu": 1 << 21, "cuda": 1 << 26}
"""Most entries of a chunk's mask, by device, as long as that leaves ``MIN_ROWS`` queries."""

MIN_ROWS = 32


def attend(
    query: Tensor, key: Tensor, value: Tensor, rules: Rules, dropout_p: float, scale: float
) -> Tensor:
    """Output (B, H, T, D_v) of query (B, H, T, D), key (B, H_kv, S, D), value (B, H_kv, S, D_v)."""
    way, rules = _way(query, key, value, rules, dropout_p)
    run = functools.partial(_kernel, dropout_p=dropout_p, scale=scale)
    if way == "flag":
        return run(query, key, value, None, is_causal=rules.bounds[1] is not None)
    if way == "mask":
        return run(query, key, value, rules.mask(query, key))
    if way == "mask and flag":
        alone = Rules(key_mask=rules.key_mask).mask(query, key)  # (B, 1, 1, S)
        return run(query, key, value, alone, is_causal=True)
    return _chunked(query, key, value, rules, run, dropout_p)


def describe(query: Tensor, key: Tensor, value: Tensor, rules: Rules, dropout_p: float) -> str:
    """What ``attend`` would do, in one sentence."""
    way, rules = _way(query, key, value, rules, dropout_p)
    if way != "chunks" and (dropout_p > 0 or query.shape[-1] != value.shape[-1]):
        what = "dropout" if dropout_p > 0 else "D_v != D"
        return f"torch's kernels do it all, though {what} makes them write all T x S weights."
    if way == "flag":
        return "torch's fused kernel does it all, by its own flags: nothing of T x S is written."
    if way == "mask" and isinstance(rules.attn_mask, Tensor):
        return "torch's fused kernel takes the attn_mask that was given."
    if way == "mask":
        return "torch's fused kernel takes the mask, which is small."
    if way == "mask and flag":
        return "torch's fused kernel takes the key mask and its own causal flag, both."
    rows = min(_rows(query, key.shape[-2], rules), query.shape[-2])
    return (
        f"torch's fused kernel has no flag for these masks: it takes the queries {rows} at a time."
    )


def writes_masks(query: Tensor, key: Tensor, value: Tensor, rules: Rules, dropout_p: float) -> bool:
    """Whether ``attend`` would have to write masks for several queries, a chunk at a time or all."""
    way, rules = _way(query, key, value, rules, dropout_p)
    by_rule = rules.bounds != (None, None) or isinstance(rules.attn_mask, ALiBi)
    return query.shape[-2] > 1 and (way == "chunks" or (way == "mask" and by_rule))


def _way(query, key, value, rules: Rules, dropout_p: float) -> tuple[str, Rules]:
    """How torch is called, and the rules without what binds nobody."""
    tracing = _checks.is_tracing(query)
    rules = rules if tracing else rules.simplified(query.shape[-2], key.shape[-2])
    if rules.attn_mask is None and rules.key_mask is None and _is_flag(rules):
        return "flag", rules
    one_row = rules.bounds == (None, None) and not isinstance(rules.attn_mask, ALiBi)
    if tracing or one_row:  # one row, or a mask that the caller made
        return "mask", rules
    if dropout_p == 0 and _takes_mask_and_flag(query, key, value, rules):
        return "mask and flag", rules
    return "chunks", rules


def _is_flag(rules: Rules) -> bool:
    """Whether the bounds are none, or causality as torch's flag has it: key j <= query i."""
    left, right = rules.bounds
    if left is None and right is not None:
        return isinstance(rules.q_offset, int) and right + rules.q_offset == 0
    return left is None and right is None


def _kernel(query, key, value, mask, is_causal=False, *, dropout_p, scale) -> Tensor:
    """One call of torch's function. One query a group of heads: the group becomes its queries."""
    dtype, dead = query.dtype, None
    grouped = query.shape[-3] != key.shape[-3]
    packed = grouped and query.shape[-2] == 1 and not is_causal
    shape = *query.shape[:-1], value.shape[-1]  # (B, H, T, D_v)
    if packed:
        query, mask = _pack(query, mask, key.shape[-3])  # (B, H_kv, H / H_kv, D)
    if mask is not None:
        mask, dead = _revive(mask)
        mask = mask[(None,) * (4 - mask.ndim)]  # the fused kernel on the CPU wants four axes
        if mask.is_floating_point():  # a float32 mask on half tensors would lose digits in half
            query, key, value = (x.to(mask.dtype) for x in (query, key, value))
    more = {"enable_gqa": True} if grouped and not packed else {}
    output = F.scaled_dot_product_attention(
        query, key, value, mask, dropout_p, is_causal, scale=scale, **more
    )
    output = output if output.dtype == dtype else output.to(dtype)
    output = output if dead is None else output.masked_fill(dead, 0.0)
    return output.reshape(shape) if packed else output


def _pack(query: Tensor, mask: Tensor | None, key_heads: int) -> tuple[Tensor, Tensor | None]:
    """(B, H, 1, D) -> (B, H_kv, H / H_kv, D), and a mask (.., H, 1, S) likewise."""
    batch, heads, _, width = query.shape
    groups = (key_heads, heads // key_heads)
    query = query.reshape(batch, *groups, width)
    if mask is not None and mask.ndim > 2 and mask.shape[-3] > 1:
        mask = mask.squeeze(-2).unflatten(-2, groups)
    return query, mask


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


def _chunked(query, key, value, rules, run, dropout_p) -> Tensor:
    """Chunks of queries, each with the keys that its bounds let it see and a mask of its own."""
    rows = _rows(query, key.shape[-2], rules)
    chunks = list(_chunks(query.shape[-2], key.shape[-2], rows, rules))
    if len(chunks) == 1:
        [(here, seen, part)] = chunks
        return _chunk(query, key[..., seen, :], value[..., seen, :], part, run)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)):
        if dropout_p == 0:
            return _Recomputed.apply(query, key, value, chunks, run)
        return torch.cat([_chunk(*_cut(query, key, value, c), c[2], run) for c in chunks], dim=-2)
    return _fill(query, key, value, chunks, run)


def _chunks(length: int, size: int, rows: int, rules: Rules):
    """(slice of the queries, slice of the keys they see, their rules) of each chunk."""
    for start in range(0, length, rows):
        here = slice(start, min(start + rows, length))
        seen = rules.visible(here, size)
        part = rules.part(here, seen)
        yield here, seen, part.simplified(here.stop - start, seen.stop - seen.start)


def _cut(query, key, value, chunk) -> tuple[Tensor, Tensor, Tensor]:
    here, seen, _ = chunk
    return query[..., here, :], key[..., seen, :], value[..., seen, :]


def _chunk(query, key, value, rules, run) -> Tensor:
    return run(query, key, value, rules.mask(query, key))


def _fill(query, key, value, chunks, run) -> Tensor:
    """Output (B, H, T, D_v), chunk by chunk into one tensor, so that chunks leave nothing behind."""
    output = query.new_empty(*query.shape[:-1], value.shape[-1])
    for chunk in chunks:
        output[..., chunk[0], :] = _chunk(*_cut(query, key, value, chunk), chunk[2], run)
    return output


class _Recomputed(torch.autograd.Function):
    """`_fill` with a backward pass that computes each chunk again.

    The masks of all chunks together are T x S entries, and autograd would keep them. It would also
    make a gradient of the size of all keys for each chunk; here they are summed in place.
    """

    @staticmethod
    def forward(ctx, query, key, value, chunks, run):
        ctx.save_for_backward(query, key, value)
        ctx.chunks, ctx.run = chunks, run
        return _fill(query, key, value, chunks, run)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        operands = ctx.saved_tensors
        grads = [torch.zeros_like(x) for x in operands]
        for chunk in ctx.chunks:
            parts = [x.detach().requires_grad_() for x in _cut(*operands, chunk)]
            with torch.enable_grad():
                output = _chunk(*parts, chunk[2], ctx.run)
            found = torch.autograd.grad(output, parts, grad_output[..., chunk[0], :])
            for grad, more in zip(_cut(*grads, chunk), found, strict=True):
                grad += more
        return *grads, None, None


def _rows(query: Tensor, size: int, rules: Rules) -> int:
    """How many queries make a chunk: few enough for a small mask, and for a narrow band."""
    rows, (left, right) = CHUNK_ROWS, rules.bounds
    if left is not None and right is not None and isinstance(rules.q_offset, int):
        rows = min(rows, max(2 * MIN_ROWS, left + right + 1))
        size = min(size, rows + left + right)
    alike = 1 if rules.attn_mask is None else query.shape[-3]
    if rules.key_mask is not None or isinstance(rules.q_offset, Tensor):
        alike *= query.shape[0]
    budget = CHUNK_ENTRIES.get(query.device.type, CHUNK_ENTRIES["cpu"])
    return max(MIN_ROWS, min(rows, budget // (alike * size)))


def _takes_mask_and_flag(query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> bool:
    """Whether the kernel that torch would choose applies a key mask and its causal flag."""
    if rules.attn_mask is not None or rules.key_mask is None or not _is_flag(rules):
        return False
    if query.device.type != "cpu":
        return False
    mask = Rules(key_mask=rules.key_mask).mask(query, key)  # (B, 1, 1, S)
    grouped = query.shape[-3] != key.shape[-3]
    choice = torch._fused_sdp_choice(query, key, value, mask, 0.0, True, enable_gqa=grouped)
    return choice == SDPBackend.FLASH_ATTENTION.value and _kernel_spares_dead_rows()


@functools.cache
def _kernel_spares_dead_rows() -> bool:
    """Whether the CPU kernel, given mask and flag, leaves zeros where a query sees nothing.

    Documented nowhere; so it is tried once, on two queries of which the first sees nothing.
    """
    query, key, value = torch.ones(3, 1, 1, 2, 8, device="cpu")
    with torch.enable_grad(), torch.inference_mode(False):
        operands = [x.clone().requires_grad_(True) for x in (query, key, value)]
        mask = torch.tensor([False, True], device="cpu")[None, None, None]  # (1, 1, 1, S)
        try:
            output = F.scaled_dot_product_attention(*operands, mask, 0.0, True)
        except RuntimeError:
            return False
        gradients = torch.autograd.grad(output.sum(), operands)
    expected = torch.tensor([0.0, 1.0], device="cpu")[:, None]
    finite = all(x.isfinite().all() for x in gradients)
    return bool((output == expected).all() and finite)
