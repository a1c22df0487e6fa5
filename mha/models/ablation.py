"""Switch heads off, to see what they were good for, and how sure one can be of that."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mha.multihead import MultiHeadAttention

if TYPE_CHECKING:
    from mha.data.translation import TranslationBatch
    from mha.models.translator import Translator

Part = TypeVar("Part")


@contextmanager
def without_head(attention: MultiHeadAttention, head: int) -> Iterator[None]:
    """Within the ``with`` block one head of ``attention`` contributes nothing.

    The head's D features are set to 0 on their way into ``out_proj``, which is the same as zeroing
    the columns of ``out_proj.weight`` that read them. No parameter is changed.

    Args:
        attention: the module, for instance ``translator.decoder[1].cross_attention``.
        head: 0 to num_heads - 1.
    Errors: ValueError for a head that the module does not have.
    Source: the ablation of Michel et al. 2019, section 3.

    Examples:
        >>> import mha, torch
        >>> from mha import models
        >>> attention, x = mha.MultiHeadAttention(8, 2), torch.randn(1, 3, 8)
        >>> with models.without_head(attention, 0), models.without_head(attention, 1):
        ...     nothing = attention(x)  # (1, 3, 8): the bias of out_proj is all that is left
        >>> torch.allclose(nothing, attention.out_proj.bias)
        True
    """
    if not 0 <= head < attention.num_heads:
        raise ValueError(f"head must be 0 to {attention.num_heads - 1}, got {head}")
    width = attention.out_proj.in_features // attention.num_heads
    features = slice(head * width, (head + 1) * width)

    def silence(_, inputs):
        merged = inputs[0].clone()  # (B, T, H*D)
        merged[..., features] = 0
        return (merged,)

    handle = attention.out_proj.register_forward_pre_hook(silence)
    try:
        yield
    finally:
        handle.remove()


class TranslatorHead(NamedTuple):
    """One head of a `Translator`: part is "encoder", "decoder" (its self-attention) or "cross".

    ``layer`` and ``head`` are counted from 0.

    Examples:
        >>> from mha import models
        >>> model = models.Translator(9, 7, embed_dim=8, num_heads=2, num_layers=1, ff_dim=16)
        >>> head = models.TranslatorHead("cross", layer=0, head=1)
        >>> str(head)
        'cross 0.1'
        >>> head.attention(model) is model.decoder[0].cross_attention
        True
    """

    part: str
    layer: int
    head: int

    def __str__(self) -> str:
        return f"{self.part} {self.layer}.{self.head}"

    def attention(self, model: "Translator") -> MultiHeadAttention:
        """The module that the head is in.

        Errors: ValueError for a part there is not.
        """
        if self.part == "encoder":
            return model.encoder[self.layer].attention
        if self.part == "decoder":
            return model.decoder[self.layer].self_attention
        if self.part == "cross":
            return model.decoder[self.layer].cross_attention
        raise ValueError(f'part must be "encoder", "decoder" or "cross", got {self.part!r}')


def translator_heads(model: "Translator") -> list[TranslatorHead]:
    """All heads of a translator: the encoder's, then the decoder's own, then the cross ones.

    Examples:
        >>> from mha import models
        >>> model = models.Translator(9, 7, embed_dim=8, num_heads=2, num_layers=1, ff_dim=16)
        >>> [str(head) for head in models.translator_heads(model)]
        ['encoder 0.0', 'encoder 0.1', 'decoder 0.0', 'decoder 0.1', 'cross 0.0', 'cross 0.1']
    """
    layers = {"encoder": model.encoder, "decoder": model.decoder, "cross": model.decoder}
    modules = [TranslatorHead(part, n, 0) for part in layers for n in range(len(layers[part]))]
    return [m._replace(head=h) for m in modules for h in range(m.attention(model).num_heads)]


@contextmanager
def without_heads(model: "Translator", heads: Iterable[TranslatorHead]) -> Iterator[None]:
    """Within the ``with`` block all these heads are off; see `without_head`.

    Errors: ValueError for a head that the model does not have.

    Examples:
        >>> import torch
        >>> from mha import models
        >>> model = models.Translator(9, 7, embed_dim=8, num_heads=2, num_layers=1, ff_dim=16)
        >>> cross = [head for head in models.translator_heads(model) if head.part == "cross"]
        >>> sources, target = torch.tensor([[3, 4, 5], [6, 7, 8]]), torch.tensor([[1, 3], [1, 3]])
        >>> with models.without_heads(model, cross):
        ...     first, second = model(sources, target)  # nothing of the source comes through
        >>> torch.allclose(first, second)
        True
    """
    with ExitStack() as stack:
        for head in heads:
            stack.enter_context(without_head(head.attention(model), head.head))
        yield


@torch.no_grad()
def pair_nats(
    model: "Translator", batches: "Iterable[TranslationBatch]"
) -> Float[Tensor, "pairs 2"]:
    """The loss of each sentence pair, in eval mode: nats of all its target tokens, their number.

    The sum of the first column over that of the second is the loss per token, as in training.

    Args:
        model: a `Translator`; its mode is put back afterwards.
        batches: of `mha.data.translation_batch`, N pairs in all.
    Returns: (N, 2) float64, in the order of the batches.

    Examples:
        >>> import torch
        >>> from mha import data, models
        >>> model = models.Translator(9, 7, embed_dim=8, num_heads=2, num_layers=1, ff_dim=16)
        >>> source, said = torch.tensor([[3, 4], [5, 0]]), torch.tensor([[3, 4, 2], [5, 2, 0]])
        >>> read = torch.tensor([[1, 3, 4], [1, 5, 0]])
        >>> batch = data.TranslationBatch(source, source != 0, target_in=read, target_out=said)
        >>> nats, tokens = models.pair_nats(model, [batch]).T  # (2,) each
        >>> tokens.tolist()
        [3.0, 2.0]
    """
    training, found = model.training, []
    model.eval()
    try:
        for batch in batches:
            reading = batch.source_ids, batch.target_in
            logits = model(*reading, source_mask=batch.source_mask)  # (B, T, V)
            options = {"ignore_index": model.pad_id, "reduction": "none"}
            nats = F.cross_entropy(logits.flatten(0, 1), batch.target_out.flatten(), **options)
            nats = nats.view_as(batch.target_out)  # (B*T,) -> (B, T), 0 at padding
            tokens = batch.target_out != model.pad_id  # (B, T)
            found.append(torch.stack((nats.sum(1), tokens.sum(1)), dim=-1))  # (B, 2)
    finally:
        model.train(training)
    return torch.cat(found).double()


def bootstrap(
    values: Float[Tensor, "N C"],
    statistic: Callable[[Float[Tensor, "samples C"]], Float[Tensor, "samples *what"]],
    *,
    confidence: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[Float[Tensor, "*what"], Float[Tensor, "*what"]]:
    """Between which two numbers a statistic would lie, had other sentences been drawn.

    Draws N of the N rows with replacement, again and again, and takes the range in which the middle
    ``confidence`` of the results lie (the percentile method). To compare two models, put what both
    do on a sentence into one row: then their difference is that on the same sentences.

    Args:
        values: (N, C), one row for each sentence drawn.
        statistic: (samples, C) -> (samples, ...): of the means of the columns, for instance the
            first mean over the second; several numbers at once if you like.
        confidence: above 0, below 1.
        samples: how often rows are drawn.
        seed: of the draws.
    Returns: low and high, float64, each of the shape of one statistic.
    Errors: ValueError for another shape, no rows, or a confidence or samples out of range.
    Source: Efron and Tibshirani 1993, chapter 13; for translation, Koehn 2004.

    Examples:
        >>> import torch
        >>> from mha import models
        >>> right = torch.tensor([[1.0]] * 80 + [[0.0]] * 20)  # 80 of 100 sentences are right
        >>> low, high = models.bootstrap(right, lambda means: means[:, 0])
        >>> 0.7 < float(low) < 0.75, 0.85 < float(high) < 0.9
        (True, True)
    """
    if values.ndim != 2 or not len(values):
        raise ValueError(f"values must be (N, C) with N at least 1, got {tuple(values.shape)}")
    if not 0 < confidence < 1 or samples < 1:
        raise ValueError(
            "confidence must be above 0 and below 1 and samples at least 1, "
            f"got {confidence} and {samples}"
        )
    draw, count, values = torch.Generator().manual_seed(seed), len(values), values.double()
    means = []
    for size in [500] * (samples // 500) + [samples % 500] * (samples % 500 > 0):
        chosen = torch.randint(count, (size, count), generator=draw)
        ones = torch.ones(size, count, dtype=torch.float64)
        often = torch.zeros_like(ones).scatter_add_(1, chosen, ones)  # (size, N)
        means.append(often @ values / count)  # (size, C)
    ends = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    low, high = statistic(torch.cat(means)).double().quantile(ends, dim=0)
    return low, high


def remove_greedily(
    cost: Callable[[tuple[Part, ...]], float],
    parts: Sequence[Part],
    *,
    limit: float,
    tries: int | None = None,
    alone: Mapping[Part, float] | None = None,
) -> list[tuple[Part, float]]:
    """Take away one part after another, always the cheapest, while the cost stays within a limit.

    What is cheapest is found out anew after each part, among those not yet gone.

    Args:
        cost: of being without these parts together.
        parts: those there are.
        limit: the highest cost that is accepted, in the unit of the cost.
        tries: so many parts are tried in a round, those that were cheapest when they were last
            tried, to save calls; None = all of them.
        alone: about what each part costs alone, where that is known; without it, all parts are
            tried in the first round.
    Returns: the parts that went, in their order, each with the cost of all up to it.
    Errors: ValueError for tries below 1.

    Examples:
        >>> from mha import models
        >>> price = {"a": 1, "b": 5, "c": 2}
        >>> models.remove_greedily(lambda gone: sum(price[p] for p in gone), "abc", limit=4)
        [('a', 1), ('c', 3)]
    """
    if tries is not None and tries < 1:
        raise ValueError(f"tries must be at least 1 or None, got {tries}")
    gone: list[tuple[Part, float]] = []
    known = dict(alone or {})  # what a part added when it was last tried
    before = cost(())
    while len(gone) < len(parts):
        taken = tuple(part for part, _ in gone)
        left = sorted((p for p in parts if p not in taken), key=lambda p: known.get(p, 0))
        tried = left[:tries] if known else left
        for part in tried:
            known[part] = cost((*taken, part)) - before
        best = min(tried, key=known.__getitem__)
        if before + known[best] > limit:
            break
        before += known[best]
        gone.append((best, before))
    return gone
