"""Which detector a ckpt= names: a file, the folder of a run, or the newest finished run below a folder or pattern."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gaussad_pl.errors import UserError
from gaussad_pl.inference.artefact import NAME
from gaussad_pl.inference.runs import METRICS, find_detector


def made(folder: Path, finished: int, metrics: str = '{"validation_signal": null}', detector: bool = True) -> Path:
    """A run folder; ``finished`` is the time of its metrics in seconds."""
    folder.mkdir(parents=True)
    (folder / METRICS).write_text(metrics)
    os.utime(folder / METRICS, (finished, finished))
    if detector:
        (folder / NAME).write_text("a detector")
    return folder / NAME


@pytest.fixture
def newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The detector of the run in ``runs/parts`` that finished last; later ones are not complete."""
    monkeypatch.chdir(tmp_path)
    runs = Path("runs/parts")
    made(runs / "2026-01-03", 1000)
    found = made(runs / "2026-01-01", 3000)
    made(runs / "deep" / "2026-01-02", 2000)
    made(runs / "2026-01-04", 4000, detector=False)
    made(runs / "2026-01-05", 5000, '{"validation_sig')
    made(runs / "2026-01-06", 6000, "{}")
    made(runs / "2026-01-07", 7000, "[" * 100000)
    (runs / "2026-01-08").mkdir()
    (runs / "2026-01-08" / NAME).write_text("of a run that is not finished")
    made(Path("runs/tiles/2026-01-01"), 9000)
    return found


@pytest.mark.parametrize(
    "given",
    ["runs/parts", "runs/parts/", "runs/parts/*", "runs/par*", "runs/parts/2026*/detector.safetensors", "r*/parts/**"],
)
def test_many_runs_stand_for_the_one_that_finished_last(given: str, newest: Path) -> None:
    assert find_detector(given) == newest


def test_a_run_or_a_file_is_itself_whatever_else_is_there(newest: Path) -> None:
    for folder in ("runs/parts/2026-01-03", "runs/parts/2026-01-08"):
        assert find_detector(folder) == find_detector(Path(folder) / NAME) == Path(folder) / NAME
    Path("model.onnx").write_text("exported")
    assert find_detector("model.onnx") == Path("model.onnx")
    assert find_detector("runs/parts/deep") == Path("runs/parts/deep/2026-01-02") / NAME


def test_a_folder_named_like_a_pattern_is_a_folder(tmp_path: Path) -> None:
    expected = made(tmp_path / "lot [3]" / "run", 1)
    assert find_detector(tmp_path / "lot [3]") == expected


@pytest.mark.parametrize("given", ["runs/screws/*", "runs/parts/2026-01-0[5-8]", "empty"])
def test_no_finished_run_is_one_line_that_names_the_pattern(given: str, newest: Path) -> None:
    Path("empty").mkdir()
    with pytest.raises(UserError) as error:
        find_detector(given)
    assert str(error.value).startswith(f"no finished run in {given}: expected a folder with {METRICS} and {NAME}")
    assert "\n" not in str(error.value)


def test_a_place_that_does_not_exist_is_one_line(newest: Path) -> None:
    with pytest.raises(UserError, match="^runs/screws does not exist: give the folder of a finished run"):
        find_detector("runs/screws")
