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
    """B pairs as tensors; what the decoder reads is what it should say, one place late.

    Examples:
        >>> import mha
        >>> pairs, _ = mha.data.dates(3, 0)
        >>> batch = mha.data.translation_batch(pairs, *mha.data.date_vocabularies(pairs))
        >>> batch.source_mask.sum(-1).tolist() == [len(pair.source) for pair in pairs]
        True
        >>> batch.target_in[0].tolist()  # (T,): <bos>, then 2005-03-14
        [1, 6, 4, 4, 9, 3, 4, 7, 3, 5, 8]
        >>> batch.target_out[0].tolist()  # (T,): 2005-03-14, then <eos>
        [6, 4, 4, 9, 3, 4, 7, 3, 5, 8, 2]
    """

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

    Args:
        pairs: B of them, each with a ``source`` and a ``target``.
        source_vocab, target_vocab: `Vocabulary`, or `Subwords` for texts.
    Returns: `TranslationBatch`.
    Errors: ValueError for a token that a vocabulary without ``<unk>`` does not hold.

    Examples:
        >>> import mha
        >>> pairs, _ = mha.data.dates(100, 0)
        >>> source, target = mha.data.date_vocabularies(pairs)
        >>> batch = mha.data.translation_batch(pairs, source, target)
        >>> batch.target_in.shape, batch.target_out.shape  # (B, T), of 10 characters and one more
        (torch.Size([100, 11]), torch.Size([100, 11]))
        >>> target.decode(batch.target_out[0], sep="") == pairs[0].target
        True
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
    """The pairs in batches of sources of like length, encoded once; orders as in `Batches`.

    Args:
        pairs, source_vocab, target_vocab: as in `translation_batch`.
        batch_size: B, pairs in a batch; the last batch of a pass may hold fewer.
        shuffle, seed: as in `Batches`.
    Returns: `Batches` of `TranslationBatch`.
    Errors: ValueError for a token that a vocabulary without ``<unk>`` does not hold, for a
        batch_size below 1, and for no pairs.

    Examples:
        >>> import mha
        >>> pairs, _ = mha.data.dates(100, 0)
        >>> batches = mha.data.translation_batches(pairs, *mha.data.date_vocabularies(pairs), 32)
        >>> len(batches), sum(len(batch.source_ids) for batch in batches)
        (4, 100)
    """
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
