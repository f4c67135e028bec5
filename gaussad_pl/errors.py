"""Mistakes a user can make, as opposed to bugs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the command line, the configuration or the data.

    The message is one line: it names the file or value, what was expected, and what to do. Entry points print it
    without a traceback and exit with code 1.
    """


class NumericalError(UserError):
    """Numbers that nothing can be computed from: a loss that is not finite, a covariance without an inverse.

    During fine-tuning it ends the training, not the run; anywhere else it is the user's to mend.
    """


def no_such_setting(key: str, known: Iterable[str]) -> str:
    """The words for an unknown key, with the closest of the ``known`` ones: a neighbour, or else one anywhere."""
    parent, _, name = key.rpartition(".")
    parted = [each.rpartition(".") for each in sorted(known)]
    beside = {last: f"{above}{dot}{last}" for above, dot, last in parted if above == parent}
    anywhere = {last: f"{above}{dot}{last}" for above, dot, last in parted}
    for names, likeness in ((beside, 0.6), (anywhere, 0.8)):
        if close := difflib.get_close_matches(name, names, 1, likeness):
            return f"{key}: there is no such setting; did you mean {names[close[0]]}?"
    return f"{key}: there is no such setting; leave it out"
