"""Base checkpoints that people have, read into our nets by their key layouts.

- **torchvision** ResNet-50/101/152: ``conv1``, ``bn1``, ``layer1.0.conv1``, ``downsample``, ``fc``.
- **CIFAR ResNets** with option A shortcuts: ``conv1``, ``bn1``, ``layer1.0.conv1``, ``linear`` or
  ``fc``; a ``module.`` prefix and a ``state_dict`` or ``net`` wrapper are taken off.
- **The authors' ``.t7``** files (PyTorch pickles for all their name): ``resnet`` with ``conv1``,
  ``bn1``, ``blocks.S.B.conv1``, ``ds.S.0`` where a shortcut has weights, ``fc``; and ``agent``, the
  policy, with the same under ``features.`` and ``logit``. Its value head ``vnet`` is left out.
- **torchvision's ResNet-18**, for an ImageNet policy to start from.
- **Bundles** that ``export`` wrote: net and policy. Their batch norms are folded, so ``unfold``
  makes live ones that compute the same.

Their nets want their preprocessing: the authors' CIFAR-10 ResNet-32 was trained on pixels with mean
(125.3, 123.0, 113.9) and deviation (63.0, 62.1, 66.7), their other CIFAR nets on plain [0, 1].
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from .errors import CheckpointError
from .export import Bundle
from .nets import ImageNetStem, Policy, ProjectionShortcut, ResNet

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
    if isinstance(content, Mapping) and {"kind", "nets", "step"} <= content.keys():
        raise CheckpointError(
            f"{path}: found a checkpoint of blockdrop-train, expected another's: copy it into the "
            "folder of a run (--run) instead"
        )
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


def convert_resnet18(state: Mapping[str, Tensor], policy: Policy) -> None:
    """Load torchvision's ResNet-18 into an ImageNet policy (section 4.1).

    The blocks of the policy's ResNet-10 are the first of each segment; its last layer stays.
    """
    if layout_of(state) != "torchvision" or not isinstance(policy.net.stem, ImageNetStem):
        raise CheckpointError(
            "a policy starts from torchvision's ResNet-18, for ImageNet nets only"
        )
    kept = {k: v for k, v in state.items() if not re.match(r"layer\d\.[1-9]|fc\.", k)}
    head = policy.net.head
    convert(kept | {"fc.weight": head.weight, "fc.bias": head.bias}, policy.net, "torchvision")


def _constants(content: bytes) -> dict[str, Tensor]:
    graph = onnx.load_from_string(content).graph
    return {
        weight.name: torch.from_numpy(numpy_helper.to_array(weight).copy())
        for weight in graph.initializer
        if not weight.name.endswith(".pads")
    }


def _in_block(index: int, name: str) -> str:
    """Our name of a value of block ``index``'s graph."""
    part = "" if name.startswith("shortcut.") else "branch."
    return f"blocks.{index}.{part}{name}"


def read_bundle(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The values of a bundle's net and policy by our names, batch norms folded.

    Raises:
        ExportError: the folder is no bundle, or a file is not what ``bundle.json`` says.
    """
    bundle = Bundle(folder)
    manifest = bundle.manifest
    net = _constants(bundle.read(manifest["stem"])) | _constants(bundle.read(manifest["head"]))
    entries = [entry for segment in manifest["segments"] for entry in segment["blocks"]]
    for index, entry in enumerate(entries):
        graph = _constants(bundle.read(entry))
        net |= {_in_block(index, name): value for name, value in graph.items()}
    policy = {}
    for name, value in _constants(bundle.read(manifest["policy"])).items():
        block = re.match(r"block(\d+)\.(.*)", name)
        policy[_in_block(int(block[1]), block[2]) if block else name] = value
    return net, policy


def _pairs(net: nn.Module) -> dict[str, tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Every convolution by name, with the batch norm behind it."""
    modules = dict(net.named_modules())
    pairs = {}
    for name, conv in modules.items():
        if isinstance(conv, nn.Conv2d):
            home, _, last = name.rpartition(".")
            norm = modules[f"{home}.{last.replace('conv', 'norm')}"]
            assert isinstance(norm, nn.BatchNorm2d)
            pairs[name] = (conv, norm)
    return pairs


@torch.no_grad()
def unfold(
    state: Mapping[str, Tensor], net: ResNet, forward: Callable[[], object], part: str = "net"
) -> None:
    """Load folded values into ``net``, with live batch norms that compute the same in eval mode.

    A batch norm gets the statistics of its inputs in ``forward``, and the scale and shift that undo
    them. Filters get unit norm, which the batch norm behind them undoes too: the size of a filter
    sets its pace in training.

    Args:
        state: as ``read_bundle`` returns it.
        forward: runs ``net`` on typical normalised inputs.
        part: ``net`` or ``policy``, for errors.

    Raises:
        CheckpointError: naming the value that is missing or of another shape.
    """

    def value(key: str, shape: torch.Size) -> Tensor:
        found = state.get(key)
        if found is None or found.shape != shape:
            what = "lacks" if found is None else f"has shape {list(found.shape)} for"
            raise CheckpointError(
                f"the bundle's {part} {what} {key} {list(shape)}: check [{part}] in the "
                "configuration"
            )
        return found

    pairs = _pairs(net)
    wanted = {f"{name}.{last}" for name in (*pairs, "head") for last in ("weight", "bias")}
    if left := sorted(set(state) - wanted):
        raise CheckpointError(
            f"the bundle's {part} has {left[0]}, which is not in that of the configuration"
        )
    for last, parameter in net.head.named_parameters():
        parameter.copy_(value(f"head.{last}", parameter.shape))
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    hooks = []
    for name, (conv, norm) in pairs.items():
        weight = value(f"{name}.weight", conv.weight.shape)
        size = weight.flatten(1).norm(dim=1)
        size[size < 1e-6] = 1.0
        conv.weight.copy_(weight / size[:, None, None, None])
        norm.weight.copy_(size)
        norm.bias.copy_(value(f"{name}.bias", norm.bias.shape))
        norm.running_mean = torch.zeros_like(norm.bias)
        norm.running_var = torch.full_like(norm.bias, 1 - norm.eps)

        def see(norm: nn.Module, given: tuple[Tensor, ...], _: Tensor) -> None:
            seen[norm] = torch.var_mean(given[0].float(), (0, 2, 3))

        hooks.append(norm.register_forward_hook(see))
    net.eval()
    forward()
    for hook in hooks:
        hook.remove()
    for _, norm in pairs.values():
        variance, mean = seen[norm]
        norm.running_mean, norm.running_var = mean, variance
        norm.bias.add_(norm.weight * mean)
        norm.weight.mul_((variance + norm.eps).sqrt())
