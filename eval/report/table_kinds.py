"""The three tables of the ImageNet3D report: what each shows, made of scores, and the published rows to print beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from eval.report.printing import (
    V2_NOTE,
    Cell,
    Section,
    degrees,
    failures,
    names_note,
    paired_section,
    place_section,
    section,
    share,
    spoken_score,
)
from eval.scoring import V2_PROTOCOL
from llava_pose.pose.categories import CUSTOM_META_CLASS, META_CLASSES

AVERAGE = "Avg"
# the report's abbreviations, in its order
ABBREVIATIONS = dict(zip(META_CLASSES, ("Elec", "Furn", "Hou", "Mus", "Spo", "Veh", "Work"), strict=True))
Table = Mapping[str, Any]


@dataclass(frozen=True)
class TableKind:
    """The columns and rows of one of the report's tables.

    Attributes:
        title: the title of the task.
        measure: its score in words; {degrees} is the threshold.
        prefix: what stands before "acc@30" in the score's name.
    """

    title: str
    measure: str
    prefix: str = ""


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
    known: Mapping[str, Mapping[str, Any]] | None = None,
    neighbours: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """Make what table.json holds, of which all that is printed and drawn is made.

    Args:
        number: a key of :data:`KINDS`.
        scores: what :func:`eval.scoring.score_comparison` returns.
        oracles: systems that were trained on the categories they are scored on; shown, and never called the best.
        test_selected: system -> accuracy's name -> the score of the probe that is best on the test set (table 1).
        neighbours: system -> pose errors of the nearest neighbours by its features, in degrees (table 1).
        known: system -> its scores over objects of known categories, where it answers some (table 2).
    """
    kind = KINDS[number]
    first = next(iter(scores["systems"].values()))
    groups = first["groups"]["meta_class"]
    whole = {"n": scores["n"], "n_instances": scores["n_instances"]}
    columns = [{"name": AVERAGE, "meta_class": None, **whole}]
    for meta in (*scores["meta_classes"], *(() if CUSTOM_META_CLASS not in groups else (CUSTOM_META_CLASS,))):
        n = groups.get(meta, {"n": 0})["n"]
        n_instances = groups.get(meta, {}).get("n_instances", n)
        columns.append({"name": ABBREVIATIONS.get(meta, meta), "meta_class": meta, "n": n, "n_instances": n_instances})
    names = [kind.prefix + accuracy for accuracy in scores["chance"]]
    return {
        "table": number,
        "title": kind.title,
        **whole,
        "n_categories": len(first["groups"]["category"]),
        "names": scores["names"],
        "meta_classes": scores["meta_classes"],
        "thresholds_deg": scores["thresholds_deg"],
        "scores": names,
        "columns": columns,
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
                **({"known": known[name]} if known and name in known else {}),
                **({"neighbours": dict(neighbours[name])} if neighbours and name in neighbours else {}),
            }
            for name, system in scores["systems"].items()
        },
        "paired_tests": [test for test in scores["paired_tests"] if test["score"] in names],
        "published": published_rows(number),
    }


def published_rows(number: int) -> dict[str, Any]:
    """Return the published table: source, data, measure, columns, rows of percentages by system, and their caveats."""
    values = json.loads(resources.files("eval").joinpath("published.json").read_text(encoding="utf-8"))
    table = values.pop("tables")[str(number)]
    return {**values, **table}


def scores_of_column(system: Mapping[str, Any], column: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a system's scores over the objects of a column; {} where there is none."""
    meta = column["meta_class"]
    return system["overall"] if meta is None else system["meta_class"].get(meta, {})


def title_of(table: Table) -> str:
    """Return the table's number and title."""
    return f"Table {table['table']}: {table['title']}"


def report_sections(table: Table) -> list[Section]:
    """Make the table and what stands beside it, in the order of reading."""
    accuracies = list(table["chance"])
    sections = [_main_section(table, accuracy) for accuracy in accuracies]
    sections += [_beside_section(table, accuracy) for accuracy in accuracies]
    overalls = {name: system["overall"] for name, system in table["systems"].items()}
    places = place_section("Where objects are, 6D beside rotation", overalls)
    sections += [] if places is None else [places]
    if table["paired_tests"]:
        sections.append(paired_section(f"Against {table['reference']} on the same objects, in points", table))
    return [*sections, _published_section(table["published"])]


def _main_section(table: Table, accuracy: str) -> Section:
    kind = KINDS[table["table"]]
    score, columns = kind.prefix + accuracy, table["columns"]
    measure = kind.measure.format(degrees=accuracy.removeprefix("acc@"))
    best = [_best(table, score, column) for column in columns]
    rows: list[list[str | Cell]] = [["n", *(str(column["n"]) for column in columns)]]
    if table["n_instances"] < table["n"]:
        rows.append(["instances", *(str(column["n_instances"]) for column in columns)])
    for name, system in table["systems"].items():
        cells = [
            share(scores_of_column(system, column), score, best=name in champions)
            for column, champions in zip(columns, best, strict=True)
        ]
        rows.append([f"{name} (oracle)" if system["oracle"] else name, *cells])
    if not kind.prefix:  # chance of a class depends on the candidates
        chance = f"{100 * table['chance'][accuracy]:.2g}"
        rows.append(["chance (any rotation)", *(chance if column["n"] else "" for column in columns)])
    title = (
        f"{title_of(table)}. {measure[0].upper()}{measure[1:]} in %, with 95% bootstrap intervals; "
        f"{table['n']:,} objects of {table['n_categories']} categories"
    )
    return section(title, [spoken_score(score), *(column["name"] for column in columns)], rows)


def _best(table: Table, score: str, column: Mapping[str, Any]) -> list[str]:
    """Return the systems with the highest score, among several that may be compared; none where all are alike."""
    fair = {name: system for name, system in table["systems"].items() if not system["oracle"]}
    values = {name: scores_of_column(system, column).get(score, {}).get("value") for name, system in fair.items()}
    if len(fair) < 2 or None in values.values() or len(set(values.values())) < 2:
        return []
    return [name for name, value in values.items() if value == max(values.values())]


def _beside_section(table: Table, accuracy: str) -> Section:
    """Make the table of what one column of accuracies does not say: other averages, other errors, and what failed."""
    systems, score = table["systems"], KINDS[table["table"]].prefix + accuracy
    header = ["mean over categories"]
    if any(accuracy in system["test_selected"] for system in systems.values()):
        header.append("probe chosen on test")
    if table["table"] == 3:
        header += ["class", "pose alone"]
    if any("neighbours" in system for system in systems.values()):
        header += ["nearest neighbour °", "nearest five °", "random neighbour °"]
    if any("known" in system for system in systems.values()):
        header.append("known categories")
    header.append("pose, symmetry-aware")
    if any(V2_PROTOCOL in system["overall"] for system in systems.values()):
        header.append("Orient Anything V2's protocol")
    header += ["mean °", "median °", "failed"]
    rows: list[list[str | Cell]] = []
    for name, system in systems.items():
        overall, on_test = system["overall"], system["test_selected"].get(accuracy)
        near = {key: f"{value:.1f}" for key, value in system.get("neighbours", {}).items()}
        cells: dict[str, str | Cell] = {
            "nearest neighbour °": near.get("mean_deg", "-"),
            "nearest five °": near.get("mean_of_5_deg", "-"),
            "random neighbour °": near.get("random_deg", "-"),
            "mean over categories": share(system["mean_over_categories"], score),
            "probe chosen on test": "-" if on_test is None else f"{100 * on_test:.1f}",
            "class": share(overall, "class_accuracy"),
            "pose alone": share(overall, accuracy),
            "known categories": share(system.get("known", {}), accuracy),
            "Orient Anything V2's protocol": share(overall.get(V2_PROTOCOL, {}), accuracy),
            "pose, symmetry-aware": share(overall.get("symmetric", {}), accuracy),
            "mean °": degrees(overall, "mean_deg"),
            "median °": degrees(overall, "median_deg"),
            "failed": str(sum(overall["failures"].values())),
        }
        rows.append([name, *(cells[column] for column in header)])
    title = f"The same at {accuracy.removeprefix('acc@')}° over all objects, and the pose errors in degrees"
    return section(title, ["all objects", *header], rows)


def _published_section(published: Mapping[str, Any]) -> Section:
    # a caveat is marked by its number at the rows and columns that it is of; one of the whole table stands without
    columns, marks, below = list(published["columns"]), dict.fromkeys(published["rows"], ""), []
    for caveat in published["caveats"]:
        says = published.get(caveat["says"], caveat["says"])
        if "columns" not in caveat and "rows" not in caveat:
            below.append(says)
            continue
        mark = f" ({1 + sum(line.startswith('(') for line in below)})"
        below.append(f"{mark.strip()} {says}")
        if "columns" in caveat:  # of the meta classes
            columns[1:] = [f"{name}{mark}" for name in columns[1:]]
        for name in caveat.get("rows", ()):
            marks[name] += mark
    rows = [[f"{name}{marks[name]}", *(f"{v:.1f}" for v in values)] for name, values in published["rows"].items()]
    title = (
        f"Published, on {published['data']}: {published['measure']}, in %. Other data than above unless the files are its "
        f"evaluation set: for orientation, not ranked. {published['source']}"
    )
    return section(title, ["published", *columns], rows, below)


def report_notes(table: Table) -> list[str]:
    """Say what must be known to read the table."""
    notes, systems = [names_note(table["names"])], table["systems"]
    whose = f"those of {table['meta_classes_of']}" if "meta_classes_of" in table else "this project's own"
    notes.append(f"Meta classes: {whose}; the report's own list was never released.")
    if any(system["oracle"] for system in systems.values()):
        notes.append("oracle: trained on the novel categories as well; a bound, and not compared for the best.")
    if table["n_instances"] < table["n"]:
        notes.append(f"The objects show {table['n_instances']} instances, which intervals and tests resample.")
    if any(_best(table, score, column) for score in table["scores"] for column in table["columns"]):
        notes.append("The best of a column is marked; look at the intervals and the tests before believing in it.")
    for name, system in systems.items():
        overall = system["overall"]
        if failures(overall):
            notes.append(f"{name}: failures ({failures(overall)}), each counted as an error of 180 degrees.")
        unknown = overall["n"] - overall.get("symmetric", {}).get("n_known", 0)
        if unknown:
            notes.append(
                f"{name}: the symmetry-aware column holds plain errors for {unknown} objects of unknown categories."
            )
    if any("neighbours" in system for system in systems.values()):
        notes.append(
            "nearest neighbour: mean pose error of the training object of the same category whose frozen features are most "
            "like an object's, with nothing learnt; random: of one drawn by lot."
        )
    counts = sorted({system["known"]["n"] for system in systems.values() if "known" in system})
    if counts:
        objects = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
        notes.append(f"known categories: pose accuracy over the {objects} objects of categories that were trained on.")
    if any(V2_PROTOCOL in system["overall"] for system in systems.values()):
        notes.append(f"Orient Anything V2's protocol: {V2_NOTE}")
    if table["table"] == 1 and any(system["test_selected"] for system in systems.values()):
        notes.append("probe chosen on test: as the published code chooses; the table's own scores do not see the test.")
    return notes
