"""Teachers: what trained nets say about the training images, found once and kept beside a run.

Several nets, asked about an image and its mirror image, are right more often than one net is; their
mean probabilities teach one net to be. The targets belong to the plain images and serve for every
crop of them, so that no training step pays for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from . import checkpoint, config, data, loop
from .config import Config
from .errors import CheckpointError
from .evaluate import accuracy_and_loss
from .export import Bundle
from .loop import Job

PHASE = "teacher"
_BATCH = 250


def _of_bundle(folder: Path, wanted: Config) -> Callable[[Tensor], Tensor]:
    bundle = Bundle(folder)
    given = bundle.manifest["input"]
    _check(folder, (bundle.manifest["classes"], given["height"]), wanted)
    blocks = len(bundle.blocks)

    def logits(pixels: Tensor) -> Tensor:
        inputs = bundle.normalise(pixels).contiguous().numpy()
        return torch.from_numpy(bundle.logits(inputs, np.ones((len(inputs), blocks), bool)))

    return logits


def _of_checkpoint(path: Path, wanted: Config) -> Callable[[Tensor], Tensor]:
    saved = checkpoint.load(path)
    theirs = config.from_dict(saved["config"], str(path))
    _check(path, (theirs.data.classes, theirs.net.size), wanted)
    net = theirs.build_net()
    loop.load_finished(path, {"net": net})
    net.to(memory_format=torch.channels_last).eval()
    normalise = theirs.normalise()

    def logits(pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            return cast(Tensor, net(normalise(pixels)))

    return logits


def _check(path: Path, found: tuple[int, int], wanted: Config) -> None:
    expected = (wanted.data.classes, wanted.net.size)
    if found != expected:
        raise CheckpointError(
            f"{path}: found {found[0]} classes and images of {found[1]} pixels, expected "
            f"{expected[0]} and {expected[1]}"
        )


def _log_mean(teachers: Sequence[Callable[[Tensor], Tensor]], pixels: Tensor) -> Tensor:
    """Logarithm of the teachers' mean probabilities over both mirror images, [N, classes]."""
    views = (pixels, pixels.flip(3))
    each = [logits(view).log_softmax(1) for logits in teachers for view in views]
    return torch.stack(each).logsumexp(0) - math.log(len(each))


def _figures(targets: Tensor, classes: Tensor) -> dict[str, float]:
    accuracy, loss = accuracy_and_loss(targets, classes)
    return {"images": len(classes), "accuracy": accuracy, "loss": loss}


def teach(job: Job, paths: Sequence[Path], threads: int) -> dict[str, Any]:
    """Write ``teacher.pt``: the log-probabilities of all training images, float16 [N, classes].

    Args:
        paths: bundles (folders) and checkpoints; of each, the full net is asked.
        threads: batches that are computed at once.

    Returns:
        The ensemble's figures on the validation and on the training images.
    """
    place = job.checkpoint(PHASE)
    if place.exists():
        raise CheckpointError(f"{place} exists: remove it, or give another --run")
    teachers = [
        (_of_bundle if path.is_dir() else _of_checkpoint)(path, job.config) for path in paths
    ]

    def targets(split: str) -> tuple[Tensor, Tensor]:
        images = job.config.load(job.data_root, split)
        starts = range(0, len(images), _BATCH)

        def one(start: int) -> Tensor:
            rows = torch.arange(start, min(start + _BATCH, len(images)))
            return _log_mean(teachers, images.plain(rows))

        with ThreadPoolExecutor(threads) as pool:
            parts = list(tqdm(pool.map(one, starts), total=len(starts), desc=split, unit="batch"))
        return torch.cat(parts), images.targets

    own = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        validation = _figures(*targets("validation"))
        taught, classes = targets("train")
    finally:
        torch.set_num_threads(own)
    train = _figures(taught, classes)
    names = [checkpoint.title(path) for path in paths]
    content = {
        "kind": PHASE,
        "config": loop.share(job.config),
        "step": 0,
        "total": 0,
        "log_probabilities": taught.half(),
        "teachers": names,
        "validation": validation,
        "train": train,
    }
    checkpoint.save(place, content)
    return {"teachers": names, "validation": validation, "train": train}


def read(job: Job, images: data.AnyImages) -> Tensor:
    """The run's targets, float32 [N, classes] by the number of the training image.

    Raises:
        CheckpointError: there are none, or they are of other images.
    """
    path = job.checkpoint(PHASE)
    if not path.exists():
        raise CheckpointError(
            f"no {path}, which finetune.taught wants: make it first (blockdrop-train teach)"
        )
    found: Tensor | None = checkpoint.load(path).get("log_probabilities")
    expected = (len(images), job.config.data.classes)
    if found is None or tuple(found.shape) != expected:
        shape = None if found is None else list(found.shape)
        raise CheckpointError(f"{path}: found targets {shape}, expected {list(expected)}")
    return found.float()


def provenance(job: Job) -> dict[str, Any] | None:
    """Which teachers the run's finetuning had, and how good they are; None where it had none."""
    path = job.checkpoint(PHASE)
    if not job.config.finetune.taught or not path.exists():
        return None
    saved = checkpoint.load(path)
    return {key: saved[key] for key in ("teachers", "validation", "train") if key in saved}
