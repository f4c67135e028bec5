"""Mistakes in settings: a line each, all at once, before a folder is made; what users add is left alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import TINY
from lightning.pytorch.callbacks import Callback
from test_conf import composed, names
from test_sweep import NO_MAP, jobs, line, needs
from test_train import QUICK, message, run

from gaussad_pl.cli.settings import mistakes
from gaussad_pl.errors import UserError
from gaussad_pl.results import run_folder

SCREW = "+category=screw"
SIGNAL = "callbacks.forgetting.signal"
NEEDED = (
    "callbacks.forgetting is required, as it evaluates the augmented validation: do not remove it; fine_tune=false "
    "skips fine-tuning"
)
EPOCHS = "expected 1 or more, or -1 for no limit; fine_tune=false skips training"
TILES = "rows x columns of tiles, as in 2x3, or one number for both, at least 1"
PLUS = "is not in the configuration yet: prefix it with +"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["seed=abc"], "seed=abc: expected a whole number"),
        (["seed=-1"], "seed=-1: expected 0 or more"),
        ([f"seed={2**40}"], f"seed={2**40}: expected 4294967295 or less"),
        (["data.seed=-1"], "data.seed=-1: expected 0 or more"),
        (["data.batch_size=0"], "data.batch_size=0: expected 1 or more"),
        (["data.batch_size=-1"], "data.batch_size=-1: expected 1 or more"),
        (["data.batch_size=2.5"], "data.batch_size=2.5: expected a whole number"),
        (["data.batch_size=${nowhere}"], "data.batch_size=${nowhere}: expected a whole number"),
        (["data.eval_batch_size=0"], "data.eval_batch_size=0: expected 1 or more"),
        (["data.steps_per_epoch=0"], "data.steps_per_epoch=0: expected 1 or more"),
        (["data.light_copies=-1"], "data.light_copies=-1: expected 0 or more"),
        (["data.nuisance.rotate=-5"], "data.nuisance.rotate=-5: expected 0 or more"),
        (["data.nuisance.scale=3"], "data.nuisance.scale=3: expected less than 1"),
        (["data.nuisance.shift=1.5"], "data.nuisance.shift=1.5: expected 1 or less"),
        (["data.nuisance.photometric=1"], "data.nuisance.photometric=1: expected less than 1"),
        (["data.nuisance=5"], "data.nuisance=5: expected a group of settings"),
        (["data.root=2024"], "data.root=2024: expected text; put numbers in quotes"),
        (["data=folder", "data.root=x", "~category", "data.holdout=2"], "data.holdout=2: expected less than 1"),
        (["data=folder", "~category"], "data.root is missing: give it on the command line, as data.root=..."),
        (
            ["~category"],
            "no category chosen: add one, for example +category=screw, or data.category=candle with data=visa; "
            "for images of your own: data=folder data.root=<folder of good parts>",
        ),
        (["folds=1"], "folds=1: expected 0, or 2 or more"),
        (["fold=5"], "fold=5: expected less than folds=5"),
        (["folds=0", "fold=1"], "fold=1: expected 0 with folds=0"),
        (["augmentation.cutmix=1.5"], "augmentation.cutmix=1.5: expected 1 or less"),
        (["augmentation.cutmix=0"], "augmentation.cutmix=0: expected more than 0"),
        (["backbone.image_size=7"], "backbone.image_size=7: expected 32 or more"),
        *(
            ([f"data.tiles={tiles}"], f"data.tiles={tiles}: expected {TILES}")
            for tiles in ("0", "2x", "x2", "1x2x3", "-1", "two")
        ),
        (["data.fit=stretch"], "data.fit=stretch: expected squash, pad or crop"),
        (["data.roi=nowhere.png"], "data.roi=nowhere.png: expected the file of a mask"),
        (["backbone.levels=3"], "backbone.levels=3: expected a list"),
        (["backbone.weights=no.pth"], "backbone.weights=no.pth: expected auto, bundled, hub, random or a file"),
        (["model.optimizer.lr=nan"], "model.optimizer.lr=nan: expected a finite number"),
        (["model.optimizer.lr=-1"], "model.optimizer.lr=-1: expected more than 0"),
        (["model.warmup_steps=-1"], "model.warmup_steps=-1: expected 0 or more"),
        (["model.running=always"], "model.running=always: expected fixed, epoch or ema"),
        (["model.shrinkage=2"], "model.shrinkage=2: expected ledoit_wolf, oas, none or a number from 0 to 1"),
        (["model.level_rule.k=0"], "model.level_rule.k=0: expected 1 or more"),
        (
            ["model.segmentation.clusters=100000"],
            "model.segmentation.clusters=100000: expected auto or a whole number from 1 to 2048",
        ),
        (["callbacks.averaging.decay=1.5"], "callbacks.averaging.decay=1.5: expected less than 1"),
        (["callbacks.forgetting.patience=0"], "callbacks.forgetting.patience=0: expected 1 or more"),
        (["~callbacks.forgetting"], NEEDED),
        (["trainer.max_epochs=-5"], f"trainer.max_epochs=-5: {EPOCHS}"),
        (["trainer.max_epochs=0"], f"trainer.max_epochs=0: {EPOCHS}"),
        (["fine_tune=3"], "fine_tune=3: expected true or false"),
        (["logger=null"], "a group such as data or logger takes a name, as in logger=csv; ~logger removes it"),
        # keys that there are not, with and without +, at any depth
        (["data.rot=x"], "data.rot: there is no such setting; did you mean data.root?"),
        (["+data.rot=x"], "data.rot: there is no such setting; did you mean data.root?"),
        (["sed=1"], "sed: there is no such setting; did you mean seed?"),
        (["batch_size=8"], "batch_size: there is no such setting; did you mean data.batch_size?"),
        (["data.nuisance.rot=1"], "data.nuisance.rot: there is no such setting; did you mean data.nuisance.rotate?"),
        (
            ["+model.segmentation.from=shared"],
            "model.segmentation.from: there is no such setting; did you mean model.segmentation.form?",
        ),
        (["+backbone.wights=auto"], "backbone.wights: there is no such setting; did you mean backbone.weights?"),
        (["+trainer.max_epoch=3"], "trainer.max_epoch: there is no such setting; did you mean trainer.max_epochs?"),
        (["+model.optimizer.wd=1"], "model.optimizer.wd: there is no such setting; leave it out"),
        (["trainer.limit_val_batches=2"], f"trainer.limit_val_batches {PLUS}"),
        (["augmentation.mixup=0.5"], f"augmentation.mixup {PLUS}"),
        (["callbacks.mine={a: 1}"], "callbacks.mine: there is no such setting; leave it out, or prefix it with + if it "
         "is your own"),
        # several
        (["seed=-1", "fold=9", "+data.rot=x", "~callbacks.forgetting"],
         f"seed=-1: expected 0 or more\nerror: {NEEDED}\nerror: data.rot: there is no such setting; did you mean "
         "data.root?\nerror: fold=9: expected less than folds=5"),
    ],
)  # fmt: skip
def test_mistakes_are_lines_and_leave_no_folder(
    overrides: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    category = [] if "~category" in overrides else [SCREW]
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *category, *(each for each in overrides if each != "~category"))
    assert set(str(stop.value.code).splitlines()) == set(f"error: {expected}".splitlines())
    assert not list(tmp_path.iterdir())


def test_a_signal_of_an_augmentation_that_is_not_there_is_found_before_the_run() -> None:
    (found,) = mistakes(composed(SCREW, "augmentation=vicinal", "objective=mahalanobis"))
    assert found.startswith(f"{SIGNAL}=paired/elastic: expected one of paired,") and "mixup, cutmix" in found
    assert mistakes(composed(SCREW, f"{SIGNAL}=distance/cutmix")) and mistakes(composed(SCREW, f"{SIGNAL}=ROC"))


def test_without_held_out_images_nothing_may_be_chosen_by_them() -> None:
    (found,) = mistakes(composed(SCREW, "folds=0"))
    assert found.startswith("folds=0 holds out no images")
    assert not mistakes(composed(SCREW, "folds=0", "fine_tune=false", "levels=all", NO_MAP))


def test_a_rate_that_falls_until_the_last_step_needs_one() -> None:
    (found,) = mistakes(composed(SCREW, "trainer.max_epochs=-1"))
    assert found.startswith("trainer.max_epochs=-1 has no last step") and "model.schedule=constant" in found
    assert not mistakes(composed(SCREW, "trainer.max_epochs=-1", "model.schedule=constant"))
    assert not mistakes(composed(SCREW, "trainer.max_epochs=-1", "fine_tune=false"))


GROUPS = (
    "augmentation", "backbone", "callbacks", "data", "levels", "logger", "model", "objective", "trainer",
    "category", "experiment", "search",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("choice", [(group, name) for group in GROUPS for name in names(group) if name != "base"])
def test_every_file_of_conf_passes(choice: tuple[str, str]) -> None:
    group, name = choice
    own = "+" if group in ("category", "experiment", "search") else ""
    more = {"category": [], "data": ["++data.root=x", "++data.category=screw"][: 1 if name == "folder" else 2]}
    signal = [f"{SIGNAL}=paired"] if name == "vicinal" else []
    assert mistakes(composed(f"{own}{group}={name}", *more.get(group, [SCREW]), *signal)) == []


class OwnData:
    """A data module of a user, with settings that ours do not have."""

    def __init__(self, batch_size: int, stride: int) -> None: ...


class OwnCallback(Callback):
    """A callback of a user."""

    def __init__(self, patience: int) -> None: ...


@pytest.mark.parametrize(
    "overrides",
    [
        [
            "+trainer.limit_val_batches=2",
            "+trainer.deterministic=true",
            "trainer.max_epochs=-1",
            "model.schedule=constant",
            "trainer.precision=32",
        ],
        ["+callbacks.own={_target_: test_settings.OwnCallback, patience: 0}"],
        ["~callbacks.averaging", "~callbacks.progress"],
        ["logger=wandb", "+logger.wandb.tags=[a]", "logger.wandb.project=mine"],
        ["~logger"],
        ["+note=mine", "+ours.deep=1", "data.batch_size=${ours.deep}"],
        ["model.optimizer._target_=torch.optim.SGD", "~model.optimizer.betas", "+model.optimizer.momentum=0.9"],
        ["+model.optimizer.eps=1e-7", "+augmentation.mixup=0.5", "data.cache=x", "data.steps_per_epoch=null"],
        ["model.level_rule._target_=test_settings.OwnData", "~model.level_rule.k", "+model.level_rule.stride=1"],
        ["hydra.job.name=mine", "data.group='(part\\d+)_'", "model.shrinkage=0", "model.segmentation.map_levels=[4]"],
    ],
)
def test_what_users_add_is_left_alone(overrides: list[str]) -> None:
    assert mistakes(composed(SCREW, *overrides)) == []


def test_a_data_module_of_a_user_is_left_alone() -> None:
    config = composed(SCREW)
    config.data = {"_target_": "test_settings.OwnData", "batch_size": 0, "stride": 2}
    assert mistakes(config) == []


def test_a_setting_that_the_class_of_a_user_does_not_take_is_named() -> None:
    config = composed(SCREW, "+callbacks.own={_target_: test_settings.OwnCallback, patient: 0}")
    assert mistakes(config) == ["callbacks.own.patient: there is no such setting; did you mean callbacks.own.patience?"]
    (found,) = mistakes(composed(SCREW, "model._target_=no.such.Model"))
    assert found.startswith("model._target_=no.such.Model: expected a name that can be imported")


# --- sweeps ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["seed=0,1", "data.batch_size=0", "model.shrinkage=2,3"], "data.batch_size=0: expected 1 or more"),
        (["data.rot=x,y"], "data.rot: there is no such setting; did you mean data.root?"),
        (["backbone=resnet18,resnet1"], "backbone=resnet1: expected one of convnext_tiny"),
        pytest.param(
            ["+search=optuna", "data.batch_size=0"],
            "data.batch_size=0: expected 1 or more",
            marks=needs("optuna", "optuna"),
        ),
    ],
)
def test_a_value_that_is_wrong_for_every_job_ends_the_sweep_before_its_folder(
    overrides: list[str], expected: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert message(capsys, monkeypatch, "--multirun", SCREW, *overrides).startswith(f"error: {expected}")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_value_that_is_wrong_for_one_job_stays_in_its_folder(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    frozen = line(parts, "model.warmup_steps=-1,0", "fine_tune=false", NO_MAP)
    assert message(capsys, monkeypatch, *frozen).startswith("error: 1 of 2 jobs failed")
    (error,) = tmp_path.glob("multirun/*/*/error.txt")
    assert error.read_text() == "error: model.warmup_steps=-1: expected 0 or more\n"
    assert set(jobs(tmp_path)) == {"warmup_steps=0"}


# --- what shows only when files are read ---


def weights(path: Path, kind: str) -> None:
    state = timm.create_model(TINY["name"], pretrained=False, num_classes=0).state_dict()
    if kind == "nan":
        next(iter(state.values())).fill_(torch.nan)
        torch.save(state, path)
    else:
        path.write_text("no weights at all\n")


@pytest.mark.parametrize(("kind", "expected"), [("nan", "not finite"), ("text", "does not contain a dict of tensors")])
def test_a_file_that_holds_no_weights_is_one_line_and_leaves_no_folder(
    kind: str, expected: str, parts: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    weights(tmp_path / "file.txt", kind)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    quick = [each for each in QUICK if "weights" not in each]
    given = f"backbone.weights={tmp_path / 'file.txt'}"
    text = message(capsys, monkeypatch, SCREW, f"data.root={parts}", *quick, "logger=csv", given)
    assert given in text and expected in text
    assert not list((tmp_path / "cwd").iterdir())


def test_two_training_images_are_one_line_and_leave_no_folder(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "few").mkdir()
    (tmp_path / "cwd").mkdir()
    for name in ("000.png", "001.png"):
        shutil.copy(parts / "screw/train/good" / name, tmp_path / "few")
    monkeypatch.chdir(tmp_path / "cwd")
    text = message(capsys, monkeypatch, "data=folder", f"data.root={tmp_path / 'few'}", *QUICK, "logger=csv")
    assert text.startswith("error: few: 2 good training images found, at least 5 are needed")
    assert not list((tmp_path / "cwd").iterdir())


@pytest.mark.parametrize(
    ("before", "after", "stays"),
    [
        ([], ["config.yaml", "images.json", "train.log"], False),
        ([], ["config.yaml", "scores.csv"], True),
        (["config.yaml", "images.json"], ["train.log"], True),
        (["csv"], ["config.yaml"], True),
        (["notes.log"], ["config.yaml"], True),
    ],
)
def test_the_folder_of_a_failed_start_goes_unless_it_holds_results_or_an_earlier_run(
    before: list[str], after: list[str], stays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "name" / "now"
    folder.mkdir(parents=True)
    for name in before:
        (folder / name).touch()

    def fail() -> Any:
        with run_folder.starting(folder):
            for name in after:
                (folder / name).touch()
            raise UserError("no such data")

    with pytest.raises(UserError):
        fail()
    assert (tmp_path / "runs").exists() == folder.exists() == stays
