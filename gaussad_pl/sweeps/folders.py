"""Folders of runs and sweeps: a new folder or the one to resume, and the names of job folders."""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path, PurePosixPath

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.types import RunMode
from omegaconf import OmegaConf

log = logging.getLogger(__name__)

NAME_LENGTH = 100  # characters of a folder name; file systems allow 255 bytes
DATASET = "data.root"  # the setting that names the dataset where no category does
VALUE_LENGTH = 40  # characters of a value in it


def sweep_name() -> str | None:
    """Return the folder name of the current sweep, or None for a single run."""
    hydra = HydraConfig.get()
    return Path(hydra.sweep.dir).name if hydra.mode == RunMode.MULTIRUN else None


def folder_of(new: str, resume: bool, overrides: list[str]) -> str:
    """Return the folder of a run or sweep.

    Args:
        new: path of a new folder.
        resume: use the newest sibling of ``new`` that was started with the same overrides, if there is one.
        overrides: command-line overrides.
    """
    if not resume:
        return new
    for folder in sorted(Path(new).parent.glob("*/"), key=lambda path: path.stat().st_mtime, reverse=True):
        if _same(_overrides(folder), overrides):
            return str(folder)
    log.info("nothing to resume in %s: starting afresh", Path(new).parent)
    return new


def _overrides(folder: Path) -> list[str] | None:
    """Return the overrides that the sweep or run in a folder was started with."""
    sweep, run = folder / "multirun.yaml", folder / ".hydra" / "overrides.yaml"
    if sweep.is_file():
        return list(OmegaConf.load(sweep).hydra.overrides.task)
    return list(OmegaConf.load(run)) if run.is_file() else None


def _same(one: list[str] | None, two: list[str]) -> bool:
    def settings(line: list[str]) -> list[str]:
        return sorted(override for override in line if not override.startswith("resume="))

    return one is not None and settings(one) == settings(list(two))


def job_name(overrides: list[str], sweep: list[str], params: dict[str, str] | None) -> str:
    """Name the folder of a job after the settings that vary in its sweep.

    Args:
        overrides: overrides of the job.
        sweep: overrides of the whole sweep.
        params: further varied settings, from the configuration of the sweeper.

    >>> job_name(["seed=0", "model.shrinkage=oas", "folds=5"], ["seed=0,1", "model.shrinkage=oas,none", "folds=5"], {})
    'seed=0,shrinkage=oas'
    >>> job_name(["seed=0", "data.root=parts/cookie"], ["seed=0,1", "data.root=parts/cookie,parts/nut"], {})
    'cookie,seed=0'
    """
    parser = OverridesParser.create()
    whole = [*(f"{key}={value}" for key, value in (params or {}).items()), *sweep]  # the command line takes precedence
    given = {each.key_or_group: each for each in parser.parse_overrides(whole)}
    varies = {key: each.is_sweep_override() for key, each in given.items()}
    settings = {
        each.key_or_group: each.get_value_element_as_str()
        for each in parser.parse_overrides(list(overrides))
        if varies.get(each.key_or_group, False)
    }
    parts, exact = [], True
    if DATASET in settings and (dataset := _dataset(settings[DATASET], given[DATASET])):
        del settings[DATASET]
        parts.append(dataset)
    last = [key.rpartition(".")[2] for key in settings]
    named = []
    for (key, value), short in zip(settings.items(), last, strict=True):
        text = value[1:-1].replace(",", "+") if value.startswith("[") else value
        legal = re.sub(r"[^\w.+-]+", "-", text).strip("-")[-VALUE_LENGTH:]
        exact = exact and legal == text
        named.append(f"{short if last.count(short) == 1 else key.replace('/', '.')}={legal}")
    name = ",".join([*parts, *sorted(named)]) or "run"
    if not exact or len(name) > NAME_LENGTH:  # different values may have been shortened to the same text
        code = hashlib.sha256(repr(sorted(settings.items())).encode()).hexdigest()[:8]
        name = f"{name[: NAME_LENGTH - 9]},{code}"
    return name


def _dataset(value: str, sweep: Override) -> str:
    """Return the last part of the path of a dataset if it is a legal name and no other one of the sweep has it."""
    if not isinstance(sweep.value(), ChoiceSweep):
        return ""
    names = [PurePosixPath(path.strip("'\"")).name for path in sweep.sweep_string_iterator()]
    name = PurePosixPath(value).name
    legal = re.fullmatch(r"[\w.+-]*[\w+-][\w.+-]*", name) is not None and len(name) <= VALUE_LENGTH
    return name if legal and names.count(name) == 1 else ""


def job_name_in(folder: str, overrides: list[str], params: dict[str, str] | None) -> str:
    """Return the folder name of a job of the sweep in ``folder``, see `job_name`."""
    return job_name(overrides, _overrides(Path(folder)) or [], params)
