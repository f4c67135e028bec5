"""Processes that share one run: which part of the work is whose, and how what each has found becomes one.

Without a process group there is one process, and everything here leaves things as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, 0 for the one that writes and prints."""
    return dist.get_rank() if world() > 1 else 0


def shard(items: Sequence[T]) -> Sequence[T]:
    """What this process does of ``items``: process r of w takes items r, r + w, ...; none is repeated or left out."""
    return items[rank() :: world()]


def gather(value: T) -> list[T]:
    """The value of each process, in their order; tensors are to be on the CPU."""
    if world() == 1:
        return [value]
    found: list[T] = [value] * world()
    dist.all_gather_object(found, value)
    return found


def gather_rows(rows: Tensor) -> Tensor:
    """All rows ``(N, ...)``, on the CPU and in their order, where each process has those of its `shard`."""
    parts = gather(rows.cpu())
    whole = parts[0].new_empty(sum(map(len, parts)), *parts[0].shape[1:])
    for first, part in enumerate(parts):
        if len(part):
            whole[first :: len(parts)] = part
    return whole


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum over the processes, the same bits in each; overwrites ``x`` where it can."""
    if world() == 1:
        return x
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else x.device
    total = x.to(device)
    dist.all_reduce(total)
    return total.to(x.device)


def destroy_group() -> None:
    """End the group: from here on each process has everything for its `shard`."""
    if world() > 1:
        dist.destroy_process_group()
