"""Where a run or a sweep goes: a new folder, the one it goes on in, and the names of the jobs inside."""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

log = logging.getLogger(__name__)

NAME_LENGTH = 100  # of a folder; file systems take 255 bytes
VALUE_LENGTH = 40


def sweep_name() -> str | None:
    """Name of the folder of the sweep that a job belongs to; None for a single run."""
    hydra = HydraConfig.get()
    return Path(hydra.sweep.dir).name if hydra.mode == RunMode.MULTIRUN else None


def folder_of(new: str, resume: bool, overrides: list[str]) -> str:
    """Folder of a run or sweep: with ``resume`` the newest one beside ``new`` that the same line began."""
    if not resume:
        return new
    for folder in sorted(Path(new).parent.glob("*/"), key=lambda path: path.stat().st_mtime, reverse=True):
        if _same(_overrides(folder), overrides):
            return str(folder)
    log.info("nothing to resume in %s: a new start", Path(new).parent)
    return new


def _overrides(folder: Path) -> list[str] | None:
    """The command line that began the sweep or run in a folder."""
    sweep, run = folder / "multirun.yaml", folder / ".hydra" / "overrides.yaml"
    if sweep.is_file():
        return list(OmegaConf.load(sweep).hydra.overrides.task)
    return list(OmegaConf.load(run)) if run.is_file() else None


def _same(one: list[str] | None, two: list[str]) -> bool:
    def settings(line: list[str]) -> list[str]:
        return sorted(override for override in line if not override.startswith("resume="))

    return one is not None and settings(one) == settings(list(two))


def job_name(overrides: list[str], sweep: list[str], params: dict[str, str] | None) -> str:
    """Folder of a job by what varies in its sweep.

    Args:
        overrides: of the job, e.g. ``["+category=screw", "model.shrinkage=oas", "folds=5"]``.
        sweep: of the whole sweep, e.g. ``["+category=screw,pill", "model.shrinkage=oas,none", "folds=5"]``.
        params: more that varies, from the configuration of the sweeper.

    Returns:
        e.g. ``"category=screw,shrinkage=oas"``.
    """
    parser = OverridesParser.create()
    whole = [*(f"{key}={value}" for key, value in (params or {}).items()), *sweep]  # the command line has the last word
    varies = {each.key_or_group: each.is_sweep_override() for each in parser.parse_overrides(whole)}
    settings = {
        each.key_or_group: each.get_value_element_as_str()
        for each in parser.parse_overrides(list(overrides))
        if varies.get(each.key_or_group, False)
    }
    last = [key.rpartition(".")[2] for key in settings]
    parts, exact = [], True
    for (key, value), short in zip(settings.items(), last, strict=True):
        text = value[1:-1].replace(",", "+") if value.startswith("[") else value
        legal = re.sub(r"[^\w.+-]+", "-", text).strip("-")[-VALUE_LENGTH:]
        exact = exact and legal == text
        parts.append(f"{short if last.count(short) == 1 else key.replace('/', '.')}={legal}")
    name = ",".join(sorted(parts)) or "run"
    if not exact or len(name) > NAME_LENGTH:  # other values may look the same
        code = hashlib.sha256(repr(sorted(settings.items())).encode()).hexdigest()[:8]
        name = f"{name[: NAME_LENGTH - 9]}-{code}"
    return name


def job_name_in(folder: str, overrides: list[str], params: dict[str, str] | None) -> str:
    """The name of a job of the sweep in ``folder``."""
    return job_name(overrides, _overrides(Path(folder)) or [], params)
