"""Training of a residual network for paths that others decide: a fixed policy, or a heuristic."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import checkpoint, data, loop, teacher
from .averaging import Average, settle
from .data import AnyImages
from .gates import distillation
from .loop import Batch, Job, Phase
from .nets import ResNet
from .workers import World

PHASE = 3
"""Keys the random streams of finetuning."""


@dataclass(frozen=True)
class PathTraining:
    """One net's training; the configuration's ``finetune`` says how.

    Attributes:
        net: to train.
        images: to train on.
        decide: the masks [N, K] of a batch.
        figures: of a net, on the validation images.
        full_rows: share of a batch's images that train the full net too.
    """

    job: Job
    world: World
    net: ResNet
    images: AnyImages
    decide: Callable[[Batch], Tensor]
    figures: Callable[[ResNet], dict[str, Any]]
    full_rows: float

    def run(self, name: str, others: dict[str, nn.Module]) -> None:
        """Train, from the phase's checkpoint where there is one, and settle in the end.

        The checkpoint's ``net`` is the one to serve; with an average, ``weights`` is the one that
        trains.

        Args:
            name: of the phase.
            others: nets that the checkpoint holds besides.
        """
        given = self.job.config.finetune
        average = Average(self.net, given.average) if given.average else None
        served = average.net if average else self.net
        nets: dict[str, nn.Module] = {"net": served} | others
        if average:
            nets["weights"] = self.net

        def settled() -> dict[str, Any]:
            settle(served, self._settling(served))
            return self.figures(served)

        opt = self._optimiser()
        phase = Phase(
            name,
            PHASE,
            nets,
            {"net": opt},
            given.epochs,
            given.batch,
            self._step(opt, average),
            settled if average else functools.partial(self.figures, served),
            average.state if average else {},
        )
        loop.run(self.job, self.world, phase, self.images)
        if not given.settle or self.world.rank or self.job.stop_after is not None:
            return
        path = self.job.checkpoint(name)
        saved = loop.load_nets(path, nets)
        if loop.SETTLED in saved["state"]:
            return
        if not average or saved["validation"] is None:  # a mean is settled to be evaluated
            saved["validation"] = settled()
        saved["nets"]["net"] = served.state_dict()
        saved["state"][loop.SETTLED] = 1.0
        checkpoint.save(path, saved)
        print(json.dumps({"settled": given.settle} | saved["validation"]))

    def _mixed(self, net: ResNet, inputs: Tensor, masks: Tensor) -> tuple[Tensor, int]:
        """Class logits of the first images with every block, then of all on their paths.

        One pass, so that batch norm sees the mixture it will serve. Also, how many the first are.
        """
        both = round(len(inputs) * self.full_rows)
        whole = torch.ones_like(masks[:both])
        out = net(torch.cat([inputs[:both], inputs]), torch.cat([whole, masks]))
        return cast(Tensor, out), both

    def _settling(self, net: ResNet) -> Iterator[Callable[[], object]]:
        """The passes that settle a net, over batches as training's."""
        given, seed = self.job.config.finetune, self.job.config.seed
        order = data.batches(len(self.images), given.batch, seed, given.epochs)
        for step, rows in enumerate(order[: given.settle], len(order) * given.epochs):
            generator = data.generator_for(seed, PHASE, step)
            position = (step + 0.5) / len(order)
            batch = loop.augmented(self.job.config, self.images, rows, generator, position)
            batch = batch.to(self.job.device)
            yield functools.partial(self._mixed, net, batch.inputs, self.decide(batch))

    def _optimiser(self) -> torch.optim.Optimizer:
        given = self.job.config.finetune
        if given.method == "paths":
            return loop.sgd(self.net, given.momentum, given.decay)
        # A heuristic by the paper's recipe, at its steady rate.
        return torch.optim.Adam(self.net.parameters(), lr=given.rate, weight_decay=given.decay)

    def _step(self, opt: torch.optim.Optimizer, average: Average | None) -> loop.Step:
        job, net = self.job, self.net
        given = job.config.finetune
        told = teacher.read(job, self.images) if given.taught else None

        def step(progress: float, batch: Batch, generator: torch.Generator) -> dict[str, float]:
            net.train()
            if given.method == "paths":
                rate = given.rate * loop.triangle(progress, given.warmup, given.last)
                loop.set_rate(opt, rate)
            masks = self.decide(batch)
            with job.autocast():
                out, both = self._mixed(net, batch.inputs, masks)
            out = out.float()
            full, path = out[:both], out[both:]
            labels = torch.cat([batch.targets[:both], batch.targets])
            label_losses = F.cross_entropy(out, labels, reduction="none")
            losses = label_losses
            if told is not None:
                wanted = told[batch.rows].to(out.device)
                taught = distillation(out, torch.cat([wanted[:both], wanted]), given.temperature)
                losses = torch.lerp(losses, taught, given.taught)
            own = distillation(path[:both], full, given.temperature)
            learnt = given.distil * (own - losses[both : 2 * both])
            loss = (losses.sum() + learnt.sum()) / len(batch.inputs)
            opt.zero_grad(set_to_none=True)
            loss.backward()
            self.world.synchronise(net)
            opt.step()
            if average:
                average.update(net, progress)
            return {
                "full": label_losses[:both].sum().item() / max(1, both),
                "path": label_losses[both:].mean().item(),
                "kept": masks.float().sum(1).mean().item(),
            }

        return step
