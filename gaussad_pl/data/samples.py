"""Folder layouts as lists of samples. Nothing is decoded here.

Every list is sorted by path, so that a folder gives the same samples on any filesystem. Hidden files and files other
than images (Thumbs.db, text files) are skipped.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from gaussad_pl.errors import UserError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
GOOD = "good"
MASK_FOLDERS = ("ground_truth", "masks")
RESULTS = (("metrics.json", "scores.csv"), ("predictions.jsonl",))  # files by which folders of results are known


@dataclass(frozen=True)
class Sample:
    """One image: its path, its kind ("good" or a kind of defect), and the path of its defect mask, if any."""

    path: Path
    kind: str = GOOD
    mask: Path | None = None

    @property
    def label(self) -> int:
        """0 for a good part, 1 for any kind of defect."""
        return int(self.kind != GOOD)


class Settings(NamedTuple):
    """Names under which the user has given the folders, for error messages."""

    root: str = "data.root"
    bad: str = "data.bad"
    masks: str = "data.masks"


@dataclass(frozen=True)
class Samples:
    """Good training images, and good and bad test images. `test` may be empty or contain only bad images."""

    train: list[Sample]
    test: list[Sample]


def scan_mvtec(folder: Path) -> Samples:
    """Find the samples of one MVTec AD category.

    The layout is `train/good/*`, `test/<kind>/*` and `ground_truth/<kind>/<stem>_mask.png` (or `<stem>.png`); a missing
    mask becomes None.

    Raises:
        UserError: `folder` or the images in its `train/good` do not exist.
    """
    good = folder / "train" / GOOD
    if not good.is_dir():
        raise UserError(_no_category(folder))
    return Samples(_good_samples(good), _with_masks(_kinds(folder / "test"), None, [folder / "ground_truth"]))


def scan_folder(root: Path, bad: Path | None, masks: Path | None, named: Settings = Settings()) -> Samples:  # noqa: B008
    """Find the samples of a user's own parts, in the first of these layouts that matches `root`:

    - `root/train/good/*`: the layout of MVTec AD, see `scan_mvtec`;
    - `root/good/*`: every other sub-folder with images is one kind of defect, except results of this package;
    - `root/*`: images directly in the folder, all good.

    `bad` may be another folder of defects: images directly in it are of kind "bad", and each sub-folder is another
    kind. Masks are searched for in `masks`, `root/ground_truth` and `root/masks`, in this order: at the same relative
    path as the image, in a folder named after its kind, or directly in the folder; named `<stem>_mask` or `<stem>`.

    Raises:
        UserError: a folder or its images do not exist, bad and good images are the same files, or masks do not match
            the images.
    """
    _require_folders(named, (root, bad, masks))
    if is_mvtec(root):
        good, test = root / "train" / GOOD, _kinds(root / "test")
    elif (root / GOOD).is_dir():
        good, test = root / GOOD, _kinds(root, skip=[root / GOOD, *(folder for folder in (bad, masks) if folder)])
    else:
        good, test = root, []
    train = _good_samples(good)
    if bad is not None:
        test += _bad_samples(bad, named.bad)
    if good.resolve() in {folder.resolve() for folder in {sample.path.parent for sample in test}}:
        raise UserError(
            f"{named.bad}={bad} also contains the good images of {good}: choose a folder of bad images only"
        )

    return Samples(train, _with_masks(test, masks, [root / name for name in MASK_FOLDERS], named))


def scan_bad(bad: Path, masks: Path | None, named: Settings) -> list[Sample]:
    """Find the samples of a folder of bad images, with their masks, as `scan_folder` does for one beside good images.

    Raises:
        UserError: a folder or its images do not exist, or masks do not match the images.
    """
    _require_folders(named, (None, bad, masks))
    return _with_masks(_bad_samples(bad, named.bad), masks, [], named)


def unused_images(roots: Sequence[Path], samples: Samples, masks: Path | None) -> list[Path]:
    """Return the images below `roots`, sorted, that `scan_folder` has made neither samples nor masks of.

    Those in folders of results are left out. One that is below two of the roots is returned once.
    """
    seen = {sample.path.resolve() for sample in [*samples.train, *samples.test]}
    skipped = {path.resolve() for path in (masks, *(root / name for root in roots for name in MASK_FOLDERS)) if path}
    found = []
    for where, folders, names in (entry for root in roots for entry in os.walk(root)):
        below = {name: Path(where, name) for name in folders if name[0] != "."}
        folders[:] = [
            name for name, path in below.items() if path.resolve() not in skipped and not _holds_results(path)
        ]
        new = [path for name in names if _is_image(path := Path(where, name)) and path.resolve() not in seen]
        seen |= {path.resolve() for path in new}
        found += new
    return sorted(found)


def is_mvtec(folder: Path) -> bool:
    """Return True if the good images of a folder are in `train/good`, and its test images elsewhere."""
    return (folder / "train" / GOOD).is_dir()


def _require_folders(named: Settings, folders: Sequence[Path | None]) -> None:
    for name, folder in zip(named, folders, strict=True):
        if folder is not None and not folder.is_dir():
            raise UserError(f"{name}={folder} is not a folder: set it to an existing folder")


def _good_samples(folder: Path) -> list[Sample]:
    paths = _images(folder)
    if not paths:
        raise UserError(
            f"no images in {folder}: expected {', '.join(sorted(IMAGE_SUFFIXES))} files of good parts there or in its "
            f"sub-folder 'good' or 'train/good'; found {_listing(folder)}"
        )
    return [Sample(path) for path in paths]


def _bad_samples(folder: Path, name: str) -> list[Sample]:
    samples = [Sample(path, "bad") for path in _images(folder)] + _kinds(folder)
    if not samples:
        raise UserError(f"{name}={folder}: no images in it or its sub-folders; found {_listing(folder)}")
    return samples


def _kinds(folder: Path, skip: Iterable[Path] = ()) -> list[Sample]:
    """Return the images in each sub-folder of `folder`, its name being their kind; skips masks, results and `skip`."""
    skipped = {path.resolve() for path in skip}
    kinds = (kind for kind in _children(folder) if kind.name not in MASK_FOLDERS and kind.resolve() not in skipped)
    return [Sample(path, kind.name) for kind in kinds if not _holds_results(kind) for path in _images(kind)]


def _holds_results(folder: Path) -> bool:
    """Return True for a folder that a command of this package has written: its pictures are not images of parts."""
    return any(all((folder / name).is_file() for name in names) for names in RESULTS)


def _with_masks(
    samples: list[Sample],
    given: Path | None,
    others: Sequence[Path],
    named: Settings = Settings(),  # noqa: B008
) -> list[Sample]:
    """Return the samples with masks for the bad ones; the first folder that has a mask for an image wins.

    Args:
        given: the folder of masks that the user has named, if any.
        others: folders to search after it.

    Raises:
        UserError: a mask matches two images or is the image itself, or no mask matches any bad image.
    """
    folders = [*([given] if given else []), *others]
    by_folder = {folder: index for folder in folders if folder.is_dir() and (index := _mask_index(folder))}
    indices = list(by_folder.values())
    owners: dict[Path, Path] = {}
    result = []
    for sample in samples:
        mask = next((mask for index in indices if (mask := _find_mask(sample, index))), None) if sample.label else None
        if mask is not None:
            if mask.samefile(sample.path):
                raise UserError(f"the mask of {sample.path} would be the image itself: keep masks in their own folder")
            if owners.setdefault(mask, sample.path) != sample.path:
                raise UserError(f"mask {mask} matches {owners[mask]} and {sample.path}: use one sub-folder per kind")
        result.append(replace(sample, mask=mask))
    if any(sample.label for sample in samples):
        if given and not any(mask.is_relative_to(given) for mask in owners):
            raise _no_mask(f"{named.masks}={given}", given, samples)
        if by_folder and not owners:
            folder = next(iter(by_folder))
            raise _no_mask(str(folder), folder, samples)
    return result


def _no_mask(name: str, folder: Path, samples: list[Sample]) -> UserError:
    """Return the error for a folder without a mask of any bad image; its example is the mask of the last one."""
    bad = [sample for sample in samples if sample.label][-1]
    expected = folder / bad.kind / f"{bad.path.stem}_mask.png"
    return UserError(
        f"{name} contains no mask of any bad image: expected names like {expected}; found {_listing(folder)}"
    )


def _mask_index(folder: Path) -> dict[tuple[str, str], Path]:
    """Index the masks below `folder` by (relative folder, stem): one listing instead of many look-ups per image."""
    entries = (Path(where, name) for where, _, names in os.walk(folder, onerror=_stop) for name in names)
    paths = sorted(filter(_is_image, entries), key=Path.as_posix)
    return {(path.parent.relative_to(folder).as_posix(), path.stem): path for path in paths}


def _stop(error: OSError) -> None:
    """Raise errors of `os.walk`, which would silently skip folders that cannot be read."""
    raise error


def _find_mask(sample: Sample, index: dict[tuple[str, str], Path]) -> Path | None:
    # Masks may mirror the image folders from any level: the deepest common path is the most specific.
    parents = sample.path.parent.parts
    folders = ["/".join(parents[start:]) for start in range(len(parents))] + [sample.kind, "."]
    keys = ((folder, sample.path.stem + end) for folder in folders for end in ("_mask", ""))
    return next((index[key] for key in keys if key in index), None)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _images(folder: Path) -> list[Path]:
    return [path for path in _children(folder) if _is_image(path)]


def _children(folder: Path) -> list[Path]:
    """Return the sorted entries of `folder` except hidden ones; none if there is no such folder."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in entries if not path.name.startswith(".")), key=Path.as_posix)


def _listing(folder: Path, most: int = 20) -> str:
    names = [child.name for child in _children(folder)]
    more = [f"{len(names) - most} more"] if len(names) > most else []
    return ", ".join(names[:most] + more) or "nothing"


def _no_category(folder: Path) -> str:
    """Explain why `folder` is not an MVTec AD category, and suggest what may have been meant."""
    inside, beside = (
        [child.name for child in _children(path) if (child / "train" / GOOD).is_dir()]
        for path in (folder, folder.parent)
    )
    missing = f"{folder / 'train' / GOOD} is missing"
    if inside:
        return f"{missing}, but {folder} contains the categories {', '.join(inside)}: set data.category to one"
    if (folder.parent / "train" / GOOD).is_dir():
        return f"{missing}, but {folder.parent} is a category itself: set data.root to its parent folder"
    if beside:
        return f"{missing}, but {folder.parent} contains the categories {', '.join(beside)}: set data.category to one"
    contents = f"found {_listing(folder)}" if folder.is_dir() else "there is no such folder"
    return f"{missing} ({contents}): set data.root to the folder of the MVTec AD categories, or data.download=true"
