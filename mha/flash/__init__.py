"""FlashAttention in three steps: a row at a time, tile by tile, and as kernels for a GPU.

All three compute what `mha.reference.attention` defines, and never hold the T x S scores: a running
maximum and a running sum make the softmax exact however the keys are cut up. The modules `rows`,
`tiles` and `kernels` are there to be read; the forward and backward passes of the last two take the
masks of a call as `Rules`.
"""

from mha._rules import Rules
from mha.flash.rows import attention_by_rows

__all__ = ["Rules", "attention_by_kernel", "attention_by_rows", "attention_by_tiles"]


def attention_by_tiles(query, key, value, **options):
    """Attention in plain PyTorch, tile by tile, on any device; gradients by recomputation.

    Args: query (..., H, T, D); key (..., H_kv, S, D); value (..., H_kv, S, D_v); options attn_mask,
        is_causal, scale, softcap, key_mask, window, q_offset as of
        ``mha.scaled_dot_product_attention``. H is a multiple of H_kv. No gradient to attn_mask.
    Returns: (..., H, T, D_v).
    Errors: as of ``mha.scaled_dot_product_attention``.
    Source: Dao (2024), "FlashAttention-2", algorithms 1 and 2.
    """
    return _attend(query, key, value, options, kernel=False)


def attention_by_kernel(query, key, value, **options):
    """Attention by Triton's kernels, on CUDA; or on the CPU in Triton's interpreter, to read along.

    Args, returns, source: as of `attention_by_tiles`; D and D_v at most 256, float32 or half types.
    Errors: likewise, and ImportError without triton; ValueError on the CPU unless the environment
        said TRITON_INTERPRET=1 before triton was first imported.
    """
    return _attend(query, key, value, options, kernel=True)


def _attend(query, key, value, options, *, kernel):
    from mha.attention import attend_by_flash  # which imports this package in turn

    return attend_by_flash(query, key, value, kernel=kernel, **options)
