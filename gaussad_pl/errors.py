"""Mistakes a user can make, as opposed to bugs."""


class UserError(Exception):
    """A mistake in the command line, the configuration or the data.

    The message is one line: it names the file or value, what was expected, and what to do. Entry points print it
    without a traceback and exit with code 1.
    """


class NumericalError(UserError):
    """Numbers that nothing can be computed from: a loss that is not finite, a covariance without an inverse.

    During fine-tuning it ends the training, not the run; anywhere else it is the user's to mend.
    """
