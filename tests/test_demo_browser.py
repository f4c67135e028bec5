"""The page to try a detector, in a real browser."""

# ruff: noqa: F811  # a fixture of another file has the name of the arguments that it is

from __future__ import annotations

import csv
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import FLAGS, browser_path
from test_demo_page import bad_part, detector, undecided  # noqa: F401  # detector and undecided are fixtures

from gaussad_pl.demo import Demo
from gaussad_pl.inference.detector import Detector
from gaussad_pl.inference.rows import Row, record
from gaussad_pl.web import handler
from gaussad_pl.web.server import Server

pytestmark = pytest.mark.slow

Open = Callable[..., Any]
DROP = """([kind, names, bytes]) => {
    const held = new DataTransfer();
    for (const name of names) held.items.add(new File([new Uint8Array(bytes)], name));
    const options = {clipboardData: held, dataTransfer: held, bubbles: true};
    const event = kind === "paste" ? new ClipboardEvent(kind, options) : new DragEvent(kind, options);
    document.getElementById("hint").dispatchEvent(event);
}"""


@contextmanager
def serving(detector: Detector, fpr: float) -> Iterator[str]:
    server = Server(Demo(detector, fpr), "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def url(detector: Detector) -> Iterator[str]:
    with serving(detector, 0.1) as url:
        yield url


@pytest.fixture(scope="module")
def playwright() -> Any:
    return pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


@pytest.fixture(scope="module")
def chromium(playwright: Any) -> Iterator[Any]:
    path = browser_path()
    if path is None:
        pytest.skip("no chromium here")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=[*FLAGS, "--use-fake-device-for-media-stream"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium: Any, url: str) -> Iterator[Open]:
    """Open the page; in the end, it must have complained of nothing and loaded nothing from elsewhere."""
    contexts, complaints, visited = [], [], []

    def opened(address: str = url, width: int = 1280, scheme: str = "light", **options: Any) -> Any:
        script = options.pop("script", "")
        context = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        if script:
            page.add_init_script(script)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: visited.append((request.url, address)))
        page.goto(address)
        page.wait_for_selector("#fpr option", state="attached")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [text for text in complaints if not re.search("status of (400|413)|ERR_FAILED", text)] == []
    assert all(each.startswith((address, "data:", f"blob:{address}")) for each, address in visited)


def images(parts: Path) -> list[Path]:
    return [*sorted((parts / "screw" / "test" / "good").iterdir())[:2], bad_part(parts)]


def judged(page: Any, playwright: Any, count: int) -> list[list[str]]:
    """Name and verdict of each row of the table, in the order of judging."""
    playwright.expect(page.locator("#rows tr")).to_have_count(count, timeout=60_000)
    playwright.expect(page.locator("#progress")).to_be_empty()
    found: list[list[str]] = page.evaluate(
        "[...document.querySelectorAll('#rows tr')].map(row => [...row.cells].slice(1, 3).map(cell => cell.innerText))"
    )
    return found[::-1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_an_image_has_the_verdict_of_the_detector_and_its_map_lies_on_it(
    width: int, scheme: str, opened: Open, detector: Detector, parts: Path, playwright: Any
) -> None:
    page = opened(width=width, scheme=scheme)
    assert page.input_value("#fpr") == "0.1"
    page.set_input_files("#file", images(parts))
    judged(page, playwright, 3)
    for rate in (0.1, 0.2):
        page.select_option("#fpr", str(rate))
        (bad,) = detector(bad_part(parts), fpr=rate)
        assert page.inner_text("#verdict").lower() == bad.verdict == page.get_attribute("#verdict", "class")
        assert page.inner_text("#line") == detector.threshold(rate).line
        for name, value in (("p_value", bad.p_value), ("score", bad.score), ("threshold", bad.threshold)):
            assert float(page.inner_text(f"#{name}")) == pytest.approx(value, rel=0.01)
    photo, heat = (page.locator(each).bounding_box() for each in ("#photo", "#heat"))
    assert photo is not None and photo == heat and photo["width"] > 100
    page.get_by_role("slider", name="Map opacity").fill("30")
    assert page.evaluate("getComputedStyle(document.getElementById('heat')).opacity") == "0.3"
    page.get_by_label("Manual threshold").press("ArrowLeft")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    box, table = page.locator(".scroll").bounding_box(), page.locator("table").bounding_box()
    assert box is not None and table is not None and table["width"] <= box["width"] + 1


def test_several_images_are_judged_in_turn_and_each_row_shows_its_map_again(
    opened: Open, detector: Detector, parts: Path, tmp_path: Path, playwright: Any
) -> None:
    (tmp_path / "notes.png").write_text("no image")
    files = [*images(parts), tmp_path / "notes.png"]
    page = opened()
    page.set_input_files("#file", files)
    rows = judged(page, playwright, 4)
    expected = [[path.name, one.verdict] for path, one in zip(files[:3], detector(files[:3], fpr=0.1), strict=True)]
    assert rows == [*expected, ["notes.png", "error"]]
    assert page.inner_text("#verdict").lower() == "error" and page.is_hidden("#facts") and page.is_hidden("#stack")
    assert "cannot be read as an image" in page.inner_text("#reason")
    assert "4 images judged" in page.text_content("#said") and "1 unreadable" in page.text_content("#said")
    seen = set()
    for i, (name, verdict) in enumerate(expected):
        page.locator("#rows button").nth(-1 - i).press("Enter")
        assert page.inner_text("#verdict").lower() == verdict and page.is_visible("#heat")
        assert page.locator("#rows tr[aria-current=true] button").inner_text() == name == page.inner_text("#shown")
        assert page.text_content("#said").startswith(f"{name}: {verdict}, p-value ")
        seen.add(page.get_attribute("#heat", "src"))
    assert len(seen) == 3


def test_the_downloads_have_the_rows_of_predict(
    opened: Open, detector: Detector, parts: Path, tmp_path: Path, playwright: Any
) -> None:
    strange = tmp_path / 'a "strange", name.png'
    strange.write_bytes(bad_part(parts).read_bytes())
    (tmp_path / "notes.png").write_text("no image")
    files = [*images(parts), strange, tmp_path / "notes.png"]
    page = opened()
    page.set_input_files("#file", files)
    judged(page, playwright, 5)
    page.select_option("#fpr", "0.2")
    texts = {}
    for name in ("csv", "jsonl"):
        with page.expect_download() as download:
            page.click(f"#{name}")
        assert download.value.suggested_filename == f"predictions.{name}"
        texts[name] = Path(download.value.path()).read_text(encoding="utf-8")
    rows = [json.loads(line) for line in texts["jsonl"].splitlines()]
    error = rows[-1].pop("error")
    assert "cannot be read" in error
    for i, (row, prediction) in enumerate(zip(rows[:4], detector(files[:4], fpr=0.2), strict=True)):
        expected = record(Row(i, Path(files[i].name), prediction), detector.levels)
        assert list(row) == list(expected) and row["distances"] == pytest.approx(expected.pop("distances"))
        assert {name: row[name] for name in expected} == pytest.approx(expected)
    nothing = {"score": None, "p_value": None, "threshold": None, "distances": None}
    assert rows[-1] == {"path": "notes.png", "verdict": "error", **nothing}
    table = list(csv.DictReader(texts["csv"].splitlines()))
    levels = [f"level_{level}" for level in detector.levels]
    assert list(table[0]) == ["path", "score", "p_value", "verdict", "threshold", *levels, "error"]
    for line, row in zip(table, rows, strict=True):
        assert (line["path"], line["verdict"]) == (row["path"], row["verdict"])
        distances = row["distances"] or {}
        numbers = [row["score"], row["p_value"], row["threshold"], *(distances.get(str(i)) for i in detector.levels)]
        found = [line[name] for name in ("score", "p_value", "threshold", *levels)]
        assert [float(each) if each else None for each in found] == numbers
    assert table[-1]["error"] == error


def test_a_threshold_by_hand_is_counted_on_the_calibration_images_and_changes_no_verdict(
    opened: Open, detector: Detector, parts: Path, playwright: Any
) -> None:
    page, scores = opened(), detector.calibration.scores.numpy()
    page.set_input_files("#file", images(parts))
    before = judged(page, playwright, 3)
    assert page.locator("td.by_hand").first.is_hidden()
    counts = set()
    slider = page.get_by_role("slider", name="Manual threshold")
    for share in (0.02, 0.4, 0.99):
        low, high = (float(slider.get_attribute(end) or "nan") for end in ("min", "max"))
        slider.fill(str(low + share * (high - low)))
        value = float(slider.input_value())
        count, n = int((scores > value).sum()), len(scores)
        assert f"{count} of {n} good calibration images" in page.inner_text("#effect")
        assert f"up to {float(f'{100 * (count + 1) / (n + 1):.2g}'):g} %" in page.inner_text("#effect")
        sides = [row.locator(".by_hand").inner_text() for row in reversed(page.locator("#rows tr").all())]
        found = [prediction.score > value for prediction in detector(images(parts))]
        assert sides == ["above" if each else "below" for each in found]
        counts.add(count)
    assert len(counts) > 1 and judged(page, playwright, 3) == before
    page.get_by_role("button", name="Back to the rate").click()
    assert page.locator("td.by_hand").first.is_hidden()
    assert float(slider.input_value()) == pytest.approx(detector.threshold(0.1).value, abs=np.ptp(scores) / 100)


def test_the_count_above_a_threshold_is_exact_where_scores_are_equal(opened: Open) -> None:
    count = "async value => (await import('./threshold.js')).above([1, 2, 2, 2, 3], value)"
    page = opened()
    found = [page.evaluate(count, value) for value in (0, 1, 1.5, 2, 2.5, 3, 4)]
    assert found == [5, 4, 4, 1, 1, 0, 0]


def test_undecided_stays_undecided_whatever_the_slider_says(
    undecided: Detector, opened: Open, parts: Path, playwright: Any
) -> None:
    with serving(undecided, 0.01) as url:
        page = opened(url)
        assert page.inner_text("#effect") == "No threshold."
        page.set_input_files("#file", images(parts))
        for share in (None, 0.1, 0.9):
            if share is not None:
                low, high = (float(page.get_attribute("#hand", end)) for end in ("min", "max"))
                page.fill("#hand", str(low + share * (high - low)))
            assert {verdict for _, verdict in judged(page, playwright, 3)} == {"undecided"}
            assert page.inner_text("#verdict").lower() == "undecided" == page.get_attribute("#verdict", "class")
            assert page.inner_text("#reason") == undecided.threshold(0.01).reason
        page.select_option("#fpr", "0.2")
        playwright.expect(page.locator("#verdict")).to_have_class("bad")
        assert page.is_hidden("#reason") and page.is_hidden("#notice")


def test_a_server_that_is_gone_loses_no_image(opened: Open, parts: Path, playwright: Any) -> None:
    page = opened()
    page.route("**/detect", lambda route: route.abort())
    page.set_input_files("#file", images(parts))
    playwright.expect(page.locator("#error")).to_have_text("The server does not respond. Is it still running?")
    assert page.locator("#rows tr").count() == 0
    page.unroute("**/detect")
    page.get_by_role("button", name="Resume (3 left)").click()
    assert [name for name, _ in judged(page, playwright, 3)] == [path.name for path in images(parts)]
    assert page.is_hidden("#error") and page.is_hidden("#pause")


def test_judging_can_be_paused(opened: Open, parts: Path, playwright: Any) -> None:
    page, held = opened(), []
    page.route("**/detect", lambda route: held.append(route))
    page.set_input_files("#file", images(parts))
    page.get_by_role("button", name="Pause").click()
    held.pop().continue_()
    playwright.expect(page.locator("#rows tr")).to_have_count(1)
    assert page.inner_text("#progress") == "1 of 3 judged" and not held
    page.unroute("**/detect")
    page.get_by_role("button", name="Resume (2 left)").click()
    judged(page, playwright, 3)


def test_images_are_bounded_in_number_and_their_maps_in_memory(opened: Open, parts: Path, playwright: Any) -> None:
    page, content = opened(), list(bad_part(parts).read_bytes())
    page.evaluate(DROP, ["drop", [f"{i}.png" for i in range(203)], content])
    playwright.expect(page.locator("#error")).to_contain_text(
        "At most 200 images are accepted at once; 3 were left out"
    )
    assert {verdict for _, verdict in judged(page, playwright, 200)} == {"bad"} and page.is_visible("#error")
    page.evaluate(DROP, ["paste", ["pasted.png"], content])
    assert judged(page, playwright, 201)[-1] == ["pasted.png", "bad"] and page.is_hidden("#error")
    for place, shown in ((-2, "1.png"), (-1, "0.png (its map is no longer kept)")):
        page.locator("#rows tr").nth(place).click()
        assert page.inner_text("#shown") == shown and page.is_visible("#stack") == (place == -2)


def test_a_file_that_is_too_large_or_empty_is_a_row_with_the_reason(
    opened: Open, tmp_path: Path, playwright: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler, "LARGEST", 2**20)
    (tmp_path / "large.png").write_bytes(bytes(2**21))
    page = opened()
    page.set_input_files("#file", tmp_path / "large.png")
    assert judged(page, playwright, 1) == [["large.png", "error"]]
    assert page.inner_text("#reason") == "The file is 2 MB; at most 1 MB are accepted."
    page.evaluate(DROP, ["drop", ["empty.png"], []])
    assert judged(page, playwright, 2)[-1] == ["empty.png", "error"]
    assert page.inner_text("#reason") == "The file is empty."


def test_a_picture_of_the_camera_is_judged(opened: Open, playwright: Any) -> None:
    page = opened(permissions=["camera"])
    page.get_by_role("button", name="Use the camera").press("Enter")
    playwright.expect(page.get_by_role("button", name="Judge this picture")).to_be_focused()
    page.keyboard.press("Enter")
    ((name, verdict),) = judged(page, playwright, 1)
    assert name == "camera-001.png" and verdict in ("good", "bad") and page.is_visible("#heat")
    page.get_by_role("button", name="Close the camera").click()
    assert page.is_hidden("#viewfinder") and page.evaluate("document.getElementById('video').srcObject") is None


ABSENT = "Object.defineProperty(Navigator.prototype, 'mediaDevices', {get: () => undefined})"
BROKEN = "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', '%s'); }"


@pytest.mark.parametrize(
    ("script", "line"),
    [
        (ABSENT, "The camera is not available: browsers allow it on localhost and https pages only."),
        (BROKEN % "NotAllowedError", "Access to the camera was denied."),
        (BROKEN % "NotFoundError", "No camera was found."),
        (BROKEN % "NotReadableError", "The camera is in use by another program."),
        (BROKEN % "AbortError", "The camera cannot be used (AbortError)."),
    ],
)
def test_a_camera_that_cannot_be_had_is_one_line_and_nothing_is_lost(
    script: str, line: str, opened: Open, parts: Path, playwright: Any
) -> None:
    page = opened(script=script)
    page.set_input_files("#file", images(parts))
    judged(page, playwright, 3)
    page.click("#camera")
    playwright.expect(page.locator("#error")).to_contain_text(line)
    assert page.is_hidden("#viewfinder") and len(judged(page, playwright, 3)) == 3 and page.is_visible("#stack")


def test_everything_that_can_be_operated_has_a_name_and_the_focus(opened: Open, parts: Path, playwright: Any) -> None:
    page = opened()
    page.set_input_files("#file", images(parts))
    judged(page, playwright, 3)
    for role, name in [
        ("button", "Choose images of parts"), ("button", "Use the camera"), ("combobox", "False-alarm rate"),
        ("slider", "Manual threshold"), ("slider", "Map opacity"), ("button", "CSV"), ("button", "JSON lines"),
        ("button", images(parts)[0].name), ("status", ""), ("columnheader", "Picture"), ("img", "Anomaly map"),
    ]:  # fmt: skip
        assert page.get_by_role(role, name=name).count() >= 1, name
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert {"file", "camera", "fpr", "hand", "opacity", "csv", "jsonl", bad_part(parts).name} <= reached
