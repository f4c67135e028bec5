"""Pictures that `make docs` draws from the tables of the pages: a picture and its table cannot disagree."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from gaussad_pl.reporting.figures import GRID, INK, RUNS, STYLE

PAGES = Path(__file__).parent / "pages"
TARGET = "10 %"
Point = tuple[float, float]  # mean and its standard error
Curves = dict[tuple[str, str], dict[int, dict[str, Point]]]


def verdicts() -> str:
    """Return an SVG of good parts lost and bad parts found by the number of good images, from the table on its page."""
    text = (PAGES / "good-images.md").read_text(encoding="utf-8")
    return drawn(curves(text.partition("<!-- verdicts: start -->")[2].partition("<!-- verdicts: end -->")[0]))


def curves(table: str) -> Curves:
    """Return what was lost and found at `TARGET`, in percent, by dataset and detector and by the number of images.

    Args:
        table: as `benchmarks.verdicts` prints it, where an empty cell repeats the one above.
    """
    head, _, *lines = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.strip().splitlines())
    found: Curves = {}
    dataset, size = "", 0
    for name, images, detector, *cells in lines:
        dataset, size = name or dataset, int(images or size)
        both = cells[head.index(TARGET) - 3]
        if both != "-":
            points = [_point(part) for part in both.split("/")]
            found.setdefault((dataset, detector), {})[size] = dict(zip(("lost", "found"), points, strict=True))
    return found


def _point(cell: str) -> Point:
    mean, _, error = cell.partition("±")
    return float(mean), float(error or 0)


def drawn(found: Curves) -> str:
    """Return the curves as SVG: a column per dataset, above the bad parts found, below the good ones lost."""
    datasets, detectors = (list(dict.fromkeys(key[i] for key in found)) for i in (0, 1))
    sizes = sorted({size for points in found.values() for size in points})
    with mpl.rc_context({**STYLE, "svg.hashsalt": "verdicts"}):
        figure = Figure((8.4, 4.6), layout="constrained")
        grid = figure.subplots(2, len(datasets), sharex=True, sharey="row", squeeze=False)
        for column, dataset in enumerate(datasets):
            for axes, kind in zip(grid[:, column], ("found", "lost"), strict=True):
                for number, (detector, colour, marker) in enumerate(zip(detectors, RUNS, "osD^vP*X", strict=False)):
                    of = found.get((dataset, detector), {})
                    means, errors = ([of[size][kind][i] for size in of] for i in (0, 1))
                    places = [size * (1 + 0.04 * number) for size in of]  # side by side
                    axes.errorbar(places, means, errors, color=colour, marker=marker, markersize=3.5, label=detector)
                axes.set_xscale("log", base=2)
                axes.grid(axis="y", color=GRID)
            grid[0, column].set_title(dataset)
            target = float(TARGET.split()[0])
            grid[1, column].axhline(target, color=INK, linestyle="--", linewidth=0.8, label="target")
            grid[1, column].set_xlabel("good images")
            grid[1, column].set_xticks(sizes, map(str, sizes))
            grid[1, column].minorticks_off()
        grid[0, 0].set(ylabel="bad parts found, %", ylim=(0, 102))
        grid[1, 0].set(ylabel="good parts lost, %", ylim=(0, None))
        figure.legend(*grid[1, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(detectors) + 1)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
