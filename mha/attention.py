"""Scaled dot-product attention: a readable path in plain PyTorch, and the choice of a backend.

Axes: B batch, H heads, H_kv key heads, T queries, S keys, D width of one head, D_v of one value.
"""

import importlib
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mha import _checks, _sdpa
from mha._rules import Rules
from mha.flash import _op as _flash
from mha.positions import ALiBi

HALF = torch.float16, torch.bfloat16

FLASH = "flash", "tiles", "kernel"
"""By whichever of the two is made for the device; by tiles in PyTorch; by Triton's kernels."""


SMALL = 1 << 19
"""Scores of a call below which tiles in PyTorch take longer than the readable path on the CPU."""


def scaled_dot_product_attention(
    query: Float[Tensor, "*q T D"],
    key: Float[Tensor, "*k S D"],
    value: Float[Tensor, "*v S Dv"],
    attn_mask: Tensor | ALiBi | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    softcap: float | None = None,
    key_mask: Bool[Tensor, "*m S"] | None = None,
    window: tuple[int | None, int | None] | None = None,
    q_offset: int | Int[Tensor, "*b"] = 0,
    return_weights: bool = False,
    backend: str = "auto",
) -> Float[Tensor, "*out T Dv"] | tuple[Float[Tensor, "*out T Dv"], Float[Tensor, "*out T S"]]:
    """softmax(scale Q K^T + mask) V for each head, as ``F.scaled_dot_product_attention``.

    The first six arguments are torch's, in torch's order. Masks compose by AND. A query that may
    see nothing gets output 0, weights 0 and finite gradients. A NaN or inf at a key that
    ``key_mask`` excludes reaches neither output nor gradient. The order is scale, softcap, bias or
    mask, softmax, dropout.

    Args:
        query: (..., H, T, D); three axes mean (H, T, D).
        key: (..., H, S, D), or (..., H_kv, S, D) with ``enable_gqa``.
        value: (..., H, S, D_v), or (..., H_kv, S, D_v). Leading axes of the three broadcast.
        attn_mask: broadcasts to (..., H, T, S). Bool, True = may attend; or floating (the query's
            dtype or float32), added to the scores, which are log-odds; or a
            ``mha.positions.ALiBi``, whose bias is built chunk by chunk.
        dropout_p: probability of dropping a weight, applied whenever it is above 0.
        is_causal: query i sees key j only if j <= i + q_offset, besides any mask.
        scale: factor of the scores, 1/sqrt(D) by default.
        enable_gqa: H is a multiple of H_kv; query head h reads key head h // (H // H_kv).
        softcap: c > 0 bends the scores to c * tanh(scores / c), before bias and masks.
        key_mask: bool (..., S), True = a real key; its leading axes broadcast to those before H.
        window: (left, right), both inclusive, None = unbounded: query i sees key j only if
            -left <= j - (i + q_offset) <= right.
        q_offset: position of the first query among the keys, may be negative; or one for each
            example, an integer tensor (B,) that broadcasts to the axes before H.
        return_weights: also return the weights, before dropout. The output stays the same.
        backend: "reference" (readable PyTorch, float32 inside for half types; does everything),
            "sdpa" (torch's fused kernels; no softcap; the readable path for empty axes, and for a
            float attn_mask while gradients are on), "flash" (Triton's kernels on CUDA, where D and
            D_v are at most 256 and float64 is refused, tiles in PyTorch elsewhere; no dropout, no
            gradient to attn_mask), "flex" (torch's flex_attention; no dropout, on the CPU no
            gradients), or "auto", which refuses nothing: see ``explain``. What is fused has no
            second derivative and no forward mode, and torch's fused CPU kernel loses digits of
            gradients where scores pass some 2e5 in float32; "reference" has all three.
    Returns: output (..., H, T, D_v) in the query's dtype, and weights (..., H, T, S) if asked for.
    Errors: TypeError or ValueError naming the argument, what came and what was expected; ValueError
        for what a named backend cannot do, naming one that can.
    Source: Vaswani et al. (2017), equation 1; grouped heads: Ainslie et al. (2023); windows:
        Beltagy et al. (2020).

    Examples:
        >>> import torch
        >>> import mha
        >>> query = key = torch.zeros(1, 3, 4)  # (H, T, D), (H, S, D): all scores are 0
        >>> value = torch.tensor([[[0.0], [1.0], [2.0]]])  # (H, S, D_v)
        >>> options = {"is_causal": True, "return_weights": True}
        >>> output, weights = mha.scaled_dot_product_attention(query, key, value, **options)
        >>> weights
        tensor([[[1.0000, 0.0000, 0.0000],
                 [0.5000, 0.5000, 0.0000],
                 [0.3333, 0.3333, 0.3333]]])
        >>> nothing = torch.zeros(3, dtype=torch.bool)  # no key is real: the output is 0, never NaN
        >>> mha.scaled_dot_product_attention(query, key, value, key_mask=nothing).flatten().tolist()
        [0.0, 0.0, 0.0]
    """
    _checks.check_backend(backend)
    call = _Call(
        *(query, key, value, attn_mask, dropout_p, is_causal),
        scale=scale,
        enable_gqa=enable_gqa,
        softcap=softcap,
        key_mask=key_mask,
        window=window,
        q_offset=q_offset,
    )
    return call.run(backend, return_weights)


def attend_by_flash(*operands, kernel: bool, **options) -> Tensor:
    """``scaled_dot_product_attention`` by flash alone, on whatever device: kernels, or else tiles.

    Examples:
        >>> import torch
        >>> from mha.attention import attend_by_flash
        >>> query, key = torch.ones(2, 4, 3, 4), torch.ones(2, 2, 5, 4)  # H = 4, H_kv = 2
        >>> tuple(attend_by_flash(query, key, key, kernel=False).shape)
        (2, 4, 3, 4)
    """
    call = _Call(*operands, enable_gqa=True, **options)
    return call.run("kernel" if kernel else "tiles", return_weights=False)


def attend(*args, return_weights: bool, backend: str, **options):
    """``scaled_dot_product_attention`` for a module that checks its options when it is made.

    Keys and values that ``key_mask`` excludes must be finite already.

    Examples:
        >>> import torch
        >>> from mha.attention import attend
        >>> query, key = torch.ones(2, 2, 3, 4), torch.ones(2, 2, 5, 4)
        >>> tuple(attend(query, key, key, return_weights=False, backend="auto").shape)
        (2, 2, 3, 4)
    """
    _checks.check_backend(backend)  # an attribute, which may have been set since
    return _Call(*args, **options, trusted=True).run(backend, return_weights)


class Choice(NamedTuple):
    """What ``explain`` returns: a backend's name, and one sentence that says why it is taken.

    Examples:
        >>> import torch
        >>> import mha
        >>> x = torch.ones(2, 2, 3, 4)
        >>> backend, reason = mha.explain(x, x, x)
        >>> backend
        'sdpa'
    """

    backend: str
    reason: str


def explain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | ALiBi | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    return_weights: bool = False,
    **options,
) -> Choice:
    """Which backend ``auto`` takes for a call, and why. Nothing is computed.

    Whether gradients are on counts as well: ask under ``torch.no_grad()`` for a call under
    ``torch.no_grad()``.

    Args:
        query, key, value, attn_mask, dropout_p, is_causal, return_weights: as of
            ``scaled_dot_product_attention``.
        options: its other keywords, except ``backend``.
    Returns: a named tuple (backend, reason); the reason is one sentence.
    Errors: as of ``scaled_dot_product_attention``.

    Examples:
        >>> import torch
        >>> import mha
        >>> query, key = torch.ones(2, 2, 3, 4), torch.ones(2, 2, 5, 4)
        >>> mha.explain(query, key, key).backend
        'sdpa'
        >>> print(mha.explain(query, key, key, softcap=30.0).reason)
        A softcap needs flash's tiles, slow for so few scores.
    """
    call = _Call(query, key, value, attn_mask, dropout_p, is_causal, **options)
    return call.choose()


class _Call:
    """One call: checked, brought to four axes, ready to be run by a backend."""

    def __init__(
        self,
        query,
        key,
        value,
        attn_mask=None,
        dropout_p=0.0,
        is_causal=False,
        *,
        scale=None,
        enable_gqa=False,
        softcap=None,
        key_mask=None,
        window=None,
        q_offset=0,
        trusted=False,
    ):
        if not trusted:
            _checks.check_options(dropout_p, is_causal, scale)
            _checks.check_shaping(enable_gqa, softcap, window, q_offset)
        query, key, value, attn_mask = _autocast(query, key, value, attn_mask)
        self.lead, key_heads = _checks.check_tensors(query, key, value, enable_gqa)
        *batch, heads = self.lead or (1,)
        self.sizes = query.shape[-2], key.shape[-2]  # (T, S)
        if isinstance(attn_mask, ALiBi):
            _check_slopes(attn_mask, heads)
        else:
            _checks.check_attn_mask(attn_mask, query, (*batch, heads, *self.sizes))
            _checks.warn_of_zero_one(attn_mask, stacklevel=3)
        _checks.check_key_mask(key_mask, query, (*batch, self.sizes[1]))
        _checks.check_offset_place(q_offset, query, tuple(batch))
        self.scale = query.shape[-1] ** -0.5 if scale is None else scale
        self.dropout_p, self.softcap = dropout_p, softcap
        rules = Rules(attn_mask, key_mask, is_causal, window, q_offset)
        self.rules = _fold_rules(rules, batch)
        counts = heads, key_heads, key_heads
        self.operands = tuple(
            _fold(x, batch, count) for x, count in zip((query, key, value), counts, strict=True)
        )
        self.trusted = trusted or key_mask is None

    def run(self, backend: str, return_weights: bool):
        """The result, in the axes that came. Backends "tiles" and "kernel" are flash on any device."""
        if backend == "auto":
            backend = self.choose().backend
        else:
            self._refuse(backend)
            if self._is_empty() or (backend == "sdpa" and self._is_fragile()):
                backend = "reference"
        with _checks.no_autocast(self.operands[0].device.type):
            output, weights = self._compute(backend, return_weights)
        if len(self.lead) != 2:
            output = output.reshape(*self.lead, *output.shape[-2:])  # (..., H, T, D_v)
        if not return_weights:
            return output
        weights = weights.to(output.dtype).reshape(*self.lead, *self.sizes)  # (..., H, T, S)
        return output, weights

    def _compute(self, backend: str, return_weights: bool) -> tuple[Tensor, Tensor | None]:
        """Output (B, H, T, D_v), and weights (B, H, T, S) where they are wanted or needed."""
        weights = None
        how = self.rules, self.scale, self.softcap
        if backend in FLASH:
            output = _flash.attend(*self.operands, *how, kernel=self._is_kernel(backend))
            if not return_weights:
                return output, None
        query, key, value = self._without_padding()
        if backend == "reference" or return_weights:
            weights = _weights(query, key, *how)
        if backend == "reference":
            output = _average(weights, value, self.dropout_p).to(query.dtype)
        elif backend == "sdpa":
            output = _sdpa.attend(query, key, value, self.rules, self.dropout_p, self.scale)
        elif backend == "flex":
            output = _flex().attend(query, key, value, *how)
        return output, weights

    def _without_padding(self) -> tuple[Tensor, Tensor, Tensor]:
        """The operands, with zeros for whatever stands at a key that ``key_mask`` excludes."""
        query, *others = self.operands
        if not self.trusted:
            padding = ~self.rules.key_mask[:, None, :, None]  # (B, 1, S, 1)
            others = (x.masked_fill(padding, 0.0) for x in others)
        return query, *others

    def choose(self) -> Choice:
        """What "auto" takes, and why."""
        if self._is_empty():
            return Choice("reference", "An axis is empty, which fused kernels refuse.")
        if self.softcap is not None:
            if not self._takes_flash():
                return Choice("reference", "No fused kernel here does this with a softcap.")
            if not self.operands[0].is_cuda and self._scores() < SMALL:
                return Choice("reference", "A softcap needs flash's tiles, slow for so few scores.")
            return Choice("flash", "torch's fused kernels know no softcap, and flash does.")
        given = *self.operands, self.rules, self.dropout_p
        modern = self.operands[0].dtype in HALF and self._takes_flash(("cuda",))
        if self._is_fragile():
            why = (
                "The float attn_mask may hold rows of huge negative numbers, and gradients are on: "
            )
            if modern:
                return Choice("flash", why + "flash's backward pass is right there.")
            return Choice("reference", why + "torch's fused backward passes are wrong there.")
        if modern and _sdpa.writes_masks(*given):
            return Choice("flash", "torch's fused kernel has no flag for these masks: flash has.")
        return Choice("sdpa", _sdpa.describe(*given))

    def _takes_flash(self, devices: tuple[str, ...] = ("cpu", "cuda")) -> bool:
        """Whether flash is there for this call, on these devices, and good."""
        query, _, value = self.operands
        kernel = self._is_kernel("flash")
        if query.device.type not in devices or torch.compiler.is_exporting():
            return False
        if _flash.refusal(query, value, self.rules, self.dropout_p, kernel) is not None:
            return False
        return not kernel or _flash.suits(query.device)

    def _scores(self) -> int:
        """B H T S."""
        return self.operands[0].shape[:-1].numel() * self.sizes[1]

    def _is_kernel(self, backend: str) -> bool:
        """Whether flash means Triton's kernels."""
        return backend == "kernel" or (backend == "flash" and self.operands[0].is_cuda)

    def _refuse(self, backend: str) -> None:
        """ValueError for what a named backend cannot do."""
        query, _, value = self.operands
        refusal = None
        if backend == "sdpa" and self.softcap is not None:
            refusal = "softcap", "flash" if self.dropout_p == 0 else "reference"
        if backend in FLASH:
            kernel = self._is_kernel(backend)
            refusal = _flash.refusal(query, value, self.rules, self.dropout_p, kernel)
        if backend == "flex":
            refusal = _flex().refusal(*self.operands, self.rules, self.dropout_p)
        if refusal is not None:
            feature, other = refusal
            own = backend in ("tiles", "kernel")
            who = f"mha.flash.attention_by_{backend}" if own else f"backend {backend!r}"
            raise ValueError(f"{who} cannot do {feature}; {other!r} can")

    def _is_empty(self) -> bool:
        query, key, _ = self.operands
        return 0 in (*query.shape[:-1], key.shape[-2])

    def _is_fragile(self) -> bool:
        """Whether a fused backward may go wrong.

        It rebuilds weights as exp(score - log-sum). In a row of huge negative numbers the log-sum
        drowns in rounding and the weights come out as 1: no such kernel with gradients.
        """
        bias = self.rules.attn_mask
        return isinstance(bias, Tensor) and bias.is_floating_point() and torch.is_grad_enabled()


def _flex():
    """The flex backend, loaded when it is first used: torch's own part of it is slow to import."""
    return importlib.import_module("mha._flex")


def _weights(
    query: Tensor, key: Tensor, rules: Rules, scale: float, softcap: float | None
) -> Tensor:
    """Weights (B, H, T, S), in float32 for half types; a row that sees nothing is zero."""
    dtype = _accumulation_dtype(query)
    key = _repeat(key, query.shape[-3])  # (B, H, S, D)
    scores = (query.to(dtype) @ key.to(dtype).mT) * scale  # (B, H, T, S)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    mask = rules.mask(query, key)
    if mask is None:
        return scores.softmax(-1)
    # A row of -inf has no softmax. Give it all its keys, or zeros, to chew on, then take its
    # weights away: what is filled receives no gradient, so nothing undefined flows back.
    if mask.dtype == torch.bool:
        dead = ~mask.any(-1, keepdim=True)  # as small as the mask is: (T, 1), (B, 1, T, 1) ...
        scores = scores.masked_fill(~(mask | dead), float("-inf"))
    else:
        scores = scores + mask
        dead = (scores == float("-inf")).all(-1, keepdim=True)  # (B, H, T, 1)
        scores = scores.masked_fill(dead, 0.0)
    return scores.softmax(-1).masked_fill(dead, 0.0)


def _average(weights: Tensor, value: Tensor, dropout_p: float) -> Tensor:
    """The values' average by weights, some of which are dropped: (B, H, T, D_v)."""
    weights = F.dropout(weights, dropout_p) if dropout_p > 0 else weights
    return weights @ _repeat(value, weights.shape[-3]).to(weights.dtype)


def _repeat(x: Tensor, heads: int) -> Tensor:
    """(B, H_kv, S, D) -> (B, H, S, D): query head h reads key head h // (H // H_kv)."""
    if x.shape[-3] == heads:
        return x
    return x.repeat_interleave(heads // x.shape[-3], dim=-3)


def _fold(x: Tensor, batch: list[int], heads: int) -> Tensor:
    """Give x the axes before its heads, and bring them to one: (B, heads, length, width)."""
    if x.shape[:-2] != (*batch, heads):
        x = x.expand(*batch, heads, *x.shape[-2:])
    if len(batch) == 1:
        return x
    return x.flatten(0, len(batch) - 1) if batch else x[None]


def _fold_rules(rules: Rules, batch: list[int]) -> Rules:
    """The rules for folded operands: a key mask (B or 1, S), an offset (B,) or of no axes."""
    attn_mask, key_mask, q_offset = rules.attn_mask, rules.key_mask, rules.q_offset
    if len(batch) < 2 and (key_mask is None or key_mask.ndim > 1):
        return rules
    if len(batch) > 1 and isinstance(attn_mask, Tensor) and attn_mask.ndim > 3:
        attn_mask = _fold(attn_mask, batch, attn_mask.shape[-3])
    if key_mask is not None:
        alike = key_mask.ndim == 1
        key_mask = key_mask[None] if alike else key_mask.expand(*batch, -1).flatten(0, -2)
    if len(batch) > 1 and isinstance(q_offset, Tensor) and q_offset.ndim > 0:
        q_offset = q_offset.expand(batch).flatten()
    return rules._replace(attn_mask=attn_mask, key_mask=key_mask, q_offset=q_offset)


def _check_slopes(bias: ALiBi, heads: int) -> None:
    if len(bias.slopes) != heads:
        raise ValueError(
            f"attn_mask must have a slope for each of the H={heads} heads, got an ALiBi of "
            f"{len(bias.slopes)}"
        )


def _accumulation_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in HALF else x.dtype


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
