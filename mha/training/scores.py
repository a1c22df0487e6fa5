"""What is minimised in training, and the scores the book reports."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mha._extras import require
from mha.data import TranslationBatch
from mha.data.masked_tokens import IGNORED


def translation_loss(
    model: nn.Module, batch: TranslationBatch, *, label_smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats of the target tokens, padding left out, for a `Translator`."""
    logits = model(batch.source_ids, batch.target_in, source_mask=batch.source_mask)  # (B, T, V)
    return F.cross_entropy(
        logits.flatten(0, 1),
        batch.target_out.flatten(),
        ignore_index=model.pad_id,
        label_smoothing=label_smoothing,
    )


@torch.no_grad()
def nats_per_target_token(model: nn.Module, batches: Iterable[TranslationBatch]) -> float:
    """`translation_loss` of all target tokens together, in eval mode: lower is better.

    Errors: ValueError without a batch.
    """
    training, total, count = model.training, 0.0, 0
    model.eval()
    try:
        for batch in batches:
            tokens = int((batch.target_out != model.pad_id).sum())
            total += float(translation_loss(model, batch)) * tokens
            count += tokens
    finally:
        model.train(training)
    if not count:
        raise ValueError("batches must hold at least one target token, got none")
    return total / count


TOKENIZERS = ("13a", "char", "intl", "zh")
"""Those of sacrebleu that need nothing more."""


class TranslationScores(NamedTuple):
    """How near translations come to their references: both 0 to 100, higher is better."""

    bleu: float
    chrf: float


def translation_scores(
    translations: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: str = "13a"
) -> TranslationScores:
    """BLEU and chrF of a whole set of translations, as sacrebleu computes them.

    Args: translations, N texts; references, for each of them one text or more. A sentence may have
        more references than another: each n-gram counts if any of its own references has it;
        tokenize, how BLEU tells words apart, one of `TOKENIZERS`: 13a at blanks and punctuation, zh
        takes Chinese characters one by one.
    Errors: ValueError for different numbers of both, none, a text without reference, and another
        tokenize; TypeError for a bare str in the place of several; ImportError without sacrebleu.
    Source: Papineni et al. 2002; Popović 2015; Post 2018.
    """
    if tokenize not in TOKENIZERS:
        raise ValueError(f"tokenize must be one of {', '.join(TOKENIZERS)}, got {tokenize!r}")
    if isinstance(translations, str):
        raise TypeError(f"translations must be a sequence of str, got one str {translations!r}")
    for texts in references:
        if isinstance(texts, str):
            raise TypeError(f"references must be sequences of str, got a bare str {texts!r}")
    if not translations or len(translations) != len(references) or not all(references):
        raise ValueError(
            "translations must be at least one, each with at least one reference, got "
            f"{len(translations)} and {sum(map(bool, references))} that have references"
        )
    sacrebleu = require("sacrebleu", "data")
    most = max(map(len, references))
    rows = [[texts[i] if i < len(texts) else None for texts in references] for i in range(most)]
    bleu = sacrebleu.corpus_bleu(list(translations), rows, tokenize=tokenize).score
    return TranslationScores(bleu, sacrebleu.corpus_chrf(list(translations), rows).score)


def language_model_loss(model: nn.Module, ids: Int[Tensor, "B T+1"]) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats of each token after those before it, for a `GPT`.

    Args: ids (B, T + 1), as of `mha.data.text_batches`: T to read, and the T that follow them.
    """
    logits = model(ids[:, :-1])  # (B, T, V)
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def masked_token_loss(
    model: nn.Module, batch: tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]
) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats of the tokens asked for, for a `Bert`; 0 where none is.

    Args: batch, (inputs, targets) as of `mha.data.masked_tokens`.
    """
    inputs, targets = batch
    logits = model(inputs).flatten(0, 1)  # (B*T, V)
    loss = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return loss / (targets != IGNORED).sum().clamp(min=1)


def image_loss(
    model: nn.Module, batch: tuple[Tensor, Tensor], *, label_smoothing: float = 0.1
) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats of the labels, for a model of images (B, C, h, w) to logits."""
    images, labels = batch
    return F.cross_entropy(model(images), labels, label_smoothing=label_smoothing)


@torch.no_grad()
def nats_per_token(
    model: nn.Module, ids: Int[Tensor, " N"], *, length: int, batch_size: int = 64
) -> float:
    """Mean cross-entropy of a long text's tokens, in eval mode, for a `GPT`: nats, lower is better.

    The text is cut into stretches that the model reads one by one, each from nothing: within a
    stretch the first token is told from one token before it, the last from ``length``. So all
    tokens but the first count, each once, but for fewer than ``length`` at the end.

    Args: ids (N,), the text; length T, tokens read at once; batch_size, stretches at once.
    Errors: ValueError for a text shorter than T + 1.
    """
    if length < 1 or len(ids) <= length:
        raise ValueError(f"length must be 1 to {len(ids) - 1} for {len(ids)} ids, got {length}")
    training = model.training
    stretches = ids.unfold(0, length + 1, length)  # (n, T + 1): one ends where the next begins
    model.eval()
    try:
        parts = stretches.split(batch_size)
        losses = [language_model_loss(model, part) * len(part) for part in parts]
    finally:
        model.train(training)
    return float(torch.stack(losses).sum()) / len(stretches)


@torch.no_grad()
def exact_match(
    model: nn.Module, batch: TranslationBatch, *, beam_size: int = 1, batch_size: int = 256
) -> float:
    """Share of the pairs that a `Translator` translates without a single wrong token, 0 to 1.

    Args: batch, all the pairs; beam_size as of `Translator.translate`; batch_size, pairs at once.
    """
    limit = batch.target_out.shape[1]  # what is longer than every target is wrong
    right = 0
    for start in range(0, len(batch.source_ids), batch_size):
        source_ids, source_mask, _, target = (t[start : start + batch_size] for t in batch)
        said = model.translate(
            source_ids, source_mask=source_mask, beam_size=beam_size, max_length=limit
        )  # (b, L)
        said = F.pad(said, (0, limit - said.shape[1]), value=model.pad_id)  # (b, T)
        right += int((said == target).all(dim=1).sum())
    return right / len(batch.source_ids)


@torch.no_grad()
def accuracy(
    model: nn.Module,
    images: Float[Tensor, "N C h w"],
    labels: Int[Tensor, " N"],
    *,
    batch_size: int = 512,
) -> float:
    """Share of the images whose likeliest class is the label, 0 to 1, in eval mode."""
    training = model.training
    model.eval()
    chunks = zip(images.split(batch_size), labels.split(batch_size), strict=True)
    right = sum(int((model(x).argmax(-1) == y).sum()) for x, y in chunks)
    model.train(training)
    return right / len(labels)
