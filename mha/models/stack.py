"""What GPT and Bert share: token and position embeddings, blocks, a norm, and logits."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mha import _checks
from mha.cache import KVCache
from mha.models.blocks import EncoderBlock
from mha.positions import ALiBi, Rotary


class TokenStack(nn.Module):
    """Ids to logits, position by position: embedding, pre-norm blocks, norm, linear map.

    Args:
        vocab_size: V, tokens that it knows.
        embed_dim: width E.
        num_heads: heads H, a divisor of E.
        num_layers: blocks.
        max_length: most positions, in tokens.
        ff_dim: inner width of the feed-forward, 4 E by default.
        positions: "rotary", an angle of queries and keys, or "learned", a vector for each
            position, added to the token's.
        dropout: probability, of what each part adds and of the embeddings.
        attention: further options of each block's `MultiHeadAttention`.
    Errors: ValueError for another kind of positions, a size below 1, and what the blocks refuse.
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        embed_dim: int,
        num_heads: int,
        num_layers: int,
        max_length: int,
        ff_dim: int | None = None,
        positions: Literal["rotary", "learned"] = "rotary",
        dropout: float = 0.0,
        **attention,
    ):
        super().__init__()
        sizes = {"vocab_size": vocab_size, "embed_dim": embed_dim, "max_length": max_length}
        for name, size in {**sizes, "num_layers": num_layers}.items():
            _checks.check_size(name, size)
        if positions not in ("learned", "rotary"):
            raise ValueError(f"positions must be 'learned' or 'rotary', got {positions!r}")
        self.max_length = max_length
        ff_dim = 4 * embed_dim if ff_dim is None else ff_dim
        attention["rope"] = Rotary() if positions == "rotary" else None
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        self.positions = nn.Embedding(max_length, embed_dim) if positions == "learned" else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            EncoderBlock(
                *(embed_dim, num_heads, ff_dim), dropout=dropout, activation=nn.GELU, **attention
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.to_logits = nn.Linear(embed_dim, vocab_size)
        for embedding in filter(None, (self.embedding, self.positions)):
            nn.init.normal_(embedding.weight, std=0.02)

    def run(
        self,
        ids: Int[Tensor, "B T"],
        *,
        attn_mask: Tensor | ALiBi | None = None,
        key_mask: Bool[Tensor, "B T"] | None = None,
        positions: Int[Tensor, "*B T"] | None = None,
        caches: Sequence[KVCache] | None = None,
        return_weights: bool = False,
    ) -> (
        Float[Tensor, "B T V"] | tuple[Float[Tensor, "B T V"], tuple[Float[Tensor, "B H T S"], ...]]
    ):
        """Logits (B, T, V); with ``return_weights`` also each layer's weights (B, H, T, S).

        Args:
            ids: (B, T), at most max_length tokens.
            attn_mask, key_mask: as of `MultiHeadAttention`, the same for each block.
            positions: (T,) or (B, T), where the tokens stand; those of `places` by default.
            caches: one for each block.
            return_weights: also give the weights.
        Errors: TypeError for ids that are no integers; ValueError for other shapes, too many
            tokens, and an id that has no embedding (looked at on the CPU only, and not while compiling).
        """
        self._check_ids(ids)
        x = self.embedding(ids)  # (B, T, E)
        if positions is None:
            positions = places(ids, key_mask)  # (T,) or (B, T)
        if self.positions is not None:
            x = x + self.positions(positions)  # (B, T, E)
        x, all_weights = self.dropout(x), []
        options = {"attn_mask": attn_mask, "key_mask": key_mask, "return_weights": return_weights}
        if self.positions is None:
            options["positions"] = positions
        for index, block in enumerate(self.blocks):
            x = block(x, cache=caches[index] if caches else None, **options)
            if return_weights:
                x, weights = x
                all_weights.append(weights)
        logits = self.to_logits(self.norm(x))  # (B, T, V)
        return (logits, tuple(all_weights)) if return_weights else logits

    def _check_ids(self, ids: Tensor) -> None:
        if not isinstance(ids, Tensor) or not _checks.holds_ints(ids):
            got = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
            raise TypeError(f"ids must be a tensor of integers, got {got}")
        if ids.ndim != 2:
            raise ValueError(f"ids must be (B, T), got {tuple(ids.shape)}")
        if ids.shape[1] > self.max_length:
            raise ValueError(
                f"ids must have at most max_length={self.max_length} tokens, got {tuple(ids.shape)}"
            )
        size = self.embedding.num_embeddings
        if _checks.may_read(ids) and ids.numel() and not 0 <= ids.min() <= ids.max() < size:
            raise ValueError(
                f"ids must be 0 to vocab_size - 1 = {size - 1}, got {int(ids.min())} to "
                f"{int(ids.max())}"
            )


def places(ids: Int[Tensor, "B T"], key_mask: Bool[Tensor, "B T"] | None) -> Int[Tensor, "*B T"]:
    """How many real tokens stand before each: (B, T), or (T,) where no mask tells them apart.

    So padding on either side moves nothing.
    """
    if key_mask is None:
        return torch.arange(ids.shape[1], device=ids.device)  # (T,)
    _checks.check_key_mask(key_mask, ids, tuple(ids.shape))
    return (key_mask.expand(ids.shape).cumsum(1) - 1).clamp(min=0)  # (B, T)
