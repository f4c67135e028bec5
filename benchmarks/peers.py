"""Benchmark of anomalib's models on the same weights, images and splits; `benchmarks.peer_models` lists them.

Runs the unmodified torch models in a separate environment. From the project folder:

    python3 -m venv build/peers
    build/peers/bin/pip install --constraint constraints.txt --requirement benchmarks/peers.txt --editable '.[train]'
    build/peers/bin/python -m benchmarks.peers --data /data/mvtec_ad/screw /data/magnetic_tile/tile \\
        --methods padim patchcore --seeds 0 1 2 --time-limit 7200 --out outputs/peers

Every job is a process with one thread (``--threads``) and writes one JSON file. Jobs whose file exists are skipped,
except for jobs that timed out under a shorter limit. By default the models train on the same fold as gaussad_pl; as
they need no validation images, ``--train all`` adds the held-out ones. ``--calibrate`` adds verdicts at a target
false-alarm rate, with thresholds by the rule of gaussad_pl, see `benchmarks.peer_scores.cross_conformal`.

The time of PatchCore's coreset search grows with the square of the number of images. ``--coreset fast`` finds the same
coreset in less time: use it to compare accuracy, not speed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor
from torch.nn import functional as F

from benchmarks.jobs import clocks, compose_job, grouped, since, state_bytes
from benchmarks.judged import judged
from benchmarks.peer_models import PEERS
from benchmarks.peer_scores import cross_conformal, fitted, score
from gaussad_pl.data.base import ImageDataModule
from gaussad_pl.data.images import MASK_SIZE
from gaussad_pl.data.splitting import Groups
from gaussad_pl.files import write_json
from gaussad_pl.memory import keep_freed_memory
from gaussad_pl.metrics.image import image_metrics
from gaussad_pl.metrics.pixel import pixel_metrics
from gaussad_pl.results.provenance import PACKAGES
from gaussad_pl.version import __version__


@dataclass(frozen=True)
class Job:
    """One model on one dataset; the fields correspond to the command-line options."""

    folder: Path
    method: str
    seed: int
    coreset: str | None
    train: str
    limit_train: int | None
    calibrate: bool
    threads: int

    @property
    def name(self) -> str:
        """Unique name, used for the JSON file."""
        search = f"-{self.coreset}" if self.coreset else ""
        images = f"{self.train}{self.limit_train or ''}"
        calibrated = "-calibrated" if self.calibrate else ""
        return f"{self.folder.name}-{self.method}{search}-{images}{calibrated}-seed{self.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        own = {**vars(self), "dataset": self.folder.name, "fold": self.seed % 5}
        del own["folder"]
        return own

    def data(self) -> ImageDataModule:
        """Return the dataset with the split that gaussad_pl uses with this seed, see `benchmarks.fine_tuning`."""
        config = compose_job(self.folder, self.seed, [])
        return grouped(instantiate(config.data), config)

    def training_images(self, data: ImageDataModule) -> list[int]:
        """Indices of the images of the fold, of all good images, or of a random sample of `limit_train` of them."""
        indices = torch.tensor(data.split[0] if self.train == "fold" else data.every_image)
        order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(self.seed))
        chosen: list[int] = indices[order[: self.limit_train]].sort().values.tolist()
        return chosen

    def run(self, path: Path) -> None:
        """Fit, score and time the model, and write the results to ``path``."""
        warnings.filterwarnings("ignore")
        if self.coreset != "own":  # anomalib's own search would fragment the memory until it runs out
            keep_freed_memory()  # as in gaussad_pl's own commands
        torch.set_num_threads(self.threads)
        data = self.data()
        chosen = self.training_images(data)
        train = data.good_images[chosen]
        test = torch.cat([batch["image"] for batch in data.test_dataloader()])
        labels = torch.tensor([sample.label for sample in data.test_samples])
        model, fit_times = fitted(self.method, self.coreset, self.seed, train)
        scores, maps, score_times = score(model, test)
        content = {
            **self.settings,
            "train_images": len(train),
            "test_images": len(test),
            **image_metrics(scores, labels),
            **({} if maps is None else pixel_metrics(at_mask_size(maps), data.test_masks, labels)),
            **(self.decisions(train, data.groups[chosen], scores, labels) if self.calibrate else {}),
            **fit_times,
            **score_times,
            "score_seconds_per_image": score_times["score_seconds"] / len(test),
            "state_bytes": state_bytes(model),
            "versions": {
                "python": platform.python_version(),
                "gaussad_pl": __version__,
                **{name: version(name) for name in ("anomalib", *PACKAGES)},
            },
        }
        write_json(path, content)

    def decisions(self, train: Tensor, groups: Groups, scores: Tensor, labels: Tensor) -> dict[str, Any]:
        """Calibrate on the training images, and count what is lost and found in the test."""

        def score_others(others: list[int], fold: list[int]) -> Tensor:
            model, _ = fitted(self.method, self.coreset, self.seed, train[others])
            return score(model, train[fold])[0]

        start = clocks()
        calibration = cross_conformal(score_others, groups, self.seed)
        return {**judged(calibration, scores, labels), **since(start, "calibrate")}

    def run_limited(self, path: Path, limit: float | None) -> None:
        """Run in a separate process, which is killed after ``limit`` seconds."""
        process = multiprocessing.get_context("spawn").Process(target=self.run, args=(path,))
        process.start()
        process.join(limit)
        if process.is_alive():
            process.kill()
            process.join()
            write_json(path, {**self.settings, "failure": f"not finished within {limit:g} s", "time_limit": limit})
        elif process.exitcode:
            raise SystemExit(f"{self.name}: ended with exit code {process.exitcode}")


def at_mask_size(maps: Tensor) -> Tensor:
    """Resize maps ``(N, H, W)`` to the size of the masks."""
    return F.interpolate(maps[:, None], (MASK_SIZE, MASK_SIZE), mode="bilinear", align_corners=False)[:, 0]


def is_done(path: Path, limit: float | None) -> bool:
    """Return whether a job has a result, or timed out under a limit at least as long as this one."""
    if not path.is_file():
        return False
    failed_at: float | None = json.loads(path.read_text()).get("time_limit")
    return failed_at is None or (limit is not None and limit <= failed_at)


def report(results: list[dict[str, Any]], console: Console) -> None:
    """Print one row per job: metrics in percent, CPU seconds, size of the saved state in megabytes."""
    scales = {"image_auroc": 100, "pixel_auroc": 100, "aupro": 100, "fit_cpu_seconds": 1, "score_cpu_seconds": 1,
              "state_bytes": 1e-6}  # fmt: skip
    headings = ("images", "AUROC", "pixel", "AUPRO", "fit s", "score s", "MB")
    table = Table(Column("job", no_wrap=True), *headings, box=None)
    for r in results:
        name = " ".join(filter(None, [r["dataset"], r["method"], r["coreset"], r["train"], str(r["seed"])]))
        values = [f"{r[key] * scale:.1f}" if r.get(key) is not None else "-" for key, scale in scales.items()]
        table.add_row(name, str(r.get("train_images", r.get("failure"))), *values)
    console.print(table)


def main() -> None:
    """Run all jobs that have no result yet, and report all results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders in the layout of MVTec AD")
    parser.add_argument("--methods", nargs="+", choices=PEERS, default=["padim", "patchcore"], help="models to run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="random seeds; one job per seed")
    parser.add_argument("--out", type=Path, default=Path("outputs/peers"), help="folder for results")
    parser.add_argument("--train", choices=["fold", "all"], default="fold", help="training fold, or all good images")
    parser.add_argument("--limit-train", type=int, metavar="N", help="train on N random images, for a quick test")
    parser.add_argument("--calibrate", action="store_true", help="also count verdicts")
    parser.add_argument("--coreset", choices=["own", "fast"], default="own", help="anomalib's search, or a faster one")
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="time limit per job, including decoding")
    parser.add_argument("--threads", type=int, default=1, help="threads per job")
    given = parser.parse_args()
    console = Console()
    given.out.mkdir(parents=True, exist_ok=True)
    coresets = {"patchcore": given.coreset}
    jobs = [
        Job(folder.resolve(), method, seed, coresets.get(method),
            given.train, given.limit_train, given.calibrate, given.threads)
        for seed in given.seeds  # outermost, so that an interrupted benchmark is still balanced
        for method in given.methods
        for folder in given.data
    ]  # fmt: skip
    results = []
    for number, job in enumerate(jobs, start=1):
        path = given.out / f"{job.name}.json"
        if not is_done(path, given.time_limit):
            console.print(f"[{number}/{len(jobs)}] {job.name}", highlight=False)
            job.run_limited(path, given.time_limit)
        results.append(json.loads(path.read_text()))
    report(results, console)


if __name__ == "__main__":
    main()
