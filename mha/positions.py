"""Positions: attention cannot tell in which order its keys stand, so numbers say it."""

import torch
from jaxtyping import Float
from torch import Tensor


def sinusoidal(
    length: int,
    dim: int,
    *,
    base: float = 10000.0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "length dim"]:
    """Sinusoidal position encodings: sine in the even features, cosine in the odd ones.

    Feature pair i turns by ``base ** (-2 * i / dim)`` radians a position: from one radian for the
    first pair to nearly ``1 / base`` for the last.

    Args:
        length: number of positions, counted from 0.
        dim: number of features, even.
        base: how much slower the last pair would turn than the first, above 0.
        device, dtype: of the result; by default torch's own. Computed in float64 on the CPU.
    Returns: (length, dim), values in [-1, 1], row p to be added to the embedding at position p.
    Errors: ValueError for a negative length, an odd or non-positive dim, a base not above 0;
        TypeError for a dtype that is not floating.
    Source: Vaswani et al. 2017, section 3.5.
    """
    if length < 0:
        raise ValueError(f"length must not be negative, got {length}")
    if dim <= 0 or dim % 2:
        raise ValueError(f"dim must be even and positive (sine and cosine in pairs), got {dim}")
    if not base > 0:
        raise ValueError(f"base must be above 0, got {base}")
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating type, got {dtype}")
    pair = torch.arange(0, dim, 2, dtype=torch.float64, device="cpu")  # (dim/2,)
    frequency = base ** (-pair / dim)  # (dim/2,)
    position = torch.arange(length, dtype=torch.float64, device="cpu")  # (length,)
    angle = torch.outer(position, frequency)  # (length, dim/2)
    encoding = torch.stack((angle.sin(), angle.cos()), dim=-1)  # (length, dim/2, 2)
    return encoding.flatten(-2).to(device=device, dtype=dtype)  # (length, dim)
