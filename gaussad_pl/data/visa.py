"""VisA (Zou et al., ECCV 2022): 12 categories, whose one-class split is in a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

from gaussad_pl.data.benchmark import Benchmark
from gaussad_pl.data.samples import GOOD, Sample, Samples
from gaussad_pl.errors import UserError

SPLIT = "split_csv/1cls.csv"
COLUMNS = ("object", "split", "label", "image", "mask")
BAD = "anomaly"  # kind of all bad images: the split does not tell their defects apart
PARTS = {("train", "normal"): GOOD, ("test", "normal"): GOOD, ("test", "anomaly"): BAD}  # (split, label) to kind


class VisA(Benchmark):
    """One category of VisA, with its official one-class split; see `gaussad_pl.data.benchmark.Benchmark`."""

    marker = SPLIT
    numbered_masks = True  # by kind of defect

    def scan(self) -> Samples:
        return scan_visa(self.root, self.category)


def scan_visa(root: Path, category: str) -> Samples:
    """Find the samples of one category of VisA, as listed in `root/split_csv/1cls.csv`.

    Raises:
        UserError: the CSV file is missing or damaged, does not have the category, or names files that do not exist.
    """
    path = root / SPLIT
    if not path.is_file():
        raise UserError(
            f"{path} is missing: set data.root to the folder of VisA, or data.download=true; a copy of VisA in the "
            "layout of MVTec AD is read with data=mvtec"
        )
    try:
        rows = list(_rows(path))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is damaged ({error}): unpack the archive of VisA again") from error
    if not any(row["object"] == category for row in rows):
        known = ", ".join(sorted({row["object"] for row in rows})) or "none"
        raise UserError(f"data.category={category}: {path} has the categories {known}: choose one")
    parts: dict[str, list[Sample]] = {"train": [], "test": []}
    for row in rows:
        if row["object"] == category:
            mask = root / row["mask"] if row["mask"] else None
            parts[row["split"]].append(Sample(root / row["image"], PARTS[row["split"], row["label"]], mask))
    samples = Samples(*(sorted(part, key=lambda sample: sample.path.as_posix()) for part in parts.values()))
    _require_files(path, samples)
    return samples


def _rows(path: Path) -> Iterator[Mapping[str, str]]:
    """Yield the rows of the CSV file.

    Raises:
        UserError: a column is missing, or a row has another split or label than the one-class split.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if absent := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
            raise UserError(
                f"{path} has no column {absent[0]}: expected {','.join(COLUMNS)}, as in the archive of VisA"
            )
        for row in reader:
            if (row["split"], row["label"]) not in PARTS or None in row.values():
                expected = ", ".join(" ".join(part) for part in PARTS)
                raise UserError(
                    f"{path}, line {reader.line_num}: split and label are {row['split']} {row['label']}, expected one "
                    f"of {expected}, and an image: unpack the archive of VisA again"
                )
            yield row


def _require_files(path: Path, samples: Samples) -> None:
    """Raise a UserError if an image or mask named in the CSV file ``path`` does not exist."""
    both = [*samples.train, *samples.test]
    named = [file for sample in both for file in (sample.path, sample.mask) if file is not None]
    if gone := [file for file in named if not file.is_file()]:
        raise UserError(
            f"{path} names {gone[0]}, which is missing ({len(gone)} of {len(named)} files): unpack the archive of VisA "
            "again"
        )
