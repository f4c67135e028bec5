"""Gaussian anomaly detection with fine-tuned representations: a PyTorch Lightning experiment framework.

The public names are loaded when they are first used, so that ``import gaussad_pl`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gaussad_pl.version import __version__

if TYPE_CHECKING:
    from gaussad_pl.errors import UserError
    from gaussad_pl.fitting import fit
    from gaussad_pl.inference.detector import Detector
    from gaussad_pl.training.module import GaussianAD

__all__ = ["Detector", "GaussianAD", "UserError", "__version__", "fit"]

_HOMES = {
    "Detector": "gaussad_pl.inference.detector",
    "GaussianAD": "gaussad_pl.training.module",
    "UserError": "gaussad_pl.errors",
    "fit": "gaussad_pl.fitting",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith(__name__):
            raise
        raise ImportError(f'{name} needs {error.name}: pip install "gaussad_pl[train]"') from error


def __dir__() -> list[str]:
    return sorted(__all__)
