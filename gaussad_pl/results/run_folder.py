"""The folder of a run: one process at a time, with the settings and the images that the run was begun with."""

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

STARTED = {".hydra", ".lock", "config.yaml", "images.json"}  # what a run has left before its first result


@contextmanager
def starting(folder: Path) -> Iterator[None]:
    """Remove the folder of a run that a user's mistake ends before its first result, and empty folders above it.

    To be entered with the folder `locked`: it might be another process's.
    """
    resumed = (folder / "config.yaml").exists()
    try:
        yield
    except (UserError, InstantiationException):
        left = {path.name for path in folder.iterdir() if path.suffix != ".log"}
        if not (resumed or rank_zero_only.rank) and left <= STARTED:  # type: ignore[attr-defined]
            shutil.rmtree(folder, ignore_errors=True)
            for parent in folder.absolute().parents:
                if parent == Path.cwd() or Path.cwd() not in parent.parents or any(parent.iterdir()):
                    break
                parent.rmdir()
        raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run folder; the other ranks of the same run come in.

    Raises:
        UserError: another process works there.
    """
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        yield
        return
    lock = FileLock(folder / ".lock", is_singleton=True)  # one object a process: a job of a sweep holds it already
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{folder} is in use by another process: wait for it, or choose another folder") from error
    try:
        yield
    finally:
        lock.release()


def open_folder(folder: Path, config: DictConfig) -> dict[str, Any]:
    """Put the resolved configuration into the run folder, or compare it with the one there; returns it.

    Raises:
        UserError: a run is there already and ``resume`` is not set, or it has other settings.
    """
    settings: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    resume = settings.pop("resume")
    stored = folder / "config.yaml"
    if rank_zero_only.rank:  # type: ignore[attr-defined]  # rank 0 looks after the folder
        return settings
    if not stored.is_file():
        write_text(stored, OmegaConf.to_yaml(OmegaConf.create(settings)))
        return settings
    if not resume:
        raise UserError(f"{folder} holds a run already: continue it with resume=true, or choose another folder")
    if _load(stored) != OmegaConf.create(settings):
        raise UserError(f"{folder} holds a run with other settings ({stored}): give the same ones, or another folder")
    return settings


def finished(folder: Path) -> dict[str, Any] | None:
    """The metrics of the finished run in a folder; None where there is none.

    Raises:
        UserError: its metrics.json is damaged.
    """
    path = folder / "metrics.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        found["validation_signal"]  # written last
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): remove it to compute the run again") from error
    return dict(found)


def same_images(folder: Path, images: dict[str, int]) -> None:
    """Note the images of a run, with their sizes in bytes, or compare them with those it was begun with.

    Raises:
        UserError: they differ.
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
            f"{folder} holds a run on other images: {changed}; restore them, or choose another folder for a new run"
        )


def _load(path: Path) -> Any:
    try:
        return migrated(OmegaConf.load(path))  # type: ignore[arg-type]
    except Exception as error:  # yaml, omegaconf and the file system have no common base
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is damaged ({reason}): choose another folder") from error
