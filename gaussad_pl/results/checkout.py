"""Git commit of the checkout that gaussad_pl runs from."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

SECONDS = 5.0  # time limit for git: a repository on a slow network drive must not hold up a run
ROOT = Path(__file__).resolve().parents[2]
CODE = ("gaussad_pl", "conf")  # folders that results depend on; runs and notes beside them may change


@cache
def commit(root: Path = ROOT) -> dict[str, Any]:
    """Return the commit of the checkout ``root`` and whether its code is unmodified.

    The result is cached, because later edits do not change the code already imported.

    Returns:
        ``{"commit": "4e0c2f7...", "clean": True}``, or both None and a ``reason`` if there is no commit to report.
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
        lines = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        return _unknown(f"git failed: {lines[0]}" if lines else "git failed")
    return {"commit": head, "clean": not changes}


def _unknown(reason: str) -> dict[str, Any]:
    return {"commit": None, "clean": None, "reason": reason}


def _git(root: Path, *arguments: str) -> str:
    """Return the output of a git command, run without prompts, locks or the variables of a surrounding git hook."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    done = subprocess.run(
        ["git", "-C", str(root), *arguments],
        env={**environment, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=True,
    )  # fmt: skip
    return done.stdout.strip()
