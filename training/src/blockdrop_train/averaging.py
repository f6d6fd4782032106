"""Averages over the steps of training: of weights, and of batch norm's statistics."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import nn

from .nets import ResNet


class Average:
    """The mean of a net's weights over the last steps of a run (SWA, Izmailov et al., 2018).

    At a rate that stays high, the weights wander about a wide minimum; their mean lies inside it,
    and generalises better than any of them. Its batch norms must be settled before it is used.

    Attributes:
        share: of the run's steps, at its end, that count; before, the mean follows the weights.
        state: holds ``averaged``, the number of steps in the mean, for checkpoints.
    """

    def __init__(self, net: ResNet, share: float) -> None:
        self.net = copy.deepcopy(net).requires_grad_(False)
        self.share = share
        self.state = {"averaged": 0.0}

    @torch.no_grad()
    def update(self, net: nn.Module, progress: float) -> None:
        """Take the weights of one more step in, at a progress in [0, 1]."""
        counts = progress >= 1 - self.share
        before = self.state["averaged"] if counts else 0.0
        for mean, weights in zip(self.net.parameters(), net.parameters(), strict=True):
            mean.lerp_(weights, 1 / (before + 1))
        self.state["averaged"] = before + 1 if counts else 0.0


@torch.no_grad()
def settle(net: nn.Module, passes: Iterable[Callable[[], object]]) -> None:
    """Give batch norms the mean statistics of forward passes, and nothing of what they had.

    Running averages weigh the last few batches most, and lag behind the weights. A norm that no
    pass has come by keeps what it had.

    Args:
        passes: each runs the net, in training mode, on a batch.
    """
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [(norm.momentum, copy.deepcopy(norm.state_dict())) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    net.train()
    for forward in passes:
        forward()
    net.eval()
    for norm, (momentum, state) in zip(norms, before, strict=True):
        norm.momentum = momentum
        if not norm.num_batches_tracked:
            norm.load_state_dict(state)
