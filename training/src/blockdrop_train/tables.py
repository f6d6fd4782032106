"""Markdown made of result files: every file's tables, and all runs of a net side by side."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import timing
from .baselines import HEURISTICS
from .errors import DataError
from .plots import draw
from .published import PAPER, PAPER_POINTS, Published
from .results import TITLES, find, interval, last, phase

TABLE_1 = ("first_k", "random_k", "distribute_k", "policy", "full")


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not run"
    epochs = f", {row['epochs']:g} epochs" if "epochs" in row else ""
    return f"{100 * row['accuracy']:.1f} @{row['blocks_mean']:.1f}{epochs}"


def _paper_cell(accuracy: float | None, blocks: float | None) -> str:
    return "" if accuracy is None else f"{accuracy} @{blocks:g}"


def _published_line(point: Published) -> str:
    blocks, flops = f"{point.blocks}", f"{point.flops:.3g}"
    if point.blocks_std is not None and point.flops_std is not None:
        blocks += f" ± {point.blocks_std}"
        flops += f" ± {point.flops_std:.2g}"
    return (
        f"| BlockDrop, paper | gamma {point.gamma} | {point.accuracy} | {blocks} | {flops} "
        f"| {point.masks or ''} |"
    )


def _at(row: dict[str, Any]) -> str:
    """At which FLOPs a row's policy was measured, where these are not its own."""
    return f" at {row['wanted']:.3g} FLOPs" if "wanted" in row else ""


def _spread(row: dict[str, Any]) -> str:
    """A sentence on how unequal the images' numbers of blocks are."""
    counts = row["images_by_blocks"]
    used = [blocks for blocks, images in enumerate(counts) if images]
    few = sum(counts[:10]) / sum(counts)
    span = f"{used[0]} to {used[-1]}" if len(used) > 1 else f"{used[0]}"
    return (
        f"BlockDrop ({row['phase']}{_at(row)}) uses {span} of {len(counts) - 1} blocks; "
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
    learned = last(figures)
    blocks = 0 if learned is None else math.ceil(learned["blocks_mean"])
    for method in TABLE_1:
        after = find(figures, method, ("finetune",), blocks)
        before = find(figures, method, ("base", "curriculum"))
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
        epochs += f"{_at(row)}, logits {row['shift']:+.2f}" if "shift" in row else ""
        lines.append(
            f"| {TITLES[row['method']]} | {phase(figures, row)}{epochs} "
            f"| {100 * row['accuracy']:.2f} | {row['blocks_mean']:.2f} ± {row['blocks_std']:.2f} "
            f"| {row['flops_mean']:.3g} ± {row['flops_std']:.2g} | {row['distinct_masks']} |"
        )
    lines += [_published_line(point) for point in PAPER_POINTS.get(known, [])]
    best = max(row["accuracy"] for row in figures["rows"])
    lines += [
        "",
        f"BlockDrop's FLOPs include the policy's {figures['policy_flops']:.3g}. "
        f"An accuracy of {100 * best:.1f} % on {images} images is known to "
        f"±{100 * interval(best, images):.1f} points (95 %).",
    ]
    if learned is not None:
        points = [
            row
            for row in figures["rows"]
            if row["method"] == "policy" and row["phase"] == learned["phase"] and "wanted" in row
        ]
        lines += ["", *(f"- {_spread(row)}" for row in [learned, *points])]
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


def _key(row: dict[str, Any]) -> tuple[str, str, float, int]:
    """What a row has in common with that of another split: the net, and what decides for it."""
    kept = round(row["blocks_mean"]) if row["method"] in HEURISTICS else 0
    return row["method"], row["phase"], row.get("shift", 0.0), kept


def _compared(figures: dict[str, Any]) -> dict[tuple[str, str, float, int], dict[str, Any]]:
    """The rows that a run is judged by: of its last nets, and of its base net with every block."""
    learned = last(figures)
    phases = {"base" if learned is None else learned["phase"], "decisions"}
    return {
        _key(row): row
        for row in figures["rows"]
        if row["phase"] in phases or (row["phase"], row["method"]) == ("base", "full")
    }


def overview(results: Sequence[dict[str, Any]]) -> str:
    """Markdown of all runs of one net, validation and test images side by side.

    Args:
        results: of ``evaluate``, all of one data set and depth.
    """
    first = results[0]
    images = {figures["split"]: figures["rows"][0]["images"] for figures in results}
    splits = [split for split in ("validation", "test") if split in images]
    columns = [f"FLOPs, {split} | % of {images[split]}" for split in splits]
    lines = [
        f"## ResNet-{first['depth']} on {first['data']}: all runs",
        "",
        "Accuracy in percent, by FLOPs an image, the policy's included.",
        "",
        f"| run | net | {' | '.join(columns)} |",
        "|---|---|" + "---|---|" * len(splits),
    ]
    for name in dict.fromkeys(figures["config"] for figures in results):
        files = [figures for figures in results if figures["config"] == name]
        run = {figures["split"]: _compared(figures) for figures in files}
        cost: dict[Any, float] = {}
        for rows in run.values():
            cost = {key: row["flops_mean"] for key, row in rows.items()} | cost
        for key in sorted(cost, key=lambda key: cost[key]):
            shown = [run.get(split, {}).get(key) for split in splits]
            cells = [
                " | " if row is None else f"{row['flops_mean']:.3g} | {100 * row['accuracy']:.2f}"
                for row in shown
            ]
            title = f"{TITLES[key[0]]}, {phase(files[0], {'phase': key[1]})}"
            if key[0] in HEURISTICS:
                title += f", {key[3]} blocks"
            lines.append(f"| `{name}` | {title} | {' | '.join(cells)} |")
    for point in PAPER_POINTS.get((first["data"], first["depth"]), []):
        cells = [
            f"{point.flops:.3g} | {point.accuracy:.1f} (of 10000)" if split == "test" else " | "
            for split in splits
        ]
        lines.append(f"| the paper | BlockDrop, gamma {point.gamma} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _overviews(results: Sequence[dict[str, Any]]) -> list[str]:
    nets: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for figures in results:
        if "ways" not in figures:
            nets.setdefault((figures["data"], figures["depth"]), []).append(figures)
    return [line for net in nets.values() for line in ("", overview(net))]


def _part(file: Path, figures: dict[str, Any], output: Path) -> tuple[list[str], list[Path]]:
    """Lines of one result file, and the pictures drawn for it."""
    if "ways" in figures:
        return ["", timing.section(figures)], []
    pictures = draw(figures, file.parent)
    places = [os.path.relpath(picture, output.parent) for picture in pictures]
    images = [f"![{p.stem}]({place})" for p, place in zip(pictures, places, strict=True)]
    return ["", section(figures), "", *images], pictures


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
    results, parts, written = [], [], [output]
    output.parent.mkdir(parents=True, exist_ok=True)
    for file in files:
        try:
            results.append(json.loads(file.read_text()))
            lines, pictures = _part(file, results[-1], output)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            kind = type(error).__name__
            raise DataError(
                f"{file}: found no result file ({kind}: {error}), expected what evaluate and time "
                "write"
            ) from error
        parts += lines
        written += pictures
    head = [
        "# Results",
        "",
        "Written by `blockdrop-train table` from the files in `results/`, which "
        "`blockdrop-train evaluate --results` and `time --results` leave. Do not edit.",
        *_overviews(results),
    ]
    output.write_text("\n".join([*head, *parts]) + "\n")
    return written
