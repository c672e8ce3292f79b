"""Tables of printed cells as pandas frames, and the same tables for a terminal, for Markdown and for an HTML page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

V2_NOTE = (
    "as Orient Anything V2 scores itself: the least error over the turns that the system itself calls the same, and an error "
    "of exactly the threshold is a hit. A prediction chooses how it is judged: not to be compared with the other columns."
)
_WIDE = 10_000  # columns of a terminal: a table is as wide as it is, also where it is piped to a file


class Cell(NamedTuple):
    """A score as it is printed, the interval that belongs to it, and whether it is the best of its column."""

    text: str
    interval: str = ""
    best: bool = False


class Section(NamedTuple):
    """One table with what is said above and below it. Cells are text or :class:`Cell`; the first column names the rows."""

    title: str
    frame: pd.DataFrame
    below: Sequence[str] = ()


def section(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str | Cell]], below: Sequence[str] = ()
) -> Section:
    """Make a section of rows, each as long as the columns are many."""
    return Section(title, pd.DataFrame(list(rows), columns=list(columns), dtype=object), below)


def share(scores: Mapping[str, Any], name: str, *, best: bool = False) -> Cell:
    """Return the cell of a share in percent, with its interval where it has one; "-" where there is no such score."""
    if name not in scores:
        return Cell("-")
    value = {key: f"{100 * number:.1f}" for key, number in scores[name].items()}
    return Cell(value["value"], f"{value['low']}–{value['high']}" if "low" in value else "", best)


def bare(cell: Cell) -> Cell:
    """Return a cell without its interval."""
    return cell._replace(interval="")


def degrees(scores: Mapping[str, Any], name: str) -> str:
    """Return an error in degrees as it is printed; "-" where there is no such score."""
    return f"{scores[name]['value']:.1f}" if name in scores else "-"


def failures(scores: Mapping[str, Any]) -> str:
    """Return what failed in words, such as "12 no pose, 3 not finite"; "" where nothing did."""
    return ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in scores["failures"].items() if count)


def paired_section(title: str, scores: Mapping[str, Any]) -> Section:
    """Make the table of the paired tests of systems against the reference on the same objects."""
    rows: list[list[str | Cell]] = []
    for test in scores["paired_tests"]:
        points = {key: f"{100 * number:+.1f}" for key, number in test["difference"].items()}
        p = test["p_value"]
        rows.append(
            [
                *(test["system"], spoken_score(test["score"])),
                Cell(points["value"], f"{points['low']} to {points['high']}"),
                *(str(test["only_system"]), str(test["only_reference"]), "< 0.0001" if p < 1e-4 else f"{p:.4f}"),
            ]
        )
    of_instances = scores["n_instances"] < scores["n"]
    title = f"{title}; p by {'permuting instances' if of_instances else 'McNemar, exact'}"
    return section(title, ["system", "score", "difference", "only it hits", "only the other", "p"], rows)


_PLACE_COLUMNS = {
    "distance": "distance, % off",
    "centre": "centre, % of the box",
    "corners": "corners, % of the box",
    "add": "ADD, % of the model",
}


def place_section(title: str, named: Mapping[str, Mapping[str, Any]]) -> Section | None:
    """Make the table of where objects are, a row for each system or group whose scores have it; None where none has.

    Args:
        named: name -> scores of a group.
    """
    places = {name: scores["place"] for name, scores in named.items() if scores.get("place")}
    measures = [m for m in _PLACE_COLUMNS if any(m in place for place in places.values())]
    if not measures:
        return None
    header = ["n", *(_PLACE_COLUMNS[m] for m in measures), *(f"{m} < 10%" for m in measures)]
    rows: list[list[str | Cell]] = []
    for name, place in places.items():
        cells = [share(place.get(m, {}), part) for part in ("median", "within") for m in measures]
        counts = sorted({place[m]["n"] for m in measures if m in place})
        rows.append([name, "–".join(map(str, counts[:: max(1, len(counts) - 1)])), *cells])
    title = f"{title}: medians, and shares of objects whose error is under 10%, with 95% intervals"
    return section(title, ["where objects are", *header], rows)


def names_note(names: Mapping[str, Any]) -> str:
    """Say over which names was scored: how many of ImageNet3D v1's, and which others."""
    others, most = names["not_in_v1"], 20
    of_v1 = "all" if names["in_v1"] == names["v1"] else f"{names['in_v1']} of the"
    note = f"Names: {of_v1} {names['v1']} categories of ImageNet3D v1"
    if not others:
        return f"{note}, and no others."
    more = f" and {len(others) - most} more" if len(others) > most else ""
    return f"{note}, and {len(others)} that are not in it ({', '.join(others[:most])}{more})."


def spoken_score(name: str) -> str:
    """Return the name of a score as it heads a column: "3D@30" of "3d_acc@30"."""
    return name.replace("3d_acc", "3D")


def as_text(sections: Sequence[Section], notes: Sequence[str] = (), *, beside: bool = False) -> str:
    """Return tables for a terminal.

    Args:
        beside: put an interval beside its score; else it stands under it, and the table needs half the width.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console, Group
    from rich.table import Table
    from rich.text import Text

    parts: list[Text | Table] = []
    for title, frame, below in sections:
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for number, name in enumerate(frame.columns):
            table.add_column(Text(printable_line(name)), justify="right" if number else "left", no_wrap=True)
        for row in frame.itertuples(index=False):
            table.add_row(*(Text(_text_of(value, beside)) for value in row))
        lines_below = [Text(printable_line(line)) for line in below]
        parts += [*([Text(printable_line(title))] if title else []), table, *lines_below, Text()]
    console = Console(file=io.StringIO(), width=_WIDE, color_system=None)
    lines = console.render_lines(Group(*parts, *(Text(printable_line(note)) for note in notes)), pad=False)
    return "\n".join("".join(segment.text for segment in line).rstrip() for line in lines).rstrip() + "\n"


def _text_of(value: str | Cell, beside: bool) -> str:
    if isinstance(value, str):
        return printable_line(value)
    text = f"{printable_line(value.text)}{'*' if value.best else ''}"
    if not value.interval:
        return text
    interval = printable_line(value.interval)
    return f"{text} ({interval})" if beside else f"{text}\n{interval}"


def as_markdown(title: str, sections: Sequence[Section], notes: Sequence[str]) -> str:
    """Return a page of Markdown: a heading (none for ""), each table, the best of a column in bold, and the notes as a list."""
    parts = [f"# {_escaped(title)}\n"] if title else []
    for above, frame, below in sections:
        rows = [[_escaped(name) for name in frame.columns], ["---", *["---:"] * (len(frame.columns) - 1)]]
        rows += [[_markdown_of(value) for value in row] for row in frame.itertuples(index=False)]
        parts.append(f"{_escaped(above)}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n")
        if below:
            parts.append("\n".join(f"- {_escaped(line)}" for line in below) + "\n")
    if notes:
        parts.append("\n".join(f"- {_escaped(note)}" for note in notes) + "\n")
    return "\n".join(parts)


def _markdown_of(value: str | Cell) -> str:
    if isinstance(value, str):
        return _escaped(value)
    text = f"**{_escaped(value.text)}**" if value.best else _escaped(value.text)
    return f"{text} ({_escaped(value.interval)})" if value.interval else text


def _escaped(text: str) -> str:
    """Return text as Markdown shows it: names of other people's files bring no table, markup or line breaks of their own."""
    printable = printable_line(text)
    for sign in "\\|*_`<[":
        printable = printable.replace(sign, f"\\{sign}")
    return printable


def as_page(
    title: str, sections: Sequence[Section], notes: Sequence[str], plots: Sequence[Path], files: Sequence[str] = ()
) -> str:
    """Return one HTML page with tables and plots; the plots are files that stand beside it, and so are files to be linked."""
    return render_page(
        "report.html",
        title=printable_line(title),
        sections=printable_sections(sections),
        notes=list(map(printable_line, notes)),
        plots=[plot.name for plot in plots],
        files=[(name, printable_line(name)) for name in files],
    )


def render_page(template: str, **values: Any) -> str:
    """Return a page of one of the templates beside this module; text that it is given stays text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = Environment(loader=PackageLoader("eval.report", "."), autoescape=True, undefined=StrictUndefined)
    return pages.get_template(template).render(values)


def printable_sections(sections: Sequence[Section]) -> list[tuple[str, list[str], list[list[Cell]], list[str]]]:
    """Return what a template shows of tables: the title, the columns, the rows and the lines below of each."""
    return [
        (
            printable_line(above),
            list(map(printable_line, frame.columns)),
            [list(map(_cell_of, row)) for row in frame.itertuples(index=False)],
            list(map(printable_line, below)),
        )
        for above, frame, below in sections
    ]


def _cell_of(value: str | Cell) -> Cell:
    cell = Cell(value) if isinstance(value, str) else value
    return cell._replace(text=printable_line(cell.text), interval=printable_line(cell.interval))


def printable_line(text: str) -> str:
    """Return text of other people's files as one line without signs that a terminal, a page or a plot would act on."""
    return "".join(sign if sign.isprintable() else "?" for sign in str(text))
