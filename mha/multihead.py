"""MultiHeadAttention, the top rung: the module to use.

Axes: B batch, H heads, H_kv key heads, T queries, S keys, D width of one head, E of the model.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mha import _checks, _fused
from mha.attention import attend
from mha.cache import KVCache
from mha.heads import default_head_dim, default_inputs, merge_heads, split_heads
from mha.positions import ALiBi, Rotary


class RMSNorm(nn.RMSNorm):
    """torch's, given its input in the dtype of its weight: under autocast the two may differ.

    Examples:
        >>> import torch
        >>> from mha.multihead import RMSNorm
        >>> norm = RMSNorm(4)  # float32 weights
        >>> norm(torch.ones(2, 3, 4, dtype=torch.bfloat16)).dtype
        torch.bfloat16
    """

    def forward(self, x: Tensor) -> Tensor:
        """x / rms(x) * weight, over the last axis.

        Args:
            x: (..., D), floating.
        Returns: like x, in shape and dtype.
        """
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


NORMS = {"rms": RMSNorm, "layer": nn.LayerNorm}


class MultiHeadAttention(nn.Module):
    """Multi-head attention for self- and cross-attention, batch first.

    Four linear layers, ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj``, are always called as
    modules, so that hooks, pruning and low-rank adapters work on them. Nothing but parameters is
    kept on the module.

    Args:
        embed_dim: E, width of the queries and of the output.
        num_heads: H, the number of heads.
        num_kv_heads: H_kv, a divisor of H, which is the default; each key head serves H / H_kv
            query heads (1: multi-query attention).
        head_dim: D, embed_dim // num_heads by default; H*D need not be E.
        kdim, vdim: widths of ``key`` and ``value``, embed_dim by default.
        bias: whether q_proj, k_proj and v_proj add a bias.
        out_bias: whether out_proj does; as ``bias`` by default.
        dropout: probability of dropping a weight while training, in [0, 1].
        is_causal: default of ``forward``'s ``is_causal``.
        rope: a ``mha.positions.Rotary`` that turns queries and keys by their positions.
        qk_norm: "rms" or "layer": normalise the D features of each head's query and key, before
            ``rope``, by ``q_norm`` and ``k_norm``, which all heads share.
        softcap, window, scale, backend: as in ``mha.scaled_dot_product_attention``.
        device, dtype: of the parameters.
    Errors: TypeError or ValueError naming the argument, what came and what was expected.
    Source: Vaswani et al. (2017), section 3.2.2; grouped heads: Ainslie et al. (2023); qk_norm:
        Henry et al. (2020). Weights start as Xavier uniform, biases at 0.

    Examples:
        >>> import torch
        >>> import mha
        >>> attention = mha.MultiHeadAttention(8, 4, num_kv_heads=2, head_dim=3, kdim=6, vdim=6)
        >>> query, memory = torch.randn(2, 3, 8), torch.randn(2, 5, 6)  # (B, T, E), (B, S, kdim)
        >>> output, weights = attention(query, memory, return_weights=True)
        >>> tuple(output.shape), tuple(weights.shape)  # (B, T, E), (B, H, T, S)
        ((2, 3, 8), (2, 4, 3, 5))
        >>> tuple(attention.q_proj.weight.shape), tuple(attention.k_proj.weight.shape)
        ((12, 8), (6, 6))
        >>> attention.reset_parameters()  # as new: other random weights, no bias
        >>> bool(attention.q_proj.bias.any())
        False
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        kdim: int | None = None,
        vdim: int | None = None,
        bias: bool = True,
        out_bias: bool | None = None,
        dropout: float = 0.0,
        is_causal: bool = False,
        rope: Rotary | None = None,
        qk_norm: str | None = None,
        softcap: float | None = None,
        window: tuple[int | None, int | None] | None = None,
        scale: float | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        head_dim = default_head_dim(embed_dim, num_heads, head_dim)
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        _check_key_heads(num_heads, num_kv_heads)
        _check_norm_and_rope(qk_norm, rope, head_dim)
        _checks.check_dropout("dropout", dropout)
        _checks.check_scale(scale)
        _checks.check_softcap(softcap)
        _checks.check_window(window)
        _checks.check_backend(backend)
        _checks.check_flag("is_causal", is_causal)
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating-point dtype, got {dtype}")
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, head_dim
        self.num_kv_heads = num_kv_heads
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        _checks.check_size("kdim", self.kdim)
        _checks.check_size("vdim", self.vdim)
        self.dropout, self.is_causal, self.rope = dropout, is_causal, rope
        self.softcap, self.window = softcap, None if window is None else tuple(window)
        self.scale, self.backend = scale, backend
        made = {"device": device, "dtype": dtype}
        width, key_width = num_heads * head_dim, num_kv_heads * head_dim
        self.q_proj = nn.Linear(embed_dim, width, bias=bias, **made)
        self.k_proj = nn.Linear(self.kdim, key_width, bias=bias, **made)
        self.v_proj = nn.Linear(self.vdim, key_width, bias=bias, **made)
        out_bias = bias if out_bias is None else out_bias
        self.out_proj = nn.Linear(width, embed_dim, bias=out_bias, **made)
        self._packed = False  # whether fuse_qkv_ was called
        self.q_norm = self.k_norm = None
        if qk_norm is not None:
            self.q_norm, self.k_norm = (NORMS[qk_norm](head_dim, **made) for _ in range(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights Xavier uniform (Glorot and Bengio 2010), biases 0, norms 1."""
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            nn.init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        for norm in (self.q_norm, self.k_norm):
            if norm is not None:
                norm.reset_parameters()

    def forward(
        self,
        query: Float[Tensor, "B T E"],
        key: Float[Tensor, "B S Ek"] | None = None,
        value: Float[Tensor, "B S Ev"] | None = None,
        *,
        attn_mask: Tensor | ALiBi | None = None,
        key_mask: Bool[Tensor, "B S"] | None = None,
        is_causal: bool | None = None,
        positions: Int[Tensor, "*B T"] | None = None,
        cache: KVCache | None = None,
        return_weights: bool = False,
    ) -> Float[Tensor, "B T E"] | tuple[Float[Tensor, "B T E"], Float[Tensor, "B H T S"]]:
        """Project, split into heads, attend, join the heads, apply W_O.

        Args:
            query: (B, T, E).
            key: (B, S, kdim); ``query`` by default (self-attention).
            value: (B, S, vdim); ``key`` by default.
            attn_mask: broadcasts to (B, H, T, S); bool (True = may attend) or float (added), or a
                ``mha.positions.ALiBi``. A mask (B, T, S) needs a head axis, ``attn_mask[:, None]``:
                where B equals H it would be read as (H, T, S).
            key_mask: bool (B, S), True = a real key. What stands at an excluded key, NaN too,
                reaches neither output nor gradient. In self-attention it is a query as well, and
                answers like any other; where it is not finite it counts as 0.
            is_causal: query i sees key j only if j <= i; the module's own setting by default.
            positions: integers (T,) or (B, T), where the queries stand, for ``rope``; by default
                0 ... T-1, or what follows in the cache. In self-attention the keys stand there
                too, in cross-attention at 0 ... S-1.
            cache: a ``KVCache``, under ``torch.no_grad()``. The new keys and values are appended,
                and the queries see all that it holds: S counts that, and causality and windows are
                aligned by it. ``key_mask`` is (B, T), of the new tokens. A static cache takes the
                memory at the first call, with its ``key_mask``; from then on it stands for ``key``,
                ``value`` and ``key_mask``, which may be left out.
            return_weights: also return the weights, before dropout.
        Returns: output (B, T, E), and weights (B, H, T, S) if asked for. A query that may see
            nothing gives ``out_proj.bias`` and zero weights.
        Errors: TypeError or ValueError naming the argument, what came and what was expected.

        Examples:
            >>> import torch
            >>> import mha
            >>> attention = mha.MultiHeadAttention(8, 2)
            >>> query, memory = torch.randn(2, 3, 8), torch.randn(2, 5, 8)  # (B, T, E), (B, S, E)
            >>> key_mask = mha.masks.padding([5, 4])  # (B, S): one key is padding
            >>> memory[1, 4] = torch.nan
            >>> output, weights = attention(query, memory, key_mask=key_mask, return_weights=True)
            >>> bool(output.isfinite().all()), weights[1, :, :, 4].abs().sum().item()
            (True, 0.0)
        """
        is_causal = self.is_causal if is_causal is None else is_causal
        self._check_options(query, is_causal, positions, cache)
        operands = self._operands(query, key, value, key_mask, positions, cache)
        q, k, v, key_mask, q_offset = operands  # (B, H, T, D), twice (B, H_kv, S, D), (B, S)
        joined = attend(
            *(q, k, v, attn_mask),
            self.dropout if self.training else 0.0,
            is_causal,
            scale=self.scale,
            enable_gqa=self.num_kv_heads != self.num_heads,
            softcap=self.softcap,
            key_mask=key_mask,
            window=self.window,
            q_offset=q_offset,
            return_weights=return_weights,
            backend=self.backend,
        )
        joined, weights = joined if return_weights else (joined, None)
        output = self.out_proj(merge_heads(joined))  # (B, H, T, D) -> (B, T, H*D) -> (B, T, E)
        return (output, weights) if return_weights else output

    def fuse_qkv_(self) -> "MultiHeadAttention":
        """Compute queries, keys and values of self-attention by one product from now on, in place.

        The parameters keep their names, shapes and values; only their place in memory changes. A
        later hook on a map, compilation, autocast, a copy or a move to another device or dtype
        brings the three products back by itself. No second derivative flows through the one product.

        Returns: the module.
        Errors: ValueError if the maps cannot be fused (hooks are set, widths differ, one was
            replaced), saying why.

        Examples:
            >>> import torch
            >>> import mha
            >>> attention, x = mha.MultiHeadAttention(8, 2), torch.randn(2, 3, 8)
            >>> before = attention(x)
            >>> torch.allclose(attention.fuse_qkv_()(x), before, atol=1e-5)
            True
        """
        why_not = _fused.obstacle(self)
        if why_not is not None:
            raise ValueError(f"q_proj, k_proj and v_proj cannot be fused: {why_not}")
        _fused.pack(self)
        self._packed = True
        return self

    def _operands(self, query, key, value, key_mask, positions, cache) -> tuple:
        """Queries (B, H, T, D), keys and values (B, H_kv, S, D), their key mask, and q_offset."""
        if cache is not None and cache.static and cache.filled:  # a memory that is known already
            self._check_inputs(query)
            q = self._heads(self.q_proj(query), self.q_norm, self._places(positions, query))
            return q, *cache.read()
        self_attention = key is None or key is query
        key, value = default_inputs(query, key, value)
        self._check_inputs(query, key, value)
        query, key, value = _zero_padding(query, key, value, key_mask)
        q, k, v = self._project(query, key, value)  # (B, T, H*D), twice (B, S, H_kv*D)
        places = self._places(positions, query, cache if self_attention else None)
        q = self._heads(q, self.q_norm, places)  # (B, H, T, D)
        places = places if self_attention else self._places(None, key, cache)
        k = self._heads(k, self.k_norm, places)  # (B, H_kv, S, D)
        v = split_heads(v, self.num_kv_heads)  # (B, H_kv, S, D)
        return (q, k, v, key_mask, 0) if cache is None else (q, *cache.append(k, v, key_mask))

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Queries (B, T, H*D), keys and values (B, S, H_kv*D)."""
        if self._packed and query is key is value:
            fused = _fused.project(self, query)
            if fused is not None:
                return fused
        return self.q_proj(query), self.k_proj(key), self.v_proj(value)

    def _heads(self, x: Tensor, norm: nn.Module | None, places: Tensor | None) -> Tensor:
        """Split, normalise, turn: (B, T, heads*D) -> (B, heads, T, D)."""
        x = split_heads(x, x.shape[-1] // self.head_dim)
        x = x if norm is None else norm(x)
        return x if self.rope is None else self.rope(x, places)

    def _places(
        self, given: Tensor | None, x: Tensor, cache: KVCache | None = None
    ) -> Tensor | None:
        """Where the tokens of ``x`` stand, (T,) or (B, T), if anybody wants to know."""
        if self.rope is None or given is not None:
            return given
        first = 0 if cache is None else cache.position
        first = first[:, None] if isinstance(first, Tensor) else first  # (B, 1)
        return torch.arange(x.shape[1], device=x.device) + first

    def _check_options(self, query: Tensor, is_causal, positions: Tensor | None, cache) -> None:
        """Refuse positions that nobody would use, and a cache that is none or of another batch."""
        _checks.check_flag("is_causal", is_causal)
        if positions is not None and self.rope is None:
            raise ValueError("positions are for rope, and this module has none")
        if cache is None:
            return
        if not isinstance(cache, KVCache):
            raise TypeError(f"cache must be a mha.KVCache, got {type(cache).__name__}")
        if isinstance(query, Tensor) and query.ndim == 3 and query.shape[0] != cache.batch_size:
            raise ValueError(
                f"cache must have the batch size of query, B={query.shape[0]}, "
                f"got {cache.batch_size}"
            )

    def _check_inputs(
        self, query: Tensor, key: Tensor | None = None, value: Tensor | None = None
    ) -> None:
        """Refuse inputs that do not fit the module or one another."""
        named = {"query": query}
        alike = query is key is value and self.embed_dim == self.kdim == self.vdim
        if key is not None and not alike:
            named |= {"key": key, "value": value}
        widths = {"query": "embed_dim", "key": "kdim", "value": "vdim"}
        for name, x in named.items():
            _checks.check_floating(name, x)
            width = getattr(self, widths[name])
            if x.ndim != 3 or x.shape[-1] != width:
                letter = "T" if name == "query" else "S"
                raise ValueError(
                    f"{name} must have shape (B, {letter}, {widths[name]}={width}), "
                    f"got {tuple(x.shape)}"
                )
        if any(x.shape[0] != query.shape[0] for x in named.values()):
            got = ", ".join(f"{name} B={x.shape[0]}" for name, x in named.items())
            raise ValueError(f"query, key and value must have the same batch size B, got {got}")
        if "key" in named and named["key"].shape[1] != named["value"].shape[1]:
            raise ValueError(
                f"key and value must have the same length S, "
                f"got key S={named['key'].shape[1]}, value S={named['value'].shape[1]}"
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
        """What ``print(module)`` adds to the layers: sizes, and options that were given."""
        options = {
            "num_kv_heads": None if self.num_kv_heads == self.num_heads else self.num_kv_heads,
            "rope": self.rope,
            "softcap": self.softcap,
            "window": self.window,
            "scale": self.scale,
        }
        given = "".join(f", {name}={x!r}" for name, x in options.items() if x is not None)
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, head_dim={self.head_dim}, "
            f"dropout={self.dropout}, is_causal={self.is_causal}, backend={self.backend!r}{given}"
        )


def _zero_padding(
    query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Zeros at excluded keys, before the maps, whose weight gradients see the inputs too."""
    if key_mask is None:
        return query, key, value
    _checks.check_key_mask(key_mask, query, tuple(key.shape[:2]))
    padding = ~key_mask[..., None]  # (B, S, 1)
    zeroed = key.masked_fill(padding, 0.0)
    value = zeroed if value is key else value.masked_fill(padding, 0.0)
    if key is query:  # self-attention: NaN at a padded key is NaN at its query too
        query = query.masked_fill(padding & ~query.isfinite(), 0.0)
    return query, zeroed, value


def _check_key_heads(num_heads: int, num_kv_heads: int) -> None:
    _checks.check_size("num_kv_heads", num_kv_heads)
    if num_heads % num_kv_heads:
        raise ValueError(
            f"num_kv_heads must divide num_heads, got num_heads={num_heads} and "
            f"num_kv_heads={num_kv_heads}"
        )


def _check_norm_and_rope(qk_norm: str | None, rope: Rotary | None, head_dim: int) -> None:
    if qk_norm is not None and qk_norm not in NORMS:
        raise ValueError(f"qk_norm must be None or one of {', '.join(NORMS)}, got {qk_norm!r}")
    if rope is None:
        return
    if not isinstance(rope, Rotary):
        raise TypeError(f"rope must be a mha.positions.Rotary, got {type(rope).__name__}")
    rope.width(head_dim)  # refuses a head that it cannot turn
