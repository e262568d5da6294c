"""Data parallelism under ``torchrun``; without it, one process."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

# Imported while a group exists, as DDP does otherwise, it keeps that group in default arguments.
import torch.distributed.nn
from torch import Tensor, nn

from tbn_tvm.errors import UsageError


@dataclass(frozen=True)
class Processes:
    """This process among those of a run.

    Attributes
    ----------
    rank, count : int
        Number of this process, from 0, and how many there are.
    device : torch.device
        Where this one computes.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes files and shows progress."""
        return self.rank == 0

    def share(self, indices: Tensor) -> Tensor:
        """This process's part of a batch."""
        return indices.tensor_split(self.count)[self.rank]

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over processes."""
        if self.count == 1:
            return model
        return nn.parallel.DistributedDataParallel(model)

    def add_up(self, values: Tensor) -> Tensor:
        """The sum over processes, in place."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def agree_to(self, asks: Callable[[], bool] | None) -> bool:
        """Whether any process answers yes; None is nobody's yes, and costs nothing."""
        if asks is None:
            return False
        if self.count == 1:
            return asks()
        votes = torch.tensor(float(asks()), device=self.device)
        return bool(self.add_up(votes) > 0)

    def copy_buffers(self, model: nn.Module) -> None:
        """Give all processes the first one's running statistics."""
        if self.count > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            dist.barrier()


@contextmanager
def processes(device: str = "auto") -> Iterator[Processes]:
    """Join the run that ``torchrun`` started, if it did.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda"}
        ``auto`` takes a GPU where there is one.

    Raises
    ------
    UsageError
        Where a GPU is asked for and there is none.
    """
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise UsageError("--device cuda: PyTorch finds no GPU here; use --device cpu")
    uses_cuda = cuda and device != "cpu"
    count, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    index = int(os.environ.get("LOCAL_RANK", 0))
    chosen = torch.device("cuda", index) if uses_cuda else torch.device("cpu")
    if uses_cuda:
        torch.cuda.set_device(chosen)
    if count == 1:
        yield Processes(0, 1, chosen)
        return
    dist.init_process_group("nccl" if uses_cuda else "gloo")
    try:
        yield Processes(rank, count, chosen)
    finally:
        # A group ends its threads when its last user is gone, and DDP is part of a cycle. A thread
        # that is left may need the interpreter while that shuts down, which aborts the process.
        gc.collect()
        dist.destroy_process_group()
