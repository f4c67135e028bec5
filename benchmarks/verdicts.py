"""Benchmark of verdicts on small sets: promised against observed false alarms, and bad parts found.

    python -m benchmarks.verdicts --data /data/mvtec_ad/screw /data/cookie/cookie --sizes 20 40 80 --draws 5

Draws random subsets of the good training images of each dataset (a folder in the layout of MVTec AD), runs the default
on each, and calibrates the frozen and the fine-tuned state. The test set (at most 100 good and 100 bad images, drawn
anew each time), which takes no part in any choice, then shows how many good parts are lost and how many bad ones are
found at each target. Each job writes one JSON file; jobs whose file exists are skipped.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from rich.console import Console
from rich.table import Table

from benchmarks.analysis import mean_sem
from benchmarks.jobs import build, compose_job, quiet_trainer
from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.calibration.cross_conformal import calibrate
from gaussad_pl.calibration.operating_points import operating_points
from gaussad_pl.files import write_json
from gaussad_pl.memory import keep_freed_memory
from gaussad_pl.results.evaluation import Evaluation
from gaussad_pl.training.experiment import Outcome, frozen_state, tuned_state

RATES = (0.05, 0.1, 0.2)
TESTED = 100


def subset(source: Path, size: int, draw: int, place: Path) -> Path:
    """Link ``size`` random good training images and at most `TESTED` good and bad test images each into ``place``.

    Masks are left out: no verdict needs them.
    """
    rng = np.random.default_rng([draw, size])
    test = sorted((source / "test").glob("*/*"))
    for files, count in (
        (sorted((source / "train" / "good").iterdir()), size),
        ([file for file in test if file.parent.name == "good"], TESTED),
        ([file for file in test if file.parent.name != "good"], TESTED),
    ):
        for index in rng.permutation(len(files))[:count].tolist():
            link = place / files[index].relative_to(source.parent)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(files[index])
    return place / source.name


def verdicts(calibration: Calibration, evaluation: Evaluation) -> dict[str, Any]:
    """Shares of good test parts lost and of bad ones found at each target, None where no threshold is possible."""
    good, bad = (evaluation.scores[evaluation.labels == label] for label in (0, 1))
    found: dict[str, Any] = {"calibration": len(calibration)}
    for rate, point in operating_points(calibration, good, bad, RATES).items():
        counts = {"lost": (point.good_lost, point.good), "found": (point.bad_found, point.bad)}
        found[str(rate)] = {
            name: None if count is None or point.rule != "conformal" else count / total
            for name, (count, total) in counts.items()
        }
    return found


def run_job(source: Path, size: int, draw: int, overrides: list[str]) -> dict[str, Any]:
    """Train on one subset, and judge the test set by the frozen and the fine-tuned state."""
    with tempfile.TemporaryDirectory() as place:
        config = compose_job(subset(source, size, draw, Path(place)), draw, overrides)
        data, module = build(config)
        forgetting = instantiate(config.callbacks.forgetting)
        trainer = quiet_trainer(config, [instantiate(config.callbacks.averaging), forgetting])
        every = data.every_image
        outcome = Outcome()
        states: dict[str, Any] = {}
        frozen_state(trainer, module, data, forgetting, every, outcome)
        states["frozen"] = calibrated(module, data, False, outcome)
        tuned_state(trainer, module, data, forgetting, every, Path(place), outcome)
        if outcome.fine_tuned:
            states["fine-tuned"] = calibrated(module, data, True, outcome)
    return {
        "dataset": source.name,
        "size": size,
        "draw": draw,
        "orientations": data.orientations,
        "used": outcome.fine_tuned,
        "states": states,
    }


def calibrated(module: Any, data: Any, tuned: bool, outcome: Outcome) -> dict[str, Any]:
    """Image AUROC and verdicts of a state."""
    calibration = calibrate(module.model, data, True, tuned, every_image=True)
    return {"auroc": outcome.final.metrics()["image_auroc"], **verdicts(calibration, outcome.final)}


def table(records: list[dict[str, Any]]) -> Table:
    """Return one row per dataset, size and state: shares in percent, mean ± SEM over draws."""
    result = Table(title="Good parts lost / bad parts found, percent, at each target", title_justify="left")
    for column in ("dataset", "good images", "state", "AUROC", *(f"{rate:.0%}" for rate in RATES), "draws"):
        result.add_column(column, justify="left" if column in ("dataset", "state") else "right")
    keys = dict.fromkeys((r["dataset"], r["size"], state) for r in records for state in r["states"])
    for dataset, size, state in sorted(keys):
        of = [r["states"] for r in records if (r["dataset"], r["size"]) == (dataset, size)]
        rows = [states[state] for states in of if state in states]
        cells = []
        for rate in RATES:
            decided = [row[str(rate)] for row in rows if row[str(rate)]["found"] is not None]
            lost, found = ([100 * each[key] for each in decided] for key in ("lost", "found"))
            cells.append(f"{mean_sem(lost)} / {mean_sem(found)}" if decided else "undecided")
        auroc = mean_sem([100 * row["auroc"] for row in rows])
        result.add_row(dataset, str(size), state, auroc, *cells, str(len(rows)))
    return result


def main() -> None:
    """Run all jobs that have no result yet, and report all results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders in the layout of MVTec AD")
    parser.add_argument("--sizes", type=int, nargs="+", default=[20, 40, 80, 160], help="good images in a subset")
    parser.add_argument("--draws", type=int, default=20, help="subsets of each size")
    parser.add_argument("--out", type=Path, default=Path("runs/verdicts"), help="folder for results")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides for every job")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    keep_freed_memory()
    console = Console(width=150)
    arguments.out.mkdir(parents=True, exist_ok=True)
    records = []
    for draw in range(arguments.draws):  # outermost, so that an interrupted benchmark is still balanced
        for size in arguments.sizes:
            for source in (path.resolve() for path in arguments.data):
                if len(list((source / "train" / "good").iterdir())) < size:
                    continue
                path = arguments.out / f"{source.name}-{size}-draw{draw}.json"
                if not path.is_file():
                    console.print(f"{source.name}, {size} good images, draw {draw}", highlight=False)
                    write_json(path, run_job(source, size, draw, arguments.set))
                records.append(json.loads(path.read_text()))
    console.print(table(records))


if __name__ == "__main__":
    main()
