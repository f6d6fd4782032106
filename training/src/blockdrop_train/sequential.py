"""BlockDrop-seq, the paper's own baseline (section 4.3): one decision in front of every block.

Block k is kept by ``softmax(W_k pool(y) + b_k)`` of the activations y in front of it. Of two
classes only the difference matters, so a decision is one logit here. It costs next to no FLOPs, but
every block waits for it, and masks are not known in advance.

The decisions are trained by gates (``curriculum.py``) on the run's last net, which stays as it is:
BlockDrop and BlockDrop-seq then differ in their decisions alone.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import loop
from .curriculum import nets_of
from .data import AnyImages, Normalise, in_order
from .errors import CheckpointError, ConfigError
from .evaluate import score
from .gates import Budget, looked_at, straight_through
from .loop import Batch, Job, Phase
from .nets import ResNet
from .workers import World


class Sequential(nn.Module):
    """A linear decision in front of each block, which keeps every block at first."""

    def __init__(self, net: ResNet) -> None:
        super().__init__()
        widths = [net.block(index).branch.layers()[0][0].in_channels for index in range(net.depth)]
        self.deciders = nn.ModuleList(nn.Linear(width, 1) for width in widths)
        for decider in self.linear_layers():
            nn.init.zeros_(decider.weight)
            nn.init.ones_(decider.bias)

    def linear_layers(self) -> list[nn.Linear]:
        """Each block's decision, typed."""
        return [cast(nn.Linear, decider) for decider in self.deciders]

    def logits(self, index: int, x: Tensor) -> Tensor:
        """Block ``index``'s keep logits [N] from the activations [N, C, H, W] in front of it."""
        return cast(Tensor, self.deciders[index](x.mean((2, 3)))).squeeze(1)

    def flops(self) -> int:
        """FLOPs of all decisions of an image."""
        return sum(2 * decider.in_features for decider in self.linear_layers())

    @torch.no_grad()
    def masks(self, net: ResNet, images: Tensor) -> Tensor:
        """The masks, bool [N, K], that normalised images [N, C, H, W] get on their way."""
        x = net.stem(images)
        taken = []
        for index in range(net.depth):
            keep = self.logits(index, x) >= 0
            x = net.block(index).masked(x, keep)
            taken.append(keep)
        return torch.stack(taken, 1)


def sequential_masks(
    net: ResNet, decisions: Sequential, images: AnyImages, normalise: Normalise, batch: int = 250
) -> Tensor:
    """The masks of a set of images, bool [N, K], on the CPU."""
    net.eval()
    device = net.head.weight.device
    return torch.cat(
        [
            decisions.masks(net, normalise(pixels).to(device)).cpu()
            for pixels, _ in in_order(images, batch)
        ]
    )


def base_of(job: Job, net: ResNet) -> None:
    """Load the run's last net."""
    for phase in ("finetune", "curriculum", "base"):
        if job.checkpoint(phase).exists():
            loop.load_finished(job.checkpoint(phase), {"net": net})
            return
    raise CheckpointError(f"{job.folder} holds no net: train one first (blockdrop-train base)")


def train(job: Job, world: World = World()) -> None:  # noqa: B008
    """Train the decisions on the run's last net, by the gates of ``[curriculum]``."""
    config = job.config
    given = config.curriculum
    if given.method != "gates":
        raise ConfigError(
            "sequential decisions are trained by gates, with the numbers of [curriculum]: found "
            f"curriculum.method '{given.method}', expected gates"
        )
    net, _ = nets_of(job)
    base_of(job, net)
    net.requires_grad_(False).eval()
    decisions = Sequential(net).to(job.device)
    budget = Budget.of(net, given.flops, decisions.flops(), given.cost)
    opt = torch.optim.Adam(decisions.parameters(), lr=given.rate)
    images = config.load(job.data_root, "train")
    held = config.load(job.data_root, "validation")
    normalise = config.normalise()

    def step(progress: float, batch: Batch, generator: torch.Generator) -> dict[str, float]:
        loop.set_rate(opt, given.rate * (1 - progress))
        noise = given.noise * (1 - 0.8 * progress)
        with torch.no_grad(), job.autocast():
            full = net(batch.inputs).float()
        decided, gates = [], []
        with job.autocast():
            x = net.stem(batch.inputs)
            for index in range(net.depth):
                logits = decisions.logits(index, x).float()
                gate = straight_through(logits, noise, generator)
                x = net.block(index).gated(x, gate, looked_at(gate, given.looked, generator))
                decided.append(logits)
                gates.append(gate)
            path = net.head(x.mean((2, 3))).float()
        loss = budget.loss(torch.stack(gates, 1), path, full, batch.targets)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        world.synchronise(decisions)
        opt.step()
        label_loss = F.cross_entropy(path.detach(), batch.targets)
        return {"path": label_loss.item()} | budget.follow(torch.stack(decided, 1), world)

    def evaluate() -> dict[str, Any]:
        masks = sequential_masks(net, decisions, held, normalise)
        return {"sequential": score(net, held, normalise, masks, decisions.flops()).as_dict()}

    phase = Phase(
        "sequential",
        4,
        {"net": net, "decisions": decisions},
        {"decisions": opt},
        given.epochs,
        given.batch,
        step,
        evaluate,
        budget.state,
    )
    loop.run(job, world, phase, images)
