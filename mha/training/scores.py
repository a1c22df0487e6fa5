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
    """Mean cross-entropy in nats of the target tokens, padding left out, for a `Translator`.

    Args:
        model: gives logits (B, T, V) and has a pad_id.
        batch: of `mha.data.translation_batch`.
        label_smoothing: share of the target that goes to all V tokens alike, 0 to 1.
    Source: Vaswani et al. 2017, section 5.4, for the smoothing.

    Examples:
        >>> import torch
        >>> from mha import data, models, training
        >>> model = models.Translator(9, 7, embed_dim=8, num_heads=2, num_layers=1, ff_dim=16)
        >>> source, said = torch.tensor([[3, 4], [5, 0]]), torch.tensor([[3, 4, 2], [5, 2, 0]])
        >>> read = torch.tensor([[1, 3, 4], [1, 5, 0]])
        >>> batch = data.TranslationBatch(source, source != 0, target_in=read, target_out=said)
        >>> _ = model.requires_grad_(False)
        >>> _ = model.to_logits.weight.zero_(), model.to_logits.bias.zero_()  # all tokens alike
        >>> round(float(training.translation_loss(model, batch)), 4)  # log(7)
        1.9459
    """
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

    Args:
        model: a `Translator`; its mode is put back afterwards.
        batches: of `mha.data.translation_batch`.
    Errors: ValueError without a batch.

    Examples:
        >>> import torch
        >>> from mha import data, models, training
        >>> model = models.Translator(9, 7, embed_dim=8, num_heads=2, num_layers=1, ff_dim=16)
        >>> source, said = torch.tensor([[3, 4], [5, 0]]), torch.tensor([[3, 4, 2], [5, 2, 0]])
        >>> read = torch.tensor([[1, 3, 4], [1, 5, 0]])
        >>> batch = data.TranslationBatch(source, source != 0, target_in=read, target_out=said)
        >>> loss = float(training.translation_loss(model, batch).detach())
        >>> abs(training.nats_per_target_token(model, [batch, batch]) - loss) < 1e-4
        True
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
    """How near translations come to their references: both 0 to 100, higher is better.

    Examples:
        >>> from mha import training
        >>> scores = training.translation_scores(["Vivo aquí."], [["Vivo en esta casa."]])
        >>> scores.bleu < 10 < scores.chrf  # chrF counts letters too
        True
    """

    bleu: float
    chrf: float


def translation_scores(
    translations: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: str = "13a"
) -> TranslationScores:
    """BLEU and chrF of a whole set of translations, as sacrebleu computes them.

    Args:
        translations: N texts.
        references: for each of them one text or more. A sentence may have more references than
            another: each n-gram counts if any of its own references has it.
        tokenize: how BLEU tells words apart, one of `TOKENIZERS`: 13a at blanks and punctuation,
            zh takes Chinese characters one by one.
    Returns: `TranslationScores`.
    Errors: ValueError for different numbers of both, none, a text without reference, and another
        tokenize; TypeError for a bare str in the place of several; ImportError without sacrebleu.
    Source: Papineni et al. 2002; Popović 2015; Post 2018.

    Examples:
        >>> from mha import training
        >>> said = ["El gato bebe leche fría.", "Vivo en esta casa."]
        >>> references = [["El gato bebe leche fría."], ["Yo vivo aquí.", "Vivo en esta casa."]]
        >>> scores = training.translation_scores(said, references)
        >>> round(scores.bleu, 1), round(scores.chrf, 1)
        (100.0, 100.0)
        >>> training.translation_scores(said[::-1], references).bleu < 10
        True
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

    Args:
        model: gives logits (B, T, V).
        ids: (B, T + 1), as of `mha.data.text_batches`: T to read, and the T that follow them.

    Examples:
        >>> import torch
        >>> from mha import training
        >>> ids = torch.tensor([[3, 4, 5, 6], [0, 1, 2, 3]])
        >>> counting = lambda ids: 20 * torch.eye(9)[ids + 1]  # sure that one more comes next
        >>> round(float(training.language_model_loss(counting, ids)), 4)
        0.0
        >>> guessing = lambda ids: torch.zeros(*ids.shape, 9)
        >>> round(float(training.language_model_loss(guessing, ids)), 4)  # log(9)
        2.1972
    """
    logits = model(ids[:, :-1])  # (B, T, V)
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def masked_token_loss(
    model: nn.Module, batch: tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]
) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats of the tokens asked for, for a `Bert`; 0 where none is.

    Args:
        model: gives logits (B, T, V).
        batch: inputs (B, T) and targets (B, T), -100 where nothing is asked, as of
            `mha.data.masked_tokens`.

    Examples:
        >>> import torch
        >>> from mha import training
        >>> inputs = torch.tensor([[5, 3, 7]])  # 3 is the mask
        >>> targets = torch.tensor([[-100, 6, -100]])  # 6 stood there
        >>> guessing = lambda ids: torch.zeros(*ids.shape, 9)
        >>> round(float(training.masked_token_loss(guessing, (inputs, targets))), 4)  # log(9)
        2.1972
    """
    inputs, targets = batch
    logits = model(inputs).flatten(0, 1)  # (B*T, V)
    loss = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return loss / (targets != IGNORED).sum().clamp(min=1)


def image_loss(
    model: nn.Module, batch: tuple[Tensor, Tensor], *, label_smoothing: float = 0.1
) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats of the labels, for a model of images (B, C, h, w) to logits.

    Args:
        model: gives logits (B, K).
        batch: images (B, C, h, w) and labels (B,).
        label_smoothing: share of the target that goes to all K classes alike, 0 to 1.
    Source: Szegedy et al. 2016, section 7, for the smoothing.

    Examples:
        >>> import torch
        >>> from mha import training
        >>> images, labels = torch.tensor([[[[20.0, 0.0]]]]), torch.tensor([0])  # (1, 1, 1, 2)
        >>> model = torch.nn.Flatten()  # its logits are the pixels
        >>> round(float(training.image_loss(model, (images, labels), label_smoothing=0.0)), 4)
        0.0
        >>> round(float(training.image_loss(model, (images, labels))), 4)  # 5% of 20
        1.0
    """
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

    Args:
        model: gives logits (B, T, V); its mode is put back afterwards.
        ids: (N,), the text.
        length: T, tokens read at once.
        batch_size: stretches at once.
    Errors: ValueError for a text shorter than T + 1.

    Examples:
        >>> import torch
        >>> from mha import models, training
        >>> model = models.GPT(9, embed_dim=8, num_heads=2, num_layers=1, max_length=4)
        >>> text = torch.tensor([3, 4, 5, 6, 7, 8, 3, 4, 5])
        >>> nats = training.nats_per_token(model, text, length=4)  # of 4 5 6 7 and of 8 3 4 5
        >>> both = training.language_model_loss(model, torch.stack((text[:5], text[4:])))
        >>> abs(nats - float(both.detach())) < 1e-4
        True
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

    Args:
        model: a `Translator`; it translates in eval mode.
        batch: all the pairs.
        beam_size: as of `Translator.translate`.
        batch_size: pairs at once.

    Examples:
        >>> from mha import data, models, training
        >>> model = models.Translator.from_checkpoint("en-es")
        >>> pieces = model.subwords
        >>> right, wrong = ("We saw a black dog.", "Vimos un perro negro."), ("Good night.", "No.")
        >>> pairs = [data.SentencePair(*texts, attribution="") for texts in (right, wrong)]
        >>> batch = data.translation_batch(pairs, pieces, pieces)
        >>> training.exact_match(model, batch)
        0.5
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
    """Share of the images whose likeliest class is the label, 0 to 1, in eval mode.

    Args:
        model: gives logits (B, K); its mode is put back afterwards.
        images: (N, C, h, w).
        labels: (N,).
        batch_size: images at once.

    Examples:
        >>> import torch
        >>> from mha import training
        >>> images = torch.eye(4).view(4, 1, 2, 2)  # one bright pixel each: 0, 1, 2, 3
        >>> model = torch.nn.Flatten()  # its logits are the pixels
        >>> training.accuracy(model, images, labels=torch.tensor([0, 1, 2, 0]))
        0.75
    """
    training = model.training
    model.eval()
    chunks = zip(images.split(batch_size), labels.split(batch_size), strict=True)
    right = sum(int((model(x).argmax(-1) == y).sum()) for x, y in chunks)
    model.train(training)
    return right / len(labels)
