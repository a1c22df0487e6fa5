"""KVCache: the keys and values that a decoder has computed already, kept for the next step.

An explicit object that the caller makes, passes and drops; no module ever holds one.
Axes: B batch, H_kv key/value heads, T new tokens, S stored slots, D and D_v widths of one head.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mha import _checks


class Stored(NamedTuple):
    """What new queries attend to. ``key`` and ``value`` are views of the cache's buffers, good
    until the cache changes.

    key (B, H_kv, S, D); value (B, H_kv, S, D_v); key_mask (B, S) bool, True = a real key, or None
    where every slot of every example is real; q_offset: slot of the first new query among the S,
    an int where all examples agree, else int64 (B,).

    Examples:
        >>> import torch
        >>> import mha
        >>> new = torch.ones(2, 2, 3, 4)  # (B, H_kv, T, D)
        >>> stored = mha.KVCache(2, 2, max_len=5, head_dim=4).append(new, new)
        >>> tuple(stored.key.shape), stored.key_mask, stored.q_offset
        ((2, 2, 3, 4), None, 0)
    """

    key: Tensor
    value: Tensor
    key_mask: Tensor | None
    q_offset: int | Tensor


class KVCache:
    """Preallocated room for the keys and values of one attention layer.

    Tokens go into slots, one behind the other. Slots count like positions, up to a constant for
    each example, so causal masks, windows, ALiBi and rotary positions need nothing but ``q_offset``.
    Shapes and branches depend on sizes alone, never on what a tensor holds: no step waits for a GPU.

    Args:
        batch_size: B, the number of examples.
        num_kv_heads: H_kv, the number of key (and value) heads.
        max_len: number of slots.
        head_dim: D, width of a key.
        value_dim: D_v, width of a value; ``head_dim`` by default.
        window: (left, right) as in ``scaled_dot_product_attention``. A full cache then drops all
            but its last ``left`` slots, the only ones a later query can see. Each drop copies
            ``left`` slots; with max_len = 2 * left it happens every ``left`` tokens.
        static: holds a cross-attention memory: filled by one ``append``, then only read.
        device, dtype: of the two buffers, by default torch's own.
    Attributes:
        length: slots in use (of the longest example, at most).
        filled: whether anything was appended since the last ``reset``.
        max_len, static: as given.
    Memory: B * H_kv * max_len * (D + D_v) numbers, and B * max_len bools.
    Errors: TypeError or ValueError naming the argument, what came and what was expected.

    Examples:
        >>> import torch
        >>> import mha
        >>> attention = mha.MultiHeadAttention(8, 2, is_causal=True)
        >>> x = torch.randn(2, 3, 8)  # (B, T, E)
        >>> cache = mha.KVCache.for_module(attention, batch_size=2, max_len=5)
        >>> with torch.no_grad():  # token by token, or all at once
        ...     steps = [attention(x[:, i : i + 1], cache=cache) for i in range(3)]
        ...     print(torch.allclose(torch.cat(steps, dim=1), attention(x), atol=1e-5))
        True
        >>> cache
        KVCache(batch_size=2, num_kv_heads=2, max_len=5, head_dim=4, length=3)
    """

    def __init__(
        self,
        batch_size: int,
        num_kv_heads: int,
        max_len: int,
        head_dim: int,
        *,
        value_dim: int | None = None,
        window: tuple[int | None, int | None] | None = None,
        static: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        value_dim = head_dim if value_dim is None else value_dim
        sizes = {"num_kv_heads": num_kv_heads, "max_len": max_len, "head_dim": head_dim}
        for name, size in {**sizes, "value_dim": value_dim}.items():
            _checks.check_size(name, size)
        if batch_size != 0:  # an empty batch is a batch
            _checks.check_size("batch_size", batch_size)
        _checks.check_flag("static", static)
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating-point dtype, got {dtype}")
        self.max_len, self.static = max_len, static
        self._left = None if static else _left(window, max_len)
        made = {"device": device, "dtype": dtype}
        with torch.inference_mode(False):  # ordinary tensors, wherever the cache is made
            self._buffers = [
                torch.zeros(batch_size, num_kv_heads, max_len, head_dim, **made),  # keys
                torch.zeros(batch_size, num_kv_heads, max_len, value_dim, **made),  # values
                torch.zeros(batch_size, 1, max_len, 1, dtype=torch.bool, device=device),  # is real
            ]
        self.reset()

    @classmethod
    def for_module(
        cls, module, batch_size: int, max_len: int, *, static: bool = False
    ) -> "KVCache":
        """An empty cache with the sizes, window, device and dtype of a ``MultiHeadAttention``.

        Args:
            module: has ``num_kv_heads``, ``head_dim``, ``window`` and ``k_proj.weight``.
            batch_size, max_len, static: as for the class.

        Examples:
            >>> import mha
            >>> attention = mha.MultiHeadAttention(8, 4, num_kv_heads=1)
            >>> mha.KVCache.for_module(attention, batch_size=2, max_len=5)
            KVCache(batch_size=2, num_kv_heads=1, max_len=5, head_dim=2, length=0)
        """
        made = {"device": module.k_proj.weight.device, "dtype": module.k_proj.weight.dtype}
        sizes = batch_size, module.num_kv_heads, max_len, module.head_dim
        return cls(*sizes, window=module.window, static=static, **made)

    def reset(self) -> None:
        """Empty again. The buffers stay where they are, full of zeros.

        Examples:
            >>> import torch
            >>> import mha
            >>> cache = mha.KVCache(2, 2, max_len=5, head_dim=4)
            >>> _ = cache.append(torch.ones(2, 2, 3, 4), torch.ones(2, 2, 3, 4))
            >>> cache.reset()
            >>> cache.length, cache.filled
            (0, False)
        """
        for buffer in self._buffers:
            buffer.zero_()
        self.length = 0  # slots in use: the upper bound over the examples, known to the host
        self.filled = False  # whether anything came since the last reset
        self._ends = None  # (B,) slots in use by each example, once they may differ
        self._seen = 0  # int or (B,): slots ever used, those that have slid out included

    @property
    def batch_size(self) -> int:
        """B, the number of examples."""
        return self._buffers[0].shape[0]

    @property
    def lengths(self) -> Int[Tensor, "B"]:
        """(B,) int64: slots in use by each example; left padding counts, right padding does not."""
        if self._ends is not None:
            return self._ends
        device = self._buffers[0].device
        return torch.full((self.batch_size,), self.length, dtype=torch.int64, device=device)

    @property
    def position(self) -> int | Int[Tensor, "B"]:
        """Position of the next token, counted from the first one ever appended: int, or (B,).

        Examples:
            >>> import torch
            >>> import mha
            >>> cache = mha.KVCache(2, 1, max_len=3, head_dim=4, window=(1, 0))
            >>> for _ in range(4):  # the last one finds it full: all but one slot slide out
            ...     _ = cache.append(torch.ones(2, 1, 1, 4), torch.ones(2, 1, 1, 4))
            >>> cache.position, cache.length
            (4, 2)
        """
        return self._seen

    def append(
        self,
        key: Float[Tensor, "B Hkv T D"],
        value: Float[Tensor, "B Hkv T Dv"],
        key_mask: Bool[Tensor, "B T"] | None = None,
    ) -> Stored:
        """Store the keys and values of T new tokens; return what their queries attend to.

        Args:
            key: (B, H_kv, T, D), without gradient while grad mode is on.
            value: (B, H_kv, T, D_v), likewise.
            key_mask: bool (B, T), True = a real token. What is False at the end of a row (right
                padding) takes no room: the next append overwrites it, and examples from then on
                have lengths of their own. What is False elsewhere (left padding) keeps its slot and
                stays hidden. As masks are never read, T slots count as used in any case:
                ``length`` bounds ``lengths`` from above, and the cache is full by ``length``.
        Returns: ``Stored``, the T new tokens included. Under autocast tensors are cast to the
            buffers' dtype.
        Errors: TypeError or ValueError naming the argument, what came and what was expected;
            ValueError if the cache is full, or static and filled. The cache is unchanged then.

        Examples:
            >>> import torch
            >>> import mha
            >>> cache = mha.KVCache(2, 1, max_len=5, head_dim=4)
            >>> new = torch.ones(2, 1, 3, 4)  # (B, H_kv, T, D)
            >>> _ = cache.append(new, new, mha.masks.padding([3, 2]))
            >>> cache.batch_size, cache.lengths.tolist()
            (2, [3, 2])
            >>> stored = cache.append(new[:, :, :1], new[:, :, :1])  # one more token for each
            >>> stored.q_offset.tolist(), stored.key_mask.tolist()  # in the padding's slot
            ([3, 2], [[True, True, True, True], [True, True, True, False]])
        """
        self._check(key, value, key_mask)
        batch, _, size, _ = key.shape  # T tokens
        self._make_room(size)
        keys, values, real = self._buffers
        if key_mask is not None and self._ends is None:
            self._ends = self.lengths
            real[:, :, : self.length] = True
        start, taken = self._next_slot(), size
        slots = _slots(start, size)
        _put(keys, slots, key)
        _put(values, slots, value)
        if self._ends is not None:
            if key_mask is None:
                real.scatter_(2, slots, True)
            else:
                mask = key_mask.expand(batch, size)  # (B, T)
                _put(real, slots, mask[:, None, :, None])
                taken = (mask.flip(1).cumsum(1) > 0).sum(1)  # (B,), up to the last real token
            self._ends = start + taken
        self._seen = self._seen + taken
        self.length, self.filled = self.length + size, True
        return self._stored(start)

    def read(self) -> Stored:
        """What is stored, without adding to it: a static cache's memory, with q_offset 0.

        Errors: ValueError if nothing has been appended.

        Examples:
            >>> import torch
            >>> import mha
            >>> cache = mha.KVCache(2, 2, max_len=5, head_dim=4, static=True)
            >>> memory = torch.ones(2, 2, 5, 4)  # (B, H_kv, S, D)
            >>> _ = cache.append(memory, memory)
            >>> tuple(cache.read().key.shape), cache.read().q_offset
            ((2, 2, 5, 4), 0)
        """
        if not self.filled:
            raise ValueError("the cache is empty: append keys and values before reading it")
        return self._stored(self._next_slot())

    def reorder(self, index: Int[Tensor, "N"]) -> None:
        """Example n becomes what example index[n] was: beams that survive, or more, or fewer.

        Args:
            index: int64 (N,), values in [0, B). The cache then has batch size N; where N differs
                from B, it moves to buffers of that size.
        Errors: TypeError for another dtype; ValueError for another shape or device, or (on the
            CPU, not while compiling) for a value out of range.

        Examples:
            >>> import torch
            >>> import mha
            >>> cache = mha.KVCache(2, 1, max_len=5, head_dim=1)
            >>> new = torch.tensor([7.0, 9.0])[:, None, None, None]  # (B, H_kv, T, D), T = 1
            >>> stored = cache.append(new, new)
            >>> cache.reorder(torch.tensor([1, 1, 0]))  # three beams from two
            >>> cache.read().key.flatten().tolist()
            [9.0, 9.0, 7.0]
        """
        if not isinstance(index, Tensor) or index.dtype != torch.int64:
            got = index.dtype if isinstance(index, Tensor) else type(index).__name__
            raise TypeError(f"index must be an int64 tensor, got {got}")
        device, batch = self._buffers[0].device, self.batch_size
        if index.ndim != 1 or index.device != device:
            raise ValueError(
                f"index must have shape (N,) on {device}, got {tuple(index.shape)} on {index.device}"
            )
        if _checks.may_read(index) and ((index < 0) | (index >= batch)).any():
            raise ValueError(f"index must lie between 0 and {batch - 1}, got {index.tolist()}")
        for place, buffer in enumerate(self._buffers):
            picked = buffer[:, :, : self.length].index_select(0, index)  # (N, heads, S, width)
            if index.shape[0] != batch:
                with torch.inference_mode(False):
                    buffer = buffer.new_zeros(index.shape[0], *buffer.shape[1:])
                self._buffers[place] = buffer
            buffer[:, :, : self.length] = picked
        self._ends = None if self._ends is None else self._ends[index]
        self._seen = self._seen[index] if isinstance(self._seen, Tensor) else self._seen

    def __repr__(self) -> str:
        batch, heads, _, width = self._buffers[0].shape
        return (
            f"KVCache(batch_size={batch}, num_kv_heads={heads}, max_len={self.max_len}, "
            f"head_dim={width}, length={self.length})"
        )

    def _next_slot(self) -> int | Tensor:
        """Where the next token goes: int, or (B,) where examples differ."""
        return self.length if self._ends is None else self._ends

    def _stored(self, start: int | Tensor) -> Stored:
        """The slots in use; a static cache's queries are not among its keys, so they start at 0."""
        key, value, real = (buffer[:, :, : self.length] for buffer in self._buffers)
        real = None if self._ends is None else real[:, 0, :, 0]  # (B, 1, S, 1) -> (B, S)
        return Stored(key, value, real, 0 if self.static else start)

    def _make_room(self, size: int) -> None:
        """Let the window slide if ``size`` more slots do not fit; refuse if that is of no use."""
        if self.static and self.filled:
            raise ValueError("a static cache is filled once: read() it, or reset() it first")
        if self.length + size <= self.max_len:
            return
        if self._left is None:
            raise ValueError(
                f"the cache is full: {self.length} of max_len={self.max_len} slots are in use "
                f"and T={size} more came"
            )
        if self._left + size > self.max_len:
            free = self.max_len - self.length
            raise ValueError(
                f"key must fit into the {free} free slots, or bring at most max_len - left = "
                f"{self.max_len - self._left} tokens, got T={size}; append in smaller chunks"
            )
        # A query at slot e sees e - left and later. Nobody will ask for what comes before.
        shift = self.length - self._left
        if self._ends is not None:
            shift = (self._ends - self._left).clamp(min=0)  # (B,)
            self._ends = self._ends - shift
        slots = _slots(shift, self._left)
        for buffer in self._buffers:
            buffer[:, :, : self._left] = _take(buffer, slots)
            buffer[:, :, self._left :] = 0
        self.length = self._left

    def _check(self, key: Tensor, value: Tensor, key_mask: Tensor | None) -> None:
        """Refuse what does not fit the buffers, and what would need a gradient through them."""
        for name, x, buffer in zip(("key", "value"), (key, value), self._buffers, strict=False):
            _checks.check_floating(name, x)
            batch, heads, _, width = buffer.shape
            if x.ndim != 4 or x.shape != (batch, heads, x.shape[2], width):
                letter = "D" if name == "key" else "D_v"
                raise ValueError(
                    f"{name} must have shape (B={batch}, H_kv={heads}, T, {letter}={width}) for "
                    f"this cache, got {tuple(x.shape)}"
                )
            if x.dtype != buffer.dtype and not _checks.is_autocast(buffer.device.type):
                raise ValueError(f"{name} must be {buffer.dtype} like the cache, got {x.dtype}")
            if x.device != buffer.device:
                raise ValueError(
                    f"{name} must be on {buffer.device} like the cache, got {x.device}"
                )
            if torch.is_grad_enabled() and x.requires_grad:
                raise ValueError(
                    f"{name} requires grad, and a cache passes no gradient on: decode under "
                    f"torch.no_grad(), or detach it"
                )
        if key.shape[2] != value.shape[2]:
            raise ValueError(
                f"key and value must have the same length T, got {key.shape[2]} and "
                f"{value.shape[2]}"
            )
        _checks.check_key_mask(key_mask, key, (key.shape[0], key.shape[2]))


def _left(window: tuple[int | None, int | None] | None, max_len: int) -> int | None:
    """How many slots a window looks back, if it has such a bound; a new token must fit behind."""
    _checks.check_window(window)
    left = None if window is None else window[0]
    if left is not None and left >= max_len:
        raise ValueError(f"max_len must exceed the window's left={left}, got {max_len}")
    return left


def _slots(start: int | Tensor, size: int) -> slice | Tensor:
    """Slots start, ..., start + size - 1; where ``start`` is (B,), as (B, 1, size, 1)."""
    if isinstance(start, Tensor):
        return (start[:, None] + torch.arange(size, device=start.device))[:, None, :, None]
    return slice(start, start + size)


def _put(buffer: Tensor, slots: slice | Tensor, new: Tensor) -> None:
    """Write (B, heads, size, width) into these slots."""
    if isinstance(slots, Tensor):
        buffer.scatter_(2, slots.expand(new.shape), new.to(buffer.dtype))
    else:
        buffer[:, :, slots] = new


def _take(buffer: Tensor, slots: slice | Tensor) -> Tensor:
    """A copy of these slots, (B, heads, size, width)."""
    if isinstance(slots, Tensor):
        return buffer.gather(2, slots.expand(-1, buffer.shape[1], -1, buffer.shape[3]))
    return buffer[:, :, slots].clone()
