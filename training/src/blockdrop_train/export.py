"""Model bundles: what the server loads.

A bundle is a folder of ONNX graphs (policy, stem, blocks, shortcuts, head), ``labels.txt`` and
``bundle.json``, which names each of these files with its sha256. After writing, ONNX Runtime runs
it on images and must agree with PyTorch. ``paths.json`` lists the masks that the policy chooses
most often, for servers that prepare for them; no hash covers it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from .data import Normalise
from .errors import ExportError
from .flops import full_flops, policy_flops
from .graphs import (
    OPSET,
    block_graph,
    head_graph,
    policy_graph,
    shortcut_graph,
    stem_graph,
)
from .nets import Policy, ResNet

TOLERANCE = 1e-4
"""Largest difference of logits between the bundle in ONNX Runtime and the net in PyTorch."""
MOST_PATHS = 64
"""Largest number of masks in ``paths.json``."""


@dataclass(frozen=True)
class About:
    """What ``bundle.json`` says beside the graphs.

    Attributes:
        architecture: the keys ``backbone``, ``policy`` and ``dataset``.
        short_side: pixels that an image's short side is resized to before the centre crop.
        provenance: configuration, seed, commit, data, command, date.
        measured: ``validation`` and ``test`` figures.
    """

    description: str
    architecture: dict[str, str]
    labels: tuple[str, ...]
    short_side: int
    provenance: dict[str, Any]
    measured: dict[str, Any]


def _write(folder: Path, name: str, content: bytes) -> dict[str, Any]:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return {"file": name, "sha256": hashlib.sha256(content).hexdigest()}


def _graph(folder: Path, name: str, model: onnx.ModelProto) -> dict[str, Any]:
    return _write(folder, name, model.SerializeToString(deterministic=True))


def _compose(
    folder: Path, net: ResNet, policy: Policy, normalise: Normalise, about: About
) -> dict[str, Any]:
    if len(about.labels) != net.head.out_features:
        raise ExportError(f"{len(about.labels)} labels for {net.head.out_features} classes")
    if policy.net.head.out_features != net.depth:
        raise ExportError(
            f"the policy decides {policy.net.head.out_features} blocks, the net has {net.depth}"
        )
    stem, shape = stem_graph(net)
    files: list[dict[str, Any]] = []
    stem_file = _graph(folder, "stem.onnx", stem)
    for index in range(net.depth):
        shortcut = shortcut_graph(net, index, shape)
        model, after = block_graph(net, index, shape)
        entry = _graph(folder, f"blocks/{index:03}.onnx", model)
        if shortcut is not None:
            entry["shortcut"] = _graph(folder, f"shortcuts/{index:03}.onnx", shortcut)
        files.append(entry)
        shape = after
    segments = []
    for length in net.segments:
        segments.append({"blocks": files[:length]})
        files = files[length:]
    channels, height, width = net.input_size
    return {
        "schema_version": 1,
        "description": about.description,
        "architecture": about.architecture,
        "opset": OPSET,
        "classes": net.head.out_features,
        "labels": _write(folder, "labels.txt", ("\n".join(about.labels) + "\n").encode()),
        "input": {
            "channels": channels,
            "height": height,
            "width": width,
            "mean": list(normalise.mean),
            "std": list(normalise.std),
            "resize": {"short_side": about.short_side, "filter": "bilinear"},
        },
        "policy": _graph(folder, "policy.onnx", policy_graph(policy)) | {"threshold": 0.5},
        "stem": stem_file,
        "segments": segments,
        "head": _graph(folder, "head.onnx", head_graph(net, shape)),
        "flops": {"policy": policy_flops(policy), "full": full_flops(net)},
        "provenance": about.provenance,
        "measured": about.measured,
    }


def mask_text(mask: Tensor) -> str:
    """A mask [K] as text: block 0 first, ``1`` where it is kept."""
    return "".join("1" if keep else "0" for keep in mask.tolist())


def frequent_paths(masks: Tensor) -> dict[str, float]:
    """The most frequent of the masks bool [N, K], as text, with their shares of the N images.

    Most frequent first, ties in the order of the text, at most ``MOST_PATHS``.
    """
    distinct, counts = torch.unique(masks, dim=0, return_counts=True)
    shares = {mask_text(m): int(n) / len(masks) for m, n in zip(distinct, counts, strict=True)}
    ranked = sorted(shares.items(), key=lambda item: (-item[1], item[0]))
    return dict(ranked[:MOST_PATHS])


def _write_paths(folder: Path, paths: dict[str, float]) -> None:
    listed = [{"mask": mask, "share": round(share, 6)} for mask, share in paths.items()]
    content = json.dumps({"schema": 1, "paths": listed}, indent=1) + "\n"
    (folder / "paths.json").write_text(content)


def _session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class Bundle:
    """A bundle on disk, run graph by graph with ONNX Runtime; hashes are checked on opening."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.manifest: dict[str, Any] = json.loads((folder / "bundle.json").read_text())
        except FileNotFoundError:
            raise ExportError(f"{folder} has no bundle.json: not a bundle") from None
        except ValueError as error:
            raise ExportError(f"{folder / 'bundle.json'}: no JSON: {error}") from error
        try:
            self._open()
        except (KeyError, TypeError, AttributeError) as error:
            kind = type(error).__name__
            raise ExportError(
                f"{folder / 'bundle.json'}: not what a bundle says ({kind}: {error})"
            ) from error

    def _open(self) -> None:
        self.policy = self._session(self.manifest["policy"])
        self.stem = self._session(self.manifest["stem"])
        self.head = self._session(self.manifest["head"])
        listed = self._listed()
        self.blocks = [self._session(b) for b in listed]
        self.shortcuts = [self._session(b["shortcut"]) if "shortcut" in b else None for b in listed]
        labels = self.read(self.manifest["labels"])
        self.labels = tuple(labels.decode().splitlines())
        given = self.manifest["input"]
        self.normalise = Normalise(tuple(given["mean"]), tuple(given["std"]))

    def _listed(self) -> list[dict[str, Any]]:
        """The manifest's blocks, block 0 first."""
        return [b for segment in self.manifest["segments"] for b in segment["blocks"]]

    def read(self, entry: dict[str, Any]) -> bytes:
        """The content of one of the manifest's files; its hash must be right."""
        content: bytes = (self.folder / entry["file"]).read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != entry["sha256"]:
            raise ExportError(
                f"{self.folder / entry['file']}: sha256 {found}, bundle.json says {entry['sha256']}"
            )
        return content

    def _session(self, entry: dict[str, Any]) -> onnxruntime.InferenceSession:
        content = self.read(entry)
        try:
            return _session(content)
        except Exception as error:  # ONNX Runtime's have no class of their own in common
            raise ExportError(f"{self.folder / entry['file']}: {error}") from error

    def path(self, mask: np.ndarray) -> onnxruntime.InferenceSession:
        """Stem, the blocks that ``mask``, bool [K], keeps, shortcuts and head as one graph."""
        listed = self._listed()
        taken = [b if keep else b.get("shortcut") for keep, b in zip(mask, listed, strict=True)]
        parts = [self.manifest["stem"], *filter(None, taken), self.manifest["head"]]
        models = [onnx.load_model_from_string(self.read(part)) for part in parts]
        whole = models[0]
        for number, model in enumerate(models[1:]):
            ends = (whole.graph.output[0].name, f"{number}/{model.graph.input[0].name}")
            whole = onnx.compose.merge_models(
                whole, onnx.compose.add_prefix(model, f"{number}/"), io_map=[ends]
            )
        return _session(whole.SerializeToString())

    @staticmethod
    def run(session: onnxruntime.InferenceSession, x: np.ndarray) -> np.ndarray:
        """The output of one of the bundle's graphs."""
        result: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
        return result

    def masks(self, inputs: np.ndarray) -> np.ndarray:
        """The policy's masks, bool [N, K], of normalised images [N, C, H, W]."""
        threshold = self.manifest["policy"]["threshold"]
        kept: np.ndarray = self.run(self.policy, inputs) >= np.log(threshold / (1 - threshold))
        return kept

    def logits(self, inputs: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Class logits [N, classes] of images [N, C, H, W] on the paths ``masks`` [N, K]."""
        out = np.zeros((len(inputs), self.manifest["classes"]), np.float32)
        paths, member = np.unique(masks, axis=0, return_inverse=True)
        for number, mask in enumerate(paths):
            rows = np.flatnonzero(member.reshape(-1) == number)
            out[rows] = self.along(mask, inputs[rows])
        return out

    def along(self, mask: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """Class logits [N, classes] of images [N, C, H, W] on one path [K], block by block."""
        x = self.run(self.stem, inputs)
        for keep, block, shortcut in zip(mask, self.blocks, self.shortcuts, strict=True):
            if keep:
                x = self.run(block, x)
            elif shortcut is not None:
                x = self.run(shortcut, x)
        return self.run(self.head, x)


@torch.no_grad()
def check(bundle: Bundle, net: ResNet, policy: Policy, inputs: Tensor, seed: int = 0) -> None:
    """Compare a bundle with its nets on normalised images [N, C, H, W].

    Raises:
        ExportError: mask, class or logits differ for learned, full or random masks.
    """
    net.eval()
    policy.eval()
    array = inputs.contiguous().numpy()
    wanted = policy(inputs)
    kept = bundle.masks(array)
    clear = (wanted.abs() > TOLERANCE).numpy()
    if (((wanted >= 0).numpy() != kept) & clear).any():
        raise ExportError("policy.onnx decides otherwise than the policy in PyTorch")
    draw = np.random.default_rng(seed)
    cases = {
        "learned": kept,
        "full": np.ones_like(kept),
        "random": draw.random(kept.shape) < draw.random((len(kept), 1)),
    }
    for name, masks in cases.items():
        expected = net(inputs, torch.from_numpy(masks)).numpy()
        found = bundle.logits(array, masks)
        difference = float(np.abs(found - expected).max())
        if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise ExportError(f"{name} masks: logits differ by {difference:.2e} from PyTorch")
        second = np.sort(expected, 1)
        sure = second[:, -1] - second[:, -2] > 2 * difference
        if (found.argmax(1) != expected.argmax(1))[sure].any():
            raise ExportError(f"{name} masks: the class differs from PyTorch")


def replaceable(target: Path) -> None:
    """Check that a bundle may be written to ``target``: nothing is there but a bundle.

    Raises:
        ExportError: something else is there, which writing a bundle would delete.
    """
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir() or target.is_symlink():
        raise ExportError(f"{target}: found no folder, expected a new one or a bundle's")
    if any(target.iterdir()) and not (target / "bundle.json").is_file():
        raise ExportError(
            f"{target}: found files but no bundle.json, expected a new folder or a bundle's, "
            "which is replaced whole"
        )


def export(
    target: Path,
    net: ResNet,
    policy: Policy,
    normalise: Normalise,
    about: About,
    inputs: Tensor,
    paths: dict[str, float],
) -> None:
    """Write the bundle to the folder ``target`` and check it there.

    The bundle is written beside ``target`` and takes its place when it has passed the check, so a
    failed export leaves what was there before.

    Args:
        inputs: normalised images [N, C, H, W] for the check.
        paths: masks and shares for ``paths.json``, as ``frequent_paths`` returns them.
    """
    replaceable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary:
        folder = Path(temporary) / "bundle"
        folder.mkdir()
        manifest = _compose(folder, net, policy, normalise, about)
        (folder / "bundle.json").write_text(json.dumps(manifest, indent=2) + "\n")
        _write_paths(folder, paths)
        check(Bundle(folder), net, policy, inputs)
        if target.exists():
            old = Path(temporary) / "old"
            os.rename(target, old)  # noqa: PTH104
            os.rename(folder, target)  # noqa: PTH104
            shutil.rmtree(old)
        else:
            os.rename(folder, target)  # noqa: PTH104
