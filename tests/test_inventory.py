"""The list of a run's files, what has changed in it, and its digest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gaussad_pl.data.inventory import difference, digest, inventory
from gaussad_pl.data.samples import scan_folder, scan_mvtec
from gaussad_pl.errors import UserError


def test_every_image_and_mask_is_listed_with_its_size(parts: Path) -> None:
    files = inventory(scan_mvtec(parts / "screw"))
    expected = {path.as_posix(): path.stat().st_size for path in (parts / "screw").rglob("*.png")}
    assert files == expected and list(files) == sorted(files) and len(files) == 24 + 12 + 6


def test_a_relative_root_gives_the_same_list(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = inventory(scan_mvtec(parts / "screw"))
    monkeypatch.chdir(parts)
    assert inventory(scan_mvtec(Path("screw"))) == expected


def test_a_file_that_is_gone_is_named(parts: Path, tmp_path: Path) -> None:
    shutil.copytree(parts / "screw", tmp_path / "screw")
    samples = scan_mvtec(tmp_path / "screw")
    samples.train[3].path.unlink()
    with pytest.raises(UserError, match="cannot read .*003.png .No such file"):
        inventory(samples)


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({"a": 1}, {"a": 1}, ""),
        ({}, {}, ""),
        ({"x/b": 1, "x/a": 1, "c": 1}, {"c": 1}, "2 files are gone (first: x/a)"),
        ({"a": 1}, {"a": 2}, "1 file has another size (a)"),
        (
            {"a": 1, "b": 1, "c": 1, "d": 1, "e": 1},
            {"d": 2, "e": 2, "f": 1},
            "3 files are gone (first: a), 1 is new (f), 2 have another size (first: d)",
        ),
    ],
)
def test_a_difference_is_one_line(before: dict[str, int], now: dict[str, int], expected: str) -> None:
    assert difference(before, now) == expected


def test_the_digest_does_not_know_the_root_but_every_name_and_size(parts: Path, tmp_path: Path) -> None:
    shutil.copytree(parts / "screw", tmp_path / "far" / "away")
    here, there = (inventory(scan_mvtec(folder)) for folder in (parts / "screw", tmp_path / "far" / "away"))
    assert digest(here) == digest(there) == digest(dict(reversed(here.items()))) and len(digest(here)) == 64
    name = next(iter(here))
    assert digest({**here, name: here[name] + 1}) != digest(here)
    assert digest({key: size for key, size in here.items() if key != name}) != digest(here)
    assert digest({key.replace("000", "x"): size for key, size in here.items()}) != digest(here)
    assert digest({}) != digest(here)


def test_names_that_are_not_utf8_survive_json(tmp_path: Path) -> None:
    (tmp_path / "ok").mkdir()
    try:
        for name in (b"\xff.png", b"b.png"):
            (tmp_path / "ok" / name.decode("utf-8", "surrogateescape")).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    files = inventory(scan_folder(tmp_path / "ok", None, None))
    assert difference(json.loads(json.dumps(files)), files) == "" and len(digest(files)) == 64
