"""GPT: a decoder without memory, which says how a text goes on."""

from typing import Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor

from mha import _checks
from mha.cache import KVCache
from mha.models.stack import TokenStack, places


class GPT(TokenStack):
    """Reads a text; says at each token which one may come next.

    Each position sees itself and those before it. A token stands at the number of real tokens
    before it, so padding on either side moves nothing. The parameters are those of `Bert`, name
    for name: the mask alone differs.

    Args:
        vocab_size: V, tokens that it knows.
        embed_dim: width E.
        num_heads: heads H, a divisor of E.
        num_layers: blocks.
        max_length: most tokens that it reads at one time, or one by one with caches.
        num_kv_heads: key and value heads, a divisor of H; H by default.
        ff_dim: inner width of the feed-forward, 4 E by default.
        positions: "rotary", an angle of queries and keys, or "learned", a vector for each
            position, added to the token's.
        band: where given, every second block, beginning with the second, sees the last ``band``
            tokens only, the newest included; the other blocks see all.
        dropout: probability.
        backend: of the attention.
    Errors: ValueError for another kind of positions, a size below 1, and what the blocks refuse.
    Source: Radford et al. 2018 and 2019, GPT and GPT-2, whose blocks these are, but that GPT-2
        ties the logits to the embedding. Dense and banded blocks in turn: Brown et al. 2020,
        GPT-3, section 2.1, "similar to the Sparse Transformer" of Child et al. 2019. Neither the
        width of GPT-3's band nor which kind comes first is published. Child et al. let a head see
        distant tokens at a stride as well; that is left out here.

    Examples:
        >>> import torch
        >>> from mha import models
        >>> model = models.GPT(9, embed_dim=8, num_heads=2, num_layers=1, max_length=6)
        >>> ids, changed = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[3, 4, 5, 7]])
        >>> logits, weights = model(ids, return_weights=True)  # (B, T, V), one (B, H, T, T) a layer
        >>> tuple(logits.shape), tuple(weights[0].shape)
        ((1, 4, 9), (1, 2, 4, 4))
        >>> torch.allclose(logits[:, :3], model(changed)[:, :3], atol=1e-5)  # none sees a later one
        True
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        embed_dim: int = 128,
        num_heads: int = 4,
        num_layers: int = 4,
        max_length: int = 256,
        num_kv_heads: int | None = None,
        ff_dim: int | None = None,
        positions: Literal["rotary", "learned"] = "rotary",
        band: int | None = None,
        dropout: float = 0.0,
        backend: str = "auto",
    ):
        super().__init__(
            vocab_size,
            embed_dim=embed_dim,
            num_heads=num_heads,
            num_layers=num_layers,
            max_length=max_length,
            ff_dim=ff_dim,
            positions=positions,
            dropout=dropout,
            is_causal=True,
            num_kv_heads=num_kv_heads,
            backend=backend,
        )
        self.band = band
        if band is not None:
            _checks.check_size("band", band)
            for block in self.blocks[1::2]:
                block.attention.window = (band - 1, 0)

    def forward(
        self,
        ids: Int[Tensor, "B T"],
        *,
        key_mask: Bool[Tensor, "B T"] | None = None,
        caches: "Caches | None" = None,
        return_weights: bool = False,
    ) -> (
        Float[Tensor, "B T V"] | tuple[Float[Tensor, "B T V"], tuple[Float[Tensor, "B H T S"], ...]]
    ):
        """Logits (B, T, V); with ``return_weights`` also each layer's weights (B, H, T, S).

        Args:
            ids: (B, T), at most max_length tokens, those in the caches counted.
            key_mask: (B, T) bool, True = a real token. Every one is by default.
            caches: made by `new_caches`, under ``torch.no_grad()``. The ids go on where the
                earlier ones ended, and see them; S then counts what the layer's cache holds.
            return_weights: also give the weights.
        Errors: TypeError for ids that are no integers; ValueError for other shapes, too many
            tokens, and an id that has no embedding.
        """
        positions = self._places(ids, key_mask, caches)  # (T,) or (B, T)
        output = self.run(
            ids,
            key_mask=key_mask,
            positions=positions,
            caches=caches,
            return_weights=return_weights,
        )
        if caches is not None:
            real = ids.shape[1] if key_mask is None else key_mask.expand(ids.shape).sum(1)
            caches.count(real, ids.shape[1])
        return output

    def new_caches(self, batch_size: int, max_length: int | None = None) -> "Caches":
        """Empty caches for texts that are read in several calls.

        A banded layer's cache has room for ``2 * band`` tokens, however long the texts, and drops
        what its band has left behind. So it takes ``band`` tokens at a time, not more.

        Args:
            batch_size: B, texts.
            max_length: of the texts in tokens, padding counted; by default as many as the model
                can take.
        """
        room = self.max_length if max_length is None else max_length
        return Caches(
            KVCache.for_module(
                block.attention,
                batch_size,
                room
                if block.attention.window is None
                else max(self.band, min(room, 2 * self.band)),
            )
            for block in self.blocks
        )

    def _places(self, ids: Tensor, key_mask: Tensor | None, caches: "Caches | None") -> Tensor:
        """How many real tokens stand before each: (T,), or (B, T) where texts differ."""
        self._check_ids(ids)
        before = 0 if caches is None else caches.slots
        if before + ids.shape[1] > self.max_length:
            raise ValueError(
                f"ids must have at most max_length={self.max_length} tokens, those in the caches "
                f"counted, got {before} + {ids.shape[1]}"
            )
        for cache in [] if self.band is None or caches is None else caches[1::2]:
            free = cache.max_len - min(cache.length, self.band - 1)
            if ids.shape[1] > free:  # refused before any layer has stored a part of it
                raise ValueError(
                    f"ids must be at most {free} at a time for the caches of a band of "
                    f"{self.band}, got {tuple(ids.shape)}"
                )
        seen = 0 if caches is None else caches.seen
        return places(ids, key_mask) + (seen[:, None] if isinstance(seen, Tensor) else seen)


class Caches(list[KVCache]):
    """One `KVCache` for each layer of a `GPT`, from the first to the last.

    Attributes:
        slots: int, tokens that came so far, padding counted.
        seen: real tokens that came so far; int where all texts agree, else int64 (B,).

    Examples:
        >>> import torch
        >>> from mha import models
        >>> model = models.GPT(9, embed_dim=8, num_heads=2, num_layers=1, max_length=6)
        >>> ids, caches = torch.tensor([[3, 4, 5, 6]]), model.new_caches(batch_size=1)
        >>> with torch.no_grad():  # three tokens, and one more
        ...     parts = [model(part, caches=caches) for part in ids.split([3, 1], dim=1)]
        >>> caches.slots, torch.allclose(torch.cat(parts, dim=1), model(ids), atol=1e-5)
        (4, True)
    """

    slots: int = 0
    seen: int | Tensor = 0

    def count(self, real: int | Int[Tensor, " B"], given: int) -> None:
        """Note what all layers have stored: ``given`` tokens a text, ``real`` ones among them.

        `GPT` calls it itself, at the end of each ``forward``.
        """
        self.seen, self.slots = self.seen + real, self.slots + given

    def reorder(self, index: Int[Tensor, " N"]) -> None:
        """Text n becomes what text index[n] was, in every layer; see `KVCache.reorder`.

        Args:
            index: (N,) int64, numbers of texts.

        Examples:
            >>> import torch
            >>> from mha import models
            >>> model = models.GPT(9, embed_dim=8, num_heads=2, num_layers=1, max_length=6)
            >>> caches = model.new_caches(batch_size=2)
            >>> with torch.no_grad():
            ...     _ = model(torch.tensor([[3, 4], [5, 6]]), caches=caches)
            >>> caches.reorder(torch.tensor([1, 1]))  # both texts go on from the second
            >>> key = caches[0].read().key  # (2, 2, 2, 4)
            >>> torch.equal(key[0], key[1])
            True
        """
        for cache in self:
            cache.reorder(index)
        self.seen = self.seen[index] if isinstance(self.seen, Tensor) else self.seen
