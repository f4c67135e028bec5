"""Good images that do not belong: named at the end of a run, by scores from Gaussians that have not seen them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from test_train import metrics, run

from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.calibration.far_out import far_out, outer_fence
from gaussad_pl.results.decisions import NAMED, notes


def calibration(scores: list[float], images: list[int]) -> Calibration:
    return Calibration.of(torch.tensor(scores), torch.zeros(len(scores), 1), "test", images=images)


def test_the_fence_is_that_of_tukey() -> None:
    scores = np.random.default_rng(0).gamma(3.0, size=101)
    first, third = np.percentile(scores, [25, 75])
    assert outer_fence(torch.from_numpy(scores)) == pytest.approx(third + 3 * (third - first))


def test_images_beyond_the_fence_are_given_by_their_position_the_farthest_first() -> None:
    scores = [0.5, 9.0, 0.1, 0.9, 0.4, 0.6, 0.2, 30.0, 0.8, 0.3, 0.7, 1.0]
    places = list(range(100, 112))
    assert far_out(calibration(scores, places)) == [(107, 30.0), (101, 9.0)]
    assert far_out(calibration(scores, [])) == []  # a detector does not store them
    assert far_out(calibration(scores[-9:], places[-9:])) == []  # too few for quartiles


def test_usual_scores_have_none() -> None:
    scores = torch.randn(300, generator=torch.Generator().manual_seed(0)).tolist()
    assert far_out(calibration(scores, list(range(300)))) == []


@pytest.mark.slow
def test_a_bad_part_among_the_good_ones_is_named(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(parts / "screw" / "train" / "good", tmp_path / "mixed")
    shutil.copy(parts / "screw" / "test" / "spot" / "000.png", tmp_path / "mixed" / "bad.png")
    folder = tmp_path / "run"
    quick = ["backbone.image_size=64", "trainer=cpu", "fine_tune=false", "model.segmentation=null", "logger=csv"]
    run(monkeypatch, "data=folder", f"data.root={tmp_path / 'mixed'}", f"hydra.run.dir={folder}", *quick)
    (found,) = metrics(folder)["calibration"]["far_out"]
    assert Path(found["path"]).name == "bad.png"
    assert f"bad.png ({found['score']:.4g}). They raise" in capsys.readouterr().out


def test_of_many_only_some_are_named() -> None:
    many = [{"path": f"/parts/{i}.png", "score": 10.0 - i} for i in range(NAMED + 2)]
    point = {"contradicted": None, "good": 0, "bad": 0, "good_from": "test", "rule": "conformal"}
    known = {"images": 30, "test_good_moved_away": [], "far_out": many}
    (line,) = [each for each in notes({"operating_points": {"0.05": point}, "calibration": known}) if "look at" in each]
    assert "0.png (10), 1.png (9)" in line and "5.png" not in line and "and 2 more" in line
