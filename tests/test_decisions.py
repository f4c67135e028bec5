"""Decisions at the end of a run: what metrics.json and the console say of them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.data.frame import Frame
from gaussad_pl.data.samples import Sample
from gaussad_pl.inference.runs import next_command
from gaussad_pl.results.decisions import contour, decisions, notes, show
from gaussad_pl.results.evaluation import Evaluation


def made(good: int = 41, bad: int = 119, shift: float = 0.0, n: int = 120, **changes: Any) -> dict[str, Any]:
    """Decisions on evenly spread scores of good images from 0 to 1, moved by ``shift``, and of bad ones from 0 to 2."""
    kinds = ["good"] * good + ["spot"] * bad
    samples = [Sample(Path(f"/parts/{kind}/{i}.png"), kind) for i, kind in enumerate(kinds)]
    scores = torch.cat([torch.linspace(0, 1, good) + shift, torch.linspace(0, 2, bad)]).double()
    maps = torch.arange(len(kinds) * 16.0).reshape(-1, 4, 4)
    evaluation = Evaluation(
        samples, torch.rand(len(kinds), 2), scores, [1, 4], maps, torch.zeros_like(maps).bool(), Frame(8, 8)
    )
    known = Calibration.of(torch.linspace(0, 1, n), torch.rand(n, 2), "some images")
    return decisions(known, evaluation, limit=4.5, **changes)


def printed(results: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=80, markup=False)
    show(console, results)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_they_are_stored_as_numbers_for_each_rate() -> None:
    found = json.loads(json.dumps(made(), allow_nan=False))
    assert list(found["operating_points"]) == ["0.01", "0.05", "0.1", "0.2"]
    point = found["operating_points"]["0.05"]
    assert point["rule"] == "conformal" and point["contradicted"] is False and point["good_from"] == "test"
    assert (point["good_lost"], point["good"], point["bad"]) == (2, 41, 119) and 50 < point["bad_found"] < 70
    assert found["calibration"]["scheme"] == "some images" and found["calibration"]["test_good"] == 41
    assert 0 <= found["calibration"]["gamma_misfit_p"] <= 1 and made(n=5)["calibration"]["gamma_misfit_p"] is None


def test_the_table_fits_a_terminal_and_shows_counts_intervals_and_the_contour() -> None:
    text = printed(made())
    assert max(map(len, text.splitlines()[:14])) <= 80 and "…" not in text
    for part in ("1 %", "5 %", "10 %", "2 of 41", "of 119", "–", "conformal", "contour", "0.1 % of", "no", "p = "):
        assert part in text


def test_false_alarms_beyond_chance_are_a_warning() -> None:
    assert not any("WARNING" in line for line in notes(made()))
    (line,) = [line for line in notes(made(shift=0.5)) if "more false alarms" in line]
    assert line.startswith("WARNING: the 41 good test images") and "a target of 1 %, 5 %, 10 %, 20 %" in line
    assert " YES " in printed(made(shift=0.5))


def test_images_that_look_different_are_a_warning() -> None:
    (line,) = [line for line in notes(made(shift=2)) if "do not look like" in line]
    assert "score" in line


def test_what_is_not_known_is_said() -> None:
    def said(results: dict[str, Any]) -> list[str]:
        return [line for line in notes(results) if line.startswith("not known")]

    assert said(made()) == []
    assert [line.split(",")[0] for line in said(made(bad=0))] == ["not known: how many bad parts are found"]
    assert [line.split(",")[0] for line in said(made(good=0))] == ["not known: the false alarms on new good images"]
    assert [line.split(",")[0] for line in said(made(good=4))] == ["not known: whether the targets hold"]
    assert len(said(made(tested=False))) == 2  # images of training count for nothing
    assert made(tested=False)["operating_points"]["0.1"]["good"] == 120


def test_rates_without_a_guarantee_are_named_with_the_images_they_need() -> None:
    (line,) = [line for line in notes(made(n=30)) if "without a guarantee" in line]
    assert line.startswith("at 1 %") and line.endswith("needs 99 calibration images, there are 30")
    assert len([line for line in notes(made(n=7)) if "every image is undecided" in line]) == 3


def test_undecided_images_are_not_counted_as_good() -> None:
    row = next(line for line in printed(made(n=7)).splitlines() if " none " in line)
    assert [cell.strip() for cell in row.split("│")[2:-1]] == ["-", "none", "-", "-", "-"]


def test_the_default_rate_is_in_the_table_and_said() -> None:
    (line,) = [line for line in notes(made(n=30)) if "by default" in line]
    assert "fpr=0.1, the smallest of" in line and line.endswith(
        "of 30 calibration scores; 0.05 needs 39 images; 0.01 needs 199 images"
    )
    assert not any("by default" in line for line in notes(made(n=3)))


def test_the_contour_marks_a_share_of_good_pixels() -> None:
    assert made()["contour"] == {"threshold": 4.5, "target": 0.001, "observed": pytest.approx(1 - 5 / (41 * 16))}
    assert contour(torch.zeros(0), 1.0)["observed"] is None
    assert contour(torch.ones(32), 1.0)["observed"] == 0  # on the contour is not beyond it
    assert contour(torch.ones(32), 0.5)["observed"] == 1


def test_the_next_command_can_be_pasted() -> None:
    assert " -m gaussad_pl.predict ckpt='runs/my parts/1' source=" in next_command(Path("runs/my parts/1"))
