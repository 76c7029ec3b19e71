"""Which backbones there are, by name; reading the list imports no network."""

from __future__ import annotations

# The registry: every name that a checkpoint, a command line or `build_backbone` may use, and the module and function
# that build it. Each function takes keywords only, in_channels among them.
BACKBONES: dict[str, tuple[str, str]] = {
    "conv4": ("conv4", "conv4"),
    "resnet12": ("resnet12", "resnet12"),
    "resnet18": ("monai_backbone", "resnet18"),
    "resnet50": ("monai_backbone", "resnet50"),
    "densenet121": ("monai_backbone", "densenet121"),
    "vit": ("vit", "vit"),
    "monai": ("monai_backbone", "monai"),
    "transformers": ("transformers_backbone", "from_config"),
}

# Prefixes: what follows them names a network of MONAI, or pretrained weights in transformers' format.
MONAI_PREFIX, PRETRAINED_PREFIX = "monai:", "hf:"
