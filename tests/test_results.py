"""The files of a run: scores of the test images, and where every number came from."""

from __future__ import annotations

import csv
import math
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.calibration.threshold import Threshold, undecided
from gaussad_pl.cli.hydra_command import CONF
from gaussad_pl.data.base import ImageDataModule
from gaussad_pl.data.frame import Frame
from gaussad_pl.data.inventory import images_sha256
from gaussad_pl.data.samples import Sample
from gaussad_pl.errors import UserError
from gaussad_pl.inference.heat import HeatScale
from gaussad_pl.model.model import GaussianModel
from gaussad_pl.results import checkout, figures, gallery
from gaussad_pl.results.evaluation import Evaluation
from gaussad_pl.results.provenance import provenance
from gaussad_pl.training.acceptance import Gain

IMAGES: Any = [{"image": torch.zeros(3, 8, 8, dtype=torch.uint8)}] * 4
SCALE = HeatScale.of(0.2, 0.6, np.zeros(1, np.float32))
CALIBRATION = Calibration.of(torch.linspace(-2, 3.5, 19, dtype=torch.float64), torch.zeros(19, 2), "")


def evaluation(**changes: Any) -> Evaluation:
    """Of four images, two of them bad."""
    kinds = {"good": 2, "spot": 2}
    samples = [Sample(Path(f"/parts/{kind}/{i}.png"), kind) for kind, count in kinds.items() for i in range(count)]
    columns = {
        "samples": samples,
        "distances": torch.tensor([[1.0, 1.0], [2.0, 5.0], [3.0, 3.0], [4.0, 4.0]]),
        "scores": torch.tensor([1.0, 9.0, 3.0, 4.0], dtype=torch.float64),
        "levels": [2, 5],
        "maps": torch.rand(4, 8, 8),
        "masks": torch.zeros(4, 8, 8, dtype=torch.bool).index_fill(0, torch.tensor([2, 3]), True).tril(),
        "frame": Frame(8, 8),
    }
    return Evaluation(**{**columns, **changes})


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("name", "what"), [("scores", "score"), ("distances", "distance to a Gaussian"), ("maps", "anomaly map")]
)
def test_a_test_image_without_a_finite_score_is_named_by_its_path(name: str, what: str, broken: float) -> None:
    values = getattr(evaluation(), name).clone()
    values[2].fill_(broken)
    with pytest.raises(UserError, match=f"^/parts/spot/0.png: the {what} is {broken}") as error:
        evaluation(**{name: values})
    assert "\n" not in str(error.value)


def test_metrics_hold_no_nan_where_a_good_image_has_the_highest_score() -> None:
    found = evaluation().metrics()
    assert found["image_f1max"] == 0.8 and found["per_level"] == {"2": 1.0, "5": 0.5}
    numbers = [value for value in found.values() if isinstance(value, float)]
    assert len(numbers) == 7 and all(map(math.isfinite, numbers))


def test_scores_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("old")
    with pytest.raises(ValueError):
        evaluation(distances=torch.zeros(3, 2)).write_scores(path)  # of three images, where there are four
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    samples = evaluation().samples
    masked = [*samples[:3], replace(samples[3], mask=Path("/masks/1.png"))]
    evaluation(samples=masked).write_scores(path)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["defect_area"] for row in rows] == ["0.0", "0.0", "", "0.5625"] and rows[1]["level_5"] == "5.0"
    with pytest.raises(UserError, match="cannot write .*gone/scores.csv"):
        evaluation().write_scores(tmp_path / "gone" / "scores.csv")


def test_a_path_that_is_no_text_is_written_with_its_bytes(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(b"/parts/\xff,\n.png"))
    samples = [replace(evaluation().samples[0], path=odd), *evaluation().samples[1:]]
    evaluation(samples=samples).write_scores(tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert next(csv.DictReader(file))["path"] == str(odd)


def test_pictures_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = histogram()
    assert figures.save({"a": figure}, tmp_path) == [tmp_path / "a.png"]
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    (tmp_path / "a.pdf").unlink()
    before = (tmp_path / "a.png").read_bytes()

    def half(path: Path, **options: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", half)
    with pytest.raises(UserError, match="cannot write .*a.png .No space left"):
        figures.save({"a": figure}, tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.png"] and (tmp_path / "a.png").read_bytes() == before


def test_a_diverged_training_is_drawn_with_gaps(tmp_path: Path) -> None:
    history = [{"epoch": i, "paired": value, "auroc": value, "loss": value}
               for i, value in enumerate((0.5, math.nan, math.inf, -math.inf))]  # fmt: skip
    record = {"signal": "paired", "epoch_chosen": 0, "fine_tuning_used": False, "history": history}
    assert figures.save({"forgetting": figures.forgetting_curve(record, [], 0.25)}, tmp_path)


# --- provenance


@pytest.fixture
def data(parts: Path) -> ImageDataModule:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["+category=screw", f"data.root={parts}", "backbone.image_size=64"])
    found: ImageDataModule = instantiate(config.data)
    return found


def test_provenance_names_time_commit_data_and_weights(data: ImageDataModule, tmp_path: Path) -> None:
    torch.save(GaussianModel(TINY).backbone.model.state_dict(), tmp_path / "best.pth")
    model = GaussianModel({**TINY, "weights": str(tmp_path / "best.pth")})
    loaded = model.backbone.weights_sha256
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(1)  # fine-tuning
    found = provenance({}, data, model)
    assert abs(datetime.fromisoformat(found["finished"]).timestamp() - time.time()) < 60
    assert found["backbone"]["weights"] == f"file {tmp_path / 'best.pth'}"
    assert found["backbone"]["weights_sha256"] == loaded and len(found["backbone"]["weights_file_sha256"]) == 64
    assert found["data_sha256"] == images_sha256(data.samples)
    assert found["git"].keys() >= {"commit", "clean"}


def test_copies_of_a_dataset_have_one_fingerprint_and_others_another(parts: Path, tmp_path: Path) -> None:
    from gaussad_pl.data.samples import scan_mvtec

    shutil.copytree(parts / "screw", tmp_path / "elsewhere" / "bolt")
    original, copied = (
        images_sha256(scan_mvtec(parts / "screw")),
        images_sha256(scan_mvtec(tmp_path / "elsewhere/bolt")),
    )
    assert original == copied is not None
    (tmp_path / "elsewhere/bolt/test/good/000.png").write_bytes(b"another image")
    samples = scan_mvtec(tmp_path / "elsewhere/bolt")
    assert images_sha256(samples) != original
    (tmp_path / "elsewhere/bolt/test/good/000.png").unlink()
    assert images_sha256(samples) is None


def commit_in(root: Path) -> dict[str, Any]:
    checkout.commit.cache_clear()
    return checkout.commit(root)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    root = tmp_path / "checkout"
    (root / "gaussad_pl").mkdir(parents=True)
    (root / "gaussad_pl" / "a.py").write_text("1")
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "a"]):
        subprocess.run([*git, *command], check=True)
    return root


def test_the_commit_of_a_checkout_and_whether_it_is_clean(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as inside a git hook
    head = commit_in(repository)
    assert len(head["commit"]) == 40 and head["clean"] is True
    (repository / "runs").mkdir()
    (repository / "runs" / "metrics.json").write_text("{}")  # changes no result
    assert commit_in(repository) == head
    (repository / "gaussad_pl" / "new.py").write_text("2")
    assert commit_in(repository) == {**head, "clean": False}
    (repository / "gaussad_pl" / "new.py").unlink()
    assert checkout.commit(repository) == {**head, "clean": False}  # what was imported, not what is there by now


def fail(error: Exception) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FileNotFoundError(2, "no git"), "git is not installed"),
        (subprocess.TimeoutExpired("git", 5), "git took more than 5 s"),
        (subprocess.CalledProcessError(128, "git", stderr="fatal: dubious ownership\nhint: more"), "dubious ownership"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
    ],
)
def test_git_that_does_not_work_costs_a_reason_and_no_run(
    error: Exception, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr("gaussad_pl.results.checkout.subprocess.run", fail(error))
    found = commit_in(tmp_path)
    assert found["commit"] is None and found["clean"] is None and reason in found["reason"]
    assert "\n" not in found["reason"]


def test_an_installed_package_has_no_commit(tmp_path: Path) -> None:
    assert "not run from a git checkout" in commit_in(tmp_path)["reason"]


@pytest.mark.parametrize("name", [os.fsdecode(b"a\xff.png"), "costs $_$ or $\\bad$.png", "[b] <i>.png"])
def test_any_name_of_an_image_can_be_drawn(name: str, tmp_path: Path) -> None:
    one = evaluation()
    one.samples[0] = Sample(Path("/parts/good") / name)
    gallery.overlays(one, IMAGES, gallery.Group("", [0, 1]), SCALE, CALIBRATION).savefig(tmp_path / "a.png", dpi=30)


# --- pictures


def test_pictures_use_the_default_rate_where_few_images_allow_no_smaller_one() -> None:
    few = Calibration.of(torch.arange(6).double(), torch.zeros(6, 2), "")
    assert gallery.picture_threshold(few).fpr == 0.2 and gallery.picture_threshold(CALIBRATION).fpr == 0.1
    groups = gallery.notable(evaluation(), gallery.picture_threshold(few))  # threshold 5
    assert groups["misses"].title.startswith("Misses: 2 of 2 bad parts are below the threshold for 20 % false alarms")


def at(value: float) -> Threshold:
    return Threshold(value, 0.05, "conformal", "") if math.isfinite(value) else undecided(3, 0.05)


def histogram(threshold: float = 1.5, calibration: Sequence[float] = (0.5, 1.0), **changes: Any) -> Figure:
    given = {"scores": torch.tensor([1.0, 2.0]), "labels": torch.tensor([0, 1]), **changes}
    return figures.histogram(**given, calibration=torch.tensor(calibration), threshold=at(threshold))


def words(figure: Figure) -> str:
    """Everything that a figure says."""
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    return "\n".join(text.get_text() for text in texts)


def test_a_histogram_shows_calibration_good_and_bad_scores_and_the_threshold() -> None:
    figure = histogram()
    assert {"calibration (2)", "good test (1)", "bad test (1)"} <= set(words(figure).splitlines())
    assert "threshold 1.5 for 5 % false alarms" in words(figure)
    (line,) = figure.axes[0].lines
    assert list(line.get_xdata()) == [1.5, 1.5]
    assert all(shares.get_data().values.sum() == pytest.approx(100) for shares in figure.axes[0].patches)


def test_a_histogram_without_threshold_bad_or_calibration_images_says_what_there_is() -> None:
    figure = histogram(math.inf, (), labels=torch.tensor([0, 0]))
    assert "no threshold for 5 % false alarms" in words(figure) and not figure.axes[0].lines
    assert "good test (2)" in words(figure) and "bad" not in words(figure) and "calibration (" not in words(figure)


def test_far_outliers_do_not_squeeze_a_histogram_into_one_bin_nor_hide_the_threshold() -> None:
    values = np.append(np.linspace(0, 1, 99), 1e6)
    edges, cut = figures.bins(values, 2.0)
    assert cut and edges[-1] == 2.0
    edges, cut = figures.bins(np.array([3.0, 3.0]), math.inf)
    assert not cut and len(np.unique(edges)) == figures.BINS + 1


def test_the_forgetting_curve_says_which_epoch_is_used_and_why() -> None:
    history = [{"epoch": i, "paired": value, "auroc": value} for i, value in enumerate((0.5, 0.7, 0.6))]
    record = {"signal": "paired", "epoch_chosen": 1, "fine_tuning_used": True, "history": history}
    gains = [asdict(Gain(1.0, -0.01, 0.2, 7)), asdict(Gain(0.5, 0.02, 0.9, 7))]
    said = words(figures.forgetting_curve(record, gains, 0.25))
    assert "Best signal (paired on held-out good images): epoch 1 of 2" in said
    assert "Tuned weights: gain -0.0100 AUROC, probability 20 % (of 7 images): not used, below 25 %" in said
    assert (
        "50 % tuned, 50 % frozen weights: gain +0.0200 AUROC, probability 90 % (of 7 images): used, not below 25 %"
        in said
    )
    refused = {**record, "fine_tuning_used": False, "collapse": "NaN"}
    said = words(figures.forgetting_curve(refused, gains[:1], 0.25))
    assert "Fine-tuning not used" in said and "collapsed" in said and "used: epoch 0 (frozen)" in said
    assert "Used: epoch 1" in words(figures.forgetting_curve(record, [], 0.25))
    untrained = {**refused, "epoch_chosen": 0, "history": history[:1]}
    assert "not used: no epoch was trained" in words(figures.forgetting_curve(untrained, [], 0.25))


def test_misses_are_bad_parts_below_the_threshold_and_false_alarms_good_ones_above() -> None:
    groups = gallery.notable(evaluation(), at(3.5))
    assert (groups["misses"].rows, groups["false_alarms"].rows, groups["defects"].rows) == ([2], [1], [3])
    assert groups["misses"].title == "Misses: 1 of 2 bad parts are below the threshold for 5 % false alarms"
    assert groups["false_alarms"].title.startswith("False alarms: 1 of 2 good parts are above")


def test_without_misses_the_lowest_bad_parts_are_shown_and_called_that() -> None:
    groups = gallery.notable(evaluation(), at(2.5))
    assert groups["misses"].rows == [2, 3]
    assert groups["misses"].title.startswith(
        "No bad part is below the threshold for 5 % false alarms.\nShown: the 2 bad"
    )
    groups = gallery.notable(evaluation(), at(math.inf))
    assert groups["misses"].rows == [2, 3] and groups["misses"].title.startswith("No threshold: too few calibration")
    assert groups["false_alarms"].rows == [1, 0]


def test_a_gallery_keeps_the_proportions_of_the_file_and_its_titles_have_verdict_and_p_value(tmp_path: Path) -> None:
    one = evaluation()
    Image.new("RGB", (200, 50)).save(tmp_path / "wide.png")
    one.samples[3] = Sample(tmp_path / "wide.png", "spot")
    figure = gallery.overlays(one, IMAGES, gallery.Group("Some parts", [3, 2]), SCALE, CALIBRATION)
    shapes = [panel.get_images()[0].get_array().shape[:2] for panel in figure.axes[:4]]
    assert shapes[0] == shapes[1] == (gallery.SIDE // 4, gallery.SIDE)
    assert shapes[2] == shapes[3] == (gallery.SIDE, gallery.SIDE)  # the file has gone
    threshold = gallery.picture_threshold(CALIBRATION).value
    assert 3 < threshold < 4
    assert "bad   p = 0.05   score 4.00" in words(figure) and "good   p = 0.15   score 3.00" in words(figure)
    assert "Some parts" in words(figure) and {"true mask", "map above its threshold"} <= set(words(figure).splitlines())
    few = Calibration.of(torch.zeros(3).double(), torch.zeros(3, 2), "")
    figure = gallery.overlays(one, IMAGES, gallery.Group("", [3]), SCALE, few)
    assert "undecided" in words(figure) and "bad " not in words(figure)


def test_the_colour_bar_is_the_same_in_all_galleries_and_marks_the_threshold() -> None:
    for rows in ([0], [2, 3]):
        bar = gallery.overlays(evaluation(), IMAGES, gallery.Group("", rows), SCALE, CALIBRATION).axes[-1]
        assert [label.get_text() for label in bar.get_xticklabels()] == ["0.2", "0.6", "1"]
        assert list(bar.lines[0].get_xdata()) == [0.6, 0.6] and "0.1 % of good pixels" in bar.get_xlabel()
