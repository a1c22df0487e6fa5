"""Transformer blocks, pre-norm: each part reads a normalised copy and adds to the stream.

Pre-norm (x + f(norm(x)), with one more norm after the last block) trains without a long warm-up:
Xiong et al. 2020. Dropout acts on what each part adds, as in Vaswani et al. 2017, section 5.4.
"""

from collections.abc import Callable

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mha.cache import KVCache
from mha.multihead import MultiHeadAttention
from mha.positions import ALiBi


class FeedForward(nn.Sequential):
    """Two linear maps with a bend between, at each position alone: (B, T, E) -> (B, T, E).

    Args:
        embed_dim: width E of the model.
        ff_dim: width between the two maps.
        dropout: probability, on what lies between.
        activation: makes the module that bends; a ReLU by default.
    Source: Vaswani et al. 2017, section 3.3.

    Examples:
        >>> import torch
        >>> from mha import models
        >>> feed_forward = models.FeedForward(8, 16)
        >>> x = torch.randn(2, 3, 8)
        >>> tuple(feed_forward(x).shape)
        (2, 3, 8)
        >>> torch.allclose(feed_forward(x)[:, :1], feed_forward(x[:, :1]), atol=1e-6)
        True
    """

    def __init__(
        self,
        embed_dim: int,
        ff_dim: int,
        *,
        dropout: float = 0.0,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ):
        super().__init__(
            nn.Linear(embed_dim, ff_dim),
            activation(),
            nn.Dropout(dropout),
            nn.Linear(ff_dim, embed_dim),
        )


class EncoderBlock(nn.Module):
    """Self-attention, then feed-forward; every position sees every real one.

    With ``is_causal=True`` it is the block of a decoder without memory, as in GPT.

    Args:
        embed_dim: width E of the model.
        num_heads: heads H, a divisor of E.
        ff_dim: inner width of the feed-forward.
        dropout: probability.
        activation: makes the module between the feed-forward's maps.
        attention: options of `MultiHeadAttention`: is_causal, num_kv_heads, rope, window, ...
    Errors: ValueError or TypeError for what `MultiHeadAttention` refuses.
    Source: Vaswani et al. 2017, section 3.1; pre-norm after Xiong et al. 2020.

    Examples:
        >>> import torch
        >>> from mha import models
        >>> block = models.EncoderBlock(8, 2, 16, is_causal=True)
        >>> x, real = torch.randn(1, 3, 8), torch.tensor([[True, True, False]])
        >>> y, weights = block(x, key_mask=real, return_weights=True)
        >>> tuple(y.shape), tuple(weights.shape)
        ((1, 3, 8), (1, 2, 3, 3))
        >>> (weights[0, 0] > 0).tolist()  # nothing later, no padding
        [[True, False, False], [True, True, False], [True, True, False]]
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        ff_dim: int,
        *,
        dropout: float = 0.0,
        activation: Callable[[], nn.Module] = nn.ReLU,
        **attention,
    ):
        super().__init__()
        self.attention_norm = nn.LayerNorm(embed_dim)
        self.attention = MultiHeadAttention(embed_dim, num_heads, **attention)
        self.feed_forward_norm = nn.LayerNorm(embed_dim)
        self.feed_forward = FeedForward(embed_dim, ff_dim, dropout=dropout, activation=activation)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "B S E"],
        *,
        attn_mask: Tensor | ALiBi | None = None,
        key_mask: Bool[Tensor, "B S"] | None = None,
        positions: Int[Tensor, "*B S"] | None = None,
        cache: KVCache | None = None,
        return_weights: bool = False,
    ) -> Float[Tensor, "B S E"] | tuple[Float[Tensor, "B S E"], Float[Tensor, "B H S K"]]:
        """The stream after this block; with ``return_weights`` also the attention weights.

        Args:
            x: (B, S, E).
            attn_mask: as of `MultiHeadAttention`.
            key_mask: (B, S) bool, True = a real position.
            positions: (S,) or (B, S), for rotary attention.
            cache: the block's own: the keys K are then those stored, with these S behind.
            return_weights: also give the weights.
        Returns: (B, S, E), and (B, H, S, K) where asked for.
        Errors: ValueError or TypeError for what `MultiHeadAttention` refuses.
        """
        attended, weights = _attend(
            *(self.attention, self.attention_norm(x)),
            return_weights=return_weights,
            attn_mask=attn_mask,
            key_mask=key_mask,
            positions=positions,
            cache=cache,
        )
        x = x + self.dropout(attended)
        x = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return (x, weights) if return_weights else x


class DecoderBlock(nn.Module):
    """Causal self-attention, then attention to the memory, then feed-forward.

    Args:
        embed_dim: width E of the model and of the memory.
        num_heads: heads H of both attentions, a divisor of E.
        ff_dim: inner width of the feed-forward.
        dropout: probability.
    Errors: ValueError or TypeError for what `MultiHeadAttention` refuses.
    Source: Vaswani et al. 2017, section 3.1; pre-norm after Xiong et al. 2020.

    Examples:
        >>> import torch
        >>> from mha import models
        >>> block = models.DecoderBlock(8, 2, 16)
        >>> x, memory = torch.randn(1, 3, 8), torch.randn(1, 5, 8)
        >>> y, own, cross = block(x, memory, return_weights=True)
        >>> tuple(y.shape), tuple(own.shape), tuple(cross.shape)
        ((1, 3, 8), (1, 2, 3, 3), (1, 2, 3, 5))
    """

    def __init__(self, embed_dim: int, num_heads: int, ff_dim: int, *, dropout: float = 0.0):
        super().__init__()
        self.self_norm = nn.LayerNorm(embed_dim)
        self.self_attention = MultiHeadAttention(embed_dim, num_heads, is_causal=True)
        self.cross_norm = nn.LayerNorm(embed_dim)
        self.cross_attention = MultiHeadAttention(embed_dim, num_heads)
        self.feed_forward_norm = nn.LayerNorm(embed_dim)
        self.feed_forward = FeedForward(embed_dim, ff_dim, dropout=dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "B T E"],
        memory: Float[Tensor, "B S E"],
        *,
        memory_mask: Bool[Tensor, "B S"] | None = None,
        cache: KVCache | None = None,
        memory_cache: KVCache | None = None,
        return_weights: bool = False,
    ) -> (
        Float[Tensor, "B T E"]
        | tuple[Float[Tensor, "B T E"], Float[Tensor, "B H T K"], Float[Tensor, "B H T S"]]
    ):
        """The stream after this block; with ``return_weights`` also both attentions' weights.

        Args:
            x: (B, T, E).
            memory: (B, S, E), the encoder's output.
            memory_mask: (B, S) bool, True = a real source position.
            cache: of the self-attention: its keys K are then those stored, with these T behind.
            memory_cache: a static one: it takes memory and memory_mask at the first call, and
                stands for both from then on.
            return_weights: also give the weights.
        Returns: (B, T, E), and (B, H, T, K) and (B, H, T, S) where asked for.
        Errors: ValueError or TypeError for what `MultiHeadAttention` refuses.
        """
        attended, self_weights = _attend(
            *(self.self_attention, self.self_norm(x)), return_weights=return_weights, cache=cache
        )
        x = x + self.dropout(attended)
        attended, cross_weights = _attend(
            self.cross_attention,
            self.cross_norm(x),
            memory,
            key_mask=memory_mask,
            cache=memory_cache,
            return_weights=return_weights,
        )
        x = x + self.dropout(attended)
        x = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return (x, self_weights, cross_weights) if return_weights else x


def _attend(
    attention: MultiHeadAttention, *inputs: Tensor, return_weights: bool, **options
) -> tuple[Tensor, Tensor | None]:
    """Call an attention; its weights are None where they were not asked for."""
    result = attention(*inputs, return_weights=return_weights, **options)
    return result if return_weights else (result, None)
