"""Files are whole or not there, and JSON is JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gaussad_pl.errors import UserError
from gaussad_pl.files import replacing, write_json, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), replacing(path) as partial:
        partial.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(UserError, match="cannot write .*a.txt .No space left on device"), replacing(path) as partial:
        partial.symlink_to("/dev/full")
        partial.write_text("much")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write .*No such file"):
        write_text(tmp_path / "gone" / "a.txt", "x")


def test_json_holds_null_and_a_reason_instead_of_nan(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"a": float("nan"), "b": {"c": [1.5, float("-inf")]}, "d": True, "e": None})

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    found = json.loads(path.read_text(), parse_constant=refuse)
    assert found == {
        "a": None,
        "b": {"c": [1.5, None]},
        "d": True,
        "e": None,
        "not_finite": {"a": "nan", "b.c.1": "-inf"},
    }
