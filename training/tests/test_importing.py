"""Foreign checkpoints: their nets' outputs must come out of ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import shake
from torch import Tensor

from blockdrop_train.data import Normalise
from blockdrop_train.errors import CheckpointError
from blockdrop_train.export import About, export
from blockdrop_train.importing import (
    convert,
    convert_policy,
    convert_resnet18,
    read,
    read_bundle,
    unfold,
)
from blockdrop_train.nets import (
    Policy,
    ResNet,
    cifar_policy,
    cifar_resnet,
    imagenet_policy,
    imagenet_resnet,
)


def foreign(net: ResNet, layout: str) -> dict[str, Tensor]:
    """Our weights under the names that a layout gives them."""
    state: dict[str, Tensor] = {}
    starts = net.segment_starts()
    for key, value in net.state_dict().items():
        part, _, rest = key.partition(".")
        if part == "stem":
            key = rest.replace("conv.", "conv1.").replace("norm.", "bn1.")
        elif part == "head":
            key = f"{'linear' if layout == 'cifar' else 'fc'}.{rest}"
        else:
            index, _, rest = rest.partition(".")
            segment = max(s for s, start in enumerate(starts) if start <= int(index))
            home = f"{int(index) - starts[segment]}"
            home = f"blocks.{segment}.{home}" if layout == "t7" else f"layer{segment + 1}.{home}"
            short = f"ds.{segment}" if layout == "t7" else f"{home}.downsample"
            key = (
                rest.replace("branch.", f"{home}.")
                .replace(".norm", ".bn")
                .replace("shortcut.conv", f"{short}.0")
                .replace("shortcut.bn", f"{short}.1")
            )
        state[key] = value
    return state


@pytest.mark.parametrize("layout", ["cifar", "t7", "torchvision"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_foreign_nets_keep_their_outputs(layout: str, wrapped: bool, tmp_path: Path) -> None:
    def make() -> ResNet:
        if layout == "torchvision":
            return imagenet_resnet(50, 4, 32)
        return cifar_resnet(14, 4)

    source, target = make(), make()
    shake(source)
    state = foreign(source, layout)
    if layout == "torchvision":
        assert "layer1.0.downsample.1.running_var" in state
    content = {"state_dict": {f"module.{k}": v for k, v in state.items()}} if wrapped else state
    torch.save(content, tmp_path / "net.pth")
    found, agent = read(tmp_path / "net.pth")
    assert agent is None
    convert(found, target)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(target.eval()(images), source.eval()(images))


def test_the_authors_file_holds_a_policy_too(tmp_path: Path) -> None:
    source, target = cifar_policy(6), cifar_policy(6)
    shake(source)
    source.net.head.weight.data.normal_()
    agent = {
        k.replace("fc.", "logit.") if k.startswith("fc.") else f"features.{k}": v
        for k, v in foreign(source.net, "t7").items()
    }
    agent |= {"vnet.weight": torch.zeros(1, 64), "vnet.bias": torch.zeros(1)}
    net = cifar_resnet(14, 4)
    torch.save({"resnet": foreign(net, "t7"), "agent": agent}, tmp_path / "a.t7")
    state, found = read(tmp_path / "a.t7")
    convert(state, net)
    assert found is not None
    convert_policy(found, target)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(target.eval()(images), source.eval()(images))


def resnet18() -> dict[str, Tensor]:
    """torchvision's keys and shapes, random values."""
    policy = imagenet_policy(1000, 2, 64)
    shake(policy)
    state = foreign(policy.net, "torchvision")
    second = {
        k.replace(".0.", ".1."): v[:, :1].expand(-1, len(v), -1, -1) if v.ndim == 4 else v
        for k, v in state.items()
        if k.startswith("layer") and "downsample" not in k
    }
    return state | second


def test_an_imagenet_policy_starts_from_resnet18(tmp_path: Path) -> None:
    state = resnet18()
    assert len([k for k in state if k.endswith("conv1.weight")]) == 9
    policy = imagenet_policy(16, 2, 64)
    convert_resnet18(state, policy)
    assert torch.equal(policy.net.block(3).branch.conv2.weight, state["layer4.0.conv2.weight"])
    assert (policy(torch.randn(2, 3, 64, 64)) == 0).all()
    with pytest.raises(CheckpointError, match="for ImageNet nets only"):
        convert_resnet18(state, cifar_policy(6))
    with pytest.raises(CheckpointError, match=r"layer1.0.conv1.weight has shape"):
        convert_resnet18(foreign(imagenet_resnet(50, 4, 32), "torchvision"), policy)


@pytest.mark.parametrize("family", ["cifar", "imagenet"])
def test_a_bundle_unfolds_into_live_batch_norms(family: str, tmp_path: Path) -> None:
    def make() -> tuple[ResNet, Policy]:
        if family == "imagenet":
            return imagenet_resnet(50, 3, 32), imagenet_policy(16, 2, 32)
        return cifar_resnet(14, 3, (4, 6, 20), 16), cifar_policy(6, (4, 4, 4), 2, 16)

    net, policy = make()
    for part in (net, policy):
        shake(part)
    policy.net.head.weight.data.normal_()
    inputs = torch.randn(64, *net.input_size)
    about = About("made up", {}, ("a", "b", "c"), 16, {}, {})
    export(tmp_path / "1", net, policy, Normalise(), about, inputs[:2], {})
    state, decider = read_bundle(tmp_path / "1")
    again, deciding = make()
    unfold(state, again, lambda: again(inputs))
    unfold(decider, deciding.net, lambda: deciding(inputs))
    masks = torch.rand(64, net.depth) < 0.5
    expected = net.eval()(inputs, masks)
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(again(inputs, masks) / scale, expected / scale, atol=1e-4, rtol=0)
    torch.testing.assert_close(deciding(inputs), policy.eval()(inputs), atol=1e-3, rtol=1e-3)
    # Training starts where the bundle was: the batch's own statistics are those that it got.
    trained = again.train()(inputs)
    torch.testing.assert_close(trained / scale, net(inputs) / scale, atol=2e-2, rtol=0)
    other = cifar_resnet(14, 5, (4, 6, 20), 16)
    with pytest.raises(CheckpointError, match=r"the bundle's net .*(head.weight|which is not in)"):
        unfold(state, other, lambda: other(inputs))


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    state = foreign(cifar_resnet(14, 4), "cifar")
    with pytest.raises(CheckpointError, match=r"lacks .* check the net's depth"):
        convert(state, cifar_resnet(20, 4))
    with pytest.raises(CheckpointError, match=r"no place in the net for layer1.1"):
        convert(state, cifar_resnet(8, 4))
    with pytest.raises(CheckpointError, match=r"linear.weight has shape \[4, 64\], .* \[7, 64\]"):
        convert(state, cifar_resnet(14, 7))
    option_b = state | {"layer2.0.shortcut.0.weight": torch.zeros(32, 16, 1, 1)}
    with pytest.raises(CheckpointError, match=r"layer2.0.shortcut.0.weight.*weights in shortcuts"):
        convert(option_b, cifar_resnet(14, 4))
    with pytest.raises(CheckpointError, match="unknown key layout"):
        convert({"a.weight": torch.zeros(1)}, cifar_resnet(14, 4))
    (tmp_path / "x.pth").write_bytes(b"hello")
    with pytest.raises(CheckpointError, match="not a PyTorch file"):
        read(tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        read(tmp_path / "none.pth")
