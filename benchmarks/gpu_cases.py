"""What gpu.py compares: cases, who computes them, and the definition that all are held against.

A case is one call of attention: query (B, H, T, D), key and value (B, H_kv, S, D), and its rules.
Contestants get the same operands; masks and block masks are made before the clock starts.

    mha flash         mha.scaled_dot_product_attention, backend="flash".
    mha auto          the same with backend="auto".
    SDPA flash, SDPA cuDNN, SDPA efficient
                      torch's function, held to one of its kernels; no masks but its causal flag.
    SDPA, mask        torch's function with all rules in one mask tensor; it picks the kernel.
    flex              torch's flex_attention, compiled for these very sizes.
"""

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import mha
from mha import cost, masks

KERNELS = {
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
}
TOLERANCES = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-4}
"""Largest |output - definition| / |definition|, norms of a head; of a gradient, twice that."""
ROWS = 1024  # queries that the definition takes at a time


class Case(NamedTuple):
    """One call; `share` of its T x S pairs count; `flex` is (mask_mod or None, score_mod or None),
    each a function of indices as flex_attention takes it."""

    name: str
    rules: dict[str, Any]
    batch: int
    heads: int
    key_heads: int
    length: int
    size: int
    width: int
    share: float = 1.0
    flex: tuple[Callable | None, Callable | None] = (None, None)

    def cost(self, itemsize: int, backward: bool) -> cost.Cost:
        """Its work as such kernels are rated: see `mha.cost.flash`."""
        sizes = {"B": self.batch, "H": self.heads, "H_kv": self.key_heads, "D": self.width}
        sizes |= {"T": self.length, "S": self.size, "itemsize": itemsize}
        return cost.flash(**sizes, share=self.share, backward=backward)

    def place(self) -> dict:
        """What a row says of it."""
        names = ("batch", "heads", "key_heads", "length", "size", "width")
        return {"case": self.name} | {name: getattr(self, name) for name in names}


class Contestant(NamedTuple):
    """`call(query, key, value)` is the output (B, H, T, D); flex has no gradients on the CPU."""

    call: Callable[[Tensor, Tensor, Tensor], Tensor]
    backward: bool = True


def plain(options, length: int, width: int, causal: bool) -> Case:
    """Self-attention of the usual comparison: H D numbers a token, a batch of `options.tokens`."""
    heads, batch = options.embed_dim // width, max(1, options.tokens // length)
    sizes = batch, heads, heads, length, length, width
    if not causal:
        return Case("none", {}, *sizes)
    return Case("causal", {"is_causal": True}, *sizes, share=0.5, flex=(_causal, None))


def special(options) -> list[Case]:
    """Rules for which torch's function has no flag, at one length: padding, a window, an offset
    for each example, a softcap."""
    length, width, device = options.special_length, options.widths[-1], options.device
    heads, batch = options.embed_dim // width, max(1, options.tokens // length)
    sizes = batch, heads, heads, length, length, width
    draw = torch.Generator().manual_seed(options.seed)
    lengths = torch.randint(length // 2, length + 1, (batch,), generator=draw)
    key_mask = masks.padding(lengths, max_len=length).to(device)  # (B, S)
    left = options.window - 1
    chunk = length // 4  # queries that follow on what is stored already
    starts = torch.randint(0, length - chunk + 1, (batch,), generator=draw)  # (B,)
    seen = [cost.pairs(chunk, length, is_causal=True, q_offset=n) for n in starts.tolist()]
    offsets, real, softcap = starts.to(device), lengths.to(device), 30.0
    return [
        Case(
            *("key mask", {"key_mask": key_mask}, *sizes),
            share=lengths.sum().item() / (batch * length),
            flex=(lambda b, h, i, j: j < real[b], None),
        ),
        Case(
            *("window", {"window": (left, 0)}, *sizes),
            share=cost.pairs(length, window=(left, 0)) / length**2,
            flex=(lambda b, h, i, j: (j <= i) & (i - j <= left), None),
        ),
        Case(
            *("causal, q_offset of each", {"is_causal": True, "q_offset": offsets}),
            *(batch, heads, heads, chunk, length, width),
            share=sum(seen) / (batch * chunk * length),
            flex=(lambda b, h, i, j: j <= i + offsets[b], None),
        ),
        Case(
            *("causal, softcap", {"is_causal": True, "softcap": softcap}, *sizes),
            share=0.5,
            flex=(_causal, lambda score, b, h, i, j: softcap * torch.tanh(score / softcap)),
        ),
    ]


def decoding(options, size: int, batch: int) -> Case:
    """One step of a decoder: a query a head, four query heads to a key head, `size` stored keys."""
    heads, key_heads = options.decode_heads
    return Case("decode", {}, batch, heads, key_heads, 1, size, options.widths[-1])


def _causal(b, h, i, j):
    return j <= i


def make_operands(case: Case, options, seed: int) -> list[Tensor]:
    """Query, key, value and the output's gradient, normal numbers."""
    queries = case.batch, case.heads, case.length, case.width
    keys = case.batch, case.key_heads, case.size, case.width
    draw = torch.Generator(options.device).manual_seed(seed)
    more = {"generator": draw, "device": options.device, "dtype": options.dtype}
    return [torch.randn(sizes, **more) for sizes in (queries, keys, keys, queries)]


def contestants(case: Case, options) -> dict[str, Contestant]:
    """Who can be asked for a case; whether they can do it on this device shows when they run."""
    grouped = {"enable_gqa": True} if case.heads != case.key_heads else {}
    found = {
        f"mha {backend}": Contestant(
            functools.partial(
                mha.scaled_dot_product_attention, **case.rules, **grouped, backend=backend
            )
        )
        for backend in ("flash", "auto")
    }
    if case.rules.keys() <= {"is_causal"}:
        for name, kernel in KERNELS.items():
            found[name] = Contestant(_held_to(kernel, {**case.rules, **grouped}))
    elif "softcap" not in case.rules:
        mask = dense_mask(case, options.device)
        found["SDPA, mask"] = Contestant(
            functools.partial(F.scaled_dot_product_attention, attn_mask=mask, **grouped)
        )
    if options.flex:
        found["flex"] = Contestant(flex(case, options), options.device.type == "cuda")
    return found


def _held_to(kernel: SDPBackend, flags: dict) -> Callable:
    def call(query, key, value):
        with sdpa_kernel(kernel):
            return F.scaled_dot_product_attention(query, key, value, **flags)

    return call


def dense_mask(case: Case, device: torch.device) -> Tensor:
    """All rules of a case as one mask that broadcasts to (B, H, T, S)."""
    rules, bound = dict(case.rules), None
    left, right = rules.get("window", (None, None))
    if rules.get("is_causal"):
        right = 0
    if (left, right) != (None, None):
        sides = {"left": left, "right": right, "q_offset": rules.get("q_offset", 0)}
        bound = masks.window(case.length, case.size, **sides, device=device)
    key_mask = rules.get("key_mask")
    return masks.combine(bound, None if key_mask is None else key_mask[:, None, None, :])


def flex(case: Case, options) -> Callable:
    """flex_attention with the case's rules; compiled on a GPU."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask_mod, score_mod = case.flex
    block_mask = None
    if mask_mod is not None:
        batch = case.batch if case.rules.keys() & {"key_mask", "q_offset"} else None
        sizes = batch, None, case.length, case.size
        block_mask = create_block_mask(mask_mod, *sizes, device=str(options.device))
    more = {"score_mod": score_mod, "block_mask": block_mask}
    more["enable_gqa"] = case.heads != case.key_heads
    if options.device.type == "cuda":
        torch._dynamo.reset()  # each case is a kernel of its own, and after eight torch gives up
        return functools.partial(torch.compile(flex_attention, dynamic=False), **more)

    def call(query, key, value):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="flex_attention called without torch.comp")
            return flex_attention(query, key, value, **more)

    return call


def both(call: Callable, operands: list[Tensor]) -> tuple[Tensor, ...]:
    """Output, and gradients of query, key and value."""
    *inputs, upstream = operands
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = call(*leaves)
    return output, *torch.autograd.grad(output, leaves, upstream)


def definition(case: Case, operands: list[Tensor], example: int, head: int) -> list[Tensor]:
    """`both` for one example and one key head with its query heads, in float64, by the readable
    backend, some queries at a time."""
    group = case.heads // case.key_heads
    asking, asked = slice(head * group, (head + 1) * group), slice(head, head + 1)
    query, key, value, upstream = (
        x[example : example + 1, heads].double()
        for x, heads in zip(operands, (asking, asked, asked, asking), strict=True)
    )
    rules = dict(case.rules)
    if "key_mask" in rules:
        rules["key_mask"] = rules["key_mask"][example : example + 1]
    offset = rules.pop("q_offset", 0)
    offset = offset[example].item() if isinstance(offset, Tensor) else offset
    key, value = key.requires_grad_(), value.requires_grad_()
    outputs, grad_query, grads = [], [], [torch.zeros_like(key), torch.zeros_like(value)]
    for start in range(0, case.length, ROWS):
        rows = query[:, :, start : start + ROWS].detach().requires_grad_()
        options = rules | {"q_offset": offset + start, "enable_gqa": True, "backend": "reference"}
        output = mha.scaled_dot_product_attention(rows, key, value, **options)
        found = torch.autograd.grad(
            output, (rows, key, value), upstream[:, :, start : start + ROWS]
        )
        outputs.append(output.detach())
        grad_query.append(found[0])
        for total, more in zip(grads, found[1:], strict=True):
            total += more
    return [torch.cat(outputs, 2), torch.cat(grad_query, 2), *grads]


def truths(case: Case, operands: list[Tensor]) -> dict[tuple[int, int], list[Tensor]]:
    """The definition of the first example's first key head, and of the last's last."""
    places = {(0, 0), (case.batch - 1, case.key_heads - 1)}
    return {place: definition(case, operands, *place) for place in sorted(places)}


def off(actual: Tensor, wanted: Tensor) -> float:
    """|actual - wanted| / |wanted|, Euclidean norms; NaN if there is one."""
    return ((actual.double() - wanted).norm() / wanted.norm()).item()


class Wrong(Exception):
    """A contestant that computes something else: it is not timed."""


def agreement(case: Case, contestant: Contestant, operands, wanted, backward: bool) -> dict:
    """How far a contestant is from the definition: {"off": ..., "off_backward": ...}.

    Raises Wrong beyond the tolerance. What its outputs are written to is full of NaN before.
    """
    poison(operands)
    if backward and contestant.backward:
        results = both(contestant.call, operands)
    else:
        with torch.no_grad():
            results = (contestant.call(*operands[:3]),)
    worst = distances(case, results, wanted)
    found = {"off": worst[0]} | ({"off_backward": max(worst[1:])} if worst[1:] else {})
    for name, error in found.items():
        check(name, error, operands[0].dtype)
    return {name: float(f"{error:.2e}") for name, error in found.items()}


def distances(case: Case, results, wanted, first: int = 0) -> list[float]:
    """How far each result is from the definition, at worst: of (output, gradients of query, key
    and value), those from number `first` on."""
    group, worst = case.heads // case.key_heads, [0.0] * len(results)
    for (example, head), truth in wanted.items():
        for n, result in enumerate(results):
            of_query = first + n < 2
            heads = slice(head * group, (head + 1) * group) if of_query else slice(head, head + 1)
            error = off(result[example : example + 1, heads].detach(), truth[first + n])
            worst[n] = max(worst[n], math.inf if math.isnan(error) else error)
    return worst


def check(name: str, error: float, dtype: torch.dtype) -> None:
    """Raise Wrong if an output, or a gradient, is further off than its dtype excuses."""
    limit = TOLERANCES[dtype] * (1 if name == "off" else 2)
    if not error < limit:
        raise Wrong(f"{name} by {error:.1e}, which is not below {limit:.0e}")


def poison(operands: list[Tensor]) -> None:
    """Leave NaN where the allocator will put outputs and gradients: freed pieces of their sizes."""
    query, key, value, _ = operands
    _ = [torch.full_like(x, math.nan) for x in (query, query, key, value)]
