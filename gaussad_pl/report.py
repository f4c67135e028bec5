"""Any set of runs as one report: tables, tests, curves, galleries, and what a careful reader would doubt.

python -m gaussad_pl.report dir=multirun/2026-01-31_18-00-00
"""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig

from gaussad_pl.cli import entry_point
from gaussad_pl.errors import UserError
from gaussad_pl.reporting.content import compose
from gaussad_pl.reporting.markdown import markdown, results_csv
from gaussad_pl.reporting.page import html
from gaussad_pl.reporting.runs import gather
from gaussad_pl.reporting.study import arrange

log = logging.getLogger(__name__)


def run(config: DictConfig) -> None:
    """Read the run folders below ``dir``, write the report into ``out``."""
    top, out = Path(str(config.dir)), Path(str(config.out))
    if not top.is_dir():
        raise UserError(f"{top} is no folder: give one that holds runs, as dir=multirun/...")
    runs, unfinished = gather(top)
    if not runs and not unfinished:
        raise UserError(f"{top} holds no run: no folder below it has a metrics.json, a config.yaml or a .hydra")
    content = compose(top, arrange(runs, unfinished))
    out.mkdir(parents=True, exist_ok=True)
    write(out / "results.csv", results_csv(content))
    write(out / "report.md", markdown(content))
    write(out / "report.html", html(content, out))
    for flag in content.flags:
        log.info("%s: %d", flag.kind, len(flag.items))
    log.info("%d finished runs, %d unfinished: %s", len(runs), len(unfinished), out / "report.html")


def write(path: Path, text: str) -> None:
    """What is no text in UTF-8, as a stray byte in a file name, becomes a question mark."""
    path.write_bytes(text.encode("utf-8", "replace"))


main = entry_point(run)

if __name__ == "__main__":
    main()
