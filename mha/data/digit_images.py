"""Handwritten digits: the 1,797 pictures of 8x8 pixels that scikit-learn carries."""

import hashlib
import random
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mha._extras import require
from mha.data.batching import Batches, shuffled

SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
"""Of the pictures, one byte a pixel, followed by the labels, one byte each."""


class Digits(NamedTuple):
    """Pictures with values in [0, 1] and their labels 0 to 9, to train on and to test on.

    Examples:
        >>> import mha
        >>> digits = mha.data.digits()
        >>> digits.train_images.shape, digits.test_images.shape  # (N, 1, 8, 8), (M, 1, 8, 8)
        (torch.Size([1438, 1, 8, 8]), torch.Size([359, 1, 8, 8]))
        >>> digits.train_images.dtype, digits.train_labels.dtype
        (torch.float32, torch.int64)
        >>> digits.train_images.min().item(), digits.train_images.max().item()
        (0.0, 1.0)
    """

    train_images: Float[Tensor, "N 1 8 8"]
    train_labels: Int[Tensor, " N"]
    test_images: Float[Tensor, "M 1 8 8"]
    test_labels: Int[Tensor, " M"]


def digits(*, test_fraction: float = 0.2, seed: int = 0) -> Digits:
    """The handwritten digits, split at random with the same share of each digit on both sides.

    Args:
        test_fraction: share of the pictures to test on, above 0 and below 1.
        seed: fixes split and order, on every platform.
    Returns: `Digits`, float32 pictures and int64 labels.
    Errors: ValueError for a test_fraction out of range; RuntimeError where scikit-learn's data
        are not those this was written for; ImportError without scikit-learn.
    Source: Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits, UCI.

    Examples:
        >>> import mha
        >>> digits = mha.data.digits(test_fraction=0.5)
        >>> len(digits.train_labels), len(digits.test_labels)
        (899, 898)
        >>> shares = digits.train_labels.bincount() - digits.test_labels.bincount()
        >>> shares.abs().max().item()  # no digit leans to a side by more
        1
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must be above 0 and below 1, got {test_fraction}")
    loaded = require("sklearn.datasets", "data").load_digits()
    raw = loaded.images.astype("uint8").tobytes() + loaded.target.astype("uint8").tobytes()
    if hashlib.sha256(raw).hexdigest() != SHA256:
        raise RuntimeError(f"scikit-learn's digits have a SHA-256 other than {SHA256}")
    images = torch.tensor(loaded.images, dtype=torch.float32)[:, None] / 16  # (N, 1, 8, 8)
    labels = torch.tensor(loaded.target, dtype=torch.int64)  # (N,)
    rng = random.Random(seed)
    train, test = [], []
    for digit in range(10):
        members = shuffled((labels == digit).nonzero().flatten().tolist(), rng)
        cut = round(test_fraction * len(members))
        test += members[:cut]
        train += members[cut:]
    train, test = shuffled(train, rng), shuffled(test, rng)
    return Digits(images[train], labels[train], images[test], labels[test])


def augment(
    images: Float[Tensor, "B C h w"],
    generator: torch.Generator | None = None,
    *,
    rotate: float = 0.25,
    scale: float = 0.1,
    shear: float = 0.15,
    shift: float = 0.0625,
) -> Float[Tensor, "B C h w"]:
    """Each picture turned, sized, slanted and moved a little, at random; zeros come in at the rim.

    Args:
        images: (B, C, h, w).
        generator: source of the random numbers, on the CPU; by default torch's own.
        rotate: largest angle, radians. This and the rest are limits: for each picture a number is
            drawn evenly from -limit to limit.
        scale: largest change of size, a fraction.
        shear: largest slant, columns a row.
        shift: largest move, a fraction of the side.
    Returns: (B, C, h, w), of the same dtype and device.
    Errors: ValueError for images that are not 4-D.

    Examples:
        >>> import torch
        >>> import mha
        >>> images = mha.data.digits().test_images[:1].repeat(2, 1, 1, 1)  # one picture, twice
        >>> moved = mha.data.augment(images, torch.Generator().manual_seed(0))
        >>> moved.shape, torch.equal(moved[0], moved[1])
        (torch.Size([2, 1, 8, 8]), False)
        >>> still = mha.data.augment(images, rotate=0, scale=0, shear=0, shift=0)
        >>> torch.allclose(still, images, atol=1e-5)
        True
    """
    if images.ndim != 4:
        raise ValueError(f"images must be (B, C, h, w), got {tuple(images.shape)}")
    limits = torch.tensor([rotate, scale, shear, 2 * shift, 2 * shift])  # the grid is 2 wide
    drawn = (torch.rand(len(images), 5, generator=generator) * 2 - 1) * limits  # (B, 5)
    angle, size, slant, right, down = drawn.unbind(-1)  # each (B,)
    cos, sin, size = angle.cos(), angle.sin(), 1 + size
    top = torch.stack((cos, cos * slant - sin, right), dim=-1)  # (B, 3)
    bottom = torch.stack((sin, sin * slant + cos, down), dim=-1)  # (B, 3)
    maps = torch.stack((top, bottom), dim=1)  # (B, 2, 3): where each pixel is read from
    maps[:, :, :2] *= size[:, None, None]
    grid = F.affine_grid(maps.to(images), list(images.shape), align_corners=False)  # (B, h, w, 2)
    return F.grid_sample(images, grid, align_corners=False)  # (B, C, h, w)


def image_batches(
    images: Float[Tensor, "N C h w"],
    labels: Int[Tensor, " N"],
    batch_size: int,
    *,
    augmented: bool = True,
    seed: int = 0,
) -> Batches:
    """Batches (images (B, C, h, w), labels (B,)), augmented anew each time; orders as in `Batches`.

    Args:
        images: (N, C, h, w).
        labels: (N,), integers.
        batch_size: B, pictures in a batch; the last batch of a pass may hold fewer.
        augmented: whether pictures go through `augment`, with its usual limits.
        seed: fixes orders and augmentation.
    Returns: `Batches`.
    Errors: ValueError where there are not as many labels as images, and for what `Batches` refuses.

    Examples:
        >>> import mha
        >>> digits = mha.data.digits()
        >>> batches = mha.data.image_batches(digits.train_images, digits.train_labels, batch_size=64)
        >>> len(batches)  # in one pass over 1438 pictures
        23
        >>> images, labels = next(iter(batches))
        >>> images.shape, labels.shape
        (torch.Size([64, 1, 8, 8]), torch.Size([64]))
    """
    if len(images) != len(labels):
        raise ValueError(f"images and labels must be as many, got {len(images)} and {len(labels)}")
    generator = torch.Generator().manual_seed(seed)

    def collate(indices: list[int]) -> tuple[Tensor, Tensor]:
        chosen = images[indices]  # (B, C, h, w)
        return augment(chosen, generator) if augmented else chosen, labels[indices]

    return Batches(range(len(images)), batch_size, collate=collate, seed=seed)
