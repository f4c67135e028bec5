"""The file of the detector that a `ckpt=` names, which may be a folder or a pattern of many runs."""

from __future__ import annotations

import glob
import json
import shlex
from pathlib import Path

from gaussad_pl.errors import UserError
from gaussad_pl.inference.artefact import NAME

METRICS = "metrics.json"  # written last by a run


def find_detector(given: str | Path) -> Path:
    """Return the file of a detector.

    - a file: the file itself;
    - a folder with a detector.safetensors: that file;
    - any other folder, or a pattern with ``*``, ``?``, ``[`` or ``**``: the detector of the run that finished last
      among all runs in the folders that match and below them.

    Raises:
        UserError: there is no such file, folder or finished run.
    """
    path = Path(given).expanduser()
    if path.is_file():
        return path
    if (path / NAME).is_file():
        return path / NAME
    if path.is_dir():
        places = [path]
    elif glob.has_magic(str(given)):
        places = [Path(name) for name in glob.glob(str(path), recursive=True)]  # noqa: PTH207  # any pattern
    else:
        raise UserError(
            f"{path} does not exist: give the folder of a finished run, its {NAME}, or a file of gaussad_pl.export"
        )
    runs = {file.parent for place in places for file in ([place] if place.is_file() else place.rglob(NAME))}
    by_time = sorted((run / METRICS for run in runs if (run / METRICS).is_file()), key=_finish_time, reverse=True)
    newest = next((metrics for metrics in by_time if _is_complete(metrics) and (metrics.parent / NAME).is_file()), None)
    if newest is None:
        raise UserError(
            f"no finished run in {given}: expected a folder with {METRICS} and {NAME}; finish a run with resume=true, "
            "or train one"
        )
    return newest.parent / NAME


def next_command(ckpt: Path) -> str:
    """Return the command that scores new images with a detector, given its file or its folder."""
    return f"python -m gaussad_pl.predict ckpt={shlex.quote(str(ckpt))} source=<folder of new parts>"


def _finish_time(metrics: Path) -> tuple[float, Path]:
    return metrics.stat().st_mtime, metrics


def _is_complete(metrics: Path) -> bool:
    try:
        return "validation_signal" in json.loads(metrics.read_bytes())
    except (OSError, ValueError, TypeError, RecursionError):
        return False
