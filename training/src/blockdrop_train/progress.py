"""What a run shows and leaves: a progress bar, TensorBoard curves, a line of JSON an epoch."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


class Progress:
    """The log of one run; silent on every worker but the first."""

    def __init__(
        self, folder: Path, title: str, total: int, done: int, batch: int, on: bool
    ) -> None:
        self.on = on
        self.batch = batch
        self.total = total
        self.step = done
        self.began = time.monotonic()
        self.first = done
        self.file = folder / "log.jsonl"
        if on:
            folder.mkdir(parents=True, exist_ok=True)
            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done)
            self.bar = tqdm(
                total=total, initial=done, desc=title, unit="step", mininterval=5, smoothing=0.05
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.on:
            self.bar.close()
            self.writer.close()

    def tick(self, **values: float) -> None:
        """One step done; values go to the curves and beside the bar."""
        self.step += 1
        if not self.on:
            return
        self.bar.update()
        if self.step % 20 == 0:
            for name, value in values.items():
                self.writer.add_scalar(f"train/{name}", value, self.step)
            rate = (self.step - self.first) * self.batch / (time.monotonic() - self.began)
            self.writer.add_scalar("train/images_per_second", rate, self.step)
            self.bar.set_postfix(
                {"img/s": f"{rate:.0f}"} | {k: f"{v:.3g}" for k, v in values.items()},
                refresh=False,
            )

    def record(self, values: dict[str, Any]) -> None:
        """A line of the run's ``log.jsonl``; numbers go to TensorBoard too."""
        if not self.on:
            return
        values = {"step": self.step, "seconds": round(time.monotonic() - self.began, 1)} | values
        with self.file.open("a") as file:
            file.write(json.dumps(values) + "\n")
        for name, value in values.items():
            each = value if isinstance(value, dict) else {"": value}
            for part, number in each.items():
                if isinstance(number, int | float):
                    tag = f"epoch/{name}/{part}".rstrip("/")
                    self.writer.add_scalar(tag, number, self.step)
        self.bar.write(json.dumps(values))
