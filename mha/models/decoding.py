"""Decoding: from a translator's next-token probabilities to a whole sequence."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mha.cache import KVCache

if TYPE_CHECKING:
    from mha.models.translator import Translator


@torch.no_grad()
def greedy(
    model: "Translator",
    source_ids: Int[Tensor, "B S"],
    *,
    source_mask: Bool[Tensor, "B S"] | None = None,
    max_length: int | None = None,
    use_cache: bool = True,
) -> Int[Tensor, "B L"]:
    """The likeliest token at each step, until every sequence has said ``<eos>``.

    ``<pad>`` and ``<bos>`` are never said: the probability is shared out among the other tokens.

    Args:
        model: a `Translator`, used in the mode it is in.
        source_ids: (B, S).
        source_mask: (B, S) bool, True = real; by default all but pad_id.
        max_length: most tokens to say, ``<eos>`` included; by default the model's max_length.
        use_cache: False computes all keys and values anew at every step, for the same tokens, but
            for rounding.
    Returns: (B, L) with L at most max_length: the tokens, ``<eos>`` included, then pad_id.
        ``<bos>`` is left out. A sequence cut off at max_length has no ``<eos>``.
    Errors: ValueError for a max_length the model has no positions for.

    Examples:
        >>> import torch
        >>> from mha import models
        >>> model = models.Translator.from_checkpoint("en-es")
        >>> texts = ["The cat drinks milk.", "The dog drinks water."]
        >>> source = torch.tensor([model.subwords.encode(text) for text in texts])  # (2, 6)
        >>> said = models.greedy(model, source)  # (B, L)
        >>> [model.subwords.decode(ids) for ids in said]
        ['El gato bebe leche.', 'El perro bebe agua.']
    """
    limit = _limit(model, max_length)
    source_mask = model.source_mask(source_ids, source_mask)  # (B, S)
    memory = model.encode(source_ids, source_mask=source_mask)  # (B, S, E)
    source_mask = source_mask.expand(memory.shape[:2])  # (1, S) may come
    reader = _reader(use_cache, model, memory, source_mask, limit)
    ids = source_ids.new_full((len(source_ids), 1), model.bos_id)  # (B, 1)
    rows = torch.arange(len(ids), device=ids.device)  # (N,), those that have not said <eos>
    while ids.shape[1] <= limit and len(rows):
        log_p = _log_p(model, reader.next_logits(ids[rows]))  # (N, V)
        said = log_p.argmax(-1)  # (N,)
        token = ids.new_full((len(ids),), model.pad_id).index_copy(0, rows, said)  # (B,)
        ids = torch.cat((ids, token[:, None]), dim=1)  # (B, 1 + tokens so far)
        going = (said != model.eos_id).nonzero()[:, 0]  # fewer than N, or all
        if len(going) < len(rows):
            rows = rows[going]
            reader.keep(going)
    return ids[:, 1:]  # (B, L)


@torch.no_grad()
def beam_search(
    model: "Translator",
    source_ids: Int[Tensor, "B S"],
    *,
    beam_size: int,
    length_penalty: float = 1.0,
    source_mask: Bool[Tensor, "B S"] | None = None,
    max_length: int | None = None,
    use_cache: bool = True,
) -> tuple[Int[Tensor, "B L"], Float[Tensor, " B"]]:
    """The best sequence found while keeping the ``beam_size`` best beginnings at every step.

    The score of a sequence or a beginning is the sum of its log-probabilities divided by
    ``tokens ** length_penalty``, ``<eos>`` counted: 0 compares sums, which favours short
    sequences, 1 compares means. A finished sequence competes with the beginnings at its own score;
    it takes no more tokens. If it drops out of the beam, the best such is remembered to the end.

    Args:
        model, source_ids, source_mask, max_length, use_cache: as of `greedy`.
        beam_size: beginnings kept, at least 1; 1 is `greedy`.
        length_penalty: exponent of the length, 0 or more.
    Returns: ids (B, L) as of `greedy`, and their scores (B,), nats, at most 0. A sequence cut off
        at max_length is returned only where no finished one was found.
    Errors: ValueError for a beam_size, length_penalty or max_length out of range.

    Examples:
        >>> import torch
        >>> from mha import models
        >>> model = models.Translator.from_checkpoint("en-es")
        >>> source = torch.tensor([model.subwords.encode("She is reading a book.")])
        >>> said, score = models.beam_search(model, source, beam_size=4)  # (1, L), (1,)
        >>> model.subwords.decode(said[0])
        'Ella está leyendo un libro.'
        >>> round(float(score), 2)  # the mean of its log-probabilities
        -0.12
    """
    if beam_size < 1:
        raise ValueError(f"beam_size must be at least 1, got {beam_size}")
    if length_penalty < 0:
        raise ValueError(f"length_penalty must not be negative, got {length_penalty}")
    limit = _limit(model, max_length)
    source_mask = model.source_mask(source_ids, source_mask)  # (B, S)
    memory = model.encode(source_ids, source_mask=source_mask)  # (B, S, E)
    source_mask = source_mask.expand(memory.shape[:2])  # (1, S) may come
    memory = memory.repeat_interleave(beam_size, dim=0)  # (B*K, S, E)
    source_mask = source_mask.repeat_interleave(beam_size, dim=0)  # (B*K, S)
    reader = _reader(use_cache, model, memory, source_mask, limit)
    beam = _Beam(model, len(source_ids), beam_size, length_penalty, memory)
    while beam.ids.shape[-1] <= limit and not beam.done.all():
        log_p = _log_p(model, reader.next_logits(beam.ids.flatten(0, 1)))  # (B*K, V)
        parent = beam.extend(log_p.unflatten(0, (-1, beam_size)))  # (B, K, V) -> (B, K)
        reader.follow(parent)
    return beam.best()


class _Beam:
    """K hypotheses for each of B sources, the finished ones among them."""

    def __init__(self, model: "Translator", batch: int, size: int, penalty: float, like: Tensor):
        self.pad_id, self.eos_id, self.penalty = model.pad_id, model.eos_id, penalty
        shape, device = (batch, size), like.device
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.ids = torch.full((*shape, 1), model.bos_id, device=device)  # (B, K, 1 + tokens)
        self.log_p = torch.full(shape, -torch.inf, device=device, dtype=dtype)  # (B, K), the sums
        self.log_p[:, 0] = 0  # one beginning: without this it would fill all K places
        self.tokens = torch.zeros(shape, dtype=torch.int64, device=device)  # (B, K)
        self.done = torch.zeros(shape, dtype=torch.bool, device=device)  # (B, K)
        self.best_ids = self.ids[:, 0]  # (B, 1 + tokens), the best finished so far
        self.best_score = torch.full((batch,), -torch.inf, device=device, dtype=dtype)  # (B,)

    def score(self, log_p: Tensor, tokens: Tensor) -> Tensor:
        return log_p / tokens.clamp(min=1) ** self.penalty

    def extend(self, log_p: Float[Tensor, "B K V"]) -> Int[Tensor, "B K"]:
        """One step: of the K*V extensions of each source keep the K with the best scores.

        Returns: (B, K), each one's parent: which of the source's K hypotheses it goes on from.
        """
        size, vocabulary = log_p.shape[1:]
        ways = min(size, vocabulary)  # N: no hypothesis has more than K of the K best extensions
        log_p, token = log_p.topk(ways)  # (B, K, N) each
        wait = torch.full_like(log_p, -torch.inf)  # (B, K, N): a finished one only pads, for free
        wait[..., 0] = 0
        done = self.done[..., None]  # (B, K, 1)
        sums = self.log_p[..., None] + torch.where(done, wait, log_p)  # (B, K, N)
        tokens = self.tokens + ~self.done  # (B, K)
        scores = self.score(sums, tokens[..., None])  # (B, K, N)
        chosen = scores.flatten(1).topk(size).indices  # (B, K)
        parent = chosen // ways  # (B, K)
        token = token.masked_fill(done, self.pad_id).flatten(1).gather(1, chosen)  # (B, K)
        self.log_p = sums.flatten(1).gather(1, chosen)  # (B, K)
        self.tokens = tokens.gather(1, parent)
        past = self.ids.gather(1, parent[..., None].expand_as(self.ids))  # (B, K, 1 + tokens)
        self.ids = torch.cat((past, token[..., None]), dim=-1)  # one longer
        # Where there were fewer than K extensions, places of probability 0 are left: no beginnings.
        self.done = self.done.gather(1, parent) | (token == self.eos_id) | self.log_p.isneginf()
        self._remember()
        return parent

    def _remember(self) -> None:
        finished = self.score(self.log_p, self.tokens).masked_fill(~self.done, -torch.inf)  # (B, K)
        score, place = finished.max(dim=1)  # (B,)
        ids = self.ids[torch.arange(len(place), device=place.device), place]  # (B, 1 + tokens)
        kept = torch.nn.functional.pad(self.best_ids, (0, 1), value=self.pad_id)
        better = score > self.best_score  # (B,)
        self.best_ids = torch.where(better[:, None], ids, kept)
        self.best_score = torch.where(better, score, self.best_score)

    def best(self) -> tuple[Tensor, Tensor]:
        """Ids without ``<bos>`` and score of each source's best; cut-off ones if need be."""
        running = self.score(self.log_p, self.tokens)[:, 0]  # (B,): topk has sorted the places
        cut_off = self.best_score == -torch.inf  # (B,)
        ids = torch.where(cut_off[:, None], self.ids[:, 0], self.best_ids)
        ids = ids[:, 1:]  # (B, tokens)
        length = int((ids != self.pad_id).any(0).sum())
        return ids[:, :length], torch.where(cut_off, running, self.best_score)


class LayerCaches(NamedTuple):
    """One decoder layer's: ``own`` grows with the target, ``memory`` is filled once, static.

    Examples:
        >>> from mha import models
        >>> model = models.Translator(9, 7, embed_dim=8, num_heads=2, num_layers=1, ff_dim=16)
        >>> layer = model.new_caches(batch_size=2, source_length=5, max_length=4)[0]
        >>> layer.own.max_len, layer.own.static
        (4, False)
        >>> layer.memory.max_len, layer.memory.static
        (5, True)
    """

    own: KVCache
    memory: KVCache


class TranslatorCaches(list[LayerCaches]):
    """What each layer of a `Translator`'s decoder has computed, from the first to the last.

    Attributes:
        length: int, target tokens read so far.

    Examples:
        >>> import torch
        >>> from mha import models
        >>> model = models.Translator(9, 7, embed_dim=8, num_heads=2, num_layers=1, ff_dim=16)
        >>> target, memory = torch.tensor([[1, 3, 4]]), torch.randn(1, 5, 8)
        >>> caches = model.new_caches(batch_size=1, source_length=5)
        >>> with torch.no_grad():  # one token at a time, and all at once
        ...     steps = [model.decode(ids, memory, caches=caches) for ids in target.split(1, dim=1)]
        ...     whole = model.decode(target, memory)
        >>> caches.length, torch.allclose(torch.cat(steps, dim=1), whole, atol=1e-5)
        (3, True)
    """

    length: int = 0

    def reorder(self, index: Int[Tensor, " N"], *, memory: bool = True) -> None:
        """Row n becomes what row index[n] was, in every layer; see `KVCache.reorder`.

        Args:
            index: (N,) int64, numbers of rows.
            memory: False leaves the memory's keys and values where they are. That is enough, and
                cheaper, where rows change places only with rows that read the same source, as
                beams do.

        Examples:
            >>> import torch
            >>> from mha import models
            >>> model = models.Translator(9, 7, embed_dim=8, num_heads=2, num_layers=1, ff_dim=16)
            >>> caches = model.new_caches(batch_size=2, source_length=5)
            >>> with torch.no_grad():
            ...     _ = model.decode(torch.tensor([[1], [3]]), torch.randn(2, 5, 8), caches=caches)
            >>> caches.reorder(torch.tensor([1, 1]))  # both rows go on from the second
            >>> key = caches[0].own.read().key  # (2, 2, 1, 4)
            >>> torch.equal(key[0], key[1])
            True
        """
        for layer in self:
            layer.own.reorder(index)
            if memory:
                layer.memory.reorder(index)


class _Afresh:
    """Reads the whole target at each step."""

    def __init__(self, model: "Translator", memory: Tensor, source_mask: Tensor):
        self.model, self.memory, self.source_mask = model, memory, source_mask

    def next_logits(self, ids: Int[Tensor, "N T"]) -> Float[Tensor, "N V"]:
        """Logits of the token after ``ids``, which are those of the last call and one more."""
        return self.model.decode(ids, self.memory, source_mask=self.source_mask)[:, -1]

    def keep(self, rows: Int[Tensor, " M"]) -> None:
        """Go on with these of the N rows only."""
        self.memory, self.source_mask = self.memory[rows], self.source_mask[rows]

    def follow(self, parent: Int[Tensor, "B K"]) -> None:
        """Row k of each source now goes on from what was row parent[k] of that source."""


class _Cached(_Afresh):
    """Reads each target token once; keys and values wait in caches."""

    def __init__(self, model: "Translator", memory: Tensor, source_mask: Tensor, limit: int):
        super().__init__(model, memory, source_mask)
        self.caches = model.new_caches(*memory.shape[:2], limit)

    def next_logits(self, ids: Int[Tensor, "N T"]) -> Float[Tensor, "N V"]:
        options = {"source_mask": self.source_mask, "caches": self.caches}
        return self.model.decode(ids[:, -1:], self.memory, **options)[:, -1]

    def keep(self, rows: Int[Tensor, " M"]) -> None:
        super().keep(rows)
        self.caches.reorder(rows)

    def follow(self, parent: Int[Tensor, "B K"]) -> None:
        batch, size = parent.shape
        if size == 1:  # its own parent
            return
        first = torch.arange(0, batch * size, size, device=parent.device)  # (B,)
        rows = (first[:, None] + parent).flatten()  # (B, K) -> (B*K,)
        self.caches.reorder(rows, memory=False)  # a source's K rows have the same memory


def _reader(
    use_cache: bool, model: "Translator", memory: Tensor, source_mask: Tensor, limit: int
) -> _Afresh:
    if use_cache:
        return _Cached(model, memory, source_mask, limit)
    return _Afresh(model, memory, source_mask)


def _log_p(model: "Translator", logits: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
    """Log-probabilities of the next token, among all but ``<pad>`` and ``<bos>``."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits[:, [model.pad_id, model.bos_id]] = -torch.inf
    return logits.log_softmax(-1)


def _limit(model: "Translator", max_length: int | None) -> int:
    limit = model.max_length if max_length is None else max_length
    if not 0 < limit <= model.max_length:
        raise ValueError(f"max_length must be 1 to the model's {model.max_length}, got {limit}")
    return limit
