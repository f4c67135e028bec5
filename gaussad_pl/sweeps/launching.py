"""Launching the jobs of a sweep: the choice of the launcher, batch sizes, and retries of jobs whose process died."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Sequence
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from gaussad_pl.errors import UserError
from gaussad_pl.sweeps.share import GPUS, is_local_submitit, jobs_at_once
from gaussad_pl.sweeps.sweep import MAX_DEATHS

log = logging.getLogger(__name__)


def launcher(config: DictConfig, hydra_context: HydraContext, task_function: TaskFunction) -> Launcher:
    """Instantiate the configured launcher.

    Raises:
        UserError: the launcher is not installed, or SLURM is not available.
    """
    choice = str(config.hydra.runtime.choices["hydra/launcher"])
    package = str(config.hydra.launcher._target_).rpartition(".")[0]
    if _missing(package):
        extra = choice.partition("_")[0]
        raise UserError(f"hydra/launcher={choice} is an optional extra: pip install 'gaussad_pl[{extra}]'")
    if choice == "submitit_slurm" and shutil.which("srun") is None:
        raise UserError("hydra/launcher=submitit_slurm: srun not found; start the sweep on a login node of the cluster")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry unless the user enables it
    instance = Plugins.instance().instantiate_launcher(
        config=config, hydra_context=hydra_context, task_function=task_function
    )
    if is_local_submitit(config.hydra.launcher):
        os.environ[GPUS] = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        return Persistent(instance)
    return instance


def batch(launcher: DictConfig) -> int | None:
    """Return how many jobs to launch at once; None for all, if the launcher schedules them itself."""
    return jobs_at_once(launcher) if is_local_submitit(launcher) else None


class Persistent(Launcher):
    """Launcher that retries jobs whose process died; finished jobs return their result again, see `sweep.attempt`."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher

    def setup(self, **settings: Any) -> None:
        self.launcher.setup(**settings)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        for _ in range(MAX_DEATHS):
            try:
                return self.launcher.launch(job_overrides, initial_job_idx)
            except Exception as error:
                if not type(error).__module__.startswith("submitit."):
                    raise
                log.warning("the process of a job died, restarting it: %s", str(error).splitlines()[0])
        return self.launcher.launch(job_overrides, initial_job_idx)


def _missing(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is None
    except ModuleNotFoundError:  # the parent package is missing, too
        return True
