"""Pictures of result files."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .published import PAPER_POINTS
from .results import TITLES, interval, last, phase


def _draw_curve(figures: dict[str, Any], path: Path) -> None:
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter

    picture, axes = pyplot.subplots(figsize=(8, 4.8))
    points = PAPER_POINTS.get((figures["data"], figures["depth"]), [])
    images = figures["rows"][0]["images"]
    best = max(100 * row["accuracy"] for row in figures["rows"])
    best = max([best, *(point.accuracy for point in points)])
    floor, learned = best - 4, last(figures)
    bars: Sequence[float] = ()
    for method, style, colour, label in (
        ("policy", "-", "tab:blue", "BlockDrop, its logits shifted"),
        ("most_kept", "--", "tab:orange", "the policy's most kept blocks, for all images"),
    ):
        curve = [
            (row["flops_mean"], 100 * row["accuracy"], 100 * interval(row["accuracy"], images))
            for row in figures["rows"]
            if row["method"] == method and learned is not None and row["phase"] == learned["phase"]
        ]
        if len(curve) > 1:
            x, y, bars = zip(*sorted(curve), strict=True)
            axes.errorbar(
                x, y, bars, fmt=style, marker="o", ms=4, color=colour, label=label, elinewidth=0.7,
                capsize=2,
            )  # fmt: skip
    rows = [r for r in figures["rows"] if "shift" not in r and r["method"] != "most_kept"]
    colours = [pyplot.get_cmap("tab20")(n) for n in range(4, 20)]  # the curves have the first
    for row, tone in zip(rows, itertools.cycle(colours), strict=False):
        accuracy = 100 * row["accuracy"]
        if accuracy >= floor:
            marker = {"policy": "*", "full": "s", "sequential": "D"}.get(row["method"], "v")
            label = f"{TITLES[row['method']]}, {phase(figures, row)}"
            if label in axes.get_legend_handles_labels()[1]:
                continue  # an imported net, as the base and as the curriculum's
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
    row = last(figures)
    if row is not None:
        paths.append(folder / f"{stem}.blocks.png")
        _draw_blocks(figures, row, paths[1])
    return paths
