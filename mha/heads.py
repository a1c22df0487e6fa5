"""The ladder from one head to many: each rung takes the weights of the rung before and gives the
same numbers.

Axes: B batch, H heads, T queries, S keys, D width of one head, E width of the model.

Examples:
    >>> import torch
    >>> import mha
    >>> x = torch.randn(2, 3, 8)  # (B, T, E)
    >>> looped = mha.heads.LoopedHeads(8, 2)
    >>> batched = mha.heads.BatchedHeads.from_looped(looped)
    >>> top = mha.MultiHeadAttention(8, 2)
    >>> _ = top.load_state_dict(batched.state_dict())
    >>> all(torch.allclose(rung(x), looped(x), atol=1e-5) for rung in (batched, top))
    True
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mha import _checks
from mha.attention import scaled_dot_product_attention


def split_heads(x: Float[Tensor, "B T HD"], num_heads: int) -> Float[Tensor, "B H T D"]:
    """Cut the features into heads: head h owns the features h*D to (h+1)*D - 1.

    Args:
        x: (B, T, H*D).
        num_heads: H, the number of heads.
    Returns: (B, H, T, D), a view.
    Errors: ValueError if ``x`` has not three axes, or H does not divide its width.

    Examples:
        >>> import torch
        >>> from mha.heads import split_heads
        >>> split_heads(torch.tensor([[[0.0, 1.0, 2.0, 3.0]]]), 2).tolist()  # B = T = 1, H = 2
        [[[[0.0, 1.0]], [[2.0, 3.0]]]]
    """
    if x.ndim != 3:
        raise ValueError(f"x must have shape (B, T, H*D), got {tuple(x.shape)}")
    if num_heads < 1 or x.shape[-1] % num_heads:
        raise ValueError(f"num_heads must divide the width {x.shape[-1]} of x, got {num_heads}")
    x = x.unflatten(-1, (num_heads, x.shape[-1] // num_heads))  # (B, T, H, D)
    return x.transpose(1, 2)  # (B, H, T, D)


def merge_heads(x: Float[Tensor, "B H T D"]) -> Float[Tensor, "B T HD"]:
    """Put the heads side by side again: the inverse of ``split_heads``.

    Args:
        x: (B, H, T, D).
    Returns: (B, T, H*D), a copy where memory order demands one.
    Errors: ValueError if ``x`` has not four axes.

    Examples:
        >>> import torch
        >>> from mha.heads import merge_heads, split_heads
        >>> x = torch.randn(2, 3, 8)
        >>> merge_heads(split_heads(x, 2)).equal(x)
        True
    """
    if x.ndim != 4:
        raise ValueError(f"x must have shape (B, H, T, D), got {tuple(x.shape)}")
    return x.transpose(1, 2).flatten(2)  # (B, T, H, D) -> (B, T, H*D)


class SingleHeadAttention(nn.Module):
    """One head: three linear maps, then attention. No output map.

    Args:
        embed_dim: E, width of the inputs.
        head_dim: D, width of queries, keys, values and the output.
        bias: whether the three maps add a bias.

    Examples:
        >>> import torch
        >>> import mha
        >>> head = mha.heads.SingleHeadAttention(embed_dim=8, head_dim=4)
        >>> tuple(head(torch.randn(2, 3, 8)).shape)  # (B, T, E) -> (B, T, D)
        (2, 3, 4)
    """

    def __init__(self, embed_dim: int, head_dim: int, *, bias: bool = True):
        super().__init__()
        self.q_proj = nn.Linear(embed_dim, head_dim, bias=bias)
        self.k_proj = nn.Linear(embed_dim, head_dim, bias=bias)
        self.v_proj = nn.Linear(embed_dim, head_dim, bias=bias)

    def forward(
        self,
        query: Float[Tensor, "B T E"],
        key: Float[Tensor, "B S E"] | None = None,
        value: Float[Tensor, "B S E"] | None = None,
        *,
        attn_mask: Tensor | None = None,
        key_mask: Tensor | None = None,
        is_causal: bool = False,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend with one head.

        Args:
            query: (B, T, E).
            key: (B, S, E), ``query`` by default.
            value: (B, S, E), ``key`` by default.
            attn_mask: broadcasts to (B, T, S); bool (True = may attend) or float (added).
            key_mask: bool (B, S), True = a real key.
            is_causal: query i sees key j only if j <= i.
            return_weights: also return the weights.
        Returns: output (B, T, D), and weights (B, T, S) if asked for.
        Errors: as of ``mha.scaled_dot_product_attention``; ValueError for a value without a key.

        Examples:
            >>> import torch
            >>> import mha
            >>> head = mha.heads.SingleHeadAttention(embed_dim=8, head_dim=4)
            >>> _, weights = head(torch.randn(2, 3, 8), is_causal=True, return_weights=True)
            >>> bool((weights.triu(1) == 0).all())  # (B, T, S): no query sees a later key
            True
        """
        key, value = default_inputs(query, key, value)
        if isinstance(attn_mask, Tensor) and attn_mask.ndim == 3:
            attn_mask = attn_mask[:, None]  # (B, 1, T, S)
        output = scaled_dot_product_attention(
            self.q_proj(query)[:, None],  # (B, T, D) -> (B, 1, T, D)
            self.k_proj(key)[:, None],  # (B, S, D) -> (B, 1, S, D)
            self.v_proj(value)[:, None],  # (B, S, D) -> (B, 1, S, D)
            attn_mask,
            is_causal=is_causal,
            key_mask=key_mask,
            return_weights=return_weights,
            backend="reference",
        )
        if return_weights:
            return output[0][:, 0], output[1][:, 0]  # (B, T, D), (B, T, S)
        return output[:, 0]  # (B, T, D)


class LoopedHeads(nn.Module):
    """Many heads, one after another: run each, put the results side by side, apply W_O.

    Args:
        embed_dim: E, width of the inputs and of the output.
        num_heads: H, the number of heads.
        head_dim: D, embed_dim // num_heads by default.
        bias: whether the maps add a bias.
    Errors: ValueError if num_heads does not divide embed_dim and no head_dim is given.

    Examples:
        >>> import torch
        >>> import mha
        >>> heads = mha.heads.LoopedHeads(embed_dim=8, num_heads=2, head_dim=3)
        >>> query, memory = torch.randn(2, 3, 8), torch.randn(2, 5, 8)  # (B, T, E), (B, S, E)
        >>> output, weights = heads(query, memory, return_weights=True)
        >>> tuple(output.shape), tuple(weights.shape)  # (B, T, E), (B, H, T, S)
        ((2, 3, 8), (2, 2, 3, 5))
    """

    def __init__(
        self, embed_dim: int, num_heads: int, *, head_dim: int | None = None, bias: bool = True
    ):
        super().__init__()
        head_dim = default_head_dim(embed_dim, num_heads, head_dim)
        self.heads = nn.ModuleList(
            SingleHeadAttention(embed_dim, head_dim, bias=bias) for _ in range(num_heads)
        )
        self.out_proj = nn.Linear(num_heads * head_dim, embed_dim, bias=bias)

    @classmethod
    @torch.no_grad()
    def from_heads(cls, heads: Iterable[SingleHeadAttention]) -> "LoopedHeads":
        """Copy single heads. W_O becomes the identity, so the output is their outputs side by side.

        Args:
            heads: H heads whose widths add up to E, all with or all without bias.
        Errors: ValueError for no heads or heads that differ in size, and if H*D is not E: no
            identity fits then.

        Examples:
            >>> import torch
            >>> from mha.heads import LoopedHeads, SingleHeadAttention
            >>> one, other = SingleHeadAttention(8, 4), SingleHeadAttention(8, 4)
            >>> x = torch.randn(2, 3, 8)  # (B, T, E)
            >>> side_by_side = torch.cat([one(x), other(x)], dim=-1)  # (B, T, 2*D)
            >>> torch.allclose(LoopedHeads.from_heads([one, other])(x), side_by_side, atol=1e-5)
            True
        """
        heads = list(heads)
        kinds = {
            (h.q_proj.in_features, h.q_proj.out_features, h.q_proj.bias is None) for h in heads
        }
        if len(kinds) != 1:
            raise ValueError(
                "heads must be one or more, alike in (width in, width out, without bias), "
                f"got {sorted(kinds)}"
            )
        first = heads[0].q_proj
        if len(heads) * first.out_features != first.in_features:
            raise ValueError(
                f"heads must be as wide together as the model, E={first.in_features}, "
                f"got {len(heads)} of width D={first.out_features}"
            )
        self = cls(first.in_features, len(heads), bias=first.bias is not None).to(first.weight)
        for mine, theirs in zip(self.heads, heads, strict=True):
            mine.load_state_dict(theirs.state_dict())
        nn.init.eye_(self.out_proj.weight)
        if self.out_proj.bias is not None:
            nn.init.zeros_(self.out_proj.bias)
        return self

    def forward(
        self,
        query: Float[Tensor, "B T E"],
        key: Float[Tensor, "B S E"] | None = None,
        value: Float[Tensor, "B S E"] | None = None,
        *,
        attn_mask: Tensor | None = None,
        key_mask: Tensor | None = None,
        is_causal: bool = False,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """As ``SingleHeadAttention.forward``, with output (B, T, E) and weights (B, H, T, S).

        An ``attn_mask`` broadcasts to (B, H, T, S); each head gets its slice.
        """
        key, value = default_inputs(query, key, value)
        target = (len(query), len(self.heads), query.shape[1], key.shape[1])  # (B, H, T, S)
        _checks.check_attn_mask(attn_mask, query, target)
        results = [
            head(
                query,
                key,
                value,
                attn_mask=_of_head(attn_mask, index),
                key_mask=key_mask,
                is_causal=is_causal,
                return_weights=True,
            )
            for index, head in enumerate(self.heads)
        ]
        joined = torch.cat([output for output, _ in results], dim=-1)  # (B, T, H*D)
        output = self.out_proj(joined)  # (B, T, E)
        if return_weights:
            return output, torch.stack([w for _, w in results], dim=1)  # (B, H, T, S)
        return output


def _of_head(mask: Tensor | None, index: int) -> Tensor | None:
    """One head's slice of a mask that broadcasts to (B, H, T, S)."""
    if mask is None or mask.ndim < 3:
        return mask
    return mask[..., 0 if mask.shape[-3] == 1 else index, :, :]  # (T, S) or (B, T, S)


class BatchedHeads(nn.Module):
    """Many heads in one product: the maps of all heads stand side by side in one matrix.

    Its parameters have the names and shapes of ``mha.MultiHeadAttention``, the next rung, whose
    ``load_state_dict`` takes them as they are.

    Args:
        embed_dim, num_heads, head_dim, bias: as in ``LoopedHeads``.
    Errors: as in ``LoopedHeads``.

    Examples:
        >>> import torch
        >>> import mha
        >>> heads = mha.heads.BatchedHeads(embed_dim=8, num_heads=2, head_dim=3)
        >>> tuple(heads(torch.randn(2, 3, 8)).shape), tuple(heads.q_proj.weight.shape)  # (H*D, E)
        ((2, 3, 8), (6, 8))
    """

    def __init__(
        self, embed_dim: int, num_heads: int, *, head_dim: int | None = None, bias: bool = True
    ):
        super().__init__()
        self.num_heads = num_heads
        width = num_heads * default_head_dim(embed_dim, num_heads, head_dim)  # H*D
        self.q_proj = nn.Linear(embed_dim, width, bias=bias)
        self.k_proj = nn.Linear(embed_dim, width, bias=bias)
        self.v_proj = nn.Linear(embed_dim, width, bias=bias)
        self.out_proj = nn.Linear(width, embed_dim, bias=bias)

    @classmethod
    @torch.no_grad()
    def from_looped(cls, looped: LoopedHeads) -> "BatchedHeads":
        """Stack the maps of all heads: rows h*D to (h+1)*D - 1 of a weight are head h's.

        Args:
            looped: H heads; their weights are copied.

        Examples:
            >>> import torch
            >>> from mha.heads import BatchedHeads, LoopedHeads
            >>> looped, x = LoopedHeads(8, 2), torch.randn(2, 3, 8)
            >>> batched = BatchedHeads.from_looped(looped)
            >>> batched.q_proj.weight[4:].equal(looped.heads[1].q_proj.weight)  # rows D to 2D - 1
            True
            >>> torch.allclose(batched(x), looped(x), atol=1e-5)
            True
        """
        first = looped.heads[0].q_proj
        self = cls(
            first.in_features,
            len(looped.heads),
            head_dim=first.out_features,
            bias=first.bias is not None,
        ).to(first.weight)
        states = [head.state_dict() for head in looped.heads]
        stacked = {name: torch.cat([state[name] for state in states]) for name in states[0]}
        out = {f"out_proj.{name}": x for name, x in looped.out_proj.state_dict().items()}
        self.load_state_dict(stacked | out)
        return self

    def forward(
        self,
        query: Float[Tensor, "B T E"],
        key: Float[Tensor, "B S E"] | None = None,
        value: Float[Tensor, "B S E"] | None = None,
        *,
        attn_mask: Tensor | None = None,
        key_mask: Tensor | None = None,
        is_causal: bool = False,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """As ``LoopedHeads.forward``; ``attn_mask`` broadcasts to (B, H, T, S)."""
        key, value = default_inputs(query, key, value)
        joined, weights = scaled_dot_product_attention(
            split_heads(self.q_proj(query), self.num_heads),  # (B, H, T, D)
            split_heads(self.k_proj(key), self.num_heads),  # (B, H, S, D)
            split_heads(self.v_proj(value), self.num_heads),  # (B, H, S, D)
            attn_mask,
            is_causal=is_causal,
            key_mask=key_mask,
            return_weights=True,
            backend="reference",
        )
        output = self.out_proj(merge_heads(joined))  # (B, T, E)
        return (output, weights) if return_weights else output


def default_inputs(query: Tensor, key: Tensor | None, value: Tensor | None) -> tuple:
    """Key and value: ``query`` where no key is given, ``key`` where no value is.

    Args:
        query: (B, T, E).
        key: (B, S, E), or None.
        value: (B, S, E), or None.
    Returns: key and value; nothing is copied.
    Errors: ValueError for a value without a key.

    Examples:
        >>> import torch
        >>> from mha.heads import default_inputs
        >>> query, memory = torch.ones(2, 3, 8), torch.ones(2, 5, 8)
        >>> key, value = default_inputs(query, memory, None)
        >>> key is memory, value is memory
        (True, True)
    """
    if key is None and value is not None:
        raise ValueError("value was given without key; give key too, or neither")
    key = query if key is None else key
    return key, key if value is None else value


def default_head_dim(embed_dim: int, num_heads: int, head_dim: int | None) -> int:
    """D, the width of one head: as given, or embed_dim / num_heads.

    Args:
        embed_dim: E, width of the model.
        num_heads: H, the number of heads.
        head_dim: D, or None.
    Errors: TypeError for sizes that are not ints; ValueError for sizes below 1, or if the division
        leaves a rest.

    Examples:
        >>> from mha.heads import default_head_dim
        >>> default_head_dim(8, 2, None), default_head_dim(8, 2, 3)
        (4, 3)
    """
    _checks.check_size("embed_dim", embed_dim)
    _checks.check_size("num_heads", num_heads)
    if head_dim is not None:
        _checks.check_size("head_dim", head_dim)
        return head_dim
    if embed_dim % num_heads:
        raise ValueError(
            f"num_heads must divide embed_dim (or give head_dim), got embed_dim={embed_dim} and "
            f"num_heads={num_heads}"
        )
    return embed_dim // num_heads
