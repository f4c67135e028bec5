"""A run that is killed, stopped or has no disk left at any stage ends cleanly, and resumes to the same results."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from forked import finish, train
from hydra.utils import instantiate
from omegaconf import OmegaConf
from test_train import arguments

from gaussad_pl.data.base import ImageDataModule
from gaussad_pl.inference.detector import Detector

pytestmark = pytest.mark.slow

# stages in their order: the function that begins each, and on which of its calls
STAGES = {
    "decoding": ("gaussad_pl.data.good_images.load_images", 1),
    "estimation": ("gaussad_pl.training.module.GaussianAD.estimate", 1),
    "choice of the map": ("gaussad_pl.training.choices.choose_map", 1),
    "frozen test": ("gaussad_pl.training.experiment.test", 1),
    "first step": ("gaussad_pl.training.module.GaussianAD.training_step", 1),
    "first epoch": ("gaussad_pl.training.checkpoints.AtomicCheckpointIO.save_checkpoint", 1),
    "second epoch": ("gaussad_pl.training.module.GaussianAD.training_step", 4),
    "last epoch": ("gaussad_pl.training.checkpoints.AtomicCheckpointIO.save_checkpoint", 3),
    "end of the fit": ("gaussad_pl.training.forgetting.ForgettingStop.restore_best", 1),
    "choice of the state": ("gaussad_pl.training.experiment.accept", 1),
    "scores": ("gaussad_pl.results.evaluation.Evaluation.write_scores", 2),
    "calibration": ("gaussad_pl.train.calibrate", 1),
    "pictures": ("gaussad_pl.train.figures.save", 1),
    "detector": ("gaussad_pl.train.Detector.save", 1),
    "metrics": ("gaussad_pl.train.write_json", 1),
}


def child(folder: Path, line: list[str], stage: str | None, fault: str) -> None:
    """The command, with a fault where a stage begins; its last note says whether fine-tuning is accepted."""
    from gaussad_pl.training import acceptance

    acceptance.DOUBT = 2.0 if "+note=refuse" in line else 0.0
    if stage is not None:
        place, number = STAGES[stage]
        _break(place, number, fault)
    train(folder, line)


def _break(place: str, number: int, fault: str) -> None:
    """Let a call of a function meet a fault: a signal, or a disk that takes no more than a few bytes a file."""
    owner_name, _, name = place.rpartition(".")
    owner: Any = _find(owner_name)
    plain, calls = getattr(owner, name), 0

    def broken(*args: Any, **settings: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            if fault == "full disk":
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
            else:
                os.kill(os.getpid(), signal.Signals[fault])
        return plain(*args, **settings)

    setattr(owner, name, broken)


def _find(name: str) -> Any:
    import importlib

    module, _, rest = name.rpartition(".")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return getattr(_find(module), rest)


def start(folder: Path, line: list[str], stage: str | None = None, fault: str = "SIGKILL") -> int:
    """Run the command to its end; its exit code, negative for a signal that killed it."""
    return finish(log_of(folder), child, folder.parent, line, stage, fault)


def log_of(folder: Path) -> Path:
    return folder.parent / f"{folder.name}.log"


def said(folder: Path) -> str:
    return log_of(folder).read_text()


def results(folder: Path) -> dict[str, Any]:
    """The metrics of a run without what may differ: the command line and the time."""
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return {key: value for key, value in found.items() if key not in ("command", "finished", "config", "cost")}


def same(one: Path, two: Path) -> None:
    """Both runs have left the same metrics, scores, weights and detector, to the last bit."""
    assert results(one) == results(two)
    for name in ("scores.csv", "frozen_scores.csv"):
        assert (one / name).read_text() == (two / name).read_text()
    states = [torch.load(each / "model.ckpt", weights_only=True)["state_dict"] for each in (one, two)]
    assert (
        all(torch.equal(states[0][key], states[1][key]) for key in states[0]) and states[0].keys() == states[1].keys()
    )
    scores = [Detector.load(each).calibration.scores for each in (one, two)]
    assert torch.equal(*scores)


ROUGH = [
    "objective=mahalanobis",
    "data.group=null",
    "model.train_levels=null",
    "model.warmup_steps=0",
    "model.optimizer.lr=0.05",
    "callbacks.averaging.decay=0",
]
GAP = ["model.segmentation=null", "callbacks.forgetting.signal=distance", "seed=1", "model.optimizer.lr=0.02"]
RANKING = ["objective=ranking", "data.group=null", "model.segmentation.form=shared", "model.optimizer.lr=1e-2"]
# fine-tuning that is used, its best epoch before the last, run out or stopped; and fine-tuning that is not used
SETTINGS = {
    "used": [*ROUGH, *GAP],
    "ranking": [*RANKING],
    "stopped": [*ROUGH, *GAP, "callbacks.forgetting.patience=1", "data.symmetry=none"],
    "not used": [
        "+note=refuse",
        *ROUGH,
        "callbacks.forgetting.signal=paired",
        "model.segmentation.clusters=4",
        "model.optimizer.lr=0.2",
    ],
}
LAST = {"used": 3, "ranking": 3, "stopped": 2, "not used": 3}  # epochs


def line(parts: Path, folder: Path, setting: str, *more: str) -> list[str]:
    return arguments(parts, folder, *SETTINGS[setting], *more)


@pytest.fixture(scope="module")
def undisturbed(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a run that nothing happened to, for each setting."""
    top = tmp_path_factory.mktemp("undisturbed")

    def folder(setting: str) -> Path:
        place = top / setting
        if not place.exists():
            assert start(place, line(parts, place, setting)) == 0, said(place)
        return place

    return folder


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_runs_that_faults_are_put_into_are_what_they_are_for(
    setting: str, undisturbed: Callable[[str], Path]
) -> None:
    found = results(undisturbed(setting))
    forgetting = found["forgetting"]
    assert forgetting["history"][-1]["epoch"] == LAST[setting]
    assert forgetting["fine_tuning_used"] == (setting != "not used")
    assert forgetting["epoch_chosen"] < LAST[setting] or setting == "ranking"


CASES = [
    *(("used", stage, "SIGKILL") for stage in STAGES if stage != "choice of the map"),
    *(("ranking", stage, "SIGKILL") for stage in ("first epoch", "last epoch", "choice of the state")),
    *(("stopped", stage, "SIGKILL") for stage in ("end of the fit", "calibration")),
    *(("not used", stage, "SIGKILL") for stage in ("choice of the map", "end of the fit", "scores", "metrics")),
    *(("used", stage, "SIGTERM") for stage in ("decoding", "estimation", "second epoch", "end of the fit", "detector")),
    *(("used", stage, "SIGINT") for stage in ("frozen test", "first step", "last epoch", "calibration", "pictures")),
    *(("used", stage, "full disk") for stage in ("frozen test", "first epoch", "scores", "detector", "metrics")),
]


def disturb(case: tuple[str, str, str], parts: Path, folder: Path) -> tuple[int, str, list[Path]]:
    """Exit code, last words and half-written files of a disturbed run, which is then resumed."""
    setting, stage, fault = case
    code, text = start(folder, line(parts, folder, setting), stage, fault), said(folder)
    assert not (folder / "metrics.json").exists()
    partial = list(folder.rglob(".partial-*"))
    assert start(folder, line(parts, folder, setting, "resume=true")) == 0, said(folder)
    return code, text, partial


@pytest.fixture(scope="module")
def disturbed(
    request: pytest.FixtureRequest, parts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[tuple[str, str, str], tuple[Path, Future[tuple[int, str, list[Path]]]]]]:
    """Folder and outcome of the chosen cases; as many at once as there are cores."""
    top = tmp_path_factory.mktemp("disturbed")
    chosen = [item.callspec.params for item in request.session.items if "fault" in getattr(item, "fixturenames", ())]
    cases = [(each["setting"], each["stage"], each["fault"]) for each in chosen]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        folders = {case: top / f"{number}" / "run" for number, case in enumerate(cases)}
        for folder in folders.values():
            folder.parent.mkdir()
        yield {case: (folder, pool.submit(disturb, case, parts, folder)) for case, folder in folders.items()}


@pytest.mark.parametrize(("setting", "stage", "fault"), CASES)
def test_a_disturbed_run_ends_cleanly_and_resumes_to_the_same_results(
    setting: str, stage: str, fault: str, disturbed: Any, undisturbed: Callable[[str], Path]
) -> None:
    expected = undisturbed(setting)
    folder, outcome = disturbed[setting, stage, fault]
    code, text, partial = outcome.result()
    assert code == {"SIGKILL": -9, "SIGTERM": 143, "SIGINT": 130, "full disk": 1}[fault], text
    if fault != "SIGKILL":
        assert "Traceback" not in text and "resume=true" in text.strip().splitlines()[-1], text
        assert not partial
    same(folder, expected)
    assert not (folder / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_checkpoint_is_passed_over_with_a_line(
    damage: str, parts: Path, tmp_path: Path, undisturbed: Callable[[str], Path]
) -> None:
    folder = tmp_path / "run"
    start(folder, line(parts, folder, "used"), "end of the fit")
    path = folder / "checkpoints" / "last.ckpt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes({"cut": content[: len(content) // 2], "flipped": content, "empty": b""}[damage])
    assert start(folder, line(parts, folder, "used", "resume=true")) == 0
    assert "last.ckpt is damaged" in said(folder) and "Traceback" not in said(folder)
    same(folder, undisturbed("used"))


def test_numbers_that_collapse_end_the_training_and_not_the_run(
    parts: Path, tmp_path: Path, undisturbed: Callable[[str], Path]
) -> None:
    folder = tmp_path / "run"
    assert start(folder, line(parts, folder, "used", "model.optimizer.lr=1e20")) == 0, said(folder)
    found = results(folder)
    assert found["forgetting"]["collapse"] == "training ended after step 1: the loss of step 2 is nan"
    assert "the loss of step 2 is nan" in said(folder)
    assert found["forgetting"]["epoch_chosen"] == 0 and not found["forgetting"]["fine_tuning_used"]
    assert found["frozen"] == results(undisturbed("used"))["frozen"]
    assert found["finetuned"]["image_auroc"] == found["frozen"]["image_auroc"]
    Detector.load(folder)


def test_a_second_process_in_a_run_folder_is_turned_away(parts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with FileLock(folder / ".lock"):
        assert start(folder, line(parts, folder, "used")) == 1
    last = said(folder).strip().splitlines()[-1]
    assert last.endswith("in use by another process: wait for it, or choose another folder")


def test_a_resumed_run_goes_on_only_with_the_same_images(parts: Path, tmp_path: Path) -> None:
    root, folder = tmp_path / "data", tmp_path / "run"
    shutil.copytree(parts, root)
    start(folder, line(root, folder, "used"), "second epoch")
    (root / "screw/train/good/003.png").unlink()
    assert start(folder, line(root, folder, "used", "resume=true")) == 1
    last = said(folder).strip().splitlines()[-1]
    assert "003.png" in last and last.startswith("error: ") and "other images" in last


@pytest.mark.parametrize("name", ["config.yaml", "images.json", ".hydra/overrides.yaml"])
def test_a_damaged_file_of_a_run_folder_is_one_line_or_does_no_harm(name: str, parts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    start(folder, line(parts, folder, "used"), "first step")
    (folder / name).write_bytes(b"\x00: [\xff")
    code = start(folder, line(parts, folder, "used", "resume=true"))
    last = said(folder).strip().splitlines()[-1]
    assert "Traceback" not in said(folder)
    assert code == 0 or (code == 1 and last.startswith("error: ") and name in last)


def test_without_refit_the_calibration_is_of_the_detector_that_is_saved(parts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert start(folder, line(parts, folder, "ranking", "model.refit=false")) == 0, said(folder)
    found = results(folder)
    assert found["forgetting"]["fine_tuning_used"]  # or nothing would tell the two apart
    assert found["validation_signal"] == found["segmentation"]["worth_finetuned"]
    detector = Detector.load(folder)
    module = instantiate_data(folder)
    paths = [module.samples.train[i].path for i in module.split[1]]
    scores = sorted(prediction.score for prediction in detector(paths))
    assert scores == pytest.approx(detector.calibration.scores.tolist(), rel=1e-4)


def instantiate_data(folder: Path) -> ImageDataModule:
    """The datamodule of a run."""
    data: ImageDataModule = instantiate(OmegaConf.load(folder / "config.yaml").data)
    return data
