"""Table 2's comparison: every block, one decision for all of them, one in front of each.

The three run the same ONNX graphs block by block, one image at a time, on one thread of the CPU,
and take turns image by image, so that whatever slows the machine down slows them all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .export import Bundle
from .sequential import Sequential

Run = Callable[[np.ndarray], tuple[np.ndarray, int]]
"""From a normalised image [1, C, H, W] to class logits [1, classes] and the blocks that ran."""


def full(bundle: Bundle) -> Run:
    """Every block."""
    masks = np.ones((1, len(bundle.blocks)), bool)
    return lambda image: (bundle.logits(image, masks), len(bundle.blocks))


def single_step(bundle: Bundle) -> Run:
    """The policy, then its path."""

    def run(image: np.ndarray) -> tuple[np.ndarray, int]:
        masks = bundle.masks(image)
        return bundle.logits(image, masks), int(masks.sum())

    return run


def sequential(bundle: Bundle, decisions: Sequential) -> Run:
    """A decision in front of every block."""
    weights = [
        (d.weight.detach().cpu().numpy()[0], float(d.bias.detach()))
        for d in decisions.linear_layers()
    ]

    def run(image: np.ndarray) -> tuple[np.ndarray, int]:
        x, kept = bundle.run(bundle.stem, image), 0
        for (weight, bias), block, shortcut in zip(
            weights, bundle.blocks, bundle.shortcuts, strict=True
        ):
            if x[0].mean((1, 2)) @ weight + bias >= 0:
                x, kept = bundle.run(block, x), kept + 1
            elif shortcut is not None:
                x = bundle.run(shortcut, x)
        return bundle.run(bundle.head, x), kept

    return run


def measure(runs: dict[str, Run], images: np.ndarray) -> dict[str, dict[str, Any]]:
    """Milliseconds an image and blocks an image of each way, and the classes that it found.

    Args:
        images: normalised [N, C, H, W]; the first tenth is run once more, before the clock starts.
    """
    spent: dict[str, list[float]] = {name: [] for name in runs}
    blocks: dict[str, list[int]] = {name: [] for name in runs}
    classes: dict[str, list[int]] = {name: [] for name in runs}
    names = list(runs)
    for image in images[: max(1, len(images) // 10), None]:
        for run in runs.values():
            run(image)
    for number, image in enumerate(images[:, None]):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            logits, kept = runs[name](image)
            spent[name].append(1000 * (time.perf_counter() - start))
            blocks[name].append(kept)
            classes[name].append(int(logits.argmax()))
    return {
        name: {
            "images": len(images),
            "milliseconds_median": round(float(np.median(spent[name])), 4),
            "milliseconds_mean": round(float(np.mean(spent[name])), 4),
            "blocks_mean": round(float(np.mean(blocks[name])), 3),
            "classes": classes[name],
        }
        for name in names
    }
