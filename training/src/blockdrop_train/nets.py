"""Residual networks whose blocks can be dropped image by image, and policy networks.

The semantics are those of BlockDrop (Wu et al., CVPR 2018, section 3): a kept block computes
``relu(shortcut(x) + F(x))``; a dropped block computes ``shortcut(x)`` without a relu. The shortcut
always runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CIFAR_WIDTHS = (16, 32, 64)


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution with padding 1 and no bias."""
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)


class PoolPadShortcut(nn.Module):
    """The CIFAR "option A" shortcut: average-pool by the stride, append zero channels.

    It has no weights. With stride 1 and equal widths it is the identity.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        if outputs < inputs:
            raise ValueError(f"a shortcut cannot narrow: {inputs} channels in, {outputs} out")
        self.stride = stride
        self.inputs = inputs
        self.outputs = outputs

    @property
    def is_identity(self) -> bool:
        """Whether the shortcut returns its input unchanged."""
        return self.stride == 1 and self.inputs == self.outputs

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H/stride, W/stride]."""
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride)
        if self.outputs > self.inputs:
            extra = x.new_zeros(len(x), *x.shape[2:], self.outputs - self.inputs)
            x = torch.cat([x, extra.permute(0, 3, 1, 2)], 1)
        return x


class ProjectionShortcut(nn.Module):
    """The ImageNet shortcut: a strided 1x1 convolution and batch norm, no relu."""

    is_identity = False

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H/stride, W/stride]."""
        return cast(Tensor, self.norm(self.conv(x)))


Shortcut = PoolPadShortcut | ProjectionShortcut


class BasicBranch(nn.Module):
    """The residual branch F of a basic block: two 3x3 convolutions with batch norm."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.norm2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H/stride, W/stride], before the last relu."""
        x = F.relu(self.norm1(self.conv1(x)))
        return cast(Tensor, self.norm2(self.conv2(x)))

    def layers(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """Convolution and batch norm pairs in order; a relu stands between two pairs."""
        return [(self.conv1, self.norm1), (self.conv2, self.norm2)]


class BottleneckBranch(nn.Module):
    """The residual branch F of a bottleneck block; the stride sits on the 3x3 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        width = outputs // 4
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H/stride, W/stride], before the last relu."""
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        return cast(Tensor, self.norm3(self.conv3(x)))

    def layers(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """Convolution and batch norm pairs in order; a relu stands between two pairs."""
        return [(self.conv1, self.norm1), (self.conv2, self.norm2), (self.conv3, self.norm3)]


Branch = BasicBranch | BottleneckBranch


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Select images of a batch; a channels-last tensor stays channels-last."""
    return x.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)


def put_rows(x: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """A copy of the batch ``x`` in which the images ``rows`` are replaced by ``values``."""
    out = x.permute(0, 2, 3, 1).index_copy(0, rows, values.permute(0, 2, 3, 1).to(x.dtype))
    return out.permute(0, 3, 1, 2)


class Block(nn.Module):
    """A residual block: branch, shortcut and the rule for dropped images."""

    def __init__(self, branch: Branch, shortcut: Shortcut) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """The kept block, ``relu(shortcut(x) + F(x))``."""
        return F.relu(self.shortcut(x) + self.branch(x))

    def masked(self, x: Tensor, keep: Tensor) -> Tensor:
        """Run the block for the images with ``keep`` only; the others get ``shortcut(x)``.

        Args:
            x: [N, C, H, W].
            keep: bool [N].
        """
        rows = keep.nonzero().squeeze(1)
        if len(rows) == len(x):
            return self.forward(x)
        short: Tensor = self.shortcut(x)
        if len(rows) == 0:
            return short
        kept = F.relu(take_rows(short, rows) + self.branch(take_rows(x, rows)))
        return put_rows(short, rows, kept)

    def _change(self, x: Tensor, short: Tensor) -> Tensor:
        """What keeping the block adds to ``shortcut(x)``."""
        return F.relu(short + self.branch(x)) - short

    def gated(self, x: Tensor, gate: Tensor, looked: Tensor | None = None) -> Tensor:
        """Differentiable mixture ``(1 - g) * shortcut(x) + g * kept(x)``, with g in [0, 1].

        For the images with g = 0 the branch is computed without a backward pass, which leaves only
        the gate's gradient; for those that are not looked at, it is not computed. Batch norms must
        be in eval mode.

        Args:
            x: [N, C, H, W].
            gate: float [N].
            looked: float [N], the factor of the gate's gradient where g = 0; ``None`` is 1.
        """
        short: Tensor = self.shortcut(x)
        on = gate.detach() > 0
        off = ~on if looked is None else ~on & (looked > 0)
        kept, dropped = on.nonzero().squeeze(1), off.nonzero().squeeze(1)
        rows = torch.cat([kept, dropped])
        if len(rows) == 0:
            return short
        changes = []
        if len(kept):
            changes.append(self._change(take_rows(x, kept), take_rows(short, kept)))
        if len(dropped):
            still, still_short = take_rows(x.detach(), dropped), take_rows(short.detach(), dropped)
            changes.append(self._change(still, still_short).detach())
        factors = gate if looked is None else torch.where(on, gate, gate * looked)
        g = factors[rows].to(short.dtype)[:, None, None, None]
        return put_rows(short, rows, take_rows(short, rows) + g * torch.cat(changes))


class ResNet(nn.Module):
    """A residual network with K droppable blocks.

    Attributes:
        segments: number of blocks in each segment.
        input_size: (channels, height, width) of an image.
    """

    def __init__(
        self,
        stem: nn.Module,
        blocks: Sequence[Block],
        segments: Sequence[int],
        features: int,
        classes: int,
        input_size: tuple[int, int, int],
    ) -> None:
        super().__init__()
        if sum(segments) != len(blocks):
            raise ValueError(f"segments {list(segments)} do not add up to {len(blocks)} blocks")
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(features, classes)
        self.segments = tuple(segments)
        self.input_size = input_size

    @property
    def depth(self) -> int:
        """K, the number of droppable blocks."""
        return len(self.blocks)

    def block(self, index: int) -> Block:
        """Block ``index``, typed."""
        return cast(Block, self.blocks[index])

    def segment_starts(self) -> list[int]:
        """The index of the first block of each segment."""
        starts, total = [], 0
        for length in self.segments:
            starts.append(total)
            total += length
        return starts

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Class logits [N, classes] of images [N, C, H, W].

        Args:
            images: normalised images.
            mask: bool [N, K], true where the image keeps the block; ``None`` keeps all. Only the
                images that keep a block are computed by it.
        """
        if mask is not None and mask.shape != (len(images), self.depth):
            raise ValueError(
                f"mask has shape {list(mask.shape)}, expected [{len(images)}, {self.depth}]"
            )
        return self.finish(self.stem(images), mask)

    def prefix(self, images: Tensor, blocks: int) -> Tensor:
        """The activations [N, C, H, W] after the stem and the first blocks, every one kept."""
        x = self.stem(images)
        for index in range(blocks):
            x = self.block(index)(x)
        return cast(Tensor, x)

    def finish(self, x: Tensor, mask: Tensor | None = None, start: int = 0) -> Tensor:
        """Class logits [N, classes] from the activations in front of block ``start``.

        Args:
            x: [N, C, H, W].
            mask: bool [N, K], of which the columns from ``start`` on count; ``None`` keeps all.
        """
        for index in range(start, self.depth):
            block = self.block(index)
            x = block(x) if mask is None else block.masked(x, mask[:, index])
        return cast(Tensor, self.head(x.mean((2, 3))))

    def features(self, images: Tensor) -> Tensor:
        """The pooled activations [N, features] that the head sees, every block kept."""
        return self.prefix(images, self.depth).mean((2, 3))

    def gated(self, images: Tensor, gates: Tensor, looked: Tensor | None = None) -> Tensor:
        """Class logits [N, classes] with differentiable gates [N, K]; batch norms in eval mode.

        Args:
            looked: float [N, K], see ``Block.gated``.
        """
        x = self.stem(images)
        for index in range(self.depth):
            look = None if looked is None else looked[:, index]
            x = self.block(index).gated(x, gates[:, index], look)
        return cast(Tensor, self.head(x.mean((2, 3))))


class CifarStem(nn.Module):
    """conv3x3, batch norm, relu."""

    def __init__(self, width: int, channels: int = 3) -> None:
        super().__init__()
        self.conv = conv3x3(channels, width)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, width, H, W]."""
        return F.relu(self.norm(self.conv(x)))


class ImageNetStem(nn.Module):
    """conv7x7/2, batch norm, relu, maxpool3x3/2."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, width, H/4, W/4]."""
        return F.max_pool2d(F.relu(self.norm(self.conv(x))), 3, 2, 1)


def initialise(net: nn.Module) -> None:
    """He initialisation of convolutions (fan out)."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def cifar_resnet(
    depth: int,
    classes: int,
    widths: Sequence[int] = CIFAR_WIDTHS,
    size: int = 32,
) -> ResNet:
    """A CIFAR ResNet of depth 6n+2: 3n basic blocks in segments of n."""
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"CIFAR ResNet depth {depth} is not 6n+2 (8, 14, 20, 26, 32, ..., 110)")
    per_segment = (depth - 2) // 6
    blocks: list[Block] = []
    inputs = widths[0]
    for segment, width in enumerate(widths):
        for position in range(per_segment):
            stride = 2 if segment > 0 and position == 0 else 1
            blocks.append(
                Block(BasicBranch(inputs, width, stride), PoolPadShortcut(inputs, width, stride))
            )
            inputs = width
    net = ResNet(
        CifarStem(widths[0]),
        blocks,
        [per_segment] * len(widths),
        inputs,
        classes,
        (3, size, size),
    )
    initialise(net)
    return net


IMAGENET_SEGMENTS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def imagenet_resnet(depth: int, classes: int, size: int = 224) -> ResNet:
    """ImageNet ResNet-50, -101 or -152 with bottleneck blocks.

    The first block of every segment has a projection shortcut, the first segment included.
    """
    if depth not in IMAGENET_SEGMENTS:
        raise ValueError(f"ImageNet ResNet depth {depth}: expected one of 50, 101, 152")
    blocks: list[Block] = []
    inputs = 64
    for segment, length in enumerate(IMAGENET_SEGMENTS[depth]):
        outputs = 256 << segment
        for position in range(length):
            stride = 2 if segment > 0 and position == 0 else 1
            shortcut: Shortcut = (
                ProjectionShortcut(inputs, outputs, stride)
                if position == 0
                else PoolPadShortcut(inputs, outputs, stride)
            )
            blocks.append(Block(BottleneckBranch(inputs, outputs, stride), shortcut))
            inputs = outputs
    net = ResNet(ImageNetStem(), blocks, IMAGENET_SEGMENTS[depth], inputs, classes, (3, size, size))
    initialise(net)
    return net


class Policy(nn.Module):
    """The policy network: average-pool the image, run a small ResNet, K keep logits.

    Attributes:
        pool: factor by which the image is average-pooled before the first convolution; part of
            the exported graph.
    """

    def __init__(self, net: ResNet, pool: int = 1) -> None:
        super().__init__()
        self.net = net
        self.pool = pool

    def features(self, images: Tensor) -> Tensor:
        """The pooled activations [N, features] before the last layer."""
        if self.pool > 1:
            images = F.avg_pool2d(images, self.pool)
        return self.net.features(images)

    def forward(self, images: Tensor) -> Tensor:
        """Keep logits [N, K] of images [N, C, H, W]; block k is kept where the logit is >= 0."""
        return cast(Tensor, self.net.head(self.features(images)))


def cifar_policy(
    blocks: int, widths: Sequence[int] = CIFAR_WIDTHS, pool: int = 1, size: int = 32
) -> Policy:
    """ResNet-8 (section 4.1): one basic block per segment; the paper's has pool 1."""
    net = cifar_resnet(8, blocks, widths, size // pool)
    nn.init.zeros_(net.head.weight)
    nn.init.zeros_(net.head.bias)
    return Policy(net, pool)


def imagenet_policy(blocks: int, pool: int = 2, size: int = 224) -> Policy:
    """ResNet-10 on the pooled image (section 4.1): segments [1, 1, 1, 1], 64 to 512 channels."""
    layers: list[Block] = []
    inputs = 64
    for segment, width in enumerate((64, 128, 256, 512)):
        stride = 1 if segment == 0 else 2
        shortcut: Shortcut = (
            PoolPadShortcut(inputs, width, stride)
            if segment == 0
            else ProjectionShortcut(inputs, width, stride)
        )
        layers.append(Block(BasicBranch(inputs, width, stride), shortcut))
        inputs = width
    net = ResNet(
        ImageNetStem(), layers, [1, 1, 1, 1], inputs, blocks, (3, size // pool, size // pool)
    )
    initialise(net)
    nn.init.zeros_(net.head.weight)
    nn.init.zeros_(net.head.bias)
    return Policy(net, pool)
