"""The tables that ``llava-pose score`` shows: one system in full, or several side by side with their paired tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from eval.confidence import COVERAGES
from eval.report.printing import (
    V2_NOTE,
    Cell,
    Section,
    bare,
    degrees,
    failures,
    names_note,
    paired_section,
    place_section,
    section,
    share,
)
from eval.scoring import V2_PROTOCOL

MOST_CATEGORIES = 40  # a terminal shows so many categories; of more only the worst, and says so
_WORST_CATEGORIES = 20
_SYSTEMS_WITH_INTERVALS = 4  # more systems side by side leave no room for intervals
_HEADINGS = {
    "meta_class": "by meta class",
    "source": "by source",
    "occlusion": "by occlusion",
    "source_occlusion": "by source and occlusion",
    "density": "by scene density",
    "quality": "by visual quality",
    "category": "by category",
}
Scores = Mapping[str, Any]


def score_sections(scores: Scores) -> list[Section]:
    """Make the tables of what scores.json holds; the first has the opening sentence above it."""
    systems = scores["systems"]
    first = next(iter(systems.values()))
    title = (
        f"{_count(scores['n'], 'object')} of {_count(len(first['groups']['category']), 'category')}. "
        "Accuracies in % with 95% bootstrap intervals, errors in degrees."
    )
    if len(systems) > 1:
        tests = paired_section(f"against {scores['reference']} on the same objects, in points", scores)
        told = _confidences(scores, {name: system["overall"] for name, system in systems.items()})
        return [_systems(title, scores), *told, *_places(systems), *_groups_side_by_side(scores), tests]
    name = next(iter(systems))
    columns = _columns(scores)
    rows = {"all objects": first["overall"], "mean over categories": first["mean_over_categories"]}
    if first["mean_over_categories"]["n_categories"] < 2:
        del rows["mean over categories"]
    whole = section(title, [name, *columns], [*_rows(columns, rows), _chance(scores, columns)])
    groups = [section(heading, [name, *columns], _rows(columns, named)) for _, heading, named in _groups(scores)]
    sources = first["groups"].get("source", {})
    told = _confidences(scores, {name: first["overall"], **(sources if len(sources) > 1 else {})})
    return [whole, *told, *_places(systems), *groups]


def _confidences(scores: Scores, named: Mapping[str, Scores]) -> list[Section]:
    """Make the table of what confidences and prediction sets are worth, a row for each of those that have any."""
    having = {name: s for name, s in named.items() if "confidence" in s or "prediction_sets" in s}
    if not having:
        return []
    columns: dict[str, Callable[[Scores], float]] = {"mean": lambda s: s["mean"], "ECE": lambda s: s["ece"]}
    columns |= {f"surest {share:.0%}": lambda s, key=f"{share:.0%}": s["surest"][key] for share in COVERAGES}  # type: ignore[misc]
    with_sets = any("prediction_sets" in s for s in having.values())
    rows = []
    for name, group in having.items():
        sure, sets = group.get("confidence"), group.get("prediction_sets")
        row = [name, str(max(found["n"] for found in (sure, sets) if found is not None))]
        row += ["" if sure is None else f"{100 * value(sure):.1f}" for value in columns.values()]
        if with_sets:
            row += ["", ""] if sets is None else [f"{100 * sets['holds']:.1f}", f"{sets['mean_size']:.2f}"]
        rows.append(row)
    below = ["ECE: the expected calibration error over 15 bins, how far the confidence is from the accuracy."]
    if with_sets:
        below.append(
            "sets hold: how many prediction sets hold a rotation that near; size: how many rotations are in one."
        )
    title = f"How far the confidence can be believed, in %; accuracies at {scores['thresholds_deg'][0]:.4g}°"
    return [section(title, ["answers of", "n", *columns, *(["sets hold", "size"] if with_sets else [])], rows, below)]


def _places(systems: Mapping[str, Scores]) -> list[Section]:
    found = place_section("Where objects are", {name: system["overall"] for name, system in systems.items()})
    return [] if found is None else [found]


def score_notes(scores: Scores) -> list[str]:
    """Say what must be known to read the scores."""
    lines = []
    overalls = {name: system["overall"] for name, system in scores["systems"].items()}
    for name, overall in overalls.items():
        if failures(overall):
            number = _count(sum(overall["failures"].values()), "failure")
            lines.append(f"{name}: {number} ({failures(overall)}), each counted as an error of 180 degrees.")
        known = overall.get("symmetric", {}).get("n_known", 0)
        if 0 < known < overall["n"]:
            lines.append(
                f"{name}: sym columns hold plain errors for {overall['n'] - known} objects of unknown categories."
            )
    if scores["n_instances"] < scores["n"]:
        lines.append(
            f"the {scores['n']} objects show {scores['n_instances']} instances, which intervals and tests resample."
        )
    if any("symmetric" in overall for overall in overalls.values()):
        lines.append("sym: accuracy of the least error over the category's symmetries.")
    if any(V2_PROTOCOL in overall for overall in overalls.values()):
        lines.append(f"OA-V2: {V2_NOTE}")
    if any("class_accuracy" in overall for overall in overalls.values()):
        lines.append("3D: the pose is under the threshold and the class is right.")
    return [*lines, names_note(scores["names"])]


def _columns(scores: Scores) -> dict[str, Callable[[Scores], str | Cell]]:
    """Return each column's name and how its cell is made of a group's scores; only columns that some system has."""
    accuracies, overalls = list(scores["chance"]), [system["overall"] for system in scores["systems"].values()]
    columns: dict[str, Callable[[Scores], str | Cell]] = {"n": lambda s: str(s.get("n", ""))}
    columns |= {name: partial(share, name=name) for name in accuracies}
    columns |= {name: partial(degrees, name=f"{name}_deg") for name in ("mean", "median")}
    if any("symmetric" in overall for overall in overalls):
        columns |= {name.replace("acc", "sym"): partial(_symmetric, name=name) for name in accuracies}
    if any(V2_PROTOCOL in overall for overall in overalls):
        columns |= {name.replace("acc", "OA-V2"): partial(_own_symmetry, name=name) for name in accuracies}
    if any("class_accuracy" in overall for overall in overalls):
        columns["class"] = partial(_bare, name="class_accuracy")
        columns |= {name.replace("acc", "3D"): partial(_bare, name=f"3d_{name}") for name in accuracies}
    columns["failed"] = lambda s: str(sum(s["failures"].values())) if "failures" in s else ""
    return columns


def _bare(scores: Scores, name: str) -> Cell:
    return bare(share(scores, name))


def _symmetric(scores: Scores, name: str) -> Cell:
    return _bare(scores.get("symmetric", {}), name)


def _own_symmetry(scores: Scores, name: str) -> Cell:
    return _bare(scores.get(V2_PROTOCOL, {}), name)


def _rows(columns: Mapping[str, Callable[[Scores], str | Cell]], named: Mapping[str, Scores]) -> list[list[str | Cell]]:
    return [[name, *(cell(scores) for cell in columns.values())] for name, scores in named.items()]


def _chance(scores: Scores, columns: Mapping[str, Any]) -> list[str | Cell]:
    chance = scores["chance"]
    return ["chance (any rotation)", *(f"{100 * chance[name]:.2g}" if name in chance else "" for name in columns)]


def _systems(title: str, scores: Scores) -> Section:
    columns = _columns(scores)
    rows = _rows(columns, {name: system["overall"] for name, system in scores["systems"].items()})
    return section(title, ["system", *columns], [*rows, _chance(scores, columns)])


def _groups_side_by_side(scores: Scores) -> list[Section]:
    systems, accuracy = scores["systems"], next(iter(scores["chance"]))
    with_intervals = len(systems) <= _SYSTEMS_WITH_INTERVALS
    sections = []
    for kind, heading, groups in _groups(scores):
        rows: list[list[str | Cell]] = []
        for name, group in groups.items():
            cells = [share(system["groups"][kind][name], accuracy) for system in systems.values()]
            rows.append([name, str(group["n"]), *(cells if with_intervals else map(bare, cells))])
        sections.append(section(f"{accuracy} {heading}", ["group", "n", *systems], rows))
    return sections


def _groups(scores: Scores) -> list[tuple[str, str, Scores]]:
    """Return kind, heading and groups of the first system, without kinds of one group, which say what the whole says."""
    groups, accuracy = next(iter(scores["systems"].values()))["groups"], next(iter(scores["chance"]))
    shown = []
    for kind, heading in _HEADINGS.items():
        named = groups.get(kind, {})
        crossed = kind == "source_occlusion"
        if len(named) < 2 or (crossed and min(len(groups["source"]), len(groups["occlusion"])) < 2):
            continue
        if kind == "category" and len(named) > MOST_CATEGORIES:
            worst = sorted(named, key=lambda name: named[name][accuracy]["value"])[:_WORST_CATEGORIES]
            heading = f"{heading}: the {len(worst)} lowest of {len(named)}, all of them in the JSON file"
            named = {name: named[name] for name in worst}
        shown.append((kind, heading, named))
    return shown


def _count(number: int, noun: str) -> str:
    plural = {"category": "categories"}.get(noun, f"{noun}s")
    return f"{number:,} {noun if number == 1 else plural}"
