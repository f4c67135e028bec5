"""VisA: its own split, masks numbered by kind of defect, and mistakes in the files; on a small tree in its layout."""

from __future__ import annotations

import csv
import hashlib
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import draw_part
from made_runs import study
from PIL import Image
from test_conf import composed, names
from test_datamodules import NO_DOWNLOAD, SETTINGS
from test_train import QUICK, metrics, run

from gaussad_pl.data.visa import COLUMNS, VisA
from gaussad_pl.errors import UserError

CATEGORIES = (
    "candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2", "pcb1", "pcb2", "pcb3", "pcb4",
    "pipe_fryum",
)  # fmt: skip
DOCS = Path(__file__).parent.parent / "docs" / "pages"


def write_visa(root: Path, categories: tuple[str, ...] = ("candle", "pcb1")) -> Path:
    """20 good images of training per category, and 4 good and 4 bad ones to test, with masks of values 1 to 4."""
    rng, rows = np.random.default_rng(0), []
    for category in categories:
        images, masks = (Path(category, "Data", each) for each in ("Images", "Masks/Anomaly"))
        for folder in (images / "Normal", images / "Anomaly", masks):
            (root / folder).mkdir(parents=True)
        for i in range(24):
            path = images / "Normal" / f"{i:04}.JPG"
            draw_part(rng, False)[0].save(root / path, "JPEG")
            rows.append([category, "test" if i % 6 == 0 else "train", "normal", path.as_posix(), ""])
        for i in range(4):
            path, mask = images / "Anomaly" / f"{i:03}.JPG", masks / f"{i:03}.png"
            image, spot = draw_part(rng, True)
            image.save(root / path, "JPEG")
            Image.fromarray(np.asarray(spot) // 255 * np.uint8(i + 1)).save(root / mask)
            rows.append([category, "test", "anomaly", path.as_posix(), mask.as_posix()])
    write_split(root, [list(COLUMNS), *rows])
    return root


def write_split(root: Path, rows: list[list[str]]) -> None:
    (root / "split_csv").mkdir(exist_ok=True)
    with (root / "split_csv" / "1cls.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def read_split(root: Path) -> list[list[str]]:
    with (root / "split_csv" / "1cls.csv").open(newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_visa(tmp_path / "visa")


def visa(root: Path, category: str = "candle", **changes: Any) -> VisA:
    return VisA(str(root), category, **NO_DOWNLOAD, **{**SETTINGS, **changes})


def mistake(root: Path, category: str = "candle") -> str:
    with pytest.raises(UserError) as caught:
        visa(root, category).check()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_split_of_the_csv_file_decides(root: Path) -> None:
    data = visa(root)
    data.check()
    assert [sample.path.stem for sample in data.samples.train] == [f"{i:04}" for i in range(24) if i % 6]
    assert [sample.kind for sample in data.samples.test] == ["anomaly"] * 4 + ["good"] * 4
    assert [sample.path.stem for sample in data.samples.test[4:]] == ["0000", "0006", "0012", "0018"]
    assert all("candle" in sample.path.parts for sample in [*data.samples.train, *data.samples.test])


@pytest.mark.parametrize("palette", [False, True])
def test_every_number_but_zero_in_a_mask_is_a_defect(palette: bool, root: Path) -> None:
    if palette:
        for path in (root / "candle" / "Data" / "Masks").rglob("*.png"):
            image = Image.open(path).convert("P")
            image.putpalette([0, 0, 0] * 256)
            image.save(path)
    data = visa(root)
    shares = data.test_masks.float().mean((1, 2)).tolist()
    assert shares == [pytest.approx((13 / 64) ** 2, abs=1e-6)] * 4 + [0.0] * 4


def test_a_missing_csv_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    found = mistake(tmp_path)
    assert str(tmp_path / "split_csv" / "1cls.csv") in found
    assert all(remedy in found for remedy in ("data.root", "data.download=true", "data=mvtec"))


@pytest.mark.parametrize("file", ["Images/Normal/0007.JPG", "Images/Anomaly/002.JPG", "Masks/Anomaly/002.png"])
def test_a_missing_file_of_the_csv_file_is_named(file: str, root: Path) -> None:
    (root / "candle" / "Data" / file).unlink()
    found = mistake(root)
    assert f"1cls.csv names {root / 'candle' / 'Data' / file}, which is missing (1 of 32 files)" in found
    visa(root, "pcb1").check()  # does not need it


def test_an_unknown_category_is_answered_with_those_that_there_are(root: Path) -> None:
    assert "data.category=screw" in mistake(root, "screw") and "candle, pcb1" in mistake(root, "screw")


def test_a_csv_file_of_another_kind_is_refused(root: Path) -> None:
    rows = read_split(root)
    write_split(root, [row[:-1] for row in rows])
    assert "1cls.csv has no column mask: expected object,split,label,image,mask" in mistake(root)
    write_split(root, [*rows[:5], ["candle", "train", "anomaly", "a.JPG", "a.png"], *rows[5:]])  # the two-class split
    assert "1cls.csv, line 6: split and label are train anomaly" in mistake(root)
    write_split(root, [*rows, ["candle", "test", "normal"]])
    assert "line 58" in mistake(root)
    (root / "split_csv" / "1cls.csv").write_bytes(b"object,split,label,image,mask\n\xff\xfe")
    assert "1cls.csv is damaged" in mistake(root)


def test_visa_is_downloaded_once_and_only_when_asked(root: Path, tmp_path: Path) -> None:
    archive = tmp_path / "VisA.tar"
    with tarfile.open(archive, "w") as tar:
        for path in root.iterdir():
            tar.add(path, path.name)
    source = {"url": archive.as_uri(), "sha256": hashlib.sha256(archive.read_bytes()).hexdigest()}
    target = tmp_path / "target"
    visa(target).prepare_data()
    assert not target.exists()
    for _ in range(2):  # the second time without the archive: everything is there
        data = VisA(str(target), "pcb1", download=True, **source, **SETTINGS)
        data.prepare_data()
        assert len(data.samples.train) == 20 and len(data.samples.test) == 8
        archive.unlink(missing_ok=True)


def test_the_commands_of_the_docs_run_all_categories_of_both_benchmarks() -> None:
    text = (DOCS / "own-parts.md").read_text(encoding="utf-8")
    (listed,) = set(re.findall(r"-m data=visa data\.category=(\S+)", text))
    assert tuple(listed.split(",")) == CATEGORIES
    for category in CATEGORIES:
        data = composed("data=visa", f"data.category={category}").data
        assert data.name == data.category == category
    assert "-m '+category=glob(*)'" in text and len(names("category")) == 15


@pytest.mark.slow
def test_categories_are_trained_in_one_sweep_and_are_no_setting(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["data=visa", "data.category=candle,pcb1", f"data.root={root}", "fine_tune=false", "logger=csv", *QUICK]
    run(monkeypatch, "-m", f"hydra.sweep.dir={tmp_path / 'sweep'}", *line)
    found = study(tmp_path / "sweep")
    assert found.categories == ["candle", "pcb1"] and found.settings == ["default"]
    images = metrics(found.runs[0].folder)["images"]
    assert images["test_good"] == images["test_bad"] == 4 and found.runs[0].final["aupro"] > 0
