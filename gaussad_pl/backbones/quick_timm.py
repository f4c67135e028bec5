"""The import of timm without W&B and torch's compiler, which would take longer than the rest and serve no detector.

timm imports W&B, if it is installed, for a logger of its own training. It imports the compiler for a decorator of one
architecture, and torchvision does for a function of its object detectors; neither matters unless they are compiled.
Whatever else asks for the compiler gets it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch

COMPILER = "torch._dynamo.utils"


class _Later(ModuleType):
    """Stands for the module of the compiler that torchvision imports, until more of it is needed than one function."""

    @staticmethod
    def is_compile_supported(device: str) -> bool:
        supported: bool = import_module(COMPILER).is_compile_supported(device)
        return supported

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # `inspect` asks all modules for their file
            raise AttributeError(name)
        if sys.modules.get(COMPILER) is self:
            del sys.modules[COMPILER]
        return getattr(import_module(COMPILER), name)


def _as_it_is(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Callable[..., Any]:
    """Decorate nothing, as functions that are never compiled need no exception from it."""
    return function if function is not None else _as_it_is


@contextmanager
def without_compiler_and_wandb() -> Iterator[None]:
    """Leave out W&B and the compiler, as far as they are not imported yet, from what is imported in the block."""
    late = {} if COMPILER in sys.modules else {COMPILER: _Later(COMPILER)}
    absent = {} if "wandb" in sys.modules else {"wandb": None}  # raises ModuleNotFoundError, which timm expects
    sys.modules |= late | absent  # type: ignore[arg-type]
    try:
        with patch.object(torch.compiler, "disable", _as_it_is) if late else nullcontext():
            yield
    finally:
        for name, module in {**late, **absent}.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
