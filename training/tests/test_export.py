"""Bundles: what they hold, and that a wrong one is not written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import shake

from blockdrop_train import export as exporting
from blockdrop_train.data import Normalise
from blockdrop_train.errors import ExportError
from blockdrop_train.export import About, Bundle, check, export
from blockdrop_train.flops import full_flops, policy_flops
from blockdrop_train.nets import (
    Policy,
    ResNet,
    cifar_policy,
    cifar_resnet,
    imagenet_policy,
    imagenet_resnet,
)

ABOUT = About("made up", {"backbone": "x"}, ("a", "b", "c"), 16, {"seed": 1}, {})
PATHS = {"110111": 0.75, "111111": 0.25}


def nets(family: str) -> tuple[ResNet, Policy]:
    if family == "cifar":
        net, policy = cifar_resnet(14, 3, (4, 6, 20), 16), cifar_policy(6, (4, 4, 4), 2, 16)
    else:
        net, policy = imagenet_resnet(50, 3, 32), imagenet_policy(16, 2, 32)
        for index in range(net.depth):
            net.block(index).branch.layers()[-1][0].weight.data.mul_(0.2)
    shake(net)
    shake(policy, 1)
    policy.net.head.weight.data.normal_(0, 0.5)
    return net, policy


@pytest.mark.parametrize("family", ["cifar", "imagenet"])
def test_bundle_agrees_with_the_nets(family: str, tmp_path: Path) -> None:
    net, policy = nets(family)
    target = tmp_path / "model" / "1"
    inputs = torch.randn(6, *net.input_size)
    export(target, net, policy, Normalise(), ABOUT, inputs, PATHS)
    manifest = json.loads((target / "bundle.json").read_text())
    assert manifest["flops"] == {"policy": policy_flops(policy), "full": full_flops(net)}
    assert [len(s["blocks"]) for s in manifest["segments"]] == list(net.segments)
    blocks = [b for s in manifest["segments"] for b in s["blocks"]]
    changing = [k for k, b in enumerate(blocks) if "shortcut" in b]
    starts = net.segment_starts()
    assert changing == (starts[1:] if family == "cifar" else starts)
    assert (target / "labels.txt").read_text() == "a\nb\nc\n"
    assert json.loads((target / "paths.json").read_text()) == {
        "schema": 1,
        "paths": [{"mask": "110111", "share": 0.75}, {"mask": "111111", "share": 0.25}],
    }
    for path in target.rglob("*.onnx"):
        model = onnx.load(str(path))
        assert model.ir_version == 8
        assert [o.version for o in model.opset_import] == [17]
        names = [n.name for n in model.graph.node] + [w.name for w in model.graph.initializer]
        assert len(names) == len(set(names))
        for value in (*model.graph.input, *model.graph.output):
            dims = value.type.tensor_type.shape.dim
            assert dims[0].dim_param == "N"
            assert all(d.dim_value > 0 for d in dims[1:])
    assert [p.name for p in target.parent.iterdir()] == ["1"]


@pytest.mark.parametrize("family", ["cifar", "imagenet"])
def test_a_path_is_one_graph_of_the_blocks_that_its_mask_keeps(family: str, tmp_path: Path) -> None:
    net, policy = nets(family)
    inputs = torch.randn(3, *net.input_size)
    export(tmp_path / "1", net, policy, Normalise(), ABOUT, inputs, PATHS)
    bundle = Bundle(tmp_path / "1")
    nothing, everything = np.zeros(net.depth, bool), np.ones(net.depth, bool)
    for mask in (nothing, everything, np.arange(net.depth) % 3 == 0):
        found = bundle.run(bundle.path(mask), inputs.numpy())
        wanted = net.eval()(inputs, torch.from_numpy(np.stack([mask] * 3))).detach().numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_frequent_paths_are_ranked_and_limited() -> None:
    masks = torch.tensor([[1, 0, 1]] * 3 + [[1, 1, 0]] + [[0, 1, 1]] + [[1, 1, 1]] * 2).bool()
    shares = exporting.frequent_paths(masks)
    assert list(shares) == ["101", "111", "011", "110"]
    assert list(shares.values()) == pytest.approx([3 / 7, 2 / 7, 1 / 7, 1 / 7])
    every = torch.tensor([[n >> k & 1 for k in range(7)] for n in range(128)]).bool()
    assert len(exporting.frequent_paths(every)) == 64


def test_check_finds_a_wrong_weight(tmp_path: Path) -> None:
    net, policy = nets("cifar")
    inputs = torch.randn(6, *net.input_size)
    export(tmp_path / "1", net, policy, Normalise(), ABOUT, inputs, PATHS)
    bundle = Bundle(tmp_path / "1")
    net.head.weight.data[0, 0] += 0.5
    with pytest.raises(ExportError, match="logits differ"):
        check(bundle, net, policy, inputs)
    policy.net.head.bias.data.neg_().add_(3)
    with pytest.raises(ExportError, match="decides otherwise"):
        check(bundle, net, policy, inputs)


def test_failed_export_leaves_the_old_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, policy = nets("cifar")
    inputs = torch.randn(4, *net.input_size)
    export(tmp_path / "1", net, policy, Normalise(), ABOUT, inputs, PATHS)
    before = (tmp_path / "1" / "bundle.json").read_bytes()

    def fail(*_: object) -> None:
        raise ExportError("no")

    monkeypatch.setattr(exporting, "check", fail)
    with pytest.raises(ExportError):
        export(tmp_path / "1", net, policy, Normalise(), ABOUT, inputs, PATHS)
    assert (tmp_path / "1" / "bundle.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["1"]


def test_changed_file_is_refused(tmp_path: Path) -> None:
    net, policy = nets("cifar")
    export(tmp_path / "1", net, policy, Normalise(), ABOUT, torch.randn(4, *net.input_size), PATHS)
    path = tmp_path / "1" / "blocks" / "002.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ExportError, match=r"blocks/002.onnx: sha256"):
        Bundle(tmp_path / "1")


def test_labels_and_classes_must_match(tmp_path: Path) -> None:
    net, policy = nets("cifar")
    about = dataclasses.replace(ABOUT, labels=("a", "b"))
    with pytest.raises(ExportError, match="2 labels for 3 classes"):
        export(tmp_path / "1", net, policy, Normalise(), about, torch.randn(2, 3, 16, 16), PATHS)
    assert not (tmp_path / "1").exists()


def test_dropped_images_do_not_depend_on_their_batch(tmp_path: Path) -> None:
    net, policy = nets("cifar")
    inputs = torch.randn(5, *net.input_size)
    export(tmp_path / "1", net, policy, Normalise(), ABOUT, inputs, PATHS)
    bundle = Bundle(tmp_path / "1")
    masks = np.random.default_rng(0).random((5, net.depth)) < 0.5
    together = bundle.logits(inputs.numpy(), masks)
    alone = [bundle.logits(inputs[i : i + 1].numpy(), masks[i : i + 1])[0] for i in range(5)]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-5)
