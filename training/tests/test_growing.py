"""Deeper nets out of shallower ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import shake

from blockdrop_train import base, checkpoint, loop
from blockdrop_train.cli import main
from blockdrop_train.config import Config
from blockdrop_train.errors import CheckpointError
from blockdrop_train.growing import grow, places
from blockdrop_train.loop import Job
from blockdrop_train.nets import cifar_resnet

WIDTHS = (4, 6, 8)


@pytest.mark.parametrize(("few", "many"), [(5, 18), (1, 3), (2, 3), (3, 3)])
def test_places_are_distinct_and_begin_with_the_first(few: int, many: int) -> None:
    found = places(few, many)
    assert found[0] == 0
    assert sorted(set(found)) == found
    assert len(found) == few and found[-1] < many


@pytest.mark.parametrize("new", ["copy", "random"])
@pytest.mark.parametrize(("few", "many"), [(8, 14), (14, 32), (14, 14)])
def test_a_grown_net_computes_the_same_bit_for_bit(few: int, many: int, new: str) -> None:
    source, target = cifar_resnet(few, 5, WIDTHS), cifar_resnet(many, 5, WIDTHS)
    shake(source)
    taken = grow(source, target, new)
    images = torch.randn(6, 3, 32, 32)
    with torch.no_grad():
        expected = source.eval()(images)
        assert torch.equal(target.eval()(images), expected)
        # Whatever becomes of the new blocks, the old ones' masks decide.
        masks = torch.rand(6, source.depth) < 0.5
        wide = torch.rand(6, target.depth) < 0.5
        wide[:, taken] = masks
        assert torch.equal(target(images, wide), source(images, masks))


@pytest.mark.parametrize("new", ["copy", "random"])
def test_new_blocks_learn(new: str) -> None:
    source, target = cifar_resnet(14, 5, WIDTHS), cifar_resnet(20, 5, WIDTHS)
    shake(source)
    taken = grow(source, target, new)
    fresh = [k for k in range(target.depth) if k not in taken]
    target.train()(torch.randn(8, 3, 32, 32)).square().sum().backward()
    for index in fresh:
        norm = target.block(index).branch.layers()[-1][1]
        assert norm.weight.grad is not None and norm.weight.grad.abs().max() > 0


@pytest.mark.parametrize(("new", "distinct"), [("copy", 2), ("random", 9)])
def test_random_filters_are_all_different(new: str, distinct: int) -> None:
    source, target = cifar_resnet(14, 5, WIDTHS), cifar_resnet(56, 5, WIDTHS)
    drawn = [target.block(k).branch.conv1.weight.clone() for k in range(target.depth)]
    taken = grow(source, target, new)
    for start in target.segment_starts():
        filters = [target.block(k).branch.conv1.weight for k in range(start, start + 9)]
        assert len({tuple(f.flatten().tolist()) for f in filters}) == distinct
    for index in set(range(target.depth)) - set(taken):
        kept = torch.equal(target.block(index).branch.conv1.weight, drawn[index])
        assert kept == (new == "random")


def test_what_cannot_grow_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"segments \[3, 3, 3\] cannot grow to \[2, 2, 2\]"):
        grow(cifar_resnet(20, 5, WIDTHS), cifar_resnet(14, 5, WIDTHS))
    with pytest.raises(CheckpointError, match="the shallower net does not fit"):
        grow(cifar_resnet(8, 5, WIDTHS), cifar_resnet(14, 7, WIDTHS))


def test_base_training_goes_on_from_a_grown_net(
    tiny: Config, cifar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = """
name = "tiny"
[net]
depth = DEPTH
widths = [4, 6, 8]
[policy]
widths = [4, 4, 4]
pool = 4
[grow]
new = "random"
[base]
epochs = 1
batch = 90
rate = 1e-6
"""

    def common(depth: int) -> list[str]:
        settings = tmp_path / f"{depth}.toml"
        settings.write_text(text.replace("DEPTH", str(depth)))
        return [
            *("--config", str(settings), "--data", str(cifar)),
            *("--run", str(tmp_path / f"run{depth}"), "--device", "cpu"),
        ]

    bundle = tmp_path / "models" / "tiny" / "1"
    assert main(["base", *common(8)]) == 0
    assert main(["export", *common(8), "--phase", "base", "--output", str(bundle)]) == 0
    capsys.readouterr()
    assert main(["grow", *common(20), "--bundle", str(bundle)]) == 0
    grown = checkpoint.load(tmp_path / "run20" / "grown.pt")
    assert grown["imported"]["name"] == "tiny/1"
    assert grown["imported"]["grown"] == {"places": [0, 3, 6], "of": 9, "new": "random"}
    assert grown["imported"]["provenance"]["phase"] == "base"
    assert main(["grow", *common(20), "--bundle", str(bundle)]) == 1
    assert "grown.pt exists" in capsys.readouterr().err
    assert main(["base", *common(20)]) == 0
    saved = checkpoint.load(tmp_path / "run20" / "base.pt")
    assert saved["kind"] == "base" and saved["step"] == 3
    for key, value in saved["nets"]["net"].items():
        if key.endswith("conv1.weight"):
            torch.testing.assert_close(value, grown["nets"]["net"][key], atol=1e-4, rtol=0)
    settings = dataclasses.replace(tiny, base=dataclasses.replace(tiny.base, epochs=1))
    job = Job(settings, tmp_path / "run20", cifar, bfloat16=False)
    found = loop.imported(job)
    assert found is not None and found["name"] == "tiny/1"
    wrong = dataclasses.replace(job, folder=tmp_path / "wrong")
    (tmp_path / "wrong").mkdir()
    checkpoint.save(wrong.checkpoint("grown"), grown)
    with pytest.raises(CheckpointError, match="does not fit"):
        base.train(wrong)
