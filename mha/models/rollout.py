"""What attention weights of several layers say together, and what blanking says beside them."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mha.models.vision import patchify, unpatchify


def attention_rollout(
    weights: Sequence[Float[Tensor, "B H N N"]], *, residual: float = 0.5
) -> Float[Tensor, "B N N"]:
    """The layers' weights multiplied: what each place after the last layer holds of each input.

    Each layer counts as one mixing step r I + (1 - r) A, with A the mean over its heads and r the
    share of the residual stream. That is exact where a layer does nothing but mix, and a guess
    otherwise: values, feed-forward and norms are left out.

    Args:
        weights: for each layer, the first layer first, (B, H, N, N); rows add up to one. H may
            differ from layer to layer.
        residual: r, 0 to 1; 0 leaves the stream out.
    Returns: (B, N, N), row n the shares of place n; rows add up to one.
    Errors: ValueError without a layer, for a tensor of another shape, and r outside [0, 1].
    Source: Abnar and Zuidema 2020, section 3; there r = 0.5.

    Examples:
        >>> import torch
        >>> from mha import models
        >>> swap = torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]]])  # (1, 1, 2, 2): each sees the other
        >>> models.attention_rollout([swap, swap], residual=0.0).tolist()
        [[[1.0, 0.0], [0.0, 1.0]]]
        >>> models.attention_rollout([swap], residual=0.75).tolist()
        [[[0.75, 0.25], [0.25, 0.75]]]
    """
    if not len(weights):
        raise ValueError("weights must hold at least one layer, got none")
    if not 0 <= residual <= 1:
        raise ValueError(f"residual must be 0 to 1, got {residual}")
    for number, layer in enumerate(weights):
        _check_square(layer, f"weights[{number}]")
        if len(layer) != len(weights[0]) or layer.shape[-1] != weights[0].shape[-1]:
            raise ValueError(
                "weights must be of one batch and one length in all layers, got "
                f"{tuple(weights[0].shape)} and {tuple(layer.shape)}"
            )
    rolled = torch.eye(weights[0].shape[-1]).to(weights[0])  # (N, N)
    for layer in weights:
        rolled = residual * rolled + (1 - residual) * (layer.mean(1) @ rolled)  # (B, N, N)
    return rolled.expand(len(weights[0]), -1, -1)  # (B, N, N)


def patch_distances(
    count: int, *, columns: int | None = None, patch_size: float = 1.0
) -> Float[Tensor, "N N"]:
    """How far the centres of patches lie apart, in a straight line.

    Args:
        count: N, patches of a picture, row by row.
        columns: of the picture, in patches; by default the picture is square.
        patch_size: side of a patch; 1 gives the distance in patches, the side in pixels gives
            pixels.
    Returns: (N, N), symmetric, zeros on the diagonal; float64.
    Errors: ValueError for columns that do not divide N, and without columns for an N that is not
        a square.

    Examples:
        >>> from mha import models
        >>> models.patch_distances(3, columns=3).tolist()
        [[0.0, 1.0, 2.0], [1.0, 0.0, 1.0], [2.0, 1.0, 0.0]]
        >>> [round(d, 2) for d in models.patch_distances(4, patch_size=2)[0].tolist()]  # 2 by 2
        [0.0, 2.0, 2.0, 2.83]
    """
    if columns is None:
        columns = math.isqrt(count)
        if columns**2 != count:
            raise ValueError(f"columns must be given unless count is a square, got count {count}")
    if columns < 1 or count % columns:
        raise ValueError(f"columns must divide the number of patches, got {columns} for {count}")
    places = torch.arange(count)
    places = torch.stack((places // columns, places % columns), dim=-1).double()  # (N, 2)
    return patch_size * torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")


def attention_distance(
    weights: Float[Tensor, "B H N N"], *, columns: int | None = None, patch_size: float = 1.0
) -> Float[Tensor, " H"]:
    """How far away each head looks: distance to the patches, weighted by the attention to them.

    Args:
        weights: of one layer, (B, H, N, N); rows add up to one.
        columns, patch_size: as of `patch_distances`.
    Returns: (H,), the mean over pictures and over the patches that ask; in patches, or in the
        unit of patch_size.
    Errors: ValueError for another shape, and as of `patch_distances`.
    Source: Dosovitskiy et al. 2021, section 4.5 and figure 7.

    Examples:
        >>> import torch
        >>> from mha import models
        >>> self_only, everywhere = torch.eye(2), torch.full((2, 2), 0.5)
        >>> weights = torch.stack((self_only, everywhere))[None]  # (1, 2, 2, 2)
        >>> models.attention_distance(weights, columns=2, patch_size=4).tolist()  # pixels
        [0.0, 2.0]
    """
    _check_square(weights, "weights")
    count = weights.shape[-1]
    distances = patch_distances(count, columns=columns, patch_size=patch_size).to(weights)
    return (weights * distances).sum(-1).mean((0, 2))  # (B, H, N, N) -> (B, H, N) -> (H,)


@torch.no_grad()
def blank_effects(
    model: nn.Module, images: Float[Tensor, "B C h w"], labels: Int[Tensor, " B"], patch_size: int
) -> Float[Tensor, "B N"]:
    """How much each patch does for the right answer: by how much blanking it lowers the margin.

    The margin is the logit of the label minus the largest other one: above 0 where the model is
    right. The model runs as it is, so put it in eval mode before.

    Args:
        model: pictures (B, C, h, w) to logits (B, K).
        images: (B, C, h, w).
        labels: (B,), the right answers, 0 to K - 1.
        patch_size: side of the patches in pixels.
    Returns: (B, N), margin with all patches minus margin without patch n, whose pixels are 0.
        Negative where the model does better without. 0 for a patch that was blank.
    Errors: ValueError as of `patchify`.

    Examples:
        >>> import torch
        >>> from mha import models
        >>> image = torch.tensor([[[[3.0, 1.0], [0.0, 2.0]]]])  # (1, 1, 2, 2)
        >>> model = torch.nn.Flatten()  # its logits are the pixels: 3 beats 2 by 1
        >>> models.blank_effects(model, image, labels=torch.tensor([0]), patch_size=1).tolist()
        [[3.0, 0.0, 0.0, -1.0]]
    """
    whole = _margin(model(images), labels)  # (B,)
    patches = patchify(images, patch_size)  # (B, N, F)
    effects = []
    for n in range(patches.shape[1]):
        blanked = patches.clone()
        blanked[:, n] = 0
        left = unpatchify(blanked, patch_size, channels=images.shape[1], width=images.shape[3])
        effects.append(whole - _margin(model(left), labels))
    effects = torch.stack(effects, dim=1)  # (B, N)
    return effects.masked_fill((patches == 0).all(-1), 0.0)  # (B, N), free of rounding


def _margin(logits: Float[Tensor, "B K"], labels: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    right = logits.gather(1, labels[:, None])  # (B, 1)
    others = logits.scatter(1, labels[:, None], -torch.inf)  # (B, K)
    return right[:, 0] - others.amax(1)  # (B,)


def _check_square(weights: Tensor, name: str) -> None:
    if weights.ndim != 4 or weights.shape[-1] != weights.shape[-2]:
        raise ValueError(f"{name} must be (B, H, N, N), got {tuple(weights.shape)}")
