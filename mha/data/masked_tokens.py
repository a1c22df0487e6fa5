"""Masked tokens: some of a text is hidden, and a model that reads both sides is asked for it."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mha import _checks

IGNORED = -100
"""The target where nothing is asked: the default ``ignore_index`` of torch's cross-entropy."""


def masked_tokens(
    ids: Int[Tensor, "*B T"],
    *,
    mask_id: int,
    ordinary: range,
    rate: float = 0.15,
    key_mask: Bool[Tensor, "*B T"] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Int[Tensor, "*B T"], Int[Tensor, "*B T"]]:
    """Ids with holes, and what stood in them; drawn anew at each call.

    Each ordinary token is asked for with probability ``rate``, independently of the others, so the
    number of holes varies from text to text, and may be 0. Of those asked for 80 percent become
    ``mask_id``, 10 percent a random ordinary token (perhaps the same), and 10 percent stay as they
    are: the model cannot tell them from the rest, so it must have a guess for every token.

    Args:
        ids: signed integers (B, T), or of any shape.
        mask_id: the id that stands for a hidden token, `Vocabulary.mask_id`.
        ordinary: ids of the tokens that may be asked for and that replace others,
            `Vocabulary.ordinary`. All other ids, padding for example, stay as they are.
        rate: probability, 0 to 1.
        key_mask: bool, like ids in shape, True = a real token. The others are left alone too.
        generator: source of the random numbers, on the CPU; by default torch's own.
    Returns: inputs and targets, both like ids in shape, dtype and device. targets holds the id that
        is asked for, and -100 (which torch's cross-entropy leaves out) where none is.
    Errors: TypeError for ids that are no signed integers, a mask_id that is no int, a key_mask
        that is not bool; ValueError for a mask_id among the ordinary ids, for ``ordinary`` that is
        empty or leaves ids out, a rate outside [0, 1], and a key_mask of another shape.
    Source: Devlin et al. 2019, section 3.1 and appendix C.2, who draw a fixed number from each text.

    Examples:
        >>> import torch
        >>> import mha
        >>> text = "to be or not to be"
        >>> vocabulary = mha.data.Vocabulary([text], unk=False, mask=True)
        >>> ids = torch.tensor([vocabulary.encode(text)])  # (B, T)
        >>> inputs, targets = mha.data.masked_tokens(
        ...     ids, mask_id=vocabulary.mask_id, ordinary=vocabulary.ordinary, rate=0.5
        ... )
        >>> asked = targets != -100
        >>> torch.equal(targets[asked], ids[asked]), torch.equal(inputs[~asked], ids[~asked])
        (True, True)
    """
    _check(ids, mask_id, ordinary, rate, key_mask)
    drawn, kind = torch.rand(2, *ids.shape, generator=generator).to(ids.device)  # (B, T) each
    other = torch.randint(ordinary.start, ordinary.stop, ids.shape, generator=generator).to(ids)
    asked = (drawn < rate) & (ids >= ordinary.start) & (ids < ordinary.stop)  # (B, T)
    if key_mask is not None:
        asked = asked & key_mask
    targets = ids.masked_fill(~asked, IGNORED)  # (B, T)
    inputs = ids.masked_fill(asked & (kind < 0.8), mask_id)  # (B, T)
    inputs = torch.where(asked & (kind >= 0.9), other, inputs)  # (B, T)
    return inputs, targets


def _check(ids, mask_id, ordinary, rate, key_mask) -> None:
    """Refuse what cannot be masked, or would be masked wrongly."""
    if not isinstance(ids, Tensor) or not _checks.holds_ints(ids):
        got = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(f"ids must be a tensor of integers, got {got}")
    if not ids.dtype.is_signed:
        raise TypeError(f"ids must be integers with a sign, for targets of -100, got {ids.dtype}")
    if not _checks.is_int(mask_id):
        raise TypeError(f"mask_id must be an int, got {mask_id!r}")
    if not isinstance(ordinary, range):
        raise TypeError(f"ordinary must be a range of ids, got {ordinary!r}")
    if len(ordinary) == 0 or ordinary.step != 1:
        raise ValueError(f"ordinary must hold at least one id and leave none out, got {ordinary}")
    if mask_id in ordinary:
        raise ValueError(f"mask_id must not be one of the ordinary ids {ordinary}, got {mask_id}")
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be a probability in [0, 1], got {rate}")
    if key_mask is None:
        return
    if not isinstance(key_mask, Tensor) or key_mask.dtype != torch.bool:
        got = key_mask.dtype if isinstance(key_mask, Tensor) else type(key_mask).__name__
        raise TypeError(f"key_mask must be a bool tensor (True = a real token), got {got}")
    if key_mask.shape != ids.shape:
        raise ValueError(
            f"key_mask must have the shape of ids {tuple(ids.shape)}, got {tuple(key_mask.shape)}"
        )
