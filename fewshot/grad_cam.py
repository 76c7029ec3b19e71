"""Grad-CAM of a similarity: which places of the last feature map speak for an answer (Selvaraju et al. 2017).

The paper is arXiv 1610.02391; the hooks are MONAI's. It is changed in two ways, since what is asked is a comparison of
vectors and no logit.

Where a map is flattened into the vector, or comes as a transformer's tokens, it is weighed place by place instead of by
the mean gradient of each channel (HiResCAM, Draelos & Carin 2020, arXiv 2011.08891): there a channel may speak for a
class at one place and against it at another. Where the vector is the map's mean both are the same.

Where the source's mean is subtracted from vectors before they are compared, it is subtracted from the map too, so that
a place counts by how it differs from the source, as it does in the comparison.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from .last_blocks import copy_owning
from .prototypes import PrototypeClassifier

#: Tokens beside those of patches that a transformer may carry at the front: a class token and registers.
MOST_EXTRA_TOKENS = 8
#: A gradient this small beside the largest of the same layer is rounding.
NO_GRADIENT = 1e-12


class NoFeatureMap(ValueError):
    """The network has no feature map to look at; the message says what to use instead."""


class PrototypeScores(nn.Module):
    """The scores of a `PrototypeClassifier` as a module from images (n, C, H, W) to (n, n_classes)."""

    prototypes: Tensor
    center: Tensor

    def __init__(self, network: nn.Module, prototypes: PrototypeClassifier) -> None:
        super().__init__()
        self.network = network
        self.metric = prototypes._metric
        first = next(network.parameters(), None)
        device = torch.device("cpu") if first is None else first.device
        self.register_buffer("prototypes", torch.from_numpy(prototypes.prototypes_).float().to(device))
        self.register_buffer("center", torch.from_numpy(prototypes._center).float().to(device))
        self.map_shape = getattr(network, "map_shape", None)

    def forward(self, images: Tensor) -> Tensor:
        """The cosine to each prototype, or the negative squared distance."""
        vectors = self.network(images).float() - self.center
        if self.metric == "cosine":
            cosines: Tensor = functional.normalize(vectors, dim=1) @ self.prototypes.T
            return cosines
        distances: Tensor = ((vectors[:, None] - self.prototypes) ** 2).sum(dim=2)
        return -distances


@dataclass(frozen=True)
class MapLayer:
    """A layer whose output is a feature map.

    Attributes:
        name: Of the module, in `named_modules`.
        grid: (rows, columns) of the map.
        tokens: Whether the map comes as tokens (n, t, d), of which the last rows x columns are places.
        counts: Whether it changes what is asked; where no layer does, the map is flat.
    """

    name: str
    grid: tuple[int, int]
    tokens: bool
    counts: bool


class _Question(nn.Module):
    """One number per image, (n, 1): a class's score, or by how much it exceeds another's."""

    def __init__(self, scores: nn.Module, winner: int, against: int | None) -> None:
        super().__init__()
        self.scores, self.winner, self.against = scores, winner, against

    def forward(self, images: Tensor) -> Tensor:
        made: Tensor = self.scores(images)
        asked = made[:, self.winner] if self.against is None else made[:, self.winner] - made[:, self.against]
        return asked[:, None]


def grad_cam(scores: nn.Module, image: NDArray[np.float32], winner: int, against: int | None = None) -> Tensor:
    """The map of a class's score, or of its margin over another class, over the encoder's view.

    The last feature map with more than one pixel, and with a gradient, is weighed; what speaks against the answer is
    cut off at 0.

    A cosine does not change when a vector grows, so over the whole map what speaks for a class is balanced by what
    speaks against it: the map says where an image resembles the class more than it does elsewhere, not how much.

    Args:
        scores: From images (n, C, H, W) to (n, n_classes). Stays as it is.
        image: (C, H, W), as the encoder loads it.
        winner: The class asked about.
        against: The class whose score is subtracted, or None.

    Returns:
        float32 (H, W), not negative; 0 everywhere where the image does not change the score.

    Raises:
        NoFeatureMap: No layer's output is a map of places.
    """
    question = copy_owning(_Question(scores, winner, against), ())
    _out_of_place(question)
    first = next(question.parameters(), None)
    pixels = torch.from_numpy(image)[None].to("cpu" if first is None else first.device)
    layer = map_layer(question, pixels)
    by_place = layer.tokens or getattr(scores, "map_shape", None) is not None
    coarse = _weighed(question, layer, pixels, getattr(scores, "center", None), by_place=by_place)
    size = (int(pixels.shape[2]), int(pixels.shape[3]))
    return functional.interpolate(coarse, size=size, mode="bilinear", align_corners=False)[0, 0].cpu()


def map_layer(question: nn.Module, pixels: Tensor) -> MapLayer:
    """Find the last layer whose output is a map with more than one pixel and changes what is asked.

    A map is (n, c, h, w), or tokens (n, t, d) as many as the map before them had pixels, and a few more in front; of
    these only normalisations and whole blocks count, which hold all that a later layer sees.

    Args:
        question: From images to (n, 1), in evaluation mode, without layers that work in place.
        pixels: (1, C, H, W).

    Returns:
        The layer. Where nothing has a gradient it is the last one, and its map will be flat.

    Raises:
        NoFeatureMap: There is none.
    """
    calls: list[tuple[str, Tensor]] = []

    def note(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.is_floating_point() and output.requires_grad:
                calls.append((name, output))

        return hook

    kinds = dict(question.named_modules())
    handles = [module.register_forward_hook(note(name)) for name, module in kinds.items() if name]
    try:
        with torch.enable_grad():
            asked = question(pixels.clone().requires_grad_(True))
    finally:
        for handle in handles:
            handle.remove()
    names = [name for name, _ in calls]
    found: list[tuple[MapLayer, Tensor]] = []
    grid: tuple[int, int] | None = None
    for name, output in calls:
        if names.count(name) > 1:  # called twice: which of its outputs a hook keeps is nobody's guess
            continue
        if output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
            grid = (int(output.shape[2]), int(output.shape[3]))
            found.append((MapLayer(name, grid, tokens=False, counts=False), output))
        elif output.ndim == 3 and grid is not None and _holds_all(kinds[name]):
            extra = output.shape[1] - grid[0] * grid[1]
            if 0 <= extra <= MOST_EXTRA_TOKENS:
                found.append((MapLayer(name, grid, tokens=True, counts=False), output))
    if not found:
        raise NoFeatureMap(
            "Grad-CAM needs a layer whose output is a map (n, c, h, w) with more than one pixel, or one token per "
            "patch, and this network has none: use occlusion, which needs only scores."
        )
    if asked.requires_grad:
        outputs = [output for _, output in found]
        gradients = torch.autograd.grad(asked.sum(), outputs, allow_unused=True)
        for (layer, _), gradient in reversed(list(zip(found, gradients, strict=True))):
            if gradient is not None and float(_as_map(gradient, layer).abs().max()) > NO_GRADIENT:
                return replace(layer, counts=True)
    return found[-1][0]


def _weighed(question: nn.Module, layer: MapLayer, pixels: Tensor, center: Tensor | None, *, by_place: bool) -> Tensor:
    """The map (1, 1, rows, columns) on the layer's own grid, cut off at 0."""
    if not layer.counts:
        return pixels.new_zeros(1, 1, *layer.grid)
    from monai.visualize.class_activation_maps import GradCAM

    cam: Any = GradCAM(nn_module=question, target_layers=layer.name)
    _, activations, gradients = cam.nn_module(pixels.clone().requires_grad_(True), class_idx=0)
    features, gradient = _as_map(activations[0], layer), _as_map(gradients[0], layer)  # (1, c, rows, columns)
    weights = gradient if by_place else gradient.mean(dim=(2, 3), keepdim=True)
    product = weights * (features - _center_map(center, features))
    return functional.relu(product.sum(dim=1, keepdim=True)).detach()


def _center_map(center: Tensor | None, features: Tensor) -> Tensor:
    """The source's mean vector as a map: of a vector that is the flattened map, or the mean of it; else 0."""
    if center is None:
        return features.new_zeros(())
    if center.numel() == features.numel():
        return center.view(features.shape).to(features.dtype)
    if center.numel() == features.shape[1]:
        return center.view(1, -1, 1, 1).to(features.dtype)
    return features.new_zeros(())


def _as_map(values: Tensor, layer: MapLayer) -> Tensor:
    """(n, c, rows, columns) of a map, or of the tokens that are places."""
    if not layer.tokens:
        return values
    rows, columns = layer.grid
    places = values[:, -rows * columns :].transpose(1, 2)  # (n, c, rows * columns)
    return places.reshape(len(places), -1, rows, columns)


def _holds_all(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__ or next(module.children(), None) is not None


def _out_of_place(network: nn.Module) -> None:
    """A layer that overwrites its input would overwrite the map that is kept."""
    for module in network.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
