"""Evidence: gaussad_pl and the papers' settings beside anomalib's models, on the same weights, images and splits.

    python -m benchmarks.evidence --data /data/cookie/cookie /data/mvtec_ad/screw --peers-python build/peers/bin/python

Every detector ends with all good training images and is calibrated by the same rule: each good image is scored by a
detector that was fitted without its fold. Two tables are printed in Markdown: metrics and seconds, and verdicts at each
target. `benchmarks.peers` describes the environment of the peers; without it, they are left out. All times are CPU
seconds on one thread, without decoding and calibration. Each job writes one JSON file with all its scores; jobs whose
file exists are skipped.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.evidence_jobs import SETTINGS, run_job, run_peer
from benchmarks.evidence_table import table, targets
from benchmarks.jobs import begin, result

PEERS = ("padim", "patchcore", "mh_patchcore", "dfm")


def jobs(folders: list[Path], methods: list[str], seeds: list[int], once: list[str]) -> list[tuple[int, Path, str]]:
    """Return seed, folder and method of each job; seeds come first, so that an interrupted benchmark is balanced.

    Args:
        once: ``dataset/method`` of jobs that run with the first seed only.
    """
    return [
        (seed, folder, method)
        for seed in seeds
        for folder in folders
        for method in methods
        if seed == seeds[0] or f"{folder.name}/{method}" not in once
    ]


def main() -> None:
    """Run all jobs that have no result yet, and print the table of all results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders in the layout of MVTec AD")
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, default=list(SETTINGS), help="settings to run")
    parser.add_argument("--peers-python", type=Path, help="interpreter of the environment of benchmarks.peers")
    parser.add_argument("--peers", nargs="*", default=PEERS, help="peers to run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="random seeds; one job per seed")
    parser.add_argument("--once", nargs="*", default=[], metavar="DATASET/METHOD", help="run with the first seed only")
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"), help="folder for results")
    parser.add_argument("--finished", action="store_true", help="run nothing: print the table of what is finished")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides for every setting")
    given = begin(parser)
    torch.set_num_threads(1)
    peers = list(given.peers) if given.peers_python else []
    records: list[dict[str, Any]] = []
    for seed, folder, method in jobs(given.data, [*given.settings, *peers], given.seeds, given.once):
        path = given.out / f"{folder.name}-{method}-seed{seed}.json"
        if method in SETTINGS:
            job = partial(run_job, folder, method, seed, given.set)
        else:
            job = partial(run_peer, given.peers_python, folder.resolve(), method, seed)
        records += result(path, job, given.finished)
    tables = f"{table(records)}\n\n{targets(records)}"
    print(tables)
    (given.out / "table.md").write_text(tables + "\n")


if __name__ == "__main__":
    main()
