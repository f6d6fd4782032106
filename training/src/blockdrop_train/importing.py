"""Base checkpoints that people have, read into our nets by their key layouts.

- **torchvision** ResNet-50/101/152: ``conv1``, ``bn1``, ``layer1.0.conv1``, ``downsample``, ``fc``.
- **CIFAR ResNets** with option A shortcuts: ``conv1``, ``bn1``, ``layer1.0.conv1``, ``linear`` or
  ``fc``; a ``module.`` prefix and a ``state_dict`` or ``net`` wrapper are taken off.
- **The authors' ``.t7``** files (PyTorch pickles for all their name): ``resnet`` with ``conv1``,
  ``bn1``, ``blocks.S.B.conv1``, ``ds.S.0`` where a shortcut has weights, ``fc``; and ``agent``, the
  policy, with the same under ``features.`` and ``logit``. Its value head ``vnet`` is left out.

Their nets want their preprocessing: the authors' CIFAR-10 ResNet-32 was trained on pixels with mean
(125.3, 123.0, 113.9) and deviation (63.0, 62.1, 66.7), their other CIFAR nets on plain [0, 1].
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import CheckpointError
from .nets import Policy, ProjectionShortcut, ResNet

LAYOUTS = ("auto", "torchvision", "cifar", "t7")
_SKIPPED = re.compile(r"vnet\.|features\.fc\.|.*num_batches_tracked$")


def _tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    state = {
        str(k): v.data if isinstance(v, nn.Parameter) else v
        for k, v in content.items()
        if isinstance(v, Tensor)
    }
    return {k.removeprefix("module."): v for k, v in state.items()}


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """The state dicts of a PyTorch file: the net's, and the policy's where there is one.

    Wrappers and prefixes are taken off. Files are read with ``weights_only``, which runs no code
    of theirs.
    """
    if not path.exists():
        raise CheckpointError(f"no checkpoint {path}")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} is not a PyTorch file of tensors: {error}") from error
    agent = content.get("agent") if isinstance(content, Mapping) else None
    for key in ("state_dict", "resnet", "model", "net"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: expected a state dict, found {type(content).__name__}")
    state = _tensors(content)
    if not state:
        raise CheckpointError(f"{path}: its state dict holds no tensors")
    return state, _tensors(agent) if isinstance(agent, Mapping) else None


def layout_of(state: Mapping[str, Tensor]) -> str:
    """Tell a layout by its keys."""
    if "conv1.weight" in state and any(k.startswith("blocks.") for k in state):
        return "t7"
    if "conv1.weight" in state and any(k.startswith("layer1.") for k in state):
        return "torchvision" if state["conv1.weight"].shape[-1] == 7 else "cifar"
    raise CheckpointError(
        f"unknown key layout ({', '.join(list(state)[:3])}, ...); expected one of "
        f"{', '.join(LAYOUTS[1:])}"
    )


def _names(net: ResNet, layout: str) -> dict[str, str]:
    """Their key -> our key, both without the last part (``weight`` and so on)."""
    names = {"conv1": "stem.conv", "bn1": "stem.norm", "fc": "head", "linear": "head"}
    index = 0
    for segment, length in enumerate(net.segments):
        for position in range(length):
            block = net.block(index)
            flat = layout == "t7"
            theirs = f"{'blocks.' if flat else 'layer'}{segment + (not flat)}.{position}"
            for number in range(1, len(block.branch.layers()) + 1):
                names[f"{theirs}.conv{number}"] = f"blocks.{index}.branch.conv{number}"
                names[f"{theirs}.bn{number}"] = f"blocks.{index}.branch.norm{number}"
            if isinstance(block.shortcut, ProjectionShortcut):
                short = f"ds.{segment}" if flat else f"{theirs}.downsample"
                names[f"{short}.0"] = f"blocks.{index}.shortcut.conv"
                names[f"{short}.1"] = f"blocks.{index}.shortcut.norm"
            index += 1
    return names


def convert(state: Mapping[str, Tensor], net: ResNet, layout: str = "auto") -> None:
    """Load a foreign state dict into ``net``; every weight of the net must be found and fit.

    Raises:
        CheckpointError: naming what is missing, left over, or of another shape.
    """
    if layout not in LAYOUTS:
        raise CheckpointError(f"layout '{layout}': expected one of {', '.join(LAYOUTS)}")
    kind = layout_of(state) if layout == "auto" else layout
    names = _names(net, kind)
    wanted = net.state_dict()
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        if _SKIPPED.match(key):
            continue
        stem, _, last = key.rpartition(".")
        ours = f"{names[stem]}.{last}" if stem in names else ""
        if ours not in wanted:
            raise CheckpointError(
                f"{kind} checkpoint: no place in the net for {key}: it is of a deeper net, or has "
                "weights in shortcuts where the net has none"
            )
        if wanted[ours].shape != value.shape:
            raise CheckpointError(
                f"{kind} checkpoint: {key} has shape {list(value.shape)}, "
                f"the net wants {list(wanted[ours].shape)}"
            )
        found[ours] = value
    missing = [k for k in wanted if k not in found and not _SKIPPED.match(k)]
    if missing:
        raise CheckpointError(
            f"{kind} checkpoint lacks {len(missing)} of the net's {len(wanted)} values, the first "
            f"{missing[0]}: check the net's depth in the configuration"
        )
    net.load_state_dict(found, strict=False)


def convert_policy(state: Mapping[str, Tensor], policy: Policy) -> None:
    """Load the authors' policy (``agent`` in their files) into ``policy``."""
    renamed = {
        k.removeprefix("features.").replace("logit.", "fc."): v
        for k, v in state.items()
        if not _SKIPPED.match(k)
    }
    convert(renamed, policy.net, "t7")
