"""The command line: ``blockdrop-train base|...``."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from pathlib import Path

from . import base, config, workers
from .base import Job
from .checkpoint import CheckpointError
from .config import ConfigError
from .data import DataError

CACHE = Path.home() / ".cache" / "blockdrop"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="blockdrop-train", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--config", type=Path, required=True, help="TOML configuration")
        command.add_argument(
            "--data", type=Path, default=CACHE / "data", help="folder of data sets [%(default)s]"
        )
        command.add_argument(
            "--run", type=Path, help="folder of checkpoints and logs; resumed if it has a run"
        )
        command.add_argument(
            "--workers", type=int, default=1, help="training processes [%(default)s]"
        )
        command.add_argument("--threads", type=int, default=1, help="threads each [%(default)s]")
        command.add_argument(
            "--precision", choices=("bfloat16", "float32"), default="bfloat16",
            help="arithmetic of convolutions in training [%(default)s]",
        )  # fmt: skip
        return command

    add("base", "Train the residual network alone.")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the process's exit status."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = _parser().parse_args(arguments)
    try:
        settings = config.read(options.config)
        job = Job(
            config=settings,
            folder=options.run or CACHE / "runs" / settings.name,
            data_root=options.data,
            bfloat16=options.precision == "bfloat16",
        )
        workers.launch(options.workers, options.threads, functools.partial(base.train, job))
    except (ConfigError, DataError, CheckpointError, ValueError) as error:
        print(f"blockdrop-train: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
