"""Where the images are: folder layouts turned into lists of paths. Nothing is decoded here.

Every list is sorted by path, so that the same folder gives the same samples on any file
system. Hidden files and files that are no images (Thumbs.db, text files) are passed over.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from gaussad_pl.errors import UserError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
GOOD = "good"
MASK_FOLDERS = ("ground_truth", "masks")


@dataclass(frozen=True)
class Sample:
    """One image: where it is, what kind of part it shows, and where the mask of its defect is, if there is one."""

    path: Path
    kind: str = GOOD
    mask: Path | None = None

    @property
    def label(self) -> int:
        """0 for a good part, 1 for any kind of defect."""
        return int(self.kind != GOOD)


@dataclass(frozen=True)
class Samples:
    """Good images of the training folder, and test images, good and bad. `test` may be empty, or hold only bad ones."""

    train: list[Sample]
    test: list[Sample]


def scan_mvtec(folder: Path) -> Samples:
    """Samples of one MVTec AD category.

    The layout is `train/good/*`, `test/<kind>/*` and `ground_truth/<kind>/<stem>_mask.png` (or `<stem>.png`); a missing
    mask becomes None.

    Raises:
        UserError: `folder` or the images in its `train/good` are missing.
    """
    good = folder / "train" / GOOD
    if not good.is_dir():
        raise UserError(_no_category(folder))
    return Samples(_good_samples(good), _with_masks(_kinds(folder / "test"), [folder / "ground_truth"]))


def scan_folder(root: Path, bad: Path | None, masks: Path | None) -> Samples:
    """Samples of a user's own parts, in the first of these layouts that fits `root`:

    - `root/train/good/*`: that of MVTec AD, see `scan_mvtec`;
    - `root/good/*`: every other sub-folder with images is one kind of defect;
    - `root/*`: images right in the folder, all good.

    `bad` may name one more folder of defects: images right in it are of kind "bad", each sub-folder is one kind more.
    Masks are looked for in `masks`, `root/ground_truth` and `root/masks`, in this order: at the same relative path as
    the image, in a folder named like its kind, or right in there; named `<stem>_mask` or `<stem>`.

    Raises:
        UserError: a folder or its images are missing, bad and good images are the same files, or masks do not fit the
            images.
    """
    for name, folder in (("root", root), ("bad", bad), ("masks", masks)):
        if folder is not None and not folder.is_dir():
            raise UserError(f"data.{name}={folder} is not a folder: give the path of an existing one")

    if (root / "train" / GOOD).is_dir():
        good, test = root / "train" / GOOD, _kinds(root / "test")
    elif (root / GOOD).is_dir():
        good, test = root / GOOD, _kinds(root, skip=[root / GOOD, *(folder for folder in (bad, masks) if folder)])
    else:
        good, test = root, []
    train = _good_samples(good)
    if bad is not None:
        test += _bad_samples(bad)
    if good.resolve() in {folder.resolve() for folder in {sample.path.parent for sample in test}}:
        raise UserError(f"data.bad={bad} also holds the good images of {good}: give a folder with bad images only")

    mask_folders = [masks] if masks else []
    test = _with_masks(test, [*mask_folders, *(root / name for name in MASK_FOLDERS)])
    if masks and test and not any(sample.mask and sample.mask.is_relative_to(masks) for sample in test):
        raise UserError(f"data.masks={masks} holds no mask of any bad image: {_expected_mask(masks, test)}")
    return Samples(train, test)


def _good_samples(folder: Path) -> list[Sample]:
    paths = _images(folder)
    if not paths:
        raise UserError(
            f"no images in {folder}: expected {', '.join(sorted(IMAGE_SUFFIXES))} files of good parts there or in its "
            f"sub-folder 'good' or 'train/good'; found {_listing(folder)}"
        )
    return [Sample(path) for path in paths]


def _bad_samples(folder: Path) -> list[Sample]:
    samples = [Sample(path, "bad") for path in _images(folder)] + _kinds(folder)
    if not samples:
        raise UserError(f"data.bad={folder} holds no images, nor do its sub-folders; found {_listing(folder)}")
    return samples


def _kinds(folder: Path, skip: Iterable[Path] = ()) -> list[Sample]:
    """Images of each sub-folder of `folder`, named after it; folders of masks and those in `skip` are left out."""
    skipped = {path.resolve() for path in skip}
    kinds = (kind for kind in _children(folder) if kind.name not in MASK_FOLDERS and kind.resolve() not in skipped)
    return [Sample(path, kind.name) for kind in kinds for path in _images(kind)]


def _with_masks(samples: list[Sample], folders: Iterable[Path]) -> list[Sample]:
    """The samples, the bad ones with their masks; the first folder that has a mask for an image wins.

    Raises:
        UserError: a mask fits two images or is one, or there are masks and bad images but none fits.
    """
    by_folder = {folder: index for folder in folders if folder.is_dir() and (index := _mask_index(folder))}
    indices = list(by_folder.values())
    owners: dict[Path, Path] = {}
    found = []
    for sample in samples:
        mask = next((mask for index in indices if (mask := _find_mask(sample, index))), None) if sample.label else None
        if mask is not None:
            if mask.samefile(sample.path):
                raise UserError(f"the mask of {sample.path} would be the image itself: keep masks in their own folder")
            if owners.setdefault(mask, sample.path) != sample.path:
                raise UserError(f"mask {mask} fits {owners[mask]} and {sample.path}: use one sub-folder per kind")
        found.append(replace(sample, mask=mask))
    if indices and not owners and any(sample.label for sample in samples):
        folder = next(iter(by_folder))
        raise UserError(f"{folder} holds no mask of any bad image: {_expected_mask(folder, samples)}")
    return found


def _expected_mask(folder: Path, samples: list[Sample]) -> str:
    """Words for the name that the mask of the last bad one of the samples would have."""
    bad = [sample for sample in samples if sample.label][-1]
    return f"expected names like {folder / bad.kind / f'{bad.path.stem}_mask.png'}; found {_listing(folder)}"


def _mask_index(folder: Path) -> dict[tuple[str, str], Path]:
    """Masks anywhere below `folder`, by (relative folder, stem): one listing instead of many look-ups per image."""
    entries = (Path(where, name) for where, _, names in os.walk(folder, onerror=_stop) for name in names)
    paths = sorted(filter(_is_image, entries), key=Path.as_posix)
    return {(path.parent.relative_to(folder).as_posix(), path.stem): path for path in paths}


def _stop(error: OSError) -> None:
    """Without it, what is below a folder that cannot be read would be left out without a word."""
    raise error


def _find_mask(sample: Sample, index: dict[tuple[str, str], Path]) -> Path | None:
    # Masks may mirror the images' folders from any level up: the deepest common path is the most specific one.
    parents = sample.path.parent.parts
    folders = ["/".join(parents[start:]) for start in range(len(parents))] + [sample.kind, "."]
    keys = ((folder, sample.path.stem + end) for folder in folders for end in ("_mask", ""))
    return next((index[key] for key in keys if key in index), None)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _images(folder: Path) -> list[Path]:
    return [path for path in _children(folder) if _is_image(path)]


def _children(folder: Path) -> list[Path]:
    """What is right in `folder`, hidden entries left out, sorted; nothing where there is no such folder."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in entries if not path.name.startswith(".")), key=Path.as_posix)


def _listing(folder: Path, most: int = 20) -> str:
    names = [child.name for child in _children(folder)]
    more = [f"{len(names) - most} more"] if len(names) > most else []
    return ", ".join(names[:most] + more) or "nothing"


def _no_category(folder: Path) -> str:
    """Why `folder` is no MVTec AD category, and what may have been meant instead."""
    inside, beside = (
        [child.name for child in _children(path) if (child / "train" / GOOD).is_dir()]
        for path in (folder, folder.parent)
    )
    missing = f"{folder / 'train' / GOOD} is missing"
    if inside:
        return f"{missing}, but {folder} holds the categories {', '.join(inside)}: pass one as data.category"
    if (folder.parent / "train" / GOOD).is_dir():
        return f"{missing}, but {folder.parent} is a category itself: set data.root to the folder it lies in"
    if beside:
        return f"{missing}, but {folder.parent} holds the categories {', '.join(beside)}: pass one as data.category"
    found = f"found {_listing(folder)}" if folder.is_dir() else "there is no such folder"
    return f"{missing} ({found}): set data.root to where the categories of MVTec AD are, or data.download=true"
