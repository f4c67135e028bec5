"""Default sweeper: Hydra's grid search, with batches that fit the machine and a report of failed jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from gaussad_pl.errors import UserError
from gaussad_pl.sweeps import launching, sweep


class GridSweeper(BasicSweeper):
    """Run every combination of the values listed on the command line.

    Args:
        max_batch_size: number of jobs launched at once.
        params: further settings to combine.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        sweep.refuse_ddp(config)
        self.max_batch_size = self.max_batch_size or launching.batch(config.hydra.launcher)
        self.params = self.params or {}
        self.hydra_context, self.config = hydra_context, config
        self.launcher = launching.launcher(config, hydra_context, task_function)

    def sweep(self, arguments: list[str]) -> Any:
        from gaussad_pl.cli.settings import check_sweep  # imported late: Hydra imports every plugin at every start

        assert self.hydra_context is not None and self.config is not None
        loader = self.hydra_context.config_loader
        overrides = OverridesParser.create(config_loader=loader).parse_overrides([*self._parse_config(), *arguments])
        (jobs,) = self.split_arguments(overrides, None)
        # a list, so that every job has composed before the folder of the sweep is created
        check_sweep([loader.load_sweep_config(self.config, job) for job in jobs])
        batches = super().sweep(arguments)
        if not any(batches):
            raise UserError("this sweep has no jobs: glob(...) on the command line matches nothing; check the pattern")
        sweep.conclude(job.return_value for batch in batches for job in batch)
        return batches

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Do nothing: all jobs were composed before the folder of the sweep was created."""
