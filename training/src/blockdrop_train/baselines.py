"""The paper's heuristics (section 4.1): N of K blocks kept without looking at the image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .data import generator_for

HEURISTICS = ("first_k", "random_k", "distribute_k")


def first_k(segments: tuple[int, ...], keep: int) -> Tensor:
    """FirstK: the first ``keep`` blocks. Returns bool [K]."""
    return torch.arange(sum(segments)) < keep


def random_k(segments: tuple[int, ...], keep: int, count: int, seed: int) -> Tensor:
    """RandomK: ``keep`` blocks drawn for each image. Returns bool [count, K]."""
    draws = torch.rand(count, sum(segments), generator=generator_for(seed, 77))
    return draws.argsort(1).argsort(1) < keep


def distribute_k(segments: tuple[int, ...], keep: int) -> Tensor:
    """DistributeK: ``keep`` blocks spread evenly over the segments, the first ones of each.

    One after the other goes to each segment in turn, until a segment is full. Returns bool [K].
    """
    shares = [0] * len(segments)
    left = min(keep, sum(segments))
    while left:
        for index, length in enumerate(segments):
            if left and shares[index] < length:
                shares[index] += 1
                left -= 1
    return torch.cat([torch.arange(n) < share for n, share in zip(segments, shares, strict=True)])


def most_kept(logits: Tensor, keep: int) -> Tensor:
    """The ``keep`` blocks that keep logits, [N, K], keep for the most images. Returns bool [K].

    One mask for every image, chosen by the policy: what it lacks is all that deciding by the image
    is worth. Of blocks kept as often, the mean logit says which.
    """
    rates, means = (logits >= 0).double().mean(0).tolist(), logits.double().mean(0).tolist()
    order = sorted(range(len(rates)), key=lambda k: (rates[k], means[k]), reverse=True)
    mask = torch.zeros(len(rates), dtype=torch.bool)
    mask[order[:keep]] = True
    return mask


@dataclass(frozen=True)
class Heuristic:
    """A heuristic and the number of blocks it keeps, written ``first_k:7``."""

    name: str
    keep: int

    @classmethod
    def parse(cls, text: str) -> Heuristic:
        """Read ``NAME:N``."""
        name, _, keep = text.partition(":")
        if name not in HEURISTICS or not keep.isdecimal():
            raise ValueError(f"path '{text}': expected {', '.join(f'{h}:N' for h in HEURISTICS)}")
        return cls(name, int(keep))

    def __str__(self) -> str:
        return f"{self.name}:{self.keep}"

    def masks(self, segments: tuple[int, ...], count: int, seed: int = 0) -> Tensor:
        """The masks for ``count`` images, bool [count, K]."""
        total = sum(segments)
        if self.keep > total:
            raise ValueError(f"{self}: the net has {total} blocks")
        if self.name == "random_k":
            return random_k(segments, self.keep, count, seed)
        mask = first_k if self.name == "first_k" else distribute_k
        return mask(segments, self.keep).expand(count, total)
