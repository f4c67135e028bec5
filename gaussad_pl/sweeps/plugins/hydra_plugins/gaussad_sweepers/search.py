"""Optuna search for the settings with the best validation signal."""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from gaussad_pl.errors import UserError
from gaussad_pl.files import unwritable, write_text
from gaussad_pl.sweeps import launching, sweep
from gaussad_pl.sweeps.judges import refuse_other_judges
from gaussad_pl.sweeps.share import jobs_at_once

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution

log = logging.getLogger(__name__)

OBJECTIVE = "validation_signal"


class OptunaSweeper(Sweeper):
    """Maximise the validation signal by Optuna's TPE sampler, and write all trials to search.yaml, the best first.

    Settings that change the definition of the signal are refused, see `gaussad_pl.sweeps.judges`. The search is
    determined by its seed: repeated with ``resume=true``, it proposes the same trials and skips finished jobs.

    Args:
        maximise: must be ``validation_signal``.
        n_trials: number of trials.
        seed: seed of the sampler.
        max_batch_size: number of trials launched at once.
        params: ranges or choices by key, in the syntax of the command line.
    """

    def __init__(
        self,
        maximise: str = OBJECTIVE,
        n_trials: int = 20,
        seed: int = 0,
        max_batch_size: int | None = None,
        params: dict[str, str] | None = None,
    ) -> None:
        self.maximise = maximise
        self.n_trials = n_trials
        self.seed = seed
        self.max_batch_size = max_batch_size
        self.params = params or {}
        self.hydra_context: HydraContext
        self.config: DictConfig
        self.launcher: Launcher

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        if importlib.util.find_spec("optuna") is None:
            raise UserError("hydra/sweeper=optuna is an optional extra: pip install 'gaussad_pl[optuna]'")
        if self.maximise != OBJECTIVE:
            raise UserError(
                f"hydra.sweeper.maximise={self.maximise}: expected {OBJECTIVE}; choosing settings by test metrics "
                "makes their test results worthless"
            )
        if OmegaConf.select(config, "folds") == 0:
            raise UserError("folds=0 holds out no images for the validation that a search needs: set folds=5")
        sweep.refuse_ddp(config)
        self.hydra_context, self.config = hydra_context, config
        self.batch = self.max_batch_size or jobs_at_once(config.hydra.launcher)
        self.launcher = launching.launcher(config, hydra_context, task_function)

    def sweep(self, arguments: list[str]) -> None:
        import optuna

        from gaussad_pl.cli.settings import check_sweep  # imported late: Hydra imports every plugin at every start

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        lines = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        loader = self.hydra_context.config_loader
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(lines)
        overrides = {_name(each): each for each in parsed}  # later ones, from the command line, win
        space = {key: distribution(each) for key, each in overrides.items() if each.is_sweep_override()}
        if not space:
            raise UserError("nothing to search: set hydra.sweeper.params, or give a=interval(0,1) on the command line")
        fixed = [str(each.input_line) for key, each in overrides.items() if key not in space]
        refuse_other_judges(
            lambda varied: loader.load_sweep_config(self.config, [*fixed, *varied]),
            {key: [_line(overrides[key], value) for value in _corners(each)] for key, each in space.items()},
        )
        ends = [[_line(overrides[key], _corners(each)[end]) for key, each in space.items()] for end in (0, -1)]
        check_sweep(loader.load_sweep_config(self.config, [*fixed, *varied]) for varied in ends)
        folder = Path(self.config.hydra.sweep.dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(folder, error) from error
        write_text(folder / "multirun.yaml", OmegaConf.to_yaml(self.config))
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=self.seed))
        results: list[object] = []
        while len(results) < self.n_trials:
            trials = [study.ask(space) for _ in range(min(self.batch, self.n_trials - len(results)))]
            chosen = [settings(trial, overrides) for trial in trials]
            jobs = [[*fixed, *each] for each in chosen]
            self.validate_batch_is_legal(jobs)
            returned = [job.return_value for job in self.launcher.launch(jobs, len(results))]
            for trial, value, line in zip(trials, returned, chosen, strict=True):
                trial.set_user_attr("overrides", line)
                _tell(study, trial, value)
            results += returned
        self._report(study, folder)
        sweep.conclude(results)

    def _report(self, study: Study, folder: Path) -> None:
        best = sorted((trial for trial in study.trials if trial.value is not None), key=lambda trial: -trial.values[0])
        trials = [{"overrides": trial.user_attrs["overrides"], OBJECTIVE: trial.value} for trial in best]
        failed = [trial.user_attrs["overrides"] for trial in study.trials if trial.value is None]
        content = {"maximised": OBJECTIVE, "trials": trials, "failed": failed}
        write_text(folder / "search.yaml", OmegaConf.to_yaml(OmegaConf.create(content)))
        if best:
            log.info("best %s %.4f: %s", OBJECTIVE, best[0].values[0], " ".join(best[0].user_attrs["overrides"]))
        else:
            log.warning("no trial has a %s: see error.txt in the job folders", OBJECTIVE)


def distribution(override: Override) -> BaseDistribution:
    """Convert a sweep override: ``interval(a, b)``, also in ``tag(log, ...)``, to a range, any other to a choice."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if isinstance(value, IntervalSweep):
        low, high, log_scale = value.start, value.end, "log" in value.tags
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log_scale)
        assert low is not None and high is not None
        return FloatDistribution(low, high, log=log_scale)
    return CategoricalDistribution(tuple(override.sweep_string_iterator()))


def settings(trial: Trial, overrides: dict[str, Override]) -> Sequence[str]:
    """Return the settings of a trial as overrides."""
    return [_line(overrides[key], value) for key, value in trial.params.items()]


def _name(override: Override) -> str:
    """Return the key that an override sets, without ``+`` and ``++``, so that a later override can replace it."""
    return f"{override.key_or_group}@{override.package}" if override.package else override.key_or_group


def _line(override: Override, value: Any) -> str:
    """Return an override with one value, floats to four digits, which keeps folder names short."""
    return f"{override.get_key_element()}={f'{value:.4g}' if isinstance(value, float) else value}"


def _corners(space: BaseDistribution) -> Sequence[Any]:
    """Return all choices, or both ends of a range."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(space, CategoricalDistribution):
        return space.choices
    assert isinstance(space, FloatDistribution | IntDistribution)
    return (space.low, space.high)


def _tell(study: Study, trial: Trial, value: object) -> None:
    """Report the signal of a trial to Optuna; a trial without a finite signal counts as failed."""
    from optuna.trial import TrialState

    if isinstance(value, float) and math.isfinite(value):
        study.tell(trial, value)
    else:
        study.tell(trial, state=TrialState.FAIL)
