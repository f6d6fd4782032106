"""Checkpoints written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from .errors import CheckpointError


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint; a kill at any moment leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint written by ``save``."""
    if not path.exists():
        raise CheckpointError(f"no checkpoint {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        kind = type(error).__name__
        raise CheckpointError(f"{path} is damaged, or no checkpoint ({kind}: {error})") from error
    if not isinstance(content, dict) or "step" not in content:
        raise CheckpointError(f"{path} is not a checkpoint of blockdrop-train")
    return content


def title(path: Path) -> str:
    """The name in provenance: ``RUN/base.pt`` of a checkpoint, ``NAME/VERSION`` of a bundle."""
    whole = path.resolve()
    return f"{whole.parent.name}/{whole.name}"
