"""The paper's policy gradient: rewards, bounded sampling, self-critical baseline (section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor


def reward(masks: Tensor, right: Tensor, gamma: float) -> Tensor:
    """Equation 2: ``1 - (kept / K)^2`` where the class is right, ``-gamma`` elsewhere.

    Args:
        masks: bool [N, K].
        right: bool [N].

    Returns:
        float [N].
    """
    used = masks.float().mean(1)
    return torch.where(right, 1 - used**2, torch.full_like(used, -gamma))


def bounded(logits: Tensor, alpha: float) -> Tensor:
    """Sampling probabilities ``alpha * s + (1 - alpha) * (1 - s)``, in [1 - alpha, alpha]."""
    keep = logits.float().sigmoid()
    return alpha * keep + (1 - alpha) * (1 - keep)


def learned_blocks(position: float, epochs_per_block: float, blocks: int) -> int:
    """How many of the last blocks take part in the curriculum after ``position`` epochs."""
    return min(blocks, 1 + int(position / epochs_per_block))


def forced(masks: Tensor, learned: int) -> Tensor:
    """The masks with all but the last ``learned`` blocks kept: a stage of the curriculum."""
    masks = masks.clone()
    masks[:, : masks.shape[1] - learned] = True
    return masks


def policy_loss(
    probabilities: Tensor, sampled: Tensor, advantage: Tensor, learned: int, entropy: float
) -> Tensor:
    """``-advantage * log pi(sampled)`` minus the entropy term, a mean over the images.

    Args:
        probabilities: bounded keep probabilities [N, K].
        sampled: the masks drawn from them, bool [N, K].
        advantage: reward of the sampled masks minus that of the most probable ones, [N].
        learned: the blocks that take part are the last ``learned``.
        entropy: weight of the distribution's entropy in nats.
    """
    p = probabilities[:, probabilities.shape[1] - learned :].clamp(1e-6, 1 - 1e-6)
    taken = sampled[:, sampled.shape[1] - learned :].to(p.dtype)
    log_likelihood = (taken * p.log() + (1 - taken) * (1 - p).log()).sum(1)
    spread = -(p * p.log() + (1 - p) * (1 - p).log()).sum(1)
    return -(advantage.detach() * log_likelihood + entropy * spread).mean()
