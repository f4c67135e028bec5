"""List the commands: python -m gaussad_pl."""

from __future__ import annotations

import ast
from pathlib import Path

COMMANDS = ("train", "evaluate", "predict", "watch", "recalibrate", "export", "report", "demo")


def summary(command: str) -> str:
    """Return the first line of the docstring of a command's module, without importing it: that would take seconds."""
    source = Path(__file__).with_name(f"{command}.py").read_text(encoding="utf-8")
    text = ast.get_docstring(ast.parse(source)) or ""
    return text.splitlines()[0]


def main() -> None:
    """Print one line for each command."""
    print("usage: python -m gaussad_pl.<command> [settings], or --help\n")
    for command in COMMANDS:
        print(f"  {command:11}  {summary(command)}")


if __name__ == "__main__":
    main()
