"""Batches of sentence pairs for an encoder-decoder."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mha.data.batching import Batches, pad
from mha.data.vocabulary import Vocabulary


class Pair(Protocol):
    """Anything with a ``source`` and a ``target``, each a sequence of tokens."""

    source: Sequence[str]
    target: Sequence[str]


class TranslationBatch(NamedTuple):
    """B pairs as tensors; what the decoder reads is what it should say, one place late."""

    source_ids: Int[Tensor, "B S"]  # padded on the right
    source_mask: Bool[Tensor, "B S"]  # True = a real token
    target_in: Int[Tensor, "B T"]  # <bos> y1 y2 ... yn, padded
    target_out: Int[Tensor, "B T"]  # y1 y2 ... yn <eos>, padded

    def to(self, device: torch.device | str) -> "TranslationBatch":
        """The same batch on another device."""
        return TranslationBatch(*(tensor.to(device) for tensor in self))


def translation_batch(
    pairs: Sequence[Pair], source_vocab: Vocabulary, target_vocab: Vocabulary
) -> TranslationBatch:
    """All the pairs as one batch.

    Errors: ValueError for a token that a vocabulary without ``<unk>`` does not hold.
    """
    return _collate(_encoded(pairs, source_vocab, target_vocab))


def translation_batches(
    pairs: Sequence[Pair],
    source_vocab: Vocabulary,
    target_vocab: Vocabulary,
    batch_size: int,
    *,
    shuffle: bool = True,
    seed: int = 0,
) -> Batches:
    """The pairs in batches of sources of like length, encoded once; orders as in `Batches`."""
    return Batches(
        _encoded(pairs, source_vocab, target_vocab),
        batch_size,
        collate=_collate,
        length=lambda example: len(example[0]),
        shuffle=shuffle,
        seed=seed,
    )


def _encoded(
    pairs: Sequence[Pair], source_vocab: Vocabulary, target_vocab: Vocabulary
) -> list[tuple[list[int], list[int]]]:
    return [
        (source_vocab.encode(pair.source), target_vocab.encode(pair.target, bos=True, eos=True))
        for pair in pairs
    ]


def _collate(examples: Sequence[tuple[list[int], list[int]]]) -> TranslationBatch:
    source_ids, source_mask = pad([source for source, _ in examples])  # (B, S), (B, S)
    target_in, _ = pad([target[:-1] for _, target in examples])  # (B, T)
    target_out, _ = pad([target[1:] for _, target in examples])  # (B, T)
    return TranslationBatch(source_ids, source_mask, target_in, target_out)
