"""Tables in Markdown for the documentation, and the cells that several benchmarks have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev


def table(header: Sequence[str], rows: Iterable[Sequence[str]], keys: int) -> str:
    """Return a table of rows that are grouped by their first ``keys`` cells, shown in the first row of a group only.

    The first column and the one after the keys are text, the others numbers.

    >>> print(table(["part", "detector", "AUROC"], [["screw", "ours", "96"], ["screw", "PaDiM", "86"]], keys=1))
    | part | detector | AUROC |
    | --- | --- | ---: |
    | screw | ours | 96 |
    |  | PaDiM | 86 |
    """
    lines = [_line(header), _line(["---" if column in (0, keys) else "---:" for column in range(len(header))])]
    group: Sequence[str] = []
    for row in rows:
        shown = [""] * keys if row[:keys] == group else row[:keys]
        lines.append(_line([*shown, *row[keys:]]))
        group = row[:keys]
    return "\n".join(lines)


def verdict_cell(points: Sequence[Mapping[str, float | None]]) -> str:
    """Return lost / found in percent from the `shares` of several runs, or a dash where one has no threshold."""
    lost, found = (percent([point[name] for point in points]) for name in ("lost", "found"))
    return "-" if lost == "-" else f"{lost} / {found}"


def percent(shares: Sequence[float | None]) -> str:
    """Return the mean of shares in percent, with its SEM if there are several, or a dash if one is unknown.

    >>> percent([0.94, 0.96])
    '95.0 ± 1.0'
    """
    known = [100 * share for share in shares if share is not None]
    if len(known) < len(shares):
        return "-"
    if len(known) == 1:
        return f"{known[0]:.1f}"
    return f"{mean(known):.1f} ± {stdev(known) / len(known) ** 0.5:.1f}"


def rate_names(rates: Iterable[float]) -> list[str]:
    """Return the headings of columns of target rates.

    >>> rate_names([0.05, 0.1])
    ['5 %', '10 %']
    """
    return [f"{100 * rate:.0f} %" for rate in rates]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
