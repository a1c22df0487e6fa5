"""MultiHeadAttention, the top rung: the module to use.

Axes: B batch, H heads, T queries, S keys, D width of one head, E width of the model.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mha import _checks
from mha.attention import scaled_dot_product_attention
from mha.heads import default_head_dim, default_inputs, merge_heads, split_heads


class MultiHeadAttention(nn.Module):
    """Multi-head attention for self- and cross-attention, batch first.

    Four linear layers, ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj``, are always called as
    modules, so that hooks, pruning and low-rank adapters work on them. Nothing but parameters is
    kept on the module.

    Args:
        embed_dim: E, width of the queries and of the output.
        num_heads: H.
        head_dim: D, embed_dim // num_heads by default; H*D need not be E.
        kdim, vdim: widths of ``key`` and ``value``, embed_dim by default.
        bias: whether q_proj, k_proj and v_proj add a bias.
        out_bias: whether out_proj does; as ``bias`` by default.
        dropout: probability of dropping a weight while training, in [0, 1].
        is_causal: default of ``forward``'s ``is_causal``.
        scale: factor of the scores, 1/sqrt(D) by default.
        backend: as in ``mha.scaled_dot_product_attention``.
        device, dtype: of the parameters.
    Errors: TypeError or ValueError naming the argument, what came and what was expected.
    Source: Vaswani et al. (2017), section 3.2.2. Weights start as Xavier uniform, biases at 0.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        head_dim: int | None = None,
        kdim: int | None = None,
        vdim: int | None = None,
        bias: bool = True,
        out_bias: bool | None = None,
        dropout: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        head_dim = default_head_dim(embed_dim, num_heads, head_dim)
        _checks.check_dropout("dropout", dropout)
        _checks.check_scale(scale)
        _checks.check_backend(backend)
        _checks.check_flag("is_causal", is_causal)
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating-point dtype, got {dtype}")
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, head_dim
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        _checks.check_size("kdim", self.kdim)
        _checks.check_size("vdim", self.vdim)
        self.dropout, self.is_causal = dropout, is_causal
        self.scale, self.backend = scale, backend
        width, made = num_heads * head_dim, {"device": device, "dtype": dtype}
        self.q_proj = nn.Linear(embed_dim, width, bias=bias, **made)
        self.k_proj = nn.Linear(self.kdim, width, bias=bias, **made)
        self.v_proj = nn.Linear(self.vdim, width, bias=bias, **made)
        out_bias = bias if out_bias is None else out_bias
        self.out_proj = nn.Linear(width, embed_dim, bias=out_bias, **made)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights Xavier uniform (Glorot and Bengio 2010), biases 0."""
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            nn.init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(
        self,
        query: Float[Tensor, "B T E"],
        key: Float[Tensor, "B S Ek"] | None = None,
        value: Float[Tensor, "B S Ev"] | None = None,
        *,
        attn_mask: Tensor | None = None,
        key_mask: Bool[Tensor, "B S"] | None = None,
        is_causal: bool | None = None,
        return_weights: bool = False,
    ) -> Float[Tensor, "B T E"] | tuple[Float[Tensor, "B T E"], Float[Tensor, "B H T S"]]:
        """Project, split into heads, attend, join the heads, apply W_O.

        Args:
            query: (B, T, E).
            key: (B, S, kdim); ``query`` by default (self-attention).
            value: (B, S, vdim); ``key`` by default.
            attn_mask: broadcasts to (B, H, T, S); bool (True = may attend) or float (added). A
                mask (B, T, S) needs a head axis, ``attn_mask[:, None]``: where B equals H it
                would be read as (H, T, S).
            key_mask: bool (B, S), True = a real key. What stands at an excluded key, NaN too,
                reaches neither output nor gradient. In self-attention it is a query as well, and
                answers like any other; where it is not finite it counts as 0.
            is_causal: query i sees key j only if j <= i; the module's own setting by default.
            return_weights: also return the weights, before dropout.
        Returns: output (B, T, E), and weights (B, H, T, S) if asked for. A query that may see
            nothing gives ``out_proj.bias`` and zero weights.
        Errors: TypeError or ValueError naming the argument, what came and what was expected.
        """
        key, value = default_inputs(query, key, value)
        self._check_inputs(query, key, value)
        is_causal = self.is_causal if is_causal is None else is_causal
        if key_mask is not None:  # before the maps, whose weight gradients see the inputs too
            _checks.check_key_mask(key_mask, query, tuple(key.shape[:2]))
            padding = ~key_mask[..., None]  # (B, S, 1)
            if key is query:  # self-attention: NaN at a padded key is NaN at its query too
                query = query.masked_fill(padding & ~query.isfinite(), 0.0)
            key, value = key.masked_fill(padding, 0.0), value.masked_fill(padding, 0.0)
        joined = scaled_dot_product_attention(
            split_heads(self.q_proj(query), self.num_heads),  # (B, T, H*D) -> (B, H, T, D)
            split_heads(self.k_proj(key), self.num_heads),  # (B, S, H*D) -> (B, H, S, D)
            split_heads(self.v_proj(value), self.num_heads),  # (B, S, H*D) -> (B, H, S, D)
            attn_mask,
            self.dropout if self.training else 0.0,
            is_causal,
            scale=self.scale,
            key_mask=key_mask,
            return_weights=return_weights,
            backend=self.backend,
        )
        joined, weights = joined if return_weights else (joined, None)
        output = self.out_proj(merge_heads(joined))  # (B, H, T, D) -> (B, T, H*D) -> (B, T, E)
        return (output, weights) if return_weights else output

    def _check_inputs(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Refuse inputs that do not fit the module or one another."""
        widths = {"embed_dim": self.embed_dim, "kdim": self.kdim, "vdim": self.vdim}
        named = {"query": query, "key": key, "value": value}
        for (name, x), (width_name, width) in zip(named.items(), widths.items(), strict=True):
            _checks.check_floating(name, x)
            if x.ndim != 3 or x.shape[-1] != width:
                letter = "T" if name == "query" else "S"
                raise ValueError(
                    f"{name} must have shape (B, {letter}, {width_name}={width}), "
                    f"got {tuple(x.shape)}"
                )
        if not query.shape[0] == key.shape[0] == value.shape[0]:
            got = ", ".join(f"{name} B={x.shape[0]}" for name, x in named.items())
            raise ValueError(f"query, key and value must have the same batch size B, got {got}")
        if key.shape[1] != value.shape[1]:
            raise ValueError(
                f"key and value must have the same length S, "
                f"got key S={key.shape[1]}, value S={value.shape[1]}"
            )
        self._check_place(named)

    def _check_place(self, named: dict[str, Tensor]) -> None:
        """Refuse inputs of another dtype (outside autocast) or device than the weights."""
        weight = getattr(self.q_proj, "weight", None)
        if not isinstance(weight, Tensor) or not weight.is_floating_point():
            return  # replaced by a module of the user's own, which knows what it takes
        for name, x in named.items():
            # autocast makes one dtype of all floats but float64
            cast = _checks.is_autocast(weight.device.type)
            cast = cast and torch.float64 not in (x.dtype, weight.dtype)
            if x.dtype != weight.dtype and not cast:
                raise ValueError(
                    f"{name} must be {weight.dtype} like the module's weights, got {x.dtype}"
                )
            if x.device != weight.device:
                raise ValueError(
                    f"{name} must be on {weight.device} like the module's weights, got {x.device}"
                )

    def extra_repr(self) -> str:
        """What ``print(module)`` adds to the four layers."""
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, head_dim={self.head_dim}, "
            f"dropout={self.dropout}, is_causal={self.is_causal}, backend={self.backend!r}"
        )
