"""Hard gates that learn: gradients straight through, and a price on the blocks kept."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from .flops import block_flops, full_flops
from .nets import ResNet
from .workers import World


def distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence from the teacher's softened classes, [N]."""
    wanted = (teacher.detach() / temperature).log_softmax(1)
    found = (logits / temperature).log_softmax(1)
    return (wanted.exp() * (wanted - found)).sum(1) * temperature**2


def straight_through(logits: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Hard gates [N, K] in {0, 1} whose gradient is that of a sigmoid.

    Args:
        noise: share of logistic noise added to the logits: 1 samples Bernoulli(sigmoid(logits)).
    """
    uniform = torch.rand(logits.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
    noisy = logits + noise * (uniform.log() - (1 - uniform).log()).to(logits.device)
    soft = noisy.sigmoid()
    return (noisy >= 0).to(soft.dtype) + soft - soft.detach()


def confidence_ranks(logits: Tensor, targets: Tensor) -> Tensor:
    """Twice each image's rank in the batch by the probability of its class, in [0, 2].

    0 for the image that the net is least sure of, or most wrong about; the mean is 1.
    """
    sure = logits.detach().softmax(1).gather(1, targets[:, None]).squeeze(1)
    return 2 * sure.argsort().argsort().float() / max(1, len(sure) - 1)


def looked_at(gates: Tensor, share: float, generator: torch.Generator) -> Tensor | None:
    """Which dropped blocks are computed all the same, for ``ResNet.gated``: [N, K] or all.

    Each with the probability ``share``; the factor 1 / share keeps the gradient unbiased.
    """
    if share >= 1:
        return None
    return (torch.rand(gates.shape, generator=generator) < share).to(gates) / share


@dataclass
class Budget:
    """The price of blocks, which follows a wanted average of FLOPs.

    Attributes:
        parts: each block's share of all blocks' FLOPs, [K].
        wanted: the share of them to keep on average.
        state: ``cost``, the price of all blocks to an image of middling confidence.
    """

    parts: Tensor
    wanted: float
    state: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, net: ResNet, flops: float, decider_flops: float, cost: float) -> Budget:
        """A budget of ``flops`` an image, of which the decisions take ``decider_flops``.

        Raises:
            ValueError: no masks of the net cost as much.
        """
        each = torch.tensor(block_flops(net), dtype=torch.float, device=net.head.weight.device)
        fixed = full_flops(net) + decider_flops - float(each.sum())
        wanted = (flops - fixed) / float(each.sum())
        if not 0 < wanted < 1:
            raise ValueError(
                f"flops {flops:.3g} cannot be met: stem, head and policy take {fixed:.3g}, "
                f"all blocks {float(each.sum()):.3g} more"
            )
        return cls(each / each.sum(), wanted, {"cost": cost})

    def loss(self, gates: Tensor, path: Tensor, full: Tensor, targets: Tensor) -> Tensor:
        """Labels, the full net's logits and the price, a mean over the images.

        Args:
            gates: [N, K].
            path, full: class logits [N, classes] with the gates, and with every block.
        """
        price = self.state["cost"] * confidence_ranks(full, targets)
        taught = F.cross_entropy(path, targets) + distillation(path, full, 1.0).mean()
        return 0.5 * taught + (price * (gates @ self.parts)).mean()

    @torch.no_grad()
    def follow(self, decided: Tensor, world: World) -> dict[str, float]:
        """Raise or lower the price after a step; returns figures to show.

        Args:
            decided: keep logits [N, K].
        """
        greedy = (decided >= 0).float()
        now = (greedy @ self.parts).mean().reshape(1)
        world.average([now])
        step = math.exp(0.02 * (now.item() - self.wanted))
        self.state["cost"] = min(10.0, self.state["cost"] * step)
        kept = greedy.sum(1)
        return {
            "kept": kept.mean().item(),
            "deviation": kept.std().item(),
            "cost": self.state["cost"],
        }
