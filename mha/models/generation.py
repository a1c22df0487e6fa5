"""Generation: from a `GPT`'s logits of the next token to a text that goes on."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mha import _checks
from mha.models.gpt import GPT


class Generated(NamedTuple):
    """What was said to each of B prompts: ids (B, N) int64, and how many of them count, (B,).

    The prompts are left out; a stop_id that was said counts. Behind it stands pad_id.

    Examples:
        >>> import torch
        >>> from mha import models
        >>> ids, lengths = torch.tensor([[5, 2, 0], [4, 4, 3]]), torch.tensor([2, 3])
        >>> said = models.Generated(ids, lengths)  # the first text ended with 2
        >>> [row[:length].tolist() for row, length in zip(said.ids, said.lengths)]
        [[5, 2], [4, 4, 3]]
    """

    ids: Int[Tensor, "B N"]
    lengths: Int[Tensor, " B"]


@torch.no_grad()
def generate(
    model: GPT,
    prompts: Int[Tensor, "B T"],
    *,
    max_new_tokens: int,
    key_mask: Bool[Tensor, "B T"] | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_id: int | None = None,
    pad_id: int = 0,
    seed: int = 0,
    use_cache: bool = True,
) -> Generated:
    """Let the model go on with each prompt, token by token, in eval mode.

    A text depends on its own prompt and seed only, not on the others in the batch nor on their
    padding: what prompt b gets is what it gets alone with seed + b.

    Args:
        model: a `GPT`; its mode is put back afterwards.
        prompts: (B, T) integers, at least one real token in each.
        max_new_tokens: most tokens to say, at least 1.
        key_mask: (B, T) bool, True = a real token, padding on either side; all are by default.
        temperature, top_k, top_p: as of `filtered`. Temperature 0 is greedy, and needs no chance.
        stop_id: a text ends when it says this; None never ends one early.
        pad_id: what stands behind the end.
        seed: fixes all texts. Each new token costs one number in [0, 1), used or not.
        use_cache: False computes all keys and values anew at every step, for the same texts, but
            for rounding.
    Returns: `Generated`; N is max_new_tokens, or less where all texts have ended.
    Errors: TypeError for prompts that are no integers; ValueError for a prompt without tokens, for
        more than max_length tokens to be read, and for options out of range.

    Examples:
        >>> import torch
        >>> from mha import models
        >>> model = models.GPT(9, embed_dim=8, num_heads=2, num_layers=1, max_length=16)
        >>> prompts = torch.tensor([[3, 4, 5], [6, 7, 8]])
        >>> said = models.generate(model, prompts, max_new_tokens=4, temperature=0.8, top_k=5)
        >>> tuple(said.ids.shape), said.lengths.tolist()
        ((2, 4), [4, 4])
        >>> options = {"max_new_tokens": 4, "temperature": 0.8, "top_k": 5, "seed": 1}
        >>> torch.equal(models.generate(model, prompts[1:], **options).ids, said.ids[1:])
        True
    """
    _check_filter(temperature, top_k, top_p)
    prompts, ends = _packed(model, prompts, key_mask, max_new_tokens)  # (B, T), (B,)
    chances = _chances(len(prompts), max_new_tokens, seed).to(prompts.device)  # (B, N)
    training = model.training
    model.eval()
    try:
        reader = (_Cached if use_cache else _Afresh)(model, prompts, ends, max_new_tokens)
        ids, lengths = [], torch.zeros_like(ends)  # (B,)
        done = torch.zeros_like(ends, dtype=torch.bool)  # (B,)
        token = None
        for step in range(max_new_tokens):
            logits = reader.next_logits(token)  # (B, V)
            logits = filtered(logits, temperature=temperature, top_k=top_k, top_p=top_p)
            token = drawn(logits, chances[:, step])  # (B,)
            ids.append(token.masked_fill(done, pad_id))
            lengths += ~done
            if stop_id is not None:  # else no step waits for a GPU
                done |= token == stop_id
                if done.all():
                    break
    finally:
        model.train(training)
    return Generated(torch.stack(ids, dim=1), lengths)  # (B, N), (B,)


def filtered(
    logits: Float[Tensor, "*B V"],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Float[Tensor, "*B V"]:
    """Logits of the distribution to draw from: -inf for each token that is left out.

    Tokens stand in a row, the likeliest first, and of equals the one with the lower id. First the
    logits are divided by the temperature, then ``top_k`` keeps the first k tokens, then ``top_p``
    keeps the fewest first tokens whose probabilities, among those still there, reach p together.

    Args:
        logits: (..., V).
        temperature: 0 or more; 0 keeps the first token alone.
        top_k: at least 1; more than V keeps all.
        top_p: above 0 and at most 1; 1 keeps all. At least one token is kept.
    Returns: (..., V) float64.
    Errors: ValueError for options out of range.
    Source: top-k, Fan et al. 2018; top-p ("nucleus"), Holtzman et al. 2020.

    Examples:
        >>> import torch
        >>> from mha import models
        >>> logits = torch.tensor([0.125, 0.5, 0.25, 0.125]).log()
        >>> models.filtered(logits, top_k=2).isfinite().tolist()
        [False, True, True, False]
        >>> models.filtered(logits, top_p=0.8).isfinite().tolist()  # 0.5 + 0.25 is too little
        [True, True, True, False]
        >>> sharper = models.filtered(logits, temperature=0.5).softmax(-1)  # squares, shared out
        >>> [round(p, 3) for p in sharper.tolist()]
        [0.045, 0.727, 0.182, 0.045]
    """
    _check_filter(temperature, top_k, top_p)
    if temperature == 0:
        temperature, top_k = 1.0, 1
    temperature = max(temperature, 1e-250)  # alike for float32, and no quotient overflows
    ranked, order = (logits.double() / temperature).sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ranked[..., top_k:] = -torch.inf
    if top_p is not None and top_p < 1:
        probability = ranked.softmax(-1)  # (..., V)
        before = probability.cumsum(-1) - probability  # what the likelier ones have together
        ranked[..., 1:] = ranked[..., 1:].masked_fill(before[..., 1:] >= top_p, -torch.inf)
    return torch.empty_like(ranked).scatter_(-1, order, ranked)


def drawn(logits: Float[Tensor, "*B V"], chance: Float[Tensor, "*B"]) -> Int[Tensor, "*B"]:
    """The token at which the probabilities, added up in order of id, first exceed the chance.

    Args:
        logits: (..., V). A token of probability 0 is never drawn.
        chance: (...), in [0, 1).
    Returns: (...) int64.

    Examples:
        >>> import torch
        >>> from mha import models
        >>> logits = torch.tensor([0.25, 0.5, 0.25]).log()
        >>> chances = torch.tensor([0.1, 0.3, 0.7, 0.9])
        >>> models.drawn(logits.expand(4, 3), chances).tolist()
        [0, 1, 1, 2]
    """
    total = logits.double().softmax(-1).cumsum(-1)  # (..., V)
    chance = chance.double()[..., None] * total[..., -1:]  # the last sum may fall short of 1
    return torch.searchsorted(total, chance, right=True)[..., 0]


class _Cached:
    """Reads each token once; keys and values wait in caches."""

    def __init__(self, model: GPT, prompts: Tensor, ends: Tensor, new: int):
        self.model, self.prompts, self.ends = model, prompts, ends
        self.caches = model.new_caches(len(prompts), prompts.shape[1] + new)

    def next_logits(self, token: Tensor | None) -> Tensor:
        """(B, V), after the prompts, or after one more token (B,) each."""
        if token is not None:
            return self.model(token[:, None], caches=self.caches)[:, -1]
        length = self.prompts.shape[1]
        size = self.model.band or length  # as much as a banded layer's cache takes at once
        real = torch.arange(length, device=self.ends.device) < self.ends[:, None]  # (B, T)
        masks = [None] * length if real.all() else real.split(size, 1)  # no padding: int offsets
        logits = [
            self.model(ids, key_mask=mask, caches=self.caches)
            for ids, mask in zip(self.prompts.split(size, 1), masks, strict=False)
        ]
        return _at(torch.cat(logits, dim=1), self.ends - 1)


class _Afresh:
    """Reads the whole text at each step."""

    def __init__(self, model: GPT, prompts: Tensor, ends: Tensor, new: int):
        self.model, self.ends = model, ends
        self.ids = torch.cat((prompts, prompts.new_zeros(len(prompts), new)), dim=1)  # (B, T + N)
        self.longest = prompts.shape[1]

    def next_logits(self, token: Tensor | None) -> Tensor:
        """(B, V), after the prompts, or after one more token (B,) each."""
        if token is not None:
            self.ids.scatter_(1, self.ends[:, None], token[:, None])
            self.ends, self.longest = self.ends + 1, self.longest + 1
        real = torch.arange(self.longest, device=self.ends.device) < self.ends[:, None]
        return _at(self.model(self.ids[:, : self.longest], key_mask=real), self.ends - 1)


def _at(logits: Tensor, place: Tensor) -> Tensor:
    """(B, T, V) and (B,) -> (B, V): what stands at each example's place."""
    return logits[torch.arange(len(place), device=place.device), place]


def _packed(model: GPT, prompts: Tensor, key_mask: Tensor | None, new: int) -> tuple:
    """Prompts with all padding on the right, (B, T), and their lengths (B,)."""
    _checks.check_size("max_new_tokens", new)
    if not isinstance(prompts, Tensor) or not _checks.holds_ints(prompts):
        got = prompts.dtype if isinstance(prompts, Tensor) else type(prompts).__name__
        raise TypeError(f"prompts must be a tensor of integers, got {got}")
    prompts = prompts.long()
    if prompts.ndim != 2:
        raise ValueError(f"prompts must be (B, T), got {tuple(prompts.shape)}")
    if key_mask is None:
        key_mask = torch.ones_like(prompts, dtype=torch.bool)
    _checks.check_key_mask(key_mask, prompts, tuple(prompts.shape))
    ends = key_mask.expand(prompts.shape).sum(1)  # (B,)
    if (ends == 0).any():
        raise ValueError(f"each prompt must have a token, got lengths {ends.tolist()}")
    longest = int(ends.max()) if len(ends) else prompts.shape[1]
    if longest + new > model.max_length + 1:  # the last token is said, not read
        raise ValueError(
            f"prompts and max_new_tokens must fit into the model's max_length={model.max_length}, "
            f"got {longest} + {new}"
        )
    order = (~key_mask).expand(prompts.shape).long().argsort(dim=1, stable=True)  # real ones first
    return prompts.gather(1, order)[:, :longest], ends


def _chances(batch: int, steps: int, seed: int) -> Tensor:
    """(B, N) float64 in [0, 1): a row for each text, with a generator of its own."""
    rows = torch.empty(batch, steps, dtype=torch.float64)
    for number, row in enumerate(rows):
        row.uniform_(generator=torch.Generator().manual_seed(seed + number))
    return rows


def _check_filter(temperature: float, top_k: int | None, top_p: float | None) -> None:
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be 0 or more and finite, got {temperature}")
    if top_k is not None:
        _checks.check_size("top_k", top_k)
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")
