"""What the paper reports of CIFAR (Wu et al., CVPR 2018, Tables 1 and 3)."""

from __future__ import annotations

from dataclasses import dataclass

PAPER: dict[tuple[str, int], dict[str, tuple[float, float, float | None, float | None]]] = {
    # method: accuracy %, blocks after finetuning; accuracy %, blocks before (Table 1)
    ("cifar10", 32): {
        "first_k": (84.3, 7, 16.6, 10),
        "random_k": (88.9, 7, 20.5, 10),
        "distribute_k": (90.2, 7, 23.4, 10),
        "policy": (91.3, 6.9, 88.6, 9.4),
        "full": (92.3, 15, None, None),
    },
    ("cifar10", 110): {
        "first_k": (71.3, 17, 13.3, 21),
        "random_k": (90.1, 17, 14.5, 21),
        "distribute_k": (92.7, 17, 13.0, 21),
        "policy": (93.6, 16.9, 75.4, 20.1),
        "full": (93.2, 54, None, None),
    },
    ("cifar100", 32): {
        "first_k": (66.5, 14, 23.3, 13),
        "random_k": (67.6, 14, 38.3, 13),
        "distribute_k": (66.7, 14, 31.9, 13),
        "policy": (68.7, 13.1, 58.3, 12.4),
        "full": (69.3, 15, None, None),
    },
    ("cifar100", 110): {
        "first_k": (57.9, 31, 63.5, 50),
        "random_k": (68.4, 31, 66.3, 50),
        "distribute_k": (69.9, 31, 49.6, 50),
        "policy": (73.7, 30.2, 72.1, 49.1),
        "full": (72.2, 54, None, None),
    },
}


@dataclass(frozen=True)
class Published:
    """An operating point of the paper (Table 3): accuracy in percent, means and deviations."""

    gamma: int
    accuracy: float
    blocks: float
    flops: float
    blocks_std: float | None = None
    flops_std: float | None = None
    masks: int | None = None


PAPER_POINTS = {
    ("cifar10", 32): [Published(5, 91.3, 6.9, 8.66e7, 1.6, 1.40e7)],
    ("cifar10", 110): [
        Published(2, 91.9, 10.3, 1.18e8),
        Published(5, 93.0, 13.8, 1.51e8),
        Published(10, 93.6, 16.9, 1.81e8, 3.7, 3.43e7, 469),
    ],
}
"""FLOPs include the policy's; masks are counted on all 10,000 test images."""
