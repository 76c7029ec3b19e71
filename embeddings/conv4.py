"""Conv-4, the small network of the few-shot literature (Vinyals et al. 2016, arXiv 1606.04080)."""

from __future__ import annotations

from torch import nn

from .backbone import MAX_DEPTH, MAX_WIDTH, Backbone, Pooling, check_whole, pooled_backbone


def conv4(
    *,
    in_channels: int = 1,
    width: int = 64,
    depth: int = 4,
    pooling: Pooling = "mean",
    image_size: int | None = None,
    stem_width: int | None = None,
    pools: int | None = None,
) -> Backbone:
    """Build `depth` blocks of 3 x 3 convolution, batch normalisation, ReLU and 2 x 2 max pooling (arXiv 1606.04080).

    Args:
        in_channels: Channels of the image.
        width: Channels of every block.
        depth: Number of blocks.
        pooling: "mean" or "max" over what is left of the image, or "flatten" to keep it (as in arXiv 1703.05175).
        image_size: Side of the square images in pixels; needed by "flatten", whose `dim` depends on it.
        stem_width: Channels of the first block, `width` by default. That block alone sees the full resolution and takes
            most of the time; with half its channels a training step takes less than half.
        pools: How many blocks, from the first, halve height and width; all of them by default. Relation networks
            (arXiv 1711.06025) keep a larger map with 2.

    Returns:
        A network with dim = width, or width x (image_size >> pools)^2 for "flatten".

    Raises:
        EncoderError: A value out of range.
    """
    check_whole("width", width, 1, MAX_WIDTH)
    check_whole("depth", depth, 1, MAX_DEPTH)
    if stem_width is not None:
        check_whole("stem_width", stem_width, 1, MAX_WIDTH)
    if pools is not None:
        check_whole("pools", pools, 0, depth)
    halvings = depth if pools is None else pools
    widths = [width if stem_width is None or block else stem_width for block in range(depth)]
    layers: list[nn.Module] = []
    for block, (before, after) in enumerate(zip([in_channels, *widths], widths, strict=False)):
        layers += [nn.Conv2d(before, after, kernel_size=3, padding=1), nn.BatchNorm2d(after)]
        if block < halvings:
            layers.append(nn.MaxPool2d(2))
        layers.append(nn.ReLU(inplace=True))  # after the pooling, which it commutes with, it has a quarter of the work
    return pooled_backbone(
        layers, widths[-1], halvings, pooling=pooling, image_size=image_size, in_channels=in_channels
    )
