"""Scoring and estimating against the bare forward pass of the same backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.speed.timing import Row, interleaved
from gaussad_pl.anomaly_maps import FORMS
from gaussad_pl.backbone import Backbone, pool
from gaussad_pl.folding import folded
from gaussad_pl.gaussian import moments, take_in
from gaussad_pl.model import GaussianModel

SIZE = 224
WEIGHTS = {"name": "tf_efficientnet_lite0", "weights": "bundled", "levels": None, "image_size": SIZE}


def images(count: int, seed: int = 0) -> Tensor:
    """Smooth random images ``(N, 3, 224, 224)``, uint8: patches of noise alone would all fall into few clusters."""
    random = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 28, 28, generator=random)
    return (255 * torch.nn.functional.interpolate(small, size=(SIZE, SIZE), mode="bicubic").clamp(0, 1)).byte()


def models(device: str) -> Iterator[tuple[str, GaussianModel]]:
    """The pooled model, and one with each form of the map, with Gaussians of random images."""
    pooled = GaussianModel(WEIGHTS).eval().to(device)
    yield "pooled", pooled
    for form in FORMS:
        model = GaussianModel(WEIGHTS, segmentation={"form": form, "map_levels": "middle", "combine": "both"})
        model = model.eval().to(device)
        assert model.segmenter is not None
        with torch.no_grad():
            for seed in range(6):
                model.segmenter.observe(model.backbone(images(32, seed).to(device)))
            model.segmenter.estimate()
        yield f"with the map of {form}", model


def bare_forward(backbone: Backbone, x: Tensor) -> Callable[[], object]:
    """timm's own forward pass on normalised images."""
    normalised = torch.addcmul(backbone.offset, x, backbone.scale).contiguous(memory_format=torch.channels_last)
    return lambda: backbone.model.forward_features(normalised)


@torch.inference_mode()
def scoring(device: str, batch: int, repeats: int) -> list[Row]:
    """Part 1: every kind of score against the bare forward pass on the same batch."""
    x = images(batch).to(device)
    rows = []
    for name, model in models(device):
        limit = 1.05 if name == "pooled" else 1.15
        plain, backbone = model.backbone, folded(model.backbone)
        for how, used in (("", plain), (", folded as the detector does", backbone)):
            model.backbone = used
            times = interleaved({"bare": bare_forward(plain, x), "ours": lambda m=model: m(x)}, repeats, device)  # type: ignore[misc]
            rows.append(Row(1, f"scoring, {name}{how}", times["ours"] / times["bare"], "bare forward", limit))
    return rows


@torch.inference_mode()
def estimating(device: str, batch: int, repeats: int) -> list[Row]:
    """Part 4: the Gaussians of one pass over four batches against the bare forward passes."""
    batches = [images(batch, seed).to(device) for seed in range(4)]
    pooled, position, *_ = (model for _, model in models(device))

    def bare() -> None:
        for x in batches:
            bare_forward(pooled.backbone, x)()

    def estimate() -> None:
        total = None
        for x in batches:
            found = pooled.backbone.pooled(x)
            total = [moments(level) for level in found] if total is None else take_in(total, found)
        for gaussian, level in zip(pooled.gaussians, total or [], strict=True):
            gaussian.fit(level)

    def observe() -> None:
        assert position.segmenter is not None
        for x in batches:
            maps = position.backbone(x)
            pool(maps)
            position.segmenter.observe(maps)

    def factorise() -> None:
        assert position.segmenter is not None
        position.segmenter.estimate()

    times = interleaved(
        {"bare": bare, "pooled": estimate, "position": observe, "factorise": factorise}, repeats, device
    )
    count = len(batches) * batch
    return [
        Row(
            4,
            f"estimating the pooled Gaussians, {count} images",
            times["pooled"] / times["bare"],
            "bare forwards",
            1.10,
        ),
        Row(4, "taking in patches by position", times["position"] / times["bare"], "bare forwards"),
        Row(4, "factorising 784 covariances of 152", times["factorise"] / times["bare"], "bare forwards"),
    ]
