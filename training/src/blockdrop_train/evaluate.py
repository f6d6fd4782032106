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
        flops_mean, flops_std: FLOPs an image, the policy's included where one ran.
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
def learned_masks(
    policy: Policy, images: AnyImages, normalise: Normalise, batch: int = 500
) -> Tensor:
    """The policy's masks, bool [N, K]: keep where the logit is >= 0."""
    policy.eval()
    device = policy.net.head.weight.device
    masks = [
        policy(normalise(pixels).to(device)).cpu() >= 0 for pixels, _ in in_order(images, batch)
    ]
    return torch.cat(masks)


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


def score(
    net: ResNet,
    images: AnyImages,
    normalise: Normalise,
    masks: Tensor | None = None,
    policy: Policy | None = None,
) -> Score:
    """Evaluate with every block (``masks`` is None) or with the masks [N, K].

    Args:
        policy: the net whose FLOPs are charged to each image; ``None`` charges nothing.
    """
    out = logits(net, images, normalise, masks)
    loss = torch.nn.functional.cross_entropy(out, images.targets)
    right = (out.argmax(1) == images.targets).double().mean()
    if masks is None:
        masks = torch.ones(len(images), net.depth, dtype=torch.bool)
    kept = masks.sum(1).double()
    each = torch.tensor(block_flops(net), dtype=torch.double)
    fixed = full_flops(net) - int(each.sum()) + (policy_flops(policy) if policy else 0)
    cost = masks.double() @ each + fixed
    return Score(
        images=len(images),
        accuracy=float(right),
        loss=float(loss),
        blocks_mean=float(kept.mean()),
        blocks_std=float(kept.std(unbiased=False)),
        flops_mean=float(cost.mean()),
        flops_std=float(cost.std(unbiased=False)),
        distinct_masks=len(torch.unique(masks, dim=0)),
    )
