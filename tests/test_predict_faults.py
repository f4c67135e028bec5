"""A prediction that is killed, stopped or runs out of disk ends cleanly, and resumes to what it would have been."""

# ruff: noqa: F811  # a fixture of another file has the name of the arguments that it is

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from test_predict import ckpt, drawn, rows, run  # noqa: F401  # ckpt is a fixture

from gaussad_pl import predict
from gaussad_pl.inference.artefact import NAME
from gaussad_pl.inference.detector import Detector

FILES = ("predictions.jsonl", "predictions.csv")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 32 images as a change of the light shows them, two of them broken, one with an odd name."""
    folder = tmp_path_factory.mktemp("source")
    for i, image in enumerate(drawn(32, 3, dark=True)):
        image.save(folder / f"{i:02}.png")
    (folder / "04.png").write_text("text")
    (folder / "21.png").write_bytes(b"")
    (folder / "03.png").rename(folder / '03 "a",\né.png')
    return folder


@pytest.fixture(scope="module")
def undisturbed(ckpt: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a prediction that nothing happened to."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert run(*line(ckpt, source, out)) == 1
    return out


@pytest.fixture(scope="module")
def few(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of five of the images, one of them broken."""
    listed = tmp_path_factory.mktemp("few") / "few.txt"
    listed.write_text("\n".join(str(source / f"{name}.png") for name in ("00", "01", "02", "04", "05")))
    return listed


def line(ckpt: Path, source: Path, out: Path, *more: str) -> list[str]:
    return [f"ckpt={ckpt}", f"source={source}", f"out={out}", "batch_size=1", "fpr=0.05", *more]


def same(out: Path, expected: Path) -> None:
    for name in FILES:
        assert (out / name).read_bytes() == (expected / name).read_bytes()


def whole_rows_only(out: Path) -> int:
    """Return the number of rows; both files must agree."""
    lines, table = rows(out)
    assert [each["path"] for each in lines] == [each["path"] for each in table]
    assert all(each["verdict"] in ("good", "bad", "error") and None not in each.values() for each in table)
    return len(lines)


@pytest.fixture
def begun(undisturbed: Path, tmp_path: Path) -> Callable[[int, int], Path]:
    """A folder with the first bytes of both files, as a kill or a power cut leaves them."""

    def folder(lines: int, table: int) -> Path:
        out = tmp_path / "out"
        shutil.copytree(undisturbed, out)
        for name, size in zip(FILES, (lines, table), strict=True):
            os.truncate(out / name, size)
        return out

    return folder


@pytest.mark.parametrize(
    ("lines", "table"), [(0, 0), (0, 5), (5, 0), (1000, 1000), (3001, 800), (800, 2001), (2000, 10**6), (10**6, 2000)]
)
def test_a_killed_prediction_resumes_to_the_same_files_and_summary(
    lines: int, table: int, begun: Callable[[int, int], Path], ckpt: Path, source: Path, undisturbed: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert run(*line(ckpt, source, undisturbed, "resume=true")) == 1
    summary = capsys.readouterr().out
    assert "2 unreadable" in summary and "do not look like the calibration images" in summary
    sizes = [(undisturbed / name).stat().st_size for name in FILES]
    out, judged = begun(min(lines, sizes[0]), min(table, sizes[1])), []
    record = predict.record
    monkeypatch.setattr(predict, "record", lambda row, levels: judged.append(row.index) or record(row, levels))
    assert run(*line(ckpt, source, out, "resume=true")) == 1
    same(out, undisturbed)
    assert capsys.readouterr().out == summary.replace(str(undisturbed), str(out))
    assert judged == list(range(32 - len(judged), 32))
    assert (len(judged) < 32) == (min(lines, table) > 200)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_one_line_that_says_how_to_continue(
    number: int, code: int, ckpt: Path, source: Path, undisturbed: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    record = predict.record

    def interrupted(row: predict.Row, levels: list[int]) -> dict[str, Any]:
        if row.index == 7:
            os.kill(os.getpid(), number)
        return record(row, levels)

    monkeypatch.setattr(predict, "record", interrupted)
    assert run(*line(ckpt, source, tmp_path / "out", "overwrite=true")) == code
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("interrupted by ") and said.endswith("resume=true") and "overwrite" not in said
    assert whole_rows_only(tmp_path / "out") == 7
    monkeypatch.undo()
    assert run(*line(ckpt, source, tmp_path / "out", "resume=true")) == 1
    same(tmp_path / "out", undisturbed)


@pytest.mark.parametrize("how", ["resume=true", "overwrite=true"])
def test_a_second_process_is_turned_away_while_the_first_writes(
    how: str, ckpt: Path, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, said = predict.record, []

    def meanwhile(row: predict.Row, levels: list[int]) -> dict[str, Any]:
        if row.index == 2:
            said.append(str(run(*line(ckpt, few, tmp_path / "out", how))))
        return record(row, levels)

    monkeypatch.setattr(predict, "record", meanwhile)
    assert run(*line(ckpt, few, tmp_path / "out")) == 1
    assert said == [f"error: out={tmp_path / 'out'} is in use by another process: stop it, or give another out="]
    assert whole_rows_only(tmp_path / "out") == 5
    assert run(*line(ckpt, few, tmp_path / "out", how)) == 1  # free again


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond ``size`` bytes; the write that would is cut short, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize(
    ("size", "overlays"), [(10, False), (1500, False), (3000, False), pytest.param(500, True, marks=pytest.mark.slow)]
)
def test_a_full_disk_leaves_whole_rows_and_one_line(
    size: int, overlays: bool, ckpt: Path, source: Path, undisturbed: Path, tmp_path: Path,
) -> None:  # fmt: skip
    out, more = tmp_path / "out", ["overlays=true"] if overlays else []
    with full_disk(size):
        text = str(run(*line(ckpt, source, out, *more)))
    assert text.startswith("error: cannot write ") and text.endswith("resume=true") and "\n" not in text
    assert not list(out.rglob(".partial-*"))
    if (out / FILES[0]).exists():
        assert (whole_rows_only(out) > 1) == (size > 500)
    assert run(*line(ckpt, source, out, *more, "resume=true")) == 1
    same(out, undisturbed)
    assert len(list((out / "overlays").glob("*"))) == 30 * overlays


def test_a_folder_that_cannot_be_written_to_is_one_line(
    ckpt: Path,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("")
    text = str(run(*line(ckpt, source, tmp_path / "file" / "out")))
    assert text.startswith("error: out=") and "cannot write there" in text and "\n" not in text
    real = Path.open

    def read_only(path: Path, mode: str = "r", *args: Any, **settings: Any) -> Any:  # root may write anywhere
        if "r" not in mode and path.suffix == ".jsonl":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, mode, *args, **settings)

    monkeypatch.setattr(Path, "open", read_only)
    text = str(run(*line(ckpt, source, tmp_path / "out")))
    assert text.startswith("error: cannot write ") and "Permission denied" in text and text.endswith("resume=true")


def test_overlays_do_not_become_images_of_the_source(ckpt: Path, source: Path) -> None:
    text = str(run(*line(ckpt, source, source / "out", "overlays=true")))
    assert text.startswith("error: out=") and "inside source=" in text and not (source / "out").exists()


def test_a_list_that_cannot_be_read_is_one_line(
    ckpt: Path, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.open

    def forbidden(path: Path, *args: Any, **settings: Any) -> Any:
        if path == few:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **settings)

    monkeypatch.setattr(Path, "open", forbidden)
    text = str(run(*line(ckpt, few, tmp_path / "out")))
    assert text.startswith(f"error: cannot use {few} (Permission denied)") and "\n" not in text


def test_overlays_of_rows_that_are_there_stay(ckpt: Path, few: Path, tmp_path: Path) -> None:
    arguments = line(ckpt, few, tmp_path / "out", "overlays=true")
    assert run(*arguments) == 1
    for name in FILES:
        os.truncate(tmp_path / "out" / name, 700)
    overlays = sorted((tmp_path / "out" / "overlays").iterdir())
    overlays[0].write_text("mine")
    overlays[-1].unlink()
    assert run(*arguments, "resume=true") == 1
    assert sorted((tmp_path / "out" / "overlays").iterdir()) == overlays and overlays[0].read_text() == "mine"


def test_an_overlay_that_cannot_be_drawn_is_a_row(
    ckpt: Path,
    few: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawing = predict.overlay

    def fragile(image: Any, prediction: Any, *more: Any) -> Any:
        if "02.png" in more:
            raise MemoryError("no memory")
        return drawing(image, prediction, *more)

    monkeypatch.setattr(predict, "overlay", fragile)
    assert run(*line(ckpt, few, tmp_path / "out", "overlays=true")) == 1
    errors = [each["error"] for each in rows(tmp_path / "out")[0] if each["error"]]
    assert len(errors) == 2 and errors[0] == "no overlay: no memory"


@pytest.fixture
def other(ckpt: Path, tmp_path: Path) -> Path:
    """Another detector in a folder of its own."""
    detector = Detector.load(ckpt)
    folder = tmp_path / "other"
    folder.mkdir()
    Detector(detector.model, detector.calibration, {"seed": 1}).save(folder / NAME)
    return folder


def test_rows_of_another_detector_rate_or_image_are_not_continued(
    begun: Callable[[int, int], Path],
    ckpt: Path,
    other: Path,
    source: Path,
    tmp_path: Path,
) -> None:
    out = begun(2000, 2000)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    less = tmp_path / "less"
    shutil.copytree(source, less)
    wanted = {
        "started with another detector": line(other, source, out),
        "started with fpr=0.05, not 0.1": [each.replace("fpr=0.05", "fpr=0.1") for each in line(ckpt, source, out)],
        "started with overlays=false, not true": line(ckpt, source, out, "overlays=true"),
        "the images have changed": line(ckpt, less, out),
        "give only one": line(ckpt, source, out, "overwrite=true"),
    }
    for message, arguments in wanted.items():
        text = str(run(*arguments, "resume=true"))
        assert text.startswith("error: ") and message in text and "\n" not in text
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / "predictions.json").unlink()
    assert "the detector that made the rows is unknown" in str(run(*line(ckpt, source, out, "resume=true")))


def test_fewer_images_than_rows_are_not_continued(
    begun: Callable[[int, int], Path],
    ckpt: Path,
    source: Path,
    tmp_path: Path,
) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(f"{source / '00.png'}\n")
    text = str(run(*line(ckpt, listed, begun(2000, 2000), "resume=true")))
    assert "row 2" in text and "fewer images" in text and "\n" not in text


def test_there_is_nothing_to_resume_in_an_empty_folder_so_it_begins(
    ckpt: Path,
    source: Path,
    undisturbed: Path,
    tmp_path: Path,
) -> None:
    assert run(*line(ckpt, source, tmp_path / "out", "resume=true")) == 1
    same(tmp_path / "out", undisturbed)
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())["fpr"] == 0.05


def test_rows_in_the_middle_that_are_damaged_are_one_line(
    begun: Callable[[int, int], Path],
    ckpt: Path,
    source: Path,
) -> None:
    out = begun(3000, 2000)
    content = bytearray((out / FILES[1]).read_bytes())
    content[700] ^= 1
    (out / FILES[1]).write_bytes(content)
    text = str(run(*line(ckpt, source, out, "resume=true")))
    assert "are damaged (row" in text and "overwrite=true" in text and "\n" not in text
    assert (out / FILES[1]).read_bytes() == content
