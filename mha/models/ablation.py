"""Switch one head off, to see what it was good for."""

from collections.abc import Iterator
from contextlib import contextmanager

from mha.multihead import MultiHeadAttention


@contextmanager
def without_head(attention: MultiHeadAttention, head: int) -> Iterator[None]:
    """Within the ``with`` block one head of ``attention`` contributes nothing.

    The head's D features are set to 0 on their way into ``out_proj``, which is the same as zeroing
    the columns of ``out_proj.weight`` that read them. No parameter is changed.

    Args:
        attention: the module, for instance ``translator.decoder[1].cross_attention``.
        head: 0 to num_heads - 1.
    Errors: ValueError for a head that the module does not have.
    Source: the ablation of Michel et al. 2019, section 3.
    """
    if not 0 <= head < attention.num_heads:
        raise ValueError(f"head must be 0 to {attention.num_heads - 1}, got {head}")
    width = attention.out_proj.in_features // attention.num_heads
    features = slice(head * width, (head + 1) * width)

    def silence(_, inputs):
        merged = inputs[0].clone()  # (B, T, H*D)
        merged[..., features] = 0
        return (merged,)

    handle = attention.out_proj.register_forward_pre_hook(silence)
    try:
        yield
    finally:
        handle.remove()
