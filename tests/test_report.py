"""The report of a set of runs: its figures and its files."""

from __future__ import annotations

import base64
import csv
import hashlib
import math
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from made_runs import FLAGS, browser_path, make_report, make_run, write_scores
from sklearn.metrics import roc_auc_score

from gaussad_pl import report
from gaussad_pl.reporting.figures import VARIABLES, histogram_figure, roc_figure
from gaussad_pl.reporting.runs import gather
from gaussad_pl.reporting.scores import Scores, read_scores

# --- scores and figures


def test_scores_are_read_back_or_not_at_all(tmp_path: Path) -> None:
    write_scores(tmp_path / "scores.csv", np.random.default_rng(0))
    found = read_scores(tmp_path / "scores.csv")
    assert found is not None and found.both_classes and roc_auc_score(found.labels, found.scores) > 0.8
    (tmp_path / "half.csv").write_text("path,kind,label,score\n/a.png,good,0,1.5\n/b.png,good,")
    for name in ("missing.csv", "half.csv"):
        assert read_scores(tmp_path / name) is None


def test_thousands_of_images_and_outliers_make_a_small_figure() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 10_000)
    scores = Scores(labels, rng.normal(2.0 * labels))
    scores.scores[-1] = 1e6
    for figure in (roc_figure({"r01": scores}, {}, "x"), histogram_figure({"r01": scores}, {}, "x")):
        assert figure is not None and len(figure.inline) < 60_000
    assert figure is not None and "last bin: and above" in figure.svg


def test_a_histogram_marks_the_thresholds_that_there_are(sweep: Path) -> None:
    scores = Scores(np.repeat([0, 1], 10), np.arange(20.0))
    for threshold, marked in ((7.0, True), (math.nan, False), (math.inf, False)):
        figure = histogram_figure({"r01": scores}, {"r01": threshold}, "x")
        assert figure is not None and ("threshold at 5 %" in figure.svg) == marked
    make_run(sweep / "a", calibration={"thresholds": {"0.05": {"value": 1.5}}})
    make_run(sweep / "b", operating_points={"0.05": {"threshold": 2.5}})
    make_run(sweep / "c", operating_points={"0.05": {"threshold": None}})
    found = {run.name: run.threshold for run in gather(sweep)[0]}
    assert (found["a"], found["b"]) == (1.5, 2.5) and math.isnan(found["c"])  # a: of an older version


def test_equal_scores_and_one_class_are_drawn_or_left_out() -> None:
    equal = Scores(np.zeros(3, dtype=np.int64), np.ones(3))
    assert roc_figure({"r01": equal}, {}, "x") is None and histogram_figure({"r01": equal}, {}, "x") is not None
    assert histogram_figure({}, {}, "x") is None


def test_each_run_has_a_colour_and_histograms_have_the_scale_of_their_run() -> None:
    labels = np.repeat([0, 1], 50)
    runs = {f"r0{i}": Scores(labels, 10.0**i * np.linspace(1, 2, 100)) for i in (1, 2, 3)}
    roc, histogram = roc_figure(runs, {}, "x"), histogram_figure(runs, {}, "x")
    assert roc is not None and histogram is not None
    for i in (1, 2, 3):
        assert f"var(--run-{i})" in roc.inline and f"r0{i}" in roc.inline and f"r0{i}" in histogram.inline
    assert all(f">{tick}<" in histogram.svg for tick in (20, 200, 2000))  # the end of each axis
    assert roc.pdf.startswith(b"%PDF") and roc.svg.startswith("<?xml") and "var(" not in roc.svg


def test_the_page_has_the_colours_of_the_drawings() -> None:
    css = (Path(report.__file__).parent / "reporting" / "page.css").read_text()
    for colour, variable in VARIABLES.items():
        assert css.count(f"{variable}: ") == 2 and f"{variable}: {colour};" in css  # light and dark


# --- the files


@pytest.mark.slow
def test_the_report_is_its_files_and_nothing_else(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(sweep.rglob("*"))
    monkeypatch.chdir(sweep.parent)
    make_report(monkeypatch, "dir=sweep")
    after = set(sweep.parent.rglob("*")) - {sweep}
    names = ("report.html", "report.md", "results.csv", "tables.tex", "curves")
    curves = {path for path in after if path.parent == sweep / "curves"}
    assert after - before - curves == {sweep / name for name in names}
    assert len(curves) == 24 and {path.suffix for path in curves} == {".svg", ".pdf"}
    assert sweep / "curves" / "01-screw-backbone=efficientnet-lite0-roc.pdf" in curves
    first = {path: path.stat().st_size for path in after - before}
    make_report(monkeypatch, "dir=sweep")  # again: its own files are no runs
    assert abs((sweep / "report.html").stat().st_size - first[sweep / "report.html"]) < 100


@pytest.mark.slow
def test_every_run_is_a_row_of_results_csv(sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (sweep / "early" / ".hydra").mkdir(parents=True)
    make_report(monkeypatch, f"dir={sweep}", f"out={tmp_path / 'out'}")
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["finished"] * 8 + ["unfinished"]
    row = rows[0]
    assert (row["category"], row["setting"], row["seed"]) == ("screw", "backbone=efficientnet_lite0", "0")
    assert float(row["frozen/image_auroc"]) == 0.8 and row["fine_tuning_used"] == "False"
    assert row["folder"] == "screw-efficientnet_lite0-0" and "torch==2.14.1" in row["versions"]
    assert row["command"].startswith("python -m gaussad_pl.train") and "epoch 1 of 2" in rows[1]["selection/finetuned"]


@pytest.mark.slow
def test_page_and_markdown_say_where_numbers_come_from(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_report(monkeypatch, f"dir={sweep}")
    for name in ("report.html", "report.md"):
        text = (sweep / name).read_text().replace("\\", "")
        for expected in (
            "python -m gaussad_pl.train +category=tile seed=1", "2.14.1", "tf_efficientnet_lite0.in1k", "bundled",
            "fine-tuning not used", "levels weighted by top_k", "tile-resnet18-1", "too few for significance",
        ):  # fmt: skip
            assert expected in text, (name, expected)


def test_the_page_is_one_file_without_the_network(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_report(monkeypatch, f"dir={sweep}")
    page = (sweep / "report.html").read_text()
    assert "http:" not in page and "https:" not in page
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy == (
        f"default-src 'none'; img-src data: 'self'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )
    assert page.count("<script") == 1 and not re.search(r'\son\w+="', page)  # nothing that the policy would stop
    assert page.count("data:image/webp;base64,") == 16 and page.count("<svg") == 12
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(s.startswith(("data:", "#")) or (sweep / s).exists() for s in sources)
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids)) and {s[1:] for s in sources if s.startswith("#")} <= set(ids)


def test_odd_characters_are_shown_and_linked_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = "a <b>&\"'|`*$x$ %41#?=,+ä"
    evil = "<script>alert(1)</script>"
    make_run(tmp_path / odd, category=evil, command=f"python 'x|y' {evil}")
    (tmp_path / "evil" / ".hydra").mkdir(parents=True)
    (tmp_path / "evil" / "error.txt").write_text(evil)
    make_report(monkeypatch, f"dir={tmp_path}")
    page, text = ((tmp_path / name).read_text() for name in ("report.html", "report.md"))
    assert page.count("<script") == 1 and evil not in page and "&lt;script&gt;" in page
    assert f"| {evil}" not in text and "x|y" in text.split("```")[1]
    rows = [line for line in text.splitlines() if line.startswith("| r01")]
    assert len(re.findall(r"(?<!\\)\|", rows[0])) == 12
    link = re.search(r'<a href="(a%20[^"#]*)">', page)
    assert link is not None and unquote(link[1]) == odd


def test_a_name_that_is_no_unicode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "run-\udcff")
    make_report(monkeypatch, f"dir={tmp_path}")
    assert "run-�" in (tmp_path / "report.html").read_text() and "run-%FF" in (tmp_path / "report.html").read_text()


def test_one_single_frozen_run_without_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "run", aupro=None)
    make_report(monkeypatch, f"dir={tmp_path / 'run'}")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "No run was fine-tuned." in page and "No run has pictures" in page and "AUPRO" not in page
    assert "Not fine-tuned: nothing to forget." in page


def test_a_run_without_bad_images_or_readable_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = {"train": 19, "validation": 5, "test_good": 6, "test_bad": 0}
    folder = make_run(tmp_path / "run", frozen=None, aupro=None, images=images)
    write_scores(folder / "scores.csv", np.random.default_rng(0), bad=0)
    (folder / "misses.png").write_bytes(b"no picture")
    make_report(monkeypatch, f"dir={tmp_path}")
    page = (tmp_path / "report.html").read_text()
    assert "No finished run has a metric." in page and "No ROC curve" in page


def test_only_unfinished_runs_make_a_report_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    make_report(monkeypatch, f"dir={tmp_path}")
    assert "Unfinished runs" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("name", ["", "missing"])
def test_a_folder_without_runs_is_a_mistake(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "config.yaml").write_text("")  # that of a logger
    with pytest.raises(SystemExit) as stop:
        make_report(monkeypatch, f"dir={tmp_path / name}")
    text = str(stop.value.code)
    assert text.startswith("error: ") and str(tmp_path / name) in text and "\n" not in text
    assert not list(tmp_path.rglob("report.*"))


def test_without_a_folder_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["report.py"])
    with pytest.raises(SystemExit) as stop:
        report.main()
    assert stop.value.code == "error: dir is missing: give it on the command line, as dir=..."
    assert not capsys.readouterr().err


@pytest.mark.slow
def test_the_report_needs_no_torch() -> None:
    code = "import sys, gaussad_pl.reporting.page, gaussad_pl.reporting.markdown; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- in a browser


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_real_browser(scheme: str, sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = browser_path()
    if path is None:
        pytest.skip("no chromium here")
    long = "a_category_with_a_very_long_name_that_does_not_break" * 3
    make_run(sweep / long, long, finetuned=0.5, command="python " + "x" * 500)
    make_report(monkeypatch, f"dir={sweep}")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        for width in (390, 1280):
            page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            complaints: list[str] = []
            page.on("console", lambda message: complaints.append(message.text))  # noqa: B023
            page.on("pageerror", lambda error: complaints.append(str(error)))  # noqa: B023
            page.on("request", lambda request: complaints.append(request.url))  # noqa: B023
            page.goto((sweep / "report.html").as_uri())
            page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
            page.evaluate("Promise.all([...document.images].map(image => image.decode()))")
            visited = [text for text in complaints if not text.startswith(("data:", "file:"))]
            assert visited == []
            assert page.evaluate("document.images.length") > 0
            assert page.evaluate("[...document.images].every(image => image.naturalWidth > 100)")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate("document.body.scrollWidth") <= width
            outside = "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, svg')"
            assert page.evaluate(f"{outside} && e.getBoundingClientRect().right > innerWidth + 1).length") == 0
            wide = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
            assert page.evaluate(f"{wide}.every(e => getComputedStyle(e).overflowX === 'auto')")
            assert page.evaluate(f"{wide}.length") > 0
            assert page.evaluate("[...document.querySelectorAll('figure svg')].every(e => e.clientHeight > 100)")
            ink, paper = page.evaluate(
                "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
            )
            light = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
            assert (light[0] < light[1]) == (scheme == "light") and abs(light[0] - light[1]) > 400
        page.click("a[href='#r01'] >> nth=0")
        assert page.evaluate("document.getElementById('r01').closest('details').open")
        browser.close()
