"""What one image sent through a foreign network shows: the classifier it ends in, and the weights it has no use for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as hooks

from .errors import EncoderError

# The most numbers, and the most tensors, that a network built from a configuration may have: the largest image encoders
# in common use have 1.2 thousand million in 2,000. In float32 it is 6 GB.
MAX_NUMBERS = 1_500_000_000
MAX_TENSORS = 20_000


@contextmanager
def bounded_size(what: str) -> Iterator[None]:
    """Stop a network's constructor, in this thread, as soon as its weights and buffers exceed the bounds.

    Args:
        what: Names the network in the error.

    Raises:
        EncoderError: More than `MAX_NUMBERS` numbers or `MAX_TENSORS` tensors.
    """
    thread, numbers, tensors = threading.get_ident(), 0, 0

    def count(_module: nn.Module, _name: str, tensor: torch.Tensor | None) -> None:
        nonlocal numbers, tensors
        if threading.get_ident() != thread or tensor is None:
            return
        numbers, tensors = numbers + tensor.numel(), tensors + 1
        if numbers > MAX_NUMBERS or tensors > MAX_TENSORS:
            raise EncoderError(
                f"{what} is too large: at most {MAX_NUMBERS:,} weights in {MAX_TENSORS:,} tensors are allowed."
            )

    handles = [
        hooks.register_module_parameter_registration_hook(count),
        hooks.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def probe_images(in_channels: int, height: int, width: int) -> torch.Tensor:
    """Return one image of noise (1, in_channels, height, width), the same each time."""
    return torch.rand(1, in_channels, height, width, generator=torch.Generator().manual_seed(0))


def strip_classifier(network: nn.Module, images: torch.Tensor, select: Callable[[Any], Any]) -> bool:
    """Replace the last Linear by the identity where the network's output is that Linear's output.

    Layers without weights after it (an activation, a softmax) are replaced too, for they belong to the classifier.

    Args:
        network: Changed in place; in evaluation mode.
        images: What to send through it.
        select: Takes the one tensor that matters out of the network's output.

    Returns:
        Whether there was such a Linear.
    """
    calls: list[tuple[nn.Module, Any, Any]] = []
    leaves = [module for module in network.modules() if not any(module.children())]
    handles = [
        leaf.register_forward_hook(
            lambda module, given, made: calls.append((module, given[0] if given else None, made))
        )
        for leaf in leaves
    ]
    try:
        with torch.no_grad():
            tail = select(network(images))
    finally:
        for handle in handles:
            handle.remove()
    peeled: list[nn.Module] = []
    for module, given, made in reversed(calls):
        if made is not tail:
            continue
        peeled.append(module)
        if isinstance(module, nn.Linear):
            if tail.ndim == 2 and sum(call[0] is module for call in calls) == 1:
                _replace(network, peeled)
                return True
            return False
        if next(module.parameters(), None) is not None:
            return False
        tail = given
    return False


def drop_unused(network: nn.Module, vectors: torch.Tensor) -> None:
    """Take out what the vectors do not depend on, so that it is neither stored nor waited for by parallel training.

    Modules all of whose weights are idle become the identity; other idle weights become buffers of the same name.

    Args:
        network: Changed in place.
        vectors: Made by the network with gradients, (n, d).
    """
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(vectors.sum(), weights, allow_unused=True)
    used = {id(weight) for weight, gradient in zip(weights, gradients, strict=True) if gradient is not None}
    _prune(network, used)


def check_repeats(what: str, first: torch.Tensor, second: torch.Tensor) -> None:
    """Raise an EncoderError unless two passes of one image gave the same vectors of finite numbers."""
    if not torch.isfinite(first).all() or not torch.allclose(first, second, rtol=1e-4, atol=1e-6):
        raise EncoderError(f"{what} makes other vectors of the same image each time: it cannot be an encoder.")


def _replace(network: nn.Module, targets: list[nn.Module]) -> None:
    chosen = {id(target) for target in targets}
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in chosen:
                setattr(parent, name, nn.Identity())


def _prune(module: nn.Module, used: set[int]) -> None:
    for name, weight in list(module.named_parameters(recurse=False)):
        if id(weight) not in used:
            delattr(module, name)
            module.register_buffer(name, weight.detach())
    for name, child in list(module.named_children()):
        own = list(child.parameters())
        if own and not any(id(weight) in used for weight in own):
            setattr(module, name, nn.Identity())
        else:
            _prune(child, used)
