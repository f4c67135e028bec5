"""Demo data drawn in code, in the layout of MVTec AD, to try things out before downloading a dataset.

A category is a module with ``KINDS``, the names of its defects, and ``render(scene, kind, flaw)``, which draws one
image from two random streams: ``scene`` fixes the object, its pose and the light, ``flaw`` only the defect. The same
scene can therefore be drawn with and without its defect, and the ground truth is where the two images differ.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from gaussad_pl.data.draw import canvas, grid, hazelnut, screw, tile
from gaussad_pl.errors import UserError

VERSION = 1  # of the images: increment it when any pixel changes, so that existing folders are redrawn
TRAIN_GOOD, TEST_GOOD, TEST_DEFECTIVE = 64, 24, 10  # images; the last is per kind of defect
VISIBLE = 5.0 / 255.0  # a pixel belongs to the defect if the defect changes it by more than this
MARKER = "demo.json"  # written last: a folder without it was not drawn here


class _Category(Protocol):
    KINDS: tuple[str, ...]

    def render(self, scene: canvas.Random, kind: str | None, flaw_rng: canvas.Random) -> canvas.Array: ...


_MODULES: dict[str, _Category] = {"grid": grid, "hazelnut": hazelnut, "screw": screw, "tile": tile}
CATEGORIES: tuple[str, ...] = tuple(_MODULES)


class Drawing(NamedTuple):
    """One image and its ground truth."""

    image: NDArray[np.uint8]  # (H, W, 3)
    mask: NDArray[np.bool_]  # (H, W), true on the defect
    clean: NDArray[np.uint8]  # (H, W, 3), the same scene and sensor noise without the defect


def draw(category: str, split: str, kind: str, index: int, seed: int = 0) -> Drawing:
    """Draw image ``index`` of ``<category>/<split>/<kind>``; ``kind`` is ``"good"`` or a defect of the category."""
    module = _module(category)

    def stream(purpose: int) -> np.random.Generator:
        # Every image has its own streams, so that its pixels do not depend on which others are drawn.
        return np.random.default_rng([seed, zlib.crc32(f"{category}/{split}/{kind}".encode()), index, purpose])

    clean = module.render(stream(0), None, stream(1))
    clean_photo = canvas.photograph(clean, stream(2))
    if kind == "good":
        return Drawing(clean_photo, np.zeros(clean.shape[:2], bool), clean_photo)
    flawed = module.render(stream(0), kind, stream(1))
    changed = np.abs(np.clip(flawed, 0.0, 1.0) - np.clip(clean, 0.0, 1.0)).max(axis=-1) > VISIBLE
    # One connected region instead of single grains, with a margin for the blur of the camera.
    mask = ndimage.binary_fill_holes(ndimage.binary_closing(ndimage.binary_dilation(changed), iterations=2) | changed)
    return Drawing(canvas.photograph(flawed, stream(2)), mask, clean_photo)


def write_demo(root: Path, category: str, seed: int = 0) -> Path:
    """Write one category below ``root`` and return its folder.

    A complete folder of this version and seed is left untouched; one of another version or seed is replaced. The folder
    appears in one step: an interrupted write leaves no partial category, and processes may write the same one at once.

    Raises:
        UserError: the category is unknown, ``root`` is not writable, or the folder contains other data.
    """
    module = _module(category)
    target = root / category
    if _complete(target, module, seed):
        return target
    draft = root / f".{category}-{uuid.uuid4().hex}"
    try:
        _refuse_foreign(target)
        try:
            _write_category(draft, category, module, seed)
            _publish(draft, target, module, seed)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"cannot write the demo data to {target} ({error.strerror or error}): free some space or use another folder"
        ) from error
    return target


def _module(category: str) -> _Category:
    if category not in _MODULES:
        raise UserError(f"unknown demo category {category!r}: expected one of {', '.join(CATEGORIES)}")
    return _MODULES[category]


def _files(module: _Category) -> Iterator[tuple[str, str, int]]:
    """Yield (split, kind, index) for every image of a category."""
    for split, kind, count in (
        ("train", "good", TRAIN_GOOD),
        ("test", "good", TEST_GOOD),
        *(("test", kind, TEST_DEFECTIVE) for kind in module.KINDS),
    ):
        yield from ((split, kind, index) for index in range(count))


def _paths(folder: Path, split: str, kind: str, index: int) -> tuple[Path, Path | None]:
    """Return the path of an image and, if it has a defect, of its mask."""
    mask = None if kind == "good" else folder / "ground_truth" / kind / f"{index:03d}_mask.png"
    return folder / split / kind / f"{index:03d}.png", mask


def _marker(seed: int) -> dict[str, int]:
    return {"version": VERSION, "seed": seed}


def _complete(folder: Path, module: _Category, seed: int) -> bool:
    """Return True if ``folder`` contains every file of this version and seed."""
    try:
        if json.loads((folder / MARKER).read_text()) != _marker(seed):
            return False
    except (OSError, ValueError):
        return False
    return all(path.is_file() for key in _files(module) for path in _paths(folder, *key) if path is not None)


def _refuse_foreign(target: Path) -> None:
    """Raise a UserError instead of replacing other data, such as the real dataset."""
    try:
        names = {path.name for path in target.iterdir()}  # one listing: another process may be replacing the folder
    except FileNotFoundError:
        return
    if names and MARKER not in names:
        raise UserError(f"{target} exists but is not demo data ({MARKER} is missing): choose another folder")


def _write_category(folder: Path, category: str, module: _Category, seed: int) -> None:
    for split, kind, index in _files(module):
        drawing = draw(category, split, kind, index, seed)
        image_path, mask_path = _paths(folder, split, kind, index)
        image_path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawing.image).save(image_path, compress_level=1)  # fast, as noise hardly compresses
        if mask_path is not None:
            mask_path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(drawing.mask.astype(np.uint8) * 255).save(mask_path)
    (folder / MARKER).write_text(json.dumps(_marker(seed)) + "\n")


def _publish(draft: Path, target: Path, module: _Category, seed: int) -> None:
    """Move ``draft`` to ``target`` unless another process has finished the same folder in the meantime."""
    if _complete(target, module, seed):
        return
    _refuse_foreign(target)
    if target.exists():
        outdated = draft.with_name(draft.name + "-old")
        with contextlib.suppress(FileNotFoundError):  # another process has just moved it
            target.replace(outdated)
        shutil.rmtree(outdated, ignore_errors=True)
    try:
        draft.replace(target)
    except OSError:
        if not _complete(target, module, seed):  # otherwise another process was faster, with the same images
            raise
