"""Runs: resumed exactly, in step among workers, and a curriculum that learns."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import paper_method, shake, write_cifar
from PIL import Image
from torch import nn

from blockdrop_train import base, checkpoint, curriculum, evaluate, finetune, gates, loop, workers
from blockdrop_train.averaging import Average, settle
from blockdrop_train.baselines import Heuristic
from blockdrop_train.config import Base, Config, Curriculum, Data, Masks
from blockdrop_train.errors import CheckpointError
from blockdrop_train.loop import Job
from blockdrop_train.nets import cifar_resnet
from blockdrop_train.reinforce import bounded, forced, learned_blocks, policy_loss, reward

TRAINERS = {"base": base.train, "curriculum": curriculum.train, "finetune": finetune.train}


def job(config: Config, folder: Path, data: Path, **more: Any) -> Job:
    return Job(config, folder, data, bfloat16=False, **more)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.parametrize("method", ["ours", "paper"])
def test_stopped_and_resumed_equals_uninterrupted(
    method: str, tiny: Config, cifar: Path, tmp_path: Path
) -> None:
    config = tiny if method == "ours" else paper_method(tiny)
    for phase, train in TRAINERS.items():
        train(job(config, tmp_path / "whole", cifar))
        for stop in (4, 13, None):
            train(job(config, tmp_path / "parts", cifar, stop_after=stop))
        whole, parts = (
            checkpoint.load(tmp_path / name / f"{phase}.pt") for name in ("whole", "parts")
        )
        assert whole["step"] == 18
        for key in ("step", "nets", "optimisers", "state"):
            assert same(whole[key], parts[key]), (phase, key)
    if method == "ours":
        norm = "blocks.0.branch.norm1.num_batches_tracked"
        assert whole["state"]["settled"] and whole["nets"]["net"][norm] == 2
        train(job(config, tmp_path / "whole", cifar))
        assert same(checkpoint.load(tmp_path / "whole" / "finetune.pt"), whole)
        points = whole["validation"]["points"]
        assert list(points) == ["600000", "800000", "1e+06"]
        spent = [figures["flops_mean"] for figures in points.values()]
        assert spent == sorted(spent)
        assert all(flops <= float(point) for point, flops in zip(points, spent, strict=True))
    lines = (tmp_path / "whole" / "finetune" / "log.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert last["epoch"] == 2
    assert 0 <= last["policy"]["blocks_mean"] <= 3


def test_image_folders_resume_exactly_too(tiny: Config, tmp_path: Path) -> None:
    for label, colour in (("ant", 40), ("bee", 200)):
        home = tmp_path / "images" / "train" / label
        home.mkdir(parents=True)
        for i in range(20):
            Image.new("RGB", (36 + i, 40), (colour, 5 * i, 0)).save(home / f"{i}.png")
    config = dataclasses.replace(
        tiny,
        data=Data(name="folder", classes=2, short_side=34),
        base=dataclasses.replace(tiny.base, batch=6),
    )
    for run, stops in (("whole", (None,)), ("parts", (4, 9, None))):
        for stop in stops:
            base.train(job(config, tmp_path / run, tmp_path / "images", stop_after=stop))
    whole, parts = (checkpoint.load(tmp_path / name / "base.pt") for name in ("whole", "parts"))
    assert whole["step"] == 12
    assert same(whole["nets"], parts["nets"])


def test_two_workers_take_one_step_together(tiny: Config, cifar: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(tiny, base=dataclasses.replace(tiny.base, epochs=1))
    work = functools.partial(base.train, job(config, tmp_path / "run", cifar))
    workers.launch(2, 1, work)
    saved = checkpoint.load(tmp_path / "run" / "base.pt")
    assert saved["step"] == 9
    assert all(torch.isfinite(v).all() for v in saved["nets"]["net"].values())


def test_a_useless_block_gets_dropped(tmp_path: Path) -> None:
    """REINFORCE finds that block 1 adds nothing, and keeps what the classes need."""
    cifar = write_cifar(tmp_path / "data", per_batch=200)
    config = Config(
        name="toy",
        net=dataclasses.replace(Config("").net, depth=8, widths=(4, 6, 8)),
        policy=dataclasses.replace(Config("").policy, widths=(4, 4, 4), pool=4),
        base=Base(epochs=6, batch=50, rate=0.2, masks=Masks(start=1.0)),
        curriculum=Curriculum(epochs=14, batch=50, rate=5e-3, epochs_per_block=2),
    )
    run = job(config, tmp_path / "run", cifar)
    net, policy = curriculum.nets_of(run)
    # With a branch of zeros, and an input that a relu made, keeping the block changes nothing.
    base.train(run)
    saved = checkpoint.load(run.checkpoint("base"))
    weights = saved["nets"]["net"]
    for part in ("weight", "bias"):
        weights[f"blocks.1.branch.norm2.{part}"].zero_()
    checkpoint.save(run.checkpoint("base"), saved)
    curriculum.train(run)
    loop.load_nets(run.checkpoint("curriculum"), {"net": net, "policy": policy})
    figures = checkpoint.load(run.checkpoint("curriculum"))["validation"]
    assert figures["keep_rates"][1] < 0.1, figures
    assert figures["policy"]["accuracy"] >= figures["full"]["accuracy"] - 0.05, figures


def test_curriculum_starts_from_the_policy_that_was_given(
    tiny: Config, cifar: Path, tmp_path: Path
) -> None:
    base.train(job(tiny, tmp_path, cifar))
    given = job(tiny, tmp_path, cifar, stop_after=1)
    path = given.checkpoint("base")
    policy = tiny.build_policy(3)
    shake(policy)
    saved = checkpoint.load(path)
    saved["nets"]["initial_policy"] = policy.state_dict()
    checkpoint.save(path, saved)
    curriculum.train(dataclasses.replace(given, config=paper_method(tiny)))
    found = checkpoint.load(given.checkpoint("curriculum"))["nets"]["policy"]
    for key, value in policy.net.blocks.state_dict().items():
        if key.endswith("weight"):
            torch.testing.assert_close(found[f"net.blocks.{key}"], value, atol=2e-3, rtol=0)


def test_curriculum_without_base_says_what_to_do(tiny: Config, cifar: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="train a base net first"):
        curriculum.train(job(tiny, tmp_path / "run", cifar))


def test_unfinished_phases_are_refused(tiny: Config, cifar: Path, tmp_path: Path) -> None:
    run = job(tiny, tmp_path / "run", cifar)
    base.train(dataclasses.replace(run, stop_after=4))
    with pytest.raises(CheckpointError, match=r"base.pt: found step 4 of 18, expected a finished"):
        curriculum.train(run)
    with pytest.raises(CheckpointError, match=r"base.pt: found step 4 of 18"):
        finetune.train(run, heuristic=Heuristic("first_k", 2))
    base.train(run)
    # Stopped at its last step, before its keep logits are shifted.
    curriculum.train(dataclasses.replace(run, stop_after=18))
    with pytest.raises(CheckpointError, match=r"found its last step, but no 'shift'"):
        finetune.train(run)
    curriculum.train(run)
    finetune.train(run)


def test_a_longer_run_is_calibrated_and_settled_again(
    tiny: Config, cifar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for train in TRAINERS.values():
        train(job(tiny, tmp_path / "run", cifar))
    longer = dataclasses.replace(
        tiny,
        curriculum=dataclasses.replace(tiny.curriculum, epochs=3),
        finetune=dataclasses.replace(tiny.finetune, epochs=3),
    )
    capsys.readouterr()
    for phase, train, mark in (
        ("curriculum", curriculum.train, loop.SHIFTED),
        ("finetune", finetune.train, loop.SETTLED),
    ):
        train(job(longer, tmp_path / "run", cifar, stop_after=20))
        assert mark not in checkpoint.load(tmp_path / "run" / f"{phase}.pt")["state"]
        train(job(longer, tmp_path / "run", cifar))
        assert mark in checkpoint.load(tmp_path / "run" / f"{phase}.pt")["state"]
    spent = checkpoint.load(tmp_path / "run" / "curriculum.pt")["validation"]["policy"]
    assert spent["flops_mean"] <= tiny.curriculum.calibrate
    assert "goes on with another configuration" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"found step 27, expected at most the 18 of"):
        finetune.train(job(tiny, tmp_path / "run", cifar))


def test_an_average_is_the_mean_of_the_last_steps_weights() -> None:
    net = cifar_resnet(8, 10, (4, 6, 8))
    average = Average(net, 0.5)
    seen = []
    for progress in (0.1, 0.3, 0.5, 0.7, 0.9):
        shake(net, int(100 * progress))
        seen.append([p.detach().clone() for p in net.parameters()])
        average.update(net, progress)
        last = seen[2:] or seen[-1:]
        for mean, *steps in zip(average.net.parameters(), *last, strict=True):
            torch.testing.assert_close(mean, torch.stack(steps).mean(0))
    assert average.state == {"averaged": 3}


def test_the_average_is_what_finetuning_leaves(tiny: Config, cifar: Path, tmp_path: Path) -> None:
    for train in TRAINERS.values():
        train(job(tiny, tmp_path, cifar, stop_after=17 if train is finetune.train else None))
    before = checkpoint.load(tmp_path / "finetune.pt")
    finetune.train(job(tiny, tmp_path, cifar))
    nets = checkpoint.load(tmp_path / "finetune.pt")["nets"]
    weights = "blocks.0.branch.conv1.weight"
    # The last step's weights are the ninth of nine in the mean.
    kept, last = before["nets"]["net"][weights], nets["weights"][weights]
    torch.testing.assert_close(nets["net"][weights], kept + (last - kept) / 9)
    assert not torch.equal(kept, last)


def test_settled_batch_norms_have_the_mean_statistics_of_the_passes() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3))
    norm = net[0]
    net.spare = nn.Module()  # a block that nothing runs
    net.spare.norm = nn.BatchNorm2d(2)
    net.spare.norm.running_mean.fill_(7)
    net.spare.forward = lambda x: x
    parts = [torch.randn(8, 3, 4, 4) * (1 + i) + i for i in range(3)]
    for _ in range(2):
        settle(net, [functools.partial(net, part) for part in parts])
        expected = torch.stack([part.mean((0, 2, 3)) for part in parts]).mean(0)
        torch.testing.assert_close(norm.running_mean, expected)
    assert norm.momentum == 0.1 and not net.training
    assert (net.spare.norm.running_mean == 7).all()


def test_another_precision_is_told(
    tiny: Config, cifar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base.train(job(tiny, tmp_path / "run", cifar, stop_after=2))
    capsys.readouterr()
    base.train(Job(tiny, tmp_path / "run", cifar, bfloat16=True, stop_after=3))
    assert "goes on with bfloat16 True, began with False" in capsys.readouterr().err


def test_impossible_budget_is_refused(tiny: Config, cifar: Path, tmp_path: Path) -> None:
    base.train(job(tiny, tmp_path / "run", cifar))
    config = dataclasses.replace(tiny, curriculum=dataclasses.replace(tiny.curriculum, flops=1e5))
    with pytest.raises(ValueError, match="cannot be met"):
        curriculum.train(job(config, tmp_path / "run", cifar))


def test_operating_points_are_drawn_as_often_as_named(tiny: Config, cifar: Path) -> None:
    net, policy = curriculum.nets_of(job(tiny, cifar, cifar))
    with torch.no_grad():
        policy.net.head.weight.normal_(0, 5, generator=torch.Generator().manual_seed(3))
    held = tiny.load(cifar, "validation")
    points = finetune.OperatingPoints(net, policy, held, tiny)
    low, middle, _, high = points.shifts.tolist()
    assert low < middle < high
    drawn = points.drawn(1000, 4).squeeze(1)
    assert torch.equal(drawn, points.drawn(1000, 4).squeeze(1))
    assert not torch.equal(drawn, points.drawn(1000, 5).squeeze(1))
    shares = [float((drawn == shift).double().mean()) for shift in (low, middle, high)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.05)
    alone = dataclasses.replace(tiny, finetune=dataclasses.replace(tiny.finetune, points=()))
    none = finetune.OperatingPoints(net, policy, held, alone)
    assert (none.drawn(4, 1) == 0).all() and none.scores(net) == {}


def test_checkpoint_of_another_net_is_refused(tiny: Config, cifar: Path, tmp_path: Path) -> None:
    base.train(job(tiny, tmp_path / "run", cifar))
    config = dataclasses.replace(tiny, net=dataclasses.replace(tiny.net, depth=14))
    with pytest.raises(CheckpointError, match="does not fit"):
        curriculum.train(job(config, tmp_path / "run", cifar))


def test_a_kill_while_saving_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "base.pt"
    checkpoint.save(path, {"step": 1})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, {"step": 2})
    monkeypatch.undo()
    assert checkpoint.load(path)["step"] == 1


def test_fewer_images_lose_blocks_as_base_training_goes_on() -> None:
    net = cifar_resnet(8, 2, (4, 6, 8))
    generator = torch.Generator().manual_seed(0)

    def dropping(progress: float, masks: Masks) -> float:
        found = base.random_rows(net, 1000, masks, progress, generator)
        return 0.0 if found is None else float((~found).any(1).float().mean())

    falling = Masks(start=0.5, first_rows=1.0, rows=0.2, least_keep=0.0)
    assert dropping(0.4, falling) == 0
    assert dropping(0.5, falling) > 0.6 > dropping(0.9, falling) > 0.1
    steady = Masks(start=0.0, rows=0.2, least_keep=0.0)
    assert 0.1 < dropping(0.0, steady) <= 0.2
    assert dropping(0.99, Masks()) == 0


def test_prices_rank_confidence() -> None:
    logits = torch.tensor([[3.0, 0.0], [0.0, 0.0], [5.0, 0.0]])
    ranks = gates.confidence_ranks(logits, torch.tensor([0, 0, 1]))
    assert ranks.tolist() == [2.0, 1.0, 0.0]


def test_shift_meets_a_cost() -> None:
    logits = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
    costs = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    shift = evaluate.shift_for(logits, costs, 9.0)
    mean = float(((logits + shift >= 0).float() @ costs).mean())
    assert 8.9 < mean <= 9.0


def test_reward_is_equation_2() -> None:
    masks = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]]).bool()
    right = torch.tensor([True, True, True, False])
    torch.testing.assert_close(reward(masks, right, 5), torch.tensor([0.75, 0.0, 1.0, -5.0]))


def test_bounded_probabilities_stay_within_alpha() -> None:
    p = bounded(torch.tensor([-50.0, 0.0, 50.0]), 0.8)
    torch.testing.assert_close(p, torch.tensor([0.2, 0.5, 0.8]))


def test_the_curriculum_grows_block_by_block() -> None:
    assert [learned_blocks(p, 2, 4) for p in (0.1, 1.9, 2.0, 4.5, 6.1, 50)] == [1, 1, 2, 3, 4, 4]
    assert [learned_blocks(p, 0.25, 54) for p in (0.1, 0.3, 1.0, 13.3)] == [1, 2, 5, 54]


def test_curriculum_forces_the_first_blocks() -> None:
    masks = forced(torch.zeros(2, 5, dtype=torch.bool), 2)
    assert masks.tolist() == [[True] * 3 + [False] * 2] * 2


def test_policy_gradient_follows_the_advantage() -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    sampled = torch.tensor([[True, False, True], [True, False, True]])
    loss = policy_loss(bounded(logits, 0.8), sampled, torch.tensor([1.0, -1.0]), 2, 0.0)
    loss.backward()
    assert logits.grad is not None
    # Block 0 is not in the curriculum yet; image 0 did better than its baseline, image 1 worse.
    assert (logits.grad[:, 0] == 0).all()
    assert logits.grad[0, 1] > 0 > logits.grad[0, 2]
    assert logits.grad[1, 1] < 0 < logits.grad[1, 2]
