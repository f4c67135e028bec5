"""The default sweeper: Hydra's own, which names the jobs that failed and fits the machine."""

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
        from gaussad_pl.cli.settings import check_sweep  # here: Hydra imports every plugin whenever it starts

        assert self.hydra_context is not None and self.config is not None
        loader = self.hydra_context.config_loader
        overrides = OverridesParser.create(config_loader=loader).parse_overrides([*self._parse_config(), *arguments])
        (jobs,) = self.split_arguments(overrides, None)
        # a list: every job must compose before the folder of the sweep is made
        check_sweep([loader.load_sweep_config(self.config, job) for job in jobs])
        batches = super().sweep(arguments)
        if not any(batches):
            raise UserError("this sweep has no jobs: a glob(...) on the command line matches nothing")
        sweep.conclude(job.return_value for batch in batches for job in batch)
        return batches

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """All jobs have been composed before their folder was made."""
