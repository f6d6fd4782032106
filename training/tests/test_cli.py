"""The command line, from base training to a bundle, and its errors."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import blockdrop_train
from blockdrop_train import checkpoint, config
from blockdrop_train.cli import main
from blockdrop_train.errors import CheckpointError, ConfigError, ExportError
from blockdrop_train.export import Bundle, replaceable
from blockdrop_train.pictures import keep_rates

TINY = """
name = "tiny"
[net]
depth = 8
widths = [4, 6, 8]
[policy]
widths = [4, 4, 4]
pool = 4
[base]
epochs = 1
batch = 90
[curriculum]
method = "gates"
epochs = 1
batch = 90
flops = 9e5
[finetune]
method = "paths"
epochs = 1
batch = 90
taught = 0.5
"""


def test_from_base_to_bundle(
    cifar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "tiny.toml"
    settings.write_text(TINY)
    common = ["--config", str(settings), "--data", str(cifar), "--run", str(tmp_path / "run")]
    for command in ("base", "curriculum", "finetune"):
        if command == "finetune":
            assert main(["teach", *common, str(tmp_path / "run" / "base.pt")]) == 0
        assert main([command, *common, "--device", "cpu"]) == 0
    capsys.readouterr()
    folder = tmp_path / "results"
    assert main(["finetune", *common, "--path", "distribute_k:2", "--epochs", "2"]) == 0
    capsys.readouterr()
    (tmp_path / "run" / "finetune-old.pt").write_bytes(b"no heuristic's")
    budgets = ["--flops", "5e5", "9e5", "1.2e6"]
    assert main(["evaluate", *common, "--split", "test", "--results", str(folder), *budgets]) == 0
    figures = json.loads(capsys.readouterr().out)
    shifted = [row for row in figures["rows"] if "shift" in row]
    curve = [row for row in shifted if row["method"] == "policy"]
    alike = [row for row in shifted if row["method"] == "most_kept"]
    assert [row["shift"] for row in alike] == [row["shift"] for row in curve]
    for one, each in zip(alike, curve, strict=True):
        assert one["distinct_masks"] == 1 and one["blocks_std"] == 0
        assert each["blocks_mean"] <= one["blocks_mean"] < each["blocks_mean"] + 1
    assert {row["phase"] for row in curve} == {"finetune"}
    assert len({row["flops_mean"] for row in curve}) == 3
    assert sorted(curve, key=lambda row: row["shift"]) == curve
    found = [(row["method"], row["phase"]) for row in figures["rows"]]
    assert found[0] == ("full", "base")
    assert {("policy", "finetune"), ("random_k", "base"), ("distribute_k", "finetune")} <= {*found}
    assert {(r["phase"], r.get("epochs")) for r in figures["rows"]} == {
        *(("base", 1), ("curriculum", 1), ("finetune", 1), ("finetune", 2), ("base", None)),
        ("finetune", None),
    }
    assert all(sum(row["images_by_blocks"]) == 40 for row in figures["rows"])
    output = tmp_path / "RESULTS.md"
    assert main(["table", "--results", str(folder), "--output", str(output)]) == 0
    assert "| BlockDrop | finetune, 1 epochs | " in output.read_text()
    assert output.read_text().count("| BlockDrop | finetune at ") == 3
    assert figures["provenance"]["command"].startswith("blockdrop-train evaluate")
    assert (folder / "tiny.test.flops.png").stat().st_size > 0
    # A folder with something else in it, and a phase that is not finished, are refused.
    (folder / "notes.txt").write_text("precious")
    assert main(["export", *common, "--output", str(folder)]) == 1
    assert "no bundle.json" in capsys.readouterr().err
    assert (folder / "notes.txt").read_text() == "precious"
    target = tmp_path / "models" / "tiny" / "1"
    saved = checkpoint.load(tmp_path / "run" / "finetune.pt")
    checkpoint.save(tmp_path / "run" / "finetune.pt", saved | {"total": saved["step"] + 1})
    assert main(["export", *common, "--output", str(target)]) == 1
    assert "expected a finished phase" in capsys.readouterr().err
    checkpoint.save(tmp_path / "run" / "finetune.pt", saved)
    assert main(["export", *common, "--output", str(target), "--flops", "1e4"]) == 1
    assert "flops 1e+04 cannot be met" in capsys.readouterr().err
    fast = tmp_path / "fast"
    assert main(["export", *common, "--output", str(fast), "--flops", "5e5"]) == 0
    manifest = Bundle(fast).manifest
    assert manifest["measured"]["validation"]["policy"]["flops_mean"] <= 5e5
    assert manifest["provenance"]["shift"] < 0
    assert manifest["provenance"]["teachers"]["teachers"] == ["run/base.pt"]
    assert main(["export", *common, "--output", str(target), "--phase", "curriculum"]) == 0
    manifest = Bundle(target).manifest
    assert manifest["provenance"]["phase"] == "curriculum"
    assert manifest["provenance"]["teachers"] is None
    assert manifest["provenance"]["config"]["net"]["depth"] == 8
    assert manifest["measured"]["test"]["images"] == 40
    distinct = manifest["measured"]["validation"]["policy"]["distinct_masks"]
    paths = json.loads((target / "paths.json").read_text())["paths"]
    assert len(paths) == distinct >= 1
    assert sum(path["share"] for path in paths) == pytest.approx(1, abs=1e-4)

    drawn = tmp_path / "pictures"
    assert main(["pictures", str(target), "--data", str(cifar), "--output", str(drawn)]) == 0
    assert all((drawn / f"{n}.png").stat().st_size > 0 for n in ("masks", "easy-and-hard"))
    again = [*common[:-1], str(tmp_path / "again")]
    assert main(["import", *again, "--checkpoint", str(target)]) == 0
    assert main(["export", *again, "--output", str(tmp_path / "2")]) == 0
    imported = Bundle(tmp_path / "2").manifest
    assert imported["provenance"]["imported"]["provenance"] == manifest["provenance"]
    assert imported["measured"]["test"]["policy"]["loss"] == pytest.approx(
        manifest["measured"]["test"]["policy"]["loss"], abs=1e-3
    )
    assert main(["finetune", *again, "--device", "cpu"]) == 1
    assert "make it first (blockdrop-train teach)" in capsys.readouterr().err
    assert main(["teach", *again, str(target)]) == 0
    assert main(["finetune", *again, "--device", "cpu"]) == 0
    capsys.readouterr()
    assert main(["evaluate", *again]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["imported"], figures["own_policy"]) == ("tiny/1", False)
    anew = [*common[:-1], str(tmp_path / "anew")]
    assert main(["import", *anew, "--checkpoint", str(target), "--net-only"]) == 0
    assert [path.name for path in (tmp_path / "anew").iterdir()] == ["base.pt"]
    assert main(["curriculum", *anew, "--device", "cpu"]) == 0
    capsys.readouterr()
    assert main(["evaluate", *anew]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["imported"], figures["own_policy"]) == ("tiny/1", True)
    origin = checkpoint.load(tmp_path / "anew" / "base.pt")["imported"]
    manifest_bytes = (target / "bundle.json").read_bytes()
    assert origin["sha256"] == hashlib.sha256(manifest_bytes).hexdigest()
    other = tmp_path / "folder" / "ant"
    other.mkdir(parents=True)
    Image.new("RGB", (40, 36)).save(other / "1.png")
    assert main(["pictures", str(target), "--images", str(other.parent)]) == 1
    assert "are not the bundle's" in capsys.readouterr().err


def test_untrained_bundle_has_the_masks_that_were_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "tiny.toml"
    settings.write_text(TINY.replace("depth = 8", "depth = 26"))
    target = tmp_path / "1"
    arguments = ["untrained", "--config", str(settings), "--output", str(target)]
    assert main([*arguments, "--masks", "9", "--keep", "0.4"]) == 0
    paths = json.loads((target / "paths.json").read_text())["paths"]
    masks = [path["mask"] for path in paths]
    shares = [path["share"] for path in paths]
    assert len(set(masks)) == 9 and {len(mask) for mask in masks} == {12}
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1, abs=1e-4)
    kept = sum(mask.count("1") * share for mask, share in zip(masks, shares, strict=True))
    assert 3.5 < kept < 6.5
    bundle = Bundle(target)
    inputs = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    assert ["".join("01"[int(k)] for k in mask) for mask in bundle.masks(inputs)] == masks[:1] * 2
    assert np.isfinite(bundle.logits(inputs, bundle.masks(inputs))).all()
    assert main([*arguments, "--masks", "65"]) == 1
    assert "expected 1 to 64 masks" in capsys.readouterr().err


def test_killed_and_resumed_equals_uninterrupted(cifar: Path, tmp_path: Path) -> None:
    settings = tmp_path / "tiny.toml"
    settings.write_text(TINY.replace("epochs = 1\nbatch = 90", "epochs = 16\nbatch = 30", 1))

    def arguments(run: str) -> list[str]:
        return [
            *("base", "--config", str(settings), "--data", str(cifar)),
            *("--run", str(tmp_path / run), "--save-every", "4", "--precision", "float32"),
        ]

    saved = tmp_path / "killed" / "base.pt"
    environment = os.environ | {"PYTHONPATH": str(Path(blockdrop_train.__file__).parents[1])}
    command = [sys.executable, "-m", "blockdrop_train.cli", *arguments("killed")]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not saved.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
    assert checkpoint.load(saved)["step"] < 144
    assert main(arguments("killed")) == 0
    assert main(arguments("whole")) == 0
    whole, killed = (checkpoint.load(tmp_path / name / "base.pt") for name in ("whole", "killed"))
    assert whole["step"] == killed["step"] == 144
    for name, value in whole["nets"]["net"].items():
        assert torch.equal(value, killed["nets"]["net"][name]), name


def test_workers_end_with_their_parent(cifar: Path, tmp_path: Path) -> None:
    settings = tmp_path / "tiny.toml"
    settings.write_text(TINY.replace("epochs = 1", "epochs = 10000", 1))
    run = tmp_path / "run"
    environment = os.environ | {"PYTHONPATH": str(Path(blockdrop_train.__file__).parents[1])}
    command = [
        # A shell starts what runs in the background with interrupts ignored.
        *("/bin/sh", "-c", 'trap "" INT; exec "$@"', "sh"),
        *(sys.executable, "-m", "blockdrop_train.cli", "base", "--workers", "2"),
        *("--config", str(settings), "--data", str(cifar), "--run", str(run)),
    ]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not (run / "base.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
        # Every worker holds the pipe's other end until it is gone.
        process.communicate(timeout=30)
    assert (run / "base.pt").exists()


def test_keep_rates_are_by_class() -> None:
    masks = torch.tensor([[1, 0], [1, 1], [0, 0]]).bool()
    rates = keep_rates(masks, torch.tensor([0, 0, 1]), 2)
    assert rates.tolist() == [[1.0, 0.5], [0.0, 0.0]]


def test_errors_name_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["base", "--config", str(tmp_path / "none.toml")]) == 1
    assert "no configuration file" in capsys.readouterr().err
    settings = tmp_path / "tiny.toml"
    settings.write_text(TINY)
    data = ["--config", str(settings), "--data", str(tmp_path), "--run", str(tmp_path / "r")]
    assert main(["base", *data]) == 1
    assert "unpack the CIFAR-10" in capsys.readouterr().err
    assert main(["evaluate", *data]) == 1
    assert "unpack the CIFAR-10" in capsys.readouterr().err
    assert main(["export", *data, "--output", str(tmp_path / "1")]) == 1
    assert "has no finetune or curriculum checkpoint" in capsys.readouterr().err


def test_workers_report_errors_as_one_process_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "tiny.toml"
    settings.write_text(TINY)
    data = ["--config", str(settings), "--data", str(tmp_path), "--run", str(tmp_path / "r")]
    assert main(["base", *data, "--device", "cpu", "--workers", "2"]) == 1
    shown = capsys.readouterr().err
    assert "unpack the CIFAR-10" in shown and "Traceback" not in shown


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--workers", "0"], "--workers: '0': expected a whole number from 1 on"),
        (["--save-every", "-3"], "--save-every: '-3': expected a whole number from 1 on"),
        (["--epochs", "x"], "--epochs: 'x': expected a whole number from 1 on"),
    ],
)
def test_wrong_options_are_refused(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["finetune", "--config", str(tmp_path), *more])
    assert message in capsys.readouterr().err


def test_unreadable_files_and_unknown_devices_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "tiny.toml"
    settings.write_text(TINY)
    assert main(["base", "--config", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err
    assert main(["base", "--config", str(settings), "--device", "gpu"]) == 1
    assert "--device gpu: expected auto, cpu, cuda or cuda:N" in capsys.readouterr().err
    for content, message in (("{}", "KeyError: 'policy'"), ("{", "no JSON"), ("[]", "TypeError")):
        (tmp_path / "bundle.json").write_text(content)
        assert main(["pictures", str(tmp_path)]) == 1
        shown = capsys.readouterr().err
        assert str(tmp_path / "bundle.json") in shown and message in shown
    results = tmp_path / "results"
    results.mkdir()
    (results / "x.test.json").write_text("{}")
    table = ["table", "--results", str(results), "--output", str(tmp_path / "R.md")]
    assert main(table) == 1
    assert "x.test.json: found no result file (KeyError" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "found"), [("/xdg", "/xdg"), ("", "/me/.cache")])
def test_the_cache_is_where_xdg_says(
    given: str, found: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", "/me")
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main(["base", "--help"])
    shown = capsys.readouterr().out
    assert f"[{found}/blockdrop/data]" in shown
    assert f"[{found}/blockdrop/runs/NAME]" in shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name = 'x'\n[base]\nepoch = 3",
            r"config.base: unknown key epoch; expected one of epochs",
        ),
        ("name = 'x'\n[base]\nepochs = '3'", r"config.base.epochs: expected int, found '3'"),
        ("name = 'x'\n[curriculum]\nmethod = 'magic'", r"'magic', expected reinforce or gates"),
        ("name = 'x'\n[grow]\nnew = 'zero'", r"grow.new: 'zero', expected copy or random"),
        ("name = 'x'\n[data]\nflip = 'never'", r"flip: 'never', expected random or alternate"),
        ("name = 'x'\n[finetune]\npoints = [1e8]", r"points: expected none but where method is"),
        ("name = 'x'\n[finetune]\ntaught = 0.5", r"finetune.taught: expected 0 but where method"),
        ("name = 'x'\n[finetune]\naverage = 0.5", r"finetune.average: expected 0 but where"),
        (
            "name = 'x'\n[finetune]\nmethod = 'paths'\naverage = 0.5",
            r"finetune.settle: found 0, expected batches to settle a mean by",
        ),
        ("name = 'x'\n[finetune]\nlast = 1.5", r"finetune.last: found 1.5, expected a share"),
        ("name = 'x'\n[base]\nbatch = -5", r"config.base.batch: found -5, expected .* from 1"),
        ("name = 'x'\n[finetune]\nepochs = 0", r"finetune.epochs: found 0, expected .* from 1"),
        ("name = 'x'\n[finetune]\nrate = nan", r"finetune.rate: found nan, expected .* from 0"),
        ("name = 'x'\n[policy]\npool = 0", r"policy.pool: found 0, expected .* from 1"),
        ("name = 'x'\n[policy]\npool = 64", r"pool: found 64, which leaves 0 of 32 .* least 4"),
        ("name = 'x'\n[data]\nmean = [0.5, 0.5]", r"data.mean: .* expected three numbers"),
        ("name = 'x'\n[data]\nstd = [0.2, 0, 0.2]", r"data.std: found 0.0, expected .* above 0"),
        ("name = 'x'\n[base.masks]\nrows = 5", r"base.masks.rows: found 5.0, expected a share"),
        ("name = 'x'\n[base.masks]\nstart = nan", r"masks.start: found nan, expected a share"),
        ("name = 'x'\n[base]\nwarmup = 2", r"base.warmup: found 2.0, expected .* below 1"),
        ("name = 'x'\n[curriculum]\nkeep_bias = nan", r"keep_bias: found nan, expected a finite"),
        ("name = 'x'\n[curriculum]\nepochs_per_block = 0", r"per_block: found 0.0, .* above 0"),
        ("name = 'x'\n[finetune]\ntemperature = 0", r"temperature: found 0.0, .* above 0"),
        ("name = 'x'\n[net]\nwidths = [4, 0]", r"net.widths: found 0, expected a number from 1"),
        (
            "name = 'x'\n[curriculum]\nmethod = 'gates'\nepochs = 2\nwarmup_epochs = 2",
            r"warmup_epochs: found 2, expected fewer than the 2 of curriculum.epochs",
        ),
        ("name = 'x'\n[net]\nwidths = []", r"net.widths: found \[\], expected numbers from 1"),
        ("name = 'x'\nseed = -1", r"seed: found -1, expected a number from 0"),
        ("seed = 3", r"name"),
        ("name = ", r"Invalid value"),
    ],
)
def test_wrong_configurations_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        config.read(path)


def test_every_published_configuration_reads() -> None:
    paths = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))
    assert paths
    for path in paths:
        settings = config.read(path)
        assert settings.name == path.stem
        assert settings.build_net().depth > 0


def test_batches_larger_than_the_data_are_refused(
    cifar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "tiny.toml"
    settings.write_text(TINY.replace("batch = 90", "batch = 100000", 1))
    run = tmp_path / "run"
    common = ["--config", str(settings), "--data", str(cifar), "--run", str(run)]
    assert main(["base", *common, "--device", "cpu"]) == 1
    assert "base.batch: found 100000, expected at most the" in capsys.readouterr().err
    assert not (run / "base.pt").exists()


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "base.pt"
    path.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(CheckpointError, match=r"base\.pt is damaged"):
        checkpoint.load(path)


def test_export_replaces_only_bundles(tmp_path: Path) -> None:
    replaceable(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    replaceable(tmp_path / "empty")
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(ExportError, match="found no folder"):
        replaceable(file)
    with pytest.raises(ExportError, match=r"no bundle\.json"):
        replaceable(tmp_path)
    (tmp_path / "bundle.json").write_text("{}")
    replaceable(tmp_path)
