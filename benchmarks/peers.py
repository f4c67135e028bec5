"""How do PaDiM and PatchCore do on the same weights, images and splits?

Runs the torch models of anomalib, its own code unchanged, in an environment of its own. From the project's folder:

    python3 -m venv build/peers
    build/peers/bin/pip install --constraint constraints.txt --requirement benchmarks/peers.txt --editable .
    build/peers/bin/python -m benchmarks.peers --data /data/mvtec_ad/screw /data/magnetic_tile/tile \\
        --methods padim patchcore --seeds 0 1 2 --time-limit 7200 --out outputs/peers

Every job is a process with one thread (``--threads``) and leaves one JSON file: what is there already is not computed
again, unless it is a job that ran out of time and this time has more. By default the models see the images of the fold
that gaussad_pl trains on; they need none for validation, so ``--train all`` gives them the rest, too.

PatchCore's search for its coreset takes time that grows with the square of the number of images. ``--coreset fast``
finds the same picks sooner: right for a comparison of accuracies, wrong for one of times.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import platform
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.jobs import clocks, compose_job, grouped_data, since
from gaussad_pl.backbones.backbone import Backbone
from gaussad_pl.cli.hydra_command import keep_freed_memory
from gaussad_pl.data.base import ImageDataModule
from gaussad_pl.data.images import MASK_SIZE
from gaussad_pl.files import write_json
from gaussad_pl.metrics.image import image_metrics
from gaussad_pl.metrics.pixel import pixel_metrics
from gaussad_pl.results.evaluation import PACKAGES
from gaussad_pl.version import __version__

BACKBONE = "tf_efficientnet_lite0"
# name of the stage in timm -> its level in gaussad_pl and its stride
STAGES = {"blocks.1": (2, 4), "blocks.2": (3, 8), "blocks.4": (5, 16)}
LAYERS = {"padim": ["blocks.1", "blocks.2", "blocks.4"], "patchcore": ["blocks.2", "blocks.4"]}
PADIM_FEATURES = 100
CORESET = 0.1
NEIGHBOURS = 9
BATCH = 32


def build(method: str, coreset: str | None) -> Any:
    """anomalib's model with the weights that gaussad_pl uses."""
    from anomalib.models.components.sampling import k_center_greedy
    from anomalib.models.image.padim.torch_model import PadimModel
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    if coreset == "fast":
        k_center_greedy.KCenterGreedy.select_coreset_idxs = _fast_coreset
    common = {"backbone": BACKBONE, "layers": LAYERS[method], "pre_trained": False}
    if method == "padim":
        model = PadimModel(**common, n_features=PADIM_FEATURES)
    else:
        model = PatchcoreModel(**common, num_neighbors=NEIGHBOURS)
    _load_weights(model.feature_extractor, LAYERS[method])
    return model


@torch.no_grad()
def _load_weights(extractor: Any, layers: list[str]) -> None:
    """Put the bundled weights into anomalib's extractor, and check that both give the same feature maps."""
    ours = Backbone(BACKBONE, "bundled", [STAGES[layer][0] for layer in layers])
    source, target = ours.model.state_dict(), extractor.feature_extractor
    target.load_state_dict({key: source[key] for key in target.state_dict()})
    torch.testing.assert_close(target.conv_stem.weight, source["conv_stem.weight"], rtol=0, atol=0)
    images = torch.randint(256, (2, 3, 224, 224), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    theirs = extractor(normalised(images))
    for layer, expected in zip(layers, ours(images), strict=True):
        assert theirs[layer].shape[-1] == 224 // STAGES[layer][1]
        torch.testing.assert_close(theirs[layer], expected, rtol=1e-3, atol=1e-3)


def normalised(images: Tensor) -> Tensor:
    """What gaussad_pl's backbone makes of uint8 ``images``, in the layout that anomalib's models get: NCHW."""
    return (images / 255 - 0.5) / 0.5


def _fast_coreset(sampler: Any) -> list[int]:
    """In place of ``KCenterGreedy.select_coreset_idxs``: the same draws from the random numbers, and the same picks."""
    features = sampler.model.fit(sampler.embedding).transform(sampler.embedding)
    first = int(torch.randint(high=len(features), size=(1,)))
    return farthest_first(features, first, sampler.coreset_size)


def farthest_first(features: Tensor, first: int, count: int, active: int = 2048) -> list[int]:
    """The ``count`` points that k-center-greedy picks among ``features`` ``(N, D)``, from ``first`` on.

    A point's distance to its nearest pick can only fall. So those that were below the present maximum when they were
    last measured need no new measurement yet: only the ``active`` farthest points are kept up to date, pick by pick,
    until their maximum falls below the rest. New ones catch up with all picks since at once, by a matrix product that
    finds the nearest pick (all that are within the rounding error); the distance itself is taken as anomalib takes it.
    """
    centred = features - features.mean(0)
    norms = centred.square().sum(1)
    rounding = 4 * torch.finfo(features.dtype).eps * features.shape[1] * float(norms.max())
    nearest = torch.linalg.norm(features - features[first], dim=1)
    picks, seen = [first], torch.ones(len(features), dtype=torch.long)  # seen: the picks that `nearest` knows of
    while len(picks) < count:
        limit = nearest.topk(min(active, len(nearest)), sorted=False).values.min()
        chosen = (nearest >= limit).nonzero().squeeze(1)  # by index: of equals anomalib takes the first
        for rows in chosen[seen[chosen].argsort()].split(512):
            new = torch.tensor(picks[int(seen[rows].min()) :], dtype=torch.long)
            if len(new):
                squared = torch.addmm(norms[new], centred[rows], centred[new].T, alpha=-2)
                row, column = (squared <= squared.amin(1, keepdim=True) + rounding).nonzero(as_tuple=True)
                distances = torch.linalg.norm(features[rows[row]] - features[new[column]], dim=1)
                nearest.scatter_reduce_(0, rows[row], distances, "amin")
        points, distances = features[chosen], nearest[chosen]
        while len(picks) < count:
            farthest, best = distances.max(dim=0)
            if farthest < limit:
                break
            picks.append(int(chosen[best]))
            distances = torch.minimum(distances, torch.linalg.norm(points - points[best], dim=1))
        nearest[chosen], seen[chosen] = distances, len(picks)
    return picks


@dataclass(frozen=True)
class Job:
    """One model on one dataset; the fields are those of the command line."""

    folder: Path
    method: str
    seed: int
    coreset: str | None
    train: str
    limit_train: int | None
    threads: int

    @property
    def name(self) -> str:
        """What tells its JSON file from others."""
        search = f"-{self.coreset}" if self.coreset else ""
        return f"{self.folder.name}-{self.method}{search}-{self.train}{self.limit_train or ''}-seed{self.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        own = {**vars(self), "dataset": self.folder.name, "fold": self.seed % 5, "layers": LAYERS[self.method]}
        del own["folder"]
        return own

    def data(self) -> ImageDataModule:
        """The dataset and the split that gaussad_pl trains on with this seed; see `benchmarks.fine_tuning`."""
        return grouped_data(compose_job(self.folder, self.seed, []))

    def training_images(self, data: ImageDataModule) -> Tensor:
        """Those that gaussad_pl trains on, or all; with `limit_train` a random part of them."""
        indices = torch.tensor(data.split[0] if self.train == "fold" else data.split[0] + data.split[1])
        order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(self.seed))
        return data.good_images[indices[order[: self.limit_train]].sort().values]

    def run(self, path: Path) -> None:
        """Fit, score and measure the model, and write ``path``."""
        warnings.filterwarnings("ignore")
        if self.coreset != "own":  # that search scatters small tensors among large ones, and memory would run out
            keep_freed_memory()  # as gaussad_pl does for itself
        torch.set_num_threads(self.threads)
        data = self.data()
        train = self.training_images(data)
        test = torch.cat([batch["image"] for batch in data.test_dataloader()])
        labels = torch.tensor([sample.label for sample in data.test_samples])
        L.seed_everything(self.seed, verbose=False)
        model = build(self.method, self.coreset)
        fit_times = fit(model, self.method, train)
        scores, maps, score_times = score(model, test)
        maps = F.interpolate(maps[:, None], (MASK_SIZE, MASK_SIZE), mode="bilinear", align_corners=False)[:, 0]
        content = {
            **self.settings,
            "train_images": len(train),
            "test_images": len(test),
            **image_metrics(scores, labels),
            **pixel_metrics(maps, data.test_masks, labels),
            **fit_times,
            **score_times,
            "score_seconds_per_image": score_times["score_seconds"] / len(test),
            "state_bytes": state_bytes(model),
            "backbone_bytes": state_bytes(model.feature_extractor),
            "versions": {
                "python": platform.python_version(),
                "gaussad_pl": __version__,
                **{name: version(name) for name in ("anomalib", *PACKAGES)},
            },
        }
        write_json(path, content)

    def run_limited(self, path: Path, limit: float | None) -> None:
        """Run in a process of its own, which ends after ``limit`` seconds."""
        process = multiprocessing.get_context("spawn").Process(target=self.run, args=(path,))
        process.start()
        process.join(limit)
        if process.is_alive():
            process.kill()
            process.join()
            write_json(path, {**self.settings, "failure": f"not finished within {limit:g} s", "time_limit": limit})
        elif process.exitcode:
            raise SystemExit(f"{self.name}: ended with exit code {process.exitcode}")


def fit(model: Any, method: str, images: Tensor) -> dict[str, float]:
    """Fit the model to uint8 ``images``, step by step what anomalib's Lightning modules do; the seconds it took."""
    start = clocks()
    model.train()
    for batch in images.split(BATCH):
        model(normalised(batch))
    if method == "padim":
        model.fit()
    else:
        model.subsample_embedding(CORESET)
    model.eval()
    return since(start, "fit")


@torch.inference_mode()
def score(model: Any, images: Tensor) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Scores ``(N,)`` and maps ``(N, H, W)`` as the model gives them, and the seconds it took."""
    start = clocks()
    results = [model(normalised(batch)) for batch in images.split(BATCH)]
    seconds = since(start, "score")
    scores, maps = ([getattr(r, name) for r in results] for name in ("pred_score", "anomaly_map"))
    return torch.cat(scores).flatten(), torch.cat(maps).squeeze(1), seconds


def state_bytes(module: nn.Module) -> int:
    """Size of the module's saved state."""
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    return buffer.tell()


def is_done(path: Path, limit: float | None) -> bool:
    """Whether there is a result, or a failure that this time limit would only repeat."""
    if not path.is_file():
        return False
    failed_at: float | None = json.loads(path.read_text()).get("time_limit")
    return failed_at is None or (limit is not None and limit <= failed_at)


def report(results: list[dict[str, Any]], console: Console) -> None:
    """One row a job: metrics in percent, times in seconds, the saved state in megabytes."""
    scales = {"image_auroc": 100, "pixel_auroc": 100, "aupro": 100, "fit_seconds": 1, "score_seconds": 1,
              "state_bytes": 1e-6}  # fmt: skip
    headings = ("images", "AUROC", "pixel", "AUPRO", "fit s", "score s", "MB")
    table = Table(Column("job", no_wrap=True), *headings, box=None)
    for r in results:
        name = " ".join(filter(None, [r["dataset"], r["method"], r["coreset"], r["train"], str(r["seed"])]))
        values = [f"{r[key] * scale:.1f}" if r.get(key) is not None else "-" for key, scale in scales.items()]
        table.add_row(name, str(r.get("train_images", r.get("failure"))), *values)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders in the layout of MVTec AD")
    parser.add_argument("--methods", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("outputs/peers"))
    parser.add_argument("--train", choices=["fold", "all"], default="fold", help="the images gaussad_pl uses, or all")
    parser.add_argument("--limit-train", type=int, metavar="N", help="train on N of them, for a quick try")
    parser.add_argument("--coreset", choices=["own", "fast"], default="own", help="whose search, with the same picks")
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="for each job, decoding included")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    console = Console()
    given.out.mkdir(parents=True, exist_ok=True)
    common = {"train": given.train, "limit_train": given.limit_train, "threads": given.threads}
    coresets = {"padim": None, "patchcore": given.coreset}
    jobs = [
        Job(folder.resolve(), method, seed, coresets[method], **common)
        for seed in given.seeds  # all methods of one seed first: an interrupted benchmark is still balanced
        for method in given.methods
        for folder in given.data
    ]
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
