"""Training from Python: the same detector as from the command line, from a folder or from images in memory."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, draw_part
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from PIL import Image
from test_train import run

from gaussad_pl import Detector, UserError, fit
from gaussad_pl.data.frame import Frame
from gaussad_pl.data.images import read_image
from gaussad_pl.inference.pixels import write_images
from gaussad_pl.training import tracking

SETTINGS = [
    f"backbone.name={TINY['name']}",
    "backbone.weights=random",
    "data.steps_per_epoch=2",
    "data.batch_size=4",
    "levels=all",
    "model.segmentation.clusters=4",
]
QUICK: dict[str, Any] = {"image_size": 64, "epochs": 2, "seed": 1, "device": "cpu"}
AS_TYPED = ["backbone.image_size=64", "trainer.max_epochs=2", "seed=1", "trainer.accelerator=cpu", "logger=csv"]


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Good parts."""
    rng = np.random.default_rng(0)
    return [draw_part(rng, False)[0] for _ in range(15)]


@pytest.fixture(scope="module")
def unseen() -> list[Image.Image]:
    """Good and bad parts."""
    rng = np.random.default_rng(1)
    return [draw_part(rng, bool(number % 2))[0] for number in range(6)]


@pytest.fixture(scope="module")
def folders(images: list[Image.Image], unseen: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders ``it's good`` and ``bad``: a name that has to be quoted for Hydra."""
    root = tmp_path_factory.mktemp("parts")
    write_images(images, root / "it's good")
    write_images(unseen[1::2], root / "bad")
    return root


@pytest.fixture(scope="module")
def fitted(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Detector, Path]:
    """A detector from folders, and the folder of its run."""
    out = tmp_path_factory.mktemp("runs") / "fitted"
    return fit(folders / "it's good", bad=folders / "bad", out=out, settings=SETTINGS, **QUICK), out


def scores(detector: Detector, images: list[Image.Image]) -> list[tuple[float, float, str]]:
    return [(each.score, each.p_value, each.verdict) for each in detector(images)]


def test_no_argument_has_a_default_of_its_own() -> None:
    parameters = list(inspect.signature(fit).parameters.values())[1:]
    assert {p.name: p.default for p in parameters if p.default is not None} == {"settings": ()}


@pytest.mark.slow
def test_the_scores_and_settings_are_those_of_the_command(
    fitted: tuple[Detector, Path],
    folders: Path,
    unseen: list[Image.Image],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good, bad = str(folders / "it's good").replace("'", r"\'"), folders / "bad"
    where = ["data=folder", f"data.root='{good}'", f"data.bad={bad}", f"hydra.run.dir={tmp_path}"]
    run(monkeypatch, *where, *AS_TYPED, *SETTINGS)
    detector, out = fitted
    assert scores(Detector.load(tmp_path), unseen) == scores(detector, unseen)
    assert (tmp_path / "scores.csv").read_text() == (out / "scores.csv").read_text()
    both = [(folder / "config.yaml").read_text().replace(str(folder), "RUN") for folder in (tmp_path, out)]
    assert OmegaConf.create(both[0]) == OmegaConf.create(both[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "convert",
    [list, np.stack, lambda images: (torch.from_numpy(np.array(each)).permute(2, 0, 1) for each in images)],
    ids=["PIL", "array", "tensors"],
)
def test_images_in_memory_give_the_detector_of_their_folder(
    convert: Any, fitted: tuple[Detector, Path], images: list[Image.Image], unseen: list[Image.Image]
) -> None:
    given = convert(images if convert is list else list(map(np.asarray, images)))
    bad = unseen[1::2]
    assert scores(fit(given, bad=bad, settings=SETTINGS, **QUICK), unseen) == scores(fitted[0], unseen)


@pytest.mark.slow
def test_any_name_of_a_folder_and_any_kind_of_number_will_do(
    fitted: tuple[Detector, Path], folders: Path, unseen: list[Image.Image], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HOME", str(tmp_path))
    good, bad = r"~/C:\it\'s, [a]={b} $x #1", "~/ends in \\"
    for name, folder in ((good, "it's good"), (bad, "bad")):
        shutil.copytree(folders / folder, Path(name).expanduser())
    numbers = {"image_size": np.int32(64), "epochs": np.int64(2), "seed": np.int64(1)}
    detector = fit(good, bad=bad, settings=SETTINGS, **{**QUICK, **numbers})
    assert scores(detector, unseen) == scores(fitted[0], unseen)
    assert detector.provenance["config"]["data"]["root"] == str(Path(good).expanduser())


@pytest.mark.slow
def test_the_results_are_kept_where_a_folder_is_given(fitted: tuple[Detector, Path]) -> None:
    detector, out = fitted
    found = json.loads((out / "metrics.json").read_text())
    assert found["frozen"]["image_auroc"] is not None
    assert found["good_images_kept_for_test"] == found["images"]["test_good"] == 3  # as there are bad ones
    assert Detector.load(out).provenance == detector.provenance
    assert detector.provenance["config"]["seed"] == 1


@pytest.mark.slow
def test_few_images_are_not_fine_tuned_but_give_a_detector(images: list[Image.Image], tmp_path: Path) -> None:
    settings = [*SETTINGS, "data.symmetry=none", "model.segmentation.combine=both"]
    fit(images[:5], settings=settings, out=tmp_path / "run", **QUICK)
    found = json.loads((tmp_path / "run/metrics.json").read_text())["forgetting"]
    assert found["skipped"] == "half of the training images are too few for a covariance"


@pytest.mark.slow
def test_images_of_a_single_part_promise_nothing(images: list[Image.Image]) -> None:
    settings = [*SETTINGS[:-1], "model.segmentation=null", "data.group='(png)'", "folds=0"]
    detector = fit(images, fine_tune=False, settings=settings, **QUICK)
    assert detector.calibration.different == 1 and len(detector.calibration) == 15
    assert "not guaranteed" in detector.threshold(0.1).line


@pytest.mark.slow
def test_what_a_logger_raises_costs_no_results(
    images: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise FileNotFoundError("a file of the logger")

    monkeypatch.setattr(tracking, "report", broken)
    fit(images, fine_tune=False, settings=SETTINGS, out=tmp_path / "run", **QUICK)
    assert (tmp_path / "run/metrics.json").is_file()
    assert "a logger failed: FileNotFoundError('a file of the logger')" in caplog.text


@pytest.mark.slow
def test_the_random_state_and_the_settings_of_the_caller_stay(images: list[Image.Image]) -> None:
    mine = OmegaConf.create({"mine": 1})
    hydra = HydraConfig.instance()
    before, hydra.cfg = hydra.cfg, mine
    try:
        torch.manual_seed(3), np.random.seed(3)  # noqa: NPY002  # the state that Lightning seeds
        state, random = torch.random.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
        fit(images, fine_tune=False, settings=SETTINGS, **QUICK)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert np.array_equal(np.random.get_state()[1], random)  # noqa: NPY002
        assert hydra.cfg is mine
    finally:
        hydra.cfg = before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"good": "/no/parts"}, "data.root=/no/parts is not a folder: set it to an existing folder"),
        ({"good": ["/no/part.png"]}, "cannot read /no/part.png (No such file or directory): replace it or remove it"),
        ({"good": []}, "good=[]: there is no image in it: give images, or the path of a folder"),
        ({"bad": []}, "bad=[]: there is no image in it: give images, or the path of a folder"),
        ({"good": [__file__]}, f"cannot read {__file__} (cannot identify it as PNG"),
        ({"good": [3]}, "image 0 is not an image: int; give a path, a PIL image, an array or a tensor"),
        ({"good": np.zeros((9, 9, 5))}, "image 0 is not an image: shape (9, 9, 5), expected (H, W) or (H, W, C)"),
        ({"good": np.zeros((8, 9, 9, 3), np.uint8)}, "all 8 good images are identical"),
        ({"good": np.zeros((2, 9, 9, 3), np.uint8)}, "2 good training images found, at least 5 are needed"),
        ({"backbone": "resnet"}, "backbone=resnet: expected one of convnext_tiny"),
        ({"seed": -1, "epochs": 0}, "seed=-1: expected 0 or more; trainer.max_epochs=0: expected 1 or more"),
        ({"seed": "one"}, "seed=one: expected a whole number"),
        ({"settings": ["data.rot=3"]}, "data.rot: there is no such setting; did you mean data.root?"),
        ({"settings": "data.rot=3"}, "data.rot: there is no such setting; did you mean data.root?"),
        ({"settings": ["seed"]}, "seed: expected a setting as key=value, for example seed=1"),
        ({"seed": [1]}, "seed=[1]: expected a whole number"),
        ({"good": "/parts/${x}"}, "/parts/${x}: ${ would stand for a setting: rename the folder, or give a link to it"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_a_mistake_is_one_line(
    arguments: dict[str, Any], message: str, images: list[Image.Image], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError) as error:
        fit(**{"good": images, "out": out, "image_size": 64, **arguments})
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_missing_is_named(images: list[Image.Image]) -> None:
    with pytest.raises(UserError, match="trainer.accelerator=gpu: no GPU is available to PyTorch"):
        fit(images, device="cuda", image_size=64, settings=SETTINGS)


@pytest.mark.slow
def test_an_earlier_run_is_not_overwritten(fitted: tuple[Detector, Path], images: list[Image.Image]) -> None:
    with pytest.raises(UserError, match="already holds a run"):
        fit(images, out=fitted[1], settings=SETTINGS, **QUICK)


def test_written_images_are_read_as_they_were_given(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    deep = rng.integers(0, 2**16, (8, 8)).astype(np.uint16)
    alpha = rng.integers(0, 256, (8, 8, 4)).astype(np.uint8)
    Image.fromarray(alpha[..., :3]).save(tmp_path / "part.bmp")
    (tmp_path / "part.bmp").rename(tmp_path / "part")
    write_images([deep, alpha, Image.fromarray(deep), tmp_path / "part"], tmp_path / "written")
    paths = sorted((tmp_path / "written").iterdir())
    assert [path.name for path in paths] == ["000000.png", "000001.png", "000002.png", "000003_part.png"]
    pixels = [read_image(path, Frame(8, 8)) for path in paths]
    expected = np.rint(deep / 257).astype(np.uint8)
    assert np.array_equal(pixels[0][..., 0], expected) and np.array_equal(pixels[0], pixels[2])
    assert np.array_equal(pixels[1], alpha[..., :3]) and np.array_equal(pixels[1], pixels[3])
