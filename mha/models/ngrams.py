"""What counting alone can tell of the next token: the scores that a language model must beat."""

import torch
from jaxtyping import Int
from torch import Tensor


def ngram_nats(
    train: Int[Tensor, " N"],
    held_out: Int[Tensor, " M"],
    order: int,
    *,
    vocab_size: int,
    strength: float = 20.0,
) -> list[float]:
    """Mean cross-entropy of a held-out text under tables of counts, nats per token.

    A table of order n tells a token from the n - 1 before it. It adds ``strength`` counts of its
    own, shared out as the table of order n - 1 would; that of order 0 is 1 / vocab_size.

    Args:
        train: (N,) ids that are counted, 0 to V - 1.
        held_out: (M,) ids that are told.
        order: the highest, n.
        vocab_size: V.
        strength: above 0; more trusts the counts less.
    Returns: nats for the orders 1 to n, all of the same tokens: the held-out ones but for the
        first n - 1.
    Errors: ValueError for a strength or order out of range (``V ** n`` must be below ``2 ** 63``), and
        for texts of fewer than n tokens.
    Source: MacKay and Peto 1995, a hierarchical Dirichlet language model.

    Examples:
        >>> import torch
        >>> from mha import models
        >>> text = torch.tensor([0, 1, 2] * 100)  # each token follows from the one before
        >>> nats = models.ngram_nats(text, text[:30], order=2, vocab_size=3)
        >>> [round(n, 2) for n in nats]  # log(3), then next to nothing
        [1.1, 0.12]
    """
    if order < 1 or vocab_size**order >= 2**63:
        raise ValueError(f"order must be 1 or more, and V ** order below 2 ** 63, got {order}")
    if not strength > 0:
        raise ValueError(f"strength must be above 0, got {strength}")
    if min(len(train), len(held_out)) < order:
        raise ValueError(
            f"texts must have at least order={order} tokens, got {len(train)} and {len(held_out)}"
        )
    nats, probability = [], 1 / vocab_size  # (M - n + 1,) from the first table on
    for n in range(1, order + 1):
        seen, asked = _numbers(train, n, vocab_size), _numbers(held_out[order - n :], n, vocab_size)
        whole = _count(seen, asked)
        context = _count(seen // vocab_size, asked // vocab_size)
        probability = (whole + strength * probability) / (context + strength)
        nats.append(-probability.log().mean().item())
    return nats


def _numbers(ids: Tensor, n: int, vocab_size: int) -> Tensor:
    """One number for each n tokens in a row, (N - n + 1,): the tokens are its digits."""
    numbers = torch.zeros(len(ids) - n + 1, dtype=torch.int64)
    for place in range(n):
        numbers = numbers * vocab_size + ids[place : len(ids) - n + 1 + place]
    return numbers


def _count(seen: Tensor, asked: Tensor) -> Tensor:
    """How often each number that is asked for was seen, float64."""
    known, counts = seen.unique(return_counts=True)
    place = torch.searchsorted(known, asked).clamp(max=len(known) - 1)
    return torch.where(known[place] == asked, counts[place], 0).double()
