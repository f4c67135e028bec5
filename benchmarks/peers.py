"""Benchmark of PaDiM and PatchCore on the same weights, images and splits.

Runs the unmodified torch models of anomalib in a separate environment. From the project folder:

    python3 -m venv build/peers
    build/peers/bin/pip install --constraint constraints.txt --requirement benchmarks/peers.txt --editable .
    build/peers/bin/python -m benchmarks.peers --data /data/mvtec_ad/screw /data/magnetic_tile/tile \\
        --methods padim patchcore --seeds 0 1 2 --time-limit 7200 --out outputs/peers

Every job is a process with one thread (``--threads``) and writes one JSON file. Jobs whose file exists are skipped,
except for jobs that timed out under a shorter limit. By default the models train on the same fold as gaussad_pl; as
they need no validation images, ``--train all`` adds the held-out ones.

The time of PatchCore's coreset search grows with the square of the number of images. ``--coreset fast`` finds the same
coreset in less time: use it to compare accuracy, not speed.
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
from hydra.utils import instantiate
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.jobs import clocks, compose_job, grouped, since
from gaussad_pl.backbones.backbone import Backbone
from gaussad_pl.data.base import ImageDataModule
from gaussad_pl.data.images import MASK_SIZE
from gaussad_pl.files import write_json
from gaussad_pl.memory import keep_freed_memory
from gaussad_pl.metrics.image import image_metrics
from gaussad_pl.metrics.pixel import pixel_metrics
from gaussad_pl.results.provenance import PACKAGES
from gaussad_pl.version import __version__

BACKBONE = "tf_efficientnet_lite0"
# stage in timm: (level in gaussad_pl, stride)
STAGES = {"blocks.1": (2, 4), "blocks.2": (3, 8), "blocks.4": (5, 16)}
LAYERS = {"padim": ["blocks.1", "blocks.2", "blocks.4"], "patchcore": ["blocks.2", "blocks.4"]}
PADIM_FEATURES = 100
CORESET = 0.1
NEIGHBOURS = 9
BATCH = 32


def build(method: str, coreset: str | None) -> Any:
    """Build anomalib's model with the weights that gaussad_pl uses."""
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
    """Load the bundled weights into anomalib's extractor, and check that its feature maps agree with gaussad_pl's."""
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
    """Normalise uint8 ``images`` ``(N, 3, H, W)`` as gaussad_pl's backbone does."""
    return (images / 255 - 0.5) / 0.5


def _fast_coreset(sampler: Any) -> list[int]:
    """Replace ``KCenterGreedy.select_coreset_idxs``, with the same random draws and the same result."""
    features = sampler.model.fit(sampler.embedding).transform(sampler.embedding)
    first = int(torch.randint(high=len(features), size=(1,)))
    return farthest_first(features, first, sampler.coreset_size)


def farthest_first(features: Tensor, first: int, count: int, active: int = 2048) -> list[int]:
    """Return the ``count`` points that k-center-greedy picks among ``features`` ``(N, D)``, starting with ``first``.

    The distance of a point to its nearest pick can only decrease. Points whose last known distance is below the
    current maximum therefore need no update: only the ``active`` farthest points are updated with every pick, until
    their maximum falls below the distances of the others. Points that become active are then updated with all picks
    they missed: a matrix product finds the nearest picks, up to rounding errors, and the distances to these are
    computed exactly as in anomalib.
    """
    centred = features - features.mean(0)
    norms = centred.square().sum(1)
    rounding = 4 * torch.finfo(features.dtype).eps * features.shape[1] * float(norms.max())
    nearest = torch.linalg.norm(features - features[first], dim=1)
    picks, seen = [first], torch.ones(len(features), dtype=torch.long)  # seen: number of picks included in `nearest`
    while len(picks) < count:
        limit = nearest.topk(min(active, len(nearest)), sorted=False).values.min()
        chosen = (nearest >= limit).nonzero().squeeze(1)  # in order of index: anomalib breaks ties by the first
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
    """One model on one dataset; the fields correspond to the command-line options."""

    folder: Path
    method: str
    seed: int
    coreset: str | None
    train: str
    limit_train: int | None
    threads: int

    @property
    def name(self) -> str:
        """Unique name, used for the JSON file."""
        search = f"-{self.coreset}" if self.coreset else ""
        return f"{self.folder.name}-{self.method}{search}-{self.train}{self.limit_train or ''}-seed{self.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        own = {**vars(self), "dataset": self.folder.name, "fold": self.seed % 5, "layers": LAYERS[self.method]}
        del own["folder"]
        return own

    def data(self) -> ImageDataModule:
        """Return the dataset with the split that gaussad_pl uses with this seed, see `benchmarks.fine_tuning`."""
        config = compose_job(self.folder, self.seed, [])
        return grouped(instantiate(config.data), config)

    def training_images(self, data: ImageDataModule) -> Tensor:
        """Return the training images of the fold, or all good images, or a random sample of `limit_train` of them."""
        indices = torch.tensor(data.split[0] if self.train == "fold" else data.split[0] + data.split[1])
        order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(self.seed))
        return data.good_images[indices[order[: self.limit_train]].sort().values]

    def run(self, path: Path) -> None:
        """Fit, score and time the model, and write the results to ``path``."""
        warnings.filterwarnings("ignore")
        if self.coreset != "own":  # anomalib's own search would fragment the memory until it runs out
            keep_freed_memory()  # as in gaussad_pl's own commands
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


def fit(model: Any, method: str, images: Tensor) -> dict[str, float]:
    """Fit the model to uint8 ``images``, with the steps of anomalib's Lightning modules, and return the seconds."""
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
    """Return the scores ``(N,)`` and maps ``(N, H, W)`` of the model, and the seconds it took."""
    start = clocks()
    results = [model(normalised(batch)) for batch in images.split(BATCH)]
    seconds = since(start, "score")
    scores, maps = ([getattr(r, name) for r in results] for name in ("pred_score", "anomaly_map"))
    return torch.cat(scores).flatten(), torch.cat(maps).squeeze(1), seconds


def state_bytes(module: nn.Module) -> int:
    """Return the size of the saved state of a module in bytes."""
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    return buffer.tell()


def is_done(path: Path, limit: float | None) -> bool:
    """Return whether a job has a result, or timed out under a limit at least as long as this one."""
    if not path.is_file():
        return False
    failed_at: float | None = json.loads(path.read_text()).get("time_limit")
    return failed_at is None or (limit is not None and limit <= failed_at)


def report(results: list[dict[str, Any]], console: Console) -> None:
    """Print one row per job: metrics in percent, times in seconds, size of the saved state in megabytes."""
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
    """Run all jobs that have no result yet, and report all results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders in the layout of MVTec AD")
    parser.add_argument("--methods", nargs="+", choices=LAYERS, default=list(LAYERS), help="models to run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="random seeds; one job per seed")
    parser.add_argument("--out", type=Path, default=Path("outputs/peers"), help="folder for results")
    parser.add_argument("--train", choices=["fold", "all"], default="fold", help="training fold, or all good images")
    parser.add_argument("--limit-train", type=int, metavar="N", help="train on N random images, for a quick test")
    parser.add_argument("--coreset", choices=["own", "fast"], default="own", help="anomalib's search, or a faster one")
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="time limit per job, including decoding")
    parser.add_argument("--threads", type=int, default=1, help="threads per job")
    given = parser.parse_args()
    console = Console()
    given.out.mkdir(parents=True, exist_ok=True)
    common = {"train": given.train, "limit_train": given.limit_train, "threads": given.threads}
    coresets = {"padim": None, "patchcore": given.coreset}
    jobs = [
        Job(folder.resolve(), method, seed, coresets[method], **common)
        for seed in given.seeds  # outermost, so that an interrupted benchmark is still balanced
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
