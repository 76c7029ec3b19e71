"""What the last blocks of a network are, and a copy that owns the weights of these alone."""

from __future__ import annotations

import copy
from collections.abc import Collection

from torch import nn

#: Containers whose children are blocks of their own; a class derived from one (a dense block, say) is one block.
PLAIN_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def blocks_of(network: nn.Module) -> list[list[nn.Parameter]]:
    """The weights of each block of a network, first to last as they were registered.

    The network is opened as long as there is a single thing with weights in it, and so are the plain containers below;
    whatever else has weights is a block. A normalisation belongs to the block it follows: conv4 has four blocks (a
    convolution and its batch normalisation each), resnet12 its four residual blocks, a DenseNet the stem, four dense
    blocks and the transitions between them, a vision transformer its embeddings and layers, the last one together with
    the final normalisation.

    Weights that the network itself holds beside its parts belong to no block.

    Args:
        network: Any module.

    Returns:
        The blocks, each a list of parameters and none twice.
    """
    found: list[list[nn.Parameter]] = []
    seen: set[int] = set()
    for module in _opened(network, root=True):
        own = [weight for weight in module.parameters() if id(weight) not in seen]
        seen |= {id(weight) for weight in own}
        if not own:
            continue
        if found and "Norm" in type(module).__name__:
            found[-1] += own
        else:
            found.append(own)
    return found


def copy_owning(network: nn.Module, weights: Collection[nn.Parameter]) -> nn.Module:
    """Copy a network so that some weights are the copy's own and learn; the others are shared and stand still.

    Args:
        network: Stays as it is, and so do its weights, whatever is done to the copy's.
        weights: Those of its parameters that the copy owns.

    Returns:
        The copy in evaluation mode: nothing is dropped out, and batch normalisation goes by its running statistics and
        does not change them.
    """
    owned = {id(weight) for weight in weights}
    memo: dict[int, object] = {id(buffer): buffer for buffer in network.buffers()}
    for weight in network.parameters():
        if id(weight) in owned:
            memo[id(weight)] = nn.Parameter(weight.detach().clone())
        else:  # the same memory, in a tensor that asks for no gradient
            memo[id(weight)] = nn.Parameter(weight.detach(), requires_grad=False)
    return copy.deepcopy(network, memo).eval()


def _opened(module: nn.Module, *, root: bool = False) -> list[nn.Module]:
    children = [child for child in module.children() if next(child.parameters(), None) is not None]
    own = next(module.parameters(recurse=False), None) is not None
    if children and (root or not own) and (root or len(children) == 1 or type(module) in PLAIN_CONTAINERS):
        only = len(children) == 1 and not own
        return [part for child in children for part in _opened(child, root=root and only)]
    return [module]
