"""Trains, finetunes, evaluates and exports BlockDrop model bundles.

A run is a folder of checkpoints and logs: base training, then the policy's curriculum, then joint
finetuning, then evaluation and export. A training command that finds its own checkpoint in the run
folder resumes it.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import math
import os
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from . import (
    base,
    checkpoint,
    config,
    curriculum,
    data,
    finetune,
    growing,
    importing,
    pictures,
    results,
    sequential,
    tables,
    teacher,
    timing,
    untrained,
    workers,
)
from .baselines import Heuristic
from .config import Config
from .curriculum import nets_of, path_scores
from .errors import MENDABLE, CheckpointError
from .evaluate import keep_logits, learned_masks, shift_to
from .export import About, Bundle, export, frequent_paths, replaceable
from .folder import load_folder
from .loop import Job, imported, load_finished, share
from .nets import Policy, ResNet

TRAINING = Path(__file__).parents[2]
TRAINERS = {
    "base": base.train,
    "curriculum": curriculum.train,
    "sequential": sequential.train,
    "finetune": finetune.train,
}
PHASES = ("finetune", "curriculum")


def _cache() -> Path:
    """The folder of data sets and runs, by the XDG base directory rules: absolute paths only."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / "blockdrop"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="blockdrop-train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--config", type=Path, required=True, help="TOML configuration")
        command.add_argument(
            "--data", type=Path, default=_cache() / "data", help="folder of data sets [%(default)s]"
        )
        command.add_argument(
            "--run",
            type=Path,
            help=f"folder of checkpoints and logs [{_cache() / 'runs' / 'NAME'}]",
        )
        command.add_argument(
            "--device", default="auto", help="auto, cpu, cuda or cuda:N [%(default)s]"
        )
        return command

    for name, text in (
        ("base", "Train the residual network alone."),
        ("curriculum", "Train the policy on the run's base net."),
        ("sequential", "Train the decisions of BlockDrop-seq on the run's last net."),
        ("finetune", "Train the run's net and policy together."),
    ):
        command = add(name, text)
        command.add_argument(
            "--workers",
            type=_count,
            default=1,
            help="training processes; a share of each batch is theirs [%(default)s]",
        )
        command.add_argument("--threads", type=_count, default=1, help="threads each [%(default)s]")
        command.add_argument(
            "--precision",
            choices=("bfloat16", "float32"),
            default="bfloat16",
            help="arithmetic of convolutions in training [%(default)s]",
        )
        command.add_argument(
            "--save-every", type=_count, default=200, help="steps between checkpoints [%(default)s]"
        )
        command.add_argument(
            "--evaluate-every",
            type=_count,
            default=1,
            help="epochs between evaluations [%(default)s]",
        )
    command.add_argument(
        "--path",
        help="finetune the base net for a baseline's paths instead: first_k:N, random_k:N, "
        "distribute_k:N",
    )
    command.add_argument("--epochs", type=_count, help="instead of the configuration's")
    command = add("import", "Start a run from a base checkpoint or a bundle that you have.")
    command.add_argument(
        "--checkpoint", type=Path, required=True, help="the PyTorch file, or the bundle's folder"
    )
    command.add_argument(
        "--layout", choices=importing.LAYOUTS, default="auto", help="of its keys [%(default)s]"
    )
    command.add_argument(
        "--policy", type=Path, help="torchvision's ResNet-18, for an ImageNet policy to start from"
    )
    command.add_argument(
        "--net-only", action="store_true", help="leave its policy, to train another one"
    )
    command = add("grow", "Start a run's base training from a bundle of a shallower net.")
    command.add_argument("--bundle", type=Path, required=True, help="models/NAME/VERSION")
    command = add(
        "teach", "Keep what trained nets say about a run's training images, to learn from."
    )
    command.add_argument(
        "teachers",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="a bundle's folder, or a run's checkpoint; its full net is asked, on each image and "
        "its mirror image, and the mean of all probabilities is kept",
    )
    command.add_argument(
        "--threads", type=_count, default=os.cpu_count() or 1, help="batches at once [%(default)s]"
    )
    command = add("evaluate", "Print the figures of all nets of a run as JSON.")
    command.add_argument(
        "--split", choices=("validation", "test"), default="validation", help="[%(default)s]"
    )
    command.add_argument("--results", type=Path, help="write them to a file in this folder too")
    command.add_argument(
        "--flops",
        type=_flops,
        nargs="+",
        default=[],
        metavar="F",
        help="measure the policy at these FLOPs too, by one shift of its keep logits each, which "
        "meets them on validation images",
    )
    command = add("time", "Time full, single-step and sequential inference, as in Table 2.")
    command.add_argument(
        "--bundle", type=Path, required=True, help="the run's last net as a bundle"
    )
    command.add_argument(
        "--images", type=_count, default=500, help="validation images, one by one [%(default)s]"
    )
    command.add_argument("--results", type=Path, help="write them to a file in this folder too")
    command = add("export", "Write a model bundle from a run's nets and check it.")
    command.add_argument(
        "--phase",
        choices=(*PHASES, "base"),
        help="which checkpoint; base has a policy that keeps every block [the run's last policy's]",
    )
    command.add_argument(
        "--output", type=Path, required=True, help="the bundle's folder: models/NAME/VERSION"
    )
    command.add_argument(
        "--flops", type=_flops, help="shift the keep logits to these FLOPs on validation images"
    )
    command.add_argument("--note", default="", help="a sentence for the bundle's description")
    command = commands.add_parser(
        "untrained", help="Write a bundle of random weights and random masks, for benchmarks."
    )
    command.add_argument("--config", type=Path, required=True, help="TOML configuration")
    command.add_argument(
        "--output", type=Path, required=True, help="the bundle's folder: models/NAME/VERSION"
    )
    command.add_argument(
        "--masks", type=_count, default=10, help="distinct masks in paths.json [%(default)s]"
    )
    command.add_argument(
        "--keep", type=float, default=0.5, help="share of blocks that they keep [%(default)s]"
    )
    command = commands.add_parser("table", help="Write RESULTS.md and pictures from result files.")
    command.add_argument("--results", type=Path, default=TRAINING / "results", help="[%(default)s]")
    command.add_argument(
        "--output", type=Path, default=TRAINING / "RESULTS.md", help="[%(default)s]"
    )
    command = commands.add_parser(
        "pictures", help="Draw masks by class, and easy and hard images, from a bundle."
    )
    command.add_argument("bundle", type=Path, help="models/NAME/VERSION")
    command.add_argument(
        "--images", type=Path, help="a folder of images for each class [the data set's test images]"
    )
    command.add_argument(
        "--data", type=Path, default=_cache() / "data", help="folder of data sets [%(default)s]"
    )
    command.add_argument("--output", type=Path, default=Path("pictures"), help="[%(default)s]")
    return parser


def _device(name: str) -> str:
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if found else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    if name != "cpu" and int(name.partition(":")[2] or 0) >= found:
        raise ValueError(f"--device {name}: PyTorch finds {found} CUDA devices here")
    return name


def _count(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}': expected a whole number from 1 on")
    return int(text)


def _flops(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}': expected FLOPs such as 9.9e7")
    return value


def _phase(job: Job, given: str | None) -> str:
    if given == "base" and job.checkpoint("base").exists():
        return "base"
    for phase in PHASES:
        if given in (None, phase) and job.checkpoint(phase).exists():
            return phase
    raise CheckpointError(f"{job.folder} has no {given or ' or '.join(PHASES)} checkpoint")


def _commit() -> str:
    """The commit of this package, with ``-dirty`` where its code or configurations differ."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=TRAINING, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "src", "configs")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _unfold(job: Job, folder: Path, net: ResNet, policy: Policy) -> None:
    """Load a bundle's net and policy; batch norms get the statistics of 1,000 training images.

    Those of the net are of full paths and the policy's, mixed, as finetuning sees them.
    """
    state, decider = importing.read_bundle(folder)
    images = job.config.load(job.data_root, "train")
    inputs = job.config.normalise()(images.plain(torch.arange(min(1000, len(images)))))
    importing.unfold(decider, policy.net, lambda: policy(inputs), "policy")
    masks = policy(inputs) >= 0
    both = torch.cat([torch.ones_like(masks), masks])
    importing.unfold(state, net, lambda: net(torch.cat([inputs] * 2), both))


def _origin(folder: Path) -> dict[str, Any]:
    """A bundle's name, the hash of its ``bundle.json``, which names all others, and provenance."""
    provenance = Bundle(folder).manifest["provenance"]
    digest = hashlib.sha256((folder / "bundle.json").read_bytes()).hexdigest()
    return {"name": checkpoint.title(folder), "sha256": digest, "provenance": provenance}


def _import(job: Job, path: Path, layout: str, initial: Path | None, net_only: bool) -> None:
    """Write checkpoints from what others trained, or from a bundle.

    ``base.pt`` holds the net. With a policy, a foreign file makes ``finetune.pt`` too, and a bundle
    makes ``curriculum.pt``, from which finetuning goes on.

    Args:
        initial: a ResNet-18 for the curriculum's policy to start from.
        net_only: make ``base.pt`` alone.
    """
    net, policy = nets_of(dataclasses.replace(job, device="cpu"))
    phase = "base"
    origin: dict[str, Any] = {"name": path.name}
    if path.is_dir():
        _unfold(job, path, net, policy)
        phase = "base" if net_only else "curriculum"
        origin = _origin(path)
    else:
        state, agent = importing.read(path)
        importing.convert(state, net, layout)
        if agent is not None and not net_only:
            importing.convert_policy(agent, policy)
            phase = "finetune"
    nets: dict[str, Any] = {"net": net.state_dict()}
    if initial is not None:
        if phase != "base":
            raise CheckpointError(f"{path} holds a policy: --policy starts another from {initial}")
        importing.convert_resnet18(importing.read(initial)[0], policy)
        nets["initial_policy"] = policy.state_dict()
    if phase != "base":
        nets["policy"] = policy.state_dict()
    for place in {job.checkpoint("base"), job.checkpoint(phase)}:
        if place.exists():
            raise CheckpointError(f"{place} exists: give another --run")
        content = {"kind": "import", "config": share(job.config), "step": 0, "total": 0}
        content |= {"nets": nets, "optimisers": {}, "state": {}, "imported": origin}
        checkpoint.save(place, content)
        print(place)


def _grow(job: Job, folder: Path) -> None:
    """Write ``grown.pt``: the configured net, which computes what a bundle's shallower one does."""
    settings = job.config
    lengths = [len(segment["blocks"]) for segment in Bundle(folder).manifest["segments"]]
    if settings.net.family != "cifar" or len(set(lengths)) != 1:
        raise CheckpointError(f"{folder}: found segments {lengths}, expected a CIFAR net's")
    shallow = dataclasses.replace(settings.net, depth=6 * lengths[0] + 2)
    small = dataclasses.replace(
        job, device="cpu", config=dataclasses.replace(settings, net=shallow)
    )
    source, policy = nets_of(small)
    _unfold(small, folder, source, policy)
    net, _ = nets_of(dataclasses.replace(job, device="cpu"))
    taken = growing.grow(source, net, settings.grow.new)
    for name in ("grown", "base"):
        if job.checkpoint(name).exists():
            raise CheckpointError(f"{job.checkpoint(name)} exists: give another --run")
    origin = _origin(folder) | {
        "grown": {"places": taken, "of": net.depth, "new": settings.grow.new}
    }
    content = {"kind": "grow", "config": share(settings), "step": 0, "total": 0}
    content |= {"nets": {"net": net.state_dict()}, "optimisers": {}, "state": {}}
    checkpoint.save(job.checkpoint("grown"), content | {"imported": origin})
    print(job.checkpoint("grown"))


def _architecture(settings: Config) -> dict[str, str]:
    pooled = f"-pool{settings.policy.pool}" if settings.policy.pool > 1 else ""
    return {
        "backbone": f"resnet{settings.net.depth}",
        "policy": f"resnet{10 if settings.net.family == 'imagenet' else 8}{pooled}",
        "dataset": settings.data.name,
    }


def _now(command: list[str]) -> dict[str, str]:
    """Provenance that every bundle has."""
    return {
        "commit": _commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["blockdrop-train", *command]),
    }


def _untrained(options: argparse.Namespace, command: list[str]) -> None:
    settings = config.read(options.config)
    torch.manual_seed(settings.seed)
    net = settings.build_net()
    policy = settings.build_policy(net.depth)
    paths = untrained.random_paths(net.depth, options.masks, options.keep, settings.seed)
    mean = sum(mask.count("1") * share for mask, share in paths.items())
    description = (
        f"{settings.net.family} ResNet-{settings.net.depth} with random weights, for benchmarks: "
        f"{len(paths)} masks, {mean:.1f} of {net.depth} blocks on average."
    )
    about = About(
        description=description,
        architecture=_architecture(settings),
        labels=untrained.labels(settings.data.name, settings.data.classes),
        short_side=settings.data.short_side,
        provenance={"config": share(settings), "seed": settings.seed, "phase": "untrained"}
        | _now(command),
        measured={},
    )
    untrained.write(options.output, net, policy, settings.normalise(), about, paths, settings.seed)
    print(f"{options.output}: {description}")


def _export(
    job: Job, given: str | None, flops: float | None, output: Path, note: str, command: list[str]
) -> None:
    replaceable(output)  # before the work, not after it
    settings = job.config
    phase = _phase(job, given)
    net, policy = nets_of(job)
    nets: dict[str, torch.nn.Module] = {"net": net}
    if phase == "base":
        torch.nn.init.ones_(policy.net.head.bias)
    else:
        nets["policy"] = policy
    saved = load_finished(job.checkpoint(phase), nets)
    held = settings.load(job.data_root, "validation")
    shift = 0.0
    if flops is not None:
        shift = shift_to(net, policy, keep_logits(policy, held, settings.normalise()), flops)
        policy.net.head.bias.data.add_(shift)
    measured: dict[str, Any] = {}
    for split in ("validation", "test"):
        images = settings.load(job.data_root, split)
        figures = path_scores(net, policy, images, settings.normalise())
        measured[split] = {"images": len(images)} | {
            key: {k: v for k, v in figures[key].items() if k != "images"}
            for key in ("full", "policy")
        }
    test = settings.load(job.data_root, "test")
    train = settings.load(job.data_root, "train")
    full, learned = (measured["test"][key] for key in ("full", "policy"))
    description = (
        f"{settings.net.family} ResNet-{settings.net.depth} on {settings.data.name}: "
        f"{learned['accuracy']:.2%} of {len(test)} test images right with "
        f"{learned['blocks_mean']:.1f} of {net.depth} blocks on average, "
        f"{full['accuracy']:.2%} with all. {note}"
    ).strip()
    about = About(
        description=description,
        architecture=_architecture(settings),
        labels=test.labels,
        short_side=settings.data.short_side,
        provenance={
            "config": saved["config"],
            "seed": saved["config"]["seed"],
            "data": f"{settings.data.name}, {len(train):,} training and {len(held):,} validation "
            f"images (split seed {data.SPLIT_SEED})",
            "phase": phase,
            "steps": saved["step"],
            "shift": shift,
            "imported": imported(job),
            "teachers": teacher.provenance(job) if phase == "finetune" else None,
            **_now(command),
        },
        measured=measured,
    )
    inputs = settings.normalise()(test.plain(torch.arange(min(256, len(test)))))
    paths = frequent_paths(learned_masks(policy, held, settings.normalise()))
    export(output, net, policy, settings.normalise(), about, inputs, paths)
    print(f"{output}: {description}")


def _pictures(options: argparse.Namespace) -> None:
    bundle = Bundle(options.bundle)
    given = bundle.manifest["input"]
    short_side = given["resize"]["short_side"]
    images: data.AnyImages
    if options.images:
        images = load_folder(options.images, given["height"], short_side)
    else:
        name = bundle.manifest["architecture"]["dataset"]
        images = data.load(name, options.data, "test", given["height"], short_side)
    for path in pictures.draw(bundle, images, options.output):
        print(path)


def _report(figures: dict[str, Any], kind: str, folder: Path | None, command: list[str]) -> None:
    """Print a run's figures, and write them to a result file where a folder is given."""
    figures = {"provenance": _now(command)} | figures
    print(json.dumps(figures, indent=1))
    if folder:
        print(results.save(folder, figures, kind), file=sys.stderr)


def _run(options: argparse.Namespace, arguments: list[str]) -> None:
    if options.command == "table":
        for path in tables.table(options.results, options.output):
            print(path)
        return
    if options.command == "pictures":
        _pictures(options)
        return
    if options.command == "untrained":
        _untrained(options, arguments)
        return
    settings: Config = config.read(options.config)
    job = Job(
        config=settings,
        folder=options.run or _cache() / "runs" / settings.name,
        data_root=options.data,
        device=_device(options.device),
    )
    if options.command in TRAINERS:
        job = dataclasses.replace(
            job,
            bfloat16=options.precision == "bfloat16",
            save_every=options.save_every,
            evaluate_every=options.evaluate_every,
        )
        if options.command == "finetune" and options.epochs:
            tuning = dataclasses.replace(settings.finetune, epochs=options.epochs)
            job = dataclasses.replace(job, config=dataclasses.replace(settings, finetune=tuning))
        work = functools.partial(TRAINERS[options.command], job)
        if options.command == "finetune" and options.path:
            work = functools.partial(work, heuristic=Heuristic.parse(options.path))
        workers.launch(options.workers, options.threads, work)
    elif options.command == "import":
        _import(job, options.checkpoint, options.layout, options.policy, options.net_only)
    elif options.command == "grow":
        _grow(job, options.bundle)
    elif options.command == "teach":
        print(json.dumps(teacher.teach(job, options.teachers, options.threads)))
    elif options.command == "evaluate":
        figures = results.evaluate(job, options.split, options.flops)
        _report(figures, options.split, options.results, arguments)
    elif options.command == "time":
        figures = timing.compare(job, options.bundle, options.images)
        _report(figures, "time", options.results, arguments)
    elif options.command == "export":
        _export(job, options.phase, options.flops, options.output, options.note, arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the process's exit status."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    given = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(given)
    try:
        _run(options, given)
    except MENDABLE as error:
        print(f"blockdrop-train: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
