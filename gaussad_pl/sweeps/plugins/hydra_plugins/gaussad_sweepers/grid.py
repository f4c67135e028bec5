"""The default sweeper: Hydra's own, which names the jobs that failed and fits the machine."""

from __future__ import annotations

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from gaussad_pl.errors import UserError
from gaussad_pl.sweeps import launching, sweep


class GridSweeper(BasicSweeper):
    """Every combination of what the command line lists, as jobs of one sweep.

    Args:
        max_batch_size: jobs that start together.
        params: more settings to combine.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        sweep.refuse_ddp(config)
        self.max_batch_size = self.max_batch_size or launching.batch(config.hydra.launcher)
        self.params = self.params or {}
        self.hydra_context, self.config = hydra_context, config
        self.launcher = launching.launcher(config, hydra_context, task_function)

    def sweep(self, arguments: list[str]) -> Any:
        batches = super().sweep(arguments)
        if not any(batches):
            raise UserError("this sweep has no jobs: a glob(...) on the command line matches nothing")
        sweep.conclude(job.return_value for batch in batches for job in batch)
        return batches
