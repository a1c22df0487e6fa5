"""A task whose answer lies a known number of steps back: name the symbol that stood there."""

from collections.abc import Iterator

import torch
from jaxtyping import Int
from torch import Tensor


def lookback_batches(
    distance: int, batch_size: int, *, symbols: int = 8, seed: int = 0
) -> Iterator[tuple[Int[Tensor, "B L"], Int[Tensor, " B"]]]:
    """Random sequences without end, in batches; the answer lies ``distance`` steps before the end.

    All symbols are drawn alike, so nothing but its place tells the answer from the others.

    Args:
        distance: T, steps from the answer to the last position, at least 1.
        batch_size: B, sequences in a batch.
        symbols: size of the alphabet; by guessing one is right once in so many.
        seed: fixes all batches.
    Returns: iterator of (ids (B, T + 1) int64 in [0, symbols), answers (B,) = ids[:, -1 - T]).
        Every call starts the same stream anew.
    Errors: ValueError for a distance or batch_size below 1, or fewer than 2 symbols.

    Examples:
        >>> import torch
        >>> import mha
        >>> ids, answers = next(mha.data.lookback_batches(distance=3, batch_size=2))
        >>> ids.shape, answers.shape  # (B, T + 1), (B,)
        (torch.Size([2, 4]), torch.Size([2]))
        >>> torch.equal(answers, ids[:, 0])
        True
    """
    for name, value, least in (
        ("distance", distance, 1),
        ("batch_size", batch_size, 1),
        ("symbols", symbols, 2),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    return _stream(distance, batch_size, symbols, torch.Generator().manual_seed(seed))


def _stream(distance, batch_size, symbols, generator) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        ids = torch.randint(symbols, (batch_size, distance + 1), generator=generator)  # (B, L)
        yield ids, ids[:, -1 - distance]  # (B, L), (B,)
