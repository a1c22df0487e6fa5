"""Positions: attention cannot tell in which order its keys stand, so numbers say it.

Added to the embedding (``sinusoidal``), as an angle of queries and keys (``Rotary``), or as a bias
of the scores (``ALiBi``). Axes: B batch, H heads, T queries, S keys, D width of one head.
"""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mha import _checks


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
    Errors: ValueError for a negative length, an odd or non-positive dim, a base not above 0
        and finite; TypeError for a dtype that is not floating.
    Source: Vaswani et al. 2017, section 3.5.

    Examples:
        >>> from mha.positions import sinusoidal
        >>> sinusoidal(3, 4)  # (length, dim): a quick pair, and one a hundred times slower
        tensor([[ 0.0000,  1.0000,  0.0000,  1.0000],
                [ 0.8415,  0.5403,  0.0100,  0.9999],
                [ 0.9093, -0.4161,  0.0200,  0.9998]])
    """
    if length < 0:
        raise ValueError(f"length must not be negative, got {length}")
    if dim <= 0 or dim % 2:
        raise ValueError(f"dim must be even and positive (sine and cosine in pairs), got {dim}")
    if not 0 < base < math.inf:
        raise ValueError(f"base must be above 0 and finite, got {base}")
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating type, got {dtype}")
    pair = torch.arange(0, dim, 2, dtype=torch.float64, device="cpu")  # (dim/2,)
    frequency = base ** (-pair / dim)  # (dim/2,)
    position = torch.arange(length, dtype=torch.float64, device="cpu")  # (length,)
    angle = torch.outer(position, frequency)  # (length, dim/2)
    encoding = torch.stack((angle.sin(), angle.cos()), dim=-1)  # (length, dim/2, 2)
    return encoding.flatten(-2).to(device=device, dtype=dtype)  # (length, dim)


@dataclass(frozen=True)
class Rotary:
    """Rotary positions: pairs of features turn by an angle that grows with the position.

    A query turned by its position and a key turned by its own have a dot product that depends on
    the distance between them alone. Values are left as they are. Pair i of n turns by
    ``base ** (-i / n)`` radians a position. There is nothing to learn and nothing is kept: the
    object may be shared between modules and devices.

    Args:
        dim: how many features turn, the first ones, even; the rest pass as they are. All by default.
        base: how much slower a pair after the last would turn than the first, above 0.
        interleaved: which features make pair i: ``(i, i + n)`` by default, the first half against
            the second (GPT-NeoX, and Llama in Transformers), or ``(2i, 2i + 1)`` if True (RoFormer,
            GPT-J, and Llama as Meta published it). Weights made for one are wrong for the other.
    Errors: ValueError for a dim that is odd or not positive, or a base not above 0 and finite;
        TypeError for another type.
    Source: Su et al. 2021, RoFormer, section 3.2 and equation 34.

    Examples:
        >>> import torch
        >>> from mha.positions import Rotary
        >>> rope = Rotary()
        >>> rope(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))  # one radian: its cosine, its sine
        tensor([[0.5403, 0.8415]])
        >>> query, key = torch.ones(3, 4), torch.ones(5, 4)  # (T, D), (S, D)
        >>> i, j = torch.arange(3), torch.arange(5)
        >>> scores = rope(query, i) @ rope(key, j).mT  # (T, S)
        >>> torch.allclose(scores, rope(query, i + 7) @ rope(key, j + 7).mT, atol=1e-5)
        True
    """

    dim: int | None = None
    _: KW_ONLY
    base: float = 10000.0
    interleaved: bool = False

    def __post_init__(self):
        if self.dim is not None:
            _check_int("dim", self.dim)
            if self.dim <= 0 or self.dim % 2:
                raise ValueError(f"dim must be even and positive (pairs), got {self.dim}")
        if isinstance(self.base, bool) or not isinstance(self.base, int | float):
            raise TypeError(f"base must be a number, got {self.base!r}")
        if not 0 < self.base < math.inf:
            raise ValueError(f"base must be above 0 and finite, got {self.base}")
        if not isinstance(self.interleaved, bool):
            raise TypeError(f"interleaved must be True or False, got {self.interleaved!r}")

    def __call__(
        self, x: Float[Tensor, "... T D"], positions: Int[Tensor, "... T"]
    ) -> Float[Tensor, "... T D"]:
        """Queries or keys, turned.

        Args:
            x: (B, H, T, D) or (..., T, D), floating.
            positions: integers, (T,) for all alike, or (B, T) with B the first axis of x (or 1).
                Any origin will do, negative numbers too, as long as queries and keys share it.
        Returns: like x, in shape and dtype. Angles are taken in float64 (float32 on a device that
            has no float64), sines and products in float32 or better, rounded to x's dtype once.
        Errors: ValueError if D is odd (without ``dim``) or below ``dim``, or if the shapes or the
            devices do not fit; TypeError if x is not floating or positions are not integers.

        Examples:
            >>> import torch
            >>> from mha.positions import Rotary
            >>> x = torch.ones(2, 2, 3, 4)  # (B, H, T, D)
            >>> turned = Rotary(dim=2)(x, torch.tensor([[0, 1, 2], [7, 8, 9]]))  # positions (B, T)
            >>> tuple(turned.shape), turned[..., 2:].equal(x[..., 2:])  # the rest passes as it is
            ((2, 2, 3, 4), True)
        """
        _check_rotatable(x, positions)
        cosine, sine = self._tables(x, positions)  # (T, n) or (B, 1, ..., T, n) each
        n = cosine.shape[-1]
        head, rest = x[..., : 2 * n], x[..., 2 * n :]  # (..., T, 2n), (..., T, D - 2n)
        if self.interleaved:
            a, b = head[..., 0::2], head[..., 1::2]  # (..., T, n) each
        else:
            a, b = head[..., :n], head[..., n:]  # (..., T, n) each
        turned = (a * cosine - b * sine, b * cosine + a * sine)  # half types are promoted
        if self.interleaved:
            head = torch.stack(turned, dim=-1).flatten(-2)  # (..., T, n, 2) -> (..., T, 2n)
        else:
            head = torch.cat(turned, dim=-1)  # (..., T, 2n)
        head = head.to(x.dtype)
        return torch.cat((head, rest), dim=-1) if rest.shape[-1] else head  # (..., T, D)

    def width(self, head_dim: int) -> int:
        """How many of a head's D features turn. ValueError if they cannot be paired.

        Examples:
            >>> from mha.positions import Rotary
            >>> Rotary().width(4), Rotary(dim=2).width(4)
            (4, 2)
        """
        if self.dim is None and head_dim % 2:
            raise ValueError(
                f"the head width D must be even for rotary positions (or give dim), got {head_dim}"
            )
        if self.dim is not None and self.dim > head_dim:
            raise ValueError(f"dim must be at most the head width D={head_dim}, got {self.dim}")
        return head_dim if self.dim is None else self.dim

    def _tables(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of every angle, (T, n) or (B, 1, ..., T, n) to fit x."""
        width = self.width(x.shape[-1])
        exact = torch.float32 if x.device.type == "mps" else torch.float64
        pair = torch.arange(0, width, 2, dtype=exact, device=x.device)  # (n,)
        angle = positions.to(exact)[..., None] * self.base ** (-pair / width)  # (..., T, n)
        if angle.ndim == 3:  # (B, T, n)
            ones = (1,) * (x.ndim - 3)
            angle = angle.reshape(angle.shape[0], *ones, *angle.shape[1:])  # (B, 1, ..., T, n)
        dtype = torch.promote_types(torch.float32, x.dtype)
        return angle.cos().to(dtype), angle.sin().to(dtype)


class ALiBi:
    """Attention with linear biases: a key loses ``slope`` points of score for each step away.

    Each head has its own slope, so some heads look near and some far. For H heads, a power of two,
    they are ``2 ** (-8 * h / H)`` with h = 1 ... H. Otherwise the slopes of the power of two below
    H come first, then every other slope, from the first, of the power above it. Without
    ``is_causal`` keys on both sides lose alike.

    Args:
        num_heads: H, the number of heads.
        slopes: (H,) finite numbers, to be used instead.
        device: where the slopes live, and the bias by default.
    Attributes:
        num_heads: H, as given.
        slopes: (H,) float32.
    Errors: ValueError if num_heads is below 1, or slopes are not H finite numbers (looked at on the
        CPU only, and not while compiling) or require grad; TypeError for other types.
    Source: Press et al. 2022, section 3, and the slopes of its published code.

    Examples:
        >>> import torch
        >>> import mha
        >>> alibi = mha.positions.ALiBi(4)
        >>> alibi.slopes.tolist()
        [0.25, 0.0625, 0.015625, 0.00390625]
        >>> query, key = torch.ones(2, 4, 3, 2), torch.ones(2, 4, 5, 2)  # B=2, H=4, T=3, S=5
        >>> tuple(mha.scaled_dot_product_attention(query, key, key, alibi).shape)
        (2, 4, 3, 2)
    """

    def __init__(
        self,
        num_heads: int,
        *,
        slopes: Float[Tensor, "H"] | Sequence[float] | None = None,
        device: torch.device | str | None = None,
    ):
        _check_int("num_heads", num_heads)
        if num_heads < 1:
            raise ValueError(f"num_heads must be at least 1, got {num_heads}")
        if isinstance(slopes, Tensor) and slopes.requires_grad:
            raise ValueError("slopes must be fixed numbers, got a tensor that requires grad")
        slopes = _press_slopes(num_heads) if slopes is None else slopes
        slopes = torch.as_tensor(slopes, dtype=torch.float32, device=device)
        if slopes.shape != (num_heads,):
            raise ValueError(
                f"slopes must be num_heads={num_heads} numbers, got shape {tuple(slopes.shape)}"
            )
        if _checks.may_read(slopes) and not slopes.isfinite().all():
            raise ValueError(f"slopes must be finite, got {slopes.tolist()}")
        self.num_heads = num_heads
        self.slopes = slopes

    def bias(
        self,
        T: int,
        S: int | None = None,
        *,
        q_offset: int | Int[Tensor, "*B"] = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Float[Tensor, "*B H T S"]:
        """What is added to the scores: ``-slope * |j - (i + q_offset)|``.

        Args:
            T: number of queries.
            S: number of keys, T by default.
            q_offset: position of the first query among the keys; a tensor (B,) for one each.
            device: of the result; by default that of a tensor q_offset, or of the slopes.
            dtype: of the result, float32 by default. Computed in float32 or better, rounded once.
        Returns: (H, T, S), or (B, H, T, S) for a tensor (B,). A chunk of queries from i on is
            ``bias(n, S, q_offset=i)``.
        Errors: ValueError for a negative size, or a q_offset elsewhere than ``device``; TypeError
            for sizes or offsets that are no integers, or a dtype that is not floating.

        Examples:
            >>> from mha.positions import ALiBi
            >>> ALiBi(2, slopes=[1.0, 0.5]).bias(2, 3, q_offset=1).tolist()  # (H, T, S)
            [[[-1.0, 0.0, -1.0], [-2.0, -1.0, 0.0]], [[-0.5, 0.0, -0.5], [-1.0, -0.5, 0.0]]]
        """
        S = T if S is None else S
        dtype = torch.float32 if dtype is None else dtype
        _check_bias(T, S, q_offset, device, dtype)
        if isinstance(q_offset, Tensor):
            device = q_offset.device
            q_offset = q_offset[..., None, None, None]  # (B, 1, 1, 1)
        device = self.slopes.device if device is None else device
        exact = torch.promote_types(torch.float32, dtype)
        query = torch.arange(T, device=device)[:, None] + q_offset  # (T, 1) or (B, 1, T, 1)
        key = torch.arange(S, dtype=exact, device=device)  # (S,)
        distance = 0.0 - (key - query.to(exact)).abs()  # (..., T, S), at most 0 and never -0.0
        slope = self.slopes.to(device=device, dtype=exact)[:, None, None]  # (H, 1, 1)
        return (slope * distance).to(dtype)  # (..., H, T, S)

    def __repr__(self) -> str:
        return f"ALiBi(num_heads={self.num_heads})"


def _press_slopes(num_heads: int) -> list[float]:
    """The slopes of Press et al.: a geometric sequence, and how it is filled up."""
    below = 2 ** (num_heads.bit_length() - 1)
    slopes = [2 ** (-8 * h / below) for h in range(1, below + 1)]
    between = [2 ** (-8 * h / (2 * below)) for h in range(1, 2 * below, 2)]
    return slopes + between[: num_heads - below]


def _check_int(name: str, number) -> None:
    """Refuse what is not an int (a bool is none)."""
    if not _checks.is_int(number):
        raise TypeError(f"{name} must be an int, got {number!r}")


def _check_integers(name: str, x) -> None:
    """Refuse what is not a tensor of integers."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor of integers, got {type(x).__name__}")
    if not _checks.holds_ints(x):
        raise TypeError(f"{name} must be integers, got {x.dtype}")


def _check_rotatable(x: Tensor, positions: Tensor) -> None:
    """Refuse features and positions that do not fit each other."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a floating-point tensor, got {got}")
    _check_integers("positions", positions)
    fits = x.ndim >= 2 and positions.ndim in (1, 2) and positions.shape[-1] == x.shape[-2]
    if fits and positions.ndim == 2:
        fits = x.ndim >= 3 and (positions.shape[0] == 1 or positions.shape[0] == x.shape[0])
    if not fits:
        raise ValueError(
            "positions must be (T,) or (B, T) for x (B, ..., T, D), got positions "
            f"{tuple(positions.shape)} for x {tuple(x.shape)}"
        )
    if positions.device != x.device:
        raise ValueError(f"positions must be on {x.device} like x, got {positions.device}")


def _check_bias(T, S, q_offset, device, dtype) -> None:
    """Refuse sizes, an offset or a dtype that no bias can have."""
    for name, size in (("T", T), ("S", S)):
        _check_int(name, size)
        if size < 0:
            raise ValueError(f"{name} must be 0 or more, got {size}")
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating type, got {dtype}")
    _checks.check_offset(q_offset)
    if not isinstance(q_offset, Tensor):
        return
    if device is not None and torch.empty(0, device=device).device != q_offset.device:
        raise ValueError(f"q_offset must be on {device}, got {q_offset.device}")
