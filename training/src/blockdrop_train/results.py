"""Result files that ``evaluate`` leaves, and the table and pictures made of them."""

from __future__ import annotations

import itertools
import json
import math
import os
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
_STILL = 1e-3
"""Shifts of keep logits up to this one are none."""
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


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not run"
    epochs = f", {row['epochs']:g} epochs" if "epochs" in row else ""
    return f"{100 * row['accuracy']:.1f} @{row['blocks_mean']:.1f}{epochs}"


def _paper_cell(accuracy: float | None, blocks: float | None) -> str:
    return "" if accuracy is None else f"{accuracy} @{blocks:g}"


def _find(
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


def _last(figures: dict[str, Any]) -> dict[str, Any] | None:
    """The last phase's policy as it is."""
    return _find(figures, "policy", ("finetune", "curriculum"))


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
    span = f"{used[0]} to {used[-1]}" if len(used) > 1 else f"{used[0]}"
    return (
        f"BlockDrop ({row['phase']}) uses {span} of {len(counts) - 1} blocks; "
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
    learned = _last(figures)
    blocks = 0 if learned is None else math.ceil(learned["blocks_mean"])
    for method in TABLE_1:
        after = _find(figures, method, ("finetune",), blocks)
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
        at = f" at {row['wanted']:.3g} FLOPs" if "wanted" in row else ""
        epochs += f"{at}, logits {row['shift']:+.2f}" if "shift" in row else ""
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
    if learned is not None:
        lines += ["", _spread(learned)]
    if figures.get("grown"):
        lines += ["", f"The base net was grown from `{figures['imported']}`."]
    elif figures.get("imported"):
        origin = f"come from `{figures['imported']}`"
        if figures.get("grown_from"):
            origin += f", whose net was grown from `{figures['grown_from']}`"
        who = (
            "The base net's weights" if figures.get("own_policy") else "The nets before finetuning"
        )
        lines += ["", f"{who} {origin}."]
    return "\n".join(lines)


def _draw_curve(figures: dict[str, Any], path: Path) -> None:
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter

    picture, axes = pyplot.subplots(figsize=(8, 4.8))
    points = PAPER_POINTS.get((figures["data"], figures["depth"]), [])
    images = figures["rows"][0]["images"]
    best = max(100 * row["accuracy"] for row in figures["rows"])
    best = max([best, *(point.accuracy for point in points)])
    floor, last = best - 4, _last(figures)
    bars: Sequence[float] = ()
    for method, style, colour, label in (
        ("policy", "-", "tab:blue", "BlockDrop, its logits shifted"),
        ("most_kept", "--", "tab:orange", "the policy's most kept blocks, for all images"),
    ):
        curve = [
            (row["flops_mean"], 100 * row["accuracy"], 100 * _interval(row["accuracy"], images))
            for row in figures["rows"]
            if row["method"] == method and last is not None and row["phase"] == last["phase"]
        ]
        if len(curve) > 1:
            x, y, bars = zip(*sorted(curve), strict=True)
            axes.errorbar(
                x, y, bars, fmt=style, marker="o", ms=4, color=colour, label=label, elinewidth=0.7,
                capsize=2,
            )  # fmt: skip
    rows = [r for r in figures["rows"] if "shift" not in r and r["method"] != "most_kept"]
    colours = [pyplot.get_cmap("tab20")(n) for n in range(2, 20)]
    for row, tone in zip(rows, itertools.cycle(colours), strict=False):
        accuracy = 100 * row["accuracy"]
        if accuracy >= floor:
            marker = {"policy": "*", "full": "s", "sequential": "D"}.get(row["method"], "v")
            label = f"{TITLES[row['method']]}, {row['phase']}"
            axes.scatter(
                row["flops_mean"], accuracy, marker=marker, s=45, color=tone, label=label, zorder=3
            )
    axes.set_ylim(floor, best + 1)
    if points:
        axes.scatter(
            [point.flops for point in points],
            [point.accuracy for point in points],
            marker="*",
            s=70,
            color="black",
            label="BlockDrop, paper, 10,000 test images\n"
            f"(gamma {', '.join(str(point.gamma) for point in points)})",
        )
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(FuncFormatter(_e8))
    axes.xaxis.set_major_formatter(FuncFormatter(_e8))
    axes.tick_params(axis="x", which="both", labelsize=8)
    axes.set_title(
        f"ResNet-{figures['depth']}, {figures['config']}: {images} {figures['split']} images",
        fontsize=9,
    )
    axes.set_xlabel("FLOPs an image, policy included, in 1e8")
    axes.set_ylabel("accuracy in %" + (" (bars: 95 % interval)" if bars else ""))
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))
    picture.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(picture)


def _e8(value: float, _: object) -> str:
    """A tick of an axis of FLOPs, in 1e8."""
    return f"{value / 1e8:g}"


def _draw_blocks(figures: dict[str, Any], row: dict[str, Any], path: Path) -> None:
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    picture, axes = pyplot.subplots(figsize=(6.5, 3))
    counts = row["images_by_blocks"]
    used = [blocks for blocks, images in enumerate(counts) if images]
    axes.bar(range(len(counts)), [100 * count / sum(counts) for count in counts])
    axes.axvline(row["blocks_mean"], color="black", ls="--", lw=1)
    axes.set_xlim(min(0, used[0]) - 0.5, max(used[-1], len(counts) // 3) + 0.5)
    axes.set_title(
        f"BlockDrop ({row['phase']}) at {row['flops_mean']:.3g} FLOPs, {sum(counts)} "
        f"{figures['split']} images, {row['blocks_mean']:.1f} blocks on average (dashed)",
        fontsize=8,
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(f"blocks used, of {figures['blocks']}")
    axes.set_ylabel("images in %")
    picture.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(picture)


def draw(figures: dict[str, Any], folder: Path) -> list[Path]:
    """Draw accuracy against FLOPs, and the images by blocks used."""
    import matplotlib

    matplotlib.use("Agg")
    stem = f"{figures['config']}.{figures['split']}"
    paths = [folder / f"{stem}.flops.png"]
    _draw_curve(figures, paths[0])
    row = _last(figures)
    if row is not None:
        paths.append(folder / f"{stem}.blocks.png")
        _draw_blocks(figures, row, paths[1])
    return paths


def _part(file: Path, output: Path) -> tuple[list[str], list[Path]]:
    """Lines of one result file, and the pictures drawn for it."""
    try:
        figures = json.loads(file.read_text())
        if "ways" in figures:
            return ["", timing.section(figures)], []
        pictures = draw(figures, file.parent)
        lines = ["", section(figures), ""]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        kind = type(error).__name__
        raise DataError(
            f"{file}: found no result file ({kind}: {error}), expected what evaluate and time write"
        ) from error
    places = [os.path.relpath(picture, output.parent) for picture in pictures]
    return lines + [
        f"![{p.stem}]({place})" for p, place in zip(pictures, places, strict=True)
    ], pictures


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
    output.parent.mkdir(parents=True, exist_ok=True)
    for file in files:
        lines, pictures = _part(file, output)
        parts += lines
        written += pictures
    output.write_text("\n".join(parts) + "\n")
    return written
