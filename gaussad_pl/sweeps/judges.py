"""What a validation signal is judged by: the signals of two jobs compare only where all of it is the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gaussad_pl.errors import UserError

# held-out images, copies of them, random choices; trainer.*: which part of the validation is looked at
JUDGES = (
    "category", "data", "augmentation", "seed", "fold", "folds", "model.segmentation.seed",
    "trainer.limit_val_batches", "trainer.overfit_batches", "trainer.fast_dev_run",
)  # fmt: skip
# of data: what only training and the Gaussian see, and how images are fetched
HARMLESS = (
    "data.batch_size", "data.eval_batch_size", "data.steps_per_epoch", "data.light_copies", "data.moved_copies",
    "data.nuisance", "data.cache", "data.download", "data.url", "data.sha256",
)  # fmt: skip
MAP = "model.segmentation"  # with a map the signal is AUROC + AUPRO, without one the AUROC alone


def judges(config: DictConfig) -> dict[str, Any]:
    """The values of a composed configuration that its validation signal depends on, flat and resolved."""
    found = {MAP: OmegaConf.select(config, MAP) is not None}
    for key in JUDGES:
        found |= dict(_leaves(key, _plain(OmegaConf.select(config, key))))
    return {key: value for key, value in found.items() if not _below(key, HARMLESS)}


def refuse_other_judges(compose: Callable[[list[str]], DictConfig], space: Mapping[str, Sequence[str]]) -> None:
    """Refuse a search that varies what its trials are judged by, in whatever words: ``+``, groups, packages.

    Args:
        compose: the configuration of a job from the overrides that vary.
        space: of each searched key some overrides: all choices, or both ends of a range.

    Raises:
        UserError: with the searched keys and what they would change.
    """
    first = {key: lines[0] for key, lines in space.items()}
    base = judges(compose(list(first.values())))
    found = {}
    for key, lines in space.items():
        changed: set[str] = set()
        for line in dict.fromkeys(lines[1:]):
            other = judges(compose(list({**first, key: line}.values())))
            changed |= {name for name in base.keys() | other.keys() if base.get(name, ...) != other.get(name, ...)}
        if changed:
            found[key] = changed
    if found:
        values = _abridged(set().union(*found.values()))
        raise UserError(
            f"a search cannot vary {', '.join(sorted(found))}, as that changes {values}: over other images, copies or "
            "definitions the validation signals do not compare, and the best seed or fold is luck"
        )


def _plain(node: Any) -> Any:
    """A node as dicts, lists and values, resolved where it can be."""
    if not OmegaConf.is_config(node):
        return node
    try:
        return OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException:  # a value that is missing is the same in all jobs, or its key differs by itself
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
