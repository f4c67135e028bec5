"""Benchmark of speed: everything a user waits for, relative to a lower bound.

    python -m benchmarks.speed --data /data/mvtec_ad/screw [--quick] [--device cuda] [--parts 1 3 5]

Prints ratios of medians as tables in Markdown. The members of each pair are timed alternately in one process. Every
part is kept in --out as soon as it is measured, and the table has all parts that were measured there in the same
setting. Part 6, the comparison with EfficientAD, needs the environment of benchmarks.peers: `--peers-python
build/peers/bin/python`. PaDiM and PatchCore are timed by `python -m benchmarks.segmentation --peers-python ...`.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import sys
import tempfile
import warnings
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.speed.efficientad import beside_efficientad
from benchmarks.speed.exported import exported
from benchmarks.speed.fine_tuning import epoch
from benchmarks.speed.fitting import fitting
from benchmarks.speed.growth import growth
from benchmarks.speed.predicting import predicting
from benchmarks.speed.scoring import FORMS, estimating, scoring
from benchmarks.speed.start import cold_start, decoding
from benchmarks.speed.sweeping import sweeping
from benchmarks.speed.timing import Row, Setting
from gaussad_pl.files import write_json
from gaussad_pl.memory import keep_freed_memory


def machine(setting: Setting) -> str:
    """Describe the hardware and software that the figures were measured on."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "",
    )
    gpu = torch.cuda.get_device_name(setting.device) if setting.device.startswith("cuda") else "no GPU"
    installed = [name for name in ("torch", "timm", "lightning", "onnxruntime", "openvino") if find_spec(name)]
    versions = ", ".join(f"{name} {version(name)}" for name in installed)
    hardware = f"{model or platform.machine()}, {gpu}, {torch.get_num_threads()} threads, {setting}"
    return f"{hardware}; Python {platform.python_version()}, {versions}"


def table(rows: list[Row]) -> str:
    """Return the rows as two tables in Markdown, with missed limits in bold; the first has a column for each form."""
    columns = [name or "pooled" for name in FORMS]
    forms = [f"| | {' | '.join(columns)} | to | limit |", f"|---|{'---:|' * len(columns)}---|---:|"]
    others = ["| | ratio | to | limit | |", "|---|---:|---|---:|---|"]
    rows = sorted(rows, key=lambda row: row.part)
    for what, against in dict.fromkeys((row.what, row.against) for row in rows):
        alike = {row.form: row for row in rows if (row.what, row.against) == (what, against)}
        if "" in alike:
            row = alike[""]
            others.append(f"| {what} | {_ratio(row)} | {against} | {_number(row.limit)} | {row.note} |")
        else:
            ratios = [_ratio(alike[form]) if form in alike else "" for form in columns]
            limits = dict.fromkeys(_number(row.limit) for row in alike.values())
            forms.append(f"| {what} | {' | '.join(ratios)} | {against} | {', '.join(limits)} |")
    return "\n".join([*forms, "", *others])


def _ratio(row: Row) -> str:
    if row.limit is not None and (row.ratio is None or row.ratio > row.limit):
        return f"**{_number(row.ratio) or '-'}**"
    return _number(row.ratio) or "-"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def main() -> None:
    """Measure the requested parts and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder in the layout of MVTec AD")
    parser.add_argument("--quick", action="store_true", help="fewer repeats and smaller sizes: minutes on two cores")
    parser.add_argument("--parts", type=int, nargs="+", default=list(range(1, 10)), help="parts to measure")
    parser.add_argument("--device", default="cpu", help="torch device of parts 1, 3 and 4")
    parser.add_argument("--precision", choices=("32", "bf16", "16"), default="32", help="of the backbone in 1, 3, 4")
    parser.add_argument("--compile", action="store_true", help="compile both backbones in parts 1 and 4")
    parser.add_argument("--threads", type=int, help="threads of torch; default: its own choice")
    parser.add_argument("--batch", type=int, default=32, help="batch size of parts 1 and 4")
    parser.add_argument("--peers-python", type=Path, help="interpreter of the environment of benchmarks.peers; part 6")
    parser.add_argument("--out", type=Path, default=Path("runs/speed"), help="folder for results")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    keep_freed_memory()
    if given.threads:
        torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    setting = Setting(given.device, given.precision, given.compile)
    repeats = 5 if given.quick else 15
    counts, widths = ([96, 960], [64, 128]) if given.quick else ([96, 992, 9984], [64, 128, 256, 512])
    with tempfile.TemporaryDirectory() as scratch:
        parts = {
            1: lambda: scoring(setting, given.batch, repeats),
            2: lambda: exported(Path(scratch), repeats),
            3: lambda: epoch(given.data, setting, 3 if given.quick else 5),
            4: lambda: [*estimating(setting, given.batch, repeats), *fitting(given.data)],
            5: lambda: [*cold_start(given.data), *decoding(Path(scratch), min(repeats, 5))],
            6: lambda: beside_efficientad(given.peers_python, Path(scratch), repeats),
            7: lambda: growth(given.data, given.out, Path(scratch), counts, widths),
            8: lambda: sweeping(Path(scratch)),
            9: lambda: predicting(given.data, Path(scratch), 500 if given.quick else 5000),
        }
        place, described = given.out / "rows.json", machine(setting)
        measured = json.loads(place.read_text()) if place.is_file() else {}
        rows = [Row(**row) for row in measured.get(described, [])]
        for part in given.parts:
            rows = [row for row in rows if row.part != part] + parts[part]()
            write_json(place, {**measured, described: [vars(row) for row in rows]})
            print(f"part {part} measured", file=sys.stderr)
    text = f"{table(rows)}\n\n{described}"
    print(text)
    (given.out / "table.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
