"""A small Vision Transformer for grey images (arXiv 2010.11929): transformers' ViTModel with fresh weights."""

from __future__ import annotations

from typing import Any, Literal

from .backbone import MAX_IMAGE_SIZE, MAX_WIDTH, Backbone, check_share, check_whole
from .errors import EncoderError
from .quiet import quiet

# Bounds on what a configuration may ask for: layers, patches along one side, and pixels along a patch.
MAX_LAYERS = 64
MAX_PATCHES = 128
MAX_PATCH_SIZE = 128


def vit(
    *,
    in_channels: int = 1,
    image_size: int = 64,
    patch_size: int = 8,
    dim: int = 192,
    depth: int = 6,
    heads: int = 3,
    dropout: float = 0.0,
    pooling: Literal["mean", "cls"] = "mean",
) -> Backbone:
    """Build a Vision Transformer whose vector is the mean over the patch tokens, or the class token.

    Args:
        in_channels: Channels of the image.
        image_size: Side in pixels of the square images that the learnt position embeddings belong to. For images of
            another size they are interpolated.
        patch_size: Side of a patch in pixels; it divides image_size.
        dim: Length of a token and of the vector; heads divide it.
        depth: Number of layers.
        heads: Attention heads of each layer.
        dropout: Share of the activations and of the attention that is dropped while training.
        pooling: "mean" over the patch tokens (the class token left out), or "cls".

    Returns:
        A network with dim = `dim`.

    Raises:
        EncoderError: A value out of range.
    """
    check_whole("patch_size", patch_size, 1, MAX_PATCH_SIZE)
    check_whole("image_size", image_size, patch_size, min(MAX_IMAGE_SIZE, MAX_PATCHES * patch_size))
    check_whole("dim", dim, 1, MAX_WIDTH)
    check_whole("depth", depth, 1, MAX_LAYERS)
    check_whole("heads", heads, 1, dim)
    check_share("dropout", dropout)
    if image_size % patch_size:
        raise EncoderError(f"patch_size must divide image_size; got {patch_size} and {image_size}.")
    if dim % heads:
        raise EncoderError(f"heads must divide dim; got {heads} and {dim}.")
    if pooling not in ("mean", "cls"):
        raise EncoderError(f"pooling must be mean or cls; got {pooling!r}.")
    from .transformers_backbone import VisionModel

    with quiet():
        from transformers import ViTConfig, ViTModel
    configuration: Any = ViTConfig(
        num_channels=in_channels,
        image_size=image_size,
        patch_size=patch_size,
        hidden_size=dim,
        intermediate_size=4 * dim,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    with quiet():
        model = ViTModel(configuration, add_pooling_layer=False)
    return Backbone(VisionModel(model, pooling), dim, in_channels=in_channels)
