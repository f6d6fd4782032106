"""Bundles of untrained nets: the right graphs and costs for benchmarks, no sensible classes."""

from __future__ import annotations

from pathlib import Path

import torch

from .averaging import settle
from .data import CIFAR10_LABELS, Normalise, generator_for
from .errors import ExportError
from .export import MOST_PATHS, About, export, mask_text
from .nets import Policy, ResNet


def random_paths(blocks: int, count: int, keep: float, seed: int) -> dict[str, float]:
    """``count`` distinct random masks, as text, with shares as frequent paths have them.

    Each block is kept with the probability ``keep``. The mask whose number of blocks is nearest to
    the expected one comes first, and the n-th has a share in proportion to 1/n.
    """
    if not 0 < keep < 1 or not 0 < count <= min(MOST_PATHS, 2**blocks // 2):
        raise ExportError(
            f"{count} masks of {blocks} blocks, {keep:g} of them kept: expected 1 to "
            f"{min(MOST_PATHS, 2**blocks // 2)} masks and a share between 0 and 1"
        )
    generator = generator_for(seed, 101)
    drawn: dict[str, int] = {}
    while len(drawn) < count:
        mask = torch.rand(blocks, generator=generator) < keep
        drawn[mask_text(mask)] = int(mask.sum())
    ranked = sorted(drawn, key=lambda mask: abs(drawn[mask] - keep * blocks))
    total = sum(1 / n for n in range(1, count + 1))
    return {mask: 1 / n / total for n, mask in enumerate(ranked, 1)}


@torch.no_grad()
def write(
    target: Path,
    net: ResNet,
    policy: Policy,
    normalise: Normalise,
    about: About,
    paths: dict[str, float],
    seed: int,
) -> None:
    """Write a bundle of freshly initialised nets; the policy always chooses the first path."""
    inputs = torch.randn(4, *net.input_size, generator=generator_for(seed, 102))
    for index in range(net.depth):
        # Deep nets of random weights blow rounding errors up; quiet branches do not.
        net.block(index).branch.layers()[-1][1].weight.fill_(0.2)
    settle(net, [lambda: net(inputs)])
    settle(policy, [lambda: policy(inputs)])
    policy.net.head.weight.zero_()
    policy.net.head.bias.copy_(torch.tensor([1.0 if c == "1" else -1.0 for c in next(iter(paths))]))
    export(target, net, policy, normalise, about, inputs, paths)


def labels(dataset: str, classes: int) -> tuple[str, ...]:
    """CIFAR-10's classes, or numbered ones."""
    if dataset == "cifar10" and classes == len(CIFAR10_LABELS):
        return CIFAR10_LABELS
    return tuple(f"class {n}" for n in range(classes))
