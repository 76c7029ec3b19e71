"""Import learn2learn and easyfsl where torchvision has no compiled operators and gym is not installed.

`python benchmarks/peers_import.py` says which versions the environment holds.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import types
import warnings

import torch
import torch.utils.data

#: Schemas torchvision looks up when it is imported; its own binary, built for another torch, would declare them.
OPERATORS = tuple(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms"))
#: Parts of learn2learn that need gym or torchvision; data, nn and algorithms do without.
STAND_INS = ("learn2learn.gym", "learn2learn.vision")
_kept: list[torch.library.Library] = []


def prepare() -> None:
    """Make `import learn2learn` and `import easyfsl` work; call it before either."""
    for name in STAND_INS:
        sys.modules.setdefault(name, types.ModuleType(name))
    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")
        for schema in OPERATORS:
            library.define(schema)
        _kept.append(library)  # the operators live as long as it does
    # easyfsl 1.5.0 hands its sampler's base the argument that torch has since taken away
    torch.utils.data.Sampler.__init__ = lambda self, data_source=None: None  # type: ignore[method-assign]
    warnings.filterwarnings("ignore", message="Failed to load image Python extension")
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")


def versions() -> dict[str, str]:
    """Versions of the peers and of torch."""
    return {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "learn2learn", "easyfsl")}


if __name__ == "__main__":
    prepare()
    for name in ("easyfsl.datasets", "easyfsl.methods", "easyfsl.samplers", "learn2learn.data", "learn2learn.nn"):
        importlib.import_module(name)
    print(versions())
