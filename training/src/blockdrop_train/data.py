"""Image data sets held in memory, the fixed validation split and the paper's augmentation."""

from __future__ import annotations

import functools
import hashlib
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from .errors import DataError
from .folder import FolderImages, load_folder

CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2470, 0.2435, 0.2616)
CIFAR10_LABELS = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
SPLIT_SEED = 20180618
"""Seed of the validation split. It is part of the data set's definition: never vary it."""
_DIGEST = 8
"""Bytes of an image's sha256 in the lists of ``held/``."""


T = TypeVar("T")


@dataclass(frozen=True)
class Images:
    """A set of images.

    Attributes:
        pixels: uint8 [N, C, H, W], RGB.
        targets: int64 [N], class numbers.
        labels: the name of each class.
        ahead: batches to load before they are asked for.
    """

    pixels: Tensor
    targets: Tensor
    labels: tuple[str, ...]
    ahead: ClassVar[int] = 0

    def __len__(self) -> int:
        return len(self.targets)

    def subset(self, rows: Tensor) -> Images:
        """The images ``rows``, in that order."""
        return Images(self.pixels[rows], self.targets[rows], self.labels)

    def plain(self, rows: Tensor) -> Tensor:
        """The images ``rows``: uint8 [N, C, H, W]."""
        return self.pixels[rows]

    def augmented(
        self, rows: Tensor, generator: torch.Generator, flips: Tensor | None = None
    ) -> Tensor:
        """The images ``rows``, randomly cropped and flipped: uint8 [N, C, H, W].

        Args:
            flips: bool [N], which to flip; ``None`` draws.
        """
        return augment(self.pixels[rows], generator, flips=flips)


AnyImages = Images | FolderImages


@dataclass(frozen=True)
class Normalise:
    """Pixels -> network input: (pixel / 255 - mean) / std by channel."""

    mean: tuple[float, ...] = CIFAR_MEAN
    std: tuple[float, ...] = CIFAR_STD

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 [N, C, H, W] -> float32 [N, C, H, W], channels-last in memory."""
        mean = torch.tensor(self.mean)[:, None, None] * 255
        std = torch.tensor(self.std)[:, None, None] * 255
        x = (pixels.float() - mean) / std
        return x.contiguous(memory_format=torch.channels_last)


def _records(path: Path, label_bytes: int, label_at: int) -> tuple[np.ndarray, np.ndarray]:
    raw = np.fromfile(path, dtype=np.uint8)
    size = label_bytes + 3072
    if len(raw) == 0 or len(raw) % size:
        raise DataError(
            f"{path}: {len(raw)} bytes, expected a multiple of {size} "
            f"({label_bytes} label byte(s) and 3072 pixel bytes a record)"
        )
    raw = raw.reshape(-1, size)
    return raw[:, label_bytes:].reshape(-1, 3, 32, 32), raw[:, label_at].astype(np.int64)


def _pickled(path: Path, key: bytes) -> tuple[np.ndarray, np.ndarray]:
    with path.open("rb") as file:
        # The publishers' Python layout is a pickle: only load files from a source you trust.
        content = pickle.load(file, encoding="bytes")  # noqa: S301
    if b"data" not in content or key not in content:
        raise DataError(f"{path}: expected the keys 'data' and '{key.decode()}'")
    pixels = np.asarray(content[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
    return pixels, np.asarray(content[key], dtype=np.int64)


@dataclass(frozen=True)
class _Layout:
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    binary: bool


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_LAYOUTS = {
    "cifar10": (
        _Layout(
            "cifar-10-batches-bin",
            tuple(f"{b}.bin" for b in _BATCHES),
            ("test_batch.bin",),
            "batches.meta.txt",
            True,
        ),
        _Layout("cifar-10-batches-py", _BATCHES, ("test_batch",), "batches.meta", False),
    ),
    "cifar100": (
        _Layout("cifar-100-binary", ("train.bin",), ("test.bin",), "fine_label_names.txt", True),
        _Layout("cifar-100-python", ("train",), ("test",), "meta", False),
    ),
}
_GET = {
    "cifar10": "the CIFAR-10 binary or Python archive of www.cs.toronto.edu/~kriz/cifar.html",
    "cifar100": "the CIFAR-100 binary or Python archive of www.cs.toronto.edu/~kriz/cifar.html",
}


def _names(path: Path, binary: bool, fine: bool) -> tuple[str, ...]:
    if binary:
        return tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    with path.open("rb") as file:
        content = pickle.load(file, encoding="bytes")  # noqa: S301
    key = b"fine_label_names" if fine else b"label_names"
    return tuple(name.decode() for name in content[key])


def load_cifar(name: str, root: Path, split: str) -> Images:
    """CIFAR-10 or CIFAR-100 in the publishers' binary or Python layout.

    Args:
        name: ``cifar10`` or ``cifar100``.
        root: the folder that holds the archive's folder (``cifar-10-batches-bin`` and so on), or
            that folder itself.
        split: ``train`` (50,000 images) or ``test`` (10,000).
    """
    layouts = _LAYOUTS[name]
    for layout in layouts:
        for folder in (root / layout.folder, root):
            files = layout.train if split == "train" else layout.test
            paths = [folder / file for file in files]
            if not (folder / layout.names).exists() or not all(p.exists() for p in paths):
                continue
            fine = name == "cifar100"
            if layout.binary:
                parts = [_records(p, 2 if fine else 1, 1 if fine else 0) for p in paths]
            else:
                parts = [_pickled(p, b"fine_labels" if fine else b"labels") for p in paths]
            labels = _names(folder / layout.names, layout.binary, fine)
            targets = torch.from_numpy(np.concatenate([t for _, t in parts]))
            if int(targets.max()) >= len(labels):
                raise DataError(
                    f"{folder}: class {int(targets.max())} found, "
                    f"{layout.names} names {len(labels)}"
                )
            return Images(torch.from_numpy(np.concatenate([p for p, _ in parts])), targets, labels)
    folders = " or ".join(layout.folder for layout in layouts)
    raise DataError(f"no {name} {split} files in {root}: unpack {_GET[name]} there ({folders})")


def _listed(name: str, images: Images) -> np.ndarray | None:
    """The rows of the images that ``held/NAME.sha256`` lists, if there is one and all are here.

    The file holds the first bytes of the sha256 of each image's pixels, so that the same images
    are held out whatever order an archive has them in.
    """
    path = Path(__file__).with_name("held") / f"{name}.sha256"
    if not path.exists():
        return None
    content = path.read_bytes()
    held = {content[at : at + _DIGEST] for at in range(0, len(content), _DIGEST)}
    digests = (hashlib.sha256(pixels.tobytes()).digest() for pixels in images.pixels.numpy())
    rows = np.flatnonzero([digest[:_DIGEST] in held for digest in digests])
    return rows if len(rows) == len(held) else None


def load(name: str, root: Path, split: str, size: int = 32, short_side: int = 32) -> AnyImages:
    """A data set's ``train``, ``validation`` or ``test`` images.

    The validation split is a fixed tenth of the published training images (5,000 of CIFAR's
    50,000), at most 50,000; ``train`` is the rest. Choices are made on it, never on test images.
    CIFAR-10's are listed one by one; of other images a seed draws them by their order.

    Args:
        name: ``cifar10``, ``cifar100``, or ``folder`` for ImageNet's layout in ``root``, whose
            ``val`` folder is the test split here.
        size: of ``folder`` images, height and width of the crop.
        short_side: of ``folder`` images, before the crop.
    """
    if split not in ("train", "validation", "test"):
        raise DataError(f"split '{split}': expected train, validation or test")
    images: AnyImages
    if name == "folder":
        images = load_folder(root / ("val" if split == "test" else "train"), size, short_side)
    elif name in _LAYOUTS:
        if not root.is_dir():
            raise DataError(f"{root} is not a folder: unpack {_GET[name]} there")
        images = load_cifar(name, root, "test" if split == "test" else "train")
    else:
        raise DataError(f"data set '{name}': expected one of {', '.join(_LAYOUTS)}, folder")
    if split == "test":
        return images
    order = np.random.RandomState(SPLIT_SEED).permutation(len(images))
    held = order[: min(len(images) // 10, 50_000)]
    if isinstance(images, Images) and (listed := _listed(name, images)) is not None:
        held = listed
    chosen = np.isin(np.arange(len(images)), held) == (split == "validation")
    return images.subset(torch.from_numpy(np.flatnonzero(chosen)))


def augment(
    pixels: Tensor, generator: torch.Generator, padding: int = 4, flips: Tensor | None = None
) -> Tensor:
    """Random crop after zero padding, random horizontal flip; whole batch at once.

    Args:
        pixels: uint8 [N, C, H, W].
        flips: bool [N], which images to flip; ``None`` draws.
    """
    count, channels, height, width = pixels.shape
    padded = torch.nn.functional.pad(pixels, (padding,) * 4)
    top = torch.randint(0, 2 * padding + 1, (count, 1, 1, 1), generator=generator)
    left = torch.randint(0, 2 * padding + 1, (count, 1, 1, 1), generator=generator)
    if flips is None:
        flips = torch.randint(0, 2, (count,), generator=generator).bool()
    flip = flips[:, None, None, None]
    rows = top + torch.arange(height)[None, None, :, None]
    columns = torch.arange(width)[None, None, None, :].expand(count, 1, 1, width)
    columns = left + torch.where(flip, width - 1 - columns, columns)
    image = torch.arange(count)[:, None, None, None]
    channel = torch.arange(channels)[None, :, None, None]
    return padded[image, channel, rows, columns]


def cut_out(inputs: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Cutout (DeVries and Taylor, 2017): a square of each image is blank, wherever it falls.

    Args:
        inputs: normalised images [N, C, H, W]; blank is zero, the mean colour.
        size: of the square in pixels; what lies outside the image is not cut.
    """
    count, _, height, width = inputs.shape
    top = torch.randint(0, height, (count, 1, 1), generator=generator) - size // 2
    left = torch.randint(0, width, (count, 1, 1), generator=generator) - size // 2
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    inside = (rows >= top) & (rows < top + size) & (columns >= left) & (columns < left + size)
    return inputs.clone().masked_fill_(inside[:, None], 0.0)


def generator_for(*key: int) -> torch.Generator:
    """A generator whose stream is fixed by ``key``, so that no random state needs saving."""
    seed = int(np.random.SeedSequence(list(key)).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator().manual_seed(seed)


def alternating_flips(rows: Tensor, count: int, seed: int, epoch: int) -> Tensor:
    """Which of the images ``rows`` of ``count`` are flipped in an epoch: bool [N].

    A coin for each image decides its first epoch; it is the other way round in every epoch after,
    so that two epochs show every image both ways.
    """
    coins = torch.randint(0, 2, (count,), generator=generator_for(seed, 1, 2)).bool()
    return coins[rows] ^ bool(epoch % 2)


def batches(
    count: int, size: int, seed: int, epoch: int, rank: int = 0, world: int = 1
) -> list[Tensor]:
    """This worker's batches of one epoch: a list of row numbers [size].

    The order is fixed by seed and epoch; an incomplete last batch is left out.
    """
    order = torch.randperm(count, generator=generator_for(seed, epoch))
    step = size * world
    full = count // step
    if full == 0:
        raise DataError(f"{count} images are fewer than one batch of {step}")
    return list(order[: full * step].view(full, world, size)[:, rank])


def load_ahead(tasks: Iterable[Callable[[], T]], ahead: int) -> Iterator[T]:
    """The tasks' results in order, while the next ``ahead`` tasks run, one after the other."""
    if ahead == 0:
        yield from (task() for task in tasks)
        return
    with ThreadPoolExecutor(1) as thread:
        waiting: deque[Future[T]] = deque()
        try:
            for task in tasks:
                waiting.append(thread.submit(task))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            thread.shutdown(cancel_futures=True)


def in_order(images: AnyImages, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pixels and targets in order, ``size`` at a time, the incomplete last batch included."""

    def load(start: int) -> tuple[Tensor, Tensor]:
        rows = torch.arange(start, min(start + size, len(images)))
        return images.plain(rows), images.targets[rows]

    starts = range(0, len(images), size)
    yield from load_ahead((functools.partial(load, start) for start in starts), images.ahead)
