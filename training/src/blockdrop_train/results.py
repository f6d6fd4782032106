"""Result files: the figures of every net that a run folder holds, and how to find one in them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import data, loop
from .baselines import HEURISTICS, Heuristic, most_kept
from .curriculum import nets_of
from .errors import CheckpointError
from .evaluate import keep_logits, learned_masks, score, shift_to
from .flops import policy_flops
from .loop import Job
from .nets import Policy, ResNet
from .sequential import Sequential, sequential_masks

TITLES = {
    "first_k": "FirstK",
    "random_k": "RandomK",
    "distribute_k": "DistributeK",
    "policy": "BlockDrop",
    "most_kept": "one mask for all",
    "full": "full",
    "sequential": "BlockDrop-seq",
}
_STILL = 1e-3
"""Shifts of keep logits up to this one are none."""


def _row(
    method: str,
    phase: str,
    net: ResNet,
    images: data.AnyImages,
    normalise: data.Normalise,
    masks: Tensor | None = None,
    decision_flops: int = 0,
) -> dict[str, Any]:
    figures = score(net, images, normalise, masks, decision_flops).as_dict()
    counts = [0] * (net.depth + 1)
    if masks is None:
        counts[net.depth] = len(images)
    else:
        for kept, times in zip(*torch.unique(masks.sum(1), return_counts=True), strict=True):
            counts[int(kept)] = int(times)
    return {"method": method, "phase": phase, **figures, "images_by_blocks": counts}


def _epochs(saved: dict[str, Any]) -> dict[str, float]:
    """How many epochs a checkpoint was trained in its phase; nothing for an imported one."""
    kind = saved["kind"].split("-")[0]
    kind = {"sequential": "curriculum"}.get(kind, kind)
    if kind not in ("base", "curriculum", "finetune"):
        return {}
    return {"epochs": round(saved["config"][kind]["epochs"] * saved["step"] / saved["total"], 2)}


def _points(
    job: Job,
    phase: str,
    net: ResNet,
    policy: Policy,
    images: data.AnyImages,
    budgets: Sequence[float],
) -> list[dict[str, Any]]:
    """The policy at other FLOPs, and one mask for all images beside each of its points.

    Its keep logits are shifted, by how much validation images say; these choose the mask too, of
    as many blocks as the point keeps on average, rounded up.
    """
    normalise = job.config.normalise()
    held = keep_logits(policy, job.config.load(job.data_root, "validation"), normalise)
    logits = keep_logits(policy, images, normalise)
    rows = []
    wanted = {flops: shift_to(net, policy, held, flops) for flops in budgets}
    # What the policy meets as it is needs no second row.
    points = {flops: moved for flops, moved in wanted.items() if abs(moved) > _STILL}
    for flops, moved in ((None, 0.0), *points.items()):
        shift = {} if flops is None else {"shift": round(moved, 6), "wanted": flops}
        masks = logits + moved >= 0
        if flops is not None:
            row = _row("policy", phase, net, images, normalise, masks, policy_flops(policy))
            rows.append(row | shift)
        keep = math.ceil(float(masks.double().sum(1).mean()))
        mask = most_kept(held + moved, keep).expand(len(images), -1)
        rows.append(_row("most_kept", phase, net, images, normalise, mask) | shift)
    return rows


def _grown_from(origin: dict[str, Any]) -> str | None:
    """The bundle that a run's net was grown from, however many imports ago."""
    while origin and "grown" not in origin:
        origin = origin.get("provenance", {}).get("imported") or {}
    return origin.get("name")


def evaluate(job: Job, split: str, budgets: Sequence[float] = ()) -> dict[str, Any]:
    """Figures of every net that the run folder holds, on one split.

    The heuristics keep the learned average of blocks, rounded up, as in the paper: on the base
    net as it is, and on nets finetuned for them where the run has such checkpoints. Beside each
    point of the last phase's policy stands the one mask of the blocks that it keeps most often.

    Args:
        budgets: FLOPs an image at which the last phase's policy is measured besides, by one shift
            of its keep logits that meets them on validation images.
    """
    images = job.config.load(job.data_root, split)
    net, policy = nets_of(job)
    normalise = job.config.normalise()
    rows: list[dict[str, Any]] = []
    keep: int | None = None
    phases = [p for p in ("curriculum", "finetune") if job.checkpoint(p).exists()]
    for phase in phases:
        saved = loop.load_nets(job.checkpoint(phase), {"net": net, "policy": policy})
        masks = learned_masks(policy, images, normalise)
        rows.append(_row("full", phase, net, images, normalise) | _epochs(saved))
        rows.append(
            _row("policy", phase, net, images, normalise, masks, policy_flops(policy))
            | _epochs(saved)
            | {"keep_rates": [round(float(r), 4) for r in masks.float().mean(0)]}
        )
        keep = math.ceil(rows[-1]["blocks_mean"])
        if phase == phases[-1]:
            rows += _points(job, phase, net, policy, images, budgets)
    if job.checkpoint("base").exists():
        saved = loop.load_nets(job.checkpoint("base"), {"net": net})
        rows.insert(0, _row("full", "base", net, images, normalise) | _epochs(saved))
        for name in HEURISTICS if keep is not None else ():
            heuristic = Heuristic(name, keep or 0)
            masks = heuristic.masks(net.segments, len(images))
            rows.append(_row(name, "base", net, images, normalise, masks))
    for path in sorted(job.folder.glob("finetune-*.pt")):
        name, _, number = path.stem.removeprefix("finetune-").rpartition("-")
        if name in HEURISTICS and number.isdecimal():
            heuristic = Heuristic(name, int(number))
            saved = loop.load_nets(path, {"net": net})
            masks = heuristic.masks(net.segments, len(images))
            rows.append(_row(name, "finetune", net, images, normalise, masks) | _epochs(saved))
    if job.checkpoint("sequential").exists():
        decisions = Sequential(net).to(job.device)
        saved = loop.load_nets(job.checkpoint("sequential"), {"net": net, "decisions": decisions})
        masks = sequential_masks(net, decisions, images, normalise)
        row = _row("sequential", "decisions", net, images, normalise, masks, decisions.flops())
        rows.append(row | _epochs(saved))
    if not rows:
        raise CheckpointError(f"{job.folder} has no checkpoint to evaluate")
    origin = loop.imported(job) or {}
    return {
        **loop.about(job, net.depth),
        "split": split,
        "policy_flops": policy_flops(policy),
        "imported": origin.get("name"),
        "grown": "grown" in origin,
        "grown_from": _grown_from(origin),
        "own_policy": any(row["phase"] == "curriculum" and "epochs" in row for row in rows),
        "rows": rows,
    }


def save(folder: Path, figures: dict[str, Any], kind: str) -> Path:
    """Write a result file, named after its configuration and kind: a split, or ``time``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{figures['config']}.{kind}.json"
    path.write_text(json.dumps(figures, indent=1) + "\n")
    return path


def find(
    figures: dict[str, Any], method: str, phases: Sequence[str], blocks: float = 0
) -> dict[str, Any] | None:
    """The row of the first of the phases that has one; of several, that nearest to ``blocks``."""
    for phase in phases:
        rows = [
            row
            for row in figures["rows"]
            if row["method"] == method and row["phase"] == phase and "shift" not in row
        ]
        if rows:
            return dict(min(rows, key=lambda row: abs(row["blocks_mean"] - blocks)))
    return None


def phase(figures: dict[str, Any], row: dict[str, Any]) -> str:
    """A row's phase in words: of nets that the run did not train itself, ``imported``."""
    own = {found["phase"] for found in figures["rows"] if "epochs" in found}
    theirs = figures.get("imported") and row["phase"] not in own
    return "imported" if theirs else str(row["phase"])


def last(figures: dict[str, Any]) -> dict[str, Any] | None:
    """The last phase's policy as it is."""
    return find(figures, "policy", ("finetune", "curriculum"))


def interval(accuracy: float, images: int) -> float:
    """Half of an accuracy's 95 % confidence interval (normal approximation)."""
    return 1.96 * math.sqrt(accuracy * (1 - accuracy) / images)
