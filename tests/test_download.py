"""Downloads from a server on this machine: resumed, verified, and unpacked completely or not at all."""

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gaussad_pl.data.download import download, extract
from gaussad_pl.errors import UserError

CONTENT = bytes(range(256)) * 1024  # 256 KiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT at /file, in ways that the attributes below choose."""

    ranges = True  # whether Range is understood
    names_total = True  # whether an answer 416 says how long the file is
    breaks_after: int | None = None  # bytes of the next answers' bodies, then the connection ends

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []  # Range header of each request
        self.url = f"http://127.0.0.1:{self.server_address[1]}/file"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.server.ranges else 0
        if self.path != "/file":
            self.send_error(404)
            return
        if start >= len(CONTENT):
            self.send_response(416)
            if self.server.names_total:
                self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start:][: self.server.breaks_after])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def error_of(function, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# --- download ---


def test_download_is_complete_and_silent_without_a_terminal(server, tmp_path, capfd):
    target = tmp_path / "new" / "a.tar.xz"
    assert download(server.url, target, SHA256.upper()) == target
    assert target.read_bytes() == CONTENT and files(target.parent) == ["a.tar.xz"]
    assert capfd.readouterr() == ("", "")


def test_complete_download_is_not_repeated(server, tmp_path):
    target = tmp_path / "a.tar.xz"
    target.write_bytes(CONTENT)
    assert download(server.url, target, SHA256) == target
    assert server.asked == []


def test_damaged_target_is_named_and_kept(server, tmp_path):
    target = tmp_path / "a.tar.xz"
    target.write_bytes(b"something of the user's")
    assert str(target) in error_of(download, server.url, target, SHA256)
    assert target.read_bytes() == b"something of the user's" and server.asked == []


def test_download_killed_half_way_is_resumed(server, tmp_path):
    target = tmp_path / "a.tar.xz"
    server.breaks_after = 100_000
    assert "100000 of 262144 bytes" in error_of(download, server.url, target, SHA256)
    assert files(tmp_path) == ["a.tar.xz.part"]
    server.breaks_after = None
    download(server.url, target, SHA256)
    assert server.asked == [None, "bytes=100000-"]
    assert target.read_bytes() == CONTENT and files(tmp_path) == ["a.tar.xz"]


def test_server_without_ranges_starts_afresh(server, tmp_path):
    server.ranges = False
    (tmp_path / "a.part").write_bytes(CONTENT[:1000])
    download(server.url, tmp_path / "a", SHA256)
    assert (tmp_path / "a").read_bytes() == CONTENT


@pytest.mark.parametrize("names_total", [True, False])
@pytest.mark.parametrize("surplus", [0, 10])
def test_part_with_nothing_left_to_fetch_ends_in_a_good_file(server, tmp_path, names_total, surplus):
    server.names_total = names_total
    (tmp_path / "a.part").write_bytes(CONTENT + b"?" * surplus)
    download(server.url, tmp_path / "a", SHA256)
    assert (tmp_path / "a").read_bytes() == CONTENT and files(tmp_path) == ["a"]
    assert len(server.asked) == (1 if names_total and not surplus else 2)


def test_wrong_hash_names_both_digests_and_removes_the_file(server, tmp_path):
    message = error_of(download, server.url, tmp_path / "a", "0" * 64)
    assert SHA256 in message and "0" * 64 in message
    assert files(tmp_path) == []


def test_part_of_another_file_is_removed_so_that_the_next_try_succeeds(server, tmp_path):
    (tmp_path / "a.part").write_bytes(b"?" * 1000)
    error_of(download, server.url, tmp_path / "a", SHA256)
    download(server.url, tmp_path / "a", SHA256)
    assert (tmp_path / "a").read_bytes() == CONTENT


@pytest.mark.parametrize("url", ["{base}/gone", "http://127.0.0.1:9/file", "not a url", "http://", "ftp:/x"])
def test_dead_address_says_how_to_place_the_files_by_hand(server, tmp_path, url):
    url = url.format(base=server.url.removesuffix("/file"))
    message = error_of(download, url, tmp_path / "a", SHA256)
    assert (
        url in message
        and "data.url" in message
        and str(tmp_path / "a") in message
        and f"unpack it into {tmp_path}" in message
    )
    assert files(tmp_path) == []


# --- extract ---


def archive(path: Path, members: dict[str, bytes | None], mode: str = "w:xz") -> Path:
    """A tar archive of files (or, for None, symbolic links to /etc)."""
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.mode = 0o444
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc"
            info.size = len(content or b"")
            tar.addfile(info, io.BytesIO(content or b""))
    return path


def test_archive_is_unpacked_into_a_new_or_existing_folder(tmp_path, capfd):
    tar = archive(tmp_path / "a.tar.xz", {"screw/train/good/0.png": b"0", "license.txt": b"1"})
    expected = ["license.txt", "screw", "screw/train", "screw/train/good", "screw/train/good/0.png"]
    extract(tar, tmp_path / "deep" / "new")
    assert files(tmp_path / "deep" / "new") == expected
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "mine.txt").touch()
    extract(tar, tmp_path / "old")
    assert files(tmp_path / "old") == sorted([*expected, "mine.txt"])
    assert files(tmp_path / "deep") == ["new", *(f"new/{name}" for name in expected)]
    assert capfd.readouterr() == ("", "")


def test_what_is_there_already_is_kept(tmp_path):
    (tmp_path / "root" / "screw").mkdir(parents=True)
    (tmp_path / "root" / "screw" / "mine.png").touch()
    extract(archive(tmp_path / "a.tar", {"screw/0.png": b"", "pill/0.png": b""}, "w"), tmp_path / "root")
    assert files(tmp_path / "root") == ["pill", "pill/0.png", "screw", "screw/mine.png"]


@pytest.mark.parametrize("member", ["../outside.txt", "/outside.txt", "good/../../outside.txt", "link"])
def test_member_outside_of_the_folder_is_refused_and_nothing_is_left(tmp_path, member):
    content = None if member == "link" else b"?"
    tar = archive(tmp_path / "a.tar", {"screw/0.png": b"0", member: content}, "w")
    if member.startswith("/"):  # made relative by tarfile, as tar itself does
        extract(tar, tmp_path / "root")
        assert files(tmp_path / "root") == ["outside.txt", "screw", "screw/0.png"]
    else:
        assert str(tar) in error_of(extract, tar, tmp_path / "root")
        assert files(tmp_path) == ["a.tar", "root"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "text", "empty", "missing"])
def test_damaged_archive_is_named_and_nothing_is_left(tmp_path, damage):
    tar = archive(tmp_path / "a.tar.xz", {f"{i}.bin": hashlib.sha512(bytes([i])).digest() * 9 for i in range(200)})
    whole = tar.read_bytes()
    half = len(whole) // 2
    damaged = {"truncated": whole[:half], "flipped": whole[:half] + bytes(99) + whole[half + 99 :], "text": b"hello\n"}
    tar.unlink()
    if damage != "missing":
        tar.write_bytes(damaged.get(damage, b""))
    assert str(tar) in error_of(extract, tar, tmp_path / "root")
    assert files(tmp_path / "root") == []
