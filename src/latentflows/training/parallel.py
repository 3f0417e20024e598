"""Data parallelism over `torchrun` processes: one process per device, gradients averaged by PyTorch's DDP."""

from __future__ import annotations

import atexit
import gc
import inspect
import os
import sys
from dataclasses import dataclass
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from latentflows.core.errors import ConfigurationError

_OF_TORCHRUN = ("RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class World:
    """This process's place among all of them."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """Whether any process raised each flag; all processes get the same answer."""
        if self.size == 1:
            return flags
        votes = torch.tensor([float(flag) for flag in flags], device=self.device)
        dist.all_reduce(votes)
        return tuple(bool(vote > 0) for vote in votes.tolist())

    def total(self, values: Tensor) -> Tensor:
        """Sum over all processes."""
        if self.size > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values

    def gather(self, number: int) -> list[int]:
        """Return the number that each process gives, in their order."""
        numbers = torch.zeros(self.size, dtype=torch.int64)
        numbers[self.rank] = number
        return self.total(numbers).tolist()

    def wait(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()


def is_first() -> bool:
    """Whether this process is the one that writes and prints: the first one, also before `join`."""
    return num_processes() == 1 or int(os.environ.get("RANK", "0")) == 0


def num_processes() -> int:
    """How many processes `torchrun` started; 1 without it.

    Raises:
        ConfigurationError: if the environment says that there are several, but not what `torchrun` says of them.
    """
    given = os.environ.get("WORLD_SIZE", "1")
    missing = [name for name in _OF_TORCHRUN if name not in os.environ]
    if not given.isdecimal() or (given != "1" and missing):
        lacks = f" without {', '.join(missing)}" if missing else ""
        raise ConfigurationError(
            f"The environment has WORLD_SIZE={given}{lacks}, which `torchrun` sets. Start the command by torchrun, or "
            "unset WORLD_SIZE."
        )
    return int(given)


def on_gpu(accelerator: str) -> bool:
    """Whether `accelerator` means a GPU here.

    Raises:
        ConfigurationError: if a GPU was asked for and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if accelerator == "cuda" and not has_gpu:
        raise ConfigurationError('`accelerator` is "cuda", but PyTorch sees no GPU. Use "auto" or "cpu".')
    return has_gpu and accelerator != "cpu"


def join(accelerator: str) -> World:
    """Choose the device, and join the process group if `torchrun` started several processes.

    Raises:
        ConfigurationError: if a GPU was asked for and there is none.
    """
    gpu = on_gpu(accelerator)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if gpu else torch.device("cpu")
    if num_processes() == 1:
        return World(0, 1, device)
    if gpu:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if gpu else "gloo")
        # At the end of the process, not of `fit`: a second group under one launcher would meet the first one's keys.
        atexit.register(_end_group)
    return World(dist.get_rank(), dist.get_world_size(), device)


def _end_group() -> None:
    """End the process group and its threads: one that is left may abort the interpreter's own end."""
    gc.collect()  # DistributedDataParallel refers to itself, and to the group
    if dist.is_initialized():
        dist.destroy_process_group()


def leave(code: int) -> NoReturn:
    """End this process of several at once, everything written.

    The interpreter's own end races with what is left of PyTorch's threads: with torch 2.13 on CPUs about one process in
    fifty aborted there, and took the others with it.
    """
    _end_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wrap(step: nn.Module, world: World, *, some_unused: bool = False) -> nn.Module:
    """Average gradients over processes, where there are several and anything learns.

    Args:
        step: Module whose gradients are averaged.
        world: The processes.
        some_unused: Whether a step may leave parameters without a gradient.
    """
    if world.size == 1:
        return step
    devices = [world.device.index] if world.device.type == "cuda" else None
    ddp = nn.parallel.DistributedDataParallel
    # Masks and permutations never change: sent once, not at every step. Before torch 2.13 that switch sent none at all.
    if "forward_sync_buffers" in inspect.signature(ddp.__init__).parameters:
        return ddp(step, device_ids=devices, forward_sync_buffers=False, find_unused_parameters=some_unused)
    _send_buffers(step)
    return ddp(step, device_ids=devices, broadcast_buffers=False, find_unused_parameters=some_unused)


@torch.no_grad()
def _send_buffers(step: nn.Module) -> None:
    """Give every process the first one's buffers: what a batch has set, permutations that were drawn, masks."""
    for buffer in step.buffers():
        numbers = buffer.contiguous()
        dist.broadcast(numbers, 0)
        buffer.copy_(numbers)
