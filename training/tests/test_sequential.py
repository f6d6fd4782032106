"""BlockDrop-seq: decisions on the way."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import shake
from torch.nn import functional as F

from blockdrop_train import base, checkpoint, sequential
from blockdrop_train.cli import main
from blockdrop_train.config import Config
from blockdrop_train.errors import CheckpointError
from blockdrop_train.flops import block_flops, full_flops
from blockdrop_train.gates import Budget
from blockdrop_train.loop import Job
from blockdrop_train.nets import cifar_resnet
from blockdrop_train.sequential import Sequential
from blockdrop_train.timing import Run, measure
from blockdrop_train.workers import World


def test_each_block_is_decided_by_what_is_in_front_of_it() -> None:
    net = cifar_resnet(14, 5, (4, 6, 8)).eval()
    shake(net)
    decisions = Sequential(net)
    for decider in decisions.linear_layers():
        decider.weight.data.normal_()
        decider.bias.data.normal_(0, 0.3)
    images = torch.randn(7, 3, 32, 32)
    found = decisions.masks(net, images)
    with torch.no_grad():
        for image, mask in zip(images, found, strict=True):
            x = net.stem(image[None])
            for index, decider in enumerate(decisions.linear_layers()):
                keep = bool(decider(x.mean((2, 3))) >= 0)
                assert keep == bool(mask[index])
                short = net.block(index).shortcut(x)
                x = F.relu(short + net.block(index).branch(x)) if keep else short
    assert 0 < found.float().mean() < 1
    assert decisions.flops() == 2 * (4 + 4 + 4 + 6 + 6 + 8)


def test_the_price_follows_the_wanted_average() -> None:
    net = cifar_resnet(8, 2, (4, 6, 8))
    whole = full_flops(net)
    budget = Budget.of(net, whole - sum(block_flops(net)) / 2, 0, 0.1)
    assert budget.wanted == pytest.approx(0.5)
    budget.follow(torch.ones(4, 3), World())
    assert budget.state["cost"] > 0.1
    for _ in range(2):
        budget.follow(-torch.ones(4, 3), World())
    assert budget.state["cost"] < 0.1
    with pytest.raises(ValueError, match="cannot be met"):
        Budget.of(net, 1.0, 0, 0.1)


def test_decisions_resume_exactly_and_leave_the_net_alone(
    tiny: Config, cifar: Path, tmp_path: Path
) -> None:
    for run, stops in (("whole", (None,)), ("parts", (4, 13, None))):
        job = Job(tiny, tmp_path / run, cifar, bfloat16=False)
        with pytest.raises(CheckpointError, match="holds no net"):
            sequential.train(job)
        base.train(job)
        for stop in stops:
            sequential.train(dataclasses.replace(job, stop_after=stop))
    whole, parts = (checkpoint.load(tmp_path / run / "sequential.pt") for run in ("whole", "parts"))
    assert whole["state"] == parts["state"]
    for key, value in whole["nets"]["decisions"].items():
        assert torch.equal(value, parts["nets"]["decisions"][key])
    trained = checkpoint.load(tmp_path / "whole" / "base.pt")["nets"]["net"]
    assert all(torch.equal(whole["nets"]["net"][key], value) for key, value in trained.items())
    assert any(
        (value != 0).any()
        for key, value in whole["nets"]["decisions"].items()
        if key.endswith("weight")
    )


def test_the_three_ways_are_timed_in_turns(
    cifar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "tiny.toml"
    settings.write_text(
        'name = "tiny"\n[net]\ndepth = 8\nwidths = [4, 6, 8]\n[policy]\nwidths = [4, 4, 4]\n'
        "pool = 4\n[base]\nepochs = 1\nbatch = 90\n"
        '[curriculum]\nmethod = "gates"\nepochs = 1\nbatch = 90\nflops = 9e5\n'
    )
    common = ["--config", str(settings), "--data", str(cifar), "--run", str(tmp_path / "run")]
    for command in ("base", "curriculum"):
        assert main([command, *common, "--device", "cpu"]) == 0
    bundle = str(tmp_path / "tiny" / "1")
    assert main(["export", *common, "--output", bundle]) == 0
    assert main(["time", *common, "--bundle", bundle]) == 1
    assert "train it first (blockdrop-train sequential)" in capsys.readouterr().err
    assert main(["sequential", *common, "--device", "cpu"]) == 0
    capsys.readouterr()
    results = tmp_path / "results"
    timed = ["time", *common, "--bundle", bundle, "--images", "12", "--results", str(results)]
    assert main(timed) == 0
    found = json.loads(capsys.readouterr().out)
    assert json.loads((results / "tiny.time.json").read_text()) == found
    assert (found["bundle"], found["images"]) == ("tiny/1", 12)
    figures = found["ways"]
    assert list(figures) == [
        *("full", "single_step", "sequential"),
        *("full_graph", "single_step_graph"),
    ]
    assert all(figure["milliseconds_median"] > 0 for figure in figures.values())
    assert figures["full_graph"]["accuracy"] == figures["full"]["accuracy"]
    assert figures["full"]["blocks_mean"] == 3
    single, graph = figures["single_step"], figures["single_step_graph"]
    assert (single["accuracy"], single["blocks_mean"]) == (graph["accuracy"], graph["blocks_mean"])
    assert single["flops_mean"] <= figures["sequential"]["flops_mean"]
    assert main([*timed[:-3], "2"]) == 0
    capsys.readouterr()
    assert main(["evaluate", *common]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert (rows[-1]["method"], rows[-1]["phase"]) == ("sequential", "decisions")
    output = tmp_path / "RESULTS.md"
    assert main(["table", "--results", str(results), "--output", str(output)]) == 0
    median = figures["sequential"]["milliseconds_median"]
    share = median / figures["full"]["milliseconds_median"]
    line = next(x for x in output.read_text().splitlines() if x.startswith("| BlockDrop-seq |"))
    assert line.split(" | ")[1:4:2] == [f"{median:.2f}", f"{share:.2f}"]
    saved = checkpoint.load(tmp_path / "run" / "sequential.pt")
    saved["nets"]["net"]["head.weight"] += 1
    checkpoint.save(tmp_path / "run" / "sequential.pt", saved)
    assert main(["time", *common, "--bundle", bundle]) == 1
    assert "computes otherwise" in capsys.readouterr().err


def test_every_way_sees_every_image() -> None:
    seen: dict[str, list[float]] = {"a": [], "b": []}

    def way(name: str) -> Run:
        def run(image: np.ndarray) -> tuple[np.ndarray, int]:
            seen[name].append(float(image[0, 0, 0, 0]))
            return np.array([[0.0, 1.0]]), len(name)

        return run

    images = np.arange(20.0).reshape(20, 1, 1, 1)
    figures = measure({"a": way("a"), "b": way("b")}, images)
    assert seen["a"] == seen["b"] == [0, 1, *range(20)]
    assert figures["a"]["classes"] == [1] * 20 and figures["b"]["blocks_mean"] == 1
