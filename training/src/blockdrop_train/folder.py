"""Image folders in ImageNet's layout: ``ROOT/train/CLASS/*`` and ``ROOT/val/CLASS/*``."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .errors import DataError

LOADERS = min(16, os.cpu_count() or 1)
"""Threads that decode a batch's images; decoding and resizing leave Python's lock."""
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif"}


def read_image(path: Path, short_side: int) -> Image.Image:
    """Decode an image to RGB and resize its short side (bilinear)."""
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{path} cannot be decoded: {error}") from error
    scale = short_side / min(image.size)
    width, height = (max(short_side, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _crop(image: Image.Image, left: int, top: int, size: int) -> Tensor:
    part = image.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(part)).permute(2, 0, 1)


def centre_crop(image: Image.Image, size: int) -> Tensor:
    """The middle square, uint8 [3, size, size]."""
    return _crop(image, (image.width - size) // 2, (image.height - size) // 2, size)


def _stacked(load: Callable[[int], Tensor], count: int) -> Tensor:
    with ThreadPoolExecutor(LOADERS) as pool:
        return torch.stack(list(pool.map(load, range(count))))


@dataclass(frozen=True)
class FolderImages:
    """Images decoded when they are needed, many at a time.

    Attributes:
        paths: the files.
        targets: int64 [N], class numbers.
        labels: the name of each class: its folder's.
        size: height and width in pixels that the net takes.
        short_side: pixels that the short side is resized to before cropping.
        ahead: batches to load before they are asked for.
    """

    paths: tuple[Path, ...]
    targets: Tensor
    labels: tuple[str, ...]
    size: int
    short_side: int
    ahead: ClassVar[int] = 2

    def __len__(self) -> int:
        return len(self.targets)

    def subset(self, rows: Tensor) -> FolderImages:
        """The images ``rows``, in that order."""
        paths = tuple(self.paths[int(r)] for r in rows)
        return FolderImages(paths, self.targets[rows], self.labels, self.size, self.short_side)

    def plain(self, rows: Tensor) -> Tensor:
        """The images ``rows``, centre-cropped: uint8 [N, 3, size, size]."""

        def load(at: int) -> Tensor:
            return centre_crop(read_image(self.paths[int(rows[at])], self.short_side), self.size)

        return _stacked(load, len(rows))

    def augmented(
        self, rows: Tensor, generator: torch.Generator, flips: Tensor | None = None
    ) -> Tensor:
        """The images ``rows``, randomly cropped and flipped: uint8 [N, 3, size, size].

        Args:
            flips: bool [N], which to flip; ``None`` draws.
        """
        draws = torch.rand(len(rows), 3, generator=generator)
        flipped = draws[:, 2] < 0.5 if flips is None else flips

        def load(at: int) -> Tensor:
            image = read_image(self.paths[int(rows[at])], self.short_side)
            left = int(draws[at, 0] * (image.width - self.size + 1))
            top = int(draws[at, 1] * (image.height - self.size + 1))
            crop = _crop(image, left, top, self.size)
            return crop.flip(2) if flipped[at] else crop

        return _stacked(load, len(rows))


def load_folder(root: Path, size: int, short_side: int) -> FolderImages:
    """The images of a folder of class folders, in order of class and file name."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: expected one folder of images for each class")
    labels = sorted(p.name for p in root.iterdir() if p.is_dir())
    paths: list[Path] = []
    targets: list[int] = []
    for number, label in enumerate(labels):
        found = sorted(p for p in (root / label).iterdir() if p.suffix.lower() in SUFFIXES)
        paths += found
        targets += [number] * len(found)
    if not paths:
        raise DataError(
            f"{root} holds no class folders with images ({', '.join(sorted(SUFFIXES))})"
        )
    if short_side < size:
        raise DataError(f"a short side of {short_side} pixels is less than the net's {size}")
    return FolderImages(tuple(paths), torch.tensor(targets), tuple(labels), size, short_side)
