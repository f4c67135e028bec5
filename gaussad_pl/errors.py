"""Errors that the user can fix, as opposed to bugs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the command line, the configuration or the data.

    The message is one line: it names the file or value, what was expected, and what to do. Entry points print it
    without a traceback and exit with code 1.
    """


class NumericalError(UserError):
    """A computation that cannot continue: the loss is not finite, or a covariance is singular.

    During fine-tuning this ends the training but not the run; anywhere else the user has to fix the cause.
    """


def no_such_setting(key: str, known: Iterable[str]) -> str:
    """Return the message for an unknown key, with the closest ``known`` one: in the same section, or else in any.

    >>> no_such_setting("data.rot", ["data.root", "seed"])
    'data.rot: there is no such setting; did you mean data.root?'
    """
    parent, _, name = key.rpartition(".")
    split = [each.rpartition(".") for each in sorted(known)]
    siblings = {last: f"{above}{dot}{last}" for above, dot, last in split if above == parent}
    all_names = {last: f"{above}{dot}{last}" for above, dot, last in split}
    for names, cutoff in ((siblings, 0.6), (all_names, 0.8)):
        if close := difflib.get_close_matches(name, names, 1, cutoff):
            return f"{key}: there is no such setting; did you mean {names[close[0]]}?"
    return f"{key}: there is no such setting; leave it out"
