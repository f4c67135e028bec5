"""The report of a set of runs. The run folders are made up here: nothing is trained."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image
from scipy.stats import ttest_1samp, wilcoxon
from sklearn.metrics import roc_auc_score

from gaussad_pl import report
from gaussad_pl.reporting.content import compose, epoch_text, seeds_and_folds
from gaussad_pl.reporting.figures import VARIABLES, histogram_figure, roc_figure
from gaussad_pl.reporting.flags import find_flags
from gaussad_pl.reporting.pairs import compare_settings, pairs_sheet
from gaussad_pl.reporting.runs import gather
from gaussad_pl.reporting.scores import Scores, read_scores
from gaussad_pl.reporting.sheets import kinds_sheet, operating_sheet
from gaussad_pl.reporting.study import Study, arrange
from gaussad_pl.reporting.tables import compare, comparisons, estimate, mean_of, paired_test, result_tables

BACKBONES = {"efficientnet_lite0": "tf_efficientnet_lite0.in1k", "resnet18": "resnet18.a1_in1k"}
VERSIONS = {"python": "3.11.7", "torch": "2.14.1"}


def make_run(
    folder: Path,
    category: str = "screw",
    seed: int = 0,
    fold: int = 0,
    frozen: float | None = 0.9,
    finetuned: float | None = None,
    backbone: str = "efficientnet_lite0",
    signal: tuple[float, ...] = (0.5, 0.6, 0.55),
    aupro: float | None = 0.8,
    config: dict[str, Any] | None = None,
    choices: dict[str, str] | None = None,
    **changes: Any,
) -> Path:
    """A finished run as gaussad_pl.train leaves it; ``finetuned=None`` without fine-tuning."""
    (folder / ".hydra").mkdir(parents=True)
    settings: dict[str, Any] = {
        "seed": seed, "fold": fold, "folds": 5,
        "data": {"name": category, "seed": seed, "root": "data/mvtec_ad", "image_size": 224},
        "backbone": {"name": BACKBONES[backbone], "image_size": 224},
        "model": {"backbone": {"name": BACKBONES[backbone], "image_size": 224}, "segmentation": {"seed": seed}},
        "trainer": {"max_epochs": 8, "default_root_dir": str(folder)},
        **(config or {}),
    }  # fmt: skip
    (folder / "config.yaml").write_text(json.dumps(settings))
    noted = {"overrides": {"task": [f"seed={seed}"]}, "runtime": {"choices": choices or {"backbone": backbone}}}
    (folder / ".hydra" / "hydra.yaml").write_text(json.dumps({"hydra": noted}))

    def state(auroc: float | None, selection: str) -> dict[str, Any]:
        pixels = {} if aupro is None else {"aupro": aupro, "pixel_auroc": 0.95, "pixel_size": [256, 256]}
        return {"image_auroc": auroc, "image_ap": auroc, **pixels, "selection": selection}

    found: dict[str, Any] = {"frozen": state(frozen, "levels weighted by top_k")}
    rng = np.random.default_rng(seed)
    write_scores(folder / "scores.csv", rng)
    if finetuned is not None:
        write_scores(folder / "frozen_scores.csv", rng)
        used = finetuned != frozen
        found["finetuned"] = state(finetuned, f"{'' if used else 'fine-tuning not used: '}epoch 1 of 2")
        found["forgetting"] = {
            "signal": "paired/elastic", "epoch_chosen": int(used), "fine_tuning_used": used,
            "history": [{"epoch": epoch, "paired/elastic": value} for epoch, value in enumerate(signal)],
        }  # fmt: skip
    found |= {
        "dataset": category, "seed": seed, "fold": fold, "folds": 5,
        "images": {"train": 19, "validation": 5, "test_good": 20, "test_bad": 30},
        "backbone": {"name": BACKBONES[backbone], "weights": "bundled"},
        "command": f"python -m gaussad_pl.train +category={category} seed={seed}",
        "config": settings, "versions": VERSIONS,
    }  # fmt: skip
    if aupro is not None:
        for name in ("misses.png", "false_alarms.png"):
            Image.fromarray(rng.integers(256, size=(300, 900, 3), dtype=np.uint8)).save(folder / name)
    (folder / "metrics.json").write_text(json.dumps(found | changes))
    return folder


def write_scores(path: Path, rng: np.random.Generator, good: int = 20, bad: int = 30) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "kind", "label", "score"])
        for i, label in enumerate([0] * good + [1] * bad):
            writer.writerow([f"/data/{i}.png", "spot" if label else "good", label, rng.normal(2 * label)])


def study(top: Path) -> Study:
    return arrange(*gather(top))


def flags(top: Path) -> dict[str, list[str]]:
    return {flag.kind: flag.items for flag in find_flags(study(top))}


def make_report(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    monkeypatch.setattr(sys, "argv", ["report.py", *overrides])
    report.main()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories, two backbones, two seeds; in one of them fine-tuning was not used."""
    top = tmp_path_factory.mktemp("runs")
    for i, category in enumerate(("screw", "tile")):
        for j, backbone in enumerate(BACKBONES):
            for seed in (0, 1):
                frozen = 0.8 + 0.05 * i + 0.02 * j + 0.01 * seed
                gain = 0.0 if (i, j, seed) == (0, 0, 0) else 0.01 + 0.0011 * (4 * i + 2 * j + seed)
                make_run(top / f"{category}-{backbone}-{seed}", category, seed, 0, frozen, frozen + gain, backbone)
    return top


@pytest.fixture
def sweep(runs: Path, tmp_path: Path) -> Path:
    """The runs, for one test to change."""
    return shutil.copytree(runs, tmp_path / "sweep")


def test_cells_hold_mean_and_sem_over_seeds(sweep: Path) -> None:
    found = study(sweep)
    assert found.settings == ["backbone=efficientnet_lite0", "backbone=resnet18"]
    table = result_tables(found)[0]
    cell = table.cells["tile", "backbone=resnet18"]
    values = [0.87 + 0.0166, 0.88 + 0.0177]
    assert table.title == "image AUROC" and cell is not None and cell.n == 2
    assert cell.mean == pytest.approx(np.mean(values))
    assert cell.sem == pytest.approx(np.std(values, ddof=1) / math.sqrt(2))
    assert cell.text() == f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1) / math.sqrt(2):.1f}"


def test_the_mean_row_takes_the_categories_that_all_settings_have(sweep: Path) -> None:
    make_run(sweep / "extra", "grid", frozen=0.1)
    table = result_tables(study(sweep))[0]
    screw, tile = (table.cells[category, "backbone=resnet18"] for category in ("screw", "tile"))
    mean = table.means["backbone=resnet18"]
    assert table.common == ["screw", "tile"] and screw and tile and mean
    assert mean.mean == pytest.approx((screw.mean + tile.mean) / 2)
    assert screw.sem and tile.sem and mean.sem == pytest.approx(math.sqrt(screw.sem**2 + tile.sem**2) / 2)
    assert table.best(table.means) == {"backbone=resnet18"}


def test_a_setting_that_failed_altogether_does_not_empty_the_mean_row(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    (make_run(tmp_path / "b", backbone="resnet18") / "metrics.json").unlink()
    table = result_tables(study(tmp_path))[0]
    assert table.common == ["screw"] and table.cells["screw", "backbone=resnet18"] is None


def test_one_value_has_no_standard_error() -> None:
    one = estimate([0.5])
    assert one is not None and one.sem is None and one.text() == "50.0"
    two = estimate([0.5, 0.7])
    assert two is not None and two.text(sign=True) == "+60.0 ± 10.0" and estimate([]) is None and mean_of([]) is None
    mean = mean_of([one, two])
    assert mean is not None and mean.sem is None and mean.n == 3


def test_the_paired_test_is_that_of_scipy_without_zeros() -> None:
    values = [0.01, 0.02, -0.005, 0.03, 0.04, 0.015, 0.0, 0.0]
    test = paired_test(values)
    assert (test.n, test.zeros) == (8, 2) and test.p == pytest.approx(wilcoxon(values[:6]).pvalue)
    assert test.verdict == "not significant at 0.05"
    assert paired_test([0.01 * i for i in range(1, 8)]).verdict == "significant at 0.05"


def test_the_paired_test_says_when_it_can_say_nothing() -> None:
    assert paired_test([0.0, 0.0, 1e-12]).verdict == "all differences are zero"
    few = paired_test([0.01, 0.02, 0.03, 0.04, 0.05])
    assert few.p == pytest.approx(2 / 2**5) == pytest.approx(few.smallest_p)  # the least that five pairs can give
    assert "n = 5 categories: too few for significance (p ≥ 0.062" in few.verdict
    assert "n = 3 categories, of which 1 differ: too few" in paired_test([0.01, 0.0, 0.0]).verdict
    assert paired_test([0.01 * i for i in range(1, 7)]).smallest_p < 0.05


def test_frozen_against_fine_tuned_is_paired_by_run(sweep: Path) -> None:
    found = comparisons(study(sweep), "image_auroc")
    whole = found["", "backbone=efficientnet_lite0"]
    assert whole.test.n == 2 and whole.test.zeros == 0 and whole.used == 3
    assert whole.gain.mean == pytest.approx(np.mean([0.0, 0.0111, 0.0144, 0.0155]))
    assert found["screw", "backbone=efficientnet_lite0"].gain.mean == pytest.approx(0.0111 / 2)
    assert compare([], "image_auroc") is None


# --- settings


def names(top: Path) -> list[str]:
    return study(top).settings


def test_equal_runs_have_the_setting_default(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path / str(seed), seed=seed, fold=seed)
    make_run(tmp_path / "other", "tile", config={"logger": {"csv": {"save_dir": "x"}}, "callbacks": {"checkpoint": 1}})
    assert names(tmp_path) == ["default"] and study(tmp_path).keys == []


def test_settings_are_named_by_what_differs(tmp_path: Path) -> None:
    for i, rate in enumerate((0.001, 0.0001)):
        make_run(tmp_path / str(i), config={"model": {"optimizer": {"lr": rate}}})
    assert names(tmp_path) == ["model.optimizer.lr=0.0001", "model.optimizer.lr=0.001"]


def test_a_group_names_only_those_keys_of_which_it_says_the_same(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", backbone="resnet18")
    make_run(tmp_path / "c", config={"backbone": {"name": BACKBONES["efficientnet_lite0"], "image_size": 320}})
    assert names(tmp_path) == [
        "backbone=efficientnet_lite0, backbone.image_size=224",
        "backbone=efficientnet_lite0, backbone.image_size=320",
        "backbone=resnet18, backbone.image_size=224",
    ]


def test_a_section_that_is_switched_off_is_a_setting(tmp_path: Path) -> None:
    make_run(tmp_path / "a", config={"model": {"segmentation": None}})
    make_run(tmp_path / "b", config={"model": {"segmentation": {"form": "auto", "clusters": 512}}})
    assert names(tmp_path) == ["default", "model.segmentation=null"]


def test_functions_lose_their_module(tmp_path: Path) -> None:
    for i, rule in enumerate(
        ({"_target_": "gaussad_pl.training.levels.top_k", "k": 3}, {"_target_": "gaussad_pl.training.levels.all"})
    ):
        make_run(tmp_path / str(i), config={"model": {"level_rule": rule}})
    assert names(tmp_path) == ["model.level_rule=all", "model.level_rule=top_k"]


def test_what_only_one_kind_of_dataset_has_is_no_setting(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "screw", config={"data": {"nuisance": {"hflip": False}}})
    make_run(tmp_path / "b", "tile", config={"data": {"nuisance": {"hflip": True}, "holdout": 0.2}})
    assert names(tmp_path) == ["default"]
    make_run(tmp_path / "c", "tile", config={"data": {"nuisance": {"hflip": True}, "holdout": 0.3}})
    assert len(names(tmp_path)) > 1


def test_an_experiment_names_all_it_changes(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    paper = {"folds": 4, "model": {"refit": False, "running": "fixed"}}
    make_run(tmp_path / "b", config=paper, choices={"backbone": "efficientnet_lite0", "experiment": "paper"})
    assert names(tmp_path) == ["experiment=none", "experiment=paper"]


# --- flags


def test_a_sound_sweep_has_no_flag(sweep: Path) -> None:
    assert flags(sweep) == {}


def test_unfinished_runs_are_listed_with_the_last_line_of_their_error(sweep: Path) -> None:
    failed = sweep / "tile-resnet18-1"
    (failed / "metrics.json").unlink()
    (failed / "error.txt").write_text("Traceback\nValueError: boom\n\n")
    (sweep / "early" / ".hydra").mkdir(parents=True)
    found = flags(sweep)
    assert found["Unfinished runs"] == [
        "no metrics.json and no error.txt, in early",
        "tile × backbone=resnet18, seed 1, fold 0: ValueError: boom, in tile-resnet18-1",
    ]
    assert found["Uneven seeds or folds"] == ["tile × backbone=resnet18: no seed 1 fold 0"]


def test_an_evaluation_among_the_runs_is_no_run(sweep: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = gather(sweep)
    folder = next(sweep.rglob("metrics.json")).parent / "evaluation"
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps({"dataset": "screw", "evaluation": {"image_auroc": 0.5}}))
    assert gather(sweep) == before and not caplog.text


def test_a_half_written_metrics_file_is_an_unfinished_run(sweep: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = sweep / "tile-resnet18-1" / "metrics.json"
    broken.write_text(broken.read_text()[:500])
    (sweep / "foreign").mkdir()
    (sweep / "foreign" / "metrics.json").write_text("[1, 2]")
    assert len(flags(sweep)["Unfinished runs"]) == 2
    assert str(broken) in caplog.text and "unfinished" in caplog.text


def test_combinations_without_a_run_are_missing(sweep: Path) -> None:
    for seed in (0, 1):
        shutil.rmtree(sweep / f"tile-resnet18-{seed}")
    assert flags(sweep)["Missing combinations"] == ["tile × backbone=resnet18"]


def test_a_category_of_which_every_run_failed_is_missing(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    (make_run(tmp_path / "b", "tile") / "metrics.json").unlink()
    assert flags(tmp_path)["Missing combinations"] == ["tile × default"]


def test_fine_tuned_below_frozen(tmp_path: Path) -> None:
    make_run(tmp_path / "a", frozen=0.9, finetuned=0.88)
    make_run(tmp_path / "b", seed=1, frozen=0.9, finetuned=0.9)
    assert flags(tmp_path)["Fine-tuned below frozen"] == [
        "r01 (screw × default, seed 0, fold 0): image AUROC −2.0 points"
    ]


@pytest.mark.parametrize("signal", [(0.5, 0.5, 0.5), (1.0, 1.0), (0.5,), (math.nan, math.nan)])
def test_a_signal_that_never_moved(signal: tuple[float, ...], tmp_path: Path) -> None:
    make_run(tmp_path / "a", finetuned=0.9, signal=signal)
    found = flags(tmp_path)["The signal never moved"]
    assert len(found) == 1 and f"paired/elastic over {len(signal) - 1} epochs" in found[0]


def test_one_class_only(tmp_path: Path) -> None:
    images = {"train": 19, "validation": 5, "test_good": 6, "test_bad": 0}
    make_run(tmp_path / "a", frozen=None, images=images)
    assert "6 good, 0 bad" in flags(tmp_path)["Runs without both classes"][0]


def test_mixed_versions_weights_and_test_sets(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    changed = {"images": {"test_good": 2, "test_bad": 3}, "versions": VERSIONS | {"torch": "2.15.0"}}
    weights = {"name": BACKBONES["efficientnet_lite0"], "weights": "hub"}
    make_run(tmp_path / "b", seed=1, backbone="efficientnet_lite0", **changed)
    found = json.loads((tmp_path / "b" / "metrics.json").read_text()) | {"backbone": weights}
    (tmp_path / "b" / "metrics.json").write_text(json.dumps(found))
    raised = flags(tmp_path)
    assert raised["Mixed versions"] == ["torch: 2.14.1 (r01); 2.15.0 (r02)"]
    assert raised["Mixed sources of weights"] == ["tf_efficientnet_lite0.in1k: bundled (r01); hub (r02)"]
    assert raised["Different test sets of one category"] == ["screw: 20 good + 30 bad (r01); 2 good + 3 bad (r02)"]


def test_a_repeated_run_counts_once(tmp_path: Path) -> None:
    make_run(tmp_path / "2026-01-01" / "a", frozen=0.5)
    make_run(tmp_path / "2026-01-02" / "a", frozen=0.7)
    cell = result_tables(study(tmp_path))[0].cells["screw", "default"]
    assert cell is not None and (cell.n, cell.mean) == (1, 0.7)
    assert len(flags(tmp_path)["Repeated runs"]) == 1


def test_a_later_run_is_later_by_time_whatever_its_name(tmp_path: Path) -> None:
    make_run(tmp_path / "b", frozen=0.5, finished="2026-01-01T12:00:00+00:00")
    make_run(tmp_path / "a", frozen=0.7, finished="2026-01-01T11:30:00-02:00")  # 13:30 UTC
    assert [run.name for run in study(tmp_path).runs] == ["a"]


def test_equally_named_datasets_of_different_places_are_different(tmp_path: Path) -> None:
    for place in ("one", "two"):
        make_run(tmp_path / place, config={"data": {"name": "screw", "root": f"data/{place}"}}, data_sha256=place)
    assert study(tmp_path).categories == ["screw (one)", "screw (two)"] and not study(tmp_path).repeated


def test_seeds_and_folds_are_a_product_only_if_all_pairs_ran(tmp_path: Path) -> None:
    for i in range(3):
        make_run(tmp_path / str(i), seed=i, fold=i)
    assert seeds_and_folds(study(tmp_path)) == ("3 pairs", "seed 0 fold 0, seed 1 fold 1, seed 2 fold 2")
    make_run(tmp_path / "only" / "a")
    make_run(tmp_path / "only" / "b", seed=1)
    assert seeds_and_folds(study(tmp_path / "only")) == ("2 × 1", "seed 0, 1; fold 0")


def test_a_gain_that_is_displayed_as_zero_is_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "a", frozen=0.9, finetuned=0.8999)
    assert "Fine-tuned below frozen" not in flags(tmp_path)
    make_report(monkeypatch, f"dir={tmp_path}")
    assert 'class="down"' not in (tmp_path / "report.html").read_text()


def test_a_fine_tuning_that_was_not_used_has_no_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "a", frozen=0.9, finetuned=0.9)
    make_report(monkeypatch, f"dir={tmp_path}")
    (row,) = csv.DictReader((tmp_path / "results.csv").open())
    assert (row["fine_tuning_used"], row["epoch_chosen"]) == ("False", "")
    assert row["selection/finetuned"] == "fine-tuning not used"
    assert "of 2" not in (tmp_path / "report.md").read_text() and epoch_text(study(tmp_path).runs[0]) == "–"


def test_equal_tests_share_a_row_and_no_p_is_given_where_none_could_be_significant(tmp_path: Path) -> None:
    for category, gain in (("screw", 0.01), ("tile", 0.0), ("wood", 0.0)):
        for backbone in BACKBONES:
            make_run(tmp_path / f"{category}{backbone}", category, finetuned=0.9 + gain, backbone=backbone)
    (image, aupro) = compose(tmp_path, study(tmp_path)).tests.rows
    assert image == [
        "image AUROC",
        "all",
        "3",
        "1",
        "–",
        "n = 3 categories, of which 1 differ: too few for significance",
    ]
    assert aupro[0] == "pixel AUROC, AUPRO" and aupro[4] == "–"


def test_masks_missing_and_single_runs(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    found = json.loads((folder / "metrics.json").read_text())
    found["frozen"]["masks_missing"] = 4
    (folder / "metrics.json").write_text(json.dumps(found))
    raised = flags(tmp_path)
    assert "4 bad images" in raised["Masks missing"][0] and raised["One run only"] == ["screw × default"]


# --- operating points


def points(lost: int = 1, found: int = 20, contradicted: bool = False, threshold: float = 1.0) -> dict[str, Any]:
    """Operating points as a run stores them; nothing is decided at 1 %."""
    none = {"threshold": None, "rule": "none", "good_lost": None, "bad_found": None, "p_value": None}
    some = {"threshold": threshold, "rule": "conformal", "good_lost": lost, "bad_found": found, "p_value": 0.01}
    of = {"good_from": "test", "good": 20, "bad": 30}
    undecided, decided = {**of, **none, "contradicted": None}, {**of, **some, "contradicted": contradicted}
    return {"0.01": undecided, "0.05": decided, "0.1": decided, "0.2": decided}


def test_operating_points_are_means_over_runs_and_say_where_the_target_is_contradicted(tmp_path: Path) -> None:
    for seed, (lost, found) in enumerate([(1, 20), (5, 26)]):
        make_run(tmp_path / f"a{seed}", seed=seed, operating_points=points(lost, found, contradicted=lost == 5))
    make_run(tmp_path / "b", "tile", operating_points=points(0, 30))
    make_run(tmp_path / "old", "wood")  # of a version without operating points
    sheet = operating_sheet(study(tmp_path))
    rows = {row[0]: dict(zip(sheet.head, row, strict=True)) for row in sheet.rows}
    assert list(rows) == ["screw", "tile", "mean"]
    screw = rows["screw"]
    assert (screw["found at 5 %"], screw["lost at 5 %"]) == ("76.7 ± 10.0", "15.0 ± 10.0")
    assert (screw["found at 1 %"], screw["n"]) == ("–", "2")
    assert screw["contradicted"] == "5 %: 1 of 2, 10 %: 1 of 2, 20 %: 1 of 2" and rows["tile"]["contradicted"] == "no"
    assert rows["mean"]["found at 5 %"] == "88.3" and rows["mean"]["n"] == "3"
    (item,) = flags(tmp_path)["Contradicted false-alarm rates"]
    assert item.startswith("r02 (screw × default, seed 1") and "5 of 20 good images lost at 5 % (p = 0.01)" in item


def test_calibration_images_do_not_count_as_lost(tmp_path: Path) -> None:
    stored = {rate: {**point, "good_from": "calibration"} for rate, point in points(lost=3).items()}
    make_run(tmp_path / "a", operating_points=stored)
    sheet = operating_sheet(study(tmp_path))
    assert dict(zip(sheet.head, sheet.rows[0], strict=True))["lost at 5 %"] == "–"


def test_the_share_found_of_each_kind_comes_from_the_scores(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", operating_points=points(threshold=2.0))
    lines = ["path,kind,label,score", "a,good,0,9", "b,cut,1,2.0", "c,cut,1,2.5", "d,cut,1,3", "e,hole,1,1"]
    (folder / "scores.csv").write_text("\n".join(lines))
    rows = [row[2:] for row in kinds_sheet(study(tmp_path)).rows]  # a score at the threshold is good
    assert rows == [["cut", "3", "–", "66.7", "66.7", "66.7"], ["hole", "1", "–", "0.0", "0.0", "0.0"]]


def test_operating_points_are_in_page_markdown_and_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "a", operating_points=points(2, 24))
    make_report(monkeypatch, f"dir={tmp_path}")
    for name in ("report.html", "report.md"):
        text = (tmp_path / name).read_text()
        assert "80.0" in text and "found at 5 %" in text and "Bad found by kind of defect" in text
    (row,) = csv.DictReader((tmp_path / "results.csv").open())
    assert (row["bad_found@0.05"], row["bad@0.05"], row["good_lost@0.05"], row["threshold@0.05"]) == (
        "24",
        "30",
        "2",
        "1.0",
    )
    assert row["bad_found@0.01"] == ""


@pytest.mark.parametrize("value", ["many", -1, 1.5, True])
def test_damaged_counts_make_a_run_unfinished(value: Any, tmp_path: Path) -> None:
    stored = points()
    stored["0.05"]["bad_found"] = value
    make_run(tmp_path / "a", operating_points=stored)
    assert len(study(tmp_path).unfinished) == 1


# --- settings compared, tables for LaTeX, cost and provenance


def test_two_settings_are_paired_over_categories_with_means_over_common_seeds_first(tmp_path: Path) -> None:
    rng, differences = np.random.default_rng(0), []
    for i in range(7):
        values = rng.uniform(0.6, 0.9, (2, 2))
        differences.append(values[1].mean() - values[0].mean())
        for backbone, pair in zip(BACKBONES, values, strict=True):
            for seed, value in enumerate(pair):
                make_run(tmp_path / f"{i}-{backbone}-{seed}", f"c{i}", seed, frozen=float(value), backbone=backbone)
        make_run(tmp_path / f"{i}-more", f"c{i}", 2, frozen=0.1)  # a seed that only one setting has
    found = compare_settings(study(tmp_path))
    assert [each.measure for each in found] == ["image AUROC", "AUPRO"]
    expected = ttest_1samp(differences, 0).confidence_interval(0.95)
    assert found[0].settings == ("backbone=efficientnet_lite0", "backbone=resnet18") and found[0].test.n == 7
    assert found[0].difference == pytest.approx(np.mean(differences))
    assert found[0].interval == pytest.approx((expected.low, expected.high))
    assert found[0].test.p == pytest.approx(wilcoxon(differences).pvalue)
    row = pairs_sheet(study(tmp_path)).rows[1]
    assert row[-3:] == ["0.0", "0.0 to 0.0", "–"]  # equal AUPRO


def test_bad_found_is_compared_and_one_category_has_no_interval(tmp_path: Path) -> None:
    for backbone, found in zip(BACKBONES, (15, 21), strict=True):
        make_run(tmp_path / backbone, backbone=backbone, operating_points=points(found=found))
    rows = {row[0]: row[3:] for row in pairs_sheet(study(tmp_path)).rows}
    assert rows["bad found at 5 %"] == ["1", "50.0", "70.0", "+20.0", "–", "–"]


def parsed(text: str) -> list[list[list[str]]]:
    """The cells of the tables of a LaTeX file, after a check of its environments, braces and columns."""
    plain = re.sub(r"\\[\\{}&%$#_]", "", "\n".join(line for line in text.splitlines() if not line.startswith("%")))
    depth = 0
    for character in plain:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0 and not set(plain) & set("_#^~|<>%") and plain.count("$") % 2 == 0
    open_ones: list[str] = []
    for kind, name in re.findall(r"\\(begin|end){(\w+)}", text):
        if kind == "begin":
            open_ones.append(name)
        else:
            assert open_ones.pop() == name
    assert not open_ones
    tables = []
    for columns, body in re.findall(r"\\begin{tabular}{([lr]+)}(.*?)\\end{tabular}", text, re.DOTALL):
        assert re.sub(r"\s", "", body).startswith(r"\toprule") and body.count(r"\midrule") == 1 == body.count(
            "bottomrule"
        )
        rows = [re.split(r" (?<!\\)& ", line[:-3]) for line in body.splitlines() if line.endswith(r" \\")]
        assert {len(row) for row in rows} == {len(columns)}
        tables.append(rows)
    return tables


def test_all_tables_are_there_for_latex(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for category in ("a_b & c", "100 % {\\x}"):
        for backbone in BACKBONES:
            name = f"{len(list(tmp_path.iterdir()))}"
            make_run(tmp_path / name, category, finetuned=0.95, backbone=backbone, operating_points=points())
    make_report(monkeypatch, f"dir={tmp_path}")
    assert len(capsys.readouterr().out.splitlines()) < 20  # without the log of every font in the PDF files
    text = (tmp_path / "tables.tex").read_text()
    tables = parsed(text)
    titles = re.findall(r"\\caption{([^.]*)\.", text)
    assert {"image AUROC", "Bad found and good lost", "Bad found by kind of defect", "Comparison of settings",
            "Frozen vs{", "Paired tests"} <= {title.replace("Frozen vs", "Frozen vs{") for title in titles}  # fmt: skip
    assert [row[0] for row in tables[0]] == ["category", r"100 \% \{\textbackslash{}x\}", r"a\_b \& c", "mean of 2"]


def test_time_memory_and_commit_of_each_run_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cost = {"fit_seconds": 123.4, "total_seconds": 200.0, "peak_memory_bytes": 3 * 2**29}
    make_run(tmp_path / "a", cost=cost, git={"commit": "4e0c2f7aa", "clean": False})
    make_run(tmp_path / "b", seed=1, git={"commit": None, "clean": None})
    make_report(monkeypatch, f"dir={tmp_path}")
    new, old = csv.DictReader((tmp_path / "results.csv").open())
    assert (new["fit_seconds"], new["peak_memory_bytes"], new["commit"]) == (
        "123.4",
        "1610612736",
        "4e0c2f7aa, modified",
    )
    assert (old["fit_seconds"], old["peak_memory_bytes"], old["commit"]) == ("", "", "")
    page, text = ((tmp_path / name).read_text() for name in ("report.html", "report.md"))
    assert "<td>123</td><td>1.5</td>" in page and "| 123 | 1.5 |" in text and "4e0c2f7aa, modified" in page
    assert flags(tmp_path)["Mixed versions"] == ["git commit: 4e0c2f7aa, modified (r01); not recorded (r02)"]


# --- scores and figures


def test_scores_are_read_back_or_not_at_all(tmp_path: Path) -> None:
    write_scores(tmp_path / "scores.csv", np.random.default_rng(0))
    found = read_scores(tmp_path / "scores.csv")
    assert found is not None and found.both_classes and roc_auc_score(found.labels, found.scores) > 0.8
    (tmp_path / "half.csv").write_text("path,kind,label,score\n/a.png,good,0,1.5\n/b.png,good,")
    for name in ("missing.csv", "half.csv"):
        assert read_scores(tmp_path / name) is None


def test_thousands_of_images_and_outliers_make_a_small_figure() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 10_000)
    scores = Scores(labels, rng.normal(2.0 * labels))
    scores.scores[-1] = 1e6
    for figure in (roc_figure({"r01": scores}, {}, "x"), histogram_figure({"r01": scores}, {}, "x")):
        assert figure is not None and len(figure.inline) < 60_000
    assert figure is not None and "last bin: and above" in figure.svg


def test_a_histogram_marks_the_thresholds_that_there_are(sweep: Path) -> None:
    scores = Scores(np.repeat([0, 1], 10), np.arange(20.0))
    for threshold, marked in ((7.0, True), (math.nan, False), (math.inf, False)):
        figure = histogram_figure({"r01": scores}, {"r01": threshold}, "x")
        assert figure is not None and ("threshold at 5 %" in figure.svg) == marked
    make_run(sweep / "a", calibration={"thresholds": {"0.05": {"value": 1.5}}})
    make_run(sweep / "b", operating_points={"0.05": {"threshold": 2.5}})
    make_run(sweep / "c", operating_points={"0.05": {"threshold": None}})
    found = {run.name: run.threshold for run in gather(sweep)[0]}
    assert (found["a"], found["b"]) == (1.5, 2.5) and math.isnan(found["c"])  # a: of an older version


def test_equal_scores_and_one_class_are_drawn_or_left_out() -> None:
    equal = Scores(np.zeros(3, dtype=np.int64), np.ones(3))
    assert roc_figure({"r01": equal}, {}, "x") is None and histogram_figure({"r01": equal}, {}, "x") is not None
    assert histogram_figure({}, {}, "x") is None


def test_each_run_has_a_colour_and_histograms_have_the_scale_of_their_run() -> None:
    labels = np.repeat([0, 1], 50)
    runs = {f"r0{i}": Scores(labels, 10.0**i * np.linspace(1, 2, 100)) for i in (1, 2, 3)}
    roc, histogram = roc_figure(runs, {}, "x"), histogram_figure(runs, {}, "x")
    assert roc is not None and histogram is not None
    for i in (1, 2, 3):
        assert f"var(--run-{i})" in roc.inline and f"r0{i}" in roc.inline and f"r0{i}" in histogram.inline
    assert all(f">{tick}<" in histogram.svg for tick in (20, 200, 2000))  # the end of each axis
    assert roc.pdf.startswith(b"%PDF") and roc.svg.startswith("<?xml") and "var(" not in roc.svg


def test_the_page_has_the_colours_of_the_drawings() -> None:
    css = (Path(report.__file__).parent / "reporting" / "page.css").read_text()
    for colour, variable in VARIABLES.items():
        assert css.count(f"{variable}: ") == 2 and f"{variable}: {colour};" in css  # light and dark


# --- the files


@pytest.mark.slow
def test_the_report_is_its_files_and_nothing_else(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(sweep.rglob("*"))
    monkeypatch.chdir(sweep.parent)
    make_report(monkeypatch, "dir=sweep")
    after = set(sweep.parent.rglob("*")) - {sweep}
    names = ("report.html", "report.md", "results.csv", "tables.tex", "curves")
    curves = {path for path in after if path.parent == sweep / "curves"}
    assert after - before - curves == {sweep / name for name in names}
    assert len(curves) == 24 and {path.suffix for path in curves} == {".svg", ".pdf"}
    assert sweep / "curves" / "01-screw-backbone=efficientnet-lite0-roc.pdf" in curves
    first = {path: path.stat().st_size for path in after - before}
    make_report(monkeypatch, "dir=sweep")  # again: its own files are no runs
    assert abs((sweep / "report.html").stat().st_size - first[sweep / "report.html"]) < 100


@pytest.mark.slow
def test_every_run_is_a_row_of_results_csv(sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (sweep / "early" / ".hydra").mkdir(parents=True)
    make_report(monkeypatch, f"dir={sweep}", f"out={tmp_path / 'out'}")
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["finished"] * 8 + ["unfinished"]
    row = rows[0]
    assert (row["category"], row["setting"], row["seed"]) == ("screw", "backbone=efficientnet_lite0", "0")
    assert float(row["frozen/image_auroc"]) == 0.8 and row["fine_tuning_used"] == "False"
    assert row["folder"] == "screw-efficientnet_lite0-0" and "torch==2.14.1" in row["versions"]
    assert row["command"].startswith("python -m gaussad_pl.train") and "epoch 1 of 2" in rows[1]["selection/finetuned"]


@pytest.mark.slow
def test_page_and_markdown_say_where_numbers_come_from(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_report(monkeypatch, f"dir={sweep}")
    for name in ("report.html", "report.md"):
        text = (sweep / name).read_text().replace("\\", "")
        for expected in (
            "python -m gaussad_pl.train +category=tile seed=1", "2.14.1", "tf_efficientnet_lite0.in1k", "bundled",
            "fine-tuning not used", "levels weighted by top_k", "tile-resnet18-1", "too few for significance",
        ):  # fmt: skip
            assert expected in text, (name, expected)


def test_the_page_is_one_file_without_the_network(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_report(monkeypatch, f"dir={sweep}")
    page = (sweep / "report.html").read_text()
    assert "http:" not in page and "https:" not in page
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy == (
        f"default-src 'none'; img-src data: 'self'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )
    assert page.count("<script") == 1 and not re.search(r'\son\w+="', page)  # nothing that the policy would stop
    assert page.count("data:image/webp;base64,") == 16 and page.count("<svg") == 12
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(s.startswith(("data:", "#")) or (sweep / s).exists() for s in sources)
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids)) and {s[1:] for s in sources if s.startswith("#")} <= set(ids)


def test_odd_characters_are_shown_and_linked_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = "a <b>&\"'|`*$x$ %41#?=,+ä"
    evil = "<script>alert(1)</script>"
    make_run(tmp_path / odd, category=evil, command=f"python 'x|y' {evil}")
    (tmp_path / "evil" / ".hydra").mkdir(parents=True)
    (tmp_path / "evil" / "error.txt").write_text(evil)
    make_report(monkeypatch, f"dir={tmp_path}")
    page, text = ((tmp_path / name).read_text() for name in ("report.html", "report.md"))
    assert page.count("<script") == 1 and evil not in page and "&lt;script&gt;" in page
    assert f"| {evil}" not in text and "x|y" in text.split("```")[1]
    rows = [line for line in text.splitlines() if line.startswith("| r01")]
    assert len(re.findall(r"(?<!\\)\|", rows[0])) == 12
    link = re.search(r'<a href="(a%20[^"#]*)">', page)
    assert link is not None and unquote(link[1]) == odd


def test_a_name_that_is_no_unicode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "run-\udcff")
    make_report(monkeypatch, f"dir={tmp_path}")
    assert "run-�" in (tmp_path / "report.html").read_text() and "run-%FF" in (tmp_path / "report.html").read_text()


def test_one_single_frozen_run_without_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "run", aupro=None)
    make_report(monkeypatch, f"dir={tmp_path / 'run'}")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "No run was fine-tuned." in page and "No run has pictures" in page and "AUPRO" not in page
    assert "Not fine-tuned: nothing to forget." in page


def test_a_run_without_bad_images_or_readable_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = {"train": 19, "validation": 5, "test_good": 6, "test_bad": 0}
    folder = make_run(tmp_path / "run", frozen=None, aupro=None, images=images)
    write_scores(folder / "scores.csv", np.random.default_rng(0), bad=0)
    (folder / "misses.png").write_bytes(b"no picture")
    make_report(monkeypatch, f"dir={tmp_path}")
    page = (tmp_path / "report.html").read_text()
    assert "No finished run has a metric." in page and "No ROC curve" in page


def test_only_unfinished_runs_make_a_report_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    make_report(monkeypatch, f"dir={tmp_path}")
    assert "Unfinished runs" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("name", ["", "missing"])
def test_a_folder_without_runs_is_a_mistake(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "config.yaml").write_text("")  # that of a logger
    with pytest.raises(SystemExit) as stop:
        make_report(monkeypatch, f"dir={tmp_path / name}")
    text = str(stop.value.code)
    assert text.startswith("error: ") and str(tmp_path / name) in text and "\n" not in text
    assert not list(tmp_path.rglob("report.*"))


@pytest.mark.slow
def test_the_report_needs_no_torch() -> None:
    code = "import sys, gaussad_pl.reporting.page, gaussad_pl.reporting.markdown; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- in a browser

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


def browser_path() -> str | None:
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return next((path for path in found if path), None)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_real_browser(scheme: str, sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = browser_path()
    if path is None:
        pytest.skip("no chromium here")
    long = "a_category_with_a_very_long_name_that_does_not_break" * 3
    make_run(sweep / long, long, finetuned=0.5, command="python " + "x" * 500)
    make_report(monkeypatch, f"dir={sweep}")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        for width in (390, 1280):
            page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            complaints: list[str] = []
            page.on("console", lambda message: complaints.append(message.text))  # noqa: B023
            page.on("pageerror", lambda error: complaints.append(str(error)))  # noqa: B023
            page.on("request", lambda request: complaints.append(request.url))  # noqa: B023
            page.goto((sweep / "report.html").as_uri())
            page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
            page.evaluate("Promise.all([...document.images].map(image => image.decode()))")
            visited = [text for text in complaints if not text.startswith(("data:", "file:"))]
            assert visited == []
            assert page.evaluate("document.images.length") > 0
            assert page.evaluate("[...document.images].every(image => image.naturalWidth > 100)")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate("document.body.scrollWidth") <= width
            outside = "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, svg')"
            assert page.evaluate(f"{outside} && e.getBoundingClientRect().right > innerWidth + 1).length") == 0
            wide = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
            assert page.evaluate(f"{wide}.every(e => getComputedStyle(e).overflowX === 'auto')")
            assert page.evaluate(f"{wide}.length") > 0
            assert page.evaluate("[...document.querySelectorAll('figure svg')].every(e => e.clientHeight > 100)")
            ink, paper = page.evaluate(
                "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
            )
            light = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
            assert (light[0] < light[1]) == (scheme == "light") and abs(light[0] - light[1]) > 400
        page.click("a[href='#r01'] >> nth=0")
        assert page.evaluate("document.getElementById('r01').closest('details').open")
        browser.close()
