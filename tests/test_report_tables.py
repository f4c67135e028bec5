"""The numbers of the report: tables, settings, comparisons and operating points."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import BACKBONES, flags, make_report, make_run, points, study
from scipy.stats import ttest_1samp, wilcoxon

from gaussad_pl.reporting.pairs import compare_settings, pairs_sheet
from gaussad_pl.reporting.sheets import kinds_sheet, operating_sheet
from gaussad_pl.reporting.tables import compare, comparisons, estimate, mean_of, paired_test, result_tables


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


# --- operating points


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
