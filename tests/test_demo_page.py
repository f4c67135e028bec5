"""The page to try a detector: what the server answers, and what a real browser makes of it."""

from __future__ import annotations

import json
import math
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

from gaussad_pl import demo
from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.data.frame import Frame
from gaussad_pl.data.images import read_image
from gaussad_pl.data.loading import load_images
from gaussad_pl.demo import Demo
from gaussad_pl.density.moments import moments
from gaussad_pl.errors import UserError
from gaussad_pl.inference.detector import Detector
from gaussad_pl.model.model import GaussianModel
from gaussad_pl.web import handler
from gaussad_pl.web import server as serving
from gaussad_pl.web.senders import is_same_site, is_served, names_of
from gaussad_pl.web.server import Server

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip

DROP = """bytes => {
    const held = new DataTransfer();
    held.items.add(new File([new Uint8Array(bytes)], "part.png"));
    document.getElementById("drop").dispatchEvent(new DragEvent("drop", {dataTransfer: held, bubbles: true}));
}"""


@pytest.fixture(scope="module")
def detector(parts: Path) -> Detector:
    torch.manual_seed(0)
    good = sorted((parts / "screw" / "train" / "good").iterdir())
    images = load_images(good, Frame(64, 64), None, "")  # type: ignore[call-overload]
    model = GaussianModel(TINY, segmentation={"form": "shared", "map_levels": [1, 2], "combine": "both"}).eval()
    with torch.no_grad():
        for gaussian, level in zip(model.gaussians, model.backbone.pooled(images), strict=True):
            gaussian.fit(moments(level))
        assert model.segmenter is not None
        model.segmenter.observe(model.backbone(images))
        model.segmenter.estimate()
        found = model(images)
        assert found.maps is not None
        model.segmenter.threshold.copy_(found.maps.flatten().kthvalue(int(0.99 * found.maps.numel())).values)
    return Detector.of(model, Calibration.of(found.scores, found.distances, "some images"), {"dataset": "screw"})


@pytest.fixture
def server(detector: Detector) -> Iterator[Server]:
    served = Server(Demo(detector, 0.1), "127.0.0.1", 0)
    threading.Thread(target=served.serve_forever, args=(0.05,), daemon=True).start()
    yield served
    served.shutdown()
    served.server_close()


def ask(server: Server, path: str, body: bytes | None = None) -> tuple[int, Any]:
    request = Request(f"http://127.0.0.1:{server.server_port}{path}", data=body)
    try:
        with urlopen(request) as answer:
            return answer.status, json.loads(answer.read())
    except HTTPError as error:
        return error.code, json.loads(error.read())


def bad_part(parts: Path) -> Path:
    return sorted((parts / "screw" / "test" / "spot").iterdir())[0]


def test_the_answer_is_what_the_detector_says(server: Server, detector: Detector, parts: Path) -> None:
    path = bad_part(parts)
    (prediction,) = detector(path, fpr=0.2)
    status, content = ask(server, "/detect?fpr=0.2", path.read_bytes())
    assert status == 200
    assert content["score"] == pytest.approx(prediction.score) and content["p_value"] == pytest.approx(
        prediction.p_value
    )
    assert (content["verdict"], content["threshold"]) == (prediction.verdict, prediction.threshold)
    assert content["heat"].startswith("data:image/png") and content["photo"].startswith("data:image/png")
    _, content = ask(server, "/threshold?fpr=0.3")
    assert content["threshold"] == detector.threshold(0.3).value


@pytest.fixture
def undecided(detector: Detector) -> Detector:
    """A detector with seven calibration images."""
    known = detector.calibration
    return Detector(detector.model, Calibration.of(known.scores[:7], known.distances[:7], "7 images"), {})


def test_the_answer_is_undecided_where_nothing_could_have_been_bad(undecided: Detector, parts: Path) -> None:
    page = Demo(undecided, 0.01)
    reason = undecided.threshold(0.01).reason
    assert (page.about()["threshold"], page.about()["undecided"]) == (None, reason)
    with bad_part(parts).open("rb") as file:
        content = page.detect(file, 0.01)
    assert (content["verdict"], content["undecided"], content["threshold"]) == ("undecided", reason, None)
    assert page.threshold(0.2)["undecided"] == ""


def test_the_page_starts_at_the_default_rate_and_says_why(undecided: Detector) -> None:
    about = Demo(undecided, None).about()
    assert about["fpr"] == 0.2 and "that 7 images guarantee; 0.1 needs 9" in about["line"]


def test_the_colour_bar_has_the_scale_of_the_maps_with_the_threshold_in_the_middle(detector: Detector) -> None:
    known = copy(detector)
    known.median, known.limit = 4.0, 9.0
    scale = Demo(known, 0.1).about()["scale"]
    assert scale["ticks"] == [4, 9, 14] and "0.1 % of good pixels" in scale["legend"]
    bar = np.asarray(Image.open(BytesIO(b64decode(scale["bar"].split(",")[1]))))
    assert (bar[0, : bar.shape[1] // 4] == 255).all() and (bar[0, bar.shape[1] // 2] != 255).any()
    known.limit = math.inf
    assert Demo(known, 0.1).about()["scale"] is None


def test_pictures_keep_the_proportions_of_the_image(detector: Detector, tmp_path: Path) -> None:
    tall = Image.new("RGB", (300, 100))
    tall.getexif()[0x0112] = 6  # the camera was turned
    tall.save(tmp_path / "tall.jpg", exif=tall.getexif())
    pixels, photo = demo.read((tmp_path / "tall.jpg").open("rb"), detector.frame)
    assert pixels.shape == (3, 64, 64) and photo.size[1] == 3 * photo.size[0] + 1 == demo.SIDE


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/detect", b"no image", 400, "cannot be read as an image"),
        ("/detect", b"", 400, "empty"),
        ("/detect?fpr=2", b"", 400, "empty"),
        ("/detect", bytes(2000), 413, "larger than"),
        ("/threshold?fpr=2", None, 400, "between 0 and 1"),
        ("/threshold?fpr=x", None, 400, "a number"),
        ("/nowhere", None, 404, "does not exist"),
        ("/nowhere", b"x", 404, "does not exist"),
        ("/../demo.py", None, 404, "does not exist"),
    ],
)
def test_mistakes_get_a_clear_answer(
    path: str, body: bytes | None, status: int, message: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler, "LARGEST", 1000)
    found, content = ask(server, path, body)
    assert found == status and message in content["error"] and "\n" not in content["error"]
    assert ask(server, "/about")[0] == 200  # and the server goes on


def test_a_truncated_image_and_a_request_without_length_are_answered(server: Server, parts: Path) -> None:
    assert ask(server, "/detect", bad_part(parts).read_bytes()[:200])[0] == 400
    with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
        connection.sendall(b"POST /detect HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 411 " in connection.recv(1000)


def send(server: Server, *headers: str, body: bytes = b"", line: str = "POST /detect") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.server_port), timeout=20)
    connection.sendall("\r\n".join([f"{line} HTTP/1.1", *headers, "", ""]).encode() + body)
    return connection


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it never came to that")


def answer_to(connection: socket.socket) -> tuple[int, Any]:
    with connection, connection.makefile("rb") as stream:
        head, _, body = stream.read().partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize(
    ("mode", "suffix", "side", "options"),
    [
        ("RGB", "jpg", 700, {"quality": 90}),  # decoded at a smaller size
        ("CMYK", "jpg", 300, {}),
        ("L", "png", 90, {}),
        ("RGBA", "png", 90, {}),
        ("P", "png", 90, {"transparency": bytes(9)}),
        ("I;16", "tif", 600, {}),
    ],
)
def test_a_detector_gets_the_same_pixels_from_the_page_as_from_a_file(
    mode: str, suffix: str, side: int, options: dict[str, Any], tmp_path: Path
) -> None:
    ramp = torch.arange(side * side // 2).reshape(side, side // 2).numpy()
    deep = Image.fromarray((ramp % 65536).astype("uint16"))
    image = deep if mode == "I;16" else Image.fromarray((ramp % 251).astype("uint8")).convert(mode)
    image.getexif()[0x0112] = 8
    path = tmp_path / f"a.{suffix}"
    image.save(path, exif=image.getexif(), **options)
    with path.open("rb") as file:
        pixels, _ = demo.read(file, Frame(32, 32))
    assert torch.equal(pixels.permute(1, 2, 0), torch.from_numpy(read_image(path, Frame(32, 32)).copy()))


def test_too_many_pixels_are_a_clear_answer(server: Server, parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    status, content = ask(server, "/detect", bad_part(parts).read_bytes())
    assert status == 400 and "too many pixels" in content["error"]


def test_images_are_decoded_one_at_a_time(server: Server, parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most, now, counting, read = 0, 0, threading.Lock(), demo.read

    def counted(file: Any, frame: Frame) -> Any:
        nonlocal most, now
        with counting:
            now += 1
            most = max(most, now)
        time.sleep(0.05)
        with counting:
            now -= 1
        return read(file, frame)

    monkeypatch.setattr(demo, "read", counted)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: ask(server, "/detect", bad_part(parts).read_bytes()), range(6)))
    assert [status for status, _ in answers] == [200] * 6 and most == 1


def test_uploads_under_way_are_bounded_and_others_go_on(
    server: Server, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = bad_part(parts).read_bytes()
    monkeypatch.setattr(serving, "IN_FLIGHT", len(file) + 5000)
    slow = send(server, "Host: localhost", "Content-Length: 9000", body=bytes(4000))
    wait_until(lambda: not (server._held < 4000))
    assert ask(server, "/detect", file)[0] == 200
    status, content = answer_to(send(server, "Host: localhost", "Content-Length: 90000", body=bytes(90000)))
    assert status == 503 and "try again" in content["error"]
    slow.close()
    wait_until(lambda: not (server._held))
    assert ask(server, "/detect", file)[0] == 200


def test_connections_are_bounded(server: Server) -> None:
    silent = [socket.create_connection(("127.0.0.1", server.server_port)) for _ in range(serving.CONNECTIONS)]
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as one_more:
        assert b" 503 " in one_more.recv(1000)
    for connection in silent:
        connection.close()
    wait_until(lambda: not (server._places._value < serving.CONNECTIONS))
    assert ask(server, "/about")[0] == 200


def test_clients_that_drop_out_or_dawdle_print_nothing_and_are_not_scored(
    server: Server, parts: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server.demo, "detect", lambda *_: pytest.fail("scored for nobody"))
    monkeypatch.setattr(handler, "IDLE", 0.2)
    send(server, "Host: localhost", "Content-Length: 9000", body=b"half").close()
    with send(server, "Host: localhost", "Content-Length: 9000", body=b"silence") as dawdling:
        assert dawdling.recv(100) == b""
    with server.turn:
        reset = send(server, "Host: localhost", "Content-Length: 4", body=b"gone")
        reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        left = send(server, "Host: localhost", "Content-Length: 4", body=b"gone")
        wait_until(lambda: not (server._held < 8))
        reset.close()
        left.close()
    wait_until(lambda: not (server._held or server._places._value < serving.CONNECTIONS))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (["Host: localhost:1"], 200),
        (["Host: attacker.example"], 403),
        ([], 403),
        (["Host: localhost:1", "Origin: http://localhost:1"], 200),
        (["Host: localhost:1", "Origin: http://attacker.example"], 403),
        (["Host: localhost:1", "Origin: null"], 403),
        (["Host: localhost", "Content-Length: " + "9" * 5000], 413),
    ],
)
def test_other_sites_and_odd_headers_are_refused(headers: list[str], status: int, server: Server, parts: Path) -> None:
    file = bad_part(parts).read_bytes()
    if not any(each.startswith("Content-Length") for each in headers):
        headers = [*headers, f"Content-Length: {len(file)}"]
    assert answer_to(send(server, *headers, body=file))[0] == status
    assert answer_to(send(server, *headers, line="GET /about"))[0] == (status if status != 413 else 200)


def test_names_of_the_server() -> None:
    local, everywhere = names_of("127.0.0.1", "box.example"), names_of("0.0.0.0", "box.example")
    for header in ("localhost", "LOCALHOST:80", "127.0.0.1:7860", "[::1]:7860"):
        assert is_served(header, local) and is_served(header, everywhere)
    for header in ("10.1.2.3:7860", "[fe80::1]", "box.example:1", socket.gethostname()):
        assert is_served(header, everywhere) and (header == "localhost" or not is_served(header, local))
    for header in ("", "attacker.example", "localhost.attacker.example", "127.0.0.1.attacker.example", "[", "/"):
        assert not is_served(header, local) and not is_served(header, everywhere)
    assert is_served("parts.example:7860", names_of("Parts.example", ""))
    assert is_served("10.1.2.3", names_of("10.1.2.3", ""))
    assert is_same_site(None, "a") and is_same_site("http://a:1", "a:1") and not is_same_site("http://a:1", "a:2")


def test_an_address_or_rate_that_cannot_be_had_is_one_clear_line(server: Server, detector: Detector) -> None:
    with pytest.raises(UserError, match="give another port"):
        Server(Demo(detector, 0.1), "127.0.0.1", server.server_port)
    with pytest.raises(UserError, match="between 0 and 1"):
        Demo(detector, 5)


@pytest.mark.slow
def test_the_command_listens_on_this_machine_alone_and_ends(detector: Detector, tmp_path: Path) -> None:
    detector.save(tmp_path / "detector.safetensors")
    command = [sys.executable, "-m", "gaussad_pl.demo", f"ckpt={tmp_path}", "port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            assert line.startswith("http://127.0.0.1:")
            with urlopen(line.split()[0]) as answer:
                assert b"Good or bad?" in answer.read()
                assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        finally:
            process.terminate()


@pytest.mark.parametrize("arguments", [["ckpt=nowhere"], ["ckpt=."], ["fpr=x"], ["ckpt=detector", "fpr=5"]])
def test_a_failed_start_is_one_line_and_leaves_nothing(
    arguments: list[str], detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "detector").mkdir()
    detector.save(tmp_path / "detector" / "detector.safetensors")
    if arguments == ["ckpt=."]:  # no finished run in it
        (tmp_path / "detector" / "detector.safetensors").rename(tmp_path / "detector" / "other.safetensors")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        demo.main(arguments)
    assert str(stop.value.code).startswith("error: ") and "\n" not in str(stop.value.code)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_the_page_shows_the_reason_of_undecided_in_a_real_browser(undecided: Detector, parts: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no chromium here")
    server = Server(Demo(undecided, 0.01), "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        page.set_input_files("#file", bad_part(parts))
        page.wait_for_selector("#facts:not([hidden])")
        assert page.inner_text("#verdict").lower() == "undecided" == page.get_attribute("#verdict", "class")
        assert page.inner_text("#reason") == undecided.threshold(0.01).reason
        page.select_option("#fpr", "0.2")
        playwright.expect(page.locator("#verdict")).to_have_class("bad")
        assert page.is_hidden("#reason")
        browser.close()
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_the_page_in_a_real_browser(server: Server, detector: Detector, parts: Path, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no chromium here")
    (bad,) = detector(bad_part(parts), fpr=0.1)
    (tmp_path / "notes.png").write_text("no image")
    url = f"http://127.0.0.1:{server.server_port}/"
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        for width, scheme in ((390, "dark"), (1280, "light")):
            page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            complaints: list[str] = []
            visited: list[str] = []
            page.on("console", lambda message: complaints.append(message.text))  # noqa: B023
            page.on("pageerror", lambda error: complaints.append(str(error)))  # noqa: B023
            page.on("request", lambda request: visited.append(request.url))  # noqa: B023
            page.goto(url)
            page.wait_for_selector("#fpr option", state="attached")
            assert page.input_value("#fpr") == "0.1"
            page.set_input_files("#file", bad_part(parts))
            page.wait_for_selector("#facts:not([hidden])")
            assert page.inner_text("#verdict").lower() == bad.verdict
            assert float(page.inner_text("#p_value")) == pytest.approx(bad.p_value, rel=0.01)
            assert float(page.inner_text("#score")) == pytest.approx(bad.score, rel=1e-3)
            assert float(page.inner_text("#threshold")) == pytest.approx(bad.threshold, rel=1e-3)
            assert page.evaluate("Promise.all([...document.images].map(each => each.decode())).then(() => true)")
            photo, heat = (page.locator(each).bounding_box() for each in ("#photo", "#heat"))
            assert photo is not None and photo == heat and photo["width"] > 100
            page.select_option("#fpr", "0.2")
            playwright.expect(page.locator("#line")).to_have_text(detector.threshold(0.2).line)
            assert float(page.inner_text("#threshold")) == pytest.approx(detector.threshold(0.2).value, rel=1e-3)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert complaints == []
            page.set_input_files("#file", tmp_path / "notes.png")
            page.wait_for_selector("#error:not([hidden])")
            assert "cannot be read as an image" in page.inner_text("#error") and page.is_hidden("#facts")
            page.evaluate("about.largest = 10")
            page.set_input_files("#file", bad_part(parts))
            playwright.expect(page.locator("#error")).to_contain_text("at most")
            page.evaluate("about.largest = 1e9")
            page.evaluate(DROP, list(bad_part(parts).read_bytes()))
            page.wait_for_selector("#facts:not([hidden])")
            assert page.is_hidden("#error")
            assert all(each.startswith((url, "data:")) for each in visited)
            page.close()
        browser.close()
