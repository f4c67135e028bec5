"""A watched folder: each image is judged once, whatever happens to it, to the disk or to the watcher."""

# ruff: noqa: F811  # a fixture of another file has the name of the arguments that it is

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from forked import forked
from test_predict import ckpt, drawn, rows, run  # noqa: F401  # ckpt is a fixture
from test_predict_faults import full_disk

from gaussad_pl import watch
from gaussad_pl.errors import UserError
from gaussad_pl.inference import arrivals
from gaussad_pl.inference.artefact import NAME
from gaussad_pl.inference.detector import Detector
from gaussad_pl.inference.sources import image_paths
from gaussad_pl.inference.watcher import SORTED, Watcher
from gaussad_pl.watch import Options, opened

SETTLE = 10.0  # seconds of the clock that the tests give


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a camera, with three images."""
    (tmp_path / "camera").mkdir()
    for i, image in enumerate(drawn(3, 2)):
        image.save(tmp_path / "camera" / f"{i}.png")
    return tmp_path / "camera"


@pytest.fixture
def options(ckpt: Path, folder: Path) -> dict[str, Any]:
    return {"ckpt": str(ckpt), "folder": str(folder), "out": str(folder.parent / "out"), "settle": SETTLE, "fpr": 0.1}


def rounds(watcher: Watcher, start: float = 0, count: int = 2) -> None:
    """Rounds so far apart that a file which is unchanged in two of them is complete."""
    for i in range(count):
        watcher.round(start + i * SETTLE)


def names(options: dict[str, Any]) -> list[str]:
    """Name of the image of each row; both files must agree."""
    lines, table = rows(Path(options["out"]))
    assert [each["path"] for each in lines] == [each["path"] for each in table]
    return [Path(each["path"]).name for each in lines]


# ---------------------------------------------------------------------------------------------------------- arriving


def test_rows_are_those_of_predict(options: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(Options(**options)) as watcher:
        rounds(watcher)
    said = capsys.readouterr().out
    out = folder.parent / "predicted"
    assert run(f"ckpt={options['ckpt']}", f"source={folder}", f"out={out}", "fpr=0.1") == 0
    for ours, theirs in zip(rows(Path(options["out"]))[0], rows(out)[0], strict=True):
        path = folder / Path(theirs["path"]).name
        assert (ours.pop("bytes"), ours.pop("modified")) == (path.stat().st_size, path.stat().st_mtime_ns)
        assert ours.pop("score") == pytest.approx(theirs.pop("score"), rel=1e-5)
        assert ours.pop("distances") == pytest.approx(theirs.pop("distances"), rel=1e-5)
        assert ours == theirs
        assert f"{ours['verdict']:9}  p=" in said and str(path) in said


def test_new_images_are_judged_once_and_the_oldest_first(options: dict[str, Any], folder: Path) -> None:
    with opened(Options(**options)) as watcher:
        rounds(watcher, 0, 3)
        assert names(options) == ["0.png", "1.png", "2.png"]
        (folder / "below").mkdir()
        for name in ("b.png", "below/a.png", ".hidden.png", "notes.txt"):
            shutil.copy(folder / "0.png", folder / name)
        os.utime(folder / "b.png", (1, 1))
        rounds(watcher, 100, 3)
    assert names(options)[3:] == ["b.png", "a.png"]


def test_linked_folders_are_watched_like_predict_reads_them_but_not_those_of_judged_images(
    options: dict[str, Any], folder: Path
) -> None:
    away, into = folder.parent / "away", folder.parent / "sorted"
    away.mkdir()
    for name in SORTED:
        (into / name).mkdir(parents=True)
    (folder / "1.png").rename(away / "1.png")
    for name, target in {"line": away, "around": folder, "judged": into, "ours": into / "good"}.items():
        (folder / name).symlink_to(target)
    assert {str(path.relative_to(folder)) for path in image_paths(str(folder))} == {"0.png", "2.png", "line/1.png"}
    with opened(Options(**options, into=str(into))) as watcher:
        rounds(watcher, 0, 5)
    assert sorted(names(options)) == ["0.png", "1.png", "2.png"] and not list(away.iterdir())
    assert sum(map(len, sorted_names(into).values())) == 3


def test_a_half_written_file_is_waited_for(options: dict[str, Any], folder: Path) -> None:
    content = (folder / "0.png").read_bytes()
    with opened(Options(**options)) as watcher:
        for step in range(1, 5):  # it grows from round to round
            (folder / "0.png").write_bytes(content[: step * len(content) // 5])
            watcher.round(step * SETTLE)
        assert names(options) == ["1.png", "2.png"]
        rounds(watcher, 5 * SETTLE, 2)  # the writer has stalled: it cannot be read yet
        assert names(options) == ["1.png", "2.png"]
        (folder / "0.png").write_bytes(content)
        rounds(watcher, 8 * SETTLE)
    assert names(options) == ["1.png", "2.png", "0.png"] and rows(Path(options["out"]))[0][2]["error"] is None


def test_an_unreadable_file_is_a_row_in_the_end_and_stays(options: dict[str, Any], folder: Path) -> None:
    (folder / "1.png").write_text("text")
    with opened(Options(**options, into=str(folder))) as watcher:
        rounds(watcher, 0, 30)
    content = rows(Path(options["out"]))[0]
    assert [each["verdict"] == "error" for each in content] == [False, False, True]
    assert "cannot identify" in content[2]["error"]
    assert [path.name for path in folder.glob("*.png")] == ["1.png"]


def test_a_file_that_is_replaced_is_a_new_image(options: dict[str, Any], folder: Path) -> None:
    with opened(Options(**options)) as watcher:
        rounds(watcher)
        drawn(1, 9)[0].save(folder / "1.png")
        rounds(watcher, 100)
    assert names(options) == ["0.png", "1.png", "2.png", "1.png"]
    assert len({each["score"] for each in rows(Path(options["out"]))[0]}) == 4


@pytest.mark.parametrize(
    ("change", "said"), [("replaced", "was replaced while it was read"), ("removed", "was removed")]
)
def test_a_file_that_changes_while_it_is_read_has_no_row_of_the_old_one(
    change: str, said: str, options: dict[str, Any], folder: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    record = Detector.detect

    def changing(detector: Detector, pixels: Any) -> Any:
        monkeypatch.undo()
        if change == "replaced":
            drawn(1, 9)[0].resize((70, 70)).save(folder / "1.png")
        else:
            (folder / "1.png").unlink()
        return record(detector, pixels)

    monkeypatch.setattr(Detector, "detect", changing)
    with opened(Options(**options)) as watcher:
        rounds(watcher)
        assert names(options) == ["0.png", "2.png"] and watcher.monitor.drift().images == 2
        rounds(watcher, 100)
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and "1.png" in line
    assert names(options)[2:] == (["1.png"] if change == "replaced" else [])


# ----------------------------------------------------------------------------------------------------- into folders


def sorted_names(into: Path) -> dict[str, list[str]]:
    return {name: sorted(path.name for path in (into / name).rglob("*.png")) for name in SORTED}


@pytest.mark.parametrize("inside", [True, False])
def test_judged_images_are_moved_into_the_folder_of_their_verdict(
    inside: bool, options: dict[str, Any], folder: Path
) -> None:
    drawn(1, 9)[0].point(lambda value: 255 - value).save(folder / "dark.png")
    into = folder if inside else folder.parent / "sorted"
    with opened(Options(**options, into=str(into))) as watcher:
        rounds(watcher, 0, 4)
    verdicts = {Path(each["path"]).name: each["verdict"] for each in rows(Path(options["out"]))[0]}
    assert verdicts["dark.png"] == "bad" and "good" in verdicts.values() and len(verdicts) == 4
    expected = {name: sorted(path for path, verdict in verdicts.items() if verdict == name) for name in SORTED}
    assert sorted_names(into) == expected and not list(folder.glob("*.png"))


def test_a_name_that_is_taken_is_never_overwritten(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / "a.png").write_text(f"{i}")
        arrivals.move(tmp_path / "a.png", tmp_path / "good" / "a.png")
    assert {path.name: path.read_text() for path in (tmp_path / "good").iterdir()} == {
        "a.png": "0", "a-1.png": "1", "a-2.png": "2",
    }  # fmt: skip


@pytest.fixture
def _other_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each folder is on a file system of its own."""
    rename = Path.rename

    def within(path: Path, target: Path) -> Path:
        if path.parent != target.parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", within)


@pytest.mark.usefixtures("_other_file_system")
def test_a_read_only_file_is_moved_to_another_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "a.png", Path.open
    path.write_text("a")
    path.chmod(0o444)
    os.utime(path, (1, 1))

    def refused(path: Path, mode: str = "r", *args: Any, **settings: Any) -> Any:  # root may write to any file
        if "+" in mode and not path.stat().st_mode & 0o200:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, mode, *args, **settings)

    monkeypatch.setattr(Path, "open", refused)
    arrivals.move(path, tmp_path / "good" / "a.png")
    (moved,) = tmp_path.rglob("*.*")
    assert moved == tmp_path / "good" / "a.png" and moved.read_text() == "a"
    assert moved.stat().st_mode & 0o777 == 0o444 and moved.stat().st_mtime == 1


@pytest.mark.usefixtures("_other_file_system")
def test_a_move_to_another_file_system_that_was_killed_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_text("a")
    unlink = Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        if path.name == "a.png":
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        arrivals.move(tmp_path / "a.png", tmp_path / "good" / "a.png")
    assert (tmp_path / "a.png").exists() and (tmp_path / "good" / "a.png").read_text() == "a"
    monkeypatch.setattr(Path, "unlink", unlink)
    arrivals.move(tmp_path / "a.png", tmp_path / "good" / "a.png")
    assert [path.name for path in tmp_path.rglob("*.*")] == ["a.png"] and (tmp_path / "good" / "a.png").exists()


def test_an_image_that_could_not_be_moved_is_moved_later_and_not_judged_again(
    options: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    into = folder.parent / "sorted"
    into.write_text("a file")
    with opened(Options(**options, into=str(into))) as watcher:
        rounds(watcher, 0, 4)
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 3 and all("stays for now: cannot write" in line for line in said)  # once per image
        into.unlink()
        rounds(watcher, 100)
    assert len(names(options)) == 3 and sum(map(len, sorted_names(into).values())) == 3


# -------------------------------------------------------------------------------------------------------- disturbed


def test_a_restart_judges_what_has_arrived_meanwhile_and_nothing_again(
    options: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(Options(**options)) as watcher:
        rounds(watcher)
    shutil.copy(folder / "0.png", folder / "new.png")
    monkeypatch.chdir(folder.parent)
    with opened(Options(**{**options, "folder": "camera"})) as watcher:  # the same folder by another name
        rounds(watcher)
    assert names(options) == ["0.png", "1.png", "2.png", "new.png"]
    tallies = [line for line in capsys.readouterr().out.splitlines() if " undecided, " in line]
    assert tallies[2].removeprefix(f"watching {folder}: ").removesuffix(" so far") == tallies[1].partition(":")[0]


@pytest.mark.parametrize(("lines", "table"), [(0, 0), (5, 0), (300, 10**6), (10**6, 150), (10**6, 10**6)])
def test_rows_that_a_kill_cut_short_are_judged_again(
    lines: int, table: int, options: dict[str, Any], folder: Path
) -> None:
    with opened(Options(**options)) as watcher:
        rounds(watcher)
    before = names(options)
    for name, size in (("predictions.jsonl", lines), ("predictions.csv", table)):
        path = Path(options["out"]) / name
        os.truncate(path, min(size, path.stat().st_size))
    with opened(Options(**options, into=str(folder))) as watcher:
        rounds(watcher)
    assert names(options) == before and not list(folder.glob("*.png"))


@pytest.mark.parametrize("left", [None, 0, 30, 200])
def test_a_table_that_is_missing_or_cut_short_is_completed_from_the_rows_of_moved_images(
    left: int | None, options: dict[str, Any], folder: Path
) -> None:
    with opened(Options(**options, into=str(folder))) as watcher:
        rounds(watcher)
    table = Path(options["out"]) / "predictions.csv"
    before = table.read_bytes()
    if left is None:
        table.unlink()
    else:
        os.truncate(table, left)
    with opened(Options(**options, into=str(folder))) as watcher:
        assert watcher.tally.total() == 3
    assert table.read_bytes() == before and names(options) == ["0.png", "1.png", "2.png"]


def test_a_full_disk_while_the_table_is_completed_loses_no_row(options: dict[str, Any]) -> None:
    with opened(Options(**options)) as watcher:
        rounds(watcher)
    lines, table = (Path(options["out"]) / f"predictions.{suffix}" for suffix in ("jsonl", "csv"))
    before = lines.read_bytes()
    table.unlink()
    with full_disk(200), pytest.raises(UserError, match=r"cannot write .*predictions\.csv"), opened(Options(**options)):
        pass
    assert lines.read_bytes() == before
    with opened(Options(**options)):
        assert len(names(options)) == 3


def test_the_table_is_kept_if_the_json_lines_are_missing(options: dict[str, Any]) -> None:
    with opened(Options(**options)) as watcher:
        rounds(watcher)
    table = Path(options["out"]) / "predictions.csv"
    before = table.read_bytes()
    table.with_suffix(".jsonl").unlink()
    for _ in range(2):
        with pytest.raises(UserError, match=r"predictions\.jsonl is missing or empty, but"), opened(Options(**options)):
            pass
    assert table.read_bytes() == before


def test_a_folder_that_vanishes_is_waited_for(
    options: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(Options(**options)) as watcher:
        rounds(watcher)
        folder.rename(folder.parent / "away")
        rounds(watcher, 100, 4)
        (said,) = capsys.readouterr().err.splitlines()
        assert said == f"cannot read {folder} (No such file or directory): waiting for it"
        (folder.parent / "away").rename(folder)
        shutil.copy(folder / "0.png", folder / "new.png")
        rounds(watcher, 200)
    assert names(options) == ["0.png", "1.png", "2.png", "new.png"]


def test_a_full_disk_loses_nothing_and_is_said_once(
    options: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(Options(**options, into=str(folder))) as watcher:
        with full_disk(600):
            rounds(watcher, 0, 5)
        (said,) = capsys.readouterr().err.splitlines()
        assert said.startswith("cannot write ") and said.endswith("nothing is lost: trying again")
        assert len(names(options)) < 3 and len(list(folder.glob("*.png"))) == 3 - len(names(options))
        assert watcher.monitor.drift().images == len(names(options))  # each image counts once, not in every round
        rounds(watcher, 100)
        assert watcher.monitor.drift().images == 3
    assert sorted(names(options)) == ["0.png", "1.png", "2.png"] and not list(folder.glob("*.png"))


@pytest.mark.parametrize("name", ["predictions.jsonl", "predictions.csv"])
def test_without_its_results_nothing_is_judged(
    name: str, options: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(Options(**options, into=str(folder))) as watcher:
        (Path(options["out"]) / name).unlink()
        rounds(watcher, 0, 3)
    assert f"{name} was removed: nothing is judged" in capsys.readouterr().err
    assert len(list(folder.glob("*.png"))) == 3


class FullDisk(io.StringIO):
    """A stream that is redirected to a full disk."""

    encoding = "ascii"

    def write(self, _: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_output_that_cannot_be_printed_does_not_end_it(
    options: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(Options(**options)) as watcher:
        monkeypatch.setattr("sys.stdout", FullDisk())
        rounds(watcher)
    assert len(names(options)) == 3


def test_odd_names_are_printed_on_one_line(
    options: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = folder / os.fsdecode(b"odd \xff,\n\xc3\xa9.png")
    (folder / "0.png").rename(odd)
    with opened(Options(**options)) as watcher:
        rounds(watcher)
    assert odd in watcher.judged and "odd \\udcff,\\né.png" in capsys.readouterr().out


def test_images_unlike_the_calibration_ones_are_warned_of(
    options: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gaussad_pl.inference.watcher.WINDOW", 15)
    for i, image in enumerate(drawn(15, 3, dark=True)):
        image.save(folder / f"dark{i}.png")
    with opened(Options(**options)) as watcher:
        rounds(watcher)
    assert "WARNING: the last 18: the images do not look like the calibration images" in capsys.readouterr().err
    assert watcher.monitor.drift().images == 0


# ---------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"folder": "/nowhere"}, "folder=/nowhere is not a folder"), ({"settle": 0.0}, "settle=0: expected"),
        ({"settle": float("nan")}, "settle=nan: expected"), ({"batch_size": 0}, "batch_size=0"),
        ({"ckpt": "/nowhere"}, "/nowhere does not exist"), ({"device": "tpu"}, "device=tpu"), ({"fpr": 2.0}, "fpr=2"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(changed: dict[str, Any], message: str, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=message) as caught, opened(Options(**{**options, **changed})):
        pass
    assert "\n" not in str(caught.value) and not Path(options["out"]).exists()


def test_the_watched_folder_is_none_that_images_are_moved_to(options: dict[str, Any], folder: Path) -> None:
    (folder / "good" / "today").mkdir(parents=True)
    for watched in ("good", "good/today"):
        given = Options(**{**options, "folder": str(folder / watched)}, into=str(folder))
        with (
            pytest.raises(UserError, match="the watched folder is one that judged images would be moved"),
            opened(given),
        ):
            pass


def test_results_of_another_detector_or_command_or_watcher_are_not_continued(
    options: dict[str, Any], ckpt: Path, folder: Path, tmp_path: Path
) -> None:
    with opened(Options(**options)) as watcher:
        rounds(watcher)
        with pytest.raises(UserError, match="in use by another process"), opened(Options(**options)):
            pass
    detector = Detector.load(ckpt)
    (tmp_path / "other").mkdir()
    Detector(detector.model, detector.calibration, {"seed": 1}).save(tmp_path / "other" / NAME)
    with (
        pytest.raises(UserError, match="another detector"),
        opened(Options(**{**options, "ckpt": str(tmp_path / "other")})),
    ):
        pass
    with opened(Options(**{**options, "ckpt": str(tmp_path / "other")}, overwrite=True)) as watcher:
        rounds(watcher)
    assert len(names(options)) == 3
    predicted = tmp_path / "predicted"
    assert run(f"ckpt={ckpt}", f"source={folder}", f"out={predicted}", "fpr=0.1") == 0
    with (
        pytest.raises(UserError, match=r"written by gaussad_pl.predict"),
        opened(Options(**{**options, "out": str(predicted)})),
    ):
        pass


# ------------------------------------------------------------------------------------------------------------ killed


def started(arguments: list[str]) -> None:
    watch.main(arguments)


@pytest.mark.slow
def test_each_image_is_judged_once_though_the_watcher_is_killed_again_and_again(ckpt: Path, tmp_path: Path) -> None:
    folder, out, count = tmp_path / "camera", tmp_path / "out", 60
    folder.mkdir()
    arguments = [f"ckpt={ckpt}", f"folder={folder}", f"out={out}", f"into={folder}", "settle=0.05", "batch_size=2"]
    arriving = iter(enumerate(drawn(count, 5)))
    lines = out / "predictions.jsonl"
    judged, deadline = 0, time.monotonic() + 300
    for target in (5, 6, 20, 21, 40, count):  # killed when so many are judged
        with forked(tmp_path / "log.txt", started, arguments) as process:
            while judged < target and time.monotonic() < deadline and process.exitcode is None:
                for i, image in [each for _, each in zip(range(2), arriving, strict=False)]:
                    image.save(tmp_path / "whole.png")
                    content = (tmp_path / "whole.png").read_bytes()
                    with (folder / f"{i:02}.png").open("wb", buffering=0) as file:
                        file.write(content[: len(content) // 2])
                        time.sleep(0.01)
                        file.write(content[len(content) // 2 :])
                time.sleep(0.002)
                judged = lines.read_bytes().count(b"\n") if lines.exists() else 0
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
        assert process.exitcode == -signal.SIGKILL, (tmp_path / "log.txt").read_text()
    with opened(watch.Options(str(ckpt), str(folder), str(out), str(folder), settle=0.05)) as watcher:
        rounds(watcher)  # the last kill may have left an image that is judged but not moved
    content = [json.loads(line) for line in lines.read_text().splitlines()]
    expected = {f"{i:02}.png": 1 for i in range(count)}
    assert Counter(Path(each["path"]).name for each in content) == expected
    verdicts = {name: sorted(Path(each["path"]).name for each in content if each["verdict"] == name) for name in SORTED}
    assert sorted_names(folder) == verdicts and not list(folder.glob("*.png"))
