"""The gallery of every test image in a report, its slider of the rate, and the tables that sort and filter."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_runs import FLAGS, browser_path, make_report, make_run, study
from made_runs import points as stored_points
from PIL import Image

from gaussad_pl import report
from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.calibration.operating_points import operating_points
from gaussad_pl.calibration.threshold import RATES
from gaussad_pl.data.frame import Frame
from gaussad_pl.data.samples import Sample
from gaussad_pl.inference.heat import COLOURS, CONTOUR, OUTLINE, HeatScale
from gaussad_pl.reporting.gallery import Gallery, read_gallery
from gaussad_pl.results import thumbnails
from gaussad_pl.results.evaluation import Evaluation

SCALE = HeatScale.of(0.2, 0.6, np.zeros(1, np.float32))
GOOD, BAD = 14, 16


def evaluation(maps: bool = True) -> Evaluation:
    """Of 14 good and 16 bad images without files, whose scores overlap."""
    rng = np.random.default_rng(0)
    samples = [
        Sample(Path(f"/parts/{kind}/{i}.png"), kind) for kind, n in (("good", GOOD), ("spot", BAD)) for i in range(n)
    ]
    masks = torch.zeros(GOOD + BAD, 256, 256, dtype=torch.bool)
    masks[GOOD:, 160:220, 40:100] = True
    heat = torch.zeros(GOOD + BAD, 256, 256)
    heat[:, 20:80, 160:220] = 0.9
    scores = torch.from_numpy(np.concatenate([rng.normal(0, 1, GOOD), rng.normal(1.5, 1, BAD)]))
    return Evaluation(samples, scores[:, None].float(), scores, [0], heat if maps else None, masks, Frame(64, 64))


def images() -> Any:
    return [{"image": torch.full((3, 8, 8), 128, dtype=torch.uint8)}] * (GOOD + BAD)


def calibration(n: int) -> Calibration:
    scores = torch.from_numpy(np.random.default_rng(n).normal(0, 1, n))
    return Calibration.of(scores, torch.zeros(n, 1), "")


def gallery_run(folder: Path, n: int = 30, maps: bool = True, **changes: Any) -> Path:
    """A run with a gallery, calibrated with n good images."""
    run = make_run(folder, **changes)
    thumbnails.save(run, evaluation(maps), images(), SCALE if maps else None, calibration(n))
    return run


def gallery(top: Path) -> Gallery:
    found = read_gallery(study(top).runs[0])
    assert found is not None
    return found


@pytest.mark.parametrize("n", [5, 12, 30, 120])
def test_the_gallery_decides_as_the_operating_points_do(n: int, tmp_path: Path) -> None:
    gallery_run(tmp_path / "a", n)
    found, expected = gallery(tmp_path), evaluation()
    good, bad = (expected.scores[expected.labels == label] for label in (0, 1))
    points = operating_points(calibration(n), good, bad)
    decisions = {each.rate: each for each in found.decisions}
    assert list(decisions) == [percent / 100 for percent in range(1, 21)]
    for rate in RATES:
        point, decision = points[rate], decisions[rate]
        if point.rule == "none":
            assert decision.threshold is None and decision.line.startswith("undecided")
            assert {shot.verdict(None) for shot in found.shots} == {"undecided"}
            assert not any(shot.is_wrong(None) for shot in found.shots)
            continue
        counts = f"{point.bad_found} of {BAD} bad found, {point.good_lost} of {GOOD} good lost"
        assert decision.line == counts + (" (fitted gamma)" if point.rule == "gamma" else "")
        wrong = sum(shot.is_wrong(decision.threshold) for shot in found.shots)
        assert wrong == BAD - (point.bad_found or 0) + (point.good_lost or 0)
    assert {points[rate].rule for rate in RATES} & {"none", "gamma", "conformal"} >= (
        {"none"} if n == 5 else {"conformal"}
    )


def test_conformal_verdicts_are_those_of_the_p_values(tmp_path: Path) -> None:
    gallery_run(tmp_path / "a", 120)
    for decision in gallery(tmp_path).decisions:
        for shot in gallery(tmp_path).shots:
            assert (shot.verdict(decision.threshold) == "bad") == (shot.p_value <= decision.rate)


def test_each_test_image_has_a_small_picture_beside_its_map_with_mask_and_contour(tmp_path: Path) -> None:
    run = gallery_run(tmp_path / "a")
    files = sorted((run / "gallery").glob("*.webp"))
    assert len(files) == GOOD + BAD and sum(file.stat().st_size for file in files) < 10_000 * len(files)
    good, bad = (np.asarray(Image.open(files[index]).convert("RGB"), dtype=int) for index in (0, -1))
    assert good.shape == bad.shape == (thumbnails.SIDE, 2 * thumbnails.SIDE + thumbnails.GAP, 3)

    def marked(picture: np.ndarray, colour: tuple[int, int, int]) -> bool:
        return bool((np.abs(picture - colour).sum(axis=2) < 120).any())

    right = np.s_[:, thumbnails.SIDE + thumbnails.GAP :]
    assert marked(bad[right], OUTLINE) and not marked(good, OUTLINE) and marked(good[right], CONTOUR)
    assert not marked(bad[:, : thumbnails.SIDE], OUTLINE) and not marked(bad[:, : thumbnails.SIDE], CONTOUR)


def test_images_are_in_order_of_their_mistakes(tmp_path: Path) -> None:
    gallery_run(tmp_path / "a")
    found = gallery(tmp_path)
    bad, good = ([shot.score for shot in found.of(kind)] for kind in (True, False))
    assert bad == sorted(bad) and good == sorted(good, reverse=True) and len(bad) == BAD and len(good) == GOOD


def test_the_page_shows_every_image_and_its_verdict_at_five_percent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery_run(tmp_path / "runs" / "a b")
    make_report(monkeypatch, f"dir={tmp_path / 'runs'}", f"out={tmp_path / 'out'}")
    page = (tmp_path / "out" / "report.html").read_text()
    links = re.findall(r'<img src="(\.\./[^"]*)" alt="[^"]*" loading="lazy">', page)
    assert len(links) == GOOD + BAD
    assert all((tmp_path / "out" / link.replace("%20", " ")).is_file() for link in links)
    found = gallery(tmp_path / "runs")
    assert f"<span>5 %</span>: <span>{found.shown.line}</span>" in page
    wrong = sum(shot.is_wrong(found.shown.threshold) for shot in found.shots)
    assert 0 < wrong == page.count('class="wrong"')
    for shot in found.shots:
        assert f"<b>{shot.verdict(found.shown.threshold)}</b> p {shot.p_value:.3g}, score {shot.score:.3g}" in page
    assert "<span>0.2</span><span>threshold 0.6</span><span>1</span>" in page  # the one scale of all maps


def test_the_colour_bar_has_the_colours_of_the_maps() -> None:
    css = (Path(report.__file__).parent / "reporting" / "page.css").read_text()
    assert ", ".join(f"rgb({r} {g} {b})" for r, g, b in COLOURS) in css


def test_without_maps_the_gallery_has_the_images_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = gallery_run(tmp_path / "a", maps=False, aupro=None)
    assert Image.open(run / "gallery" / "0000.webp").size == (thumbnails.SIDE, thumbnails.SIDE)
    make_report(monkeypatch, f"dir={tmp_path}")
    page = (tmp_path / "report.html").read_text()
    assert page.count('loading="lazy"') == GOOD + BAD and 'class="heat' not in page


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"images": [{}], "thresholds": [], "scale": null}', "half", "nan", "rate", "scale"]
)
def test_a_damaged_record_leaves_out_its_gallery_and_nothing_else(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = gallery_run(tmp_path / "a") / "gallery" / "images.json"
    found = json.loads(record.read_text())
    images, thresholds = found["images"], found["thresholds"]
    broken = {
        "half": record.read_text()[:900],
        "nan": json.dumps({**found, "images": [{**images[0], "score": math.nan}, *images[1:]]}),
        "scale": json.dumps({**found, "scale": [0.2]}),
        "rate": json.dumps({**found, "thresholds": [{**thresholds[0], "rate": None}, *thresholds[1:]]}),
    }
    record.write_text(broken.get(content, content))
    make_report(monkeypatch, f"dir={tmp_path}")
    page = (tmp_path / "report.html").read_text()
    assert "data-score=" not in page and 'id="rate"' not in page and "Bad parts with the lowest scores" in page


def test_a_name_in_the_gallery_cannot_change_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = gallery_run(tmp_path / "a") / "gallery" / "images.json"
    found = json.loads(record.read_text())
    found["images"][0] |= {"path": '/parts/"><script>alert(1).png', "kind": "\udcff<b>"}
    record.write_text(json.dumps(found))
    make_report(monkeypatch, f"dir={tmp_path}")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<script") == 1 and "?&lt;b&gt;/&#34;&gt;&lt;script&gt;alert(1).png" in page


def test_the_mean_of_the_operating_points_stays_at_the_foot_of_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for category in ("screw", "tile"):
        make_run(tmp_path / category, category, operating_points=stored_points())
    make_report(monkeypatch, f"dir={tmp_path}")
    page = (tmp_path / "report.html").read_text()
    foot = re.search(r"Bad found and good lost.*?<tfoot>(.*?)</tfoot>", page, re.DOTALL)
    assert foot is not None and foot[1].count("<tr>") == 1 and '<th scope="row">mean</th>' in foot[1]


# --- in a browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = browser_path()
    if path is None:
        pytest.skip("no chromium here")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on eight runs, of which two have galleries, with many and with few calibration images."""
    top = tmp_path_factory.mktemp("reported")
    gallery_run(top / "many", 120, seed=10, frozen=0.95)
    gallery_run(top / "few", 5, category="tile", aupro=None)
    for seed in range(6):
        make_run(top / f"more-{seed}", seed=seed, frozen=(0.9, None, 0.7, 0.8, 1.0, 0.85)[seed], aupro=None)
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_report(monkeypatch, f"dir={top}")
    return top


@pytest.fixture
def page(chromium: Any, reported: Path) -> Iterator[Any]:
    page = chromium.new_page(viewport={"width": 1280, "height": 800})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto((reported / "report.html").as_uri())
    yield page
    page.close()
    assert complaints == []


@pytest.mark.slow
def test_the_slider_changes_verdicts_and_counts(page: Any, reported: Path) -> None:
    run = next(run for run in study(reported).runs if run.name == "many")
    found = read_gallery(run)
    assert found is not None
    card = page.locator("details.card", has_text="seed 10")
    lines = set()
    for decision in (found.decisions[0], found.decisions[19], found.decisions[4]):
        page.locator("#rate").fill(str(round(100 * decision.rate)))
        shown = card.locator(".counts").inner_text()
        assert shown == f"{round(100 * decision.rate)} %: {decision.line}"
        verdicts = card.locator(".shots b").all_inner_texts()
        assert verdicts == [shot.verdict(decision.threshold) for shot in found.shots]
        assert card.locator(".wrong").count() == sum(shot.is_wrong(decision.threshold) for shot in found.shots)
        lines.add(shown)
    assert len(lines) == 3
    few = page.locator("details.card", has_text="tile").locator("[data-score] b")
    assert set(few.all_text_contents()) == {"undecided"}
    page.locator("#rate").fill("20")
    assert set(few.all_text_contents()) == {"good", "bad"}


@pytest.mark.slow
def test_pictures_load_when_they_come_into_view(chromium: Any, reported: Path) -> None:
    page = chromium.new_page(viewport={"width": 1280, "height": 800})
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto((reported / "report.html").as_uri())
    page.wait_for_load_state("load")
    assert not [url for url in requests if "/few/gallery/" in url]  # in a gallery that is closed
    closed = page.locator("details.card", has_text="tile")
    with page.expect_request("**/few/gallery/*.webp"):
        closed.locator("summary").click()
        closed.locator("img").last.scroll_into_view_if_needed()
    page.close()


@pytest.mark.slow
def test_without_scripts_the_page_is_complete_and_has_no_dead_controls(chromium: Any, reported: Path) -> None:
    page = chromium.new_context(java_script_enabled=False).new_page()
    page.goto((reported / "report.html").as_uri())
    assert page.locator(".shots figure").count() == 2 * (GOOD + BAD)
    assert page.locator(".counts").first.inner_text().startswith("5 %: ")
    assert not page.locator("#rate").is_visible() and page.locator("button, .filter").count() == 0
    page.context.close()


def column(table: Any, number: int) -> list[str]:
    return [text.strip() for text in table.locator(f"tbody tr > :nth-child({number})").all_inner_texts()]


@pytest.mark.slow
def test_a_click_on_a_head_sorts_by_number_or_text_with_unknown_values_last(page: Any) -> None:
    table = page.locator("table.slim")
    heads = table.locator("thead th")
    position = heads.all_inner_texts().index("image AUROC\nfinal") + 1
    button = heads.nth(position - 1).locator("button")
    button.click()
    assert column(table, position) == ["70.0", "80.0", "85.0", "90.0", "90.0", "95.0", "100.0", "–"]
    assert heads.nth(position - 1).get_attribute("aria-sort") == "ascending"
    button.press("Enter")
    assert column(table, position) == ["100.0", "95.0", "90.0", "90.0", "85.0", "80.0", "70.0", "–"]
    heads.nth(1).locator("button").click()
    assert column(table, 2) == ["screw"] * 7 + ["tile"]
    assert table.locator("[aria-sort]").count() == 1
    heads.nth(0).locator("button").click()
    assert column(table, 1) == [f"r0{i}" for i in range(1, 9)]


@pytest.mark.slow
def test_a_filter_keeps_the_rows_with_all_its_words(page: Any) -> None:
    field = page.locator(".filter:has(+ .scroll > table.slim)")
    rows = page.locator("table.slim tbody tr")
    assert rows.count() == 8
    field.fill("TILE 0")
    assert [row.is_visible() for row in rows.all()].count(True) == 1 and "tile" in rows.last.inner_text()
    field.fill("")
    assert all(row.is_visible() for row in rows.all())


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_gallery_fits_the_screen(width: int, scheme: str, chromium: Any, reported: Path) -> None:
    page = chromium.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.goto((reported / "report.html").as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator(".shots img").nth(20).scroll_into_view_if_needed()
    page.evaluate("document.querySelectorAll('.shots img')[20].decode()")  # an error if the policy forbids its file
    assert page.evaluate("document.querySelectorAll('.shots img')[20].naturalWidth") > 300
    slider, counts = (page.locator(each).first.bounding_box() for each in ("#rate", ".counts"))
    assert 0 <= slider["y"] < counts["y"] < 150 and slider["width"] > 120  # both stay in view
    page.locator("#runs").scroll_into_view_if_needed()
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    assert page.locator("#rate").bounding_box()["y"] < 0  # as long as the gallery is
    page.close()
