"""The W&B page of a run, as an offline run holds it until `wandb sync` uploads it."""

from __future__ import annotations

import csv
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from test_train import arguments, metrics, run
from wandb.proto import wandb_internal_pb2 as protocol

from gaussad_pl.inference.detector import Detector
from gaussad_pl.results import dashboard
from gaussad_pl.results.gallery import picture_threshold

pytestmark = pytest.mark.slow

BLOCK = 32768


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: a log in the format of LevelDB, checksums unread."""
    data, place, record = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:  # too short for a header: padding
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield protocol.Record.FromString(record)
            record = b""


def values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def offline_run(folder: Path) -> dict[str, list[Any]]:
    """The records of the one offline run in a run folder, by their kind."""
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    for _ in range(300):  # W&B writes from another process
        found: dict[str, list[Any]] = {}
        for record in records(file):
            kind = record.WhichOneof("record_type")
            found.setdefault(kind, []).append(getattr(record, kind))
        if "exit" in found:  # without it the run would be uploaded as crashed
            return found
        time.sleep(0.1)
    raise AssertionError(f"{file} has no end")


OFFLINE = ["logger=default", "model.segmentation.form=shared", "model.segmentation.map_levels=middle"]
KEPT = [*OFFLINE, "logger.wandb.detector=true", "+logger.wandb.tags=[line 3]"]


@pytest.fixture(scope="module")
def finished(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dashboard") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.delenv("WANDB_MODE", raising=False)
        run(monkeypatch, *arguments(parts, folder, *KEPT))
    return folder


@pytest.fixture(scope="module")
def logged(finished: Path) -> dict[str, list[Any]]:
    return offline_run(finished)


def test_the_configuration_is_there(finished: Path, logged: dict[str, list[Any]]) -> None:
    (start, *_), config = logged["run"], {}
    for record in (start.config, *logged["config"]):
        config |= values(record.update)
    assert (start.project, start.run_group) == ("gaussad_pl", "")
    assert config["seed"] == 0 and config["backbone"]["image_size"] == 64
    found = metrics(finished)
    assert (config["versions"], config["git"]) == (found["versions"], found["git"])
    assert config["data_sha256"] == found["data_sha256"]
    state = "fine-tuned" if found["forgetting"]["fine_tuning_used"] else "frozen"
    assert set(logged["run"][-1].tags) == {"line 3", "screw", found["backbone"]["name"], state}


def test_the_detector_is_an_artifact_where_it_is_asked_for(finished: Path, logged: dict[str, list[Any]]) -> None:
    (artifact,) = (each for each in logged["artifact"] if each.type == "model")
    (entry,) = artifact.manifest.contents
    assert entry.path == "detector.safetensors" and entry.size == (finished / "detector.safetensors").stat().st_size
    assert finished in Path(entry.local_path).parents


def test_the_summary_has_the_test_metrics_of_both_states(finished: Path, logged: dict[str, list[Any]]) -> None:
    summary: dict[str, Any] = {}
    for record in logged["summary"]:
        summary |= values(record.update)
    found = metrics(finished)
    for state in ("frozen", "finetuned"):
        for name in ("image_auroc", "image_ap", "image_f1max", "pixel_auroc", "aupro"):
            assert summary[f"{state}/{name}"] == pytest.approx(found[state][name])
    assert summary["validation_signal"] == pytest.approx(found["validation_signal"])
    assert summary["forgetting/epoch_chosen"] == found["forgetting"]["epoch_chosen"]
    point = found["operating_points"]["0.2"]
    assert summary["operating_points/0.2/bad_found"] == pytest.approx(point["bad_found"] / point["bad"])
    assert summary["images/test_bad"] == found["images"]["test_bad"]
    assert summary["cost/fit_seconds"] == pytest.approx(found["cost"]["fit_seconds"])
    assert found["cost"]["total_seconds"] > found["cost"]["fit_seconds"] > 0
    assert found["cost"]["peak_memory_bytes"] > 2**24


def test_the_forgetting_signal_is_there_for_every_epoch(finished: Path, logged: dict[str, list[Any]]) -> None:
    steps = [values(record.item) for record in logged["history"]]
    told = [step["forgetting/paired/elastic"] for step in steps if "forgetting/paired/elastic" in step]
    history = metrics(finished)["forgetting"]["history"]
    assert told == pytest.approx([record["paired/elastic"] for record in history], rel=1e-6)
    assert sum("train/loss" in step for step in steps) == 6


def table(folder: Path, name: str) -> list[dict[str, Any]]:
    (file,) = folder.glob(f"wandb/offline-run-*/files/media/table/{name}*.table.json")
    content = json.loads(file.read_text())
    return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def test_charts_are_tables_that_w_and_b_draws(finished: Path, logged: dict[str, list[Any]]) -> None:
    config: dict[str, Any] = {}
    for record in logged["config"]:
        config |= values(record.update)
    charts = json.dumps(config["_wandb"] if "_wandb" in config else {k: v for k, v in config.items() if "_wandb" in k})
    for chart in ("test/roc", "test/histogram", "forgetting/curve"):
        assert chart in charts
    points = table(finished, "test/roc")
    assert points[0]["lineVal"] == points[0]["step"] == 0
    assert sum(point["lineVal"] for point in table(finished, "test/histogram")) == 12
    forgetting = metrics(finished)["forgetting"]
    drawn = [row["lineVal"] for row in table(finished, "forgetting/curve") if row["lineKey"] == forgetting["signal"]]
    assert drawn == [record[forgetting["signal"]] for record in forgetting["history"]]


def test_the_table_shows_all_test_images_with_their_verdicts_and_syncs_from_the_run_folder(
    finished: Path, logged: dict[str, list[Any]]
) -> None:
    rows = table(finished, "test/images")
    with (finished / "scores.csv").open() as file:
        expected = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [row["path"] for row in expected] and len(rows) == 12
    assert [row["score"] for row in rows] == [float(row["score"]) for row in expected]
    calibration = Detector.load(finished).calibration
    threshold = picture_threshold(calibration)
    assert [row["verdict"] for row in rows] == [threshold.verdict(row["score"]) for row in rows]
    p_values = calibration.p_values(torch.tensor([row["score"] for row in rows], dtype=torch.float64))
    assert [row["p_value"] for row in rows] == p_values.tolist()
    assert all(row["image"] and row["map"] and bool(row["mask"]) == (row["kind"] == "spot") for row in rows)
    (artifact,) = (each for each in logged["artifact"] if "testimages" in each.name)
    files = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
    assert all(finished in path.parents and path.is_file() for path in files.values())
    pictures = [path for name, path in files.items() if name.endswith(".jpg")]
    assert len(pictures) == 12 + 12 + 6  # images, maps, masks
    assert all(Image.open(path).size == (160, 160) for path in pictures)


def test_every_file_of_the_log_is_in_its_folder(finished: Path, logged: dict[str, list[Any]]) -> None:
    (files,) = finished.glob("wandb/offline-run-*/files")
    named = [file.path for record in logged["files"] for file in record.files]
    assert any("media/images/roc" in name for name in named)
    assert all((files / name).is_file() for name in named if name.startswith("media/"))


def test_the_jobs_of_a_sweep_are_one_group(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = [each for each in arguments(parts, tmp_path, *OFFLINE) if not each.startswith(("hydra.run.dir", "model."))]
    run(monkeypatch, "-m", f"hydra.sweep.dir={tmp_path / 'my_sweep'}", "+experiment=frozen", "fold=0", *line)
    (folder,) = (path.parent for path in (tmp_path / "my_sweep").glob("*/metrics.json"))
    assert offline_run(folder)["run"][0].run_group == "my_sweep"


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    curve = dashboard._thin(torch.linspace(0, 1, 50_000))
    assert len(curve) == dashboard.POINTS and (curve[0], curve[-1]) == (0, 1)


def test_w_and_b_is_given_nothing_that_it_warns_about(tmp_path: Path) -> None:
    assert "anonymous" not in dashboard.DashboardLogger(save_dir=str(tmp_path))._wandb_init
