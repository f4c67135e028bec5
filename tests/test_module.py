"""The LightningModule: what is estimated when, what the loss is, what the state holds."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from conftest import TINY
from sklearn.covariance import LedoitWolf
from torch import Tensor

from gaussad_pl.errors import UserError
from gaussad_pl.model.precision import forbid_tf32
from gaussad_pl.training.module import GaussianAD

IMAGES = torch.randint(256, (40, 3, 64, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def batches(images: Tensor = IMAGES, size: int = 16) -> list[dict[str, Tensor]]:
    return [{"image": part} for part in images.split(size)]


def tiny(**settings: object) -> GaussianAD:
    torch.manual_seed(0)
    return GaussianAD(TINY, **settings).eval()  # type: ignore[arg-type]


def test_scores_equal_scikit_learn_on_the_same_features() -> None:
    model = tiny()
    model.estimate(batches())
    other = torch.randint(256, (5, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        distances = model(other).distances
        for column, train, test in zip(
            distances.T, model.model.backbone.pooled(IMAGES), model.model.backbone.pooled(other), strict=True
        ):
            reference = LedoitWolf().fit(train.double().numpy())
            expected = torch.from_numpy(reference.mahalanobis(test.double().numpy())).sqrt()
            torch.testing.assert_close(column.double(), expected, rtol=1e-3, atol=1e-3)


def test_the_estimate_does_not_depend_on_the_batches() -> None:
    one, other = tiny(), tiny()
    one.estimate(batches(size=40))
    other.estimate(batches(IMAGES.flip(0), size=7))
    for a, b in zip(one.model.gaussians, other.model.gaussians, strict=True):
        torch.testing.assert_close(a.mean, b.mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(one(IMAGES[:4]).distances, other(IMAGES[:4]).distances, rtol=1e-3, atol=1e-3)


def test_the_backbone_stays_in_eval_mode_and_yet_learns() -> None:
    model = tiny()
    model.estimate(batches())
    model.train()
    assert model.training and not any(module.training for module in model.model.backbone.modules())
    before = {name: buffer.clone() for name, buffer in model.model.backbone.named_buffers()}
    model.log = lambda *args, **kwargs: None  # type: ignore[method-assign, assignment]  # no trainer here
    model.training_step(batches()[0], 0).backward()
    assert all(p.grad is not None for p in model.model.backbone.parameters() if p.requires_grad)
    assert all(torch.equal(before[name], buffer) for name, buffer in model.model.backbone.named_buffers())


def test_the_loss_is_the_mean_sum_of_distances_to_the_target() -> None:
    model = tiny()
    model.estimate(batches())
    model.log = lambda *args, **kwargs: None  # type: ignore[method-assign, assignment]
    loss = model.training_step(batches()[0], 0)
    torch.testing.assert_close(loss, model(IMAGES[:16]).distances.sum(1).mean())


def test_only_the_chosen_levels_train() -> None:
    model = tiny(train_levels=[-1])
    trained = [p for p in model.model.backbone.parameters() if p.requires_grad]
    assert 0 < len(trained) < len(list(model.model.backbone.parameters()))
    last = len(model.model.backbone.levels) - 1
    assert {id(p) for p in trained} == {id(p) for p in model.model.backbone.parameters_of([last])}


def perturb(model: GaussianAD) -> None:
    with torch.no_grad():
        for parameter in model.model.backbone.parameters():
            parameter += 0.05 * parameter.abs().mean() * torch.randn_like(parameter)


@pytest.mark.parametrize(("running", "moves"), [("fixed", False), ("epoch", True)])
def test_the_target_moves_with_the_estimate_only_if_asked(running: str, moves: bool) -> None:
    model = tiny(running=running)
    model.estimate(batches())
    before = model.targets[0].mean.clone()
    perturb(model)
    model.estimate(batches())
    assert torch.equal(model.targets[0].mean, before) != moves
    assert not torch.equal(model.model.gaussians[0].mean, before)


def test_ema_targets_follow_the_batches() -> None:
    model = tiny(running="ema")
    model.estimate(batches())
    before = model.targets[0].mean.clone()
    model.log = lambda *args, **kwargs: None  # type: ignore[method-assign, assignment]
    model.training_step({"image": IMAGES[:16] // 2}, 0)
    assert not torch.equal(model.targets[0].mean, before)
    assert float(model.targets[0].count) == pytest.approx(len(IMAGES))


def test_without_refit_the_gaussian_of_the_loss_scores() -> None:
    model = tiny(refit=False)
    model.estimate(batches())
    fixed = model.model.gaussians[0].whitener.clone()
    perturb(model)
    model.stale = True
    model.prepare_scores()
    assert torch.equal(model.model.gaussians[0].whitener, fixed)


def test_snapshot_and_restore_bring_the_scores_back_bit_for_bit() -> None:
    model = tiny()
    model.estimate(batches())
    with torch.no_grad():
        expected = model(IMAGES[:4]).distances
        snapshot = model.snapshot()
        perturb(model)
        model.estimate(batches())
        assert not torch.equal(model(IMAGES[:4]).distances, expected)
        model.restore(snapshot)
        assert torch.equal(model(IMAGES[:4]).distances, expected)


def test_a_checkpoint_holds_plain_types_and_loads_without_the_pretrained_weights(tmp_path: Path) -> None:
    model = tiny(train_levels=[1, 2])
    model.estimate(batches())
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    loaded = GaussianAD.load(tmp_path / "model.ckpt")  # torch.load(..., weights_only=True) inside
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES[:4]).distances, model(IMAGES[:4]).distances)


def test_unknown_running_estimate_is_a_clear_error() -> None:
    with pytest.raises(UserError, match="model.running=sometimes: expected fixed, epoch or ema"):
        tiny(running="sometimes")


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_off_for_all_that_is_a_distance(allowed: bool) -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
        forbid_tf32()
        assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.cuda
def test_distances_on_a_gpu_are_those_of_the_processor() -> None:
    forbid_tf32()
    model = tiny()
    model.estimate(batches())
    with torch.no_grad():
        expected = model(IMAGES[:8]).distances
        found = model.to("cuda")(IMAGES[:8].to("cuda")).distances.cpu()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
