"""Result files that ``evaluate`` leaves, and the table and pictures made of them."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import data, loop, timing
from .baselines import HEURISTICS, Heuristic, most_kept
from .curriculum import nets_of
from .errors import CheckpointError, DataError
from .evaluate import keep_logits, learned_masks, score, shift_to
from .finetune import phase_of
from .flops import policy_flops
from .loop import Job
from .nets import Policy, ResNet
from .sequential import Sequential, sequential_masks

PAPER: dict[tuple[str, int], dict[str, tuple[float, float, float | None, float | None]]] = {
    # method: accuracy %, blocks after finetuning; accuracy %, blocks before (Table 1)
    ("cifar10", 32): {
        "first_k": (84.3, 7, 16.6, 10),
        "random_k": (88.9, 7, 20.5, 10),
        "distribute_k": (90.2, 7, 23.4, 10),
        "policy": (91.3, 6.9, 88.6, 9.4),
        "full": (92.3, 15, None, None),
    },
    ("cifar10", 110): {
        "first_k": (71.3, 17, 13.3, 21),
        "random_k": (90.1, 17, 14.5, 21),
        "distribute_k": (92.7, 17, 13.0, 21),
        "policy": (93.6, 16.9, 75.4, 20.1),
        "full": (93.2, 54, None, None),
    },
    ("cifar100", 32): {
        "first_k": (66.5, 14, 23.3, 13),
        "random_k": (67.6, 14, 38.3, 13),
        "distribute_k": (66.7, 14, 31.9, 13),
        "policy": (68.7, 13.1, 58.3, 12.4),
        "full": (69.3, 15, None, None),
    },
    ("cifar100", 110): {
        "first_k": (57.9, 31, 63.5, 50),
        "random_k": (68.4, 31, 66.3, 50),
        "distribute_k": (69.9, 31, 49.6, 50),
        "policy": (73.7, 30.2, 72.1, 49.1),
        "full": (72.2, 54, None, None),
    },
}


@dataclass(frozen=True)
class Published:
    """An operating point of the paper (Table 3): accuracy in percent, means and deviations."""

    gamma: int
    accuracy: float
    blocks: float
    flops: float
    blocks_std: float | None = None
    flops_std: float | None = None
    masks: int | None = None


PAPER_POINTS = {
    ("cifar10", 32): [Published(5, 91.3, 6.9, 8.66e7, 1.6, 1.40e7)],
    ("cifar10", 110): [
        Published(2, 91.9, 10.3, 1.18e8),
        Published(5, 93.0, 13.8, 1.51e8),
        Published(10, 93.6, 16.9, 1.81e8, 3.7, 3.43e7, 469),
    ],
}
"""FLOPs include the policy's; masks are counted on all 10,000 test images."""

TITLES = {
    "first_k": "FirstK",
    "random_k": "RandomK",
    "distribute_k": "DistributeK",
    "policy": "BlockDrop",
    "most_kept": "one mask for all",
    "full": "full",
    "sequential": "BlockDrop-seq",
}
TABLE_1 = ("first_k", "random_k", "distribute_k", "policy", "full")


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
    for flops in (None, *budgets):
        moved = 0.0 if flops is None else shift_to(net, policy, held, flops)
        shift = {} if flops is None else {"shift": round(moved, 6)}
        masks = logits + moved >= 0
        if flops is not None:
            row = _row("policy", phase, net, images, normalise, masks, policy_flops(policy))
            rows.append(row | shift)
        keep = math.ceil(float(masks.double().sum(1).mean()))
        mask = most_kept(held + moved, keep).expand(len(images), -1)
        rows.append(_row("most_kept", phase, net, images, normalise, mask) | shift)
    return rows


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
        name, number = path.stem.removeprefix("finetune-").rsplit("-", 1)
        heuristic = Heuristic(name, int(number))
        if job.checkpoint(phase_of(heuristic)) == path:
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
        "rows": rows,
    }


def save(folder: Path, figures: dict[str, Any], kind: str) -> Path:
    """Write a result file, named after its configuration and kind: a split, or ``time``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{figures['config']}.{kind}.json"
    path.write_text(json.dumps(figures, indent=1) + "\n")
    return path


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not run"
    return f"{100 * row['accuracy']:.1f} @{row['blocks_mean']:.1f}"


def _paper_cell(accuracy: float | None, blocks: float | None) -> str:
    return "" if accuracy is None else f"{accuracy} @{blocks:g}"


def _find(figures: dict[str, Any], method: str, phases: Sequence[str]) -> dict[str, Any] | None:
    for phase in phases:
        for row in figures["rows"]:
            if row["method"] == method and row["phase"] == phase and "shift" not in row:
                return dict(row)
    return None


def _published_line(point: Published) -> str:
    blocks, flops = f"{point.blocks}", f"{point.flops:.3g}"
    if point.blocks_std is not None and point.flops_std is not None:
        blocks += f" ± {point.blocks_std}"
        flops += f" ± {point.flops_std:.2g}"
    return (
        f"| BlockDrop, paper | gamma {point.gamma} | {point.accuracy} | {blocks} | {flops} "
        f"| {point.masks or ''} |"
    )


def _interval(accuracy: float, images: int) -> float:
    """Half of an accuracy's 95 % confidence interval (normal approximation)."""
    return 1.96 * math.sqrt(accuracy * (1 - accuracy) / images)


def _spread(row: dict[str, Any]) -> str:
    """A sentence on how unequal the images' numbers of blocks are."""
    counts = row["images_by_blocks"]
    used = [blocks for blocks, images in enumerate(counts) if images]
    few = sum(counts[:10]) / sum(counts)
    return (
        f"BlockDrop ({row['phase']}) uses {used[0]} to {used[-1]} of {len(counts) - 1} blocks; "
        f"{100 * few:.1f} % of the images use fewer than 10."
    )


def section(figures: dict[str, Any]) -> str:
    """Markdown of one result file: Table 1's row, ours beside the paper's, and the costs."""
    known = (figures["data"], figures["depth"])
    paper = PAPER.get(known, {})
    images = figures["rows"][0]["images"]
    lines = [
        f"## ResNet-{figures['depth']} on {figures['data']}, `{figures['config']}`, "
        f"seed {figures['seed']}, {figures['split']} images ({images})",
        "",
        "Accuracy in percent @ blocks kept on average.",
        "",
        "| | ours, finetuned | ours, before | paper, finetuned | paper, before |",
        "|---|---|---|---|---|",
    ]
    for method in TABLE_1:
        after = _find(figures, method, ("finetune",))
        before = _find(figures, method, ("base", "curriculum"))
        theirs = paper.get(method, (None, None, None, None))
        lines.append(
            f"| {TITLES[method]} | {_cell(after)} | {_cell(before)} "
            f"| {_paper_cell(*theirs[:2])} | {_paper_cell(*theirs[2:])} |"
        )
    lines += [
        "",
        "| net | phase | accuracy % | blocks | FLOPs an image | distinct masks |",
        "|---|---|---|---|---|---|",
    ]
    for row in figures["rows"]:
        epochs = f", {row['epochs']:g} epochs" if "epochs" in row else ""
        epochs += f", logits {row['shift']:+.2f}" if "shift" in row else ""
        lines.append(
            f"| {TITLES[row['method']]} | {row['phase']}{epochs} | {100 * row['accuracy']:.2f} "
            f"| {row['blocks_mean']:.2f} ± {row['blocks_std']:.2f} "
            f"| {row['flops_mean']:.3g} ± {row['flops_std']:.2g} | {row['distinct_masks']} |"
        )
    lines += [_published_line(point) for point in PAPER_POINTS.get(known, [])]
    best = max(row["accuracy"] for row in figures["rows"])
    lines += [
        "",
        f"BlockDrop's FLOPs include the policy's {figures['policy_flops']:.3g}. "
        f"An accuracy of {100 * best:.1f} % on {images} images is known to "
        f"±{100 * _interval(best, images):.1f} points (95 %).",
    ]
    row = _find(figures, "policy", ("finetune", "curriculum"))
    if row is not None:
        lines += ["", _spread(row)]
    if figures.get("grown"):
        lines += ["", f"The base net was grown from `{figures['imported']}`."]
    elif figures.get("imported"):
        lines += ["", f"The nets before finetuning come from `{figures['imported']}`."]
    return "\n".join(lines)


def draw(figures: dict[str, Any], folder: Path) -> list[Path]:
    """Draw accuracy against FLOPs, and the images by blocks used."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    stem = f"{figures['config']}.{figures['split']}"
    curve, axes = pyplot.subplots(figsize=(6, 4.5))
    colours = [pyplot.get_cmap("tab20")(n) for n in range(20)]
    points = PAPER_POINTS.get((figures["data"], figures["depth"]), [])
    best = max(100 * row["accuracy"] for row in figures["rows"])
    best = max([best, *(point.accuracy for point in points)])
    floor = best - 4
    for method, style, label in (
        ("policy", "-", "BlockDrop, logits shifted"),
        ("most_kept", ":", "one mask for all images, of the blocks it keeps most"),
    ):
        points_of = sorted(
            (row["flops_mean"], 100 * row["accuracy"])
            for row in figures["rows"]
            if row["method"] == method and ("shift" in row or method == "most_kept")
        )
        if points_of:
            axes.plot(*zip(*points_of, strict=True), style, marker=".", color="grey", label=label)
    rows = [r for r in figures["rows"] if "shift" not in r and r["method"] != "most_kept"]
    for row, colour in zip(rows, itertools.cycle(colours), strict=False):
        label = f"{TITLES[row['method']]}, {row['phase']}"
        accuracy = 100 * row["accuracy"]
        if accuracy < floor:
            label += f": {accuracy:.0f} % (below)"
        marker = {"policy": "*", "full": "s", "sequential": "D"}.get(row["method"], "o")
        axes.scatter(row["flops_mean"], accuracy, marker=marker, s=70, color=colour, label=label)
    axes.set_ylim(floor, best + 0.5)
    if points:
        axes.scatter(
            [point.flops for point in points],
            [point.accuracy for point in points],
            marker="*",
            s=70,
            color="black",
            label=f"BlockDrop, paper (gamma {', '.join(str(point.gamma) for point in points)})",
        )
    axes.set_xlabel("FLOPs an image, policy included")
    axes.set_ylabel("accuracy in %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))
    paths = [folder / f"{stem}.flops.png"]
    curve.savefig(paths[0], dpi=110, bbox_inches="tight")
    pyplot.close(curve)
    row = _find(figures, "policy", ("finetune", "curriculum"))
    if row is not None:
        histogram, axes = pyplot.subplots(figsize=(6, 3))
        axes.bar(range(len(row["images_by_blocks"])), row["images_by_blocks"])
        axes.set_xlabel(f"blocks used, of {figures['blocks']}")
        axes.set_ylabel("images")
        paths.append(folder / f"{stem}.blocks.png")
        histogram.savefig(paths[1], dpi=110, bbox_inches="tight")
        pyplot.close(histogram)
    return paths


def table(folder: Path, output: Path) -> list[Path]:
    """Write the tables of all result files of a folder to ``output``, pictures beside the files.

    Returns:
        The paths written.
    """
    files = sorted(
        folder.glob("*.json"), key=lambda p: (p.name.split(".")[0], ".time." in p.name, p.name)
    )
    if not files:
        raise DataError(f"no result files in {folder}: blockdrop-train evaluate writes them")
    parts = [
        "# Results",
        "",
        "Written by `blockdrop-train table` from the files in `results/`, which "
        "`blockdrop-train evaluate --results` and `time --results` leave. Do not edit.",
    ]
    written = [output]
    for file in files:
        figures = json.loads(file.read_text())
        if "ways" in figures:
            parts += ["", timing.section(figures)]
            continue
        pictures = draw(figures, folder)
        written += pictures
        parts += ["", section(figures), ""]
        parts += [f"![{p.stem}]({p.relative_to(output.parent)})" for p in pictures]
    output.write_text("\n".join(parts) + "\n")
    return written
