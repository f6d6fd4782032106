"""The training loop that every command shares: order, checkpoints, exact resume, evaluation.

Everything random is drawn from generators keyed by seed, phase, step and worker, and a checkpoint
holds everything else, so a resumed run takes exactly the steps of an uninterrupted one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import checkpoint, data
from .config import Config
from .errors import CheckpointError, ConfigError, TrainingError
from .progress import Progress
from .workers import World


@dataclass(frozen=True)
class Job:
    """One call of a training command, the same for every worker.

    Attributes:
        config: what to train.
        folder: where checkpoints and logs go; an interrupted run there is resumed.
        data_root: the folder of data sets.
        device: where to compute.
        bfloat16: compute convolutions in bfloat16 (weights and sums stay float32).
        save_every: steps between checkpoints; one more is written after every epoch.
        evaluate_every: epochs between evaluations on the validation images.
        stop_after: leave after this step, for tests of resuming.
    """

    config: Config
    folder: Path
    data_root: Path
    device: str = "cpu"
    bfloat16: bool = True
    save_every: int = 200
    evaluate_every: int = 1
    stop_after: int | None = None

    def checkpoint(self, phase: str) -> Path:
        """The checkpoint of a phase (``base``, ``curriculum`` or ``finetune``)."""
        return self.folder / f"{phase}.pt"

    def autocast(self) -> torch.autocast:
        """The precision of forward passes in training."""
        return torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.bfloat16)


def share(config: Config) -> dict[str, Any]:
    """The configuration as plain values, as checkpoints keep it."""
    return dataclasses.asdict(config)


Step = Callable[[float, "Batch", torch.Generator], dict[str, float]]
"""One update of weights, given the progress in [0, 1], a batch and its generator; returns what to
show."""


@dataclass
class Phase:
    """One phase of training as the loop sees it.

    Attributes:
        name: ``base``, ``curriculum`` or ``finetune``.
        number: keys the phase's random streams.
        nets: by name, trained or not; all are in the checkpoint.
        optimisers: by name.
        epochs, batch: batch over all workers.
        step: one update of weights.
        evaluate: figures on the validation images, on the first worker.
        state: numbers that a resumed run needs besides.
    """

    name: str
    number: int
    nets: dict[str, nn.Module]
    optimisers: dict[str, torch.optim.Optimizer]
    epochs: int
    batch: int
    step: Step
    evaluate: Callable[[], dict[str, Any]]
    state: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """One worker's share of a step.

    Attributes:
        inputs: normalised, augmented images [N, C, H, W].
        targets: classes [N].
        rows: the images' numbers in the data set [N], on the CPU.
        position: progress of the run in epochs.
    """

    inputs: Tensor
    targets: Tensor
    rows: Tensor
    position: float

    def to(self, device: str) -> Batch:
        """The batch with inputs and targets on the device."""
        return dataclasses.replace(
            self, inputs=self.inputs.to(device), targets=self.targets.to(device)
        )


def triangle(progress: float, warmup: float, last: float = 0.0) -> float:
    """Learning rate as a share of the peak: up linearly until ``warmup``, then down to ``last``."""
    if progress < warmup:
        return progress / warmup
    return last + (1 - last) * max(0.0, (1 - progress) / (1 - warmup))


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimiser.param_groups:
        group["lr"] = rate


def sgd(net: nn.Module, momentum: float, decay: float) -> torch.optim.SGD:
    """SGD with Nesterov momentum; no weight decay on biases and batch norm."""
    weights = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    return torch.optim.SGD(
        [{"params": weights, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}],
        lr=0.1,
        momentum=momentum,
        nesterov=momentum > 0,
    )


def load_nets(path: Path, nets: dict[str, nn.Module]) -> dict[str, Any]:
    """Load the named nets of a checkpoint; returns the checkpoint."""
    saved = checkpoint.load(path)
    for name, net in nets.items():
        if name not in saved["nets"]:
            raise CheckpointError(f"{path} holds no '{name}'")
        try:
            net.load_state_dict(saved["nets"][name])
        except RuntimeError as error:
            first = " ".join(str(error).split("\n\t")[:2])
            raise CheckpointError(
                f"{path}: '{name}' does not fit the configuration's: {first}"
            ) from error
    return saved


SHIFTED, SETTLED = "shift", "settled"
"""Marks in a checkpoint's state: what is done after a phase's last step."""


def load_finished(path: Path, nets: dict[str, nn.Module]) -> dict[str, Any]:
    """``load_nets`` of a phase that has come to its end.

    Raises:
        CheckpointError: steps are left, or what is done after the last one.
    """
    saved = load_nets(path, nets)
    kind = saved["kind"].split("-")[0]
    again = f"expected a finished phase: give its command again (blockdrop-train {kind})"
    if saved["step"] < saved["total"]:
        raise CheckpointError(f"{path}: found step {saved['step']} of {saved['total']}, {again}")
    given = saved["config"].get(kind, {})
    for mark, wanted in (
        (SHIFTED, kind == "curriculum" and given["method"] == "gates" and given.get("calibrate")),
        (SETTLED, kind == "finetune" and given["method"] == "paths" and given.get("settle")),
    ):
        if wanted and mark not in saved["state"]:
            raise CheckpointError(f"{path}: found its last step, but no '{mark}', {again}")
    return saved


def about(job: Job, blocks: int) -> dict[str, Any]:
    """What a result file says of its run: a net of so many ``blocks``."""
    return {
        "config": job.config.name,
        "data": job.config.data.name,
        "depth": job.config.net.depth,
        "blocks": blocks,
        "seed": job.config.seed,
    }


def imported(job: Job) -> dict[str, Any] | None:
    """What the run's base net was imported or grown from, if it was."""
    for name in ("grown", "base"):
        path = job.checkpoint(name)
        if path.exists():
            return checkpoint.load(path).get("imported")
    return None


def _warn(
    path: Path, saved: dict[str, Any], config: dict[str, Any], conditions: dict[str, Any]
) -> None:
    """Say what makes a resumed run another one than it began as."""
    if saved["config"] != config:
        print(f"{path}: goes on with another configuration than it began with", file=sys.stderr)
    for name, before in saved.get("conditions", {}).items():
        if before != conditions[name]:
            print(
                f"{path}: goes on with {name} {conditions[name]}, began with {before}: not the "
                "steps of an uninterrupted run",
                file=sys.stderr,
            )


def augmented(
    config: Config,
    images: data.AnyImages,
    rows: Tensor,
    generator: torch.Generator,
    position: float,
) -> Batch:
    """The images ``rows`` as training sees them at a position in epochs, on the CPU."""
    flips = None
    if config.data.flip == "alternate":
        flips = data.alternating_flips(rows, len(images), config.seed, int(position))
    inputs = config.normalise()(images.augmented(rows, generator, flips))
    if config.data.cutout:
        inputs = data.cut_out(inputs, config.data.cutout, generator)
    return Batch(inputs, images.targets[rows], rows, position)


def run(job: Job, world: World, phase: Phase, images: data.AnyImages) -> None:
    """Run a phase to its end, from its checkpoint where the folder has one."""
    if phase.batch % world.size:
        raise ValueError(f"batch {phase.batch} does not divide among {world.size} workers")
    seed = job.config.seed
    own = phase.batch // world.size
    per_epoch = len(images) // phase.batch
    if not per_epoch:
        raise ConfigError(
            f"{phase.name}.batch: found {phase.batch}, expected at most the {len(images)} images"
        )
    total = per_epoch * phase.epochs
    path = job.checkpoint(phase.name)
    conditions = {"workers": world.size, "bfloat16": job.bfloat16}
    step = 0
    if path.exists():
        saved = load_nets(path, phase.nets)
        if saved["kind"] != phase.name:
            raise CheckpointError(
                f"{path} was made by '{saved['kind']}': nothing to resume; give another --run"
            )
        step = saved["step"]
        if step > total:
            raise CheckpointError(
                f"{path}: found step {step}, expected at most the {total} of "
                f"{phase.name}.epochs {phase.epochs}: give more epochs, or another --run"
            )
        for name, optimiser in phase.optimisers.items():
            try:
                optimiser.load_state_dict(saved["optimisers"][name])
            except (KeyError, ValueError) as error:
                raise CheckpointError(
                    f"{path}: the optimiser of '{name}' does not fit the configuration's: {error}"
                ) from error
        phase.state.update(saved["state"])
        if step < total:
            for mark in (SHIFTED, SETTLED):
                phase.state.pop(mark, None)
        if world.rank == 0:
            _warn(path, saved, share(job.config), conditions)

    def save(figures: dict[str, Any] | None = None) -> None:
        if world.rank == 0:
            content = {
                "kind": phase.name,
                "config": share(job.config),
                "step": step,
                "total": total,
                "nets": {k: v.state_dict() for k, v in phase.nets.items()},
                "optimisers": {k: v.state_dict() for k, v in phase.optimisers.items()},
                "state": dict(phase.state),
                "validation": figures,
                "conditions": conditions,
            }
            checkpoint.save(path, content)

    def load(step: int, rows: Tensor) -> tuple[Batch, torch.Generator]:
        """A step's batch, on the CPU, and its generator as augmentation left it."""
        generator = data.generator_for(seed, phase.number, step, world.rank)
        position = (step + 0.5) / per_epoch
        return augmented(job.config, images, rows, generator, position), generator

    first = world.rank == 0
    with Progress(job.folder / phase.name, phase.name, total, step, phase.batch, first) as log:
        while step < total:
            epoch = step // per_epoch
            order = data.batches(len(images), own, seed, epoch, world.rank, world.size)
            tasks = [
                functools.partial(load, at, rows)
                for at, rows in enumerate(order[step % per_epoch :], step)
            ]
            for batch, generator in data.load_ahead(tasks, images.ahead):
                shown = phase.step((step + 0.5) / total, batch.to(job.device), generator)
                step += 1
                if not all(math.isfinite(value) for value in shown.values()):
                    raise TrainingError(
                        f"{phase.name}: found {shown} at step {step}, expected finite numbers: "
                        "a lower rate may help"
                    )
                log.tick(**shown)
                if step % job.save_every == 0 and step % per_epoch:
                    save()
                if step == job.stop_after:
                    save()
                    return
            if first:
                figures = None
                if (epoch + 1) % job.evaluate_every == 0 or step == total:
                    figures = phase.evaluate()
                    log.record({"epoch": epoch + 1} | phase.state | figures)
                save(figures)
