"""Texts in, texts out: what a translator with subwords adds to ids in, ids out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mha.data.batching import pad

if TYPE_CHECKING:
    from mha.models.translator import Translator


def translate_texts(
    model: "Translator",
    texts: Sequence[str],
    *,
    batch_size: int = 64,
    max_length: int | None = None,
    **options,
) -> list[str]:
    """Each text in the other language, in the order given; texts of like length go together.

    Args:
        model: a `Translator` with subwords.
        texts: what is to be translated.
        batch_size: texts at once; more is faster, and needs more memory.
        max_length: most pieces to say, the end included; by default twice those of the batch's
            longest source and ten more, as far as the model goes.
        options: beam_size, length_penalty, use_cache, as of `Translator.translate`.
    Errors: ValueError for a model without subwords, an empty text, or one of more than the model's
        max_length pieces, and for options out of range; TypeError for what is not a str.

    Examples:
        >>> from mha import models
        >>> model = models.Translator.from_checkpoint("en-es")
        >>> models.translate_texts(model, ["We saw a black dog.", "I live in this house."])
        ['Vimos un perro negro.', 'Vivo en esta casa.']
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if model.subwords is None:
        raise ValueError("this Translator has no subwords: give it ids, or set its subwords")
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"texts must be str, got {type(text).__name__}")
    encoded = [model.subwords.encode(text) for text in texts]
    for text, ids in zip(texts, encoded, strict=True):
        if not 0 < len(ids) <= model.max_length:
            raise ValueError(
                f"a text must have 1 to {model.max_length} pieces, got {len(ids)} in {text!r}"
            )
    order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
    said = [""] * len(texts)
    device = model.source_embedding.weight.device
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        ids, mask = pad([encoded[i] for i in chosen], model.pad_id, device=device)  # (b, S), (b, S)
        usual = min(model.max_length, 2 * ids.shape[1] + 10)
        limit = usual if max_length is None else max_length
        rows = model.translate(ids, source_mask=mask, max_length=limit, **options)  # (b, L)
        for i, row in zip(chosen, rows, strict=True):
            said[i] = model.subwords.decode(row)
    return said
