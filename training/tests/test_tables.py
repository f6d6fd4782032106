"""Tables and pictures made of result files."""

from __future__ import annotations

from typing import Any

from blockdrop_train.tables import overview, section


def _figures(depth: int, counts: dict[int, int]) -> dict[str, Any]:
    blocks = (depth - 2) // 2
    images = sum(counts.values())
    row = {
        "method": "policy",
        "phase": "finetune",
        "images": images,
        "accuracy": 0.9,
        "blocks_mean": 10.3,
        "blocks_std": 2.0,
        "flops_mean": 1e8,
        "flops_std": 2e7,
        "distinct_masks": 7,
        "images_by_blocks": [counts.get(kept, 0) for kept in range(blocks + 1)],
    }
    return {
        "config": "made-up",
        "data": "cifar10",
        "depth": depth,
        "blocks": blocks,
        "seed": 1,
        "split": "test",
        "policy_flops": 6.13e6,
        "rows": [row],
    }


def test_a_section_says_how_unequal_images_are_and_what_is_known() -> None:
    text = section(_figures(110, {3: 10, 9: 40, 10: 30, 21: 20}))
    assert "uses 3 to 21 of 54 blocks; 50.0 % of the images use fewer than 10" in text
    # 1.96 * sqrt(0.9 * 0.1 / 100)
    assert "An accuracy of 90.0 % on 100 images is known to ±5.9 points" in text
    assert "uses 10 of 54 blocks; 0.0 %" in section(_figures(110, {10: 100}))
    figures = _figures(110, {10: 100})
    figures["rows"].append(figures["rows"][0] | {"wanted": 1.18e8, "shift": 1.0})
    assert "BlockDrop (finetune at 1.18e+08 FLOPs) uses 10 of 54" in section(figures)


def test_the_papers_operating_points_stand_beside_ours() -> None:
    text = section(_figures(110, {10: 100}))
    assert "| BlockDrop, paper | gamma 2 | 91.9 | 10.3 | 1.18e+08 |  |" in text
    assert "| BlockDrop, paper | gamma 10 | 93.6 | 16.9 ± 3.7 | 1.81e+08 ± 3.4e+07 | 469 |" in text
    assert "paper | gamma" not in section(_figures(20, {9: 100}))


def test_a_section_says_where_the_nets_come_from() -> None:
    figures = _figures(110, {10: 100}) | {"imported": "small/1"}
    assert "The nets before finetuning come from `small/1`." in section(figures)
    late = figures | {"own_policy": True, "grown_from": "tiny/1"}
    assert "The base net's weights come from `small/1`, whose net was grown from" in section(late)
    assert "The base net was grown from `small/1`." in section(figures | {"grown": True})


def test_a_table_compares_heuristics_of_as_many_blocks() -> None:
    figures = _figures(110, {10: 100})
    [learned] = figures["rows"]
    for keep, accuracy in ((0, 0.1), (11, 0.8), (20, 0.7)):
        row = {"method": "first_k", "blocks_mean": keep, "accuracy": accuracy, "epochs": 6}
        figures["rows"].append(learned | row)
    assert "| FirstK | 80.0 @11.0, 6 epochs | not run | 71.3 @17 | 13.3 @21 |" in section(figures)


def test_an_overview_has_both_splits_of_every_point_side_by_side() -> None:
    splits = []
    for split, accuracy, images in (("test", 0.9, 100), ("validation", 0.8, 50)):
        figures = _figures(110, {10: images}) | {"split": split}
        [learned] = figures["rows"]
        learned["accuracy"] = accuracy
        moved = {"shift": 1.5, "flops_mean": 1.2e8, "accuracy": accuracy + 0.01}
        full = {"method": "full", "phase": "base", "flops_mean": 5e8}
        early = {"phase": "curriculum", "flops_mean": 9e7}
        heuristic = {"method": "first_k", "flops_mean": 1.3e8}
        figures["rows"] += [learned | more for more in (moved, full, early, heuristic)]
        splits.append(figures)
    lines = overview([*splits, splits[0] | {"config": "other"}]).splitlines()
    assert lines[4] == "| run | net | FLOPs, validation | % of 50 | FLOPs, test | % of 100 |"
    assert lines[6:10] == [
        "| `made-up` | BlockDrop, finetune | 1e+08 | 80.00 | 1e+08 | 90.00 |",
        "| `made-up` | BlockDrop, finetune | 1.2e+08 | 81.00 | 1.2e+08 | 91.00 |",
        "| `made-up` | FirstK, finetune, 10 blocks | 1.3e+08 | 80.00 | 1.3e+08 | 90.00 |",
        "| `made-up` | full, base | 5e+08 | 80.00 | 5e+08 | 90.00 |",
    ]
    assert lines[10] == "| `other` | BlockDrop, finetune |  |  | 1e+08 | 90.00 |"
    assert lines[-1] == "| the paper | BlockDrop, gamma 10 |  |  | 1.81e+08 | 93.6 (of 10000) |"
    assert len(lines) == 6 + 4 + 4 + 3


def test_an_imported_net_is_not_called_the_runs_own() -> None:
    figures = _figures(110, {10: 100}) | {"imported": "small/1"}
    [learned] = figures["rows"]
    learned["epochs"] = 20
    figures["rows"].append(
        {k: v for k, v in learned.items() if k != "epochs"} | {"method": "full", "phase": "base"}
    )
    assert "| full, imported |" in overview([figures])
    assert "| full | imported | 90.00 |" in section(figures)
    assert "| BlockDrop | finetune, 20 epochs | 90.00 |" in section(figures)
    figures["rows"][1]["epochs"] = 24
    assert "| full | base, 24 epochs | 90.00 |" in section(figures)
