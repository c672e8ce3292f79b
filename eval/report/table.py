"""Scores as plain aligned text, made from what scores.json holds and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MOST_CATEGORIES = 40  # a terminal shows so many categories; of more only the worst, and says so
_WORST_CATEGORIES = 20
_SYSTEMS_WITH_INTERVALS = 4  # more systems side by side leave no room for intervals
_KINDS = {
    "meta_class": "by meta class",
    "source": "by source",
    "occlusion": "by occlusion",
    "source_occlusion": "by source and occlusion",
    "category": "by category",
}

Figures = Mapping[str, Any]


def text_table(header: Sequence[str], rows: Sequence[Sequence[str] | str]) -> str:
    """Aligned columns, the first to the left and the others to the right; ends with a line end.

    Args:
        header: the columns' names.
        rows: cells, as many as the header or fewer (the rest stays empty); a row that is one text is a heading.
    """
    header = [_printable(name) for name in header]
    rows = [row if isinstance(row, str) else [_printable(cell) for cell in row] for row in rows]
    cells = [list(row) + [""] * (len(header) - len(row)) for row in rows if not isinstance(row, str)]
    widths = [max(len(line[column]) for line in [header, *cells]) for column in range(len(header))]

    def line(values: Sequence[str]) -> str:
        padded = [values[0].ljust(widths[0]), *(v.rjust(w) for v, w in zip(values[1:], widths[1:], strict=False))]
        return "  ".join(padded).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    body = [row if isinstance(row, str) else line(row) for row in rows]
    return "\n".join([line(header), rule, *body]) + "\n"


def _printable(text: str) -> str:
    """Names come from other people's files: no line breaks or escape sequences in a terminal."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def score_text(scores: Figures) -> str:
    """What ``llava-pose score`` shows: one system in full, several side by side with their paired tests."""
    systems = scores["systems"]
    first = next(iter(systems.values()))
    opening = (
        f"{_count(scores['n'], 'object')} of {_count(len(first['groups']['category']), 'category')}. "
        "Accuracies in % with 95% bootstrap intervals, errors in degrees.\n"
    )
    parts = [opening]
    if len(systems) == 1:
        parts.append(_group_table(next(iter(systems)), first, scores))
    else:
        parts.append(system_table(scores))
        if len(first["groups"]["meta_class"]) > 1:
            parts.append(meta_class_table(scores))
        parts.append(_side_by_side(scores))
        parts.append(paired_table(scores))
    notes = _notes(scores)
    return "\n".join(parts) + (f"\n{notes}" if notes else "")


def system_table(scores: Figures) -> str:
    """A row a system: its figures over all objects, then chance."""
    columns = _columns(scores, [system["overall"] for system in scores["systems"].values()])
    rows: list[Sequence[str] | str] = [
        [name, *(cell(system["overall"]) for cell in columns.values())] for name, system in scores["systems"].items()
    ]
    rows.append(_chance_row(scores, columns))
    return text_table(["system", *columns], rows)


def meta_class_table(scores: Figures, figure: str | None = None) -> str:
    """A row a system, a column a meta class: one accuracy (by default that at the first threshold), over instances."""
    figure = figure or _accuracies(scores)[0]
    names = list(next(iter(scores["systems"].values()))["groups"]["meta_class"])
    rows = [
        [
            name,
            _share(system["overall"], figure, interval=False),
            *(_share(system["groups"]["meta_class"][meta], figure, interval=False) for meta in names),
        ]
        for name, system in scores["systems"].items()
    ]
    return text_table([f"{figure} by meta class", "all", *names], rows)


def paired_table(scores: Figures) -> str:
    """A row a test: the paired test of each system against the reference on the same objects."""
    reference = scores["reference"]
    rows = [
        [
            test["system"],
            test["figure"],
            "{value:+.1f} [{low:+.1f}, {high:+.1f}]".format(**{k: 100 * v for k, v in test["difference"].items()}),
            str(test["only_system"]),
            str(test["only_reference"]),
            _p_value(test["p_value"]),
        ]
        for test in scores["paired_tests"]
    ]
    header = [
        f"against {reference}",
        "figure",
        "difference",
        "only it hits",
        "only the other",
        f"p ({name_of_test(scores)})",
    ]
    return text_table(header, rows)


def name_of_test(scores: Figures) -> str:
    """Which test the p-values of a comparison are of (:func:`llava_pose.pose.metrics.paired_accuracy_test`)."""
    return "permuting instances" if scores["n_instances"] < scores["n"] else "McNemar, exact"


def _group_table(name: str, system: Figures, scores: Figures) -> str:
    columns = _columns(scores, [system["overall"]])
    rows: list[Sequence[str] | str] = [["all objects", *(cell(system["overall"]) for cell in columns.values())]]
    mean = system["mean_over_categories"]
    if mean["n_categories"] > 1:
        rows.append(["mean over categories", *(cell(mean) for cell in columns.values())])
    rows.append(_chance_row(scores, columns))
    for _, heading, groups in _shown_groups(system["groups"], _accuracies(scores)[0]):
        rows += ["", heading]
        rows += [[f"  {group}", *(cell(figures) for cell in columns.values())] for group, figures in groups.items()]
    return text_table([name, *columns], rows)


def _side_by_side(scores: Figures) -> str:
    systems, figure = scores["systems"], _accuracies(scores)[0]
    interval = len(systems) <= _SYSTEMS_WITH_INTERVALS
    first = next(iter(systems.values()))
    rows: list[Sequence[str] | str] = []
    for kind, heading, groups in _shown_groups(first["groups"], figure):
        rows += ["", heading] if rows else [heading]
        rows += [
            [
                f"  {group}",
                str(figures["n"]),
                *(_share(system["groups"][kind][group], figure, interval=interval) for system in systems.values()),
            ]
            for group, figures in groups.items()
        ]
    return text_table([figure, "n", *systems], rows)


def _shown_groups(groups: Figures, figure: str) -> list[tuple[str, str, Figures]]:
    """Kind, heading and groups, the kinds with one group only left out (they say what the whole says)."""
    shown = []
    for kind, heading in _KINDS.items():
        named = groups[kind]
        crossed = kind == "source_occlusion"
        if len(named) < 2 or (crossed and min(len(groups["source"]), len(groups["occlusion"])) < 2):
            continue
        if kind == "category" and len(named) > MOST_CATEGORIES:
            worst = sorted(named, key=lambda name: named[name][figure]["value"])[:_WORST_CATEGORIES]
            heading = f"{heading}: the {len(worst)} lowest of {len(named)}, all of them in the JSON file"
            named = {name: named[name] for name in worst}
        shown.append((kind, heading, named))
    return shown


def _accuracies(scores: Figures) -> list[str]:
    return list(scores["chance"])


def _columns(scores: Figures, overall: Sequence[Figures]) -> dict[str, Any]:
    """Column name -> function from a group's figures to its cell; only columns that some system has."""
    accuracies = _accuracies(scores)
    columns: dict[str, Any] = {"n": lambda f: str(f.get("n", ""))}
    for name in accuracies:
        columns[name] = lambda f, name=name: _share(f, name)
    columns["mean"] = lambda f: _degrees(f, "mean_deg")
    columns["median"] = lambda f: _degrees(f, "median_deg")
    if any("symmetric" in f for f in overall):
        for name in accuracies:
            columns[name.replace("acc", "sym")] = lambda f, name=name: _share(
                f.get("symmetric", {}), name, interval=False
            )
    if any("class_accuracy" in f for f in overall):
        columns["class"] = lambda f: _share(f, "class_accuracy", interval=False)
        for name in accuracies:
            columns[name.replace("acc", "3D")] = lambda f, name=name: _share(f, f"3d_{name}", interval=False)
    columns["failed"] = lambda f: str(sum(f["failures"].values())) if "failures" in f else ""
    return columns


def _chance_row(scores: Figures, columns: Mapping[str, Any]) -> list[str]:
    chance = scores["chance"]
    return ["chance (any rotation)", *(f"{100 * chance[name]:.2g}" if name in chance else "" for name in columns)]


def _share(figures: Figures, name: str, *, interval: bool = True) -> str:
    if name not in figures:
        return "-"
    value = {key: 100 * share for key, share in figures[name].items()}
    if not interval:
        return f"{value['value']:.1f}"
    return "{value:.1f} [{low:.1f}, {high:.1f}]".format(**value)


def _degrees(figures: Figures, name: str) -> str:
    return f"{figures[name]['value']:.1f}" if name in figures else "-"


def _p_value(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def _count(number: int, noun: str) -> str:
    plural = {"category": "categories"}.get(noun, f"{noun}s")
    return f"{number:,} {noun if number == 1 else plural}"


def _notes(scores: Figures) -> str:
    lines = []
    for name, system in scores["systems"].items():
        overall = system["overall"]
        failed = {kind.replace("_", " "): count for kind, count in overall["failures"].items() if count}
        if failed:
            kinds = ", ".join(f"{count} {kind}" for kind, count in failed.items())
            lines.append(
                f"{name}: {_count(sum(failed.values()), 'failure')} ({kinds}), each counted as an error of 180 degrees."
            )
        known = overall.get("symmetric", {}).get("n_known", 0)
        if 0 < known < overall["n"]:
            lines.append(
                f"{name}: sym columns hold plain errors for {overall['n'] - known} objects of unknown categories."
            )
    if scores["n_instances"] < scores["n"]:
        lines.append(
            f"the {scores['n']} objects show {scores['n_instances']} instances, which intervals and tests resample."
        )
    overalls = [system["overall"] for system in scores["systems"].values()]
    if any("symmetric" in overall for overall in overalls):
        lines.append("sym: accuracy of the least error over the category's symmetries.")
    if any("class_accuracy" in overall for overall in overalls):
        lines.append("3D: the pose is under the threshold and the class is right.")
    return "\n".join(_printable(line) for line in dict.fromkeys(lines)) + "\n" if lines else ""
