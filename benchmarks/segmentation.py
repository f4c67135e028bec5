"""Benchmark of anomaly maps: accuracy, time and size of each form, of the default, and of PaDiM and PatchCore.

    python -m benchmarks.segmentation --data /data/mvtec_ad/screw /data/magnetic_tile/tile \\
        --peers-python build/peers/bin/python

Fits the frozen detector with each form of patch density on its own (image score from the map only) and with the
default, which makes its choices on the augmented validation. Every detector ends with all good training images. With
`--peers-python`, the interpreter of the environment of benchmarks.peers, PaDiM and PatchCore are fitted to the same
images in the same run. All times are CPU seconds, which depend least on the load of the machine. Each job writes one
JSON file; jobs whose file exists are skipped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.analysis import mean_sem
from benchmarks.jobs import begin, build, clocks, compose_job, quiet_trainer, result, since, state_bytes
from gaussad_pl.density.registry import DENSITIES
from gaussad_pl.model.detection import Detection
from gaussad_pl.results.evaluation import Evaluation
from gaussad_pl.training.forgetting import ForgettingStop
from gaussad_pl.training.selection import choose

METHODS = ("default", *DENSITIES)


def run_job(folder: Path, method: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Fit and score one method; times exclude image decoding and include the choices made on the validation."""
    alone = [
        f"model.segmentation.form={method}",
        "model.segmentation.combine=map",
        "model.segmentation.map_levels=middle",
    ]
    config = compose_job(folder, seed, ["trainer=cpu", *([] if method == "default" else alone), *overrides])
    data, module = build(config)
    forgetting = ForgettingStop()
    trainer = quiet_trainer(config, [forgetting])
    images, masks = data.good_images, data.test_masks
    assert len(images) and len(data.validation) and len(data.test)  # type: ignore[arg-type]  # decode first
    start = clocks()
    chosen = choose(trainer, module, data, forgetting)
    module.estimate_everything(data, data.every_image)
    fit_times, start = since(start, "fit"), clocks()
    with torch.no_grad():
        detection = Detection.join([module(batch["image"]) for batch in data.test_dataloader()])
    score_times = since(start, "score")
    levels = [level.index for level in module.model.backbone.levels]
    scores, maps = detection.scores, detection.maps
    evaluation = Evaluation(data.test_samples, detection.distances, scores, levels, maps, masks, data.frame)
    return {
        "method": method, "dataset": folder.name, "seed": seed,
        **evaluation.metrics(),
        "chosen": chosen["segmentation"], "orientations": data.orientations,
        "train_images": len(data.every_image), "threads": torch.get_num_threads(),
        **fit_times, **score_times, "state_bytes": state_bytes(module.model),
    }  # fmt: skip


def run_peers(python: Path, folder: Path, seed: int, out: Path, methods: list[str], threads: int) -> None:
    """Run the peers on the same dataset and seed in their own environment."""
    command = [python, "-m", "benchmarks.peers", "--data", folder, "--seeds", seed, "--out", out, "--threads", threads]
    subprocess.run([*map(str, command), "--methods", *methods, "--coreset", "fast", "--train", "all"], check=True)


def table(records: list[dict[str, Any]]) -> Table:
    """Return one row per dataset and method: metrics in percent, mean ± SEM over seeds; medians of times and size."""
    result = Table(title="Frozen detectors, percent", title_justify="left")
    for column in ("dataset", "method", "image AUROC", "pixel AUROC", "AUPRO", "fit s", "score s", "MB", "seeds"):
        result.add_column(column, justify="left" if column in ("dataset", "method") else "right")
    for dataset in dict.fromkeys(record["dataset"] for record in records):
        names = list(dict.fromkeys(r["method"] for r in records if r["dataset"] == dataset))
        for method in names:
            rows = [r for r in records if (r["dataset"], r["method"]) == (dataset, method) and "aupro" in r]
            if not rows:
                result.add_row(dataset, method, *["not finished"] * 3, *[""] * 4)
                continue
            quality = [
                "-" if rows[0][key] is None else mean_sem([100 * row[key] for row in rows])  # None without masks
                for key in ("image_auroc", "pixel_auroc", "aupro")
            ]
            fit, score, size = (
                sorted(r[key] for r in rows)[len(rows) // 2]
                for key in ("fit_cpu_seconds", "score_cpu_seconds", "state_bytes")
            )
            result.add_row(dataset, method, *quality, f"{fit:.0f}", f"{score:.0f}", f"{size / 1e6:.0f}", str(len(rows)))
    return result


def main() -> None:
    """Run all jobs that have no result yet, and report all results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders in the layout of MVTec AD")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="forms of the map to run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="random seeds; one job per seed")
    parser.add_argument("--out", type=Path, default=Path("runs/segmentation"), help="folder for results")
    parser.add_argument("--peers-python", type=Path, help="interpreter of the environment of benchmarks.peers")
    parser.add_argument("--peers", nargs="+", default=["padim", "patchcore"], help="peers to run")
    parser.add_argument("--threads", type=int, default=1, help="threads per job")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides for every job")
    arguments = begin(parser)
    torch.set_num_threads(arguments.threads)
    console = Console(width=130)
    records = []
    for seed in arguments.seeds:
        for folder in (path.resolve() for path in arguments.data):
            for method in arguments.methods:
                path = arguments.out / f"{folder.name}-{method}-seed{seed}.json"
                records += result(path, partial(run_job, folder, method, seed, arguments.set))
            if arguments.peers_python:
                peers = arguments.out / "peers"
                run_peers(arguments.peers_python, folder, seed, peers, arguments.peers, arguments.threads)
                records += [
                    json.loads(path.read_text()) for path in sorted(peers.glob(f"{folder.name}-*seed{seed}.json"))
                ]
    records.sort(key=lambda record: record["dataset"])
    summary = table(records)
    console.print(summary)
    with (arguments.out / "table.txt").open("w") as file:
        Console(file=file, width=130).print(summary)


if __name__ == "__main__":
    main()
