"""Tiny nets and made-up images that the tests share."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from blockdrop_train.config import Base, Config, Curriculum, Data, Finetune, Masks, Net, PolicyNet
from blockdrop_train.data import Normalise
from blockdrop_train.export import About, export

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws does not depend on the tests before it."""
    torch.manual_seed(0)


def shake(net: nn.Module, seed: int = 0) -> None:
    """Give batch norms statistics and weights that a mistake in folding would show."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            size = module.running_mean.shape
            module.running_mean.copy_(0.2 * torch.randn(size, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(size, generator=generator))
            module.weight.data.copy_(0.3 + 0.6 * torch.rand(size, generator=generator))
            module.bias.data.copy_(0.2 * torch.randn(size, generator=generator))


def write_cifar(folder: Path, per_batch: int = 60, test: int = 40, seed: int = 0) -> Path:
    """A made-up CIFAR-10 in the binary layout; a class is a colour, so a net can learn it."""
    draw = np.random.default_rng(seed)
    home = folder / "cifar-10-batches-bin"
    home.mkdir(parents=True)
    palette = np.random.default_rng(7).integers(0, 256, (10, 3))
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        count = test if name == "test_batch" else per_batch
        classes = draw.integers(0, 10, count)
        pixels = palette[classes][:, :, None] + draw.integers(-20, 21, (count, 3, 1024))
        records = np.concatenate([classes[:, None], pixels.clip(0, 255).reshape(count, -1)], 1)
        (home / f"{name}.bin").write_bytes(records.astype(np.uint8).tobytes())
    (home / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n")
    return folder


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    return write_cifar(tmp_path / "data")


@pytest.fixture
def tiny() -> Config:
    """A net of 3 narrow blocks and short phases."""
    return Config(
        name="tiny",
        data=Data(flip="alternate"),
        net=Net(depth=8, widths=(4, 6, 8)),
        policy=PolicyNet(widths=(4, 4, 4), pool=4),
        base=Base(epochs=2, batch=30, rate=0.1, masks=Masks(start=0.5)),
        curriculum=Curriculum(
            method="gates",
            epochs=2,
            batch=30,
            warmup_epochs=1,
            flops=9e5,
            calibrate=8e5,
            looked=0.5,
            full_rows=0.5,
        ),
        finetune=Finetune(
            method="paths",
            epochs=2,
            batch=30,
            rate=0.05,
            full_rows=0.5,
            points=(6e5, 8e5, 8e5, 1e6),
            last=0.5,
            average=0.5,
            settle=2,
        ),
    )


def write_bundle(folder: Path, config: Config, normalise: Normalise) -> Path:
    """A bundle of the configured nets, shaken."""
    net, policy = config.build_net(), config.build_policy(3)
    shake(net)
    shake(policy, 1)
    labels = tuple(map(str, range(config.data.classes)))
    about = About("made up", {"backbone": "x"}, labels, 32, {"seed": 1}, {})
    export(folder, net, policy, normalise, about, torch.randn(4, *net.input_size), {"111": 1.0})
    return folder


def paper_method(config: Config) -> Config:
    """The same run by the paper's estimator."""
    return dataclasses.replace(
        config,
        data=Data(),
        curriculum=dataclasses.replace(config.curriculum, method="reinforce"),
        finetune=dataclasses.replace(config.finetune, method="reinforce", points=()),
    )
