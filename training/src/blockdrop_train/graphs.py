"""ONNX graphs of the nets' parts, batch norm folded, built node by node."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from .errors import ExportError
from .nets import (
    Block,
    Branch,
    CifarStem,
    ImageNetStem,
    Policy,
    PoolPadShortcut,
    ProjectionShortcut,
    ResNet,
    Shortcut,
)

OPSET = 17
IR_VERSION = 8


def fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The weight and bias of one convolution that equals ``norm(conv(x))`` in eval mode."""
    if norm.running_mean is None or norm.running_var is None:
        raise ExportError("a batch norm without running statistics cannot be folded")
    with torch.no_grad():
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        weight = conv.weight.double() * scale[:, None, None, None]
        bias = norm.bias.double() - norm.running_mean.double() * scale
        if conv.bias is not None:
            bias = bias + conv.bias.double() * scale
    return weight.float().contiguous(), bias.float().contiguous()


class Graph:
    """A graph under construction with one input; each method appends a node.

    Values are named by the node that makes them. ``shape`` is that of the last value without its
    batch dimension.
    """

    def __init__(self, name: str, source: str, shape: tuple[int, ...]) -> None:
        self.name = name
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.infos: list[Any] = []
        self.source = self._info(source, shape)
        self.shapes: dict[str, tuple[int, ...]] = {source: shape}

    @staticmethod
    def _info(name: str, shape: tuple[int, ...]) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])

    def _weight(self, name: str, value: Tensor | np.ndarray) -> str:
        array = value.detach().numpy() if isinstance(value, Tensor) else value
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def _node(
        self, kind: str, name: str, inputs: list[str], shape: tuple[int, ...], **attributes: Any
    ) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        self.shapes[name] = shape
        return name

    def conv(self, name: str, x: str, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> str:
        """Convolution with its batch norm folded in."""
        weight, bias = fold(conv, norm)
        _, height, width = self.shapes[x]
        pad = [int(p) for p in conv.padding]  # type: ignore[arg-type, unused-ignore]
        kernel, stride = list(conv.kernel_size), list(conv.stride)
        out = (
            conv.out_channels,
            (height + 2 * pad[0] - kernel[0]) // stride[0] + 1,
            (width + 2 * pad[1] - kernel[1]) // stride[1] + 1,
        )
        inputs = [x, self._weight(f"{name}.weight", weight), self._weight(f"{name}.bias", bias)]
        return self._node(
            "Conv", name, inputs, out,
            kernel_shape=kernel, strides=stride, pads=pad + pad, group=conv.groups,
            dilations=list(conv.dilation),
        )  # fmt: skip

    def relu(self, name: str, x: str) -> str:
        """Relu."""
        return self._node("Relu", name, [x], self.shapes[x])

    def add(self, name: str, a: str, b: str) -> str:
        """Sum of two values of one shape."""
        if self.shapes[a] != self.shapes[b]:
            raise ExportError(f"{self.name}: cannot add {self.shapes[a]} and {self.shapes[b]}")
        return self._node("Add", name, [a, b], self.shapes[a])

    def average_pool(self, name: str, x: str, by: int) -> str:
        """Average pool with kernel and stride ``by``."""
        channels, height, width = self.shapes[x]
        if height % by or width % by:
            raise ExportError(f"{self.name}: {height}x{width} does not divide by {by}")
        shape = (channels, height // by, width // by)
        return self._node("AveragePool", name, [x], shape, kernel_shape=[by] * 2, strides=[by] * 2)

    def max_pool(self, name: str, x: str) -> str:
        """The ImageNet stem's 3x3 max pool with stride 2 and padding 1."""
        channels, height, width = self.shapes[x]
        shape = (channels, (height - 1) // 2 + 1, (width - 1) // 2 + 1)
        return self._node(
            "MaxPool", name, [x], shape, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]
        )

    def append_zeros(self, name: str, x: str, channels: int) -> str:
        """Append zero channels."""
        have, height, width = self.shapes[x]
        pads = np.array([0, 0, 0, 0, 0, channels, 0, 0], dtype=np.int64)
        inputs = [x, self._weight(f"{name}.pads", pads)]
        return self._node("Pad", name, inputs, (have + channels, height, width), mode="constant")

    def pooled_linear(self, name: str, x: str, linear: nn.Linear) -> str:
        """Global average pool and linear layer."""
        channels = self.shapes[x][0]
        pooled = self._node("GlobalAveragePool", f"{name}.pool", [x], (channels, 1, 1))
        flat = self._node("Flatten", f"{name}.flatten", [pooled], (channels,), axis=1)
        inputs = [
            flat,
            self._weight(f"{name}.weight", linear.weight),
            self._weight(f"{name}.bias", linear.bias),
        ]
        return self._node("Gemm", name, inputs, (linear.out_features,), transB=1)

    def finish(self, output: str) -> onnx.ModelProto:
        """The checked model; its last node's value is renamed ``output``."""
        last = self.nodes[-1]
        value = last.output[0]
        last.output[0] = output
        infos = [
            self._info(name, shape)
            for name, shape in self.shapes.items()
            if name not in (self.source.name, value)
        ]
        graph = helper.make_graph(
            self.nodes,
            self.name,
            [self.source],
            [self._info(output, self.shapes[value])],
            self.weights,
            value_info=infos,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            producer_name="blockdrop-train",
            ir_version=IR_VERSION,
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def _branch(graph: Graph, prefix: str, x: str, branch: Branch) -> str:
    layers = branch.layers()
    for number, (conv, norm) in enumerate(layers, 1):
        x = graph.conv(f"{prefix}conv{number}", x, conv, norm)
        if number < len(layers):
            x = graph.relu(f"{prefix}relu{number}", x)
    return x


def _shortcut(graph: Graph, prefix: str, x: str, shortcut: Shortcut) -> str:
    if isinstance(shortcut, ProjectionShortcut):
        return graph.conv(f"{prefix}shortcut.conv", x, shortcut.conv, shortcut.norm)
    if shortcut.stride > 1:
        x = graph.average_pool(f"{prefix}shortcut.pool", x, shortcut.stride)
    if shortcut.outputs > shortcut.inputs:
        x = graph.append_zeros(f"{prefix}shortcut.pad", x, shortcut.outputs - shortcut.inputs)
    return x


def _block(graph: Graph, prefix: str, x: str, block: Block) -> str:
    short = _shortcut(graph, prefix, x, block.shortcut)
    total = graph.add(f"{prefix}add", short, _branch(graph, prefix, x, block.branch))
    return graph.relu(f"{prefix}relu", total)


def _stem(graph: Graph, prefix: str, x: str, stem: nn.Module) -> str:
    if not isinstance(stem, CifarStem | ImageNetStem):
        raise ExportError(f"no graph for a stem of type {type(stem).__name__}")
    x = graph.relu(f"{prefix}relu", graph.conv(f"{prefix}conv", x, stem.conv, stem.norm))
    return graph.max_pool(f"{prefix}pool", x) if isinstance(stem, ImageNetStem) else x


def stem_graph(net: ResNet) -> tuple[onnx.ModelProto, tuple[int, ...]]:
    """``image`` -> ``x``, and the shape of ``x`` without its batch dimension."""
    graph = Graph("stem", "image", net.input_size)
    last = _stem(graph, "stem.", "image", net.stem)
    return graph.finish("x"), graph.shapes[last]


def block_graph(
    net: ResNet, index: int, shape: tuple[int, ...]
) -> tuple[onnx.ModelProto, tuple[int, ...]]:
    """The kept block ``x`` -> ``y`` on inputs of ``shape``, and the shape of ``y``."""
    graph = Graph(f"block{index:03}", "x", shape)
    last = _block(graph, "", "x", net.block(index))
    return graph.finish("y"), graph.shapes[last]


def shortcut_graph(net: ResNet, index: int, shape: tuple[int, ...]) -> onnx.ModelProto | None:
    """What a dropped block runs instead, ``x`` -> ``y``; None where that is the identity."""
    shortcut = net.block(index).shortcut
    if isinstance(shortcut, PoolPadShortcut) and shortcut.is_identity:
        return None
    graph = Graph(f"shortcut{index:03}", "x", shape)
    _shortcut(graph, "", "x", shortcut)
    return graph.finish("y")


def head_graph(net: ResNet, shape: tuple[int, ...]) -> onnx.ModelProto:
    """``x`` -> ``logits`` [N, classes], no softmax."""
    graph = Graph("head", "x", shape)
    graph.pooled_linear("head", "x", net.head)
    return graph.finish("logits")


def policy_graph(policy: Policy) -> onnx.ModelProto:
    """``image`` -> ``logits`` [N, K]."""
    channels, height, width = policy.net.input_size
    size = (channels, height * policy.pool, width * policy.pool)
    graph = Graph("policy", "image", size)
    x = "image"
    if policy.pool > 1:
        x = graph.average_pool("pool", x, policy.pool)
    x = _stem(graph, "stem.", x, policy.net.stem)
    for index in range(policy.net.depth):
        x = _block(graph, f"block{index}.", x, policy.net.block(index))
    graph.pooled_linear("head", x, policy.net.head)
    return graph.finish("logits")
