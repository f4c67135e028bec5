"""Processes of their own that need not import anything: they are forked from one that has imported the package."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

# starting a process polls all others: of two threads that read the end of one, the later would take it for lost (255)
LOCK = threading.Lock()
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["gaussad_pl.train", "gaussad_pl.inference.detector", "wandb", "sklearn.cluster"])


@contextmanager
def forked(log: Path, task: Callable[..., None], *arguments: Any) -> Iterator[ForkServerProcess]:
    """A process that runs ``task``; at its end, which is waited for, ``log`` has what it printed.

    It prints to a pipe: a limit on the size of files does not hold for that.
    """
    pipe = log.with_suffix(".pipe")
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    with log.open("a") as file, subprocess.Popen(["cat", pipe], stdout=file):
        process = FORK.Process(target=_print_to, args=(pipe, task, *arguments))
        with LOCK:
            process.start()
        try:
            yield process
        finally:
            wait([process.sentinel])
            with LOCK:
                process.join()
            with suppress(OSError):  # cat waits for a writer, which a process killed at once has never been
                os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))


def _print_to(pipe: Path, task: Callable[..., None], *arguments: Any) -> None:
    file = pipe.open("w")
    os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    task(*arguments)


def train(folder: Path, line: list[str]) -> None:
    """The command of a training, called in a folder."""
    from gaussad_pl import train

    os.chdir(folder)
    sys.argv = ["train.py", *line]
    train.main()


def finish(log: Path, task: Callable[..., None], *arguments: Any) -> int:
    """Run ``task`` to its end; its exit code, negative for a signal that killed it."""
    with forked(log, task, *arguments) as process:
        pass
    assert process.exitcode is not None
    return process.exitcode
