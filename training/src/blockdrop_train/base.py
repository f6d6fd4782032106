"""Base training: the residual network alone, before any policy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import loop
from .config import Base, Masks
from .evaluate import score
from .loop import Batch, Job, Phase
from .nets import ResNet
from .workers import World


def random_masks(net: ResNet, count: int, least: float, generator: torch.Generator) -> Tensor:
    """Masks [count, K], each with its own keep rate drawn from [least, 1].

    The first block of every segment but the first changes the width and matters most: its drop
    rate is 0.4 times the others'.
    """
    rate = least + (1 - least) * torch.rand(count, 1, generator=generator)
    drop = (1 - rate).expand(count, net.depth).clone()
    drop[:, net.segment_starts()[1:]] *= 0.4
    return torch.rand(count, net.depth, generator=generator) >= drop


def random_rows(
    net: ResNet, count: int, masks: Masks, progress: float, generator: torch.Generator
) -> Tensor | None:
    """A batch's masks at a progress in [0, 1], or ``None`` where every image keeps every block."""
    if progress < masks.start:
        return None
    rows = masks.rows
    if masks.first_rows is not None:
        along = (progress - masks.start) / (1 - masks.start)
        rows = masks.first_rows + along * (masks.rows - masks.first_rows)
    dropped = round(count * rows)
    if dropped == 0:
        return None
    mask = torch.ones(count, net.depth, dtype=torch.bool)
    mask[:dropped] = random_masks(net, dropped, masks.least_keep, generator)
    return mask


def train(job: Job, world: World = World()) -> None:  # noqa: B008
    """Train the residual network, resuming the folder's checkpoint where there is one."""
    config = job.config
    base: Base = config.base
    torch.manual_seed(config.seed)
    net = config.build_net().to(job.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if job.checkpoint("grown").exists() and not job.checkpoint("base").exists():
        loop.load_nets(job.checkpoint("grown"), {"net": net})
    opt = loop.sgd(net, base.momentum, base.decay)
    images = config.load(job.data_root, "train")
    held = config.load(job.data_root, "validation")

    def step(progress: float, batch: Batch, generator: torch.Generator) -> dict[str, float]:
        net.train()
        rate = base.rate * loop.triangle(progress, base.warmup)
        loop.set_rate(opt, rate)
        mask = random_rows(net, len(batch.inputs), base.masks, progress, generator)
        with job.autocast():
            out = net(batch.inputs, None if mask is None else mask.to(job.device))
        loss = F.cross_entropy(out.float(), batch.targets, label_smoothing=base.smoothing)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        world.synchronise(net)
        opt.step()
        return {"loss": loss.item(), "rate": rate}

    def evaluate() -> dict[str, Any]:
        return {"full": score(net, held, config.normalise()).as_dict()}

    phase = Phase("base", 1, {"net": net}, {"net": opt}, base.epochs, base.batch, step, evaluate)
    loop.run(job, world, phase, images)
