"""The main job, whole, as a user runs it."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb
from conftest import TINY
from forked import finish, forked
from forked import train as train_in
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from gaussad_pl import evaluate, train
from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.data.frame import Frame
from gaussad_pl.data.samples import Sample
from gaussad_pl.inference.detector import Detector
from gaussad_pl.results import dashboard
from gaussad_pl.results.decisions import decisions
from gaussad_pl.results.evaluation import Evaluation

pytestmark = pytest.mark.slow

QUICK = [
    f"backbone.name={TINY['name']}",
    f"backbone.weights={TINY['weights']}",
    f"backbone.image_size={TINY['image_size']}",
    "trainer=cpu",
    "trainer.max_epochs=3",
    "data.steps_per_epoch=2",
    "data.batch_size=4",
    "levels=all",
    "model.segmentation.clusters=16",
]
FAST = "model.optimizer.lr=0.02"  # enough for a gain in so few steps


def arguments(root: Path, folder: Path, *more: str) -> list[str]:
    logger = [] if any(argument.startswith("logger=") for argument in more) else ["logger=csv"]
    quick = [each for each in QUICK if "clusters" not in each] if "+experiment=frozen" in more else QUICK  # has no map
    return [f"data.root={root}", f"hydra.run.dir={folder}", "+category=screw", *logger, *quick, *more]


def run(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    """The command in this process."""
    monkeypatch.setattr(sys, "argv", ["train.py", *overrides])
    train.main()


def message(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *overrides: str) -> str:
    """The one line that a failing command ends with."""
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *overrides)
    text = str(stop.value.code)
    assert text.startswith("error: ") and "\n" not in text
    for inside in ("Error in call to target", "full_key", "Traceback"):
        assert inside not in text + capsys.readouterr().err
    return text


def metrics(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return content


@pytest.fixture(scope="module")
def finished(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose fine-tuning is used."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    with pytest.MonkeyPatch.context() as monkeypatch:
        run(monkeypatch, *arguments(parts, folder, FAST))
    return folder


def test_a_run_leaves_all_its_results(finished: Path) -> None:
    names = {"config.yaml", "model.ckpt", "detector.safetensors", "metrics.json", "scores.csv", "frozen_scores.csv"}
    pictures = {"roc.png", "histogram.png", "forgetting.png", "levels.png"}
    pictures |= {"misses.png", "false_alarms.png", "defects.png"}
    assert names | pictures <= {path.name for path in finished.iterdir()}
    for name in pictures:
        assert Image.open(finished / name).size[0] > 600
        assert (finished / name).with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    assert len(list((finished / "gallery").glob("*.webp"))) == 12 and (finished / "gallery" / "images.json").is_file()


def test_form_and_image_score_are_chosen_on_the_augmented_validation(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_open = [f"model.segmentation.{name}=auto" for name in ("form", "map_levels", "clusters", "combine")]
    run(monkeypatch, *arguments(parts, tmp_path, *left_open, "fine_tune=false"))
    found = metrics(tmp_path)["segmentation"]
    assert {name.split()[0] for name in found["candidates"]} == {"position", "clusters", "shared", "union"}
    assert any("+" not in name for name in found["candidates"])  # levels alone
    doubts = {name: ("+" not in name) + ("of 128" in name) for name in found["candidates"]}
    worth = {name: sum(signals.values()) - 0.04 * doubts[name] for name, signals in found["candidates"].items()}
    clusters = f" of {found['clusters']}" if found["form"] in ("clusters", "union") else ""
    chosen = f"{found['form']}{clusters} {'+'.join(map(str, found['map_levels']))}"
    assert chosen == max(worth, key=lambda name: worth[name])
    best = max(found["combinations"].values())
    assert found["combine"] == "both" or found["combinations"][found["combine"]] == best
    frozen = metrics(tmp_path)["frozen"]
    assert 0 <= frozen["aupro"] <= 1 and frozen["pixel_size"] == [256, 256]


def test_the_dense_objective_fine_tunes_the_map(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = "model.segmentation.clusters=4"
    run(monkeypatch, *arguments(parts, tmp_path / "dense", "objective=dense", small))
    found = metrics(tmp_path / "dense")
    assert found["segmentation"]["form"] == "clusters"
    losses = [record["loss"] for record in found["forgetting"]["history"][1:]]
    held_out = found["forgetting"]["history"][0]["distance"]
    assert all(0.3 * held_out < loss < 3 * held_out for loss in losses)  # the callback watches what is trained
    text = message(
        capsys, monkeypatch, *arguments(parts, tmp_path / "auto", "objective=dense", "model.segmentation.form=auto")
    )
    assert "model.train_on=patches needs one kind of map" in text


def test_remembering_the_frozen_stages_changes_no_number(
    finished: Path, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gaussad_pl.backbones.frozen_stages.LIMIT", 0)
    run(monkeypatch, *arguments(parts, tmp_path / "again", FAST))
    remembered, again = (metrics(folder)["forgetting"]["history"] for folder in (finished, tmp_path / "again"))
    assert len(remembered) == len(again) > 1
    for a, b in zip(remembered, again, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4)


def test_a_run_leaves_a_calibrated_detector_that_scores_as_it_did(finished: Path) -> None:
    detector, found = Detector.load(finished), metrics(finished)
    with (finished / "scores.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    predictions = detector([row["path"] for row in rows], fpr=0.2)
    assert [each.score for each in predictions] == pytest.approx([float(row["score"]) for row in rows], abs=1e-2)
    calibration = found["calibration"]
    assert detector.calibration.scheme == calibration["scheme"]
    tuned = found["forgetting"]["fine_tuning_used"]
    assert calibration["images"] == len(detector.calibration) == 24
    assert ("fine-tuned on the others" in calibration["scheme"]) == tuned
    for target, point in found["operating_points"].items():
        threshold = detector.threshold(float(target))
        assert point["rule"] == threshold.rule and (point["threshold"] or np.inf) == pytest.approx(threshold.value)
        for label, count, total in (("0", "good_lost", "good"), ("1", "bad_found", "bad")):
            above = [float(row["score"]) > threshold.value for row in rows if row["label"] == label]
            assert (point[count], point[total]) == (sum(above), 6)
    assert found["contour"]["threshold"] == detector.limit and found["contour"]["target"] == 0.001
    assert 0 < detector.median < detector.limit
    assert detector.provenance["seed"] == 0 and detector.provenance["config"]["data"]["name"] == "screw"


def test_evaluating_the_detector_of_a_run_on_its_test_images_gives_its_numbers(
    finished: Path, parts: Path, tmp_path: Path
) -> None:
    evaluate.main([f"ckpt={finished}", f"data={parts / 'screw'}", f"out={tmp_path / 'out'}"])
    ours, again = metrics(finished), metrics(tmp_path / "out")
    assert ours["operating_points"] == again["operating_points"] and ours["contour"] == again["contour"]
    levels = again["evaluation"]["per_level"]  # those behind the last one that counts are not in the detector
    assert levels and all(ours["finetuned"]["per_level"][level] == value for level, value in levels.items())
    numbers = {name: value for name, value in again["evaluation"].items() if name != "per_level"}
    assert numbers == {name: ours["finetuned"][name] for name in numbers}
    tables = []
    for folder in (finished, tmp_path / "out"):
        with (folder / "scores.csv").open() as handle:
            tables.append([(row["path"], row["score"], row["defect_area"]) for row in csv.DictReader(handle)])
    assert tables[0] == tables[1]


def test_metrics_say_where_every_number_came_from(finished: Path) -> None:
    found = metrics(finished)
    assert found["backbone"]["name"] == TINY["name"] and found["backbone"]["weights"] == "random"
    assert found["images"] == {"train": 19, "validation": 5, "test_good": 6, "test_bad": 6}
    assert (found["seed"], found["fold"], found["folds"]) == (0, 0, 5)
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]
    assert "held-out good images" in found["finetuned"]["selection"]
    assert [record["epoch"] for record in found["forgetting"]["history"]] == [0, 1, 2, 3]
    assert "loss" not in found["forgetting"]["history"][0]
    best = max(found["forgetting"]["history"], key=lambda record: record["log_ratio"])
    assert found["forgetting"]["epoch_chosen"] == best["epoch"]
    gains = found["acceptance"]
    assert [gain["share"] for gain in gains] in ([1.0], [1.0, 0.5]) and best["epoch"] > 0
    assert all(gain["probability"] < 0.1 for gain in gains[:-1])
    assert found["forgetting"]["fine_tuning_used"] == (gains[-1]["probability"] >= 0.1)


def test_training_behind_the_map_leaves_the_map_as_it_is(finished: Path) -> None:
    found = metrics(finished)
    assert found["frozen"]["aupro"] == found["finetuned"]["aupro"]
    frozen, tuned = ((finished / name).read_text() for name in ("frozen_scores.csv", "scores.csv"))
    assert frozen != tuned


def test_fine_tuning_is_left_out_where_the_score_uses_no_level_that_is_trained(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, *arguments(parts, tmp_path, "backbone.levels=[0,1,2]", "model.train_levels=[3]"))
    found = metrics(tmp_path)
    assert "no level of the pooled score is trained" in found["finetuned"]["selection"]
    assert not found["forgetting"]["fine_tuning_used"] and found["finetuned"]["image_auroc"] is not None


@pytest.mark.parametrize(("file", "state"), [("frozen_scores.csv", "frozen"), ("scores.csv", "finetuned")])
def test_metrics_equal_scikit_learn_on_the_saved_scores(file: str, state: str, finished: Path) -> None:
    with (finished / file).open() as handle:
        rows = list(csv.DictReader(handle))
    labels = [int(row["label"]) for row in rows]
    scores = [float(row["score"]) for row in rows]
    found = metrics(finished)[state]
    assert len(rows) == 12 and {row["kind"] for row in rows} == {"good", "spot"}
    assert found["image_auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert found["image_ap"] == pytest.approx(average_precision_score(labels, scores), abs=1e-6)
    assert found["per_defect"]["spot"] == pytest.approx(found["image_auroc"], abs=1e-6)
    levels = [key for key in rows[0] if key.startswith("level_")]
    weights = {f"level_{key}": value for key, value in metrics(finished)["levels"]["weights"].items()}
    assert sorted(weights) == sorted(levels) and sum(weights.values()) == len(levels)
    for level in levels:
        column = [float(row[level]) for row in rows]
        expected = roc_auc_score(labels, column)
        assert found["per_level"][level.removeprefix("level_")] == pytest.approx(expected, abs=1e-6)


def test_no_test_image_takes_part_in_any_choice(
    finished: Path, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same training images with other test images give the same model, bit for bit."""
    other = tmp_path / "other"
    (other / "screw/test/good").mkdir(parents=True)
    (other / "screw/test/noise").mkdir()
    (other / "screw/train").symlink_to(parts / "screw/train")
    rng = np.random.default_rng(1)
    for name in ("good/0.png", "good/1.png", "noise/0.png"):
        Image.fromarray(rng.integers(256, size=(64, 64, 3), dtype=np.uint8)).save(other / "screw/test" / name)
    run(monkeypatch, *arguments(other, tmp_path / "run", FAST))
    one, two = (
        torch.load(folder / "model.ckpt", weights_only=True)["state_dict"] for folder in (finished, tmp_path / "run")
    )
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert metrics(finished)["forgetting"] == metrics(tmp_path / "run")["forgetting"]


def test_the_frozen_baseline_uses_every_training_image(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, *arguments(parts, tmp_path / "run", "+experiment=frozen"))
    found = metrics(tmp_path / "run")
    assert found["images"]["train"] == 24 and found["images"]["validation"] == 0
    assert "finetuned" not in found and not (tmp_path / "run" / "forgetting.png").exists()
    assert f"{100 * found['frozen']['image_auroc']:.1f} %" in capsys.readouterr().out


def test_good_images_alone_are_enough(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = f"data.root={parts / 'screw/train/good'}"
    run(monkeypatch, "data=folder", flat, f"hydra.run.dir={tmp_path / 'run'}", "logger=csv", *QUICK)
    found = metrics(tmp_path / "run")
    assert found["frozen"]["image_auroc"] is None and found["images"]["test_bad"] == 0
    assert found["images"]["test_good"] == found["calibration"]["test_good"] == 0  # those of training are no test
    assert len((tmp_path / "run" / "scores.csv").read_text().splitlines()) == 1 + 5
    made = {path.name for path in (tmp_path / "run").iterdir()}
    assert "histogram.png" in made and not made & {"false_alarms.png", "misses.png", "gallery"}  # there is no test
    point, said = found["operating_points"]["0.1"], capsys.readouterr().out
    assert point["good_from"] == "calibration" and point["good"] == found["calibration"]["images"]
    assert point["bad"] == 0 and found["contour"]["observed"] is None
    assert "images: 24 good ones to train on, 0 good and 0 bad ones to test on" in said
    log = (tmp_path / "run" / "train.log").read_text()  # without a terminal there are no bars
    assert "Decoding 24 training images" in log and "Decoding 0" not in log and "Calibrating" in log
    assert "Fine-tuning: epoch 1 of at most 3 done" in log
    assert f"\ngrouping: {found['grouping']}\n" in said
    assert "not known: the false alarms on new good images" in said and "not known: how many bad parts" in said
    assert said.splitlines()[-1].startswith(f"next: python -m gaussad_pl.predict ckpt={tmp_path / 'run'} source=")


def test_tensorboard_is_there_by_choice(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, *arguments(parts, tmp_path / "run", "+experiment=frozen", "logger=tensorboard"))
    assert list((tmp_path / "run").glob("tensorboard/*/events.*"))


@pytest.mark.parametrize("running", ["epoch", "ema"])
def test_other_running_estimates_run_through(
    running: str, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, *arguments(parts, tmp_path / "run", f"model.running={running}"))
    assert len(metrics(tmp_path / "run")["forgetting"]["history"]) == 4


def test_a_killed_run_resumes_to_the_same_metrics(parts: Path, tmp_path: Path) -> None:
    more = ["trainer.max_epochs=12", "callbacks.forgetting.patience=12"]
    log, killed = tmp_path / "log", tmp_path / "killed"
    assert finish(log, train_in, tmp_path, arguments(parts, tmp_path / "whole", *more)) == 0, log.read_text()
    checkpoint = killed / "checkpoints" / "last.ckpt"
    with forked(log, train_in, tmp_path, arguments(parts, killed, *more)) as process:
        while not checkpoint.exists() and process.is_alive():
            time.sleep(0.01)
        process.kill()
    assert process.exitcode == -signal.SIGKILL, log.read_text()
    assert checkpoint.exists() and not (killed / "metrics.json").exists()
    assert finish(log, train_in, tmp_path, arguments(parts, killed, *more, "resume=true")) == 0, log.read_text()
    one, two = metrics(tmp_path / "whole"), metrics(killed)
    assert one["forgetting"] == two["forgetting"]
    assert one["finetuned"] == two["finetuned"] and one["frozen"] == two["frozen"]
    assert (killed / "scores.csv").read_text() == (tmp_path / "whole" / "scores.csv").read_text()


def test_resuming_a_finished_run_leaves_it_alone(finished: Path, parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.iterdir() if path.suffix in (".json", ".ckpt", ".csv")}
    run(monkeypatch, *arguments(parts, finished, FAST, "resume=true"))
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_sweep_leaves_one_run_and_one_offline_wandb_run_a_job(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    sweep = [
        argument if not argument.startswith(("hydra.run.dir", "logger")) else f"hydra.sweep.dir={tmp_path / 'sweep'}"
        for argument in arguments(parts, tmp_path, "fold=0,1", "trainer.max_epochs=1")
    ]
    run(monkeypatch, "--multirun", *sweep)
    folders = [path.parent for path in (tmp_path / "sweep").rglob("metrics.json")]
    assert sorted(metrics(folder)["fold"] for folder in folders) == [0, 1]
    for folder in folders:
        assert len(list(folder.glob("wandb/offline-run-*/run-*.wandb"))) == 1


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["+category=Screw"], "category=Screw: expected one of bottle, cable, capsule"),
        (["category=screw"], "nothing is chosen from category yet: prefix it with +, as in +category=screw"),
        (["backbone=resnet1"], "wide_resnet50_2; did you mean resnet18?"),
        ([], "no category chosen: add one, for example +category=screw, or"),
        (["+category=screw", "data.root=/nowhere"], "/nowhere"),
        (["+category=screw", "backbone.levels=[12]"], "levels=[12]"),
        (["+category=screw", "backbone.weights=missing.pth"], "missing.pth"),
        (["+category=screw", "model.shrinkage=none"], "singular"),
        (["+category=screw", "folds=40"], "24 good training images found, at least 40"),
        (["+category=screw", "folds=0"], "set folds=5"),
        (["+category=screw", "folds=0", "fine_tune=false"], "levels=all"),
        (["+category=screw", "augmentation={blur: 0.1}"], "blur"),
        (["+category=screw", "no_such_key=1"], "no_such_key"),
        (["+category=screw", "trainer.precision=16-true"], "expected 32-true, 16-mixed or bf16-mixed"),
        (["+category=screw", "data=folder"], "data.category: there is no such setting; leave it out"),
        (["backbone=50"], "takes a name, as in logger=csv"),
        (["data.root=/a=b"], """data.root=/a=b: cannot be parsed"""),
        (["conf/data"], "conf/data: expected a setting as key=value, for example data=folder data.root=conf/data"),
        (["data=demo", "data.category=cable", "data.root=unused"], "cable"),
    ],
)
def test_mistakes_end_with_one_line(
    overrides: list[str], expected: str, parts: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    keys = {override.split("=")[0] for override in overrides}
    defaults = [f"data.root={parts}", "logger=csv", *QUICK]
    unsaid = [default for default in defaults if default.split("=")[0] not in keys]
    text = message(capsys, monkeypatch, *overrides, *unsaid, f"hydra.run.dir={tmp_path / 'run'}")
    assert expected in text


def test_places_that_cannot_hold_a_run_are_one_line(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        assert f"cannot write {folder}" in message(capsys, monkeypatch, *arguments(parts, folder))
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "the current folder was removed" in message(capsys, monkeypatch, *arguments(parts, tmp_path / "run"))


def test_wandb_without_a_key_and_a_sweep_without_jobs_are_one_line(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_key(*_: object) -> None:
        raise wandb.errors.UsageError("No API key configured.\nUse `wandb login`")

    monkeypatch.setattr(dashboard.DashboardLogger, "log_hyperparams", without_key)
    text = message(capsys, monkeypatch, *arguments(parts, tmp_path / "run", "logger=default"))
    assert "No API key" in text and "WANDB_MODE=offline" in text
    nothing = ["-m", "+category=glob(no*such)", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    assert "matches nothing" in message(capsys, monkeypatch, *nothing)


NONE = dict.fromkeys(("train", "validation", "test_good", "test_bad"), 0)


def summary(folder: Path, capsys: pytest.CaptureFixture[str], dataset: str, **results: Any) -> str:
    """What a run that has tested one good image prints at its end."""
    one = Evaluation(
        [Sample(Path("a.png"))], torch.zeros(1, 1), torch.zeros(1), [0], None, torch.zeros(1, 4, 4) > 0, Frame(4, 4)
    )
    decided = decisions(Calibration.of(torch.zeros(9), torch.zeros(9, 1), "none"), one, np.inf)
    shared = {
        "dataset": dataset,
        "images": NONE,
        "grouping": "[c]",
        "frozen": {"image_auroc": None},
        "good_images_kept_for_test": 0,
    }
    train.show(folder, {**shared, **results, **decided})
    return capsys.readouterr().out


def test_names_in_brackets_are_shown_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = summary(tmp_path / "[a]", capsys, "[b]")
    assert said.startswith("[b]") and f"results: {tmp_path / '[a]'}" in said and "grouping: [c]\n" in said


def test_the_summary_says_how_many_good_images_the_test_takes_from_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "; data.holdout keeps 3 good ones" in summary(tmp_path, capsys, "x", good_images_kept_for_test=3)
    assert "holdout" not in summary(tmp_path, capsys, "x")


@pytest.mark.parametrize("reason", ["no level of the pooled score is trained", None])
def test_the_summary_says_why_fine_tuning_is_not_used(
    reason: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forgetting = {"fine_tuning_used": False, "history": [], **({"skipped": reason} if reason else {})}
    said = summary(tmp_path, capsys, "x", finetuned={"image_auroc": None}, forgetting=forgetting)
    assert f"fine-tuning not used: {reason or 'the augmented validation saw no gain over the frozen network'}" in said


def test_mixed_precision_is_for_training_and_leaves_gaussians_and_scores_alone(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, *arguments(parts, tmp_path / "run", "trainer.precision=bf16-mixed"))
    run(monkeypatch, *arguments(parts, tmp_path / "full"))
    mixed, full = metrics(tmp_path / "run"), metrics(tmp_path / "full")
    assert mixed["frozen"] == full["frozen"] and mixed["segmentation"]["worth"] == full["segmentation"]["worth"]
    losses = [[epoch["loss"] for epoch in found["forgetting"]["history"][1:]] for found in (mixed, full)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05) and losses[0] != losses[1]
    run(monkeypatch, *arguments(parts, tmp_path / "ranked", "trainer.precision=bf16-mixed", "objective=ranking"))
    assert metrics(tmp_path / "ranked")["frozen"] == full["frozen"]


def test_a_folder_that_holds_a_run_is_not_overwritten(
    finished: Path, parts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "resume=true" in message(capsys, monkeypatch, *arguments(parts, finished))
    other = message(capsys, monkeypatch, *arguments(parts, finished, "seed=7", "resume=true"))
    assert "other settings" in other


def test_real_screw_gives_the_known_frozen_baseline(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An independent prototype measured 74.4 % for efficientnet_lite0 at 224 px, all levels, 320 images."""
    root = f"data.root={real_data / 'mvtec_ad'}"
    folder = tmp_path / "run"
    run(
        monkeypatch,
        "+category=screw",
        "+experiment=frozen",
        root,
        f"hydra.run.dir={folder}",
        "logger=csv",
        "trainer=cpu",
    )
    found = metrics(folder)["frozen"]
    assert found["image_auroc"] == pytest.approx(0.744, abs=0.010)
    expected = [0.001, 0.001, 0.074, 0.454, 0.593, 0.705, 0.869, 0.882, 0.801]
    assert list(found["per_level"].values()) == pytest.approx(expected, abs=0.03)


def test_a_command_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(os.environ)
    with pytest.raises(SystemExit):
        run(monkeypatch, "no_such_setting=1")
    assert dict(os.environ) == before
