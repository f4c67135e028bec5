"""Report on any set of runs: tables, tests, curves, galleries, and warnings about doubtful results.

python -m gaussad_pl.report dir=<folder>

  dir  folder with the runs to report, in subfolders of any depth, such as runs or multirun/2026-01-31_18-00-00
  out  folder for report.html, report.md and results.csv                     (dir)
"""

from __future__ import annotations

from gaussad_pl.cli.start import start

if __name__ == "__main__":
    start(__doc__, "hydra", "jinja2", "lightning", "matplotlib", "sklearn")  # before the imports below: seconds

import logging
from pathlib import Path

from omegaconf import DictConfig

from gaussad_pl.cli.hydra_command import entry_point
from gaussad_pl.errors import UserError
from gaussad_pl.files import unwritable, write_text
from gaussad_pl.reporting.content import compose, sheets
from gaussad_pl.reporting.curves import cells, save_curves
from gaussad_pl.reporting.latex import latex
from gaussad_pl.reporting.markdown import markdown, results_csv
from gaussad_pl.reporting.page import html
from gaussad_pl.reporting.runs import gather
from gaussad_pl.reporting.study import arrange

log = logging.getLogger(__name__)


def run(config: DictConfig) -> None:
    """Read the run folders below ``dir`` and write the report to ``out``.

    Raises:
        UserError: ``dir`` is not a folder or holds no run, or ``out`` cannot be written.
    """
    top, out = Path(str(config.dir)), Path(str(config.out))
    if not top.is_dir():
        raise UserError(f"dir={top} is not a folder: expected a folder that holds runs, such as dir=multirun/...")
    runs, unfinished = gather(top)
    if not runs and not unfinished:
        raise UserError(
            f"dir={top} holds no runs: no folder in it has a metrics.json, a config.yaml or a .hydra; give another one"
        )
    content = compose(top, arrange(runs, unfinished))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(out, error) from error
    write_text(out / "results.csv", results_csv(content))
    write_text(out / "report.md", markdown(content))
    write_text(out / "tables.tex", latex(sheets(content)))
    drawn = cells(content.study)
    save_curves(drawn, out / "curves")
    write_text(out / "report.html", html(content, drawn, out))
    for flag in content.flags:
        log.info("%s: %d", flag.kind, len(flag.items))
    log.info("%d finished runs, %d unfinished: %s", len(runs), len(unfinished), out / "report.html")


main = entry_point(run)

if __name__ == "__main__":
    main()
