"""The command: what it reads, what it writes, how it ends; and key=value without Hydra."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, draw_part
from PIL import Image

from gaussad_pl import predict
from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.cli.options import parse
from gaussad_pl.data import loading
from gaussad_pl.data.frame import Frame
from gaussad_pl.data.images import read_image
from gaussad_pl.data.loading import decoded
from gaussad_pl.errors import UserError
from gaussad_pl.fingerprints import image_digest
from gaussad_pl.inference.artefact import NAME
from gaussad_pl.inference.detector import Detector
from gaussad_pl.inference.heat import CONTOUR, OPACITY, OUTLINE, HeatScale
from gaussad_pl.inference.overlay import BAR, GAP, SIDE, TITLE, WIDTH, overlay
from gaussad_pl.inference.prediction import Prediction
from gaussad_pl.inference.sources import count_images, image_paths
from gaussad_pl.training.module import GaussianAD


def drawn(count: int, seed: int, dark: bool = False) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    images = [draw_part(rng, False)[0] for _ in range(count)]
    return [image.point(lambda value: value * 0.6) if dark else image for image in images]


def pixels(images: list[Image.Image]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with its detector."""
    torch.manual_seed(0)
    module = GaussianAD(TINY, segmentation={"form": "shared", "map_levels": [1, 2], "combine": "both"}).eval()
    good = pixels(drawn(40, 0))
    module.estimate([{"image": good, "unchanged": torch.ones(40, dtype=torch.bool)}], patches=True)  # type: ignore[arg-type]
    module.segmenter.threshold.fill_(9.0)
    with torch.no_grad():
        found = module(pixels(drawn(60, 1)))
    folder = tmp_path_factory.mktemp("run")
    kept = Calibration.of(found.scores, found.distances, "60 drawn images")
    Detector.of(module.model, kept, {"seed": 0}).save(folder / NAME)
    return folder


def test_images_of_training_are_a_warning(
    ckpt: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    detector = Detector.load(ckpt)
    seen = [image_digest(image) for image in pixels(drawn(5, 2)[1:3])]
    Detector(detector.model, detector.calibration, {"good_images": seen}, "squash").save(tmp_path / NAME)
    run(f"ckpt={tmp_path}", f"source={images}", f"out={tmp_path / 'out'}")
    assert "was trained on 2 of these images" in capsys.readouterr().out
    run(f"ckpt={ckpt}", f"source={images}", f"out={tmp_path / 'other'}")
    assert "trained on" not in capsys.readouterr().out


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with five images, one of them in a folder below, and what is no image."""
    folder = tmp_path / "in"
    (folder / "below").mkdir(parents=True)
    for i, image in enumerate(drawn(5, 2)):
        image.save(folder / ("below/4.png" if i == 4 else f"{i}.png"))
    (folder / "notes.txt").write_text("text")
    (folder / ".hidden.png").write_text("hidden")
    return folder


def run(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as stop:
        predict.main(arguments)
    code: int | str | None = stop.value.code
    return code


def rows(out: Path) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    with (out / "predictions.csv").open(newline="") as file:
        return lines, list(csv.DictReader(file))


# -------------------------------------------------------------------------------------------------------- the command


def test_both_files_hold_what_the_detector_finds(ckpt: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = images.parent / "out"
    assert run(f"ckpt={ckpt}", f"source={images}", f"out={out}", "fpr=0.1", "batch_size=2") == 0
    lines, table = rows(out)
    paths = [images / f"{i}.png" for i in range(4)] + [images / "below/4.png"]
    detector = Detector.load(ckpt)
    for line, row, path, found in zip(lines, table, paths, detector(paths, fpr=0.1), strict=True):
        assert line["path"] == row["path"] == path.as_posix()
        for name in ("score", "p_value", "threshold"):
            assert float(row[name]) == line[name] == pytest.approx(getattr(found, name), rel=1e-6)
        assert line["verdict"] == row["verdict"] == found.verdict and row["error"] == "" and line["error"] is None
        for level, distance in found.distances.items():
            assert float(row[f"level_{level}"]) == line["distances"][str(level)] == pytest.approx(distance, rel=1e-5)
    said = capsys.readouterr().out
    assert "60 drawn images" in said and "0 undecided, 0 unreadable" in said and "conformal threshold" in said
    assert f"detector: {ckpt / NAME}" in said
    assert "WARNING" not in said and not (out / "overlays").exists()


def test_broken_files_are_rows_and_the_exit_code_is_one(
    ckpt: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (images / "0.png").read_bytes()
    (images / "1.png").write_bytes(whole[: len(whole) // 2])
    (images / "2.png").write_text("this is text")
    (images / "below" / "3.png").write_bytes(b"")
    out = images.parent / "out"
    assert run(f"ckpt={ckpt / NAME}", f"source={images}", f"out={out}", "batch_size=2") == 1
    lines, table = rows(out)
    errors = {Path(line["path"]).name: line["error"] for line in lines if line["verdict"] == "error"}
    assert set(errors) == {"1.png", "2.png"} | {"3.png"} and len(lines) == len(table) == 6
    assert "runcated" in errors["1.png"] and "cannot identify" in errors["2.png"] and "0 bytes" in errors["3.png"]
    for line, row in zip(lines, table, strict=True):
        assert (line["score"] is None) == (row["score"] == "") == (line["verdict"] == "error") == bool(row["error"])
    assert "3 unreadable" in capsys.readouterr().out


def test_nothing_but_broken_files_is_no_crash(ckpt: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("text")
    assert run(f"ckpt={ckpt}", f"source={tmp_path}", f"out={tmp_path / 'out'}") == 1
    assert len(rows(tmp_path / "out")[0]) == 1


def test_predictions_are_not_overwritten_without_being_told(ckpt: Path, images: Path) -> None:
    arguments = [f"ckpt={ckpt}", f"source={images}", f"out={images.parent / 'out'}", "overlays=true"]
    assert run(*arguments) == 0
    before = (images.parent / "out/predictions.csv").read_bytes()
    text = str(run(*arguments, "fpr=0.5"))
    assert "already exists" in text and "overwrite=true" in text and "\n" not in text
    assert (images.parent / "out/predictions.csv").read_bytes() == before
    (images / "0.png").unlink()
    assert run(*arguments, "overwrite=true") == 0
    assert len(rows(images.parent / "out")[0]) == len(list((images.parent / "out/overlays").iterdir())) == 4


def test_images_unlike_the_calibration_ones_are_warned_of(
    ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for dark in (False, True):
        folder = tmp_path / str(dark)
        folder.mkdir()
        for i, image in enumerate(drawn(30, 3, dark)):
            image.save(folder / f"{i}.png")
        assert run(f"ckpt={ckpt}", f"source={folder}", f"out={tmp_path / 'out'}", "fpr=0.05", "overwrite=true") == 0
        assert ("WARNING: the images do not look like the calibration images" in capsys.readouterr().out) == dark


def test_too_few_calibration_images_are_warned_of(ckpt: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"ckpt={ckpt}", f"source={images}", f"out={images.parent / 'out'}", "fpr=0.01") == 0
    assert "WARNING: fpr=0.01 needs 99 calibration images for a guarantee, but there are 60" in capsys.readouterr().out


@pytest.fixture
def undecided(ckpt: Path, tmp_path: Path) -> Path:
    """The folder of a detector with seven calibration images."""
    whole = Detector.load(ckpt)
    few = Calibration.of(whole.calibration.scores[:7], whole.calibration.distances[:7], "7 drawn images")
    (tmp_path / "undecided").mkdir()
    Detector(whole.model, few, {"seed": 0}).save(tmp_path / "undecided" / NAME)
    return tmp_path / "undecided"


def test_images_that_could_not_have_been_bad_are_undecided(
    undecided: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = images.parent / "out"
    arguments = [f"ckpt={undecided}", f"source={images}", f"out={out}", "fpr=0.01", "overwrite=true"]
    assert run(*arguments) == predict.UNDECIDED == 3
    lines, table = rows(out)
    assert [line["verdict"] for line in lines] == [row["verdict"] for row in table] == ["undecided"] * 5
    assert all(line["threshold"] is None and line["error"] is None for line in lines)
    said = capsys.readouterr().out
    reason = Detector.load(undecided).threshold(0.01).reason
    assert "0 good, 0 bad, 5 undecided, 0 unreadable" in said and f"UNDECIDED: {reason}" in said
    assert json.loads((out / "predictions.json").read_text())["undecided"] == reason
    (images / "0.png").write_text("text")
    assert run(*arguments) == predict.UNREADABLE == 1
    assert [line["verdict"] for line in rows(out)[0]] == ["error", *["undecided"] * 4]


@pytest.mark.parametrize("given", [[], ["fpr=auto"]])
def test_the_default_rate_is_one_that_the_images_allow_and_is_said(
    given: list[str], ckpt: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(f"ckpt={ckpt}", f"source={images}", f"out={images.parent / 'out'}", *given) == 0
    assert "fpr=0.05, the smallest of 0.01, 0.05, 0.1, 0.2 whose threshold is not the largest of 60" in (
        capsys.readouterr().out
    )
    origin = json.loads((images.parent / "out" / "predictions.json").read_text())
    assert origin["fpr"] == 0.05 and origin["undecided"] == ""


def older(out: Path) -> None:
    """Make a prediction at fpr=0.01 look as an older version wrote it: its default rate, good without a threshold."""
    for name in ("predictions.jsonl", "predictions.csv"):
        (out / name).write_bytes((out / name).read_bytes().replace(b"undecided", b"good"))
    origin = json.loads((out / "predictions.json").read_text())
    del origin["undecided"]
    (out / "predictions.json").write_text(json.dumps(origin))


def test_a_prediction_of_an_older_version_resumes_with_its_rate_and_true_verdicts(
    undecided: Path, ckpt: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "0.png").write_text("text")  # this row stays
    for detector, verdicts in ((undecided, ["error", *["undecided"] * 4]), (ckpt, None)):
        out = images.parent / detector.name
        arguments = [f"ckpt={detector}", f"source={images}", f"out={out / 'out'}"]
        assert run(*arguments, "fpr=0.01") == 1
        before = [(out / "out" / name).read_bytes() for name in ("predictions.jsonl", "predictions.csv")]
        older(out / "out")
        assert run(*arguments, "resume=true") == 1
        assert [(out / "out" / name).read_bytes() for name in ("predictions.jsonl", "predictions.csv")] == before
        assert verdicts in (None, [line["verdict"] for line in rows(out / "out")[0]])
        assert "fpr=0.01 needs 99" in capsys.readouterr().out.rpartition("detector: ")[2]


def test_a_folder_of_runs_stands_for_the_newest_and_the_command_says_which(
    ckpt: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, time_ in (("b", 1000), ("a", 2000)):
        shutil.copytree(ckpt, tmp_path / "runs" / "parts" / name)
        (tmp_path / "runs" / "parts" / name / "metrics.json").write_text('{"validation_signal": 1}')
        os.utime(tmp_path / "runs" / "parts" / name / "metrics.json", (time_, time_))
    for given in ("runs", "runs/parts/*"):
        arguments = [f"ckpt={tmp_path / given}", f"source={images}", f"out={tmp_path / 'out'}", "overwrite=true"]
        assert run(*arguments) == 0
        assert f"detector: {tmp_path / 'runs/parts/a' / NAME}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["fpr=x"], "fpr=x: expected a number or auto"), (["ckpt=/nowhere/*"], "no finished run in /nowhere/*"),
        (["fpr=0"], "fpr=0.0: expected a false-alarm rate"), (["batch_size=0"], "batch_size=0"),
        (["device=tpu"], "device=tpu: expected cpu, cuda or auto"), (["ckpt=/nowhere"], "/nowhere does not exist"),
        (["source=/nowhere"], "source=/nowhere does not exist"), (["source=/nowhere/*.png"], "has no images"),
        (["sorce=a"], "sorce: there is no such setting; did you mean source?"), (["a.png"], "expected key=value"),
    ],
)  # fmt: skip
def test_mistakes_end_with_one_line(arguments: list[str], expected: str, ckpt: Path, images: Path) -> None:
    given = {argument.split("=")[0] for argument in arguments}
    defaults = {"ckpt": ckpt, "source": images, "out": images.parent / "out"}
    text = str(run(*arguments, *(f"{key}={value}" for key, value in defaults.items() if key not in given)))
    assert text.startswith("error: ") and expected in text and "\n" not in text
    assert not (images.parent / "out").exists()


def test_the_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    predict.main(["--help"])
    said = capsys.readouterr().out
    assert all(name in said for name in predict.Options.__dataclass_fields__)


@pytest.mark.slow
def test_the_command_runs_as_a_program(ckpt: Path, images: Path) -> None:
    command = [sys.executable, "-m", "gaussad_pl.predict"]
    one = [f"ckpt={ckpt}", f"source={images / '0.png'}", "fpr=0.1"]
    done = subprocess.run([*command, *one], capture_output=True, text=True, check=False, cwd=images.parent)
    assert done.returncode == 0 and "1 good" in done.stdout and done.stderr == ""
    assert len(rows(images.parent / "predictions")[0]) == 1


# ------------------------------------------------------------------------------------------------ sources, decoding


def test_sources(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(images.parent)
    everything = [f"in/{name}.png" for name in ("0", "1", "2", "3", "below/4")]
    (images.parent / "list.txt").write_text("in/3.png\n\n in/0.png \nin/missing.png\n")
    expected = {
        "in": everything, "in/0.png": ["in/0.png"], "in/*.png": everything[:4], "in/**/*": everything,
        "in/[12].png": everything[1:3], "list.txt": ["in/3.png", "in/0.png", "in/missing.png"],
    }  # fmt: skip
    for source, paths in expected.items():
        assert [path.as_posix() for path in image_paths(source)] == paths
        assert count_images(source) == len(paths)


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in" / "below").mkdir(parents=True)
    for name in ("elsewhere/a", "in/b", "in/below/c"):
        drawn(1, 0)[0].save(tmp_path / f"{name}.png")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in" / "below")
    (tmp_path / "in" / "around").symlink_to(tmp_path)
    found = [path.relative_to(tmp_path / "in").as_posix() for path in image_paths(str(tmp_path / "in"))]
    assert found == ["b.png", "below/c.png", "link/a.png"]


def test_a_list_from_a_windows_editor_is_read(images: Path) -> None:
    (images / "list.txt").write_bytes("\ufeffin/3.png\r\n\r\nin/0.png\r\n".encode())
    assert [path.as_posix() for path in image_paths(str(images / "list.txt"))] == ["in/3.png", "in/0.png"]


def test_a_folder_that_cannot_be_read_is_not_left_out(
    images: Path, ckpt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: str) -> Any:
        if Path(path).name == "below":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(UserError, match="cannot read .*below .Permission denied"):
        count_images(str(images))
    with pytest.raises(SystemExit, match="^error: .*File name too long"):
        predict.main([f"ckpt={ckpt}", f"source={images / '0.png'}", f"out={images / ('x' * 300)}"])


def test_a_folder_named_like_a_pattern_is_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "lot [3]"
    folder.mkdir()
    drawn(1, 0)[0].save(folder / "a.png")
    assert list(image_paths(str(folder))) == [folder / "a.png"]


def test_images_are_decoded_in_order_and_never_far_ahead(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, lock = [], threading.Lock()

    def slow(path: Path, frame: Frame) -> np.ndarray:
        with lock:
            started.append(path)
        time.sleep(0.001 * (len(started) % 3))
        return read_image(path, frame)

    monkeypatch.setattr(loading, "read_image", slow)
    paths = [images / f"{i % 4}.png" for i in range(60)]
    asked = 0

    def endless() -> Iterator[Path]:
        nonlocal asked
        for path in paths:
            asked += 1
            yield path

    for done, (path, found) in enumerate(decoded(endless(), Frame(32, 32), ahead=5), start=1):
        assert path == paths[done - 1] and asked <= done + 5
        assert isinstance(found, torch.Tensor) and found.shape == (3, 32, 32)
        assert torch.equal(found, torch.from_numpy(read_image(path, Frame(32, 32)).copy()).permute(2, 0, 1))
    assert done == 60


def test_what_cannot_be_read_is_yielded_not_raised(images: Path) -> None:
    (images / "1.png").write_text("text")
    found = dict(decoded([images / "0.png", images / "1.png", images / "none.png"], Frame(32, 32), ahead=1))
    assert [isinstance(value, UserError) for value in found.values()] == [False, True, True]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(ckpt: Path, images: Path) -> None:
    """The most memory of a process after 40 images in a list, and after 1200 more."""
    code = (
        "import resource, sys; from gaussad_pl import predict\n"
        "for name in sys.argv[2:]:\n"
        "    try: predict.main([sys.argv[1], f'source={name}.txt', f'out={name}', 'batch_size=4'])\n"
        "    except SystemExit: print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    for count in (40, 1200):
        (images.parent / f"{count}.txt").write_text("\n".join(str(images / f"{i % 4}.png") for i in range(count)))
    done = subprocess.run(
        [sys.executable, "-c", code, f"ckpt={ckpt}", "40", "1200"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
        cwd=images.parent,
    )
    assert [len(rows(images.parent / name)[0]) for name in ("40", "1200")] == [40, 1200]
    few, many = (int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("peak"))
    assert many < few + 40_000  # KiB; the maps alone of 1200 images are 300 MB


def test_a_name_as_long_as_names_can_be_is_a_row_like_any_other(ckpt: Path, images: Path) -> None:
    shutil.copy(images / "0.png", images / ("é" * 123 + ".png"))
    out = images.parent / "long"
    assert run(f"ckpt={ckpt}", f"source={images}", f"out={out}", "overlays=true") == 0
    assert len(rows(out)[0]) == len(list((out / "overlays").iterdir())) == 6


# --------------------------------------------------------------------------------------------------- overlays, options


def shown(limit: float, size: tuple[int, int] = (SIDE, SIDE), **changes: Any) -> np.ndarray:
    """Pixels of an overlay of a grey image, whose map is 1 in a square, 0.2 to its right and 0 elsewhere."""
    values = np.zeros((256, 256), np.float32)
    values[64:128, 64:128], values[64:128, 128:] = 1, 0.2
    prediction = Prediction(**{**PREDICTION, "map": values, **changes})
    image = Image.new("RGB", size, (100, 100, 100))
    return np.asarray(overlay(image, prediction, Frame(64, 64), 0.1, limit, "Teil ä.png")).astype(int)


PREDICTION: dict[str, Any] = {"score": 1.5, "p_value": 0.01, "verdict": "bad", "threshold": 1.0, "distances": {0: 1.0}}


@pytest.mark.parametrize("limit", [0.5, float("inf")])
def test_an_overlay_shows_image_and_map_with_a_contour(limit: float) -> None:
    drawn = shown(limit)
    assert drawn.shape == (TITLE + SIDE + BAR, 2 * SIDE + GAP, 3)
    under_map = drawn[TITLE : TITLE + SIDE, SIDE + GAP :]
    assert (under_map == CONTOUR).all(2).any() == (limit == 0.5)
    assert under_map[SIDE * 3 // 8, SIDE * 3 // 8].sum() > 300  # bright where the map is high
    assert (under_map[5, 5] == 100).all()
    alone = shown(limit, map=None)
    assert alone.shape == (TITLE + SIDE, WIDTH, 3)


def test_an_undecided_verdict_is_written_in_grey() -> None:
    few = Calibration.of(torch.zeros(3), torch.zeros(3, 1), "3 images").threshold(0.01)
    titles = {
        verdict: shown(0.5, map=None, verdict=verdict, threshold=few.value, reason=reason)[: TITLE // 2]
        for verdict, reason in (("undecided", few.reason), ("good", ""), ("bad", ""))
    }
    spread = {verdict: np.ptp(title, axis=2).max() for verdict, title in titles.items()}
    assert spread["undecided"] < 40 < min(spread["good"], spread["bad"])


def test_a_map_is_transparent_below_half_way_to_its_threshold() -> None:
    drawn = shown(0.5)[TITLE : TITLE + SIDE, SIDE + GAP :]
    assert (drawn[SIDE * 3 // 8, SIDE * 3 // 4] == 100).all()  # 0.2 of 0.3
    drawn = shown(0.25)[TITLE : TITLE + SIDE, SIDE + GAP :]
    assert (drawn[SIDE * 3 // 8, SIDE * 3 // 4] != 100).any()  # of 0.175


def test_an_overlay_keeps_the_proportions_of_its_image() -> None:
    drawn = shown(0.5, (SIDE, SIDE // 4))
    assert drawn.shape == (TITLE + SIDE // 4 + BAR, 2 * SIDE + GAP, 3)
    inside = (drawn[TITLE:, SIDE + GAP :] == CONTOUR).all(2).nonzero()
    assert np.ptp(inside[1]) == pytest.approx(4 * np.ptp(inside[0]), rel=0.1)


def test_one_value_has_one_colour_in_all_pictures_of_a_detector() -> None:
    maps = np.float32([0, 0.3, 0.5, 0.7, 9])
    low, high = (HeatScale.of(0.1, 0.5, maps * factor).rgba(maps) for factor in (1, 100))
    assert (low == high).all()
    assert low[:, 3] == pytest.approx([0, 0, OPACITY, OPACITY, OPACITY])  # transparent up to half way
    assert HeatScale.of(0.1, 0.5, maps).top == pytest.approx(0.9)


@pytest.mark.parametrize("colour", [CONTOUR, OUTLINE])
def test_outlines_have_a_colour_that_the_map_has_not(colour: tuple[int, int, int]) -> None:
    scale = HeatScale.of(0.0, 1.0, np.zeros(1, np.float32))
    colours = 255 * scale.rgba(np.linspace(0, 3, 1000))[:, :3]
    assert np.linalg.norm(colours - colour, axis=1).min() > 100


@pytest.mark.parametrize("size", [(1000, 250), (120, 600)])
def test_overlays_of_files_have_the_proportions_of_the_files(ckpt: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size).save(tmp_path / "part.png")
    assert run(f"ckpt={ckpt}", f"source={tmp_path / 'part.png'}", f"out={tmp_path / 'out'}", "overlays=true") == 0
    with Image.open(*(tmp_path / "out/overlays").iterdir()) as picture:
        assert picture.height == TITLE + SIDE * min(1, size[1] / size[0]) + BAR


@dataclass
class Settings:
    name: str
    rate: float = 0.5
    count: int = 3
    flag: bool = False
    limit: float | None = None


def test_key_value_arguments() -> None:
    assert parse(["name=a=b"], Settings) == Settings("a=b")
    assert [parse(["name=a", f"limit={text}"], Settings).limit for text in ("auto", "2")] == [None, 2.0]
    given = parse(["rate=1e-3", "+count=4", "--flag=True", "name=x"], Settings)
    assert given == Settings("x", 0.001, 4, True)
    wrong = {
        "": "expected key=value", "name=": "name= is empty", "rate=a": "rate=a: expected a number",
        "count=1.5": "count=1.5: expected a whole number", "flag=maybe": "expected true or false",
        "other=1": "other: there is no such setting", "name=y": "name is given twice",
    }  # fmt: skip
    for argument, message in wrong.items():
        with pytest.raises(UserError, match=message):
            parse(["name=x", argument] if argument != "name=" else [argument], Settings)
    with pytest.raises(UserError, match="name is missing: give name="):
        parse([], Settings)
