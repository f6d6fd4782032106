"""Data sets in their layouts, the split, augmentation and order."""

from __future__ import annotations

import functools
import hashlib
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blockdrop_train import data
from blockdrop_train.errors import DataError


def cifar10(root: Path, split: str) -> data.Images:
    images = data.load("cifar10", root, split)
    assert isinstance(images, data.Images)
    return images


def test_split_is_fixed_and_disjoint(cifar: Path) -> None:
    train, held = (cifar10(cifar, s) for s in ("train", "validation"))
    assert (len(train), len(held)) == (270, 30)
    assert torch.equal(held.pixels, cifar10(cifar, "validation").pixels)
    together = torch.cat([train.pixels, held.pixels]).flatten(1)
    assert len(torch.unique(together, dim=0)) == 300
    assert len(data.load("cifar10", cifar, "test")) == 40


def test_listed_images_are_held_out_in_any_order(
    cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = cifar10(cifar, "validation")
    home = tmp_path / "held"
    home.mkdir()
    digests = [hashlib.sha256(image.numpy().tobytes()).digest()[:8] for image in held.pixels]
    (home / "cifar10.sha256").write_bytes(b"".join(sorted(digests)))
    monkeypatch.setattr(data, "__file__", str(tmp_path / "data.py"))
    other = tmp_path / "other" / "cifar-10-batches-bin"
    shutil.copytree(cifar / "cifar-10-batches-bin", other)
    for number in range(1, 6):
        source = cifar / "cifar-10-batches-bin" / f"data_batch_{number}.bin"
        records = np.fromfile(source, np.uint8).reshape(-1, 3073)
        (other / f"data_batch_{6 - number}.bin").write_bytes(records[::-1].tobytes())
    reordered = cifar10(other.parent, "validation")
    assert torch.equal(reordered.pixels, held.pixels.flip(0))
    assert len(cifar10(other.parent, "train")) == 270


def test_the_list_of_held_images_is_whole() -> None:
    content = (Path(data.__file__).with_name("held") / "cifar10.sha256").read_bytes()
    assert len({content[at : at + 8] for at in range(0, len(content), 8)}) == 5000


def test_python_layout_equals_binary(cifar: Path, tmp_path: Path) -> None:
    home = tmp_path / "py" / "cifar-10-batches-py"
    home.mkdir(parents=True)
    for path in (cifar / "cifar-10-batches-bin").glob("*.bin"):
        raw = np.fromfile(path, dtype=np.uint8).reshape(-1, 3073)
        content = {b"data": raw[:, 1:], b"labels": raw[:, 0].tolist()}
        (home / path.stem).write_bytes(pickle.dumps(content))
    names = [n.encode() for n in data.load("cifar10", cifar, "test").labels]
    (home / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}))
    for split in ("train", "test"):
        a, b = (cifar10(root, split) for root in (cifar, tmp_path / "py"))
        assert torch.equal(a.pixels, b.pixels)
        assert torch.equal(a.targets, b.targets)
        assert a.labels == b.labels


def test_cifar100_reads_the_fine_label(tmp_path: Path) -> None:
    home = tmp_path / "cifar-100-binary"
    home.mkdir()
    record = bytes([3, 42]) + bytes(3072)
    for name in ("train.bin", "test.bin"):
        (home / name).write_bytes(record * 10)
    (home / "fine_label_names.txt").write_text("\n".join(f"c{i}" for i in range(100)))
    images = data.load("cifar100", tmp_path, "test")
    assert images.targets.tolist() == [42] * 10
    assert len(images.labels) == 100


def test_missing_data_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unpack the CIFAR-10 binary or Python archive"):
        data.load("cifar10", tmp_path, "train")
    with pytest.raises(DataError, match="expected one of cifar10, cifar100, folder"):
        data.load("mnist", tmp_path, "train")


def test_truncated_file_is_refused(cifar: Path) -> None:
    path = cifar / "cifar-10-batches-bin" / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataError, match=r"data_batch_3.bin: .* expected a multiple of 3073"):
        data.load("cifar10", cifar, "train")


def test_augmentation_crops_and_flips() -> None:
    pixels = torch.randint(1, 256, (64, 3, 32, 32), dtype=torch.uint8)
    out = data.augment(pixels, data.generator_for(1))
    assert out.shape == pixels.shape
    padded = torch.nn.functional.pad(pixels, (4, 4, 4, 4))
    seen = set()
    for image, wide in zip(out, padded, strict=True):
        matches = [
            (top, left, flip)
            for top in range(9)
            for left in range(9)
            for flip in (False, True)
            if torch.equal(
                image.flip(2) if flip else image, wide[:, top : top + 32, left : left + 32]
            )
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert {flip for _, _, flip in seen} == {False, True}
    assert len(seen) > 32
    assert torch.equal(out, data.augment(pixels, data.generator_for(1)))


def test_alternating_flips_show_an_image_both_ways() -> None:
    rows = torch.tensor([3, 0, 99, 41])
    every = [data.alternating_flips(torch.arange(100), 100, 5, epoch) for epoch in range(3)]
    assert torch.equal(every[0], ~every[1]) and torch.equal(every[0], every[2])
    assert 20 < int(every[0].sum()) < 80
    assert torch.equal(data.alternating_flips(rows, 100, 5, 1), every[1][rows])
    pixels = torch.arange(16, dtype=torch.uint8).view(1, 1, 1, 16).expand(4, 3, 16, 16)
    out = data.augment(pixels, data.generator_for(1), 0, every[0][rows])
    assert [bool(image[0, 0, 0] > image[0, 0, 1]) for image in out] == every[0][rows].tolist()


def test_cutout_blanks_a_square_of_each_image() -> None:
    inputs = torch.ones(400, 3, 12, 12).contiguous(memory_format=torch.channels_last)
    out = data.cut_out(inputs, 4, data.generator_for(1))
    assert torch.equal(out, data.cut_out(inputs, 4, data.generator_for(1)))
    assert out.is_contiguous(memory_format=torch.channels_last)
    blank = out == 0
    assert torch.equal(out == 1, ~blank)
    assert torch.equal(blank[:, 0], blank[:, 1]) and torch.equal(blank[:, 0], blank[:, 2])
    heights, widths = (blank[:, 0].any(axis).sum(1) for axis in (2, 1))
    # A square, whole in the middle and cut at the edges.
    assert torch.equal(blank[:, 0].sum((1, 2)), heights * widths)
    assert {*heights.tolist()} == {*widths.tolist()} == {2, 3, 4}
    assert blank.any(0).all()


def test_loading_ahead_keeps_the_order_and_stops() -> None:
    begun: list[int] = []

    def task(number: int) -> int:
        begun.append(number)
        if number == 7:
            raise DataError("seven")
        return number

    for ahead in (0, 2):
        begun.clear()
        found = data.load_ahead((functools.partial(task, n) for n in range(20)), ahead)
        assert [next(found) for _ in range(7)] == list(range(7))
        with pytest.raises(DataError, match="seven"):
            next(found)
        assert begun == list(range(len(begun))) and len(begun) <= 8 + ahead


def test_workers_share_an_epoch() -> None:
    parts = [torch.cat(data.batches(100, 8, 5, 2, rank, 3)) for rank in range(3)]
    together = torch.cat(parts)
    assert len(together) == 96 == len(torch.unique(together))
    assert not torch.equal(parts[0], torch.cat(data.batches(100, 8, 5, 3, 0, 3)))


def test_normalise() -> None:
    x = data.Normalise((0.5, 0.5, 0.5), (0.25, 0.5, 1.0))(
        torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    )
    torch.testing.assert_close(x[0, :, 0, 0], torch.tensor([2.0, 1.0, 0.5]))


def test_image_folders(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for number, label in enumerate(("ant", "bee")):
            home = tmp_path / split / label
            home.mkdir(parents=True)
            for i in range(10):
                size = (40 + i, 60) if i % 2 else (60, 40 + i)
                Image.new("RGB", size, (200 * number, 50, 10 * i)).save(home / f"{i}.png")
    train, held, test = (
        data.load("folder", tmp_path, s, 24, 32) for s in ("train", "validation", "test")
    )
    assert (len(train), len(held), len(test)) == (18, 2, 20)
    assert train.labels == ("ant", "bee")
    rows = torch.arange(5)
    for pixels in (test.plain(rows), test.augmented(rows, data.generator_for(1))):
        assert pixels.shape == (5, 3, 24, 24)
        assert pixels[:, :, 0, 0].tolist() == [[0, 50, 10 * i] for i in range(5)]
    same = [
        train.augmented(rows, data.generator_for(1), torch.full((5,), f)) for f in (True, False)
    ]
    assert torch.equal(same[0], same[1].flip(3))
    (tmp_path / "val" / "bee" / "3.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"3.png cannot be decoded"):
        data.load("folder", tmp_path, "test", 24, 32).plain(torch.arange(20))
    with pytest.raises(DataError, match=r"is not a folder: expected one folder of images"):
        data.load("folder", tmp_path / "none", "test", 24, 32)
