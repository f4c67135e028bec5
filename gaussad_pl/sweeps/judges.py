"""Settings that define the validation signal: signals of two jobs are comparable only if all of these are equal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gaussad_pl.errors import UserError

# held-out images, their copies, random choices; trainer.*: the part of the validation that is used
JUDGES = (
    "category", "data", "augmentation", "seed", "fold", "folds", "model.segmentation.seed",
    "trainer.limit_val_batches", "trainer.overfit_batches", "trainer.fast_dev_run",
)  # fmt: skip
# settings in data that affect only training, the Gaussians or how images are loaded
HARMLESS = (
    "data.batch_size", "data.eval_batch_size", "data.steps_per_epoch", "data.light_copies", "data.moved_copies",
    "data.nuisance", "data.cache", "data.download", "data.url", "data.sha256",
)  # fmt: skip
MAP = "model.segmentation"  # with a map the signal is AUROC + AUPRO, without one it is AUROC


def judges(config: DictConfig) -> dict[str, Any]:
    """Return the settings that define the validation signal of a composed configuration, flat and resolved."""
    values = {MAP: OmegaConf.select(config, MAP) is not None}
    for key in JUDGES:
        values |= dict(_leaves(key, _plain(OmegaConf.select(config, key))))
    return {key: value for key, value in values.items() if not _below(key, HARMLESS)}


def refuse_other_judges(compose: Callable[[list[str]], DictConfig], space: Mapping[str, Sequence[str]]) -> None:
    """Refuse a search that varies the definition of its validation signal.

    Composed configurations are compared, so the check covers every syntax of overrides: ``+``, groups, packages.

    Args:
        compose: composes the configuration of a job from the varied overrides.
        space: overrides of each searched key: all choices, or both ends of a range.

    Raises:
        UserError: names the searched keys and the settings they would change.
    """
    first = {key: lines[0] for key, lines in space.items()}
    base = judges(compose(list(first.values())))
    refused = {}
    for key, lines in space.items():
        changed: set[str] = set()
        for line in dict.fromkeys(lines[1:]):
            other = judges(compose(list({**first, key: line}.values())))
            changed |= {name for name in base.keys() | other.keys() if base.get(name, ...) != other.get(name, ...)}
        if changed:
            refused[key] = changed
    if refused:
        values = _abridged(set().union(*refused.values()))
        raise UserError(
            f"a search cannot vary {', '.join(sorted(refused))}, which changes {values}: validation signals on other "
            "images, copies or definitions are not comparable, and the best seed or fold is luck; leave it out"
        )


def _plain(node: Any) -> Any:
    """Return a node as dicts, lists and values, resolved if possible."""
    if not OmegaConf.is_config(node):
        return node
    try:
        return OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException:  # a missing value is missing in all jobs, or the unresolved values differ
        return OmegaConf.to_container(node, resolve=False)


def _leaves(key: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    else:
        yield key, value


def _below(key: str, tops: Iterable[str]) -> bool:
    return any(key == top or key.startswith(f"{top}.") for top in tops)


def _abridged(names: Iterable[str], most: int = 6) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
