"""The benchmark of fine-tuning: what it reads out of its records."""

from __future__ import annotations

import ast
import doctest
import importlib
import io
import itertools
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from rich.console import Console

from benchmarks import (
    analysis,
    contamination,
    drift,
    evidence,
    evidence_jobs,
    evidence_table,
    fine_tuning,
    markdown,
    segmentation,
    verdicts,
)
from benchmarks.coreset import farthest_first
from benchmarks.jobs import compose_job
from benchmarks.judged import judged
from benchmarks.peer_scores import cross_conformal
from benchmarks.speed import __main__ as speed
from benchmarks.speed import fine_tuning as epochs
from benchmarks.speed import growth, scoring, start
from benchmarks.speed.timing import Row, Setting
from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.data.frame import Frame
from gaussad_pl.data.loading import load_images
from gaussad_pl.inference.artefact import NAME
from gaussad_pl.inference.detector import Detector
from gaussad_pl.training.module import GaussianAD
from gaussad_pl.training.signals import DISTANCE, SIGNALS, judge


def job(signal: list[float], test: list[float], seed: int = 0) -> dict[str, Any]:
    names = (*SIGNALS, DISTANCE, "paired/elastic", "auroc/elastic")
    history = [dict.fromkeys(names, value) for value in signal]
    for record in history:
        record["distance"] = -record["gap"]
    for record in history[1:]:
        record["loss"] = 1.0
    return {
        "setting": "default", "dataset": "parts", "seed": seed, "seconds": 1.0, "history": history, "test_auroc": test,
        "frozen": 0.8, "tuned": 0.85, "chosen": 0.84, "used": True, "aupro": None,
    }  # fmt: skip


@pytest.mark.parametrize("module", [analysis, growth, markdown])
def test_the_examples_in_the_docstrings_hold(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert found.attempted and not found.failed


def test_a_subset_has_the_images_that_were_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "TESTED", 3)
    for folder, count in (("train/good", 9), ("test/good", 5), ("test/scratch", 2), ("test/dent", 4)):
        (tmp_path / "parts" / folder).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "parts" / folder / f"{number}.png").touch()
    drawn = [verdicts.subset(tmp_path / "parts", 4, draw, False, tmp_path / str(draw)) for draw in (0, 1)]
    for found in drawn:
        names = [file.parent.relative_to(found).as_posix() for file in found.rglob("*.png")]
        assert names.count("train/good") == 4 and names.count("test/good") == 3 and len(names) == 10
    chosen = [{file.name for file in (found / "train" / "good").iterdir()} for found in drawn]
    assert chosen[0] != chosen[1]


def test_good_test_images_of_the_same_source_are_undrawn_training_images(tmp_path: Path) -> None:
    for folder in ("train/good", "test/good", "test/dent"):
        (tmp_path / "parts" / folder).mkdir(parents=True)
        for number in range(9):
            (tmp_path / "parts" / folder / f"{number}.png").touch()
    found = verdicts.subset(tmp_path / "parts", 4, 0, True, tmp_path / "drawn")
    train, test = ([file.resolve() for file in (found / side / "good").iterdir()] for side in ("train", "test"))
    assert len(train) == 4 and sorted(train + test) == sorted((tmp_path / "parts" / "train" / "good").iterdir())
    assert len(list((found / "test" / "dent").iterdir())) == 9


def test_verdicts_count_good_parts_lost_and_bad_parts_found_where_a_threshold_is_possible() -> None:
    calibration = Calibration.of(torch.arange(19.0), torch.zeros(19, 1), "none")  # thresholds at 18 (5 %) and 17 (10 %)
    scores, labels = torch.tensor([0.0, 17.5, 17.5, 30.0], dtype=torch.float64), torch.tensor([0, 0, 1, 1])
    found = verdicts.verdicts(calibration, scores, labels)
    assert (found["0.05"], found["0.1"]) == ({"lost": 0, "found": 0.5}, {"lost": 0.5, "found": 1})
    few = Calibration.of(torch.arange(18.0), torch.zeros(18, 1), "none")
    found = verdicts.verdicts(few, scores, labels)
    assert found["0.05"] == {"lost": None, "found": None} and found["0.1"]["found"] == 1


def test_verdicts_of_small_sets_stand_beside_those_of_the_peers_and_are_measured_once(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def state(auroc: float, found: float | None) -> dict[str, Any]:
        return {"auroc": auroc, **{str(rate): {"lost": found and 0.0, "found": found} for rate in verdicts.RATES}}

    def run_job(folder: Path, draw: int, overrides: list[str]) -> dict[str, Any]:
        tuned = {} if draw else {"fine-tuned": state(0.9, 0.6)}  # not accepted in the second draw
        return {"states": {"frozen": state(0.8, 0.4), **tuned}}

    def run_peer(python: Path, folder: Path, method: str, seed: int) -> dict[str, Any]:
        assert len(list((folder / "train" / "good").iterdir())) == 8
        scores = {"calibration_scores": [0.0], "test_scores": [0.0, 1.0], "test_labels": [0, 1]}
        return evidence_record(method=method, seed=seed, image_auroc=0.7, calibration="one", **scores)

    monkeypatch.setattr(verdicts, "run_job", run_job)
    monkeypatch.setattr(verdicts, "run_peer", run_peer)
    where = ["verdicts", "--data", str(parts / "screw"), "--sizes", "8", "99", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*where, "--draws", "2", "--peers-python", "python"])
    verdicts.main()
    printed = capsys.readouterr().out.splitlines()
    rows = [line for line in printed if line.startswith("| ")][2:]
    half = " | ".join(["0.0 ± 0.0 / 50.0 ± 10.0"] * 3)
    assert rows[0] == f"| screw | 8 | default | 85.0 ± 5.0 | {half} | 2 |"
    assert rows[1].startswith("|  |  | frozen | 80.0 ± 0.0 |")
    assert rows[2:] == [f"|  |  | {name} | 70.0 ± 0.0 | - | - | - | 2 |" for name in ("PatchCore", "PaDiM")]
    assert printed[-4] == "Fine-tuning, accepted in 1 of 2 runs, changes good parts lost / bad parts found:"
    assert printed[-3] == "5 %: 0.0 / 20.0 points (1 pairs)"
    monkeypatch.setattr(verdicts, "run_job", pytest.fail)  # no job runs again
    (tmp_path / "screw-8-draw1.json").unlink()
    monkeypatch.setattr(sys, "argv", [*where, "--finished"])
    verdicts.main()
    assert capsys.readouterr().out.splitlines()[2].startswith("| screw | 8 | default | 90.0 | 0.0 / 60.0 |")


@pytest.mark.parametrize(
    "values", [[1, 2, 3, 2, 1, 1, 4], [3, 2, 1, 1, 4], [1, 2, 3], [1, 1, 1, 1], [1, 2, 1, 3, 1, 1, 1, 9]]
)
def test_the_chosen_epoch_is_that_of_the_callback(values: list[float]) -> None:
    from test_forgetting import feed

    callback, _ = feed([float(v) for v in values], analysis.PATIENCE)
    assert analysis.chosen_epoch(job([float(v) for v in values], []), "gap") == callback.best_epoch


def test_gain_and_regret_are_those_of_the_state_that_was_used() -> None:
    assert analysis.gain(job([0.1, 0.3, 0.2], [0.80, 0.85, 0.90])) == pytest.approx(5)
    assert analysis.regret(job([0.1, 0.3, 0.2], [0.80, 0.85, 0.90])) == pytest.approx(6)
    assert analysis.regret(job([0.1, 0.3, 0.2], [0.80, 0.81, 0.82])) == 0


@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_the_report_names_what_forgetting_would_have_cost(tmp_path: Path) -> None:
    jobs = [job([0.1, 0.3, 0.2, 0.1, 0.1], [0.80, 0.85, 0.80, 0.75, 0.70], seed) for seed in range(3)]
    analysis.report(jobs, tmp_path, Console(file=io.StringIO()))
    text = (tmp_path / "tables.txt").read_text()
    assert "5.00 ± 0.00" in text and "15.00 ± 0.00" in text and "runs that forget (3 runs)" in text
    assert len(list(tmp_path.glob("*.png"))) == 3


@pytest.mark.parametrize("script", [growth.SCRIPT, growth.WHOLE, start.SCRIPT], ids=["growth", "whole", "start"])
def test_scripts_for_other_processes_import_names_that_exist(script: str) -> None:
    """Linters and type checkers do not look into strings."""
    for node in ast.walk(ast.parse(script)):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            assert not [alias.name for alias in node.names if not hasattr(module, alias.name)], node.module


def test_the_fast_coreset_is_that_of_the_plain_search() -> None:
    features = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    picks, nearest = [7], torch.linalg.norm(features - features[7], dim=1)
    while len(picks) < 60:
        picks.append(int(nearest.argmax()))
        nearest = nearest.minimum(torch.linalg.norm(features - features[picks[-1]], dim=1))
    assert farthest_first(features, 7, 60, active=16) == picks


def test_peers_are_calibrated_on_images_whose_groups_they_have_not_seen() -> None:
    groups = np.array([0, 0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 9, 10])
    scored: list[int] = []

    def score_others(others: list[int], fold: list[int]) -> torch.Tensor:
        assert sorted(others + fold) == list(range(len(groups)))
        assert not set(groups[others]) & set(groups[fold])
        scored.extend(fold)
        return torch.tensor(fold).float()

    calibration = cross_conformal(score_others, groups, seed=0)
    assert sorted(scored) == calibration.scores.tolist() == list(range(13))
    assert calibration.different == 11


def test_ours_and_the_peers_are_judged_by_one_rule() -> None:
    scores, labels = torch.tensor([0.0, 18.5, 17.5, 30.0]), torch.tensor([0, 0, 1, 1])
    enough, few = (Calibration.of(torch.arange(float(n)), torch.zeros(n, 0), "none") for n in (19, 18))
    found = judged(enough, scores, labels)
    assert (found["threshold"], found["good_lost"], found["bad_found"]) == (18, 1, 1)
    undecided = judged(few, scores, labels)
    assert undecided["threshold"] is undecided["good_lost"] is undecided["bad_found"] is None


def evidence_record(**changes: Any) -> dict[str, Any]:
    record = {"dataset": "parts", "method": "default", "seed": 0, "image_auroc": 0.9, "aupro": 0.8, "p_value": 0.5}
    counts: dict[str, Any] = {"good": 10, "good_lost": 1, "bad": 20, "bad_found": 15}
    counts |= {"calibration_scores": [0.0], "test_scores": [0.0, 1.0], "test_labels": [0, 1]}
    return {**record, **counts, "fit_cpu_seconds": 10.0, "score_cpu_seconds": 1.0, **changes}


def test_the_table_of_evidence_has_means_over_seeds_and_says_what_is_missing() -> None:
    text = evidence_table.table([
        evidence_record(),
        evidence_record(seed=1, image_auroc=0.94, bad_found=17, p_value=0.01, fit_cpu_seconds=30.0),
        evidence_record(method="padim", aupro=None, good_lost=None, bad_found=None, p_value=None),
    ])  # fmt: skip
    head, rule, default, padim = text.splitlines()
    assert head.count("|") == rule.count("|") == padim.count("|")
    assert default == (
        "| parts | gaussad_pl, default | 92.0 ± 2.0 | 80.0 ± 0.0 | 80.0 ± 5.0 | 10.0 ± 0.0 ! | 20 | 1.0 | 2 |"
    )
    assert padim == "|  | PaDiM | 90.0 | - | - | - | 10 | 1.0 | 1 |"


def test_bad_images_among_the_good_ones_are_not_in_the_test_of_either_detector(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[set[Path], set[Path]]] = []  # images to train on, and bad ones of the test

    def judge(folder: Path, draw: int, overrides: list[str]) -> dict[str, Any]:
        good = {file.resolve() for file in (folder / "train" / "good").iterdir()}
        bad = {file.resolve() for file in (folder / "test").glob("*/*") if file.parent.name != "good"}
        seen.append((good, bad))
        hidden = sum(file.name.startswith(contamination.PREFIX) for file in (folder / "train" / "good").iterdir())
        rates = {str(rate): {"lost": 0.0, "found": 1.0 - hidden / 4} for rate in verdicts.RATES}
        return {"named_bad": hidden // 2, "named_good": 1, "auroc": 0.9, **rates}

    monkeypatch.setattr(contamination, "judge", judge)
    where = ["contamination", "--data", str(parts / "screw"), "--good", "8", "--bad", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*where, "--draws", "2"])
    contamination.main()
    for clean, spoilt in zip(seen[::2], seen[1::2], strict=True):
        hidden = spoilt[0] - clean[0]
        assert len(clean[0]) == 8 and len(hidden) == 2 and clean[0] < spoilt[0]
        assert clean[1] == spoilt[1] and not hidden & clean[1] and all("test" in file.parts for file in hidden)
    found = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    assert found[0].startswith("| screw | 8 | clean |  | 2 of 16 | 90.0 ± 0.0 | 0.0 ± 0.0 / 100.0 ± 0.0 |")
    assert found[1].startswith("|  |  | contaminated | 2 of 4 | 2 of 16 | 90.0 ± 0.0 | 0.0 ± 0.0 / 50.0 ± 0.0 |")


def test_images_that_recalibrate_are_not_judged(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = GaussianAD(TINY, segmentation={"form": "shared", "map_levels": [1, 2], "combine": "both"}).eval()
    good = load_images(sorted((parts / "screw/train/good").iterdir()), Frame(64, 64), None, "")
    module.estimate([{"image": good, "unchanged": torch.ones(len(good), dtype=torch.bool)}], patches=True)  # type: ignore[arg-type]
    Detector.of(module.model, Calibration.of(torch.zeros(19), torch.zeros(19, 3), ""), {}).save(tmp_path / NAME)
    used: list[torch.Tensor] = []
    scored: list[torch.Tensor] = []
    recalibrate, score = drift.recalibrate, drift.score
    monkeypatch.setattr(drift, "recalibrate", lambda *given: used.append(given[1]) or recalibrate(*given))
    monkeypatch.setattr(drift, "score", lambda *given: scored.append(given[1]) or score(*given))
    monkeypatch.setattr(
        sys, "argv", ["drift", "--ckpt", str(tmp_path), "--data", str(parts / "screw"), "--splits", "2"]
    )
    drift.main()
    assert len(used) == 2 * 2 * 2 and len(scored) == 2 * 2 * 3
    for number, images in enumerate(scored):
        today = used[2 * (number // 3)]
        assert len(today) + len(images) == 12  # six good ones and six bad ones
        assert not any((image == images).flatten(1).all(1).any() for image in today)
    assert scored[-1].float().mean() == pytest.approx(0.8 * float(scored[3].float().mean()), abs=0.5)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    assert (
        len(rows) == 6 and rows[0].startswith("| as photographed | before | ") and rows[3].startswith("| 20 % darker")
    )


def test_the_verdicts_at_each_target_are_counted_again_from_the_scores() -> None:
    scores = {"calibration_scores": [float(i) for i in range(39)], "test_labels": [0, 0, 1, 1]}
    records = [
        evidence_record(**scores, test_scores=[0.0, 37.5, 37.5, 50.0]),
        evidence_record(**scores, test_scores=[0.0, 1.0, 36.5, 50.0], seed=1),
        evidence_record(**{**scores, "calibration_scores": [0.0, 1.0]}, test_scores=[0.0] * 4, method="padim"),
    ]
    head, _, default, padim = evidence_table.targets(records).splitlines()
    assert head == "| dataset | detector | 1 % | 5 % | 10 % | 20 % |"
    # of 39 scores, 5 % leaves the second largest as the threshold, 10 % the fourth and 20 % the eighth
    lost, few = "25.0 ± 25.0", "75.0 ± 25.0"
    assert (
        default == f"| parts | gaussad_pl, default | - | {lost} / {few} | {lost} / 100.0 ± 0.0 | {lost} / 100.0 ± 0.0 |"
    )
    assert padim == "|  | PaDiM | - | - | - | - |"


@pytest.mark.parametrize("setting", evidence_jobs.SETTINGS)
def test_every_setting_of_evidence_has_a_fold_for_each_seed(setting: str, tmp_path: Path) -> None:
    for seed in range(3):
        config = compose_job(tmp_path, seed, evidence_jobs.SETTINGS[setting])
        assert config.seed == seed and config.fold < max(1, config.folds)


def test_the_results_page_has_the_columns_that_evidence_prints() -> None:
    page = (Path(__file__).parent.parent / "docs" / "pages" / "results.md").read_text(encoding="utf-8")
    head, rule, *rows = evidence_table.table([evidence_record()]).splitlines()
    start = page.index(head)
    shown = page[start : page.index("\n\n", start)].splitlines()
    assert shown[1] == rule and len(shown) > len(rows) + 2
    for row in shown[2:]:
        _, _, name, *cells, _ = row.split("|")
        assert name.strip() in evidence_table.NAMES.values() and len(cells) == len(evidence_table.COLUMNS) - 2


def test_an_interrupted_run_of_evidence_has_every_detector_of_the_first_seeds() -> None:
    folders = [Path("screw"), Path("tile")]
    found = evidence.jobs(folders, ["default", "patchcore"], [3, 4], once=["tile/patchcore"])
    assert [seed for seed, *_ in found] == [3, 3, 3, 3, 4, 4, 4]
    assert (4, Path("tile"), "patchcore") not in found and (3, Path("tile"), "patchcore") in found


@pytest.mark.slow
def test_evidence_runs_every_detector_and_goes_on_where_it_was_interrupted(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_peer(python: Path, folder: Path, method: str, seed: int) -> dict[str, Any]:
        return evidence_record(dataset=folder.name, method=method, seed=seed)

    monkeypatch.setattr(evidence, "run_peer", run_peer)
    quick = [f"backbone.name={TINY['name']}", "backbone.weights=random", "backbone.image_size=64"]
    steps = ["trainer.max_epochs=1", "data.steps_per_epoch=1", "data.batch_size=4"]
    where = ["--data", str(parts / "screw"), "--seeds", "0", "--out", str(tmp_path), "--peers-python", "python"]
    monkeypatch.setattr(sys, "argv", ["evidence.py", *where, "--set", *quick, *steps, "levels=all"])
    evidence.main()
    table = capsys.readouterr().out
    for name in evidence_table.NAMES.values():
        assert name in table or name in ("DFKDE", "STFPM", "PatchFlow")
    records = {path: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert all(0 <= record["fit_cpu_seconds"] < 1000 for record in records.values())
    assert (tmp_path / "table.md").read_text() in table
    written = {path: path.stat().st_mtime_ns for path in records}
    first = next(iter(written))
    first.unlink()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--finished"])
    evidence.main()
    assert not first.exists() and len(capsys.readouterr().out.splitlines()) == 2 * (1 + len(records)) + 1
    monkeypatch.setattr(sys, "argv", sys.argv[:-1])
    evidence.main()
    assert [path for path in written if path.stat().st_mtime_ns != written[path]] == [first]


@pytest.mark.slow
def test_a_job_runs_on_through_forgetting(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regret can only be measured against epochs that were trained, however bad the signals were."""
    values = itertools.count()

    def falling(*scores: object) -> float:
        return 1 - 0.001 * next(values)

    for name in SIGNALS:
        monkeypatch.setitem(SIGNALS, name, falling)
    quick = [f"backbone.name={TINY['name']}", "backbone.weights=random", "backbone.image_size=64", "trainer=cpu"]
    steps = ["trainer.max_epochs=4", "data.steps_per_epoch=1", "data.batch_size=4"]
    overrides = [*quick, *steps, "levels=all"]
    maps = fine_tuning.frozen_map(parts / "screw", 0, overrides)
    found = fine_tuning.run_job(parts / "screw", 0, overrides, maps)
    assert len(found["history"]) == len(found["test_auroc"]) == 5
    assert judge(found["history"], "log_ratio", patience=3)[1]  # a smaller patience would have stopped it


@pytest.mark.slow
def test_the_map_joined_with_the_pooled_scores_is_the_score_of_a_run(parts: Path) -> None:
    from gaussad_pl.metrics.image import auroc
    from gaussad_pl.training.experiment import Outcome, frozen_state
    from gaussad_pl.training.forgetting import ForgettingStop

    quick = [f"backbone.name={TINY['name']}", "backbone.weights=random", "backbone.image_size=64", "trainer=cpu"]
    overrides = [*quick, "trainer.max_epochs=1", "data.steps_per_epoch=1", "data.batch_size=4", "levels=all"]
    maps = fine_tuning.frozen_map(parts / "screw", 0, overrides)
    joined = fine_tuning.run_job(parts / "screw", 0, overrides, maps)["frozen"]
    config = fine_tuning.compose_job(parts / "screw", 0, overrides)
    data, module = fine_tuning.build(config)
    forgetting, outcome = ForgettingStop("log_ratio"), Outcome()
    every = [image for part in data.split for image in part]
    frozen_state(fine_tuning.quiet_trainer(config, [forgetting]), module, data, forgetting, every, outcome)
    assert joined == pytest.approx(auroc(outcome.final.scores, torch.tensor(outcome.final.labels)), abs=1e-9)


@pytest.mark.slow
def test_the_benchmark_runs_and_goes_on_where_it_was_interrupted(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = [f"backbone.name={TINY['name']}", "backbone.weights=random", "backbone.image_size=64", "trainer=cpu"]
    steps = ["trainer.max_epochs=2", "data.steps_per_epoch=2", "data.batch_size=4"]
    command = [
        "fine_tuning",
        "--data",
        str(parts / "screw"),
        "--preset",
        "ablation",
        "--seeds",
        "0",
        "--out",
        str(tmp_path),
    ]
    monkeypatch.setattr(sys, "argv", [*command, "--set", *quick, *steps, "levels=all"])
    fine_tuning.main()
    files = sorted(tmp_path.glob("*.json"))
    assert len(files) == len(fine_tuning.PRESETS["ablation"])
    before = [file.stat().st_mtime_ns for file in files[1:]]
    files[0].unlink()
    fine_tuning.main()
    assert files[0].is_file() and [file.stat().st_mtime_ns for file in files[1:]] == before


@pytest.mark.slow
def test_the_benchmark_of_the_maps_tells_each_form_and_the_peers(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = [f"backbone.name={TINY['name']}", "backbone.weights=random", "backbone.image_size=64"]

    def run_peers(python: Path, folder: Path, seed: int, out: Path, methods: list[str], threads: int) -> None:
        assert (python.name, folder, seed, threads) == ("python", parts / "screw", 0, 1)
        out.mkdir()
        for method in methods:
            record = {"dataset": "screw", "method": method, "seed": seed, "status": "not finished"}
            (out / f"screw-{method}-fold-seed0.json").write_text(json.dumps(record))

    monkeypatch.setattr(segmentation, "run_peers", run_peers)
    where = ["--data", str(parts / "screw"), "--seeds", "0", "--out", str(tmp_path), "--peers-python", "python"]
    monkeypatch.setattr(sys, "argv", ["segmentation.py", *where, "--set", *quick, "model.segmentation.clusters=4"])
    segmentation.main()
    records = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert records["screw-position-seed0"]["chosen"]["form"] == "position"
    assert records["screw-position-seed0"]["chosen"]["combine"] == "map"
    assert records["screw-default-seed0"]["chosen"]["form"] == "union"
    printed = capsys.readouterr().out
    for method in ("default", "position", "clusters", "shared", "union", "padim", "patchcore", "not finished"):
        assert method in printed


def test_the_speed_of_every_form_of_score_and_estimate_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "SIZE", 64)
    monkeypatch.setattr(scoring, "WEIGHTS", TINY)
    monkeypatch.setattr(scoring, "MAP", {"map_levels": [1], "combine": "both", "clusters": 4})
    rows = [*scoring.scoring(Setting(), 2, 1), *scoring.estimating(Setting(), 2, 1)]
    assert len(rows) == 2 * len(scoring.FORMS) + 3 and all(row.ratio and row.ratio > 0 for row in rows)


def test_the_page_of_speed_has_the_columns_that_the_benchmark_prints() -> None:
    page = (Path(__file__).parent.parent / "docs" / "pages" / "speed.md").read_text(encoding="utf-8")
    for head in speed.table([]).split("\n\n"):
        start = page.index(head)
        shown = page[start : page.index("\n\n", start)].splitlines()
        assert len(shown) > 10 and len({line.count(" | ") for line in shown if "---" not in line}) == 1


@pytest.mark.slow
def test_the_speed_of_an_epoch_of_each_objective_is_measured(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = [f"backbone.name={TINY['name']}", "backbone.weights=random", "backbone.image_size=64", "levels=all"]
    quick += ["data.steps_per_epoch=2", "data.batch_size=4", "trainer=cpu"]
    monkeypatch.setattr(epochs, "compose_job", lambda folder, seed, more: compose_job(folder, seed, [*quick, *more]))
    rows = epochs.epoch(parts / "screw", Setting(), 2)
    assert len(rows) == 4 and all(row.ratio and row.ratio > 0 for row in rows)


@pytest.mark.slow
def test_the_stages_up_to_the_first_training_step_are_measured(parts: Path) -> None:
    rows = start.cold_start(parts / "screw")
    assert rows[-1].what == "cold start: first training step"
    assert sum(row.ratio or 0 for row in rows) == pytest.approx(1)


def test_parts_of_the_benchmark_of_speed_are_kept_and_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measures(**ratios: float) -> None:
        rows = [Row(1, "scoring", ratio, "bare forward", 1.1, form=form) for form, ratio in ratios.items()]
        monkeypatch.setattr(speed, "scoring", lambda *_: rows)

    def printed(*more: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["speed", "--data", "x", "--out", str(tmp_path), *more])
        speed.main()
        text = capsys.readouterr().out
        assert text == (tmp_path / "table.md").read_text()
        return [line for line in text.splitlines() if line.startswith("| ") and "| to |" not in line]

    monkeypatch.setattr(speed, "sweeping", lambda *_: [Row(8, "four jobs", None, "serial", note="no ray")])
    jobs = "| four jobs | - | serial |  | no ray |"
    assert printed("--parts", "8") == [jobs]
    measures(pooled=1.0, union=1.2)
    slow = "| scoring | 1.00 |  |  |  | **1.20** | bare forward | 1.10 |"
    assert printed("--parts", "1") == [slow, jobs]
    assert printed("--parts", "1", "--precision", "bf16") == [slow]
    measures(pooled=1.0, union=1.05)
    assert printed("--parts", "1") == [slow.replace("**1.20**", "1.05"), jobs]
