"""Which key a query may see and what is added to its scores: all masks of one call, together.

Axes: B batch, H heads, T queries, S keys.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mha import masks
from mha.positions import ALiBi


class Rules(NamedTuple):
    """The masks of one call, on queries (B, H, T, D) and keys (B, H_kv, S, D).

    attn_mask broadcasts to (B, H, T, S), or is an ``ALiBi``; key_mask is bool (B or 1, S); window
    is (left, right); q_offset an int or an int tensor, (B,) or of no axes.

    Examples:
        >>> import torch
        >>> from mha.flash import Rules
        >>> rules = Rules(is_causal=True, window=(1, None), q_offset=2)
        >>> rules.bounds
        (1, 0)
        >>> rules.mask(torch.ones(2, 2, 3, 4), torch.ones(2, 2, 5, 4)).long()  # (T, S)
        tensor([[0, 1, 1, 0, 0],
                [0, 0, 1, 1, 0],
                [0, 0, 0, 1, 1]])
        >>> rules.visible(slice(0, 2), 5)  # of five keys, those that the first two queries see
        slice(1, 4, None)
        >>> rules.part(slice(1, 3), slice(2, 5)).q_offset  # a block, counted from 0
        1
        >>> Rules(is_causal=True, q_offset=4).simplified(3, 5).bounds  # they hide nothing
        (None, None)
    """

    attn_mask: Tensor | ALiBi | None = None
    key_mask: Tensor | None = None
    is_causal: bool = False
    window: tuple[int | None, int | None] | None = None
    q_offset: int | Tensor = 0

    @property
    def bounds(self) -> tuple[int | None, int | None]:
        """(left, right) with -left <= j - (i + q_offset) <= right; causal is right = 0."""
        left, right = (None, None) if self.window is None else self.window
        if self.is_causal:
            right = 0 if right is None else min(right, 0)
        return left, right

    def simplified(self, length: int, size: int) -> "Rules":
        """The same without bounds that bind none of the T queries (an int offset only)."""
        left, right = self.bounds
        if left is None and right is None:
            return self
        if isinstance(self.q_offset, int):
            if left is not None and length - 1 + self.q_offset <= left:
                left = None  # even the last query sees the first key
            if right is not None and self.q_offset + right >= size - 1:
                right = None  # even the first query sees the last key
        bound = None if left is None and right is None else (left, right)
        return Rules(self.attn_mask, self.key_mask, False, bound, self.q_offset)

    def visible(self, rows: slice, size: int) -> slice:
        """The keys, at least one, to which the bounds confine the queries in ``rows``."""
        left, right = self.bounds
        if not isinstance(self.q_offset, int):
            return slice(0, size)
        first, last = rows.start + self.q_offset, rows.stop - 1 + self.q_offset
        start = 0 if left is None else min(max(first - left, 0), size - 1)
        stop = size if right is None else min(max(last + right + 1, start + 1), size)
        return slice(start, stop)

    def part(self, rows: slice, columns: slice) -> "Rules":
        """The rules of a block of queries and keys, which are then counted from 0."""
        attn_mask, key_mask = self.attn_mask, self.key_mask
        if isinstance(attn_mask, Tensor):
            attn_mask = _cut(_cut(attn_mask, -2, rows), -1, columns)
        if key_mask is not None:
            key_mask = key_mask[..., columns]
        q_offset = self.q_offset + rows.start - columns.start
        return self._replace(attn_mask=attn_mask, key_mask=key_mask, q_offset=q_offset)

    def mask(self, query: Tensor, key: Tensor) -> Tensor | None:
        """All rules as one mask that broadcasts to (B, H, T, S): bool, or float to be added."""
        length, size = query.shape[-2], key.shape[-2]
        bound, bias, (left, right) = None, self.attn_mask, self.bounds
        if left is not None or right is not None:
            sides = {"left": left, "right": right, "q_offset": self.q_offset}
            bound = masks.window(length, size, device=query.device, **sides)
        if isinstance(bias, ALiBi):
            dtype = torch.promote_types(torch.float32, query.dtype)
            place = {"q_offset": self.q_offset, "device": query.device, "dtype": dtype}
            bias = bias.bias(length, size, **place)  # (H, T, S) or (B, H, T, S)
        elif bias is not None and bias.is_floating_point():
            bias = bias.to(torch.promote_types(bias.dtype, query.dtype))
        rows = None if self.key_mask is None else self.key_mask[..., None, None, :]  # (B, 1, 1, S)
        return masks.combine(bias, rows, bound)


def _cut(mask: Tensor, axis: int, where: slice) -> Tensor:
    """A slice of an axis, unless the axis is missing or broadcasts."""
    if mask.ndim < -axis or mask.shape[axis] == 1:
        return mask
    return mask.narrow(axis, where.start, where.stop - where.start)
