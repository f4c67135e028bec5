"""Benchmark of bad parts among the good ones: which of them a run names, and what they cost.

    python -m benchmarks.contamination --data /data/mvtec_ad/screw /data/cookie/cookie --draws 3

Draws random good training images of each dataset (a folder in the layout of MVTec AD), and trains the frozen network
twice: on these alone, and with some bad test images among them, as if they were good. Both detectors judge the same
test set, which has the other bad images. Each job writes one JSON file; jobs whose file exists are skipped.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate

from benchmarks import markdown
from benchmarks.jobs import begin, build, compose_job, quiet_trainer, result
from benchmarks.markdown import percent, rate_names, verdict_cell
from benchmarks.verdicts import RATES, subset, verdicts
from gaussad_pl.calibration.cross_conformal import calibrate
from gaussad_pl.calibration.far_out import far_out
from gaussad_pl.training.experiment import Outcome, frozen_state

PREFIX = "bad_"  # of the names of bad images among the good ones


def run_job(source: Path, good: int, bad: int, draw: int, overrides: list[str]) -> dict[str, Any]:
    """Train on clean and on contaminated images, and judge the same test set."""
    with tempfile.TemporaryDirectory() as place:
        folder = subset(source, good, draw, False, Path(place))
        hidden = take_bad(folder, bad, draw)
        clean = judge(folder, draw, overrides)
        for image in hidden:
            link = folder / "train" / "good" / f"{PREFIX}{image.parent.name}_{image.name}"
            link.symlink_to(image)
        states = {"clean": clean, "contaminated": judge(folder, draw, overrides)}
    return {"dataset": source.name, "good": good, "hidden": len(hidden), "draw": draw, **states}


def take_bad(folder: Path, count: int, draw: int) -> list[Path]:
    """Remove random bad images from the test set of a folder of links; returns the images that they point to."""
    links = sorted(link for link in (folder / "test").glob("*/*") if link.parent.name != "good")
    chosen = [links[i] for i in np.random.default_rng(draw).permutation(len(links))[:count].tolist()]
    images = [link.readlink() for link in chosen]
    for link in chosen:
        link.unlink()
    return images


def judge(folder: Path, draw: int, overrides: list[str]) -> dict[str, Any]:
    """Fit and calibrate the frozen network; returns its verdicts on the test set and how many images it names."""
    config = compose_job(folder, draw, overrides)
    data, module = build(config)
    forgetting = instantiate(config.callbacks.forgetting)
    outcome = Outcome()
    frozen_state(quiet_trainer(config, [forgetting]), module, data, forgetting, data.every_image, outcome)
    calibration = calibrate(module.model, data, True, False, every_image=True)
    found = outcome.final
    named = [data.samples.train[i].path.name.startswith(PREFIX) for i, _ in far_out(calibration)]
    return {
        "named_bad": sum(named),
        "named_good": len(named) - sum(named),
        "auroc": found.metrics()["image_auroc"],
        **verdicts(calibration, found.scores, found.labels),
    }


def table(records: list[dict[str, Any]]) -> str:
    """Return the named images, and AUROC and lost / found parts in percent, mean ± SEM over draws."""
    header = ["", "good images", "", "bad named", "good named", "AUROC", *rate_names(RATES), "draws"]
    rows = []
    for dataset in sorted({record["dataset"] for record in records}):
        of = [record for record in records if record["dataset"] == dataset]
        good = sum(record["good"] for record in of)
        for state, hidden in (("clean", 0), ("contaminated", sum(record["hidden"] for record in of))):
            found = [record[state] for record in of]
            bad_named, good_named = (sum(each[name] for each in found) for name in ("named_bad", "named_good"))
            named = [f"{bad_named} of {hidden}" if hidden else "", f"{good_named} of {good}"]
            rates = [verdict_cell([each[str(rate)] for each in found]) for rate in RATES]
            auroc = percent([each["auroc"] for each in found])
            rows.append([dataset, str(of[0]["good"]), state, *named, auroc, *rates, str(len(of))])
    return markdown.table(header, rows, keys=2)


def main() -> None:
    """Run all jobs that have no result yet, and print the table of all results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders in the layout of MVTec AD")
    parser.add_argument("--good", type=int, default=95, help="good training images; all but --bad of a smaller set")
    parser.add_argument("--bad", type=int, default=5, help="bad images among them")
    parser.add_argument("--draws", type=int, default=3, help="subsets of each dataset")
    parser.add_argument("--finished", action="store_true", help="run nothing: print the table of what is finished")
    parser.add_argument("--out", type=Path, default=Path("runs/contamination"), help="folder for results")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides for every job")
    given = begin(parser)
    records = []
    for draw, source in product(range(given.draws), (path.resolve() for path in given.data)):
        good = min(given.good, len(list((source / "train" / "good").iterdir())) - given.bad)
        path = given.out / f"{source.name}-{good}-{given.bad}-draw{draw}.json"
        records += result(path, partial(run_job, source, good, given.bad, draw, given.set), given.finished)
    print(table(records))


if __name__ == "__main__":
    main()
