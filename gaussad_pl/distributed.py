"""Work shared by the processes of one run: sharding, gathering and reducing.

Without a process group there is a single process, which owns all the work, and nothing is communicated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def world() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process; only rank 0 writes and prints."""
    return dist.get_rank() if world() > 1 else 0


def shard(items: Sequence[T]) -> Sequence[T]:
    """Return this process's part of ``items``: r, r + w, ... for rank r of w.

    Unlike with `DistributedSampler`, no item is repeated or dropped.
    """
    return items[rank() :: world()]


def gather(value: T) -> list[T]:
    """Gather the value of every process, in rank order. Tensors must be on the CPU."""
    if world() == 1:
        return [value]
    values: list[T] = [value] * world()
    dist.all_gather_object(values, value)
    return values


def gather_rows(rows: Tensor) -> Tensor:
    """Gather the rows of every process's `shard` into ``(N, ...)``, on the CPU and in the original order."""
    parts = gather(rows.cpu())
    gathered = parts[0].new_empty(sum(map(len, parts)), *parts[0].shape[1:])
    for first, part in enumerate(parts):
        if len(part):
            gathered[first :: len(parts)] = part
    return gathered


def all_reduce_sum(x: Tensor) -> Tensor:
    """Return the sum of ``x`` over all processes, bit for bit the same in each. May overwrite ``x``."""
    if world() == 1:
        return x
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else x.device
    total = x.to(device)
    dist.all_reduce(total)
    return total.to(x.device)


def destroy_group() -> None:
    """Destroy the process group. From then on, `shard` returns all items in every process."""
    if world() > 1:
        dist.destroy_process_group()
