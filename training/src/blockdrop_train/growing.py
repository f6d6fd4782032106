"""Deeper nets out of trained shallower ones, which compute the same at first.

Every segment's blocks are spread over the deeper segment's places in their order, the first in
front. A new block's last batch norm has gain and shift zero, so it computes ``relu(x)``: the
identity, since stem, blocks and shortcuts leave no negative activations. Its filters are drawn
anew, or those of a trained neighbour (compare Chen et al., Net2Net, ICLR 2016): copies are of use
as soon as the gain grows, but two of the same block get much the same gradients.
"""

from __future__ import annotations

import torch
from torch import nn

from .errors import CheckpointError
from .nets import Block, ResNet


def places(blocks: int, wanted: int) -> list[int]:
    """Where each of a segment's blocks goes in a segment of ``wanted``: evenly, the first first."""
    return [index * wanted // blocks for index in range(blocks)]


def _copy(source: nn.Module, target: nn.Module) -> None:
    try:
        target.load_state_dict(source.state_dict())
    except RuntimeError as error:
        raise CheckpointError(f"the shallower net does not fit: {error}") from error


def _quiet(block: Block) -> None:
    _, norm = block.branch.layers()[-1]
    nn.init.zeros_(norm.weight)
    nn.init.zeros_(norm.bias)


@torch.no_grad()
def grow(source: ResNet, target: ResNet, new: str = "copy") -> list[int]:
    """Load a net into a deeper one of the same widths, without change of what it computes.

    Dropping a new block changes nothing either.

    Args:
        source: the trained net.
        target: the deeper net, freshly initialised.
        new: filters of the new blocks: ``copy`` of a neighbour's, or ``random``, the target's own.

    Returns:
        The target's places of the source's blocks; the other places hold new blocks.

    Raises:
        CheckpointError: a segment of the target is shorter, or a shape differs.
    """
    if len(source.segments) != len(target.segments) or any(
        few > many for few, many in zip(source.segments, target.segments, strict=True)
    ):
        raise CheckpointError(
            f"segments {list(source.segments)} cannot grow to {list(target.segments)}: "
            "check the net's depth in the configuration"
        )
    _copy(source.stem, target.stem)
    _copy(source.head, target.head)
    taken: list[int] = []
    first = wide = 0
    for few, many in zip(source.segments, target.segments, strict=True):
        spots = places(few, many)
        for place in range(many):
            before = sum(spot <= place for spot in spots) - 1
            trained = spots[before] == place
            # The first block of a segment may change the width, which no later one does.
            origin = before if trained or few == 1 else max(1, before)
            block = target.block(wide + place)
            if not trained and (new == "random" or few == 1):
                _quiet(block)
                continue
            _copy(source.block(first + origin), block)
            if not trained:
                _quiet(block)
        taken += [wide + spot for spot in spots]
        first, wide = first + few, wide + many
    return taken
