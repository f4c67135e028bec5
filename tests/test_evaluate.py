"""The command: any detector on any labelled folder."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, draw_part
from PIL import Image

from gaussad_pl import evaluate, recalibrate
from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.data.frame import Frame
from gaussad_pl.data.loading import load_images
from gaussad_pl.data.samples import scan_mvtec
from gaussad_pl.fingerprints import image_digest
from gaussad_pl.inference.artefact import NAME
from gaussad_pl.inference.detector import Detector
from gaussad_pl.training.module import GaussianAD


@pytest.fixture(scope="module")
def ckpt(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on the parts, with its detector."""
    torch.manual_seed(0)
    module = GaussianAD(TINY, segmentation={"form": "shared", "map_levels": [1, 2], "combine": "both"}).eval()
    good, more = (
        torch.stack([torch.from_numpy(np.array(draw_part(rng, False)[0])).permute(2, 0, 1) for _ in range(40)])
        for rng in (np.random.default_rng(seed) for seed in (10, 11))
    )
    module.estimate([{"image": good, "unchanged": torch.ones(40, dtype=torch.bool)}], patches=True)  # type: ignore[arg-type]
    with torch.no_grad():
        found = module(more)
    assert found.maps is not None
    module.segmenter.threshold.fill_(float(found.maps.quantile(0.99)))
    folder = tmp_path_factory.mktemp("run")
    paths = [sample.path for sample in scan_mvtec(parts / "screw").train]
    seen = [image_digest(image) for image in load_images(paths, Frame(64, 64), None, "")]
    known = Calibration.of(found.scores, found.distances, "40 drawn images")
    Detector.of(module.model, known, {"good_images": seen}).save(folder / NAME)
    return folder


def run(*arguments: str) -> None:
    evaluate.main(arguments)


def message(*arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    text = str(stop.value.code)
    assert text.startswith("error: ") and "\n" not in text
    return text


def metrics(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return content


def scores(folder: Path) -> dict[str, float]:
    with (folder / "scores.csv").open(newline="") as file:
        return {row["path"]: float(row["score"]) for row in csv.DictReader(file)}


def test_it_leaves_the_files_of_a_run_and_says_what_was_decided(
    ckpt: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    run(f"ckpt={ckpt}", f"data={parts / 'screw'}", f"out={out}")
    names = ("roc", "histogram", "misses", "false_alarms", "defects")
    pictures = {f"{name}.{kind}" for name in names for kind in ("png", "pdf")}
    assert {path.name for path in out.iterdir()} == {"metrics.json", "scores.csv"} | pictures
    found, said = metrics(out), capsys.readouterr().out
    assert found["calibration"]["test_good"] == 6 and len(scores(out)) == 12
    assert 0 <= found["evaluation"]["aupro"] <= 1 and found["evaluation"]["per_defect"].keys() == {"spot"}
    detector = Detector.load(ckpt)
    assert list(scores(out).values()) == pytest.approx([each.score for each in detector(list(scores(out)))], abs=1e-3)
    for fpr, point in found["operating_points"].items():
        threshold = detector.threshold(float(fpr))
        assert point["threshold"] == threshold.value and point["rule"] == threshold.rule
        above = [path for path, score in scores(out).items() if score > threshold.value]
        assert (point["good_lost"], point["good"]) == (sum("/good/" in path for path in above), 6)
        assert (point["bad_found"], point["bad"]) == (sum("/spot/" in path for path in above), 6)
        assert f"{point['bad_found']} of 6" in said
    assert found["contour"]["threshold"] == detector.limit and 0 < found["contour"]["observed"] < 0.1
    assert "image AUROC" in said and "decisions" in said and f"results: {out}" in said.replace("\n", "")


def test_every_layout_gives_the_same_numbers(ckpt: Path, parts: Path, tmp_path: Path) -> None:
    screw, flat = parts / "screw", tmp_path / "good_parts"
    shutil.copytree(screw / "test/good", flat)
    layouts = {
        "mvtec": [f"data={screw}"],
        "kinds": [f"data={screw / 'test'}", f"masks={screw / 'ground_truth'}"],
        "flat": [f"data={flat}", f"bad={screw / 'test/spot'}", f"masks={screw / 'ground_truth/spot'}"],
    }
    for name, settings in layouts.items():
        run(f"ckpt={ckpt}", *settings, f"out={tmp_path / name}")
    one, *others = (metrics(tmp_path / name) for name in layouts)
    for other in others:
        assert other["operating_points"] == one["operating_points"] and other["contour"] == one["contour"]
        assert other["evaluation"]["aupro"] == one["evaluation"]["aupro"] is not None


def test_good_or_bad_images_alone_are_enough_and_the_rest_is_said_to_be_unknown(
    ckpt: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(f"ckpt={ckpt}", f"data={parts / 'screw/test/good'}", f"out={tmp_path / 'good'}")
    assert "not known: how many bad parts are found" in capsys.readouterr().out
    assert metrics(tmp_path / "good")["evaluation"]["image_auroc"] is None
    shutil.copytree(parts / "screw", tmp_path / "bad_only")
    shutil.rmtree(tmp_path / "bad_only/test/good")
    run(f"ckpt={ckpt}", f"data={tmp_path / 'bad_only'}", f"out={tmp_path / 'bad'}")
    said = capsys.readouterr().out
    assert "not known: the false alarms on new good images" in said
    found = metrics(tmp_path / "bad")
    assert found["operating_points"]["0.1"]["bad"] == 6
    assert found["operating_points"]["0.1"]["good_from"] == "calibration"
    test = tmp_path / "bad_only/test"
    run(
        f"ckpt={ckpt}", f"bad={test}", f"masks={tmp_path / 'bad_only/ground_truth'}", f"out={tmp_path / 'without_data'}"
    )
    same = metrics(tmp_path / "without_data")
    assert same["operating_points"] == found["operating_points"] and same["contour"] == found["contour"]
    assert scores(tmp_path / "without_data") == scores(tmp_path / "bad")
    assert same["dataset"] == "test" and "without_data" in capsys.readouterr().out


def test_images_of_training_are_a_warning(
    ckpt: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(parts / "screw/test/good", tmp_path / "some")
    for path in sorted((parts / "screw/train/good").iterdir())[:4]:  # whatever they are called
        shutil.copy2(path, tmp_path / "some" / f"again-{path.name}")
    for folder, expected in ((tmp_path / "some", 4), (parts / "screw/test/good", 0)):
        out = tmp_path / f"out-{folder.name}"
        run(f"ckpt={ckpt}", f"data={folder}", f"out={out}")
        assert metrics(out)["good_images_trained_on"] == expected
        assert ("was trained on 4 of these 10 good images" in capsys.readouterr().out) == bool(expected)


def test_images_that_recalibrated_the_detector_are_a_warning(
    ckpt: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = parts / "screw/test/good"
    with pytest.raises(SystemExit):
        recalibrate.main([f"ckpt={ckpt}", f"good={good}", f"out={tmp_path / 'new'}"])
    run(f"ckpt={tmp_path / 'new'}", f"data={good}", f"out={tmp_path / 'out'}")
    assert "was recalibrated on 6 of these 6 good images" in capsys.readouterr().out
    assert metrics(tmp_path / "out")["good_images_recalibrated_on"] == 6


def test_mistakes_are_one_line_and_leave_no_folder(ckpt: Path, parts: Path, tmp_path: Path) -> None:
    out, root = tmp_path / "out", tmp_path / "screw"
    shutil.copytree(parts / "screw", root)
    ours = (f"ckpt={ckpt}", f"out={out}")
    assert "data=/nowhere is not a folder" in message(*ours, "data=/nowhere")
    assert "bad=/nowhere is not a folder" in message(*ours, f"data={root}", "bad=/nowhere")
    assert "bad=/nowhere is not a folder" in message(*ours, "bad=/nowhere")
    assert "data is missing: give data=" in message(*ours) and "bad=" in message(*ours)
    assert f"no images in {root / 'ground_truth'}" in message(*ours, f"data={root / 'ground_truth'}")
    (tmp_path / "drawn").mkdir()
    Image.new("L", (64, 64)).save(tmp_path / "drawn/other.png")
    drawn = f"masks={tmp_path / 'drawn'}"
    assert f"error: {drawn} contains no mask" in message(*ours, f"data={root}", drawn)
    assert f"error: {drawn} contains no mask" in message(*ours, f"bad={root / 'test/spot'}", drawn)
    Image.new("L", (64, 20), 255).save(root / "ground_truth/spot/002_mask.png")
    assert "002_mask.png has 64 x 20 pixels" in message(*ours, f"data={root}")
    (root / "test/spot/001.png").write_bytes(b"no image")
    assert "001.png" in message(*ours, f"data={root}")
    shutil.rmtree(root / "test")
    assert f"data={root} has no test images" in message(*ours, f"data={root}")
    assert "does not exist" in message("ckpt=/nowhere", f"out={out}", f"data={root}")
    assert not out.exists()


def test_a_damaged_image_with_a_sound_header_is_named(ckpt: Path, parts: Path, tmp_path: Path) -> None:
    shutil.copytree(parts / "screw", tmp_path / "screw")
    broken = tmp_path / "screw/test/good/003.png"
    broken.write_bytes(broken.read_bytes()[:2000])
    found = message(f"ckpt={ckpt}", f"data={tmp_path / 'screw'}", f"out={tmp_path / 'out'}")
    assert "003.png" in found and "1 of 12 images cannot be read" in found and not (tmp_path / "out").exists()


def test_nothing_is_overwritten(ckpt: Path, parts: Path, tmp_path: Path) -> None:
    data = f"data={parts / 'screw'}"
    assert f"out={ckpt} already exists: give another out=" in message(f"ckpt={ckpt}", data, f"out={ckpt}")
    (tmp_path / "file").touch()
    assert "already exists" in message(f"ckpt={ckpt}", data, f"out={tmp_path / 'file'}")
    assert f"cannot write {tmp_path / 'file/out'}" in message(f"ckpt={ckpt}", data, f"out={tmp_path / 'file/out'}")
    assert [path.name for path in ckpt.iterdir()] == [NAME]


def test_results_among_the_images_are_refused(ckpt: Path, parts: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """The next evaluation would take their pictures for a kind of defect."""
    root = tmp_path / "screw"
    shutil.copytree(parts / "screw", root)
    monkeypatch.chdir(root / "test")
    said = message(f"ckpt={ckpt}", "data=.")  # the default is a folder in the working directory
    assert "out=evaluation is inside data=., so its pictures would be among the images: give another out=" in said
    monkeypatch.chdir(tmp_path)
    others = {"bad": root / "test/spot", "masks": root / "ground_truth"}
    for name, folder in others.items():
        for out in (folder, folder / "new/out"):
            said = message(f"ckpt={ckpt}", f"data={root / 'test/good'}", f"{name}={folder}", f"out={out}")
            assert f"out={out} is inside {name}={folder}" in said
    assert not list(tmp_path.rglob("evaluation")) and not list(tmp_path.rglob("new"))


def test_images_that_lie_too_deep_are_a_warning(
    ckpt: Path, parts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")
    bad, good = tmp_path / "ng", parts / "screw/test/good"
    shutil.copytree(parts / "screw/test/spot", bad / "spot")
    run(f"ckpt={ckpt}", f"bad={bad}", f"out={tmp_path / 'one'}")
    assert not caplog.text
    shutil.copytree(bad / "spot", bad / "spot/monday")
    for number, settings in enumerate(([], [f"data={good}"])):
        caplog.clear()
        run(f"ckpt={ckpt}", f"bad={bad}", *settings, f"out={tmp_path / str(number)}")
        assert "6 images below" in caplog.text and f"not used, such as {bad / 'spot/monday/000.png'}" in caplog.text
