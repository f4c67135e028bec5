"""Download of public datasets, only at the user's request: their archives have gigabytes."""

import hashlib
import lzma
import tarfile
import tempfile
import urllib.request
import zlib
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from gaussad_pl.errors import UserError
from gaussad_pl.progress import bar

CHUNK = 1 << 20  # bytes
TIMEOUT = 60  # seconds without any data


def download(url: str, target: Path, sha256: str) -> Path:
    """Download `url` to `target`, verify it and return `target`.

    An interrupted download is resumed from `<target>.part`; an existing `target` is only verified.

    Raises:
        UserError: the download failed, or its SHA-256 differs from `sha256` (hexadecimal).
    """
    if target.is_file():
        if (digest := _sha256(target)) != sha256.lower():
            raise UserError(f"{target} has SHA-256 {digest}, expected {sha256}: remove it to download it again")
        return target
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, part)
    except (OSError, HTTPException, ValueError) as error:  # ValueError: not a URL
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"cannot download {url} to {target} ({reason}): try again to resume; if the address has changed, set "
            f"data.url to the new one; or download the archive yourself: save it as {target} or unpack it into "
            f"{target.parent}"
        ) from error
    if (digest := _sha256(part)) != sha256.lower():
        part.unlink()
        raise UserError(f"{url} has SHA-256 {digest}, expected {sha256}: removed; try again or correct data.url")
    part.replace(target)
    return target


def extract(archive: Path, root: Path) -> None:
    """Unpack a tar archive into `root`, completely or not at all; existing entries of `root` are kept.

    Raises:
        UserError: the archive is damaged, has members that would be written outside `root`, or the disk is full.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        # Inside root, which may be a separate disk: only on the same disk can the folders be renamed.
        with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=root) as unfinished:
            with (
                _progress() as progress,
                progress.open(archive, "rb", description=f"Unpacking {archive.name}") as stream,
                tarfile.open(fileobj=stream) as tar,
            ):
                tar.extractall(unfinished, filter="data")
                # To tarfile, a damaged header is the end of the archive: read on to the checksums that follow.
                while tar.fileobj and tar.fileobj.read(CHUNK):
                    pass
            for path in sorted(Path(unfinished).iterdir()):
                if not (root / path.name).exists():
                    path.rename(root / path.name)
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"cannot unpack {archive} into {root} ({reason}): check the free disk space, or download the archive again"
        ) from error


def _fetch(url: str, part: Path) -> None:
    """Stream `url` into the file `part`, resuming after its present end if the server supports it."""
    have = part.stat().st_size if part.exists() else 0
    try:
        response = _request(url, have)
    except HTTPError as error:
        error.close()
        if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not have:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return  # already complete: the last run ended just before the file was verified
        have, response = 0, _request(url, 0)
    with response:
        if response.status != HTTPStatus.PARTIAL_CONTENT:
            have = 0  # the server sends the file from the start
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with part.open("ab" if have else "wb") as file, _progress() as progress:
            task = progress.add_task(f"Downloading {part.stem}", total=total, completed=have)
            while chunk := response.read(CHUNK):
                file.write(chunk)
                progress.advance(task, len(chunk))
        # To http.client, a broken connection looks like the end of the file.
        if total is not None and (have := part.stat().st_size) != total:
            raise ConnectionError(f"the connection broke after {have} of {total} bytes")


def _request(url: str, start: int) -> HTTPResponse:
    headers = {"User-Agent": "gaussad_pl"} | ({"Range": f"bytes={start}-"} if start else {})
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return bar(*columns, TimeRemainingColumn())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
