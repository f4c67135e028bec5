"""Tables of a report for LaTeX, with booktabs."""

from __future__ import annotations

from gaussad_pl.reporting.sheets import Sheet

HEADER = "% Tables of a report of gaussad_pl: \\usepackage{booktabs} and \\input{tables}"
SYMBOLS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "−": "$-$", "±": r"$\pm$", "×": r"$\times$", "≥": r"$\geq$", "–": "--",
    "…": r"\dots{}",
}  # fmt: skip


def latex(sheets: list[Sheet]) -> str:
    """Return all tables as one file to include in a paper."""
    return "\n\n".join([HEADER, *map(table, sheets)]) + "\n"


def table(sheet: Sheet) -> str:
    """Return one table; columns of numbers are aligned to the right."""
    columns = "".join("l" if sheet.is_text(i) else "r" for i in range(len(sheet.head)))
    head, *body = [" & ".join(map(text, row)) + r" \\" for row in (sheet.head, *sheet.rows)]
    lines = [
        r"\begin{table}", r"\centering", rf"\caption{{{text(sheet.title)}. {text(sheet.note)}}}",
        rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}",
        r"\end{table}",
    ]  # fmt: skip
    return "\n".join(lines)


def text(value: str) -> str:
    r"""Escape text for LaTeX, with commands that need no package and no font encoding.

    >>> print(text('a_b: "95.0 ± 0.3 %"'))
    a\_b: ''95.0 $\pm$ 0.3 \%''
    """
    return "".join(SYMBOLS.get(character, character) for character in " ".join(value.split()))
