"""Which query may see which key: builders, composition, and other libraries' conventions.

Everywhere in this package True means "may attend". A mask for scores broadcasts to (B, H, T, S);
a key mask is (B, S) and says which keys are real. Axes: B batch, H heads, T queries, S keys.

Examples:
    >>> import mha
    >>> mha.masks.causal(2, 3).tolist()  # two queries, three keys
    [[True, False, False], [True, True, False]]
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mha import _checks
from mha._conventions import (
    BLOCKED_BELOW,
    from_additive,
    from_keras,
    from_torch,
    from_transformers,
    require_broadcast,
    require_mask,
    to_additive,
    to_keras,
    to_torch,
    to_transformers,
)

__all__ = [
    "BLOCKED_BELOW",
    "causal",
    "combine",
    "draw",
    "from_additive",
    "from_keras",
    "from_torch",
    "from_transformers",
    "padding",
    "to_additive",
    "to_keras",
    "to_torch",
    "to_transformers",
    "window",
]


def causal(
    T: int,
    S: int | None = None,
    *,
    q_offset: int | Int[Tensor, "..."] = 0,
    device: torch.device | str | None = None,
) -> Bool[Tensor, "... T S"]:
    """Query i may see key j if j <= i + q_offset.

    Args:
        T: number of queries.
        S: number of keys, T by default.
        q_offset: position of the first query among the keys; a decoder whose cache holds n keys
            and gets one more token asks for ``causal(1, n + 1, q_offset=n)``. A tensor of ints
            holds one offset for each example, and may be negative like an int.
        device: where the mask is made; that of ``q_offset`` by default, if it is a tensor.
    Returns: (T, S) bool; (B, 1, T, S), with an axis for the heads, for a ``q_offset`` of shape
        (B,), and (..., 1, T, S) for one of shape (...) with at least one axis. The default aligns
        top left, as torch, JAX and Keras do; ``q_offset=S - T`` aligns bottom right.
    Errors: ValueError for a negative size; TypeError for sizes or offsets that are no ints.

    Examples:
        >>> import torch
        >>> from mha import masks
        >>> masks.causal(3, 5, q_offset=2).long()  # three new tokens behind two in the cache
        tensor([[1, 1, 1, 0, 0],
                [1, 1, 1, 1, 0],
                [1, 1, 1, 1, 1]])
        >>> tuple(masks.causal(3, 5, q_offset=torch.tensor([2, 0])).shape)  # (B, 1, T, S)
        (2, 1, 3, 5)
    """
    query, key = _positions(T, S, q_offset, device)
    return key <= query  # (..., T, S)


def window(
    T: int,
    S: int | None = None,
    *,
    left: int | None = None,
    right: int | None = None,
    q_offset: int | Int[Tensor, "..."] = 0,
    device: torch.device | str | None = None,
) -> Bool[Tensor, "... T S"]:
    """Query i may see key j if -left <= j - (i + q_offset) <= right.

    Args:
        T: number of queries.
        S: number of keys, T by default.
        left, right: how many keys before and after its own position a query sees, both ends
            included; None means unbounded. ``left=W - 1, right=0`` is a causal window of W tokens.
        q_offset, device: as in ``causal``.
    Returns: bool, shaped as in ``causal``.
    Errors: ValueError for a negative size or a negative ``left`` or ``right``; TypeError for
        sizes, bounds or offsets that are no ints.
    Source: Beltagy et al. (2020), Longformer, section 3.1.

    Examples:
        >>> from mha import masks
        >>> masks.window(3, 5, left=1, right=0, q_offset=2).long()  # itself and the key before
        tensor([[0, 1, 1, 0, 0],
                [0, 0, 1, 1, 0],
                [0, 0, 0, 1, 1]])
        >>> masks.window(3, right=0).equal(masks.causal(3))
        True
    """
    for name, bound in (("left", left), ("right", right)):
        if bound is None:
            continue
        if not _checks.is_int(bound):
            raise TypeError(f"{name} must be None or an int, got {bound!r}")
        if bound < 0:
            raise ValueError(f"{name} must be None or 0 or more, got {bound}")
    query, key = _positions(T, S, q_offset, device)
    shape = torch.broadcast_shapes(query.shape, key.shape)
    allowed = torch.ones(shape, dtype=torch.bool, device=key.device)  # (..., T, S)
    if left is not None:
        allowed = allowed & (query - left <= key)
    if right is not None:
        allowed = allowed & (key - right <= query)
    return allowed


def _positions(T: int, S: int | None, q_offset: int | Tensor, device) -> tuple[Tensor, Tensor]:
    """Positions of queries (..., T, 1) and of keys (1, S) on one common axis."""
    S = T if S is None else S
    for name, size in (("T", T), ("S", S)):
        if not _checks.is_int(size):
            raise TypeError(f"{name} must be an int, got {size!r}")
        if size < 0:
            raise ValueError(f"{name} must be 0 or more, got {size}")
    _checks.check_offset(q_offset)
    if isinstance(q_offset, Tensor):
        device = q_offset.device if device is None else device
        q_offset = q_offset.to(device)
        if q_offset.ndim:
            q_offset = q_offset[..., None, None, None]  # (B,) -> (B, 1, 1, 1)
    query = torch.arange(T, device=device)[:, None] + q_offset  # (..., T, 1)
    key = torch.arange(S, device=device)[None, :]  # (1, S)
    return query, key


def padding(
    lengths: Int[Tensor, "B"] | Sequence[int] | None = None,
    *,
    ids: Int[Tensor, "*B S"] | None = None,
    pad_id: int = 0,
    max_len: int | None = None,
    side: str = "right",
) -> Bool[Tensor, "*B S"]:
    """The key mask of a padded batch, from lengths or from token ids (give one of the two).

    Args:
        lengths: (B,) integers, number of real tokens of each example.
        ids: (..., S) integers; a token is real where it differs from ``pad_id``, wherever it stands.
        pad_id: the id of padding in ``ids``.
        max_len: S for ``lengths``; the longest length by default.
        side: where the padding of ``lengths`` stands: "right" of the real tokens, or "left".
    Returns: (B, S) bool, True = a real key.
    Errors: ValueError if both or none are given, for another ``side``, if a length is negative or
        above ``max_len`` (looked at on the CPU only, and not while compiling);
        TypeError if ``lengths`` or ``ids`` are not integers.

    Examples:
        >>> import torch
        >>> from mha import masks
        >>> masks.padding([3, 1]).tolist()
        [[True, True, True], [True, False, False]]
        >>> masks.padding([3, 1], side="left").tolist()
        [[True, True, True], [False, False, True]]
        >>> masks.padding(ids=torch.tensor([[7, 4, 0]])).tolist()
        [[True, True, False]]
    """
    if (lengths is None) == (ids is None):
        raise ValueError("give either lengths or ids, and not both")
    if side not in ("right", "left"):
        raise ValueError(f"side must be 'right' or 'left', got {side!r}")
    given = torch.as_tensor(lengths if ids is None else ids)
    name = "lengths" if ids is None else "ids"
    if not _checks.holds_ints(given):
        if given.numel() == 0 and not isinstance(lengths, Tensor) and ids is None:
            given = given.long()  # an empty list has no dtype of its own
        else:
            raise TypeError(f"{name} must be integers, got {given.dtype}")
    if ids is not None:
        return given != pad_id  # (..., S)
    return _from_lengths(given, max_len, side)


def _from_lengths(lengths: Tensor, max_len: int | None, side: str) -> Tensor:
    """The key mask (B, S) of checked integers (B,)."""
    if lengths.ndim != 1:
        raise ValueError(f"lengths must have shape (B,), got {tuple(lengths.shape)}")
    if max_len is not None and max_len < 0:
        raise ValueError(f"max_len must be 0 or more, got {max_len}")
    if max_len is None:
        size = int(lengths.max()) if lengths.numel() else 0
    else:
        size = max_len
    if _checks.may_read(lengths) and ((lengths < 0) | (lengths > size)).any():
        raise ValueError(f"lengths must lie between 0 and {size}, got {lengths.tolist()}")
    slot = torch.arange(size, device=lengths.device)  # (S,)
    before = lengths[:, None]  # (B, 1)
    return slot < before if side == "right" else slot >= size - before  # (B, S)


def combine(*masks: Bool[Tensor, "..."] | Float[Tensor, "..."] | None) -> Tensor | None:
    """All masks at once: a query sees a key only if every mask lets it.

    Args:
        masks: bool (True = may attend) or float (added to the scores), broadcastable to one another;
            None is skipped. A key mask (B, S) must come as (B, 1, 1, S): ``key_mask[:, None, None]``.
    Returns: bool if all are bool; otherwise their sum, with -inf where a bool mask says no;
        None if there is none.
    Errors: TypeError for a mask of another dtype; ValueError if shapes do not broadcast.

    Examples:
        >>> import torch
        >>> from mha import masks
        >>> key_mask = masks.padding([3, 2])[:, None, None]  # (B, S) -> (B, 1, 1, S)
        >>> both = masks.combine(masks.causal(3), key_mask)
        >>> tuple(both.shape), both[1, 0].long().tolist()
        ((2, 1, 3, 3), [[1, 0, 0], [1, 1, 0], [1, 1, 0]])
        >>> masks.combine(masks.causal(2), torch.full((2, 2), 0.5))
        tensor([[0.5000,   -inf],
                [0.5000, 0.5000]])
    """
    present = [mask for mask in masks if mask is not None]
    for mask in present:
        require_mask("mask", mask)
    if not present:
        return None
    require_broadcast(present)
    bools = [mask for mask in present if mask.dtype == torch.bool]
    floats = [mask for mask in present if mask.dtype != torch.bool]
    allowed = None
    for mask in bools:
        allowed = mask if allowed is None else allowed & mask
    if not floats:
        return allowed
    total = sum(floats[1:], floats[0])
    return total if allowed is None else torch.where(allowed, total, float("-inf"))


def draw(mask: Bool[Tensor, "..."], query_labels=None, key_labels=None, **options):
    """A picture of any mask: queries on rows, keys on columns.

    Args:
        mask: bool (T, S), or a key mask (S,).
        query_labels, key_labels: one label a row, one a column.
        options: passed on to ``mha.viz.mask`` (``title``, ``alt``).
    Returns: a figure that a notebook shows.
    Errors: ImportError naming ``mha[viz]`` if matplotlib is missing.

    Examples:
        >>> from mha import masks
        >>> figure = masks.draw(masks.causal(2, 3), ["a", "b"], ["x", "y", "z"], title="Causal")
        >>> figure.alt
        'Mask of 2 queries by 3 keys: 3 of 6 pairs may attend.'
    """
    from mha import viz

    return viz.mask(mask, query_labels, key_labels, **options)
