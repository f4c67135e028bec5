"""Share of the machine that each job of a sweep gets: CPU cores and a GPU."""

from __future__ import annotations

import logging
import os

from omegaconf import DictConfig, OmegaConf

log = logging.getLogger(__name__)

GPUS = "GAUSSAD_GPUS"  # passes on the GPUs visible to the parent process, which submitit hides from a local job


def cores() -> int:
    """Return the number of CPU cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus_here() -> int:
    """Return the number of GPUs available to this process."""
    import torch  # imported late: commands that only read files do not need it

    return torch.cuda.device_count()


def gpus_per_job() -> int:
    """Return the number of GPUs of one job: 1 if there are any."""
    return min(1, gpus_here())


def cores_per_job() -> int:
    """Return the cores of one job: an equal share per GPU; without GPUs half the cores, at most four.

    Small networks gain little from more than four cores.
    """
    gpus = gpus_here()
    return max(1, cores() // gpus if gpus else min(4, cores() // 2))


def share(launcher: DictConfig) -> int | None:
    """Return the cores of one job; None for the serial launcher, whose jobs use all cores."""
    count = OmegaConf.select(launcher, "ray.remote.num_cpus") or OmegaConf.select(launcher, "cpus_per_task")
    return None if count is None else max(1, int(count))


def jobs_at_once(launcher: DictConfig) -> int:
    """Return how many jobs run side by side on this machine, each with its share of cores and GPUs."""
    cores_each = share(launcher)
    if cores_each is None:
        return 1
    gpus = gpus_here() if OmegaConf.select(launcher, "ray.remote.num_gpus") else 0
    gpus = gpus or OmegaConf.select(launcher, "gpus_per_node") or 0
    return max(1, min(cores() // cores_each, gpus or cores()))


def take_share(launcher: DictConfig, number: int) -> None:
    """Restrict this process to the threads and the GPU of job ``number``; Ray and SLURM assign the GPU themselves."""
    threads = share(launcher)
    if threads is None:
        return
    import cv2
    import torch

    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    if is_local_submitit(launcher) and launcher.gpus_per_node:
        visible = os.environ.get(GPUS, "") or ",".join(map(str, range(launcher.gpus_per_node)))
        gpus = visible.split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    log.info("threads: %d, GPU: %s", threads, os.environ.get("CUDA_VISIBLE_DEVICES", ""))


def is_local_submitit(launcher: DictConfig) -> bool:
    """Return whether this is submitit's launcher for the local machine."""
    return str(launcher.get("_target_", "")).endswith("submitit_launcher.LocalLauncher")
