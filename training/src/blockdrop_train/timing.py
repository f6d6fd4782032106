"""Table 2's comparison: every block, one decision for all of them, one in front of each.

The three run the same ONNX graphs block by block, one image at a time, on one thread of the CPU,
and take turns image by image, so that whatever slows the machine down slows them all. A mask that
is known before its blocks run has a further use, which sequential decisions lack: its path can be
one graph. The full net and the single step are timed as such too.
"""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from . import checkpoint
from .curriculum import nets_of
from .data import in_order
from .errors import CheckpointError
from .evaluate import shift_for
from .export import Bundle
from .flops import block_flops, full_flops
from .loop import Job, about, load_finished
from .sequential import Sequential, sequential_masks

PAPER = {
    ("cifar10", 32): {"full": 7.71, "single_step": 6.56, "sequential": 9.92},
    ("cifar10", 110): {"full": 24.1, "single_step": 10.9, "sequential": 29.1},
}
"""Milliseconds an image on one P6000 GPU (Table 2)."""

TITLES = {
    "full": "full",
    "single_step": "BlockDrop",
    "sequential": "BlockDrop-seq",
    "full_graph": "full, as one graph",
    "single_step_graph": "BlockDrop, paths as one graph each",
}

Run = Callable[[np.ndarray], tuple[np.ndarray, int]]
"""From a normalised image [1, C, H, W] to class logits [1, classes] and the blocks that ran."""


def _decided(bundle: Bundle, shift: float, image: np.ndarray) -> np.ndarray:
    """The mask, bool [K], of an image by the policy's keep logits and a shift of all of them."""
    mask: np.ndarray = bundle.run(bundle.policy, image)[0] >= -shift
    return mask


def full(bundle: Bundle) -> Run:
    """Every block."""
    mask = np.ones(len(bundle.blocks), bool)
    return lambda image: (bundle.along(mask, image), len(mask))


def single_step(bundle: Bundle, shift: float) -> Run:
    """The policy, then its path."""

    def run(image: np.ndarray) -> tuple[np.ndarray, int]:
        mask = _decided(bundle, shift, image)
        return bundle.along(mask, image), int(mask.sum())

    return run


def sequential(bundle: Bundle, decisions: Sequential) -> Run:
    """A decision in front of every block.

    Mean and weights are one scalar product, on as many threads as ``OPENBLAS_NUM_THREADS`` says.
    """
    given = bundle.manifest["input"]
    x = np.zeros((1, given["channels"], given["height"], given["width"]), np.float32)
    x, rows = bundle.run(bundle.stem, x), []
    for decider, block in zip(decisions.linear_layers(), bundle.blocks, strict=True):
        weight = decider.weight.detach().numpy()[0]
        area = x[0, 0].size
        rows.append((np.repeat(weight / area, area), float(decider.bias.detach())))
        x = bundle.run(block, x)

    def run(image: np.ndarray) -> tuple[np.ndarray, int]:
        x, kept = bundle.run(bundle.stem, image), 0
        for (row, bias), block, shortcut in zip(rows, bundle.blocks, bundle.shortcuts, strict=True):
            if np.dot(row, x.ravel()) + bias >= 0:
                x, kept = bundle.run(block, x), kept + 1
            elif shortcut is not None:
                x = bundle.run(shortcut, x)
        return bundle.run(bundle.head, x), kept

    return run


def full_graph(bundle: Bundle) -> Run:
    """Every block, as one graph."""
    path = bundle.path(np.ones(len(bundle.blocks), bool))
    return lambda image: (bundle.run(path, image), len(bundle.blocks))


def single_step_graph(bundle: Bundle, shift: float, images: np.ndarray) -> Run:
    """The policy, then its path as one graph, made beforehand for each of ``images``' masks."""
    masks = {mask.tobytes(): mask for mask in (_decided(bundle, shift, x) for x in images[:, None])}
    paths = {key: bundle.path(mask) for key, mask in masks.items()}

    def run(image: np.ndarray) -> tuple[np.ndarray, int]:
        mask = _decided(bundle, shift, image)
        return bundle.run(paths[mask.tobytes()], image), int(mask.sum())

    return run


def measure(runs: dict[str, Run], images: np.ndarray) -> dict[str, dict[str, Any]]:
    """Milliseconds an image and blocks an image of each way, and the classes that it found.

    Args:
        images: normalised [N, C, H, W]; the first tenth is run once more, before the clock starts.
    """
    spent: dict[str, list[float]] = {name: [] for name in runs}
    blocks: dict[str, list[int]] = {name: [] for name in runs}
    classes: dict[str, list[int]] = {name: [] for name in runs}
    names = list(runs)
    for image in images[: max(1, len(images) // 10), None]:
        for run in runs.values():
            run(image)
    for number, image in enumerate(images[:, None]):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            logits, kept = runs[name](image)
            spent[name].append(1000 * (time.perf_counter() - start))
            blocks[name].append(kept)
            classes[name].append(int(logits.argmax()))
    return {
        name: {
            "milliseconds_median": round(float(np.median(spent[name])), 4),
            "milliseconds_quartiles": [
                round(float(np.quantile(spent[name], part)), 4) for part in (0.25, 0.75)
            ],
            "milliseconds_mean": round(float(np.mean(spent[name])), 4),
            "blocks_mean": round(float(np.mean(blocks[name])), 3),
            "classes": classes[name],
        }
        for name in names
    }


def compare(job: Job, folder: Path, count: int) -> dict[str, Any]:
    """Times, blocks and accuracy of the ways to run the net on the run's first validation images.

    The policy's keep logits are shifted to the FLOPs that BlockDrop-seq takes on all validation
    images: the ways then differ in their decisions and in how they run, not in how much they keep.

    Args:
        folder: the bundle of the net that the run's sequential decisions were trained on.
        count: how many images.
    """
    if not job.checkpoint("sequential").exists():
        raise CheckpointError(
            f"no {job.checkpoint('sequential')}: train it first (blockdrop-train sequential)"
        )
    bundle = Bundle(folder)
    net, _ = nets_of(dataclasses.replace(job, device="cpu"))
    decisions = Sequential(net)
    load_finished(job.checkpoint("sequential"), {"net": net, "decisions": decisions})
    if len(bundle.blocks) != net.depth:
        raise CheckpointError(
            f"{folder}: found {len(bundle.blocks)} blocks, expected the run's {net.depth}"
        )
    images, normalise = job.config.load(job.data_root, "validation"), job.config.normalise()
    rows = torch.arange(min(count, len(images)))
    inputs = normalise(images.plain(rows)).contiguous()
    first = inputs[:8]
    found = net.eval()(first).detach().numpy()
    every = np.ones((len(first), net.depth), bool)
    if abs(bundle.logits(first.numpy(), every) - found).max() > 1e-2:
        raise CheckpointError(
            f"{folder} computes otherwise than the net of {job.checkpoint('sequential')}: export "
            "the net that the decisions were trained on"
        )
    costs = torch.tensor(block_flops(net), dtype=torch.double)
    fixed = full_flops(net) - float(costs.sum())
    kept = sequential_masks(net, decisions, images, normalise).double() @ costs
    spent = float(kept.mean()) + decisions.flops()
    asked = bundle.manifest["flops"]["policy"]
    parts = [normalise(pixels).contiguous().numpy() for pixels, _ in in_order(images, 250)]
    logits = torch.from_numpy(np.concatenate([bundle.run(bundle.policy, x) for x in parts]))
    shift = shift_for(logits, costs, spent - asked)
    chosen = float(((logits >= -shift).double() @ costs).mean()) + asked
    flops = {"full": float(costs.sum()), "single_step": chosen, "sequential": spent}
    ways = measure(
        {
            "full": full(bundle),
            "single_step": single_step(bundle, shift),
            "sequential": sequential(bundle, decisions),
            "full_graph": full_graph(bundle),
            "single_step_graph": single_step_graph(bundle, shift, inputs.numpy()),
        },
        inputs.numpy(),
    )
    for name, figure in ways.items():
        right = torch.tensor(figure.pop("classes")) == images.targets[rows]
        figure["accuracy"] = round(float(right.double().mean()), 4)
        figure["flops_mean"] = round(fixed + flops[name.removesuffix("_graph")])
    return {
        **about(job, net.depth),
        "bundle": checkpoint.title(folder),
        "shift": round(shift, 6),
        "images": len(rows),
        "machine": {
            "processor": _processor(),
            "threads": 1,
            "onnxruntime": onnxruntime.__version__,
        },
        "ways": ways,
    }


def _processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _runtime(figures: dict[str, Any]) -> str:
    machine = figures.get("machine")
    if machine is None:
        return "ONNX Runtime"
    return f"ONNX Runtime {machine['onnxruntime']}, {machine['processor']},"


def section(figures: dict[str, Any]) -> str:
    """Markdown of one comparison, Table 2's milliseconds beside ours."""
    paper = PAPER.get((figures["data"], figures["depth"]), {})
    ways = figures["ways"]
    base = ways["full"]["milliseconds_median"]
    lines = [
        f"## Time an image: ResNet-{figures['depth']} on {figures['data']}, `{figures['config']}`, "
        f"seed {figures['seed']}",
        "",
        f"The run's net as a bundle, the first {figures['images']} validation images one by one, "
        f"in turns, {_runtime(figures)} on one thread, block by block where nothing else is said. "
        f"The policy's keep logits are shifted by {figures['shift']:+.2f}, to BlockDrop-seq's "
        "FLOPs on all validation images, which are the FLOPs told here; blocks and accuracy are of "
        "the images timed. Shares of the full net's time mean something, milliseconds are the "
        "machine's; the paper's are of one P6000 GPU (Table 2).",
        "",
        "| | ms, median | quartiles | of full | FLOPs | blocks | accuracy % | paper, ms "
        "| of full |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, figure in ways.items():
        known = name in paper
        theirs = f"{paper[name]:g} | {paper[name] / paper['full']:.2f}" if known else " | "
        low, high = figure["milliseconds_quartiles"]
        lines.append(
            f"| {TITLES[name]} | {figure['milliseconds_median']:.2f} | {low:.2f} to {high:.2f} "
            f"| {figure['milliseconds_median'] / base:.2f} | {figure['flops_mean']:.3g} "
            f"| {figure['blocks_mean']:.1f} | {100 * figure['accuracy']:.1f} | {theirs} |"
        )
    return "\n".join(lines)
