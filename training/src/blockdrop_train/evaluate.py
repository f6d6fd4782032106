"""Accuracy, blocks kept and FLOPs of a net, with every block or with its policy's masks."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from .data import AnyImages, Normalise, in_order
from .flops import block_flops, full_flops, policy_flops
from .nets import Policy, ResNet


@dataclass(frozen=True)
class Score:
    """What a set of images got.

    Attributes:
        accuracy: share of images whose class is right.
        loss: mean cross-entropy in nats.
        blocks_mean, blocks_std: blocks kept an image.
        flops_mean, flops_std: FLOPs an image, its decisions' included.
        distinct_masks: number of different masks.
    """

    images: int
    accuracy: float
    loss: float
    blocks_mean: float
    blocks_std: float
    flops_mean: float
    flops_std: float
    distinct_masks: int

    def as_dict(self) -> dict[str, float]:
        """The fields by name."""
        return asdict(self)


@torch.no_grad()
def keep_logits(
    policy: Policy, images: AnyImages, normalise: Normalise, batch: int = 500
) -> Tensor:
    """The policy's keep logits [N, K], on the CPU."""
    policy.eval()
    device = policy.net.head.weight.device
    return torch.cat(
        [policy(normalise(pixels).to(device)).cpu() for pixels, _ in in_order(images, batch)]
    )


def learned_masks(policy: Policy, images: AnyImages, normalise: Normalise) -> Tensor:
    """The policy's masks, bool [N, K]: keep where the logit is >= 0."""
    return keep_logits(policy, images, normalise) >= 0


@torch.no_grad()
def shift_for(logits: Tensor, costs: Tensor, wanted: float) -> float:
    """The shift of all keep logits at which the mean cost of kept blocks is just below ``wanted``.

    Args:
        logits: [N, K].
        costs: of each block, [K].
    """
    low, high = -50.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        mean = float(((logits + middle >= 0).double() @ costs.double()).mean())
        low, high = (middle, high) if mean <= wanted else (low, middle)
    return low


def shift_to(net: ResNet, policy: Policy, logits: Tensor, flops: float) -> float:
    """The shift of keep logits [N, K] at which an image takes ``flops`` on average, or just less.

    Args:
        flops: the policy's included.

    Raises:
        ValueError: no masks of the net cost as much.
    """
    costs = torch.tensor(block_flops(net), dtype=torch.double)
    fixed = full_flops(net) + policy_flops(policy) - float(costs.sum())
    if not fixed < flops < fixed + float(costs.sum()):
        raise ValueError(
            f"flops {flops:.3g} cannot be met: stem, head and policy take {fixed:.3g}, all blocks "
            f"{float(costs.sum()):.3g} more"
        )
    return shift_for(logits, costs, flops - fixed)


@torch.no_grad()
def logits(
    net: ResNet,
    images: AnyImages,
    normalise: Normalise,
    masks: Tensor | None = None,
    batch: int = 250,
) -> Tensor:
    """Class logits [N, classes] in eval mode, float32, on the CPU."""
    net.eval()
    device = net.head.weight.device
    parts = []
    start = 0
    for pixels, _ in in_order(images, batch):
        mask = None if masks is None else masks[start : start + len(pixels)].to(device)
        parts.append(net(normalise(pixels).to(device), mask).cpu())
        start += len(pixels)
    return torch.cat(parts)


def accuracy_and_loss(logits: Tensor, targets: Tensor) -> tuple[float, float]:
    """Share of the classes [N] that logits [N, classes] get right, and the mean cross-entropy."""
    right = (logits.argmax(1) == targets).double().mean()
    return float(right), float(torch.nn.functional.cross_entropy(logits, targets))


def score(
    net: ResNet,
    images: AnyImages,
    normalise: Normalise,
    masks: Tensor | None = None,
    decision_flops: int = 0,
) -> Score:
    """Evaluate with every block (``masks`` is None) or with the masks [N, K].

    Args:
        decision_flops: charged to each image for its mask.
    """
    out = logits(net, images, normalise, masks)
    accuracy, loss = accuracy_and_loss(out, images.targets)
    if masks is None:
        masks = torch.ones(len(images), net.depth, dtype=torch.bool)
    kept = masks.sum(1).double()
    each = torch.tensor(block_flops(net), dtype=torch.double)
    fixed = full_flops(net) - int(each.sum()) + decision_flops
    cost = masks.double() @ each + fixed
    return Score(
        images=len(images),
        accuracy=accuracy,
        loss=loss,
        blocks_mean=float(kept.mean()),
        blocks_std=float(kept.std(unbiased=False)),
        flops_mean=float(cost.mean()),
        flops_std=float(cost.std(unbiased=False)),
        distinct_masks=len(torch.unique(masks, dim=0)),
    )
