"""FirstK, RandomK and DistributeK, and the policy's favourite blocks."""

from __future__ import annotations

import pytest
import torch

from blockdrop_train.baselines import Heuristic, distribute_k, most_kept


def test_first_and_distributed() -> None:
    masks = Heuristic.parse("first_k:7").masks((5, 5, 5), 2)
    assert masks.int().tolist() == [[1] * 7 + [0] * 8] * 2
    mask = distribute_k((5, 5, 5), 7)
    assert mask.int().tolist() == [1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0]
    assert distribute_k((3, 4, 23, 3), 33).all()
    assert distribute_k((3, 4, 23, 3), 20).sum() == 20


def test_random_differs_by_image_and_keeps_n() -> None:
    masks = Heuristic("random_k", 7).masks((5, 5, 5), 50, seed=3)
    assert (masks.sum(1) == 7).all()
    assert len(torch.unique(masks, dim=0)) > 40
    assert torch.equal(masks, Heuristic("random_k", 7).masks((5, 5, 5), 50, seed=3))


@pytest.mark.parametrize("text", ["last_k:3", "first_k", "first_k:x", "first_k:-1"])
def test_wrong_paths_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected first_k:N"):
        Heuristic.parse(text)


def test_too_many_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="15 blocks"):
        Heuristic("first_k", 16).masks((5, 5, 5), 1)


def test_the_most_kept_blocks_are_those_of_most_images() -> None:
    logits = torch.tensor([[9.0, -1, 1, -3], [9.0, -1, 1, -2], [-1, 5, 1, -2]])
    assert most_kept(logits, 1).tolist() == [False, False, True, False]
    assert most_kept(logits, 2).tolist() == [True, False, True, False]
    # Of two that are kept as often, the one with the greater logits.
    assert most_kept(logits - 2, 1).tolist() == [True, False, False, False]
    assert most_kept(logits - 10, 1).tolist() == [True, False, False, False]
    assert most_kept(logits, 4).all()
