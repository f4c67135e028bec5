"""Sets that drift: a new detector from an old one and some good images of today."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, draw_part
from PIL import Image
from torch import Tensor

from gaussad_pl import predict, recalibrate
from gaussad_pl.calibration import recalibration
from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.density.registry import DENSITIES
from gaussad_pl.exporting.graph import Graph
from gaussad_pl.fingerprints import file_sha256, image_digest
from gaussad_pl.inference.artefact import NAME
from gaussad_pl.inference.detector import Detector
from gaussad_pl.training.module import GaussianAD


def dark(count: int, seed: int) -> list[Image.Image]:
    """Good parts in less light than those that the detector knows."""
    rng = np.random.default_rng(seed)
    return [draw_part(rng, False)[0].point(lambda value: value * 0.6) for _ in range(count)]


def pixels(images: list[Image.Image]) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector of parts in full light."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    module = GaussianAD(TINY, segmentation={"form": "position", "map_levels": [2], "combine": "both"}).eval()
    good, more = (pixels([draw_part(rng, False)[0] for _ in range(count)]) for count in (80, 60))
    module.estimate([{"image": good, "unchanged": torch.ones(80, dtype=torch.bool)}], patches=True)  # type: ignore[arg-type]
    with torch.no_grad():
        found = module(more)
    known = Calibration.of(found.scores, found.distances, "60 drawn images")
    path = tmp_path_factory.mktemp("run") / NAME
    Detector.of(module.model, known, {"seed": 0, "good_images": [image_digest(image) for image in good]}).save(path)
    return path


@pytest.fixture(scope="module")
def today(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of good parts in less light."""
    folder = tmp_path_factory.mktemp("good parts")
    for i, image in enumerate(dark(40, 1)):
        image.save(folder / f"{i:02}.png")
    return folder


def run(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as stop:
        recalibrate.main(arguments)
    code: int | str | None = stop.value.code
    return code


def message(*arguments: str) -> str:
    text = run(*arguments)
    assert isinstance(text, str) and text.startswith("error: ") and "\n" not in text
    return text


def false_alarms(detector: Detector, images: Tensor) -> float:
    scores = torch.cat([detector.detect(batch).scores for batch in images.split(32)])
    return float((scores > detector.threshold(0.1).value).double().mean())


def test_predict_says_that_images_have_drifted_and_the_command_it_offers_mends_it(
    old: Path, today: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few.txt"
    few.write_text("\n".join(str(path) for path in sorted(today.iterdir())[:6]))
    scoring = (f"source={few}", "fpr=0.1")
    with pytest.raises(SystemExit):
        predict.main([f"ckpt={old}", *scoring, f"out={tmp_path / 'before'}"])
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WARNING")]
    assert "score" in warning and "level" in warning and "do not look like the calibration images" in warning
    module, ckpt, good = shlex.split(warning.partition("recalibrate: python -m ")[2].partition("<")[0])
    assert (module, ckpt, good) == ("gaussad_pl.recalibrate", f"ckpt={old}", "good=")
    assert run(ckpt, f"good={today}", f"out={tmp_path / 'new'}") == 0
    said = capsys.readouterr().out
    assert f"new detector: {tmp_path / 'new' / NAME}" in said and "40 good images" in said and "fpr=0.05" in said
    with pytest.raises(SystemExit):
        predict.main([f"ckpt={tmp_path / 'new'}", *scoring, f"out={tmp_path / 'after'}"])
    assert "WARNING" not in capsys.readouterr().out


@pytest.mark.parametrize("gaussians", [False, True])
def test_half_of_the_new_images_restores_the_false_alarms_of_the_other_half(
    old: Path, today: Path, tmp_path: Path, gaussians: bool
) -> None:
    judges = pixels(dark(100, 2))
    before = Detector.load(old)
    assert false_alarms(before, judges) > 0.8
    run(f"ckpt={old}", f"good={today}", f"out={tmp_path}", f"gaussians={gaussians}")
    after = Detector.load(tmp_path)
    assert 0.02 <= false_alarms(after, judges) <= 0.25  # of one detector: 0.04 to 0.19 in nine of ten cases
    maps = torch.cat([after.model(batch).maps for batch in judges.split(32)])
    assert after.median == pytest.approx(float(maps.median()), rel=0.1) and before.median != after.median
    assert 0.0002 < float((maps > after.limit).double().mean()) < 0.005
    assert (before.detect(judges[:2]).distances == after.detect(judges[:2]).distances).all() != gaussians


def test_moved_means_are_nearer_and_their_calibration_is_cross_fitted(old: Path) -> None:
    model, few, new = Detector.load(old).model, pixels(dark(8, 3)), pixels(dark(60, 4))
    _, kept = recalibration.recalibrate(model, few, False)
    moved, known = recalibration.recalibrate(model, few, True)
    found = recalibration.score(moved, new)
    assert found.distances.mean() < 0.8 * kept.distances.mean()
    assert known.distances.mean() > 0.98 * found.distances.mean()  # with the same means, they would be 6 % nearer
    assert "one of 8" in known.scheme  # 10 would leave folds without an image


def test_a_mean_follows_a_shift_but_not_chance() -> None:
    x = torch.randn(12, 50, generator=torch.Generator().manual_seed(0))
    assert float(recalibration.shift(x).norm()) < 0.5 * float(x.mean(0).norm())
    assert torch.allclose(recalibration.shift(x + 5), x.mean(0) + 5, rtol=0.01)
    assert recalibration.shift(torch.zeros(4, 3)).tolist() == [0, 0, 0]
    assert recalibration.shift(torch.ones(4, 3)).tolist() == [1, 1, 1]
    assert recalibration.shift(torch.ones(1, 3)).tolist() == [0, 0, 0]  # what a fold of many copies leaves


@pytest.mark.parametrize("form", DENSITIES)
def test_every_density_of_patches_moves_with_its_patches(form: str) -> None:
    random = torch.Generator().manual_seed(0)
    patches = torch.randn(40, 16, 6, generator=random)
    by = torch.linspace(-0.3, 0.3, 6)
    density = DENSITIES[form].build(torch.zeros(16, 2), 6, 3, 0)
    density.observe(patches)
    density.estimate()
    expected = density(patches)
    assert torch.allclose(density.deviations(patches).mean(0), torch.zeros(6), atol=1e-5)
    found = density.deviations(patches + by).mean(0)
    assert float(found @ by) > 0.2 * float(by @ by)  # with clusters, some patches change theirs
    if form != "clusters":
        assert torch.allclose(found, by, atol=1e-5)
    density.shift(by)
    assert torch.allclose(density(patches + by), expected, atol=1e-3)


def test_the_new_file_says_where_it_comes_from_and_the_old_one_stays(old: Path, today: Path, tmp_path: Path) -> None:
    digest = file_sha256(old)
    run(f"ckpt={old}", f"good={today}", f"out={tmp_path / 'one'}")
    run(f"ckpt={tmp_path / 'one'}", f"good={today}", f"out={tmp_path / 'two.safetensors'}", "gaussians=true")
    detector = Detector.load(tmp_path / "two.safetensors")
    one, two = detector.provenance["recalibrations"]
    assert detector.provenance["seed"] == 0 and file_sha256(old) == digest == one["detector_sha256"]
    assert two["detector_sha256"] == file_sha256(tmp_path / "one" / NAME)
    assert one["images"] == 40 and one["images_sha256"] == two["images_sha256"]
    assert two["changed"] == [*one["changed"], "means of the Gaussians"] and "calibration" in one["changed"]
    assert "already exists: give another out=" in message(f"ckpt={old}", f"good={today}", f"out={old.parent}")
    assert "already exists: give another out=" in message(f"ckpt={old}", f"good={today}", f"out={old}")
    images = pixels(dark(2, 5))
    exported = Graph(detector).eval()(images.permute(0, 2, 3, 1))[0]  # what gaussad_pl.export writes
    assert torch.allclose(
        exported.double(), detector.detect(images).scores, atol=5e-3
    )  # their spread is 0.5 % of a distance


def test_mistakes_are_one_line_and_leave_nothing(old: Path, today: Path, tmp_path: Path) -> None:
    out, folder = tmp_path / "out", tmp_path / "good"
    folder.mkdir()
    ours = (f"ckpt={old}", f"good={folder}", f"out={out}")
    assert f"good={folder} has no images" in message(*ours)
    assert "good=/nowhere does not exist" in message(f"ckpt={old}", "good=/nowhere", f"out={out}")
    for path in sorted(today.iterdir())[:3]:
        (folder / path.name).write_bytes(path.read_bytes())
    assert "has 3 images, too few" in message(*ours)
    (folder / "broken.png").write_text("no image")
    said = message(*ours)
    assert "4 images, of which 1 cannot be read" in said and "broken.png" in said
    assert "4 for a rate of 20 %, 9 for a rate of 10 %, 19 for a rate of 5 %, 99 for a rate of 1 %" in said
    exported = tmp_path / "detector.onnx"
    exported.touch()
    said = message(f"ckpt={exported}", f"good={today}", f"out={out}")
    assert f"give the {NAME} it was exported from" in said and "export the new detector" in said
    assert not out.exists()


def test_images_of_training_do_not_recalibrate(old: Path, today: Path, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    shutil.copytree(today, folder)
    rng = np.random.default_rng(0)  # that of the images of training
    draw_part(rng, False)[0].save(folder / "seen.png")
    said = message(f"ckpt={old}", f"good={folder}", f"out={tmp_path / 'out'}")
    assert "was trained on 1 of these 41 images" in said and "that it has not seen" in said


@pytest.mark.parametrize("layout", ["good", "train/good"])
def test_a_folder_with_other_images_beside_good_ones_does_not_recalibrate(
    layout: str, old: Path, today: Path, tmp_path: Path
) -> None:
    shutil.copytree(today, tmp_path / "parts" / layout)
    said = message(f"ckpt={old}", f"good={tmp_path / 'parts'}", f"out={tmp_path / 'out'}")
    assert "give a folder of good images alone" in said


def test_an_unreadable_image_is_named_and_left_out(
    old: Path, today: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "list.txt"
    images.write_text("\n".join([*(str(path) for path in sorted(today.iterdir())[:9]), str(tmp_path / "gone.png")]))
    assert run(f"ckpt={old}", f"good={images}", f"out={tmp_path / 'out'}") == recalibrate.UNREADABLE
    assert "left out: " in (said := capsys.readouterr().out) and "gone.png" in said
    detector = Detector.load(tmp_path / "out")
    assert len(detector.calibration) == 9 and detector.provenance["recalibrations"][0]["images_left_out"] == 1


def test_a_detector_without_maps_is_recalibrated_too() -> None:
    torch.manual_seed(0)
    module = GaussianAD(TINY).eval()
    rng = np.random.default_rng(0)
    good = pixels([draw_part(rng, False)[0] for _ in range(40)])
    module.estimate([{"image": good, "unchanged": torch.ones(40, dtype=torch.bool)}])  # type: ignore[arg-type]
    for move in (False, True):
        model, known = recalibration.recalibrate(module.model, pixels(dark(12, 1)), move)
        found = recalibration.score(model, pixels(dark(30, 2)))
        assert float((found.scores > known.threshold(0.1).value).double().mean()) <= 0.4
        assert found.maps is None and "units" not in known.scheme


def test_copies_are_no_further_images(
    old: Path, today: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("WARNING")
    folder, paths = tmp_path / "copies", sorted(today.iterdir())
    folder.mkdir()
    for i in range(20):
        shutil.copy(paths[0], folder / f"{i:02}.png")
    ours = (f"ckpt={old}", f"good={folder}", f"out={tmp_path / 'out'}")
    said = message(*ours)
    assert f"all 20 good images are identical, such as {folder / '00.png'} and {folder / '19.png'}" in said
    assert not (tmp_path / "out").exists() and not caplog.text
    for path in paths[1:5]:
        shutil.copy(path, folder / f"x{path.name}")
    assert run(*ours) == 0
    assert "19 of 24 good images are copies of others" in caplog.text
    assert "24 good images (5 distinct)" in capsys.readouterr().out
