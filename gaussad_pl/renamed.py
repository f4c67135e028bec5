"""New names of the classes that configurations of earlier versions refer to, so that these keep working."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

TARGETS = {
    "gaussad_pl.module.GaussianAD": "gaussad_pl.training.module.GaussianAD",
    "gaussad_pl.forgetting.ForgettingStop": "gaussad_pl.training.forgetting.ForgettingStop",
    "gaussad_pl.averaging.AverageWeights": "gaussad_pl.training.averaging.AverageWeights",
    "gaussad_pl.dashboard.DashboardLogger": "gaussad_pl.results.dashboard.DashboardLogger",
    **{f"gaussad_pl.levels.{rule}": f"gaussad_pl.training.levels.{rule}" for rule in ("all_levels", "top_k", "excess")},
    **{
        f"gaussad_pl.objectives.{name}": f"gaussad_pl.training.objectives.{name}" for name in ("mahalanobis", "squared")
    },
}


def with_new_targets(settings: Any) -> Any:
    """Copy nested settings, and replace each ``_target_`` that has moved by its new name.

    >>> with_new_targets({"model": {"_target_": "gaussad_pl.module.GaussianAD", "refit": True}})
    {'model': {'_target_': 'gaussad_pl.training.module.GaussianAD', 'refit': True}}
    """
    if isinstance(settings, dict):
        return {
            key: TARGETS.get(value, value) if key == "_target_" else with_new_targets(value)
            for key, value in settings.items()
        }
    return [with_new_targets(value) for value in settings] if isinstance(settings, list) else settings


def migrated(config: DictConfig) -> DictConfig:
    """Return the configuration with the new names; interpolations are kept."""
    settings = OmegaConf.to_container(config, resolve=False)
    renamed = with_new_targets(settings)
    return config if renamed == settings else OmegaConf.create(renamed)
