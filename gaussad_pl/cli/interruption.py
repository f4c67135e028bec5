"""Ctrl-C and SIGTERM as one exception, so that a command ends cleanly at any point."""

from __future__ import annotations

import os
import shlex
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal that ends the command. Like KeyboardInterrupt, it is not caught by ``except Exception``.

    Attributes:
        code: exit code, 128 + the number of the signal, as in shells.
    """

    def __init__(self, number: int) -> None:
        super().__init__("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)
        self.code = 128 + number


@contextmanager
def raising_signals() -> Iterator[None]:
    """Raise `Interrupted` on Ctrl-C and SIGTERM in the block; a second signal ends the process at once.

    Only the main thread can handle signals; in any other thread, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received = False

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal received
        if received:
            os._exit(128 + number)
        received = True
        raise Interrupted(number)

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def resuming(command: Sequence[str]) -> str:
    """Return the command line that continues ``command``, without the arguments that would start it anew.

    >>> resuming(["python", "-m", "gaussad_pl.predict", "ckpt=run", "overwrite=true"])
    'python -m gaussad_pl.predict ckpt=run resume=true'
    """
    dropped = ("resume=", "overwrite=")
    return shlex.join([*(word for word in command if not word.lstrip("+-").startswith(dropped)), "resume=true"])
