"""The groups of conf/ and their choices, for the help of gaussad_pl.train."""

from __future__ import annotations

import difflib
import re
import textwrap
from pathlib import Path

_PACKAGE = Path(__file__).parent.parent
# an installed wheel has conf/ inside the package, a checkout next to it
CONF = next(path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if path.is_dir())

GROUPS = {
    "data": "where the images come from",
    "category": "category of MVTec AD: its name, and how its good parts may be turned and mirrored",
    "backbone": "pretrained network; others of timm with backbone.name=",
    "levels": "levels of the network that count in the score",
    "model": "densities of good features, and the score",
    "objective": "what fine-tuning minimises",
    "augmentation": "how good images are damaged for the validation",
    "callbacks": "validation, averaging of weights, checkpoints",
    "trainer": "devices and precision",
    "logger": "where curves and figures go",
    "experiment": "settings of the papers",
    "hydra/sweeper": "which jobs -m runs",
    "hydra/launcher": "where -m runs them; one after the other if none is given",
    "search": "settings to search with hydra/sweeper=optuna",
}
NO_CATEGORY = (
    "no category chosen: add one, for example +category=screw, or data.category=candle with data=visa; for images of "
    "your own: data=folder data.root=<folder of good parts>"
)
SHARED = "base"  # a file that the others of its group begin with, not a choice
WIDTH = 120


def choices(group: str) -> list[str]:
    """Return the choices of a group, which are the files in its folder."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if path.stem != SHARED)


def no_such_choice(group: str, choice: str) -> str:
    """Return the message for an unknown choice of a group, with the closest one.

    >>> no_such_choice("levels", "Al").partition("expected ")[2]
    'one of all, excess, top3; did you mean all?'
    """
    known = choices(group)
    close = difflib.get_close_matches(choice.lower(), known, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{group}={choice}: expected one of {', '.join(known)}{hint}"


def defaults() -> dict[str, str]:
    """Return the choice of each group in the defaults list of conf/train.yaml."""
    text = (CONF / "train.yaml").read_text(encoding="utf-8")
    return dict(re.findall(r"^  - (?:override )?([\w/]+): (\w+)", text, re.MULTILINE))


def listing() -> str:
    """Return one entry for each group: its purpose and its choices, the default first, with + if there is none."""
    first = defaults()
    entries = []
    for group, purpose in GROUPS.items():
        default = first.get(group)
        names = ", ".join(sorted(choices(group), key=lambda name: name != default))
        plus = "" if default or group.startswith("hydra/") else "+"
        entry = f"  {plus + group:15} {purpose}: {names}"
        entries.append(textwrap.fill(entry, WIDTH, subsequent_indent=" " * 18, break_on_hyphens=False))
    return "\n".join(entries)
