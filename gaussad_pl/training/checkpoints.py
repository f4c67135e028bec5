"""Checkpoints of the training: written whole or not at all, and checked before a run goes on from one."""

from __future__ import annotations

import io
import logging
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from gaussad_pl.files import replacing

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside the one it replaces and then renames it.

    Lightning's own passes through the temporary folder, perhaps on another disk: a full disk or a kill leaves half a
    checkpoint in place of the good one, and the temporary file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()  # on a full disk torch itself would raise a RuntimeError of C++
        torch.save(checkpoint, buffer)
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as partial:
            partial.write_bytes(buffer.getbuffer())


def last_checkpoint(folder: Path) -> Path:
    """Path of the checkpoint that a killed run in ``folder`` goes on from."""
    return folder / "checkpoints" / "last.ckpt"


def resumable(folder: Path) -> Path | None:
    """The last checkpoint of a run; None where there is none, or, with a warning, where it is damaged."""
    path = last_checkpoint(folder)
    if not path.exists():
        return None
    reason = damage(path)
    if reason:
        log.warning("%s is damaged (%s): ignored, training starts from the beginning", path, reason)
        return None
    return path


def damage(path: Path) -> str:
    """The reason why a checkpoint cannot be trusted; empty if it can.

    torch.load checks no checksums; the zip archive that a checkpoint is has one for each record.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            return f"the checksum of {broken} does not match"
        torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # whatever garbage makes zipfile, pickle and torch raise
        return " ".join(str(error).split())[:200] or type(error).__name__
    return ""
