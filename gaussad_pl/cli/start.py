"""The start of a command: --help, and packages that are missing, before the imports, which take seconds."""

from __future__ import annotations

import sys
from importlib.util import find_spec

HELP = {"-h", "--help", "help"}


def start(text: str | None, *packages: str) -> None:
    """Print ``text`` and exit if the command line asks for help, or exit with one line if a package is missing.

    Args:
        text: help of the command.
        packages: names under which the command imports what only ``pip install "gaussad_pl[train]"`` installs.
    """
    if HELP & set(sys.argv[1:]):
        print(text)
        sys.exit(0)
    if missing := [name for name in packages if find_spec(name) is None]:
        sys.exit(f'error: packages are missing ({", ".join(missing)}): pip install "gaussad_pl[train]"')
