"""A mask in other libraries' forms, and what a mask must be. ``mha.masks`` exports all of it."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

BLOCKED_BELOW = -1e4
"""An additive mask's entry at or below this counts as "blocked" (BERT's original fill value)."""


def to_additive(
    mask: Bool[Tensor, "*shape"], dtype: torch.dtype = torch.float32, *, fill: float = float("-inf")
) -> Float[Tensor, "*shape"]:
    """0 where the mask is True, ``fill`` where it is False: the form that is added to the scores.

    Args:
        mask: bool, any shape.
        dtype: a floating dtype.
        fill: -inf (a row without keys stays dead), or ``torch.finfo(dtype).min`` as Transformers
            has it (such a row attends to everything evenly).
    Returns: the shape of ``mask``, in ``dtype``.
    Errors: TypeError if the mask is not bool, or the dtype not floating.

    Examples:
        >>> from mha import masks
        >>> masks.to_additive(masks.causal(2))
        tensor([[0., -inf],
                [0., 0.]])
    """
    require_bool("mask", mask)
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point dtype, got {dtype}")
    zero = torch.zeros((), dtype=dtype, device=mask.device)
    return torch.where(mask, zero, torch.full_like(zero, fill))


def from_additive(mask: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """The bool mask of an additive one: True where it holds 0, False where it is -1e4 or below.

    Args:
        mask: floating, any shape, nothing but 0 and values at or below ``BLOCKED_BELOW``.
    Errors: TypeError if the mask is not floating; ValueError if it holds anything else (a bias such
        as ALiBi's is not a mask, and 0/1 floats are meant as bool: say ``mask.bool()``).

    Examples:
        >>> import torch
        >>> from mha import masks
        >>> masks.from_additive(torch.tensor([[0.0, -10000.0], [0.0, float("-inf")]])).tolist()
        [[True, False], [True, False]]
    """
    if not isinstance(mask, Tensor) or not mask.is_floating_point():
        raise TypeError(f"mask must be a floating tensor, got {_kind(mask)}")
    allowed, blocked = mask == 0, mask <= BLOCKED_BELOW
    odd = mask[~(allowed | blocked)]
    if odd.numel():
        raise ValueError(
            f"mask must hold 0 and values <= {BLOCKED_BELOW:g} only, got {odd[0].item():g}; "
            "a mask of 0 and 1 becomes bool by mask.bool()"
        )
    return allowed


def to_torch(
    attn_mask: Bool[Tensor, "..."] | None = None,
    key_mask: Bool[Tensor, "B S"] | None = None,
    *,
    num_heads: int | None = None,
) -> dict[str, Tensor | None]:
    """The two masks of ``torch.nn.MultiheadAttention``, where True means "blocked".

    Args:
        attn_mask: bool (T, S), or (B, T, S), or (B, H or 1, T, S).
        key_mask: bool (B, S).
        num_heads: H, needed when ``attn_mask`` has a batch axis: torch wants (B*H, T, S).
    Returns: a dict with ``attn_mask`` and ``key_padding_mask``, ready to be passed as ``**masks``.
    Errors: TypeError for a mask that is not bool; ValueError for a missing ``num_heads`` or a
        wrong shape.

    Examples:
        >>> import torch
        >>> from mha import masks
        >>> given = masks.to_torch(masks.causal(2), masks.padding([2, 1]))
        >>> given["attn_mask"].tolist()  # True = blocked, the other way round
        [[False, True], [False, False]]
        >>> layer = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        >>> x = torch.ones(2, 2, 8)  # (B, T, E)
        >>> tuple(layer(x, x, x, **given)[0].shape)
        (2, 2, 8)
    """
    blocked = None
    if attn_mask is not None:
        require_bool("attn_mask", attn_mask)
        blocked = ~attn_mask
        if blocked.ndim > 2:
            blocked = _fold_heads(blocked, num_heads)  # (B*H, T, S)
        elif blocked.ndim < 2:
            raise ValueError(f"attn_mask must have 2 to 4 axes, got {tuple(attn_mask.shape)}")
    if key_mask is not None:
        require_bool("key_mask", key_mask)
    return {
        "attn_mask": blocked,
        "key_padding_mask": None if key_mask is None else ~key_mask,
    }


def _fold_heads(mask: Tensor, num_heads: int | None) -> Tensor:
    """(B, T, S) or (B, H or 1, T, S) -> (B*H, T, S), batch first, as torch unfolds it."""
    if num_heads is None:
        raise ValueError("num_heads is needed: torch wants a mask with a batch axis as (B*H, T, S)")
    if mask.ndim == 3:
        mask = mask[:, None]  # (B, 1, T, S)
    if mask.ndim != 4 or mask.shape[1] not in (1, num_heads):
        shape = tuple(mask.shape)
        raise ValueError(f"attn_mask must be (B, 1 or H={num_heads}, T, S), got {shape}")
    batch, _, length, size = mask.shape
    mask = mask.expand(batch, num_heads, length, size)
    return mask.reshape(batch * num_heads, length, size)  # (B*H, T, S)


def from_torch(
    attn_mask: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    *,
    num_heads: int | None = None,
) -> dict[str, Tensor | None]:
    """Our two masks, from those of ``torch.nn.MultiheadAttention``.

    Args:
        attn_mask: (T, S) or (B*H, T, S); bool (True = blocked) or float (added).
        key_padding_mask: (B, S); bool (True = padding) or additive.
        num_heads: H, needed when ``attn_mask`` has three axes.
    Returns: a dict with ``attn_mask`` (True = may attend, or float) and ``key_mask``, ready to be
        passed as ``**masks``.
    Errors: ValueError for a shape that does not fit; TypeError for an integer mask.

    Examples:
        >>> import torch
        >>> from mha import masks
        >>> blocked = torch.tensor([[False, False, True]])  # torch's: the last key is padding
        >>> masks.from_torch(key_padding_mask=blocked)["key_mask"].tolist()
        [[True, True, False]]
        >>> blocked = torch.zeros(2 * 2, 3, 5, dtype=torch.bool)  # (B*H, T, S)
        >>> tuple(masks.from_torch(blocked, num_heads=2)["attn_mask"].shape)
        (2, 2, 3, 5)
    """
    if attn_mask is not None:
        require_mask("attn_mask", attn_mask)
        if attn_mask.dtype == torch.bool:
            attn_mask = ~attn_mask
        if attn_mask.ndim == 3:
            if not num_heads or attn_mask.shape[0] % num_heads:
                raise ValueError(
                    f"num_heads must divide the first axis of attn_mask {tuple(attn_mask.shape)}, "
                    f"got {num_heads}"
                )
            attn_mask = attn_mask.unflatten(0, (-1, num_heads))  # (B, H, T, S)
    if key_padding_mask is not None:
        require_mask("key_padding_mask", key_padding_mask)
        is_bool = key_padding_mask.dtype == torch.bool
        key_padding_mask = ~key_padding_mask if is_bool else from_additive(key_padding_mask)
    return {"attn_mask": attn_mask, "key_mask": key_padding_mask}


def to_keras(
    attn_mask: Bool[Tensor, "..."] | None = None, key_mask: Bool[Tensor, "B S"] | None = None
) -> Bool[Tensor, "..."] | None:
    """The ``attention_mask`` of ``keras.layers.MultiHeadAttention``: one mask, True = may attend.

    Args:
        attn_mask: bool (T, S), (B, T, S) or (B, H or 1, T, S).
        key_mask: bool (B, S).
    Returns: (B, T, S) where heads agree, else (B, H, T, S); a batch axis of 1 broadcasts.
    Errors: TypeError for a mask that is not bool; ValueError for an attn_mask of another shape.

    Examples:
        >>> from mha import masks
        >>> mask = masks.to_keras(masks.causal(2), masks.padding([2, 1]))  # (B, T, S)
        >>> mask.tolist()
        [[[True, False], [True, True]], [[True, False], [True, False]]]
    """
    for name, mask in (("attn_mask", attn_mask), ("key_mask", key_mask)):
        if mask is not None:
            require_bool(name, mask)
    if attn_mask is not None and not 2 <= attn_mask.ndim <= 4:
        raise ValueError(f"attn_mask must have 2 to 4 axes, got {tuple(attn_mask.shape)}")
    if attn_mask is not None and attn_mask.ndim == 3:
        attn_mask = attn_mask[:, None]  # (B, 1, T, S)
    rows = None if key_mask is None else key_mask[:, None, None, :]  # (B, 1, 1, S)
    given = [mask for mask in (attn_mask, rows) if mask is not None]
    if not given:
        return None
    require_broadcast(given)
    mask = given[0] & given[-1]  # one mask with itself, or both
    mask = mask[(None,) * (4 - mask.ndim)]  # (B, H or 1, T, S)
    return mask[:, 0] if mask.shape[1] == 1 else mask


def from_keras(attention_mask: Bool[Tensor, "..."]) -> dict[str, Tensor]:
    """Our ``attn_mask``, from Keras's ``attention_mask``.

    Args:
        attention_mask: bool (B, T, S) or (B, H, T, S), True = may attend.
    Returns: a dict with ``attn_mask``, (B, 1, T, S) or (B, H, T, S), to be passed as ``**masks``.
    Errors: ValueError for another number of axes; TypeError if it is not bool (Keras also takes
        0/1 numbers: say ``.bool()``).

    Examples:
        >>> import torch
        >>> from mha import masks
        >>> given = masks.from_keras(torch.ones(2, 3, 5, dtype=torch.bool))  # (B, T, S)
        >>> tuple(given["attn_mask"].shape)  # (B, 1, T, S)
        (2, 1, 3, 5)
    """
    require_bool("attention_mask", attention_mask)
    if attention_mask.ndim not in (3, 4):
        shape = tuple(attention_mask.shape)
        raise ValueError(f"attention_mask must be (B, T, S) or (B, H, T, S), got {shape}")
    return {"attn_mask": attention_mask[:, None] if attention_mask.ndim == 3 else attention_mask}


def to_transformers(
    attn_mask: Bool[Tensor, "..."] | None = None,
    key_mask: Bool[Tensor, "B S"] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor | None:
    """The ``attention_mask`` that a Transformers model takes.

    Args:
        attn_mask: bool (T, S), (B, T, S) or (B, H or 1, T, S).
        key_mask: bool (B, S).
        dtype: dtype of the additive mask.
    Returns: (B, S) int64 of 1 and 0 if only ``key_mask`` is given; otherwise the additive form
        (B, H or 1, T, S) of 0 and ``finfo(dtype).min``. None without masks.
    Errors: TypeError for a mask that is not bool.

    Examples:
        >>> from mha import masks
        >>> masks.to_transformers(key_mask=masks.padding([3, 1]))
        tensor([[1, 1, 1],
                [1, 0, 0]])
        >>> mask = masks.to_transformers(masks.causal(3, 5))
        >>> tuple(mask.shape), mask.dtype
        ((1, 1, 3, 5), torch.float32)
    """
    if attn_mask is None:
        if key_mask is None:
            return None
        require_bool("key_mask", key_mask)
        return key_mask.long()  # (B, S)
    mask = to_keras(attn_mask, key_mask)
    mask = mask[:, None] if mask.ndim == 3 else mask  # (B, H or 1, T, S)
    return to_additive(mask, dtype, fill=torch.finfo(dtype).min)


def from_transformers(attention_mask: Tensor) -> dict[str, Tensor]:
    """Our masks, from the ``attention_mask`` of a Transformers model.

    Args:
        attention_mask: (B, S) of 1 and 0, or bool; or (B, H or 1, T, S), bool (True = may attend)
            or additive.
    Returns: a dict with ``key_mask`` (two axes) or ``attn_mask`` (four axes), both bool. A row of
        ``finfo.min``, which there attends to everything evenly, becomes a row that sees nothing.
    Errors: ValueError for another number of axes, or for numbers that are not of these forms;
        TypeError for what is no tensor, or a four-axis mask of integers.

    Examples:
        >>> import torch
        >>> from mha import masks
        >>> masks.from_transformers(torch.tensor([[1, 1, 0]]))["key_mask"].tolist()
        [[True, True, False]]
        >>> additive = masks.to_transformers(masks.causal(2))  # (1, 1, T, S), 0 and finfo.min
        >>> masks.from_transformers(additive)["attn_mask"].tolist()
        [[[[True, False], [True, True]]]]
    """
    if not isinstance(attention_mask, Tensor):
        raise TypeError(f"attention_mask must be a tensor, got {_kind(attention_mask)}")
    if attention_mask.ndim == 2:
        if not ((attention_mask == 0) | (attention_mask == 1)).all():
            raise ValueError("attention_mask of shape (B, S) must hold 0 and 1 only")
        return {"key_mask": attention_mask.bool()}
    if attention_mask.ndim == 4:
        is_bool = attention_mask.dtype == torch.bool
        return {"attn_mask": attention_mask if is_bool else from_additive(attention_mask)}
    shape = tuple(attention_mask.shape)
    raise ValueError(f"attention_mask must have 2 or 4 axes, got shape {shape}")


def _kind(given) -> str:
    return str(given.dtype) if isinstance(given, Tensor) else type(given).__name__


def require_bool(name: str, mask: Tensor) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"{name} must be a bool tensor, got {_kind(mask)}; say {name}.bool()")


def require_mask(name: str, mask: Tensor) -> None:
    if isinstance(mask, Tensor) and (mask.dtype == torch.bool or mask.is_floating_point()):
        return
    raise TypeError(
        f"{name} must be bool or floating (added to the scores), got {_kind(mask)}; "
        f"for 0 and 1 say {name}.bool()"
    )


def require_broadcast(masks: list[Tensor]) -> None:
    """Refuse masks whose shapes do not broadcast to one another."""
    try:
        torch.broadcast_shapes(*(mask.shape for mask in masks))
    except RuntimeError:
        shapes = ", ".join(str(tuple(mask.shape)) for mask in masks)
        raise ValueError(f"masks must broadcast to one another, got shapes {shapes}") from None
