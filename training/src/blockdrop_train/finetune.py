"""Training of net and policy together: the paper's joint finetuning, and ours with fixed paths."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import checkpoint, data, loop, teacher
from .averaging import Average, settle
from .baselines import Heuristic
from .config import Config
from .curriculum import nets_of, path_scores
from .data import AnyImages
from .errors import CheckpointError
from .evaluate import keep_logits, score, shift_to
from .flops import policy_flops
from .gates import distillation
from .loop import Batch, Job, Phase
from .nets import Policy, ResNet
from .reinforce import bounded, policy_loss, reward
from .workers import World


def phase_of(heuristic: Heuristic | None) -> str:
    """The phase's name: of its checkpoint and its folder of logs."""
    return f"finetune-{heuristic.name}-{heuristic.keep}" if heuristic else "finetune"


def _draw(world: World, batch: Batch) -> int:
    """The seed of what a worker draws for a batch's paths."""
    return int(batch.position * 1e6) * world.size + world.rank


class OperatingPoints:
    """The configured operating points, and the shift of a fixed policy's logits that meets each."""

    def __init__(self, net: ResNet, policy: Policy, held: AnyImages, config: Config) -> None:
        self.net = net
        self.policy = policy
        self.held = held
        self.normalise = config.normalise()
        self.points = config.finetune.points

    @functools.cached_property
    def logits(self) -> Tensor:
        """The keep logits of the validation images, [N, K], once the policy is loaded.

        In float32, as evaluation and export find them.
        """
        with torch.autocast(self.policy.net.head.weight.device.type, enabled=False):
            return keep_logits(self.policy, self.held, self.normalise)

    @functools.cached_property
    def shifts(self) -> Tensor:
        """The shift of every point, [points]."""
        found = [shift_to(self.net, self.policy, self.logits, flops) for flops in self.points]
        return torch.tensor(found)

    def drawn(self, count: int, seed: int) -> Tensor:
        """A point's shift for each of ``count`` images, [count, 1]; 0 where there are no points."""
        if not self.points:
            return torch.zeros(count, 1)
        generator = data.generator_for(seed, 78)
        rows = torch.randint(len(self.points), (count,), generator=generator)
        return self.shifts[rows, None]

    def scores(self, net: ResNet) -> dict[str, Any]:
        """Validation figures of a net's paths at each point."""
        found = {}
        for flops, shift in sorted(set(zip(self.points, self.shifts.tolist(), strict=True))):
            masks = self.logits + shift >= 0
            figures = score(net, self.held, self.normalise, masks, policy_flops(self.policy))
            found[f"{flops:g}"] = figures.as_dict()
        return {"points": found} if found else {}


def _start(job: Job, nets: dict[str, nn.Module]) -> None:
    if job.checkpoint("finetune").exists():
        return
    if not job.checkpoint("curriculum").exists():
        raise CheckpointError(
            f"no {job.checkpoint('curriculum')}: train a policy first (blockdrop-train curriculum)"
        )
    loop.load_finished(job.checkpoint("curriculum"), nets)


def train(job: Job, world: World = World(), heuristic: Heuristic | None = None) -> None:  # noqa: B008
    """Finetune the run's net and policy, by the configured method.

    Args:
        heuristic: finetune the base net for this baseline's paths alone instead, with the
            method's optimiser.
    """
    if heuristic:
        _train_heuristic(job, world, heuristic)
        return
    config = job.config
    net, policy = nets_of(job)
    _start(job, {"net": net, "policy": policy})
    images = config.load(job.data_root, "train")
    held = config.load(job.data_root, "validation")
    points = OperatingPoints(net, policy, held, config)

    def decide(batch: Batch) -> Tensor:
        policy.eval()
        with torch.no_grad(), job.autocast():
            logits = policy(batch.inputs)
            logits += points.drawn(len(logits), _draw(world, batch)).to(logits)
        return cast(Tensor, logits >= 0)

    def figures(net: ResNet) -> dict[str, Any]:
        return path_scores(net, policy, held, config.normalise()) | points.scores(net)

    if config.finetune.method == "paths":
        policy.requires_grad_(False)
        rows = config.finetune.full_rows
        _train_paths(
            job, world, "finetune", {"net": net, "policy": policy}, decide, figures, images, rows
        )
        return
    phase = _reinforce(job, world, net, policy)
    phase.evaluate = lambda: figures(net)
    loop.run(job, world, phase, images)


def _train_heuristic(job: Job, world: World, heuristic: Heuristic) -> None:
    config = job.config
    net, _ = nets_of(job)
    name = phase_of(heuristic)
    if not job.checkpoint(name).exists():
        loop.load_finished(job.checkpoint("base"), {"net": net})
    images = config.load(job.data_root, "train")
    held = config.load(job.data_root, "validation")
    fixed = heuristic.masks(net.segments, len(held))

    def decide(batch: Batch) -> Tensor:
        masks = heuristic.masks(net.segments, len(batch.inputs), _draw(world, batch))
        return masks.to(job.device)

    def figures(net: ResNet) -> dict[str, Any]:
        return {"path": score(net, held, config.normalise(), fixed).as_dict()}

    _train_paths(job, world, name, {"net": net}, decide, figures, images, full_rows=0)


def _reinforce(job: Job, world: World, net: ResNet, policy: Policy) -> Phase:
    given = job.config.finetune
    net_opt = torch.optim.Adam(net.parameters(), lr=given.rate, weight_decay=given.decay)
    policy_opt = torch.optim.Adam(policy.parameters(), lr=given.policy_rate)

    def step(progress: float, batch: Batch, generator: torch.Generator) -> dict[str, float]:
        policy.train()
        with job.autocast():
            out = policy(batch.inputs).float()
        chance = bounded(out, given.alpha)
        uniform = torch.rand(out.shape, generator=generator).to(out.device)
        sampled, greedy = uniform < chance, out >= 0
        net.eval()
        with torch.no_grad(), job.autocast():
            plain = net(batch.inputs, greedy)
        net.train()
        with job.autocast():
            path = net(batch.inputs, sampled).float()
        right = path.argmax(1) == batch.targets
        gained = reward(sampled, right, given.gamma)
        expected = reward(greedy, plain.argmax(1) == batch.targets, given.gamma)
        label_loss = F.cross_entropy(path, batch.targets)
        loss = label_loss + policy_loss(
            chance, sampled, gained - expected, net.depth, given.entropy
        )
        for optimiser in (net_opt, policy_opt):
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        world.synchronise(net, policy)
        for optimiser in (net_opt, policy_opt):
            optimiser.step()
        return {
            "path": label_loss.item(),
            "reward": expected.mean().item(),
            "kept": greedy.float().sum(1).mean().item(),
        }

    return Phase(
        "finetune", 3, {"net": net, "policy": policy}, {"net": net_opt, "policy": policy_opt},
        given.epochs, given.batch, step, dict,
    )  # fmt: skip


def _mixed(net: ResNet, inputs: Tensor, masks: Tensor, both: int) -> Tensor:
    """Class logits of the first ``both`` images with every block, then of all on their paths.

    One pass, so that batch norm sees the mixture it will serve.
    """
    whole = torch.ones_like(masks[:both])
    return cast(Tensor, net(torch.cat([inputs[:both], inputs]), torch.cat([whole, masks])))


def _train_paths(
    job: Job,
    world: World,
    name: str,
    nets: dict[str, Any],
    decide: Callable[[Batch], Tensor],
    figures: Callable[[ResNet], dict[str, Any]],
    images: AnyImages,
    full_rows: float,
) -> None:
    """Train ``nets["net"]`` for the decided paths, then average and settle it.

    Args:
        name: of the phase.
        nets: all that the checkpoint holds.
        decide: the masks [N, K] of a batch.
        figures: of a net, on the validation images.
        full_rows: share of a batch's images that train the full net too.
    """
    given = job.config.finetune
    net: ResNet = nets["net"]
    average = Average(net, given.average) if given.average else None
    served: ResNet = average.net if average else net
    if average:
        nets = nets | {"average": served}

    def settled() -> dict[str, Any]:
        settle(served, _settling(job, images, served, decide, full_rows))
        return figures(served)

    step, opt = _paths(job, world, net, average, decide, images, full_rows)
    phase = Phase(
        name, 3, nets, {"net": opt}, given.epochs, given.batch, step,
        settled if average else lambda: figures(net),
        average.state if average else {},
    )  # fmt: skip
    loop.run(job, world, phase, images)
    if not given.settle or world.rank or job.stop_after is not None:
        return
    path = job.checkpoint(name)
    saved = loop.load_nets(path, nets)
    if loop.SETTLED in saved["state"]:
        return
    saved["validation"] = settled()
    saved["nets"]["net"] = served.state_dict()
    saved["state"][loop.SETTLED] = 1.0
    checkpoint.save(path, saved)
    print(json.dumps({"settled": given.settle} | saved["validation"]))


def _settling(
    job: Job,
    images: AnyImages,
    net: ResNet,
    decide: Callable[[Batch], Tensor],
    full_rows: float,
) -> Iterator[Callable[[], Tensor]]:
    """The passes that settle a net: as training's, paths and full rows mixed likewise."""
    given = job.config.finetune
    order = data.batches(len(images), given.batch, job.config.seed, given.epochs)
    for step, rows in enumerate(order[: given.settle], len(order) * given.epochs):
        generator = data.generator_for(job.config.seed, 3, step)
        inputs = loop.augmented(job.config, images, rows, generator, given.epochs).to(job.device)
        batch = Batch(inputs, images.targets[rows], rows, (step + 0.5) / len(order))
        yield functools.partial(_mixed, net, inputs, decide(batch), round(len(rows) * full_rows))


def _paths(
    job: Job,
    world: World,
    net: ResNet,
    average: Average | None,
    decide: Callable[[Batch], Tensor],
    images: AnyImages,
    full_rows: float,
) -> tuple[loop.Step, torch.optim.Optimizer]:
    given = job.config.finetune
    told = teacher.read(job, images) if given.taught else None
    opt: torch.optim.Optimizer
    if given.method == "paths":
        opt = loop.sgd(net, given.momentum, given.decay)
    else:  # a heuristic by the paper's recipe, at its steady rate
        opt = torch.optim.Adam(net.parameters(), lr=given.rate, weight_decay=given.decay)

    def step(progress: float, batch: Batch, generator: torch.Generator) -> dict[str, float]:
        net.train()
        if given.method == "paths":
            loop.set_rate(opt, given.rate * loop.triangle(progress, given.warmup, given.last))
        count = len(batch.inputs)
        both = round(count * full_rows)
        masks = decide(batch)
        with job.autocast():
            out = _mixed(net, batch.inputs, masks, both).float()
        full, path = out[:both], out[both:]
        labels = torch.cat([batch.targets[:both], batch.targets])
        label_losses = F.cross_entropy(out, labels, reduction="none")
        losses = label_losses
        if told is not None:
            wanted = told[batch.rows].to(out.device)
            wanted = torch.cat([wanted[:both], wanted])
            losses = torch.lerp(losses, distillation(out, wanted, given.temperature), given.taught)
        own = distillation(path[:both], full, given.temperature)
        learnt = given.distil * (own - losses[both : 2 * both])
        loss = (losses.sum() + learnt.sum()) / count
        opt.zero_grad(set_to_none=True)
        loss.backward()
        world.synchronise(net)
        opt.step()
        if average:
            average.update(net, progress)
        return {
            "full": label_losses[:both].sum().item() / max(1, both),
            "path": label_losses[both:].mean().item(),
            "kept": masks.float().sum(1).mean().item(),
        }

    return step, opt
