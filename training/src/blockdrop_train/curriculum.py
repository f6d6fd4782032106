"""Training of the policy: the paper's curriculum, and a faster way of our own.

Ours (``method = "gates"``):

1. Warm-up: the policy's features learn to classify, which costs a twentieth of the residual net.
2. The policy's logits plus logistic noise decide hard gates; gradients pass straight through. An
   image pays for its share of block FLOPs at a price that rises with the full net's confidence in
   its class: the paper's reward charges only images that are classified right, and this is that
   rule made smooth, so that the images that need more keep more. The price is linear in the FLOPs
   (the paper's is squared): a convex price would level the images out. The average price follows
   the wanted average of FLOPs.
3. Each step trains the full net too, on a share of the images, and the path learns from its logits
   beside the labels. Of the blocks that an image drops, a share is computed, so that gates learn
   what the block would have done; the estimate is unbiased, and cheap for deep nets.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from . import checkpoint, loop
from .data import AnyImages, Normalise
from .errors import CheckpointError
from .evaluate import keep_logits, learned_masks, score, shift_to
from .flops import policy_flops
from .gates import Budget, looked_at, straight_through
from .loop import Batch, Job, Phase
from .nets import Policy, ResNet
from .reinforce import bounded, forced, learned_blocks, policy_loss, reward
from .workers import World


def path_scores(
    net: ResNet, policy: Policy, held: AnyImages, normalise: Normalise
) -> dict[str, Any]:
    """Figures of the full net and of the policy's paths on the images ``held``."""
    masks = learned_masks(policy, held, normalise)
    return {
        "full": score(net, held, normalise).as_dict(),
        "policy": score(net, held, normalise, masks, policy_flops(policy)).as_dict(),
        "keep_rates": [round(float(r), 3) for r in masks.float().mean(0)],
    }


def nets_of(job: Job) -> tuple[ResNet, Policy]:
    """The configured nets, freshly initialised on the job's device."""
    torch.manual_seed(job.config.seed + 1)
    net = job.config.build_net()
    policy = job.config.build_policy(net.depth)
    for part in (net, policy):
        part.to(job.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net, policy


@torch.no_grad()
def _calibrate(job: Job, net: ResNet, policy: Policy, held: AnyImages) -> None:
    """Shift the checkpoint's keep logits to the configured FLOPs; a second call changes nothing."""
    path = job.checkpoint("curriculum")
    saved = loop.load_nets(path, {"net": net, "policy": policy})
    if loop.SHIFTED in saved["state"]:
        return
    normalise = job.config.normalise()
    logits = keep_logits(policy, held, normalise)
    shift = shift_to(net, policy, logits, job.config.curriculum.calibrate)
    policy.net.head.bias.add_(shift)
    saved["nets"]["policy"] = policy.state_dict()
    saved["state"][loop.SHIFTED] = shift
    saved["validation"] = path_scores(net, policy, held, normalise)
    checkpoint.save(path, saved)
    print(json.dumps({"shift": shift} | saved["validation"]))


def _start(job: Job, net: ResNet, policy: Policy) -> None:
    if job.checkpoint("curriculum").exists():
        return
    if not job.checkpoint("base").exists():
        raise CheckpointError(
            f"no {job.checkpoint('base')}: train a base net first (blockdrop-train base)"
        )
    saved = loop.load_finished(job.checkpoint("base"), {"net": net})
    if "initial_policy" in saved["nets"]:
        loop.load_nets(job.checkpoint("base"), {"initial_policy": policy})


def train(job: Job, world: World = World()) -> None:  # noqa: B008
    """Train the policy on the run's base net, by the configured method."""
    if job.config.curriculum.method == "gates":
        _train_gates(job, world)
    else:
        _train_reinforce(job, world)


def _train_reinforce(job: Job, world: World) -> None:
    config = job.config
    given = config.curriculum
    net, policy = nets_of(job)
    _start(job, net, policy)
    net.requires_grad_(False)
    opt = torch.optim.Adam(policy.parameters(), lr=given.rate)
    images = config.load(job.data_root, "train")
    held = config.load(job.data_root, "validation")

    def step(progress: float, batch: Batch, generator: torch.Generator) -> dict[str, float]:
        net.eval()
        policy.train()
        learned = learned_blocks(batch.position, given.epochs_per_block, net.depth)
        with job.autocast():
            out = policy(batch.inputs).float()
        chance = bounded(out, given.alpha)
        uniform = torch.rand(out.shape, generator=generator).to(out.device)
        sampled = forced(uniform < chance, learned)
        greedy = forced(out >= 0, learned)
        with torch.no_grad(), job.autocast():
            # Both masks keep the first blocks, so these run once.
            forced_blocks = net.depth - learned
            x = net.prefix(batch.inputs, forced_blocks)
            both = net.finish(torch.cat([x] * 2), torch.cat([sampled, greedy]), forced_blocks)
        right = both.argmax(1) == torch.cat([batch.targets] * 2)
        rewards = reward(torch.cat([sampled, greedy]), right, given.gamma)
        gained, expected = rewards.chunk(2)
        loss = policy_loss(chance, sampled, gained - expected, learned, given.entropy)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        world.synchronise(policy)
        opt.step()
        return {
            "reward": expected.mean().item(),
            "right": right.float().mean().item(),
            "kept": greedy.float().sum(1).mean().item(),
            "learned": learned,
        }

    phase = Phase(
        "curriculum", 2, {"net": net, "policy": policy}, {"policy": opt}, given.epochs, given.batch,
        step, lambda: path_scores(net, policy, held, config.normalise()),
    )  # fmt: skip
    loop.run(job, world, phase, images)


def _train_gates(job: Job, world: World) -> None:
    config = job.config
    given = config.curriculum
    net, policy = nets_of(job)
    _start(job, net, policy)
    auxiliary = nn.Linear(policy.net.head.in_features, config.data.classes).to(job.device)
    nn.init.constant_(policy.net.head.bias, given.keep_bias)
    images = config.load(job.data_root, "train")
    held = config.load(job.data_root, "validation")
    decider = nn.ModuleList([policy, auxiliary])
    policy_opt = torch.optim.Adam(decider.parameters(), lr=given.rate)
    net_opt = loop.sgd(net, 0.9, config.base.decay)
    if given.net_rate == 0:
        net.requires_grad_(False)
    budget = Budget.of(net, given.flops, policy_flops(policy), given.cost)
    warm = given.warmup_epochs / given.epochs

    def warm_up(progress: float, batch: Batch) -> dict[str, float]:
        loop.set_rate(policy_opt, given.rate * min(1.0, 10 * progress / warm))
        with job.autocast():
            out = auxiliary(policy.features(batch.inputs))
        loss = F.cross_entropy(out.float(), batch.targets)
        policy_opt.zero_grad(set_to_none=True)
        loss.backward()
        world.synchronise(policy, auxiliary)
        policy_opt.step()
        return {"auxiliary": loss.item()}

    def step(progress: float, batch: Batch, generator: torch.Generator) -> dict[str, float]:
        # Batch norm of the net keeps the base net's statistics: gates run every block for every
        # image, which no served path does.
        net.eval()
        policy.train()
        if progress < warm:
            return warm_up(progress, batch)
        progress = (progress - warm) / (1 - warm)
        loop.set_rate(policy_opt, given.rate * (1 - progress))
        loop.set_rate(net_opt, given.net_rate * loop.triangle(progress, 0.1))
        trained = round(len(batch.inputs) * given.full_rows)
        with torch.no_grad(), job.autocast():
            taught = net(batch.inputs[trained:]).float()
        with job.autocast():
            pooled = policy.features(batch.inputs)
            decided = policy.net.head(pooled).float()
            classes = auxiliary(pooled).float()
            noise = given.noise * (1 - 0.8 * progress)
            gates = straight_through(decided, noise, generator)
            looked = looked_at(gates, given.looked, generator)
            full = torch.cat([net(batch.inputs[:trained]).float(), taught])
            path = net.gated(batch.inputs, gates, looked).float()
        full_losses = F.cross_entropy(full, batch.targets, reduction="none")
        loss = (
            full_losses[:trained].sum() / len(full)
            + budget.loss(gates, path, full, batch.targets)
            + given.auxiliary * F.cross_entropy(classes, batch.targets)
        )
        policy_opt.zero_grad(set_to_none=True)
        net_opt.zero_grad(set_to_none=True)
        loss.backward()
        if given.net_rate:
            world.synchronise(net)
            net_opt.step()
        world.synchronise(policy, auxiliary)
        policy_opt.step()
        return {
            "full": full_losses.mean().item(),
            "path": F.cross_entropy(path.detach(), batch.targets).item(),
            **budget.follow(decided, world),
        }

    phase = Phase(
        "curriculum",
        2,
        {"net": net, "policy": policy, "auxiliary": auxiliary},
        {"policy": policy_opt, "net": net_opt},
        given.epochs,
        given.batch,
        step,
        lambda: path_scores(net, policy, held, config.normalise()),
        budget.state,
    )
    loop.run(job, world, phase, images)
    if given.calibrate and world.rank == 0 and job.stop_after is None:
        _calibrate(job, net, policy, held)
