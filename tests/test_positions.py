"""mha.positions: numbers worked out by hand, the properties the paper names, and the refusals."""

import math

import pytest
import torch

from mha.positions import sinusoidal


def test_hand_computed_numbers():
    # dim 4, base 100: the pairs turn by 1 and by 1/10 radian a position.
    expected = [
        [0.0, 1.0, 0.0, 1.0],
        [0.8414709848, 0.5403023059, 0.0998334166, 0.9950041653],
        [0.9092974268, -0.4161468365, 0.1986693308, 0.9800665778],
    ]
    got = sinusoidal(3, 4, base=100.0, dtype=torch.float64)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)


def test_default_base_is_the_papers():
    got = sinusoidal(8, 6, dtype=torch.float64)
    assert got[7, 4].item() == pytest.approx(math.sin(7 / 10000 ** (4 / 6)), abs=1e-12)
    assert got[7, 5].item() == pytest.approx(math.cos(7 / 10000 ** (4 / 6)), abs=1e-12)


def test_a_shift_is_the_same_rotation_everywhere():
    encoding = sinusoidal(50, 8, dtype=torch.float64)
    dots = encoding @ encoding.T  # (50, 50): depends on the distance only
    torch.testing.assert_close(dots[:40, :40], dots[10:, 10:])
    torch.testing.assert_close(dots.diagonal(), torch.full((50,), 4.0, dtype=torch.float64))


def test_far_positions_are_rounded_once():
    exact = sinusoidal(100_000, 2, dtype=torch.float64)
    assert exact[99_999, 0].item() == pytest.approx(math.sin(99_999), abs=1e-9)
    assert (sinusoidal(100_000, 2).double() - exact).abs().max() < 1e-7
    half = sinusoidal(100_000, 2, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and (half.double() - exact).abs().max() < 4e-3


def test_no_positions():
    assert sinusoidal(0, 4).shape == (0, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"length": 3, "dim": 5}, ValueError, "dim must be even.*got 5"),
        ({"length": 3, "dim": 0}, ValueError, "dim must be even.*got 0"),
        ({"length": -1, "dim": 4}, ValueError, "length must not be negative, got -1"),
        ({"length": 3, "dim": 4, "base": 0.0}, ValueError, "base must be above 0, got 0.0"),
        (
            {"length": 3, "dim": 4, "dtype": torch.int64},
            TypeError,
            "floating type, got torch.int64",
        ),
    ],
)
def test_refusals(arguments, error, message):
    with pytest.raises(error, match=message):
        sinusoidal(**arguments)
