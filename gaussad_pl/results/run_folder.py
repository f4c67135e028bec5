"""The run folder: used by one process at a time, and resumed only with the same settings and images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.errors import InstantiationException
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from gaussad_pl.data.inventory import difference
from gaussad_pl.errors import UserError
from gaussad_pl.files import write_json, write_text
from gaussad_pl.renamed import migrated

OPENED = {".hydra", ".lock", "train.log"}  # made by Hydra and the lock
STARTED = OPENED | {"config.yaml", "images.json", "csv", "wandb", "tensorboard"}  # written before the first result


@contextmanager
def starting(folder: Path) -> Iterator[None]:
    """Remove the run folder, and empty parents, if a user's mistake ends the run before its first result.

    A folder that had other files before stays. Enter it with the folder `locked`, so that the folder of another process
    is never removed.
    """
    before = _names(folder) - OPENED
    try:
        yield
    except (UserError, InstantiationException):
        if not (before or rank_zero_only.rank) and _names(folder) <= STARTED:  # type: ignore[attr-defined]
            shutil.rmtree(folder, ignore_errors=True)
            for parent in folder.absolute().parents:
                if parent == Path.cwd() or Path.cwd() not in parent.parents or any(parent.iterdir()):
                    break
                parent.rmdir()
        raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a run folder against other processes, except the other ranks of the same run.

    Raises:
        UserError: another process holds the lock.
    """
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        yield
        return
    lock = FileLock(folder / ".lock", is_singleton=True)  # reentrant: a job of a sweep already holds it
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{folder} is in use by another process: wait for it, or choose another folder") from error
    try:
        yield
    finally:
        lock.release()


def open_folder(folder: Path, config: DictConfig) -> dict[str, Any]:
    """Write the resolved configuration to the run folder, or check it against the stored one, and return it.

    Raises:
        UserError: the folder already holds a run and ``resume`` is not set, or the settings differ.
    """
    settings: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    resume = settings.pop("resume")
    stored = folder / "config.yaml"
    if rank_zero_only.rank:  # type: ignore[attr-defined]  # rank 0 manages the folder
        return settings
    if not stored.is_file():
        write_text(stored, OmegaConf.to_yaml(OmegaConf.create(settings)))
        return settings
    if not resume:
        raise UserError(f"{folder} already holds a run: continue it with resume=true or choose another folder")
    if _load(stored) != OmegaConf.create(settings):
        raise UserError(
            f"{folder} holds a run with other settings ({stored}): use the same settings or choose another folder"
        )
    return settings


def finished(folder: Path) -> dict[str, Any] | None:
    """Return the metrics of the finished run in a folder, or None if there is none.

    Raises:
        UserError: metrics.json is damaged.
    """
    path = folder / "metrics.json"
    if not path.is_file():
        return None
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        metrics["validation_signal"]  # written last
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): delete it to repeat the run") from error
    return dict(metrics)


def same_images(folder: Path, images: dict[str, int]) -> None:
    """Record the images of a run with their sizes in bytes, or check them against those recorded at its start.

    Raises:
        UserError: the images differ, or the record is damaged.
    """
    path = folder / "images.json"
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        return
    if not path.is_file():
        write_json(path, images)
        return
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")).items())
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): choose another folder") from error
    changed = difference(before, images)
    if changed:
        raise UserError(
            f"{folder} holds a run on other images: {changed}; restore them or choose another folder for a new run"
        )


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _load(path: Path) -> Any:
    try:
        return migrated(OmegaConf.load(path))  # type: ignore[arg-type]
    except Exception as error:  # the errors of yaml, omegaconf and the file system have no common base class
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is damaged ({reason}): choose another folder") from error
