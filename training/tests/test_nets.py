"""Dropping blocks: the paper's semantics, image by image, and its FLOPs."""

from __future__ import annotations

import pytest
import torch
from conftest import shake
from torch import Tensor
from torch.nn import functional as F

from blockdrop_train.flops import block_flops, full_flops, policy_flops
from blockdrop_train.nets import (
    Block,
    PoolPadShortcut,
    ResNet,
    cifar_policy,
    cifar_resnet,
    imagenet_policy,
    imagenet_resnet,
)


def small_nets() -> list[ResNet]:
    return [cifar_resnet(14, 5, (4, 6, 20), 16), imagenet_resnet(50, 5, 32)]


def by_hand(net: ResNet, image: Tensor, mask: Tensor) -> Tensor:
    """The definition, written out for one image."""
    x = net.stem(image[None])
    for keep, module in zip(mask, net.blocks, strict=True):
        assert isinstance(module, Block)
        short = module.shortcut(x)
        x = F.relu(short + module.branch(x)) if keep else short
    return net.head(x.mean((2, 3)))[0]


@pytest.mark.parametrize("number", [0, 1])
def test_masked_batch_equals_image_by_image(number: int) -> None:
    net = small_nets()[number].eval()
    shake(net)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(9, *net.input_size, generator=generator)
    masks = torch.rand(9, net.depth, generator=generator) < 0.5
    masks[0] = True
    masks[1] = False
    with torch.no_grad():
        batch = net(images, masks)
        alone = torch.stack([by_hand(net, i, m) for i, m in zip(images, masks, strict=True)])
    scale = float(alone.abs().max())
    torch.testing.assert_close(batch, alone, rtol=0, atol=1e-5 * max(1.0, scale))


@pytest.mark.parametrize("blocks", [0, 2, 6])
def test_a_prefix_shared_by_two_masks_changes_nothing(blocks: int) -> None:
    net = cifar_resnet(14, 4, (4, 6, 8)).eval()
    shake(net)
    images = torch.randn(5, 3, 32, 32)
    masks = torch.rand(10, 6) < 0.5
    masks[:, :blocks] = True
    x = torch.cat([net.prefix(images, blocks)] * 2)
    torch.testing.assert_close(net.finish(x, masks, blocks), net(torch.cat([images] * 2), masks))


def test_full_mask_is_the_plain_net() -> None:
    net = small_nets()[0].eval()
    images = torch.randn(3, *net.input_size)
    whole = torch.ones(3, net.depth, dtype=torch.bool)
    torch.testing.assert_close(net(images, whole), net(images))


def test_hard_gates_equal_masks() -> None:
    net = small_nets()[0].eval()
    shake(net)
    images = torch.randn(6, *net.input_size)
    masks = torch.rand(6, net.depth) < 0.5
    torch.testing.assert_close(
        net.gated(images, masks.float()), net(images, masks), rtol=1e-4, atol=1e-5
    )


def mixed(net: ResNet, images: Tensor, gates: Tensor) -> Tensor:
    """The definition of gates, every block computed for every image."""
    x = net.stem(images)
    for gate, module in zip(gates.T, net.blocks, strict=True):
        assert isinstance(module, Block)
        short = module.shortcut(x)
        g = gate[:, None, None, None]
        x = (1 - g) * short + g * F.relu(short + module.branch(x))
    return net.head(x.mean((2, 3)))


def test_gates_learn_from_the_blocks_that_are_looked_at() -> None:
    net = cifar_resnet(14, 5, (4, 6, 8)).eval()
    shake(net)
    images = torch.randn(6, 3, 32, 32)
    gates = (torch.rand(6, net.depth) < 0.5).float().requires_grad_()
    weights = [*net.parameters()]

    def gradients(out: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(out.square().sum(), [gates, *weights])

    wanted = gradients(mixed(net, images, gates))
    for found, value in zip(gradients(net.gated(images, gates)), wanted, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-3)
    looked = 4 * (torch.rand(6, net.depth) < 0.25).float()
    found, *others = gradients(net.gated(images, gates, looked))
    weighed = torch.where(gates > 0, wanted[0], wanted[0] * looked)
    torch.testing.assert_close(found, weighed, rtol=1e-3, atol=1e-3)
    for other, value in zip(others, wanted[1:], strict=True):
        torch.testing.assert_close(other, value, rtol=1e-3, atol=1e-3)


def test_dropped_block_has_no_relu() -> None:
    block = cifar_resnet(8, 2, (4, 6, 8)).block(1)
    x = -torch.ones(2, 4, 8, 8)
    out = block.masked(x, torch.tensor([False, True]))
    assert (out[0, :4] == -1).all()
    assert (out[0, 4:] == 0).all()
    assert (out[1] >= 0).all()


def test_gradients_reach_only_kept_blocks() -> None:
    net = cifar_resnet(8, 3, (4, 6, 8)).train()
    masks = torch.tensor([[True, False, True]]).repeat(4, 1)
    net(torch.randn(4, 3, 32, 32), masks).sum().backward()
    assert all(p.grad is None for p in net.block(1).branch.parameters())
    assert all(p.grad is not None for p in net.block(2).branch.parameters())


def test_shortcut_appends_zeros_after_pooling() -> None:
    x = torch.randn(2, 3, 4, 4)
    y = PoolPadShortcut(3, 8, 2)(x)
    assert y.shape == (2, 8, 2, 2)
    torch.testing.assert_close(y[:, :3], F.avg_pool2d(x, 2))
    assert (y[:, 3:] == 0).all()


def test_wrong_mask_is_refused() -> None:
    net = small_nets()[0]
    with pytest.raises(ValueError, match=r"\[2, 5\], expected \[2, 6\]"):
        net(torch.randn(2, *net.input_size), torch.ones(2, 5, dtype=torch.bool))


@pytest.mark.parametrize("depth", [9, 31, 7, 2])
def test_wrong_depth_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match="6n\\+2"):
        cifar_resnet(depth, 10)


def test_blocks_and_segments_of_the_papers_nets() -> None:
    net = cifar_resnet(110, 10)
    assert (net.depth, net.segments) == (54, (18, 18, 18))
    net = imagenet_resnet(101, 10, 32)
    assert (net.depth, net.segments) == (33, (3, 4, 23, 3))
    assert net.segment_starts() == [0, 3, 7, 30]
    assert not any(net.block(k).shortcut.is_identity for k in net.segment_starts())


def test_flops_are_the_papers() -> None:
    assert full_flops(cifar_resnet(32, 10)) == pytest.approx(1.38e8, rel=0.01)
    assert full_flops(cifar_resnet(110, 10)) == pytest.approx(5.06e8, rel=0.01)
    assert set(block_flops(cifar_resnet(110, 10))) == {9437184, 7077888}
    assert policy_flops(cifar_policy(54)) == pytest.approx(2.45e7, rel=0.01)
    assert policy_flops(cifar_policy(15, pool=2)) == pytest.approx(2.45e7 / 4, rel=0.01)
    assert full_flops(imagenet_resnet(101, 1000)) == pytest.approx(1.56e10, rel=0.01)
    assert policy_flops(imagenet_policy(33)) == pytest.approx(4.7e8, rel=0.1)
