"""Sweeps: names, errors, resuming, shares of the machine, search; Ray, submitit and Optuna where they are installed."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import finish, forked, train
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf
from test_train import QUICK, message, metrics, run

from gaussad_pl.cli.hydra_command import CONF, one_line
from gaussad_pl.errors import UserError
from gaussad_pl.sweeps import launching, share, sweep
from gaussad_pl.sweeps.folders import NAME_LENGTH, folder_of, job_name
from gaussad_pl.sweeps.judges import refuse_other_judges
from gaussad_pl.training.experiment import Outcome, validation_signal

NO_MAP = "model.segmentation=null"
FAST = [*QUICK, "trainer.max_epochs=1", "model.segmentation.clusters=4", "logger=csv"]


def needs(package: str, extra: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed: pip install 'gaussad_pl[{extra}]'")


def line(root: Path, *more: str) -> list[str]:
    """The command line of a sweep."""
    chosen = {argument.split("=")[0] for argument in more}
    unsaid = [each for each in [*FAST, "+category=screw"] if not each.startswith(tuple(chosen))]
    return ["--multirun", f"data.root={root}", *unsaid, *more]


def jobs(folder: Path) -> dict[str, dict[str, Any]]:
    """The metrics of the finished jobs of the only sweep below a folder, by name."""
    (found,) = (folder / "multirun").iterdir()
    return {path.parent.name: metrics(path.parent) for path in sorted(found.glob("*/metrics.json"))}


# --- names and folders ---


@pytest.mark.parametrize(
    ("overrides", "whole", "expected"),
    [
        (["+category=pill", "seed=1", "fold=0"], ["+category=a,pill", "seed=0,1", "fold=0"], "category=pill,seed=1"),
        (["+category=pill"], ["+category=glob(*)"], "category=pill"),
        (["model.optimizer.lr=1e-05"], ["model.optimizer.lr=1e-5,1e-4"], "lr=1e-05"),
        (["a.lr=1", "b.lr=2"], ["a.lr=1,2", "b.lr=2,3"], "a.lr=1,b.lr=2"),
        (["backbone.levels=[4,5,-1]"], ["backbone.levels=[4,5,-1],[1]"], "levels=4+5+-1"),
        (["seed=3"], ["seed=range(0,5)"], "seed=3"),
        (["seed=3"], ["seed=3"], "run"),
        (["data.root=/a/cookie", "seed=0"], ["data.root=/a/cookie,/a/nut", "seed=0,1"], "cookie,seed=0"),
        (["data.root=/a/cookie"], ["data.root=/a/cookie,/b/cookie"], "root=a-cookie,82e76386"),
        (["data.root=/a/cookie", "seed=0"], ["data.root=/a/cookie", "seed=0,1"], "seed=0"),
    ],
)  # fmt: skip
def test_a_job_is_named_by_what_varies(overrides: list[str], whole: list[str], expected: str) -> None:
    assert job_name(overrides, whole, None) == expected


def test_names_are_legal_short_and_differ() -> None:
    values = [
        "/a/b",
        "/a-b",
        "a/b",
        f"/{'long/' * 60}one",
        f"/{'long/' * 60}two",
        "'x y'",
        "{a:1}",
        "[[1],[2]]",
        "[1,[2]]",
    ]
    whole = [f"data.root={','.join(values)}", "seed=0,1"]
    names = [job_name([f"data.root={value}", "seed=0"], whole, None) for value in values]
    assert len(set(names)) == len(values)
    for name in names:
        assert len(name) <= NAME_LENGTH and not set(name) & set("/\\ '\"[]{}()*?:;<>|\n")
    assert "one" in names[3]


def test_what_the_command_line_fixes_is_not_in_the_name() -> None:
    params = {"lr": "interval(0, 1)", "decay": "choice(0.9, 0.95)"}
    assert job_name(["lr=0.5", "decay=0.9"], ["decay=0.9"], params) == "lr=0.5"


def test_resuming_finds_the_newest_folder_of_the_same_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    new = str(tmp_path / "new")
    lines = {"older": ["seed=0,1"], "same": ["seed=0,1", "resume=true"], "other": ["seed=0,2"]}
    for age, (name, overrides) in enumerate(reversed(lines.items())):
        (tmp_path / name).mkdir()
        OmegaConf.save({"hydra": {"overrides": {"task": overrides}}}, tmp_path / name / "multirun.yaml")
        os.utime(tmp_path / name, (age, age))
    os.utime(tmp_path / "same", (10, 10))
    assert folder_of(new, False, ["seed=0,1"]) == new
    assert folder_of(new, True, ["resume=true", "seed=0,1"]) == str(tmp_path / "same")
    assert folder_of(new, True, ["resume=true", "seed=7"]) == new and "starting afresh" in caplog.text
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    OmegaConf.save(["seed=7"], tmp_path / "run" / ".hydra" / "overrides.yaml")  # as a single run leaves them
    assert folder_of(new, True, ["resume=true", "seed=7"]) == str(tmp_path / "run")


# --- one job ---


@pytest.fixture
def job(tmp_path: Path) -> Callable[[Callable[[DictConfig], float | None]], Any]:
    """Runs a function as a job in ``tmp_path``, as the launchers do."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["+category=screw"], return_hydra_config=True)
    OmegaConf.set_readonly(config.hydra, False)
    config.hydra.runtime.output_dir, config.hydra.job.num = str(tmp_path), 0
    HydraConfig.instance().set_config(config)
    return lambda task: sweep.attempt(task, config, "this", one_line)


def test_an_error_stays_in_the_folder_until_the_job_succeeds(tmp_path: Path, job: Callable[..., Any]) -> None:
    def bug(config: DictConfig) -> float:
        return 1 / 0

    def mistake(config: DictConfig) -> float:
        raise UserError("no such folder")

    assert isinstance(job(bug), sweep.Failure)
    assert "Traceback" in (tmp_path / "error.txt").read_text()
    assert job(mistake).message == "no such folder"
    assert (tmp_path / "error.txt").read_text() == "error: no such folder\n"
    assert job(lambda config: 0.5) == 0.5 and not (tmp_path / "error.txt").exists()


def test_a_job_that_is_started_again_goes_on_but_not_for_ever(tmp_path: Path, job: Callable[..., Any]) -> None:
    resumed: list[bool] = []

    def dies(config: DictConfig) -> float:
        resumed.append(config.resume)
        raise KeyboardInterrupt

    for _ in range(sweep.MAX_DEATHS):
        with pytest.raises(KeyboardInterrupt):
            job(dies)
    assert resumed == [False, True, True]
    assert "died 3 times" in job(dies).message and (tmp_path / "error.txt").exists()
    for _ in range(sweep.MAX_DEATHS + 1):  # one that ended may be asked for its result at any time
        assert job(lambda config: float(config.resume)) == 1


@pytest.mark.parametrize(
    ("launcher", "threads", "at_once"),
    [
        ({"_target_": "BasicLauncher"}, None, 1),
        ({"ray": {"remote": {"num_cpus": 2, "num_gpus": 0}}}, 2, 4),
        ({"ray": {"remote": {"num_cpus": 2, "num_gpus": 1}}}, 2, 3),
        ({"cpus_per_task": 3, "gpus_per_node": 0}, 3, 2),
    ],
)
def test_jobs_share_the_machine(
    launcher: dict[str, Any], threads: int | None, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(share, "cores", lambda: 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    config = OmegaConf.create(launcher)
    assert (share.share(config), share.jobs_at_once(config)) == (threads, at_once)
    assert share.cores_per_job() == 2 and share.gpus_per_job() == 1


def test_local_jobs_take_a_gpu_each_of_those_that_the_user_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(share.GPUS, "2,5")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    target = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher"
    launcher = OmegaConf.create({"_target_": target, "cpus_per_task": torch.get_num_threads(), "gpus_per_node": 2})
    seen = []
    for number in range(3):
        share.take_share(launcher, number)
        seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert seen == ["2", "5", "2"]


def test_a_batch_is_launched_again_when_a_process_died() -> None:
    class FailedJobError(Exception):
        __module__ = "submitit.core.utils"

    class Dying:
        launches = 0

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[str]:
            self.launches += 1
            if self.launches < 3:
                raise FailedJobError("killed")
            return ["done"]

    assert launching.Persistent(Dying()).launch([["seed=0"]], 0) == ["done"]  # type: ignore[arg-type]


def test_the_validation_signal_knows_no_test_metric() -> None:
    history = [{"auroc": 0.6}, {"auroc": 0.7}, {"auroc": 0.8}]
    maps = {"worth": 1.5, "worth_finetuned": 1.6}
    used = {"fine_tuning_used": True, "epoch_chosen": 1}
    unused = {"fine_tuning_used": False, "epoch_chosen": 2}
    test = {"frozen": {"image_auroc": 0.99}}
    assert (
        validation_signal(Outcome({**test, "segmentation": maps, "forgetting": used}, fine_tuned=True), history) == 1.6
    )
    assert validation_signal(Outcome({**test, "segmentation": maps, "forgetting": unused}), history) == 1.5
    assert validation_signal(Outcome({**test, "segmentation": {"worth": 1.5}}), history) == 1.5
    assert validation_signal(Outcome({**test, "forgetting": used}, fine_tuned=True), history) == 0.7
    assert validation_signal(Outcome(test), history) == 0.6 and validation_signal(Outcome(test), []) is None


# --- whole sweeps ---


@pytest.mark.slow
def test_a_failed_job_is_named_and_resuming_runs_only_that_one(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "data"
    root.mkdir()
    (root / "screw").symlink_to(parts / "screw")
    frozen = [*line(root, "+category=pill,screw", NO_MAP), "fine_tune=false"]
    text = message(capsys, monkeypatch, *frozen)
    assert text.startswith("error: 1 of 2 jobs failed")
    assert set(jobs(tmp_path)) == {"category=screw"}
    (error,) = tmp_path.glob("multirun/*/category=pill/error.txt")
    assert error.read_text().startswith("error: ") and "pill" in error.read_text()
    screw = error.parent.parent / "category=screw" / "metrics.json"
    written = screw.stat().st_mtime_ns
    (root / "pill").symlink_to(parts / "screw")
    run(monkeypatch, *frozen, "resume=true")
    assert set(jobs(tmp_path)) == {"category=pill", "category=screw"}
    assert not error.exists() and screw.stat().st_mtime_ns == written


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["seed=0,1", "trainer.devices=2"], "leave -m out"),
        (["+search=optuna", "hydra.sweeper.maximise=image_auroc"], "worthless"),
        (["+search=optuna", "folds=0"], "set folds=5"),
        (["+search=optuna", "seed=0,1"], "is luck"),
        (["hydra/sweeper=optuna"], "nothing to search"),
        (["+search=optuna", "+hydra.sweeper.params.augmentation='choice(all,subtle)'"], "cannot vary augmentation,"),
    ],
)
def test_refusals_come_before_any_job(
    more: list[str], expected: str, parts: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if "optuna" in str(more) and importlib.util.find_spec("optuna") is None:
        pytest.skip("optuna is not installed: pip install 'gaussad_pl[optuna]'")
    monkeypatch.chdir(tmp_path)
    assert expected in message(capsys, monkeypatch, *line(parts, *more))
    assert not list(tmp_path.rglob("config.yaml"))


@pytest.mark.parametrize(
    ("choice", "extra"), [("ray", "ray"), ("submitit_local", "submitit"), ("submitit_slurm", "submitit")]
)
def test_a_missing_extra_is_named(
    choice: str, extra: str, parts: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launching, "_missing", lambda package: True)
    text = message(capsys, monkeypatch, *line(parts, "seed=0,1", f"hydra/launcher={choice}"))
    assert text == f"error: hydra/launcher={choice} is an optional extra: pip install 'gaussad_pl[{extra}]'"


@pytest.mark.slow
def test_a_killed_sweep_resumes_without_being_told_where(parts: Path, tmp_path: Path) -> None:
    log, command = tmp_path / "log", line(parts, "seed=0,1,2", "trainer.max_epochs=3", NO_MAP)
    with forked(log, train, tmp_path, command) as process:
        while not list(tmp_path.glob("multirun/*/seed=1/checkpoints/last.ckpt")) and process.is_alive():
            time.sleep(0.01)
        process.kill()
    assert process.exitcode == -signal.SIGKILL, log.read_text()
    (finished,) = tmp_path.glob("multirun/*/seed=0/metrics.json")
    written = finished.stat().st_mtime_ns
    assert set(jobs(tmp_path)) == {"seed=0"}
    again = [*command, "resume=true", "hydra.sweeper.max_batch_size=2"]  # how it is launched does not matter
    assert finish(log, train, tmp_path, again) == 0, log.read_text()
    assert log.read_text().count("Restored all states from the checkpoint") == 1
    found = jobs(tmp_path)
    assert set(found) == {"seed=0", "seed=1", "seed=2"}
    assert finished.stat().st_mtime_ns == written
    assert [record["epoch"] for record in found["seed=1"]["forgetting"]["history"]] == [0, 1, 2, 3]


@pytest.mark.slow
@needs("optuna", "optuna")
def test_a_search_maximises_the_validation_signal_and_resumes(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quick = [*line(parts, "+search=optuna", "fine_tune=false", NO_MAP, "model.shrinkage=interval(0.1,0.9)")]
    quick += ["model.optimizer.lr=1e-3", "callbacks.averaging.decay=0.9", "levels=top3"]
    run(monkeypatch, *quick, "hydra.sweeper.n_trials=2")
    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob("multirun/*/*/metrics.json")}
    run(monkeypatch, *quick, "hydra.sweeper.n_trials=3", "resume=true")
    assert len(first) == 2 and all(path.stat().st_mtime_ns == written for path, written in first.items())
    signals = {name: found["validation_signal"] for name, found in jobs(tmp_path).items()}
    assert len(signals) == 3 and all(name.startswith("shrinkage=0.") for name in signals)
    (file,) = tmp_path.glob("multirun/*/search.yaml")
    trials = OmegaConf.load(file).trials
    assert [trial.validation_signal for trial in trials] == sorted(signals.values(), reverse=True)


class Signals:
    """A launcher whose jobs end with these signals."""

    def __init__(self, *signals: float | None) -> None:
        self.signals = list(signals)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        return [JobReturn(status=JobStatus.COMPLETED, _return_value=self.signals.pop(0)) for _ in job_overrides]


@pytest.mark.slow
@needs("optuna", "optuna")
def test_a_trial_without_a_finite_signal_counts_as_failed(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    signals = (math.nan, 0.25, math.inf, None, 0.5, -math.inf)
    monkeypatch.setattr(launching, "launcher", lambda *arguments: Signals(*signals))
    run(monkeypatch, *line(parts, "+search=optuna", f"hydra.sweeper.n_trials={len(signals)}"))
    (file,) = tmp_path.glob("multirun/*/search.yaml")
    found = OmegaConf.load(file)
    assert [trial.validation_signal for trial in found.trials] == [0.5, 0.25] and len(found.failed) == 4
    assert "nan" not in file.read_text() and "inf" not in file.read_text()
    assert not list(file.parent.glob(".partial*"))
    before = file.read_text()
    monkeypatch.setattr(launching, "launcher", lambda *arguments: Signals(0.75))
    monkeypatch.setattr("gaussad_pl.files.os.fsync", lambda number: os.close(-1))  # a disk that fails
    with pytest.raises(SystemExit, match="cannot write .*multirun.yaml"):
        run(monkeypatch, *line(parts, "+search=optuna", "hydra.sweeper.n_trials=1", f"hydra.sweep.dir={file.parent}"))
    assert file.read_text() == before


# --- what a search is judged by ---


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", ["+category=screw", *overrides])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lines", "changed"),
    [
        (["seed=0", "seed=1"], "data.seed"),
        (["data.seed=0", "data.seed=1"], "data.seed"),
        (["++data.seed=0", "++data.seed=1"], "data.seed"),
        (["fold=0", "fold=3"], "data.fold, fold"),
        (["data.fold=0", "data.fold=1"], "data.fold"),
        (["data.folds=3", "data.folds=5"], "data.folds"),
        (["augmentation=subtle", "augmentation=strong"], "augmentation.cutmix"),
        (["augmentation.cutmix=0.1", "augmentation.cutmix=0.9"], "data.augmentations.cutmix"),
        (["+augmentation.glow=0.1", "+augmentation.glow=0.9"], "data.augmentations.glow"),
        (["data.augmentations={scar:0.1}", "data.augmentations={scar:0.9}"], "data.augmentations.scar"),
        (["+augmentation@data.augmentations=subtle", "+augmentation@data.augmentations=all"], "data.augmentations"),
        (["data=mvtec", "data=demo"], "data._target_"),
        (["data.root=/a", "data.root=/b"], "data.root"),
        (["data.image_size=64", "data.image_size=128"], "data.image_size"),
        (["backbone.image_size=64", "backbone.image_size=128"], "data.image_size"),
        (["backbone=resnet18", "backbone=efficientnet_b4"], "data.image_size"),
        (["category=screw", "category=tile"], "data.category"),
        (["model.segmentation.seed=0", "model.segmentation.seed=1"], "model.segmentation.seed"),
        (["model.segmentation=null", "model.segmentation.form=shared"], "model.segmentation"),
        (["+experiment=paper", "+experiment=frozen"], "augmentation.augmix"),
        (["+trainer.limit_val_batches=1", "+trainer.limit_val_batches=2"], "trainer.limit_val_batches"),
    ],
)
def test_a_search_may_not_vary_what_it_is_judged_by(lines: list[str], changed: str) -> None:
    lines = [each.replace("category=", "data.category=") if each.startswith("category") else each for each in lines]
    with pytest.raises(UserError, match=f"a search cannot vary the_key, .*{changed}.*is luck") as error:
        refuse_other_judges(lambda chosen: composed(*chosen), {"the_key": lines})
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "lines",
    [
        ["model.optimizer.lr=1e-4", "model.optimizer.lr=1e-2"],
        ["levels=top3", "levels=all"],
        ["objective=mahalanobis", "objective=dense"],
        ["backbone=resnet18", "backbone=efficientnet_lite0"],
        ["model.segmentation.form=shared", "model.segmentation.form=position"],
        ["callbacks.forgetting.signal=auroc", "callbacks.forgetting.signal=paired"],  # picks an epoch, judges by AUROC
        ["data.nuisance.rotate=0", "data.nuisance.rotate=10"],  # of training images and of the Gaussian's
        ["data.light_copies=0", "data.light_copies=3"],
        ["data.batch_size=8", "data.batch_size=32"],
    ],
)
def test_a_search_may_vary_what_trains_and_scores(lines: list[str]) -> None:
    refuse_other_judges(lambda chosen: composed(*chosen), {"the_key": lines})


@pytest.mark.slow
@needs("optuna", "optuna")
@pytest.mark.parametrize(
    "varied",
    [
        "++data.seed=choice(0,1)",
        "data.augmentations=choice({scar:0.1},{scar:0.9})",
        "+augmentation@data.augmentations=subtle,all",
    ],
)
def test_a_search_refuses_such_keys_in_any_words_and_leaves_nothing_behind(
    varied: str, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "a search cannot vary" in message(capsys, monkeypatch, *line(parts, "+search=optuna", varied))
    assert not list(tmp_path.rglob("*.yaml"))


@pytest.fixture(scope="module")
def serial(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The jobs that the launchers are compared on, one after the other with as many threads."""
    folder = tmp_path_factory.mktemp("serial")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        torch.set_num_threads(1)
        run(monkeypatch, *line(parts, "seed=0,1", NO_MAP))
        torch.set_num_threads(threads)
    return jobs(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(
            ["hydra/launcher=ray", "hydra.launcher.ray.remote.num_cpus=1", "+hydra.launcher.ray.init.num_cpus=2"],
            marks=needs("hydra_plugins.hydra_ray_launcher", "ray"),
            id="ray",
        ),
        pytest.param(
            ["hydra/launcher=submitit_local", "hydra.launcher.cpus_per_task=1", "hydra.sweeper.max_batch_size=2"],
            marks=needs("hydra_plugins.hydra_submitit_launcher", "submitit"),
            id="submitit",
        ),
    ],
)
def test_jobs_run_side_by_side_to_the_same_numbers(
    launcher: list[str], serial: dict[str, dict[str, Any]], parts: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "gaussad_pl.train", *line(parts, "seed=0,1", NO_MAP), *launcher]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    found = jobs(tmp_path)
    assert found.keys() == serial.keys()
    for name, reference in serial.items():
        for part in ("frozen", "finetuned", "forgetting", "validation_signal"):
            assert json.dumps(found[name][part]) == json.dumps(reference[part])
        assert "gaussad_pl.train --multirun" in found[name]["command"]  # not that of a worker
    logs = list(tmp_path.glob("multirun/*/*/train.log"))
    assert len(logs) == 2 and all("threads: 1, GPU: \n" in log.read_text() for log in logs)
