"""Teachers: what is kept of them, who may teach, and that finetuning learns from them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_bundle

from blockdrop_train import base, checkpoint, curriculum, evaluate, finetune, loop, teacher
from blockdrop_train.config import Config
from blockdrop_train.data import Normalise
from blockdrop_train.errors import CheckpointError
from blockdrop_train.export import Bundle
from blockdrop_train.loop import Job


def started(config: Config, cifar: Path, folder: Path) -> Job:
    job = Job(config, folder, cifar, bfloat16=False)
    base.train(job)
    curriculum.train(job)
    return job


def taught(config: Config, weight: float) -> Config:
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, mean=(0.5,) * 3, std=(0.25,) * 3),
        finetune=dataclasses.replace(config.finetune, taught=weight, temperature=2.0),
    )


def test_targets_are_the_mean_of_all_views(tiny: Config, cifar: Path, tmp_path: Path) -> None:
    job = started(taught(tiny, 0.5), cifar, tmp_path / "run")
    # Its own preprocessing, not the run's, is what a teacher must be given.
    folder = write_bundle(tmp_path / "models" / "other" / "1", tiny, Normalise())
    path = job.checkpoint("base")
    shown = teacher.teach(job, [folder, path], threads=2)
    assert shown["teachers"] == ["other/1", "run/base.pt"]

    images = job.config.load(cifar, "train")
    pixels = images.plain(torch.arange(len(images)))
    net, _ = curriculum.nets_of(job)
    loop.load_nets(path, {"net": net})
    net.eval()
    bundle = Bundle(folder)
    every = np.ones((len(images), 3), bool)
    chances = []
    for view in (pixels, pixels.flip(3)):
        inputs = bundle.normalise(view).contiguous().numpy()
        chances.append(torch.from_numpy(bundle.logits(inputs, every)).softmax(1))
        with torch.no_grad():
            chances.append(net(job.config.normalise()(view)).softmax(1))
    assert (chances[0] - chances[1]).abs().max() > 0.05
    found = teacher.read(job, images)
    torch.testing.assert_close(found.exp(), torch.stack(chances).mean(0), atol=2e-3, rtol=0)
    saved = checkpoint.load(job.checkpoint("teacher"))
    assert saved["validation"]["images"] == 30
    right = float((found.argmax(1) == images.targets).double().mean())
    assert shown["train"]["accuracy"] == right and shown["train"]["images"] == 270
    assert teacher.provenance(job) == {
        "teachers": ["other/1", "run/base.pt"],
        "validation": saved["validation"],
        "train": shown["train"],
    }
    assert teacher.provenance(dataclasses.replace(job, config=tiny)) is None
    with pytest.raises(CheckpointError, match="exists: remove it"):
        teacher.teach(job, [path], threads=1)


def test_teachers_of_other_classes_are_refused(tiny: Config, cifar: Path, tmp_path: Path) -> None:
    other = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, classes=7))
    folder = write_bundle(tmp_path / "models" / "other" / "1", other, Normalise())
    job = Job(tiny, tmp_path / "run", cifar)
    with pytest.raises(CheckpointError, match="found 7 classes and images of 32 pixels"):
        teacher.teach(job, [folder], threads=1)
    path = tmp_path / "other.pt"
    nets = {"net": other.build_net().state_dict()}
    checkpoint.save(path, {"step": 0, "config": loop.share(other), "nets": nets})
    with pytest.raises(CheckpointError, match="found 7 classes"):
        teacher.teach(job, [path], threads=1)
    assert not job.checkpoint("teacher").exists()


def test_finetuning_says_what_teacher_it_misses(tiny: Config, cifar: Path, tmp_path: Path) -> None:
    job = started(taught(tiny, 0.5), cifar, tmp_path / "run")
    with pytest.raises(CheckpointError, match="blockdrop-train teach"):
        finetune.train(job)
    few = {"step": 0, "log_probabilities": torch.zeros(4, 10)}
    checkpoint.save(job.checkpoint("teacher"), few)
    with pytest.raises(CheckpointError, match=r"found targets \[4, 10\], expected \[270, 10\]"):
        finetune.train(job)


def test_finetuning_learns_from_the_teacher(tiny: Config, cifar: Path, tmp_path: Path) -> None:
    """A teacher that swaps all classes is believed where it has all the weight."""
    accuracies = {}
    for weight in (0.0, 1.0):
        config = taught(tiny, weight)
        config = dataclasses.replace(
            config,
            base=dataclasses.replace(config.base, epochs=6),
            finetune=dataclasses.replace(config.finetune, epochs=16, points=()),
        )
        job = started(config, cifar, tmp_path / f"{weight}")
        images = config.load(cifar, "train")
        swapped = torch.nn.functional.one_hot((images.targets + 1) % 10, 10) * 12.0
        content = {"step": 0, "log_probabilities": swapped.log_softmax(1).half()}
        checkpoint.save(job.checkpoint("teacher"), content)
        finetune.train(job)
        net, _ = curriculum.nets_of(job)
        loop.load_nets(job.checkpoint("finetune"), {"net": net})
        held = config.load(cifar, "validation")
        classes = evaluate.logits(net, held, config.normalise()).argmax(1)
        accuracies[weight] = [
            float((classes == (held.targets + by) % 10).double().mean()) for by in (0, 1)
        ]
    right, wrong = accuracies[0.0]
    assert right > 0.5 > wrong, accuracies
    right, wrong = accuracies[1.0]
    assert wrong > 0.5 > right, accuracies
