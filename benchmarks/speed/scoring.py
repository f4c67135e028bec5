"""Speed of scoring and estimating relative to the bare forward pass of the same backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from benchmarks.speed.timing import Row, Setting, interleaved
from gaussad_pl.backbones.backbone import Backbone, pool
from gaussad_pl.backbones.folding import folded
from gaussad_pl.density.damage import Damage, DamageMoment
from gaussad_pl.density.moments import moments, update_moments
from gaussad_pl.density.registry import DENSITIES
from gaussad_pl.model.model import GaussianModel

SIZE = 224
FORMS = (None, *DENSITIES)
MAP = {"map_levels": "middle", "combine": "both", "clusters": 512}
WEIGHTS = {"name": "tf_efficientnet_lite0", "weights": "bundled", "levels": None, "image_size": SIZE}


def images(count: int, seed: int = 0) -> Tensor:
    """Return random images ``(N, 3, 224, 224)`` uint8, smooth because the patches of white noise fill few clusters."""
    random = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 28, 28, generator=random)
    return (255 * torch.nn.functional.interpolate(small, size=(SIZE, SIZE), mode="bicubic").clamp(0, 1)).byte()


def models(device: str, forms: Sequence[str | None] = FORMS) -> Iterator[tuple[str, GaussianModel]]:
    """Yield one model per form of the map, "pooled" for None, without one, with Gaussians of random images."""
    for form in forms:
        if form is None:
            yield "pooled", GaussianModel(WEIGHTS).eval().to(device)
            continue
        model = GaussianModel(WEIGHTS, segmentation={"form": form, **MAP})
        model = model.eval().to(device)
        assert model.segmenter is not None
        with torch.no_grad():
            head = model.segmenter.head
            head.gaussians.damage = _damage(head.patches(model.backbone(images(32, 8).to(device))))
            for seed in range(6):
                model.segmenter.observe(model.backbone(images(32, seed).to(device)))
            model.segmenter.estimate()
        yield form, model


def _damage(patches: Tensor) -> Damage:
    """Damage of the default weight that turns patches ``(N, P, D)`` into those of other images."""
    moment = DamageMoment(patches.shape[-1])
    moment.update((patches[1:] - patches[:-1]).flatten(0, 1))
    return Damage(moment.moment(), 0.3)


class Prepared(nn.Module):
    """Backbone with the compilation and precision of the setting, and feature maps in 32 bits."""

    def __init__(self, backbone: Backbone, setting: Setting) -> None:
        super().__init__()
        self.run, self.pool = setting.compiled(backbone.forward), backbone.pool
        self.setting = setting

    def forward(self, x: Tensor) -> list[Tensor]:
        with self.setting.autocast():
            return [level.float() for level in self.run(x)]


def bare_forward(backbone: Backbone, x: Tensor, setting: Setting) -> Callable[[], object]:
    """Return timm's forward pass on normalised images as a function without arguments."""
    normalised = torch.addcmul(backbone.offset, x, backbone.scale).contiguous(memory_format=torch.channels_last)
    forward = setting.compiled(backbone.model.forward_features)

    def run() -> object:
        with setting.autocast():
            return forward(normalised)

    return run


@torch.inference_mode()
def scoring(setting: Setting, batch: int, repeats: int) -> list[Row]:
    """Part 1: every kind of score relative to the bare forward pass on the same batch."""
    x = images(batch).to(setting.device)
    rows = []
    for form, model in models(setting.device):
        limit = 1.05 if form == "pooled" else 1.15
        plain, backbone = model.backbone, folded(model.backbone)
        bare = bare_forward(plain, x, setting)
        for how, used in (("", plain), (", folded as in the detector", backbone)):
            model.backbone = Prepared(used, setting)  # type: ignore[assignment]
            times = interleaved({"bare": bare, "ours": lambda m=model: m(x)}, repeats, setting.device)  # type: ignore[misc]
            rows.append(Row(1, f"scoring{how}", times["ours"] / times["bare"], "bare forward", limit, form=form))
    return rows


@torch.inference_mode()
def estimating(setting: Setting, batch: int, repeats: int) -> list[Row]:
    """Part 4: estimating Gaussians in one pass over eight batches, relative to bare forward passes.

    Eight batches of 32 are about the size of a category.
    """
    batches = [images(batch, seed).to(setting.device) for seed in range(8)]
    pooled, position = (model for _, model in models(setting.device, (None, "position")))
    forwards = [bare_forward(pooled.backbone, x, setting) for x in batches]
    run = Prepared(pooled.backbone, setting)

    def bare() -> None:
        for forward in forwards:
            forward()

    def estimate() -> None:
        total = None
        for x in batches:
            levels = pool(run(x))
            total = [moments(level) for level in levels] if total is None else update_moments(total, levels)
        for gaussian, level in zip(pooled.gaussians, total or [], strict=True):
            gaussian.fit(level)

    def observe() -> None:
        assert position.segmenter is not None
        for x in batches:
            maps = run(x)
            pool(maps)
            position.segmenter.observe(maps)

    def factorise() -> None:
        assert position.segmenter is not None
        position.segmenter.estimate()

    times = interleaved(
        {"bare": bare, "pooled": estimate, "position": observe, "factorise": factorise}, repeats, setting.device
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
        Row(4, "observing patches by position", times["position"] / times["bare"], "bare forwards"),
        Row(4, "factorising 784 covariances of 152", times["factorise"] / times["bare"], "bare forwards"),
    ]
