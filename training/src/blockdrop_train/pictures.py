"""Pictures of what a policy does (the paper's Figures 4 and 5), from a bundle and images.

- ``masks.png``: how often each class keeps each block.
- ``easy-and-hard.png``: for each class the images that use the fewest and the most blocks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .data import AnyImages, in_order
from .errors import DataError
from .export import Bundle


def masks_of(bundle: Bundle, images: AnyImages, batch: int = 250) -> Tensor:
    """The bundle's masks for the images, bool [N, K]."""
    found = [
        torch.from_numpy(bundle.masks(bundle.normalise(pixels).contiguous().numpy()))
        for pixels, _ in in_order(images, batch)
    ]
    return torch.cat(found)


def keep_rates(masks: Tensor, targets: Tensor, classes: int) -> Tensor:
    """The share of each class's images that keep each block, [classes, K].

    A class without images gets not-a-number.
    """
    rates = [masks[targets == number].float().mean(0) for number in range(classes)]
    return torch.stack(rates)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def draw_masks(path: Path, masks: Tensor, images: AnyImages, title: str) -> None:
    """Write the heat map of keep rates by class and block."""
    pyplot = _pyplot()
    rates = keep_rates(masks, images.targets, len(images.labels))
    shown = slice(0, 100)
    blocks = masks.shape[1]
    figure, axes = pyplot.subplots(
        figsize=(2.5 + 0.32 * blocks, 1.5 + 0.32 * len(images.labels[shown]))
    )
    drawn = axes.imshow(rates[shown].numpy(), vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set_xticks(range(blocks))
    axes.set_xlabel("block")
    names = [
        f"{label} ({masks[images.targets == number].float().sum(1).mean():.1f})"
        for number, label in enumerate(images.labels[shown])
    ]
    axes.set_yticks(range(len(names)), names)
    axes.set_title(f"{title}: share of images that keep a block (mean blocks kept)", fontsize=9)
    figure.colorbar(drawn)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


def draw_extremes(
    path: Path, masks: Tensor, images: AnyImages, title: str, classes: int = 10, each: int = 5
) -> None:
    """Write the easiest and the hardest images of each class, by blocks used."""
    pyplot = _pyplot()
    kept = masks.sum(1)
    classes = min(classes, len(images.labels))
    figure, grid = pyplot.subplots(
        classes, 2 * each, figsize=(1.15 * 2 * each, 1.3 * classes), squeeze=False
    )
    for number in range(classes):
        rows = torch.nonzero(images.targets == number).squeeze(1)
        order = rows[kept[rows].argsort(stable=True)]
        picked = torch.cat([order[:each], order[len(order) - min(each, len(order)) :]])
        for axes in grid[number]:
            axes.axis("off")
        for axes, row in zip(grid[number], picked, strict=False):
            pixels = images.plain(row[None])[0].permute(1, 2, 0).numpy()
            axes.imshow(pixels.astype(np.uint8))
            axes.set_title(f"{images.labels[number]} {int(kept[row])}", fontsize=7)
    figure.suptitle(f"{title}: fewest blocks (left) and most blocks (right) of each class", y=0.91)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


def draw(bundle: Bundle, images: AnyImages, folder: Path) -> list[Path]:
    """Write both pictures to a folder; returns their paths."""
    if images.labels != bundle.labels:
        raise DataError(
            f"the images' classes ({', '.join(images.labels[:3])}, ...) are not the bundle's "
            f"({', '.join(bundle.labels[:3])}, ...)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    masks = masks_of(bundle, images)
    name = bundle.manifest["architecture"]
    title = f"{name['backbone']} on {name['dataset']}"
    paths = [folder / "masks.png", folder / "easy-and-hard.png"]
    draw_masks(paths[0], masks, images, title)
    draw_extremes(paths[1], masks, images, title)
    return paths
