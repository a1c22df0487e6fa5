"""The vision transformer: a picture is a sequence of patches."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mha.models.blocks import EncoderBlock
from mha.positions import sinusoidal


def patchify(
    images: Float[Tensor, "B C h w"], patch_size: int
) -> Float[Tensor, "B N C*patch_size*patch_size"]:
    """Pictures cut into square patches, row by row, each patch one flat vector.

    Args:
        images: (B, C, h, w).
        patch_size: P in pixels, a divisor of h and w.
    Returns: (B, N, C*P*P) with N = (h/P) * (w/P); within a patch channels come first, then rows.
    Errors: ValueError for images that are not 4-D and for a side that P does not divide.
    Source: Dosovitskiy et al. 2021, section 3.1.

    Examples:
        >>> import torch
        >>> from mha import models
        >>> image = torch.arange(8).view(1, 1, 2, 4)  # rows 0 1 2 3 and 4 5 6 7
        >>> models.patchify(image, 2).tolist()
        [[[0, 1, 4, 5], [2, 3, 6, 7]]]
    """
    if images.ndim != 4:
        raise ValueError(f"images must be (B, C, h, w), got {tuple(images.shape)}")
    batch, channels, height, width = images.shape
    if patch_size < 1 or height % patch_size or width % patch_size:
        raise ValueError(
            f"patch_size must divide the sides of the images, got {patch_size} for {height}x{width}"
        )
    rows, columns = height // patch_size, width // patch_size
    x = images.reshape(batch, channels, rows, patch_size, columns, patch_size)  # (B, C, r, P, c, P)
    x = x.permute(0, 2, 4, 1, 3, 5)  # (B, r, c, C, P, P)
    return x.reshape(batch, rows * columns, channels * patch_size**2)  # (B, N, C*P*P)


def unpatchify(
    patches: Float[Tensor, "B N F"], patch_size: int, *, channels: int, width: int
) -> Float[Tensor, "B C h w"]:
    """The inverse of `patchify`.

    Args:
        patches: (B, N, C*P*P).
        patch_size: P, pixels.
        channels: C.
        width: w of the picture in pixels.
    Returns: (B, C, h, w).
    Errors: ValueError for sizes that do not fit together.

    Examples:
        >>> import torch
        >>> from mha import models
        >>> image = torch.randn(2, 3, 4, 6)
        >>> patches = models.patchify(image, 2)
        >>> tuple(patches.shape)
        (2, 6, 12)
        >>> torch.equal(models.unpatchify(patches, 2, channels=3, width=6), image)
        True
    """
    columns = width // patch_size
    fits = patches.ndim == 3 and patches.shape[2] == channels * patch_size**2
    if not fits or width % patch_size or patches.shape[1] % columns:
        raise ValueError(
            f"patches must be (B, N, {channels * patch_size**2}) with N a multiple of "
            f"width / patch_size = {width}/{patch_size}, got {tuple(patches.shape)}"
        )
    batch, count, _ = patches.shape
    rows = count // columns
    x = patches.reshape(batch, rows, columns, channels, patch_size, patch_size)
    x = x.permute(0, 3, 1, 4, 2, 5)  # (B, C, r, P, c, P)
    return x.reshape(batch, channels, rows * patch_size, width)  # (B, C, h, w)


def shuffle_patches(
    images: Float[Tensor, "B C h w"],
    patch_size: int,
    order: Int[Tensor, " N"] | Int[Tensor, "B N"],
) -> Float[Tensor, "B C h w"]:
    """Pictures whose patches stand elsewhere: at place n the patch that stood at ``order[n]``.

    Args:
        images: (B, C, h, w).
        patch_size: P in pixels.
        order: a permutation of the N patches for all pictures (N,), or one for each (B, N).
    Returns: (B, C, h, w).
    Errors: ValueError for another shape of order, and as of `patchify`.

    Examples:
        >>> import torch
        >>> from mha import models
        >>> image = torch.arange(8).view(1, 1, 2, 4)  # rows 0 1 2 3 and 4 5 6 7
        >>> models.shuffle_patches(image, 2, torch.tensor([1, 0])).tolist()
        [[[[2, 3, 0, 1], [6, 7, 4, 5]]]]
    """
    patches = patchify(images, patch_size)  # (B, N, F)
    batch, count, size = patches.shape
    if order.shape not in ((count,), (batch, count)):
        raise ValueError(f"order must be ({count},) or {batch, count}, got {tuple(order.shape)}")
    order = order.expand(batch, count)[..., None].expand(batch, count, size)  # (B, N, F)
    moved = patches.gather(1, order)  # (B, N, F)
    return unpatchify(moved, patch_size, channels=images.shape[1], width=images.shape[3])


class VisionTransformer(nn.Module):
    """Tells what a picture shows: patches, positions, encoder blocks, mean, one linear map.

    Args:
        image_size: side of the picture, pixels.
        patch_size: side of a patch, pixels; a divisor of image_size.
        channels: C of the picture.
        num_classes: number of answers, K.
        embed_dim: width E, even.
        num_heads: heads H, a divisor of E.
        num_layers: blocks.
        ff_dim: inner width of the feed-forward.
        dropout: probability.
        positions: "learned", a vector for each patch; "sinusoidal", fixed, along the sequence; or
            "none", which makes the order of the patches invisible.
    Errors: ValueError for another kind of positions, and a patch_size that does not divide.
    Source: Dosovitskiy et al. 2021; the mean in place of a class token: their appendix D.3.

    Examples:
        >>> import torch
        >>> from mha import models
        >>> sizes = {"embed_dim": 8, "num_heads": 2, "num_layers": 1, "ff_dim": 16}
        >>> model, images = models.VisionTransformer(**sizes), torch.randn(3, 1, 8, 8)
        >>> tuple(model(images).shape)  # (B, K)
        (3, 10)
        >>> blind, order = models.VisionTransformer(**sizes, positions="none"), torch.randperm(16)
        >>> shuffled = models.shuffle_patches(images, 2, order)
        >>> torch.allclose(blind(shuffled), blind(images), atol=1e-5)
        True
    """

    def __init__(
        self,
        *,
        image_size: int = 8,
        patch_size: int = 2,
        channels: int = 1,
        num_classes: int = 10,
        embed_dim: int = 64,
        num_heads: int = 4,
        num_layers: int = 2,
        ff_dim: int = 128,
        dropout: float = 0.0,
        positions: Literal["none", "learned", "sinusoidal"] = "learned",
    ):
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"patch_size must divide image_size {image_size}, got {patch_size}")
        if positions not in ("none", "learned", "sinusoidal"):
            raise ValueError(
                f"positions must be 'none', 'learned' or 'sinusoidal', got {positions!r}"
            )
        self.image_shape, self.patch_size = (channels, image_size, image_size), patch_size
        self.embed = nn.Linear(channels * patch_size**2, embed_dim)
        count = (image_size // patch_size) ** 2
        if positions == "learned":
            self.positions = nn.Parameter(0.2 * torch.randn(count, embed_dim))  # (N, E)
        elif positions == "sinusoidal":
            self.register_buffer("positions", sinusoidal(count, embed_dim))  # (N, E)
        else:
            self.positions = None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            EncoderBlock(embed_dim, num_heads, ff_dim, dropout=dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.to_logits = nn.Linear(embed_dim, num_classes)

    def forward(
        self, images: Float[Tensor, "B C h w"], *, return_weights: bool = False
    ) -> Float[Tensor, "B K"] | tuple[Float[Tensor, "B K"], tuple[Float[Tensor, "B H N N"], ...]]:
        """Logits (B, num_classes); with ``return_weights`` also each layer's (B, H, N, N).

        Args:
            images: (B, C, h, w), of the sizes the model was made for.
            return_weights: also give the weights.
        Errors: ValueError for another size.
        """
        if images.shape[1:] != self.image_shape:
            raise ValueError(f"images must be (B, *{self.image_shape}), got {tuple(images.shape)}")
        x = self.embed(patchify(images, self.patch_size))  # (B, N, E)
        x = self.dropout(x if self.positions is None else x + self.positions)
        all_weights = []
        for block in self.blocks:
            x = block(x, return_weights=return_weights)
            if return_weights:
                x, weights = x
                all_weights.append(weights)
        pooled = self.norm(x).mean(dim=1)  # (B, E)
        logits = self.to_logits(pooled)  # (B, num_classes)
        return (logits, tuple(all_weights)) if return_weights else logits
