"""The ranking objective, the pairs it is trained on, and the acceptance of what it has trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from sklearn.metrics import roc_auc_score
from test_datamodules import mvtec
from torch import Tensor

from gaussad_pl.data.pairs import PairSampler, fixed_batches
from gaussad_pl.errors import UserError
from gaussad_pl.training.acceptance import Judgement, gain, judge_network
from gaussad_pl.training.module import GaussianAD, rate_factor
from gaussad_pl.training.ranking import Ranking, ranking_loss

DAMAGES = {"cutpaste": 0.5, "scar": 0.5}


# ------------------------------------------------------------------------------------------------------------ the pairs


def test_a_batch_has_images_of_one_half_and_copies_damaged_where_the_mask_says(parts: Path) -> None:
    data = mvtec(parts, pairs=True, damages=DAMAGES, augmentations={"elastic": 0.5}, batch_size=8, steps_per_epoch=4)
    assert sorted(i for half in data.halves for i in half) == data.split[0]
    batches = list(data.train_dataloader())
    assert [len(batch["image"]) for batch in batches] == [4] * 4
    assert [set(batch["half"].tolist()) for batch in batches] == [{0}, {1}, {0}, {1}]
    for batch in batches:
        changed = (batch["image"] != batch["copy"]).any(1)
        assert (changed & ~batch["mask"]).sum() == 0 and batch["mask"].any((1, 2)).all()


def test_pairs_depend_on_seed_and_epoch_alone() -> None:
    def draws(seed: int, epoch: int) -> list[Any]:
        sampler = PairSampler([[0, 1, 2], [3, 4]], families=2, batch_size=2, steps=3, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert draws(0, 1) == draws(0, 1)
    assert draws(0, 0) != draws(0, 1) != draws(1, 1)
    assert fixed_batches([5, 6, 7], [0, 0, 0], 2, 4, seed=0) == fixed_batches([5, 6, 7], [0, 0, 0], 2, 4, seed=0)
    assert [len(batch) for batch in fixed_batches([5, 6, 7], [0, 0, 0], 2, 4, seed=0)] == [4, 2]


def test_the_loss_may_not_use_every_augmentation_of_the_validation(parts: Path) -> None:
    with pytest.raises(UserError, match="add one that is not"):
        mvtec(parts, pairs=True, damages=DAMAGES, augmentations={"scar": 0.5})
    data = mvtec(parts, pairs=True, damages=DAMAGES, augmentations={"scar": 0.5, "elastic": 0.5})
    assert data.unseen_augmentations == ["elastic"]
    assert mvtec(parts, damages=DAMAGES, augmentations={"scar": 0.5}).unseen_augmentations == ["scar"]


# ------------------------------------------------------------------------------------------------------------- the loss


def test_the_ranking_loss_is_the_mean_over_all_pairs() -> None:
    good, damaged = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 5.0, 4.0])
    pairs = [np.log1p(np.exp(-(d - g) / 0.7)) for g in good.tolist() for d in damaged.tolist()]
    assert float(ranking_loss(good, damaged, torch.tensor(0.7))) == pytest.approx(np.mean(pairs), rel=1e-6)


def trainable(**settings: Any) -> GaussianAD:
    torch.manual_seed(0)
    model = GaussianAD(
        TINY,
        segmentation={"form": "shared", "map_levels": "middle"},
        objective=Ranking(**settings),
        train_levels="auto",
    )
    model.model.level_weights[:3] = 0
    return model.eval()


def random_batch(seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (4, 3, 64, 64), generator=rng, dtype=torch.uint8)
    mask = torch.zeros(4, 64, 64, dtype=torch.bool)
    mask[:, 10:30, 20:40] = True
    copies = torch.where(mask[:, None], 255 - images, images)
    return {"image": images, "copy": copies, "mask": mask, "half": torch.zeros(4, dtype=torch.int64)}


def good_halves() -> list[list[dict[str, Tensor]]]:
    rng = torch.Generator().manual_seed(9)
    return [[{"image": torch.randint(256, (12, 3, 64, 64), generator=rng, dtype=torch.uint8)}] for _ in range(2)]


def test_steps_down_the_loss_rank_the_copies_higher_and_leave_frozen_levels_alone() -> None:
    model = trainable()
    model.objective.prepare(model.model, good_halves())  # type: ignore[union-attr]
    before = {name: p.detach().clone() for name, p in model.model.backbone.named_parameters()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    losses = []
    for _ in range(6):
        loss = model.objective(random_batch())  # type: ignore[call-arg]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.01
    moved = {name for name, p in model.model.backbone.named_parameters() if not torch.equal(p, before[name])}
    assert moved and moved <= {name for name, p in model.model.backbone.named_parameters() if p.requires_grad}


def test_distillation_is_zero_at_first_and_holds_the_features() -> None:
    with_it, without = trainable(distillation=5.0), trainable(distillation=0.0)
    for model in (with_it, without):
        model.objective.prepare(model.model, good_halves())  # type: ignore[union-attr]
    first = [float(model.objective(random_batch())) for model in (with_it, without)]  # type: ignore[call-arg]
    assert first[0] == pytest.approx(first[1], rel=1e-4)  # the student is the teacher
    with torch.no_grad():
        for model in (with_it, without):
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    moved = [float(model.objective(random_batch())) for model in (with_it, without)]  # type: ignore[call-arg]
    assert moved[0] > moved[1] + 0.01


def test_each_half_is_measured_by_the_gaussians_of_the_other() -> None:
    halves = good_halves()
    crossed, own = trainable(cross_fit=True), trainable(cross_fit=False)
    for model in (crossed, own):
        model.objective.prepare(model.model, halves)  # type: ignore[union-attr]
    batch = random_batch()
    batch["image"] = batch["copy"] = halves[0][0]["image"][:4]
    losses = [float(model.objective(batch)) for model in (crossed, own)]  # type: ignore[call-arg]
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)
    batch["half"] = torch.ones(4, dtype=torch.int64)  # then it is the other way round
    swapped = [float(model.objective(batch)) for model in (crossed, own)]  # type: ignore[call-arg]
    assert swapped[0] != pytest.approx(losses[0], rel=1e-3)


def test_fine_tuning_says_what_stands_in_its_way(parts: Path) -> None:
    data = mvtec(parts, pairs=True, damages=DAMAGES, augmentations={"elastic": 0.5})
    model = trainable()
    assert model.obstacle(data) == ""
    data.halves = [data.split[0]]
    assert "all training images show the same part" in model.obstacle(data)
    model.model.level_weights[3:] = 0
    assert "no level of the pooled score is trained" in model.obstacle(data)
    model.segmenter.weights[0] = 0
    assert "the score is that of the map alone" in model.obstacle(data)


def test_the_rate_rises_and_then_falls_to_zero() -> None:
    factors = [rate_factor(step, warmup=4, steps=20) for step in range(21)]
    assert factors[:3] == pytest.approx([0.2, 0.4, 0.6]) and max(factors) < 1 and factors[20] == pytest.approx(0)
    assert [rate_factor(step, warmup=1, steps=None) for step in range(4)] == [0.5, 1, 1, 1]


# ------------------------------------------------------------------------------------------------------- the acceptance


def judgement(good: np.ndarray, copies: np.ndarray) -> Judgement:
    order = torch.from_numpy((copies[None, :] > good[:, None]).astype(float))
    return Judgement(order[None], torch.full((1, len(good)), float("nan"), dtype=torch.float64))


def test_the_gain_is_the_difference_of_the_auroc() -> None:
    rng = np.random.default_rng(0)
    good, near, far = rng.normal(size=30), rng.normal(0.2, size=30), rng.normal(2.0, size=30)
    found = gain(judgement(good, near), judgement(good, far), torch.arange(30), share=0.5)
    labels = [0] * 30 + [1] * 30
    expected = roc_auc_score(labels, [*good, *far]) - roc_auc_score(labels, [*good, *near])
    assert found.mean == pytest.approx(expected) and found.share == 0.5
    assert found.probability > 0.99 and not found.is_doubtful
    back = gain(judgement(good, far), judgement(good, near), torch.arange(30), share=0.5)
    assert back.mean == pytest.approx(-expected) and back.probability < 0.01 and back.is_doubtful


def test_a_gain_on_copies_of_one_image_is_less_certain_than_on_copies_of_many() -> None:
    rng = np.random.default_rng(1)
    good, copies = rng.normal(size=40), rng.normal(size=40)
    better = copies + np.where(np.arange(40) % 4 == 0, 3, -0.4)
    many = gain(judgement(good, copies), judgement(good, better), torch.arange(40), 1.0)
    few = gain(judgement(good, copies), judgement(good, better), torch.arange(40) % 4, 1.0)
    assert many.mean == pytest.approx(few.mean) and many.probability > few.probability
    assert (many.images, few.images) == (40, 4)


def test_no_change_is_no_gain() -> None:
    same = judgement(np.arange(5.0), np.arange(5.0))
    found = gain(same, same, torch.arange(5), 1.0)
    assert found.mean == found.probability == 0


def test_a_network_is_judged_by_its_joint_score_and_by_the_pixels_of_each_copy() -> None:
    from test_segmentation import GOOD, combinable, segmenter

    from gaussad_pl.training.map_choice import choose_map

    module, given = segmenter(form="shared", combine="map"), combinable("map")
    choose_map(module, given)

    class Model:
        segmenter = module

    found = judge_network(Model(), given, unseen=[2])  # type: ignore[arg-type]
    maps = next(iter(given.maps.values()))
    scores = module.score(given.pooled, maps)
    rows = (given.groups == 0) | (given.groups == 2)
    assert float(found.order.mean()) == pytest.approx(roc_auc_score(given.groups[rows] > 0, scores[rows]))
    row = int((given.groups == 2).nonzero()[0])
    expected = roc_auc_score(given.masks[row, ::4, ::4].flatten(), maps[row, ::4, ::4].flatten())
    assert found.pixels.shape == (1, GOOD) and float(found.pixels[0, 0]) == pytest.approx(expected)
    alone = judge_network(Model(), given, unseen=[2], pooled_alone=True)  # type: ignore[arg-type]
    assert float(alone.order.mean()) == pytest.approx(roc_auc_score(given.groups[rows] > 0, given.pooled[rows]))
    assert alone.pixels.isnan().all()
