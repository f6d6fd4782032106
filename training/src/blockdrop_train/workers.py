"""Several training processes of one thread each, their gradients averaged after every step.

On CPUs that other work shares this is faster than one process of several threads: the processes
meet once a step, not once an operator.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessException, spawn

from .errors import MENDABLE


@dataclass(frozen=True)
class World:
    """This process's place among the workers."""

    rank: int = 0
    size: int = 1

    def average(self, tensors: list[Tensor]) -> None:
        """Replace each float tensor by its mean over the workers."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([t.reshape(-1) for t in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        for tensor, part in zip(
            tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True
        ):
            tensor.copy_(part.view_as(tensor))

    @torch.no_grad()
    def synchronise(self, *nets: nn.Module) -> None:
        """Average gradients and batch norm statistics of the nets."""
        if self.size == 1:
            return
        tensors: list[Tensor] = []
        for net in nets:
            for parameter in net.parameters():
                if parameter.requires_grad:
                    if parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)
                    tensors.append(parameter.grad)
            tensors += [b for b in net.buffers() if b.is_floating_point()]
        self.average(tensors)


def _leave_with(parent: BaseProcess) -> None:
    """End this process as soon as its parent is gone, however it went."""
    wait([parent.sentinel])
    os._exit(1)


def _enter(
    rank: int,
    size: int,
    port: int,
    threads: int,
    work: Callable[[World], None],
    errors: SimpleQueue[Exception],
) -> None:
    parent = parent_process()
    assert parent is not None, "workers are spawned"
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(threads)
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    os.environ["MASTER_PORT"] = str(port)
    # A worker waits as long as the others take: a stopped run goes on when it is continued.
    dist.init_process_group("gloo", rank=rank, world_size=size, timeout=timedelta(days=30))
    try:
        work(World(rank, size))
    except MENDABLE as error:
        errors.put(error)
        sys.exit(1)
    finally:
        dist.destroy_process_group()


def launch(size: int, threads: int, work: Callable[[World], None]) -> None:
    """Run ``work`` in ``size`` processes with ``threads`` threads each.

    ``work`` must be picklable. With one worker it runs in this process. An error that the user can
    mend is raised here as it was there.
    """
    if size == 1:
        torch.set_num_threads(threads)
        work(World())
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    errors: SimpleQueue[Exception] = get_context("spawn").SimpleQueue()
    try:
        spawn(_enter, args=(size, port, threads, work, errors), nprocs=size, join=True)
    except ProcessException:
        if errors.empty():
            raise
        raise errors.get() from None
