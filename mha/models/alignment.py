"""From cross-attention to word alignment: which source word a head points at, and is it the one."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mha.data.alignments import AlignedPair, Link
from mha.data.sentences import words

if TYPE_CHECKING:
    from mha.data.translation import Pair
    from mha.models.translator import Translator

Rows = Literal["says", "reads"]


def word_shares(pieces: Sequence[str]) -> Float[Tensor, "pieces words"]:
    """How much of each piece belongs to each word of the text they make.

    A piece lies in one word as a rule, and its row is 1 there and 0 elsewhere. One that covers
    several words of `mha.data.words` belongs to them by characters; a "▁" that stands alone belongs
    to the word that it begins.

    Args:
        pieces: as `mha.data.Subwords.pieces` gives them: a word begins with "▁" (U+2581).
    Returns: (P, W), of P pieces and W words; rows add up to 1.
    Errors: ValueError for pieces without a visible character.

    Examples:
        >>> from mha import models
        >>> models.word_shares(["▁good", "▁mor", "ning"]).tolist()  # of "good" and "morning"
        [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
    """
    found = words(text := "".join(pieces).replace("▁", " "))
    if not found:
        raise ValueError(f"pieces must hold at least one word, got {list(pieces)}")
    owner = []  # of each character: the word it is in, or the next one
    for word, name in enumerate(found):
        owner += [word] * (text.index(name, len(owner)) + len(name) - len(owner))
    owner += [len(found) - 1] * (len(text) - len(owner))
    shares = torch.zeros(len(pieces), len(found))
    start = 0
    for row, piece in enumerate(pieces):
        inside = [start + i for i, c in enumerate(piece) if c != "▁"] or [start]
        for place in inside:
            shares[row, owner[place]] += 1 / len(inside)
        start += len(piece)
    return shares


def word_attention(
    weights: Float[Tensor, "*layers rows S"],
    source: Sequence[str],
    target: Sequence[str],
    *,
    rows: Rows = "says",
) -> Float[Tensor, "*layers target_words source_words"]:
    """Cross-attention from pieces to words: how target words spread their weight on source words.

    A source word gets the sum of the weights on its pieces, a target word the mean over the rows
    of its pieces. Which row is a piece's? The decoder reads ``<bos> y1 ... yn`` and says
    ``y1 ... yn <eos>``, so there are two, one place apart: "says" takes the row whose logits say
    the piece, "reads" the row below, where the piece is read and the next one is said.

    Args:
        weights: (..., n + 1, S), of n target and S source pieces, for instance (H, T, S).
        source, target: the pieces, without special ones, as `mha.data.Subwords.pieces`.
        rows: "says" or "reads".
    Returns: (..., target words, source words), rows add up to 1.
    Errors: ValueError for other shapes or rows.
    Source: sums over source pieces, means over target pieces: Clark et al. 2019; the two rows:
        Chen et al. 2020.

    Examples:
        >>> import torch
        >>> from mha import models
        >>> weights = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.25, 0.75], [1.0, 0.0, 0.0]])
        >>> source, target = ["▁good", "▁mor", "ning"], ["▁buenos", "▁días"]
        >>> models.word_attention(weights, source, target).tolist()  # of "good" and "morning"
        [[0.5, 0.5], [0.0, 1.0]]
        >>> models.word_attention(weights, source, target, rows="reads").tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    if rows not in ("says", "reads"):
        raise ValueError(f'rows must be "says" or "reads", got {rows!r}')
    if tuple(weights.shape[-2:]) != (len(target) + 1, len(source)):
        raise ValueError(
            f"weights must be (..., {len(target) + 1}, {len(source)}) for {len(target)} target and "
            f"{len(source)} source pieces, got {tuple(weights.shape)}"
        )
    weights = weights[..., :-1, :] if rows == "says" else weights[..., 1:, :]  # (..., n, S)
    weights = weights @ word_shares(source).to(weights)  # (..., n, source words)
    mean = word_shares(target).to(weights)
    mean = mean / mean.sum(0)  # (n, target words), columns add up to 1
    return mean.mT @ weights  # (..., target words, source words)


@torch.no_grad()
def cross_word_attention(
    model: "Translator", pairs: "Iterable[Pair]", *, rows: Rows = "says"
) -> list[Float[Tensor, "L H target_words source_words"]]:
    """`word_attention` of every layer and head, for each pair, while the model reads its target.

    Args:
        model: a `Translator` with subwords, of L layers and H heads; it reads in eval mode.
        pairs: with a ``source`` and a ``target`` text.
        rows: "says" or "reads".
    Returns: (L, H, target words, source words) for each pair; rows add up to 1.
    Errors: ValueError for a model without subwords, and for other rows.

    Examples:
        >>> from mha import data, models
        >>> model = models.Translator.from_checkpoint("en-es")
        >>> pair = data.aligned_pairs()[0]
        >>> pair.source, pair.target
        ('I bought a red car.', 'Compré un coche rojo.')
        >>> tuple(models.cross_word_attention(model, [pair])[0].shape)  # the point is a word too
        (2, 8, 5, 6)
    """
    found, training = [], model.training
    model.eval()
    try:
        for pair in pairs:
            source, target, *_ = _pieces(model, pair)
            weights = model(source, target, return_weights=True)[1]
            cross = torch.stack(weights.cross)[:, 0].cpu()  # (L, H, n + 1, S)
            texts = map(model.subwords.pieces, (pair.source, pair.target))
            found.append(word_attention(cross, *texts, rows=rows))
    finally:
        model.train(training)
    return found


@torch.no_grad()
def hiding_costs(
    model: "Translator", pairs: "Iterable[Pair]", *, everywhere: bool = False
) -> list[Float[Tensor, "target_words source_words"]]:
    """What weights cannot say: how much harder a target word gets when a source word is hidden.

    The model reads the right target, once with the whole source and once without each of its words.
    The cost is what the pieces of a target word gain in nats, added up.

    Args:
        model: a `Translator` with subwords; it reads in eval mode.
        pairs: with a ``source`` and a ``target`` text.
        everywhere: hide the word from the encoder too; else from cross-attention alone, so that
            what its neighbours learned of it is still there.
    Returns: (target words, source words) for each pair, nats; below 0 where hiding helped.
    Errors: ValueError for a model without subwords; also for a source of one word, hidden.
    Source: prediction difference, Li et al. 2019.

    Examples:
        >>> from mha import data, models
        >>> model = models.Translator.from_checkpoint("en-es")
        >>> pair = data.aligned_pairs()[0]  # "I bought a red car." "Compré un coche rojo."
        >>> costs = models.hiding_costs(model, [pair])[0]  # (5, 6)
        >>> costs.argmax(-1).tolist()  # the words that are missed: bought, a, car, red, "."
        [1, 2, 4, 3, 5]
    """
    found, training = [], model.training
    model.eval()
    try:
        for pair in pairs:
            source, target, shares, target_shares = _pieces(model, pair)
            if (count := shares.shape[1]) < 2:
                raise ValueError(f"a source must have at least two words, got {pair.source!r}")
            shown = torch.cat((torch.ones(1, len(shares)), 1 - shares.T)) > 0.5  # (1 + words, S)
            shown = shown.to(source.device)
            mask = shown if everywhere else torch.ones_like(shown)
            memory = model.encode(source.expand(1 + count, -1), source_mask=mask)
            target = target.expand(1 + count, -1)  # (1 + words, n + 1)
            logits = model.decode(target, memory, source_mask=shown)[:, :-1]  # (..., n, V)
            nats = F.cross_entropy(logits.mT, target[:, 1:], reduction="none")  # (..., n)
            nats = nats.cpu() @ target_shares  # (1 + words, target words)
            found.append((nats[1:] - nats[:1]).T)
    finally:
        model.train(training)
    return found


def _pieces(model: "Translator", pair: "Pair") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Source ids (1, S), target ids (1, n + 1) that begin with <bos>, and the `word_shares`."""
    if (subwords := model.subwords) is None:
        raise ValueError("model must have subwords, got a Translator without")
    device = model.to_logits.weight.device
    source = torch.tensor([subwords.encode(pair.source)], device=device)
    target = torch.tensor([subwords.encode(pair.target, bos=True)], device=device)
    shares = (word_shares(subwords.pieces(text)) for text in (pair.source, pair.target))
    return source, target, *shares


def best_links(weights: Float[Tensor, "target_words source_words"]) -> frozenset[Link]:
    """Each target word with the source word that it gives most weight, as (source, target).

    Args:
        weights: (target words, source words); the first of equal ones counts.

    Examples:
        >>> import torch
        >>> from mha import models
        >>> weights = torch.tensor([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1]])
        >>> sorted(models.best_links(weights))
        [(0, 1), (1, 0)]
    """
    return frozenset((int(source), target) for target, source in enumerate(weights.argmax(-1)))


def diagonal_links(target_words: int, source_words: int) -> frozenset[Link]:
    """Each target word with the source word in the same place, relative to the lengths.

    Returns: (source word, target word), each counted from 0.

    Examples:
        >>> from mha import models
        >>> sorted(models.diagonal_links(target_words=3, source_words=5))
        [(0, 0), (2, 1), (4, 2)]
    """
    steps = max(1, target_words - 1)
    return frozenset((round(t * (source_words - 1) / steps), t) for t in range(target_words))


class LinkCounts(NamedTuple):
    """What `AlignmentScore` is made of, for one pair of sentences: numbers of links.

    ``found`` links, ``sure`` ones by hand, and how many of those found are sure or possible.

    Examples:
        >>> from mha import models
        >>> counts = models.LinkCounts(sure_hits=2, possible_hits=3, found=4, sure=2)
        >>> models.alignment_score([counts]).precision
        0.75
    """

    sure_hits: int
    possible_hits: int
    found: int
    sure: int


class AlignmentScore(NamedTuple):
    """How found links agree with those drawn by hand: 0 to 1.

    precision is the share of found links that are possible, recall the share of sure links that
    were found; error_rate puts both together: 0 is perfect.

    Examples:
        >>> from mha import models
        >>> all_right = models.LinkCounts(sure_hits=3, possible_hits=3, found=3, sure=3)
        >>> models.alignment_score([all_right])
        AlignmentScore(precision=1.0, recall=1.0, error_rate=0.0)
    """

    precision: float
    recall: float
    error_rate: float


def link_counts(found: Iterable[Link], gold: AlignedPair) -> LinkCounts:
    """Count the found links (source word, target word) of one pair against those by hand.

    Args:
        found: links, each word by its place, from 0.
        gold: a pair of `mha.data.aligned_pairs`, or one like it.

    Examples:
        >>> from mha import data, models
        >>> sure = frozenset({(0, 0), (1, 2)})
        >>> gold = data.AlignedPair("red car", "el coche rojo", sure, sure | {(1, 0)}, "")
        >>> models.link_counts([(0, 0), (1, 0), (0, 1)], gold)
        LinkCounts(sure_hits=1, possible_hits=2, found=3, sure=2)
    """
    found = frozenset(found)
    hits = (len(found & links) for links in (gold.sure, gold.possible))
    return LinkCounts(*hits, len(found), len(gold.sure))


def alignment_score(counts: Sequence[LinkCounts]) -> AlignmentScore:
    """Precision, recall and alignment error rate of all pairs together.

    Args:
        counts: of each pair, by `link_counts`.
    Errors: ValueError where nothing was found or nothing is sure.
    Source: Och and Ney 2003, section 5: ``1 - (|A & S| + |A & P|) / (|A| + |S|)``, with A found,
        S sure and P possible, S among P.

    Examples:
        >>> from mha import models
        >>> half = models.LinkCounts(sure_hits=1, possible_hits=2, found=2, sure=2)
        >>> models.alignment_score([half, half])
        AlignmentScore(precision=1.0, recall=0.5, error_rate=0.25)
    """
    sure_hits, possible_hits, found, sure = (
        map(sum, zip(*counts, strict=True)) if counts else [0] * 4
    )
    if not found or not sure:
        raise ValueError(f"counts must hold found and sure links, got {found} and {sure}")
    error = 1 - (sure_hits + possible_hits) / (found + sure)
    return AlignmentScore(possible_hits / found, sure_hits / sure, error)
