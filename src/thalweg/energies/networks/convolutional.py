"""A smooth network of images for energies whose gradient is what is learned."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from thalweg.energies.networks.residual import Centre

_HALVINGS = 2


def smooth_network(
    image_shape: Sequence[int], n_outputs: int, width: int = 16, hidden: int = 512
) -> nn.Sequential:
    """Three convolutions with SiLU, the last two of which halve the image, and two dense layers.

    The first looks at every place, so that the gradient knows edges; its channels are few, since it takes most of
    the time. There is no normalisation, and every derivative exists.

    Args:
        image_shape: (C, H, W) of images in [0, 1].
        n_outputs: 1, or the number of labels.
        width: channels of the first convolution; each of the others doubles them.
        hidden: width of the dense layer.

    Raises:
        ValueError: if a side of the images is less than 4 pixels.
    """
    channels, height, across = image_shape
    if min(height, across) < 2**_HALVINGS:
        raise ValueError(f"images of {height} x {across} are too small for convolutions that halve them twice")
    places = math.prod(side // 2**_HALVINGS for side in (height, across))
    return nn.Sequential(
        Centre(),
        nn.Conv2d(channels, width, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(4 * width * places, hidden),
        nn.SiLU(),
        nn.Linear(hidden, n_outputs),
    )
