"""The three tables of the ImageNet3D report: what each shows, made from scores, and the published rows to print beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from eval.report.sections import Cell, Section, row
from eval.report.table import name_of_test
from llava_pose.pose.categories import CUSTOM_META_CLASS, META_CLASSES

AVERAGE = "Avg"
# the report's abbreviations, in its order
ABBREVIATIONS = dict(zip(META_CLASSES, ("Elec", "Furn", "Hou", "Mus", "Spo", "Veh", "Work"), strict=True))
Table = Mapping[str, Any]


@dataclass(frozen=True)
class TableKind:
    """What one of the report's tables shows.

    Attributes:
        title: of the task.
        measure: of its figures, in words; {degrees} is the threshold.
        prefix: of the figure's name in the scores, before "acc@30".
    """

    title: str
    measure: str
    prefix: str = ""

    def figure(self, accuracy: str) -> str:
        """The name in the scores of the table's figure at the threshold of an accuracy such as "acc@30"."""
        return self.prefix + accuracy


KINDS: Mapping[int, TableKind] = {
    1: TableKind("linear probing of object-level 3D awareness", "pose accuracy at {degrees}°"),
    2: TableKind("open-vocabulary pose, novel categories", "pose accuracy at {degrees}°"),
    3: TableKind(
        "joint classification and pose",
        "3D-aware accuracy at {degrees}° (the class is right and the error under {degrees}°)",
        prefix="3d_",
    ),
}


def make_table(
    number: int,
    scores: Mapping[str, Any],
    *,
    oracles: Sequence[str] = (),
    test_selected: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """What table.json holds, and all that is printed and drawn comes from.

    Args:
        number: a key of :data:`KINDS`.
        scores: of :func:`eval.figures.score_comparison`.
        oracles: systems that were trained on the categories they are scored on; shown, and never called the best.
        test_selected: system -> accuracy's name -> the figure of the probe that is best on the test set (table 1).
    """
    kind = KINDS[number]
    first = next(iter(scores["systems"].values()))
    metas = [meta for meta in (*META_CLASSES, CUSTOM_META_CLASS) if meta in first["groups"]["meta_class"]]
    shown = [*META_CLASSES, *(meta for meta in metas if meta == CUSTOM_META_CLASS)]
    groups = {meta: first["groups"]["meta_class"][meta] for meta in metas}
    sizes = {
        meta: {"n": group["n"], "n_instances": group.get("n_instances", group["n"])} for meta, group in groups.items()
    }
    figures = [kind.figure(accuracy) for accuracy in scores["chance"]]
    return {
        "table": number,
        "title": kind.title,
        "n": scores["n"],
        "n_instances": scores["n_instances"],
        "n_categories": len(first["groups"]["category"]),
        "thresholds_deg": scores["thresholds_deg"],
        "figures": figures,
        "columns": [
            {"name": AVERAGE, "meta_class": None, "n": scores["n"], "n_instances": scores["n_instances"]},
            *(
                {"name": ABBREVIATIONS.get(m, m), "meta_class": m, **sizes.get(m, {"n": 0, "n_instances": 0})}
                for m in shown
            ),
        ],
        "chance": scores["chance"],
        "seed": scores["seed"],
        "reference": scores["reference"],
        "systems": {
            name: {
                "oracle": name in oracles,
                "test_selected": dict((test_selected or {}).get(name, {})),
                "overall": system["overall"],
                "mean_over_categories": system["mean_over_categories"],
                "meta_class": system["groups"]["meta_class"],
            }
            for name, system in scores["systems"].items()
        },
        "paired_tests": [test for test in scores["paired_tests"] if test["figure"] in figures],
        "published": published_rows(number),
    }


def published_rows(number: int) -> dict[str, Any]:
    """The published table: source, data, figure, columns, and rows of percentages by system."""
    values = json.loads(resources.files("eval").joinpath("published.json").read_text(encoding="utf-8"))
    table = values.pop("tables")[str(number)]
    return {**values, **table}


def figures_of_column(system: Mapping[str, Any], column: Mapping[str, Any]) -> Mapping[str, Any]:
    """A system's figures over the objects of a column; {} where there is none."""
    meta = column["meta_class"]
    return system["overall"] if meta is None else system["meta_class"].get(meta, {})


def sections_of(table: Table) -> list[Section]:
    """The table and what stands beside it, in the order of reading."""
    accuracies = list(table["chance"])
    sections = [_main_section(table, accuracy) for accuracy in accuracies]
    sections += [_beside_section(table, accuracy) for accuracy in accuracies]
    if table["paired_tests"]:
        sections.append(_tests_section(table))
    sections.append(_published_section(table["published"]))
    return sections


def title_of(table: Table) -> str:
    return f"Table {table['table']}: {table['title']}"


def _main_section(table: Table, accuracy: str) -> Section:
    kind = KINDS[table["table"]]
    figure, columns = kind.figure(accuracy), table["columns"]
    measure = kind.measure.format(degrees=accuracy.removeprefix("acc@"))
    best = [_best(table, figure, column) for column in columns]
    rows = [row("n", *(str(column["n"]) for column in columns))]
    if table["n_instances"] < table["n"]:
        rows.append(row("instances", *(str(column["n_instances"]) for column in columns)))
    for name, system in table["systems"].items():
        cells = [
            _share(figures_of_column(system, column), figure, best=name in champions)
            for column, champions in zip(columns, best, strict=True)
        ]
        rows.append([Cell(f"{name} (oracle)" if system["oracle"] else name), *cells])
    if not kind.prefix:
        chance = f"{100 * table['chance'][accuracy]:.2g}"
        rows.append(row("chance (any rotation)", *(chance if column["n"] else "" for column in columns)))
    title = (
        f"{title_of(table)}. {measure[0].upper()}{measure[1:]} in %, with 95% bootstrap intervals; "
        f"{table['n']:,} objects of {table['n_categories']} categories"
    )
    return Section(title, [figure.replace("3d_acc", "3D"), *(column["name"] for column in columns)], rows)


def _best(table: Table, figure: str, column: Mapping[str, Any]) -> list[str]:
    """The systems with the highest figure, among several that may be compared; none where all are alike."""
    fair = {name: system for name, system in table["systems"].items() if not system["oracle"]}
    values = {name: figures_of_column(system, column).get(figure, {}).get("value") for name, system in fair.items()}
    if len(fair) < 2 or None in values.values() or len(set(values.values())) < 2:
        return []
    return [name for name, value in values.items() if value == max(values.values())]


def _share(figures: Mapping[str, Any], figure: str, *, best: bool = False) -> Cell:
    if figure not in figures:
        return Cell("-")
    value = {key: f"{100 * share:.1f}" for key, share in figures[figure].items()}
    return Cell(value["value"], f"{value['low']}–{value['high']}" if "low" in value else "", best)


def _beside_section(table: Table, accuracy: str) -> Section:
    """What one column of accuracies does not say: other averages, other errors, and what failed."""
    number, systems = table["table"], table["systems"]
    figure = KINDS[number].figure(accuracy)
    header = ["all objects", "mean over categories"]
    if number == 3:
        header += ["class", "pose alone"]
    header += ["pose, symmetry-aware", "mean °", "median °", "failed"]
    if any(accuracy in system["test_selected"] for system in systems.values()):
        header.insert(2, "probe chosen on test")
    rows = []
    for name, system in systems.items():
        overall = system["overall"]
        cells = {
            "mean over categories": _share(system["mean_over_categories"], figure),
            "class": _share(overall, "class_accuracy"),
            "pose alone": _share(overall, accuracy),
            "pose, symmetry-aware": _share(overall.get("symmetric", {}), accuracy),
            "mean °": Cell(f"{overall['mean_deg']['value']:.1f}"),
            "median °": Cell(f"{overall['median_deg']['value']:.1f}"),
            "failed": Cell(str(sum(overall["failures"].values()))),
            "probe chosen on test": Cell(_percent(system["test_selected"].get(accuracy))),
        }
        rows.append([Cell(name), *(cells[column] for column in header[1:])])
    degrees = accuracy.removeprefix("acc@")
    return Section(f"The same at {degrees}° over all objects, and the pose errors in degrees", header, rows)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _tests_section(table: Table) -> Section:
    rows = []
    for test in table["paired_tests"]:
        difference = {key: 100 * value for key, value in test["difference"].items()}
        interval = "{low:+.1f} to {high:+.1f}".format(**difference)
        p = test["p_value"]
        rows.append(
            [
                Cell(test["system"]),
                Cell(test["figure"].replace("3d_acc", "3D")),
                Cell(f"{difference['value']:+.1f}", interval),
                *map(Cell, (str(test["only_system"]), str(test["only_reference"]))),
                Cell("< 0.0001" if p < 1e-4 else f"{p:.4f}"),
            ]
        )
    header = ["system", "figure", "difference", "only it hits", "only the other", "p"]
    title = f"Against {table['reference']} on the same objects, in points ({name_of_test(table)})"
    return Section(title, header, rows)


def _published_section(published: Mapping[str, Any]) -> Section:
    rows = [row(name, *(f"{value:.1f}" for value in values)) for name, values in published["rows"].items()]
    title = (
        f"Published, on {published['data']}: {published['figure']}, in %. Other data than above unless the files are its "
        f"evaluation set: for orientation, not ranked. {published['source']}"
    )
    return Section(title, ["published", *published["columns"]], rows)


def notes_of(table: Table) -> list[str]:
    """What must be known to read the figures."""
    notes = []
    systems = table["systems"]
    if any(system["oracle"] for system in systems.values()):
        notes.append("oracle: trained on the novel categories as well; a bound, and not compared for the best.")
    if table["n_instances"] < table["n"]:
        notes.append(f"The objects show {table['n_instances']} instances, which intervals and tests resample.")
    if any(_best(table, figure, column) for figure in table["figures"] for column in table["columns"]):
        notes.append("The best of a column is marked; look at the intervals and the tests before believing in it.")
    for name, system in systems.items():
        failed = {kind.replace("_", " "): n for kind, n in system["overall"]["failures"].items() if n}
        if failed:
            kinds = ", ".join(f"{n} {kind}" for kind, n in failed.items())
            notes.append(f"{name}: failures ({kinds}), each counted as an error of 180 degrees.")
        unknown = system["overall"]["n"] - system["overall"].get("symmetric", {}).get("n_known", 0)
        if unknown:
            notes.append(
                f"{name}: the symmetry-aware column holds plain errors for {unknown} objects of unknown categories."
            )
    if table["table"] == 1 and any(system["test_selected"] for system in systems.values()):
        notes.append(
            "probe chosen on test: as the published code chooses; the table's own figures do not see the test."
        )
    return notes
