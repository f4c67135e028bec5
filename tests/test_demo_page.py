"""The page to try a detector: what the server answers."""

from __future__ import annotations

import json
import math
import re
import signal
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
from http.server import ThreadingHTTPServer
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
from gaussad_pl.cli.interruption import Interrupted
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


def test_the_answer_is_what_the_detector_says_at_every_rate(server: Server, detector: Detector, parts: Path) -> None:
    path = bad_part(parts)
    about, (status, content) = ask(server, "/about")[1], ask(server, "/detect", path.read_bytes())
    assert (status, about["initial"]) == (200, 2)
    assert [each["fpr"] for each in about["rates"]] == [0.01, 0.05, 0.1, 0.2]
    for told, verdict in zip(about["rates"], content["verdicts"], strict=True):
        (prediction,) = detector(path, fpr=told["fpr"])
        assert (verdict, told["threshold"]) == (prediction.verdict, prediction.threshold)
        assert (content["score"], content["p_value"]) == pytest.approx((prediction.score, prediction.p_value))
    assert {int(level): distance for level, distance in content["distances"].items()} == pytest.approx(
        prediction.distances
    )
    assert content["heat"].startswith("data:image/png;") and content["photo"].startswith("data:image/jpeg;")
    assert max(Image.open(BytesIO(b64decode(content["thumbnail"].split(",")[1]))).size) == demo.THUMBNAIL


def test_a_rate_of_the_command_is_one_of_the_page(detector: Detector) -> None:
    about = Demo(detector, 0.03).about()
    assert [each["fpr"] for each in about["rates"]] == [0.01, 0.03, 0.05, 0.1, 0.2] and about["initial"] == 1


@pytest.fixture
def undecided(detector: Detector) -> Detector:
    """A detector with seven calibration images."""
    known = detector.calibration
    return Detector(detector.model, Calibration.of(known.scores[:7], known.distances[:7], "7 images"), {})


def test_the_answer_is_undecided_where_nothing_could_have_been_bad(undecided: Detector, parts: Path) -> None:
    page = Demo(undecided, 0.01)
    first, *_, last = page.about()["rates"]
    assert (first["threshold"], first["undecided"]) == (None, undecided.threshold(0.01).reason)
    with bad_part(parts).open("rb") as file:
        content = page.detect(file)
    assert content["verdicts"] == ["undecided"] * 3 + ["bad"]
    assert last["undecided"] == ""


def test_the_page_starts_at_the_default_rate_and_says_why(undecided: Detector) -> None:
    about = Demo(undecided, None).about()
    initial = about["rates"][about["initial"]]
    assert (
        initial["fpr"] == 0.2
        and "the largest of 0.01, 0.05, 0.1, 0.2: the threshold is the largest of 7" in initial["line"]
    )


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
        ("/detect", bytes(2000), 413, "larger than"),
        ("/nowhere", None, 404, "does not exist"),
        ("/nowhere", b"x", 404, "does not exist"),
        ("/../demo.py", None, 404, "does not exist"),
        ("/page.js/../../handler.py", None, 404, "does not exist"),
        ("/%2e%2e/handler.py", None, 404, "does not exist"),
        ("/etc/passwd", None, 404, "does not exist"),
    ],
)
def test_mistakes_get_a_clear_answer(
    path: str, body: bytes | None, status: int, message: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler, "LARGEST", 1000)
    found, content = ask(server, path, body)
    assert found == status and message in content["error"] and "\n" not in content["error"]
    assert ask(server, "/about")[0] == 200  # and the server goes on


def test_the_files_of_the_page_are_served_and_no_others(server: Server) -> None:
    assert {path.name for path in handler.PAGE.iterdir()} == set(handler.SERVED.values())
    for path, name in handler.SERVED.items():
        with urlopen(f"http://127.0.0.1:{server.server_port}{path}") as answer:
            assert answer.read() == (handler.PAGE / name).read_bytes()
            assert answer.headers["Content-Type"] == f"{handler.KINDS[Path(name).suffix]}; charset=utf-8"
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy


def test_the_page_has_no_inline_script_or_style_and_loads_nothing_from_elsewhere() -> None:
    text = (handler.PAGE / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]* src=)", text)
    for path in handler.PAGE.iterdir():
        links = set(re.findall(r"https?://[^\s\"']+", path.read_text(encoding="utf-8")))
        assert links <= {"http://www.w3.org/2000/svg"}  # the name of a format


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


def test_a_signal_ends_the_server_even_while_a_connection_starts(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Server, request: Any, client_address: Any) -> None:
        self._places.release()  # the thread has run and given its place back
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(ThreadingHTTPServer, "process_request", interrupted)
    server = Server(Demo(detector, 0.1), "127.0.0.1", 0)
    with server, socket.create_connection(server.server_address), pytest.raises(Interrupted):
        server.handle_request()


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
