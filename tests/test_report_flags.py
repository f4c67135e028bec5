"""The warnings of the report."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import pytest
from made_runs import BACKBONES, VERSIONS, flags, make_report, make_run, study

from gaussad_pl.reporting.content import compose, epoch_text, seeds_and_folds
from gaussad_pl.reporting.runs import gather
from gaussad_pl.reporting.tables import result_tables


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
    found = flags(tmp_path)["The signal never changed"]
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
