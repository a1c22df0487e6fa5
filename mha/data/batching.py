"""Batching: sequences of unlike length made one tensor, and examples handed out in batches."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def pad(
    sequences: Sequence[Sequence[int]],
    pad_id: int = 0,
    *,
    device: torch.device | str | None = None,
) -> tuple[Int[Tensor, "B S"], Bool[Tensor, "B S"]]:
    """Sequences of ids as one tensor, each filled up on the right to the length of the longest.

    Args:
        sequences: B sequences of int, of any lengths.
        pad_id: the filler.
        device: of the results.
    Returns: ids (B, S) int64, and key_mask (B, S) bool, True = a real token. The mask comes from
        the lengths, so a ``pad_id`` inside a sequence counts as real.

    Examples:
        >>> import mha
        >>> ids, key_mask = mha.data.pad([[5, 6, 7], [8]])
        >>> ids  # (B, S)
        tensor([[5, 6, 7],
                [8, 0, 0]])
        >>> key_mask
        tensor([[ True,  True,  True],
                [ True, False, False]])
    """
    lengths = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.int64)  # (B,)
    longest = max(lengths.tolist(), default=0)
    rows = [list(sequence) + [pad_id] * (longest - len(sequence)) for sequence in sequences]
    ids = torch.tensor(rows, dtype=torch.int64).reshape(len(rows), longest)  # (B, S)
    key_mask = torch.arange(longest) < lengths[:, None]  # (B, S)
    return ids.to(device), key_mask.to(device)


def shuffled(items: Sequence[Any], rng: random.Random) -> list[Any]:
    """A copy in random order. ``rng.random()`` alone is promised to repeat on every Python."""
    return sorted(items, key=lambda _: rng.random())


class Batches:
    """The examples in batches: one pass for each ``iter()``, in a new random order every time.

    Args:
        examples: anything with a length and integer indices.
        batch_size: examples in a batch; the last batch of a pass may hold fewer.
        collate: makes a batch of a list of examples; by default the list itself.
        length: function of an example; where given, batches are made of examples of like length,
            so that little is spent on padding. Examples are sorted within random groups of 8
            batches: sorting them all would make each batch too much of one kind to learn from.
        shuffle: False keeps the order of the examples (or, with ``length``, that of the lengths).
        seed: fixes the orders. Two objects made alike give the same batches, pass by pass, on
            every platform.
    Errors: ValueError for a batch_size below 1 and for no examples.

    Examples:
        >>> import mha
        >>> list(mha.data.Batches("abcdefg", 3, collate="".join, shuffle=False))
        ['abc', 'def', 'g']
        >>> batches = mha.data.Batches("abcdefg", 3, collate="".join)
        >>> first, second = list(batches), list(batches)  # two passes
        >>> len(batches), first == second, sorted("".join(first)) == sorted("".join(second))
        (3, False, True)
    """

    GROUP = 8

    def __init__(
        self,
        examples: Sequence[Any],
        batch_size: int,
        *,
        collate: Callable[[list[Any]], Any] = list,
        length: Callable[[Any], int] | None = None,
        shuffle: bool = True,
        seed: int = 0,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if len(examples) == 0:
            raise ValueError("examples must not be empty")
        self.examples, self.batch_size, self.collate = examples, batch_size, collate
        self.length, self.shuffle = length, shuffle
        self._rng = random.Random(seed)

    def __len__(self) -> int:
        return math.ceil(len(self.examples) / self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        order = list(range(len(self.examples)))
        if self.shuffle:
            order = shuffled(order, self._rng)
        if self.length is not None:
            order = self._by_length(order)
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        if self.shuffle:
            batches = shuffled(batches, self._rng)
        for batch in batches:
            yield self.collate([self.examples[i] for i in batch])

    def _by_length(self, order: list[int]) -> list[int]:
        size = self.GROUP * self.batch_size if self.shuffle else len(order)
        groups = [order[i : i + size] for i in range(0, len(order), size)]
        return [i for group in groups for i in sorted(group, key=self._length_of)]

    def _length_of(self, index: int) -> int:
        return self.length(self.examples[index])
