"""Benchmark of verdicts on small sets: promised against observed false alarms, and bad parts found.

    python -m benchmarks.verdicts --data /data/mvtec_ad/screw /data/cookie/cookie --sizes 20 40 80 --draws 5

Draws random subsets of the good training images of each dataset (a folder in the layout of MVTec AD), runs the default
on each, and calibrates the frozen and the fine-tuned state. The test set (at most 100 good and 100 bad images, drawn
anew each time), which takes no part in any choice, then shows how many good parts are lost and how many bad ones are
found at each target. Each job writes one JSON file; jobs whose file exists are skipped. With `--peers-python`, the
environment of `benchmarks.peers`, PatchCore and PaDiM run on the same images and are calibrated by the same rule.

The good test images of a dataset may differ from its training images, and then no calibration can keep its promise.
With `--same-source`, training images that were not drawn take their place: what is lost of these tests the calibration.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from torch import Tensor

from benchmarks import markdown
from benchmarks.evidence_jobs import run_peer
from benchmarks.evidence_table import NAMES
from benchmarks.jobs import begin, build, compose_job, quiet_trainer, result
from benchmarks.judged import recorded, shares
from benchmarks.markdown import percent, rate_names, verdict_cell
from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.calibration.cross_conformal import calibrate
from gaussad_pl.training.experiment import Outcome, frozen_state, tuned_state

RATES = (0.05, 0.1, 0.2)
TESTED = 100
PEERS = ("patchcore", "padim")

Job = Callable[[Path, int], dict[str, Any]]  # of a folder and a draw


def subset(source: Path, size: int, draw: int, same_source: bool, place: Path) -> Path:
    """Link ``size`` random good training images and at most `TESTED` good and bad test images each into ``place``.

    With ``same_source``, the good test images are training images that were not drawn. Masks are left out: no verdict
    needs them.
    """
    rng = np.random.default_rng([draw, size])

    def shuffled(files: Iterable[Path]) -> list[Path]:
        ordered = sorted(files)
        return [ordered[index] for index in rng.permutation(len(ordered)).tolist()]

    good = shuffled((source / "train" / "good").iterdir())
    tested = shuffled((source / "test" / "good").iterdir())
    bad = shuffled(file for file in (source / "test").glob("*/*") if file.parent.name != "good")
    if same_source:  # after all draws: the bad images stay the same
        tested = good[size:]
    for files, folder in ((good[:size], "train"), (tested[:TESTED], "test"), (bad[:TESTED], "test")):
        for file in files:
            link = place / source.name / folder / file.parent.name / file.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
    return place / source.name


def verdicts(calibration: Calibration, scores: Tensor, labels: Tensor) -> dict[str, Any]:
    """Shares of good test parts lost and of bad ones found at each target, None where no threshold is possible."""
    found = shares(calibration, scores, labels, RATES)
    return {"calibration": len(calibration), **{str(rate): share for rate, share in found.items()}}


def run_job(folder: Path, draw: int, overrides: list[str]) -> dict[str, Any]:
    """Train on one subset, and judge the test set by the frozen and the fine-tuned state."""
    config = compose_job(folder, draw, overrides)
    data, module = build(config)
    forgetting = instantiate(config.callbacks.forgetting)
    trainer = quiet_trainer(config, [instantiate(config.callbacks.averaging), forgetting])
    every = data.every_image
    outcome = Outcome()
    frozen_state(trainer, module, data, forgetting, every, outcome)
    states = {"frozen": calibrated(module, data, False, outcome)}
    tuned_state(trainer, module, data, forgetting, every, folder.parent, outcome)
    if outcome.fine_tuned:
        states["fine-tuned"] = calibrated(module, data, True, outcome)
    return {"orientations": data.orientations, "used": outcome.fine_tuned, "states": states}


def calibrated(module: Any, data: Any, tuned: bool, outcome: Outcome) -> dict[str, Any]:
    """Image AUROC and verdicts of a state."""
    calibration = calibrate(module.model, data, True, tuned, every_image=True)
    found = outcome.final
    return {"auroc": found.metrics()["image_auroc"], **verdicts(calibration, found.scores, found.labels)}


def run_peers(python: Path, folder: Path, draw: int) -> dict[str, Any]:
    """Train every peer on one subset, and judge the test set by it; the record is like that of `run_job`."""
    states = {}
    for method in PEERS:
        record = run_peer(python, folder, method, draw)
        states[method] = {"auroc": record["image_auroc"], **verdicts(*recorded(record))}
    return {"states": states}


def on_subset(job: Job, source: Path, size: int, draw: int, same_source: bool) -> dict[str, Any]:
    """Run a job on a `subset`; returns its record, with what the subset is."""
    with tempfile.TemporaryDirectory() as place:
        found = job(subset(source, size, draw, same_source, Path(place)), draw)
    return {"dataset": source.name, "size": size, "draw": draw, **found}


def table(records: list[dict[str, Any]]) -> str:
    """Return lost / found parts in percent, mean ± SEM over draws, one row per dataset, size and detector.

    The default is the fine-tuned state where its gain was accepted, and the frozen one elsewhere.
    """
    header = ["", "good images", "", "AUROC", *rate_names(RATES), "draws"]
    rows = []
    for dataset, size in sorted({(record["dataset"], record["size"]) for record in records}):
        of = [record["states"] for record in records if (record["dataset"], record["size"]) == (dataset, size)]
        ours = [states for states in of if "frozen" in states]
        detectors = {
            "default": [states.get("fine-tuned", states["frozen"]) for states in ours],
            "frozen": [states["frozen"] for states in ours],
            **{NAMES[peer]: [states[peer] for states in of if peer in states] for peer in PEERS},
        }
        for name, found in detectors.items():
            if found:
                rates = [verdict_cell([each[str(rate)] for each in found]) for rate in RATES]
                auroc = percent([each["auroc"] for each in found])
                rows.append([dataset, str(size), name, auroc, *rates, str(len(found))])
    return markdown.table(header, rows, keys=2)


def gain(records: list[dict[str, Any]]) -> str:
    """Return what accepted fine-tuning changes at each target, in points: mean ± SEM over the pairs of states."""
    ours = [record["states"] for record in records if "frozen" in record["states"]]
    pairs = [(states["fine-tuned"], states["frozen"]) for states in ours if "fine-tuned" in states]
    lines = [f"Fine-tuning, accepted in {len(pairs)} of {len(ours)} runs, changes good parts lost / bad parts found:"]
    for rate in map(str, RATES):
        changes = [
            {name: tuned[rate][name] - frozen[rate][name] for name in ("lost", "found")}
            for tuned, frozen in pairs
            if tuned[rate]["found"] is not None and frozen[rate]["found"] is not None
        ]
        if changes:
            lines.append(f"{100 * float(rate):.0f} %: {verdict_cell(changes)} points ({len(changes)} pairs)")
    return "\n".join(lines)


def main() -> None:
    """Run all jobs that have no result yet, and print the table of all results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders in the layout of MVTec AD")
    parser.add_argument("--sizes", type=int, nargs="+", default=[20, 40, 80, 160], help="good images in a subset")
    parser.add_argument("--draws", type=int, default=20, help="subsets of each size")
    parser.add_argument("--peers-python", type=Path, help="interpreter of the environment of benchmarks.peers")
    parser.add_argument("--same-source", action="store_true", help="good test images are undrawn training images")
    parser.add_argument("--finished", action="store_true", help="run nothing: print the table of what is finished")
    parser.add_argument("--out", type=Path, default=Path("runs/verdicts"), help="folder for results")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides for every job")
    given = begin(parser)
    kinds: dict[str, Job] = {"": partial(run_job, overrides=given.set)}
    if given.peers_python:
        kinds["-peers"] = partial(run_peers, given.peers_python)
    sources = [path.resolve() for path in given.data]
    records = []
    # draws come first, so that an interrupted benchmark is still balanced
    for draw, size, source, kind in product(range(given.draws), given.sizes, sources, kinds):
        if len(list((source / "train" / "good").iterdir())) < size + given.same_source:
            continue
        path = given.out / f"{source.name}-{size}{kind}{'-same' * given.same_source}-draw{draw}.json"
        job = partial(on_subset, kinds[kind], source, size, draw, given.same_source)
        records += result(path, job, given.finished)
    print(table(records), gain(records), sep="\n\n")


if __name__ == "__main__":
    main()
