"""FLOPs by the paper's convention: one multiply-accumulate is two operations.

Convolutions and linear layers only: ``2 * Cin / groups * Cout * kh * kw * Hout * Wout``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .nets import Policy, ResNet


def _count(net: nn.Module, size: tuple[int, int, int]) -> dict[nn.Module, int]:
    """FLOPs of one image [C, H, W] by convolution and linear layer."""
    found: dict[nn.Module, int] = {}

    def visit(layer: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            work = layer.weight[0].numel() * output[0].numel()
        elif isinstance(layer, nn.Linear):
            work = layer.in_features * layer.out_features
        else:
            return
        found[layer] = found.get(layer, 0) + 2 * work

    hooks = [
        layer.register_forward_hook(visit)
        for layer in net.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    training = net.training
    try:
        net.eval()
        with torch.no_grad():
            weight = next(net.parameters())
            net(torch.zeros(1, *size, device=weight.device))
    finally:
        net.train(training)
        for hook in hooks:
            hook.remove()
    return found


def block_flops(net: ResNet) -> list[int]:
    """FLOPs a kept block adds to a dropped one, by block: those of its branch.

    The shortcut's are not in it: the shortcut always runs.
    """
    found = _count(net, net.input_size)
    return [
        sum(found[layer] for layer in net.block(index).branch.modules() if layer in found)
        for index in range(net.depth)
    ]


def full_flops(net: ResNet) -> int:
    """FLOPs of an image that keeps every block, without the policy's."""
    return sum(_count(net, net.input_size).values())


def policy_flops(policy: Policy) -> int:
    """FLOPs of the policy net on one image."""
    channels, height, width = policy.net.input_size
    return sum(_count(policy, (channels, height * policy.pool, width * policy.pool)).values())
