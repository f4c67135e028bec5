"""The share of the machine that each job of a sweep gets: its cores and its GPU."""

from __future__ import annotations

import logging
import os

from omegaconf import DictConfig, OmegaConf

log = logging.getLogger(__name__)

GPUS = "GAUSSAD_GPUS"  # submitit hides from a local job which GPUs its parent saw


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus_here() -> int:
    import torch  # here: commands that only read files start without it

    return torch.cuda.device_count()


def gpus_per_job() -> int:
    return min(1, gpus_here())


def cores_per_job() -> int:
    """One job a GPU; without GPUs at least two jobs, up to four cores each: small networks gain little from more."""
    gpus = gpus_here()
    return max(1, cores() // gpus if gpus else min(4, cores() // 2))


def share(launcher: DictConfig) -> int | None:
    """Cores of one job; None for the serial launcher, whose job has them all."""
    found = OmegaConf.select(launcher, "ray.remote.num_cpus") or OmegaConf.select(launcher, "cpus_per_task")
    return None if found is None else max(1, int(found))


def jobs_at_once(launcher: DictConfig) -> int:
    """How many jobs of their share this machine holds."""
    wanted = share(launcher)
    if wanted is None:
        return 1
    gpus = gpus_here() if OmegaConf.select(launcher, "ray.remote.num_gpus") else 0
    gpus = gpus or OmegaConf.select(launcher, "gpus_per_node") or 0
    return max(1, min(cores() // wanted, gpus or cores()))


def take_share(launcher: DictConfig, number: int) -> None:
    """Keep this process to the threads and the GPU of job ``number``; Ray and SLURM have chosen the GPU already."""
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
    return str(launcher.get("_target_", "")).endswith("submitit_launcher.LocalLauncher")
