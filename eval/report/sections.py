"""A report's tables as data, and the same tables as aligned text for a terminal and as Markdown for a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from eval.report.table import text_table


class Cell(NamedTuple):
    """One cell: what it says, the interval that belongs to it, and whether it is the best of its column."""

    text: str
    interval: str = ""
    best: bool = False


class Section(NamedTuple):
    """One table with what is said above it. A row has as many cells as the header, the first its name."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def row(name: str, *texts: str) -> list[Cell]:
    """A row of plain cells."""
    return [Cell(name), *map(Cell, texts)]


def as_text(sections: Sequence[Section], notes: Sequence[str]) -> str:
    """Aligned columns; intervals stand under their figures, since beside them they would need a screen of double width."""
    parts = []
    for section in sections:
        lines: list[list[str]] = []
        for cells in section.rows:
            lines.append([f"{cell.text}*" if cell.best else cell.text for cell in cells])
            if any(cell.interval for cell in cells):
                lines.append([cell.interval for cell in cells])
        parts.append(f"{section.title}\n{text_table(section.header, lines)}")
    return "\n".join([*parts, *(f"{note}\n" for note in notes)]) if notes else "\n".join(parts)


def as_markdown(title: str, sections: Sequence[Section], notes: Sequence[str]) -> str:
    """A heading, each section with its table, the best of a column in bold, and the notes as a list."""
    parts = [f"# {_escaped(title)}\n"]
    for section in sections:
        lines = [section.header, ["---", *["---:"] * (len(section.header) - 1)]]
        lines += [[_markdown_cell(cell) for cell in cells] for cells in section.rows]
        table = "\n".join(
            f"| {' | '.join(cells if number else map(_escaped, cells))} |" for number, cells in enumerate(lines)
        )
        parts.append(f"{_escaped(section.title)}\n\n{table}\n")
    if notes:
        parts.append("\n".join(f"- {_escaped(note)}" for note in notes) + "\n")
    return "\n".join(parts)


def _markdown_cell(cell: Cell) -> str:
    text = _escaped(cell.text)
    text = f"**{text}**" if cell.best else text
    return f"{text} ({_escaped(cell.interval)})" if cell.interval else text


def _escaped(text: str) -> str:
    """Names come from other people's files: no table, markup or line breaks of their own."""
    printable = "".join(sign if sign.isprintable() else "?" for sign in text)
    for sign in "\\|*_`<[":
        printable = printable.replace(sign, f"\\{sign}")
    return printable
