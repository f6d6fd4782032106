"""Run configurations: TOML files read strictly into dataclasses."""

from __future__ import annotations

import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from .data import CIFAR_MEAN, CIFAR_STD, AnyImages, Normalise, load
from .errors import ConfigError
from .nets import (
    CIFAR_WIDTHS,
    Policy,
    ResNet,
    cifar_policy,
    cifar_resnet,
    imagenet_policy,
    imagenet_resnet,
)


@dataclass(frozen=True)
class Data:
    """Which images.

    Attributes:
        name: ``cifar10``, ``cifar100``, or ``folder`` for ImageNet's layout.
        classes: number of classes.
        short_side: pixels that an image's short side is resized to before cropping (``folder``).
        mean, std: of the channels, pixels in [0, 1]; the net's input is (pixel - mean) / std.
        flip: ``random`` flips half of the training images, drawn in every epoch (the paper);
            ``alternate`` flips each image in every other epoch, which suits short schedules.
        cutout: size in pixels of the square that is blank in training images, at a random place;
            0 for none (the paper).
    """

    name: str = "cifar10"
    classes: int = 10
    short_side: int = 32
    mean: tuple[float, ...] = CIFAR_MEAN
    std: tuple[float, ...] = CIFAR_STD
    flip: str = "random"
    cutout: int = 0


@dataclass(frozen=True)
class Net:
    """The residual network.

    Attributes:
        family: ``cifar`` or ``imagenet``.
        depth: 6n+2 for ``cifar``; 50, 101 or 152 for ``imagenet``.
        widths: channels by segment (``cifar``).
        size: image height and width in pixels.
    """

    family: str = "cifar"
    depth: int = 32
    widths: tuple[int, ...] = CIFAR_WIDTHS
    size: int = 32


@dataclass(frozen=True)
class PolicyNet:
    """The policy network.

    Attributes:
        widths: channels by segment (``cifar``).
        pool: factor of the average pool in front of it. The paper: 1 for CIFAR, 2 for ImageNet.
    """

    widths: tuple[int, ...] = CIFAR_WIDTHS
    pool: int = 1


@dataclass(frozen=True)
class Masks:
    """Random masks in base training, so that the net survives drops before a policy learns.

    Attributes:
        start: share of the run after which masks begin; 1 means never.
        rows: share of a batch's images that get a random mask; the others keep every block.
        first_rows: that share where masks begin; it goes linearly to ``rows`` at the end.
        least_keep: an image's keep rate is drawn from [least_keep, 1].
    """

    start: float = 1.0
    rows: float = 0.5
    first_rows: float | None = None
    least_keep: float = 0.4


@dataclass(frozen=True)
class Grow:
    """Growing of a shallower net.

    Attributes:
        new: filters of the new blocks: ``copy`` of a trained neighbour's, or ``random``.
    """

    new: str = "copy"


@dataclass(frozen=True)
class Base:
    """Base training: SGD with Nesterov momentum, linear warm-up, then linear decay to zero.

    Attributes:
        batch: images a step, over all workers.
        rate: peak learning rate.
        warmup: share of the run that warms up.
    """

    epochs: int = 36
    batch: int = 128
    rate: float = 0.2
    warmup: float = 0.15
    momentum: float = 0.9
    decay: float = 5e-4
    smoothing: float = 0.0
    masks: Masks = field(default_factory=Masks)


@dataclass(frozen=True)
class Curriculum:
    """Training of the policy.

    Attributes:
        method: ``reinforce`` is the paper's curriculum on the frozen net (section 3.2); ``gates``
            is ours: straight-through gates, the net trained along at a low rate.
        batch: images a step, over all workers.
        rate: the policy's learning rate (Adam).
        warmup_epochs: epochs before, in which the policy's features learn to classify.
        alpha: bound of the sampling probabilities (``reinforce``).
        gamma: penalty of a wrong class (``reinforce``); the released code uses 1 here.
        entropy: weight of the entropy term (``reinforce``).
        epochs_per_block: epochs before one more block joins the curriculum (``reinforce``).
        flops: FLOPs an image to reach on average, the policy's included (``gates``).
        calibrate: FLOPs an image to meet on validation images in the end, by one shift of all keep
            logits; 0 shifts nothing (``gates``). Augmented images are harder and keep more.
        net_rate: the residual net's peak rate, SGD (``gates``); 0 freezes it.
        noise: share of the gates' logistic noise at the start; it falls linearly to a fifth.
        auxiliary: weight of the policy's own classification loss after the warm-up (``gates``).
        cost: weight of the cost term at the start; adapted to meet ``flops`` (``gates``).
        keep_bias: the policy's keep logits at the start (``gates``).
        looked: share of the dropped blocks that are computed all the same, forwards only, so that
            their gates learn; the gradients of these weigh 1 / looked (``gates``).
        full_rows: share of a batch's images that train the full net too (``gates``).
    """

    method: str = "reinforce"
    epochs: int = 60
    batch: int = 256
    rate: float = 1e-3
    warmup_epochs: int = 0
    alpha: float = 0.8
    gamma: float = 1.0
    entropy: float = 0.0
    epochs_per_block: float = 1.0
    flops: float = 8.66e7
    calibrate: float = 0.0
    net_rate: float = 0.0
    noise: float = 1.0
    auxiliary: float = 0.1
    cost: float = 0.05
    keep_bias: float = 1.5
    looked: float = 1.0
    full_rows: float = 1.0


@dataclass(frozen=True)
class Finetune:
    """Training of net and policy together.

    Attributes:
        method: ``reinforce`` is the paper's joint finetuning (section 3.3); ``paths`` is ours: the
            policy is fixed, every image trains its own path and a share of them the full net.
        rate: the net's learning rate: Adam for ``reinforce``, SGD's peak for ``paths``.
        policy_rate: the policy's learning rate (Adam, ``reinforce``).
        gamma: penalty of a wrong class: the operating point (``reinforce``).
        full_rows: share of a batch's images that train the full net too (``paths``).
        taught: weight of the run's teachers (``blockdrop-train teach``) as targets of paths and
            full net, beside the labels; 0 needs no teacher (``paths``).
        distil: weight of the full net's logits as targets of these images' paths, beside the
            others.
        temperature: softening of classes in both terms.
        points: FLOPs an image, the policy's included, of operating points: every image trains the
            path of one of them, drawn anew in each step, so that one net serves them all. A point
            that is named twice is drawn twice as often; none means the policy's own (``paths``).
        last: share of the peak rate that is left at the end (``paths``).
        average: share of the run, at its end, over whose steps the weights are averaged: the mean
            is the net that is served (``paths``). It wants ``settle``, and a rate that stays high.
        settle: batches, after the last step, over which batch norm's statistics are averaged anew;
            0 keeps the running averages (``paths``).
    """

    method: str = "reinforce"
    epochs: int = 40
    batch: int = 256
    rate: float = 1e-4
    policy_rate: float = 1e-4
    warmup: float = 0.1
    momentum: float = 0.9
    decay: float = 5e-4
    alpha: float = 0.8
    gamma: float = 5.0
    entropy: float = 0.0
    full_rows: float = 1.0
    taught: float = 0.0
    distil: float = 0.5
    temperature: float = 1.0
    points: tuple[float, ...] = ()
    last: float = 0.0
    average: float = 0.0
    settle: int = 0


@dataclass(frozen=True)
class Config:
    """One run's configuration."""

    name: str
    seed: int = 1
    data: Data = field(default_factory=Data)
    net: Net = field(default_factory=Net)
    policy: PolicyNet = field(default_factory=PolicyNet)
    grow: Grow = field(default_factory=Grow)
    base: Base = field(default_factory=Base)
    curriculum: Curriculum = field(default_factory=Curriculum)
    finetune: Finetune = field(default_factory=Finetune)

    def load(self, root: Path, split: str) -> AnyImages:
        """The ``train``, ``validation`` or ``test`` images from the folder of data sets."""
        images = load(self.data.name, root, split, self.net.size, self.data.short_side)
        if len(images.labels) != self.data.classes:
            raise ConfigError(
                f"data.classes is {self.data.classes}, the {split} images have "
                f"{len(images.labels)} classes"
            )
        return images

    def normalise(self) -> Normalise:
        """What turns pixels into the nets' input."""
        return Normalise(self.data.mean, self.data.std)

    def build_net(self) -> ResNet:
        """The residual network, freshly initialised."""
        if self.net.family == "imagenet":
            return imagenet_resnet(self.net.depth, self.data.classes, self.net.size)
        return cifar_resnet(self.net.depth, self.data.classes, self.net.widths, self.net.size)

    def build_policy(self, blocks: int) -> Policy:
        """The policy network for ``blocks`` blocks, freshly initialised."""
        if self.net.family == "imagenet":
            return imagenet_policy(blocks, self.policy.pool, self.net.size)
        return cifar_policy(blocks, self.policy.widths, self.policy.pool, self.net.size)


T = TypeVar("T")


def _value(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected a table")
        return _table(typing.cast(type[Any], kind), value, where)
    origin = typing.get_origin(kind)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: expected a list, found {value!r}")
        item = typing.get_args(kind)[0]
        return tuple(_value(item, v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
        return _value(kind, value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: expected {kind.__name__}, found {value!r}")
    return value


def _table(kind: type[T], values: dict[str, Any], where: str) -> T:
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(
            f"{where}: unknown key {', '.join(unknown)}; expected one of {', '.join(hints)}"
        )
    read = {k: _value(hints[k], v, f"{where}.{k}") for k, v in values.items()}
    try:
        return kind(**read)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from error


def from_dict(values: dict[str, Any], where: str = "config") -> Config:
    """A configuration from nested dictionaries; the inverse of ``dataclasses.asdict``."""
    config = _table(Config, values, where)
    if config.net.family not in ("cifar", "imagenet"):
        raise ConfigError(f"{where}.net.family: '{config.net.family}', expected cifar or imagenet")
    for key, value, known in (
        ("data.flip", config.data.flip, ("random", "alternate")),
        ("grow.new", config.grow.new, ("copy", "random")),
        ("curriculum.method", config.curriculum.method, ("reinforce", "gates")),
        ("finetune.method", config.finetune.method, ("reinforce", "paths")),
    ):
        if value not in known:
            raise ConfigError(f"{where}.{key}: '{value}', expected {' or '.join(known)}")
    if config.finetune.points and config.finetune.method != "paths":
        raise ConfigError(f"{where}.finetune.points: expected none but where method is paths")
    for key in ("taught", "average"):
        if getattr(config.finetune, key) and config.finetune.method != "paths":
            raise ConfigError(f"{where}.finetune.{key}: expected 0 but where method is paths")
    if config.finetune.average and not config.finetune.settle:
        raise ConfigError(f"{where}.finetune.settle: found 0, expected batches to settle a mean by")
    _check_ranges(config, where)
    return config


Rule = tuple[str, Callable[[float], bool]]
"""What is expected of a number, in words and as a test, which nan fails."""


def _from(lowest: int) -> Rule:
    return f"a number from {lowest}", lambda value: lowest <= value < 2**63


_SHARE: Rule = ("a share from 0 to 1", lambda value: 0 <= value <= 1)
_BELOW_ONE: Rule = ("a share from 0 to below 1", lambda value: 0 <= value < 1)
_POSITIVE: Rule = ("a number above 0", lambda value: 0 < value < 2**63)
_FINITE: Rule = ("a finite number", math.isfinite)
_RULES: dict[str, Rule] = {
    "data.classes": _from(2),
    "data.mean": _FINITE,
    "data.std": _POSITIVE,
    "net.size": _from(1),
    "net.widths": _from(1),
    "policy.pool": _from(1),
    "policy.widths": _from(1),
    "base.masks.start": _SHARE,
    "base.masks.rows": _SHARE,
    "base.masks.first_rows": _SHARE,
    "base.masks.least_keep": _SHARE,
    "base.smoothing": _BELOW_ONE,
    "curriculum.epochs_per_block": _POSITIVE,
    "curriculum.full_rows": _SHARE,
    "curriculum.keep_bias": _FINITE,
    "curriculum.looked": ("a share above 0, to 1", lambda value: 0 < value <= 1),
    "finetune.average": _SHARE,
    "finetune.distil": _SHARE,
    "finetune.full_rows": _SHARE,
    "finetune.last": _SHARE,
    "finetune.points": _POSITIVE,
    "finetune.taught": _SHARE,
    "finetune.temperature": _POSITIVE,
} | {
    f"{phase}.{key}": rule
    for key, rule in (
        ("alpha", _SHARE), ("batch", _from(1)), ("epochs", _from(1)), ("momentum", _BELOW_ONE),
        ("warmup", _BELOW_ONE),
    )
    for phase in ("base", "curriculum", "finetune")
}  # fmt: skip
"""Of the numbers that are not named, expected is that they are not negative."""


def _numbers(section: Any, where: str = "") -> Iterator[tuple[str, float]]:
    """All numbers of a configuration, by their keys."""
    for field_ in dataclasses.fields(section):
        key, value = where + field_.name, getattr(section, field_.name)
        if dataclasses.is_dataclass(value):
            yield from _numbers(value, f"{key}.")
        else:
            values = value if isinstance(value, tuple) else (value,)
            yield from ((key, item) for item in values if isinstance(item, int | float))


def _check_ranges(config: Config, where: str) -> None:
    """Numbers that nothing could be trained with; each error names its key."""
    for key, value in _numbers(config):
        expected, holds = _RULES.get(key, _from(0))
        if not holds(value):
            raise ConfigError(f"{where}.{key}: found {value}, expected {expected}")
    for key, widths in (("net.widths", config.net.widths), ("policy.widths", config.policy.widths)):
        if not widths:
            raise ConfigError(f"{where}.{key}: found [], expected numbers from 1")
    for key, values in (("data.mean", config.data.mean), ("data.std", config.data.std)):
        if len(values) != 3:
            raise ConfigError(f"{where}.{key}: found {list(values)}, expected three numbers")
    least = 4 if config.net.family == "cifar" else 1
    if config.net.size // config.policy.pool < least:
        raise ConfigError(
            f"{where}.policy.pool: found {config.policy.pool}, which leaves "
            f"{config.net.size // config.policy.pool} of {config.net.size} pixels, expected at "
            f"least {least}"
        )
    given = config.curriculum
    if given.method == "gates" and given.warmup_epochs >= given.epochs:
        raise ConfigError(
            f"{where}.curriculum.warmup_epochs: found {given.warmup_epochs}, expected fewer than "
            f"the {given.epochs} of curriculum.epochs"
        )


def read(path: Path) -> Config:
    """Read a TOML configuration; every unknown key or wrong type is an error that names it."""
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except FileNotFoundError:
        raise ConfigError(f"no configuration file {path}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}") from error
    return from_dict(values, str(path))
