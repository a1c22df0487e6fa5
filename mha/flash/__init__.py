"""FlashAttention in three steps: a row at a time, tile by tile, and as kernels for a GPU.

All three compute what ``mha.reference.attention`` defines, and never hold the T x S scores: a
running maximum and a running sum make the softmax exact however the keys are cut up. The modules
``rows``, ``tiles`` and ``kernels`` are there to be read; the forward and backward passes of the
last two take the masks of a call as ``Rules``.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

from mha._rules import Rules
from mha.flash.rows import attention_by_rows
from mha.positions import ALiBi

__all__ = ["Rules", "attention_by_kernel", "attention_by_rows", "attention_by_tiles"]


def attention_by_tiles(
    query: Float[Tensor, "*q T D"],
    key: Float[Tensor, "*k S D"],
    value: Float[Tensor, "*v S Dv"],
    *,
    attn_mask: Tensor | ALiBi | None = None,
    is_causal: bool = False,
    key_mask: Bool[Tensor, "*m S"] | None = None,
    window: tuple[int | None, int | None] | None = None,
    q_offset: int | Int[Tensor, "*b"] = 0,
    scale: float | None = None,
    softcap: float | None = None,
) -> Float[Tensor, "*out T Dv"]:
    """Attention in plain PyTorch, tile by tile, on any device; gradients by recomputation.

    Args:
        query: (..., H, T, D).
        key: (..., H_kv, S, D), H a multiple of H_kv.
        value: (..., H_kv, S, D_v).
        attn_mask, is_causal, key_mask, window, q_offset, scale, softcap: as of
            ``mha.scaled_dot_product_attention``. No gradient flows to attn_mask.
    Returns: (..., H, T, D_v).
    Errors: as of ``mha.scaled_dot_product_attention``.
    Source: Dao (2024), "FlashAttention-2", algorithms 1 and 2.

    Examples:
        >>> import torch
        >>> import mha
        >>> query = torch.randn(2, 4, 3, 4)  # (B, H, T, D)
        >>> key, value = torch.randn(2, 2, 5, 4), torch.randn(2, 2, 5, 6)  # (B, H_kv, S, D or D_v)
        >>> output = mha.flash.attention_by_tiles(query, key, value)
        >>> rows = mha.flash.attention_by_rows(*(x.numpy() for x in (query, key, value)))
        >>> tuple(output.shape), torch.allclose(output.double(), torch.from_numpy(rows), atol=1e-5)
        ((2, 4, 3, 6), True)
    """
    options = {"is_causal": is_causal, "key_mask": key_mask, "window": window}
    options |= {"q_offset": q_offset, "scale": scale, "softcap": softcap}
    return _attend(query, key, value, attn_mask, kernel=False, **options)


def attention_by_kernel(
    query: Float[Tensor, "*q T D"],
    key: Float[Tensor, "*k S D"],
    value: Float[Tensor, "*v S Dv"],
    *,
    attn_mask: Tensor | ALiBi | None = None,
    is_causal: bool = False,
    key_mask: Bool[Tensor, "*m S"] | None = None,
    window: tuple[int | None, int | None] | None = None,
    q_offset: int | Int[Tensor, "*b"] = 0,
    scale: float | None = None,
    softcap: float | None = None,
) -> Float[Tensor, "*out T Dv"]:
    """Attention by Triton's kernels, on CUDA; or on the CPU in Triton's interpreter, to read along.

    Args:
        query, key, value: as of ``attention_by_tiles``, with D and D_v at most 256, in float32 or a
            half type.
        attn_mask, is_causal, key_mask, window, q_offset, scale, softcap: as of
            ``mha.scaled_dot_product_attention``. No gradient flows to attn_mask.
    Returns: (..., H, T, D_v).
    Errors: as of ``mha.scaled_dot_product_attention``, and ImportError without triton; ValueError
        on the CPU unless the environment said TRITON_INTERPRET=1 before triton was first imported.
    Source: as of ``attention_by_tiles``.

    Examples:
        >>> import torch
        >>> import mha
        >>> device = "cuda" if torch.cuda.is_available() else "cpu"  # interpreted
        >>> query = torch.randn(2, 4, 3, 4, device=device)  # (B, H, T, D)
        >>> key = torch.randn(2, 2, 5, 4, device=device)  # (B, H_kv, S, D)
        >>> output = mha.flash.attention_by_kernel(query, key, key, is_causal=True)
        >>> tiles = mha.flash.attention_by_tiles(query, key, key, is_causal=True)
        >>> torch.allclose(output, tiles, atol=1e-3)
        True
    """
    options = {"is_causal": is_causal, "key_mask": key_mask, "window": window}
    options |= {"q_offset": q_offset, "scale": scale, "softcap": softcap}
    return _attend(query, key, value, attn_mask, kernel=True, **options)


def _attend(*operands, kernel: bool, **options) -> Tensor:
    from mha.attention import attend_by_flash  # which imports this package in turn

    return attend_by_flash(*operands, kernel=kernel, **options)
