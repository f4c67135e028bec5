"""The git commit that gaussad_pl runs from, where it is a checkout."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

SECONDS = 5.0  # that git may take; a repository on a slow network drive must not hold up a run
ROOT = Path(__file__).resolve().parents[2]
CODE = ("gaussad_pl", "conf")  # what a result depends on; runs and notes beside it may change


@cache
def commit(root: Path = ROOT) -> dict[str, Any]:
    """The commit of the checkout ``root`` and whether the code there is as committed.

    Returns:
        ``{"commit": "4e0c2f7...", "clean": True}``, or both None and the ``reason``. The first answer is kept: later
        edits do not change what has been imported.
    """
    if not (root / ".git").exists():
        return _unknown("gaussad_pl is installed as a package, not run from a git checkout")
    try:
        head = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain", "--", *CODE)
    except FileNotFoundError:
        return _unknown("git is not installed")
    except subprocess.TimeoutExpired:
        return _unknown(f"git took more than {SECONDS:g} s")
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        return _unknown(f"git failed: {said[0]}" if said else "git failed")
    return {"commit": head, "clean": not changes}


def _unknown(reason: str) -> dict[str, Any]:
    return {"commit": None, "clean": None, "reason": reason}


def _git(root: Path, *arguments: str) -> str:
    """The output of a git command that neither waits for input, nor writes, nor follows variables of a git hook."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    done = subprocess.run(
        ["git", "-C", str(root), *arguments],
        env={**own, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=True,
    )  # fmt: skip
    return done.stdout.strip()
