"""Bert: an encoder alone, which reads a text from both sides and fills its holes."""

from typing import Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor

from mha import masks
from mha.models.stack import TokenStack
from mha.positions import ALiBi


class Bert(TokenStack):
    """Reads a text with holes; says at each position which token stands there.

    Each position sees every real one, before and behind it. A token stands at the number of real
    tokens before it, so padding on either side moves nothing. The parameters are those of `GPT`,
    name for name, so that a state_dict of one loads into the other: the mask alone differs.

    It is BERT but for this: blocks are pre-norm, segments have no embedding, nothing tells whether
    one sentence follows another, and one linear map of its own makes the logits.

    Args:
        vocab_size: V, tokens that it knows, the mask token included.
        embed_dim: width E.
        num_heads: heads H, a divisor of E.
        num_layers: blocks.
        max_length: longest text in tokens, padding included.
        num_kv_heads: key and value heads, a divisor of H; H by default.
        ff_dim: inner width of the feed-forward, 4 E by default.
        positions: "rotary", an angle of queries and keys, or "learned", a vector for each
            position, added to the token's, as in BERT.
        dropout: probability.
        backend: of the attention.
        pad_id: the token that fills up a batch.
    Errors: ValueError for another kind of positions, a size below 1, and what the blocks refuse.
    Source: Devlin et al. 2019; pre-norm after Xiong et al. 2020.

    Examples:
        >>> import torch
        >>> from mha import models
        >>> bert = models.Bert(9, embed_dim=8, num_heads=2, num_layers=1, max_length=6)
        >>> ids, changed = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[3, 4, 5, 7]])
        >>> logits = bert(ids)  # (B, T, V)
        >>> tuple(logits.shape)
        (1, 4, 9)
        >>> torch.allclose(logits[:, 0], bert(changed)[:, 0])  # the first token sees the last
        False
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
        dropout: float = 0.0,
        backend: str = "auto",
        pad_id: int = 0,
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
            num_kv_heads=num_kv_heads,
            backend=backend,
        )
        self.pad_id = pad_id

    def forward(
        self,
        ids: Int[Tensor, "B T"],
        *,
        key_mask: Bool[Tensor, "B T"] | None = None,
        attn_mask: Tensor | ALiBi | None = None,
        return_weights: bool = False,
    ) -> (
        Float[Tensor, "B T V"] | tuple[Float[Tensor, "B T V"], tuple[Float[Tensor, "B H T T"], ...]]
    ):
        """Logits of the token at each position; with ``return_weights`` also each layer's weights.

        Args:
            ids: (B, T), at most max_length tokens.
            key_mask: (B, T) bool, True = a real token; by default every id but pad_id.
            attn_mask: a further mask, as of `MultiHeadAttention`; with `mha.masks.causal(T)` this
                computes what a `GPT` with the same weights does.
        Returns: logits (B, T, V), those at padding without meaning, and for each layer (B, H, T, T)
            where asked for.
        Errors: TypeError for ids that are no integers; ValueError for other shapes, too many
            tokens, and an id that has no embedding.

        Examples:
            >>> import mha, torch
            >>> from mha import models
            >>> sizes = {"embed_dim": 8, "num_heads": 2, "num_layers": 1, "max_length": 6}
            >>> bert, gpt = models.Bert(9, **sizes), models.GPT(9, **sizes)
            >>> _ = bert.load_state_dict(gpt.state_dict())
            >>> ids = torch.tensor([[3, 4, 5, 6]])
            >>> masked = bert(ids, attn_mask=mha.masks.causal(4))
            >>> torch.allclose(masked, gpt(ids), atol=1e-5)  # the mask is all the difference
            True
        """
        if key_mask is None:
            key_mask = masks.padding(ids=ids, pad_id=self.pad_id)  # (B, T)
        return self.run(ids, attn_mask=attn_mask, key_mask=key_mask, return_weights=return_weights)
