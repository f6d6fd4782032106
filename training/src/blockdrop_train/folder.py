"""Image folders in ImageNet's layout: ``ROOT/train/CLASS/*`` and ``ROOT/val/CLASS/*``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .errors import DataError

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


@dataclass(frozen=True)
class FolderImages:
    """Images decoded when they are needed.

    Attributes:
        paths: the files.
        targets: int64 [N], class numbers.
        labels: the name of each class: its folder's.
        size: height and width in pixels that the net takes.
        short_side: pixels that the short side is resized to before cropping.
    """

    paths: tuple[Path, ...]
    targets: Tensor
    labels: tuple[str, ...]
    size: int
    short_side: int

    def __len__(self) -> int:
        return len(self.targets)

    def subset(self, rows: Tensor) -> FolderImages:
        """The images ``rows``, in that order."""
        paths = tuple(self.paths[int(r)] for r in rows)
        return FolderImages(paths, self.targets[rows], self.labels, self.size, self.short_side)

    def plain(self, rows: Tensor) -> Tensor:
        """The images ``rows``, centre-cropped: uint8 [N, 3, size, size]."""
        return torch.stack(
            [centre_crop(read_image(self.paths[int(r)], self.short_side), self.size) for r in rows]
        )

    def augmented(
        self, rows: Tensor, generator: torch.Generator, flips: Tensor | None = None
    ) -> Tensor:
        """The images ``rows``, randomly cropped and flipped: uint8 [N, 3, size, size].

        Args:
            flips: bool [N], which to flip; ``None`` draws.
        """
        crops = []
        draws = torch.rand(len(rows), 3, generator=generator)
        if flips is None:
            flips = draws[:, 2] < 0.5
        for row, draw, flip in zip(rows, draws, flips, strict=True):
            image = read_image(self.paths[int(row)], self.short_side)
            left = int(draw[0] * (image.width - self.size + 1))
            top = int(draw[1] * (image.height - self.size + 1))
            crop = _crop(image, left, top, self.size)
            crops.append(crop.flip(2) if flip else crop)
        return torch.stack(crops)


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
