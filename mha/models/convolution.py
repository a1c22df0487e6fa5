"""A small convolutional net, to compare the vision transformer with."""

from jaxtyping import Float
from torch import Tensor, nn


class ConvolutionalNet(nn.Module):
    """Tells what a picture shows: two convolutions, a pooling, a third one, mean, one linear map.

    Every kernel is 3 by 3 with a rim of zeros. A place of the last layer sees 10 by 10 pixels:
    all of a digit of 8 by 8. With the default width it has as many parameters as a
    `VisionTransformer` of the default sizes, 69,160 against 69,066.

    Args:
        channels: C of the picture.
        num_classes: number of answers, K.
        width: channels of the first two layers; the third has twice as many.
    Source: the plan of LeCun et al. 1998, in small and with the mean at the end.

    Examples:
        >>> import torch
        >>> from mha import models
        >>> model = models.ConvolutionalNet(width=4)
        >>> tuple(model(torch.randn(2, 1, 8, 8)).shape)
        (2, 10)
        >>> models.count_parameters(models.ConvolutionalNet())
        69160
    """

    def __init__(self, *, channels: int = 1, num_classes: int = 10, width: int = 50):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
        )
        self.to_logits = nn.Linear(2 * width, num_classes)

    def forward(self, images: Float[Tensor, "B C h w"]) -> Float[Tensor, "B K"]:
        """Logits (B, num_classes) of pictures with any sides of at least 2 pixels.

        Args:
            images: (B, C, h, w).
        """
        x = self.layers(images)  # (B, 2*width, h//2, w//2)
        return self.to_logits(x.mean((2, 3)))  # (B, num_classes)
