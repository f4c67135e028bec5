"""Validation of the training configuration: all mistakes are reported at once, before anything is written."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from typing import Any

from hydra._internal.utils import _locate
from hydra.experimental.callback import Callback
from lightning_utilities.core.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from gaussad_pl.augment import VICINAL
from gaussad_pl.cli.groups import NO_CATEGORY
from gaussad_pl.cli.schema import RUN, arguments, model_of
from gaussad_pl.errors import UserError, no_such_setting
from gaussad_pl.renamed import with_new_targets
from gaussad_pl.training.levels import all_levels
from gaussad_pl.training.signals import DISTANCE, SIGNALS

# descriptions of pydantic's error types; {names} are keys of their contexts
EXPECTED = {
    "int_type": "a whole number", "float_type": "a number", "finite_number": "a finite number",
    "bool_type": "true or false", "list_type": "a list", "string_type": "text; put numbers in quotes",
    "literal_error": "{expected}",
    "dict_type": "a group of settings", "model_type": "a group of settings", "mistake": "{text}",
    "greater_than_equal": "{ge} or more", "greater_than": "more than {gt}",
    "less_than_equal": "{le} or less", "less_than": "less than {lt}",
}  # fmt: skip
MISSING = {
    "data.category": NO_CATEGORY,
    "callbacks.forgetting": "callbacks.forgetting is required, as it evaluates the augmented validation: do not remove "
    "it; fine_tune=false skips fine-tuning",
}


def check_settings(config: DictConfig) -> None:
    """Raise a UserError that lists all mistakes in a composed configuration on one line."""
    if found := mistakes(config):
        raise UserError("; ".join(found))


def check_sweep(configs: Iterable[DictConfig]) -> None:
    """Raise a UserError that lists the mistakes shared by all jobs of a sweep; each job reports its other mistakes."""
    shared: list[str] | None = None
    for config in configs:
        own = mistakes(config)
        shared = [each for each in own if shared is None or each in shared]
        if not shared:
            return
    if shared:
        raise UserError("; ".join(shared))


def mistakes(config: DictConfig) -> list[str]:
    """Return one line for each mistake in a composed configuration."""
    raw: Any = OmegaConf.to_container(config, resolve=False)
    values = with_new_targets(_resolved(config))
    known = set(_keys(values))
    messages: dict[str, str] = {}
    for place, node in [([], values), *_targets(values)]:
        for keys, kind, value, context in _errors(node):
            key = _origin(raw, known, [*place, *keys])
            if kind == "missing":
                messages[key] = MISSING.get(key, f"{key} is missing: give it on the command line, as {key}=...")
            elif kind == "extra_forbidden":
                own = {".".join([*place, name]) for name in context.get("names", ())}
                messages[key] = no_such_setting(key, known - {key} | own)
            else:
                text = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
                limits = {name: f"{limit:g}" if isinstance(limit, float) else limit for name, limit in context.items()}
                words = EXPECTED.get(kind, "a value of another type").format(**limits).replace("'", "")
                messages.setdefault(key, f"{key}={text}: expected {words}")
    return list(messages.values()) or list(_contradictions(values))


def _errors(node: dict[str, Any]) -> Iterator[tuple[list[str], str, Any, dict[str, Any]]]:
    """Yield the errors of a node: the keys below it, and pydantic's type, input and context of the error."""
    settings = {key: value for key, value in node.items() if not key.startswith("_")}  # the others belong to Hydra
    model: type[BaseModel] | None = RUN
    if "_target_" in node:
        name = node["_target_"]
        try:
            target = _locate(name)
        except Exception as error:  # the import of a user's module may raise anything
            text = f"a name that can be imported ({' '.join(str(error).split())})"
            yield ["_target_"], "mistake", name, {"text": text}
            return
        model = model_of(target)
        if (names := arguments(target)) is not None:
            yield from (([key], "extra_forbidden", None, {"names": names}) for key in settings.keys() - names)
    try:
        if model is not None:
            model.model_validate(settings)
    except ValidationError as error:
        for each in error.errors():
            keys = [str(part) for part in each["loc"] if part != "[key]"]
            yield keys, each["type"], each["input"], each.get("ctx", {})


def _contradictions(values: dict[str, Any]) -> Iterator[str]:
    """Yield a line for settings that are valid on their own but contradict each other."""

    def get(key: str) -> Any:
        return reduce(lambda node, name: node.get(name) if isinstance(node, dict) else None, key.split("."), values)  # type: ignore[arg-type,return-value]

    rule = get("model.level_rule._target_")
    chooses = get("fine_tune") or get("model.segmentation") or (rule and _locate(rule) is not all_levels)
    if get("data.folds") == 0 and chooses:
        yield (
            "folds=0 holds out no images for validation: set folds=5, or fine_tune=false levels=all "
            "model.segmentation=null"
        )
    if get("fine_tune") and get("trainer.max_epochs") == -1 and get("model.schedule") == "cosine":
        yield (
            "trainer.max_epochs=-1 has no last step, at which model.schedule=cosine ends: set a number of epochs, or "
            "model.schedule=constant"
        )
    signal, names = get("callbacks.forgetting.signal"), get("data.augmentations")
    if get("data.folds") and isinstance(signal, str) and names:
        kind, _, name = signal.partition("/")
        if signal not in (*SIGNALS, DISTANCE) and (kind not in SIGNALS or name not in names):
            first = f"{next(iter(SIGNALS))}/{next(iter(names))}"
            yield (
                f"callbacks.forgetting.signal={signal}: expected one of {', '.join(SIGNALS)}, {DISTANCE}, or all but "
                f"the last followed by an augmentation ({', '.join(names)}), as in {first}"
            )


def _resolved(node: Any) -> Any:
    """Convert a configuration to dicts and lists without missing values; what cannot be resolved yet is kept as is."""
    if OmegaConf.is_list(node):
        return [_resolved(each) for each in node]
    if not OmegaConf.is_dict(node):
        return node
    resolved: dict[str, Any] = {}
    raw: Any = OmegaConf.to_container(node, resolve=False)
    for key in node:
        if key == "hydra":  # settings of Hydra itself
            continue
        try:
            value = node[key]
        except MissingMandatoryValue:
            continue
        except OmegaConfBaseException:  # for example the folder of a run that has not started
            value = raw[key]
        resolved[key] = _resolved(value)
    return resolved


def _keys(node: Any, place: str = "") -> Iterator[str]:
    """Yield the dotted keys of all settings."""
    for key, value in node.items() if isinstance(node, dict) else ():
        yield f"{place}{key}"
        yield from _keys(value, f"{place}{key}.")


def _targets(node: Any, place: Sequence[str] = ()) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Yield the path and the content of each node with a ``_target_``."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        if isinstance(value, dict) and "_target_" in value:
            yield [*place, str(key)], value
        yield from _targets(value, [*place, str(key)])


def _origin(raw: Any, known: set[str], keys: Sequence[str]) -> str:
    """Return the key that the user sets, by following interpolations such as ``seed: ${seed}``."""
    node = raw
    for number, key in enumerate(keys):
        node = node.get(key) if isinstance(node, dict) else None
        if isinstance(node, str) and (match := re.fullmatch(r"\$\{(\w[\w.]*)\}", node)) and match[1] in known:
            return _origin(raw, known, [*match[1].split("."), *keys[number + 1 :]])
    return ".".join(keys)


def unknown_override(error: OmegaConfBaseException) -> str:
    """Format the error for a key on the command line that the composed configuration does not have."""
    key, node = str(error.full_key), error.parent_node
    parent, _, name = key.rpartition(".")
    target = node.get("_target_") if OmegaConf.is_dict(node) else None
    names = arguments(_locate(target)) if target else VICINAL if parent == "augmentation" else ()
    if names is None or name in names:
        return f"{key} is not in the configuration yet: prefix it with +"
    own_names = (f"{parent}.{each}" for each in names)  # some may have no value yet, such as data.root
    line = no_such_setting(key, [*_keys(_resolved(node._get_root())), *own_names])
    own = parent in ("", "callbacks", "logger") and line.endswith("leave it out")
    return f"{line}, or prefix it with + if it is your own" if own else line


class BeforeRun(Callback):
    """Validates the configuration of a single run before Hydra creates its folder."""

    def on_run_start(self, config: DictConfig, **others: Any) -> None:
        """Print each mistake on its own line and exit; Hydra would turn any other exception into a warning."""
        if found := mistakes(config):
            first = getattr(rank_zero_only, "rank", 0) == 0  # only rank 0 reports
            sys.exit("\n".join(f"error: {each}" for each in found) if first else 1)
