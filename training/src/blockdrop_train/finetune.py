"""Training of net and policy together: the paper's joint finetuning, and ours with fixed paths."""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import data, loop
from .baselines import Heuristic
from .config import Config
from .curriculum import nets_of, path_scores
from .data import AnyImages
from .errors import CheckpointError
from .evaluate import keep_logits, score, shift_to
from .flops import policy_flops
from .loop import Batch, Job, Phase
from .nets import Policy, ResNet
from .paths import PHASE, PathTraining
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
        training = PathTraining(job, world, net, images, decide, figures, rows)
        training.run("finetune", {"policy": policy})
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

    PathTraining(job, world, net, images, decide, figures, full_rows=0).run(name, {})


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
        "finetune", PHASE, {"net": net, "policy": policy}, {"net": net_opt, "policy": policy_opt},
        given.epochs, given.batch, step, dict,
    )  # fmt: skip
