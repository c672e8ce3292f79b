"""Plots of scores, made of what scores.json holds and nothing else, and one of confidences, made of single answers.

They are built with matplotlib's object-oriented interface and rendered by Agg: no display, no global state.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from eval.report.printing import printable_line
from eval.report.table_kinds import scores_of_column
from llava_pose.pose.metrics import accuracy_by_coverage, reliability
from llava_pose.utils.files import write_atomic

# Okabe and Ito's palette, told apart by colour-blind readers too; more systems go on with other line styles
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", "-.", ":")
_INK, _FAINT, _GRID = "#333333", "#8a8a8a", "#e6e6e6"
_ZOOM_DEGREES = 45  # the left panel of the curve: where systems differ
_LONGEST_NAME = 36  # letters of a system's or category's name
_ROWS_A_PANEL = 65  # categories under one another before a further panel is begun

Scores = Mapping[str, Any]


def save_plot(figure: Figure, path: str | Path) -> None:
    """Write a plot as PNG, atomically."""
    write_atomic(path, png_of(figure))


def png_of(figure: Figure) -> bytes:
    """Return a plot as PNG."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=130, facecolor="white")
    return buffer.getvalue()


def curve_plot(scores: Scores) -> Figure:
    """Draw the share of objects with an error under each angle, a curve a system, the thresholds and chance marked."""
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    near, whole = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1))
    for axes, limit in ((near, _ZOOM_DEGREES), (whole, 180)):
        _draw_curves(axes, scores, limit)
    near.set_ylabel("objects with a smaller error")
    near.set_title(f"up to {_ZOOM_DEGREES}°", fontsize=10, color=_INK)
    whole.set_title("whole range", fontsize=10, color=_INK)
    _legend(whole, whole, loc="lower right")
    figure.suptitle(f"Cumulative pose error, {scores['n']:,} objects", fontsize=12, color=_INK)
    return figure


def _draw_curves(axes: Axes, scores: Scores, limit: float) -> None:
    for number, (name, system) in enumerate(scores["systems"].items()):
        degrees, share, low, high = (np.array(system["curve"][key]) for key in ("degrees", "share", "low", "high"))
        colour, style = PALETTE[number % len(PALETTE)], LINE_STYLES[number // len(PALETTE) % len(LINE_STYLES)]
        axes.fill_between(degrees, low, high, color=colour, alpha=0.13, linewidth=0)
        axes.plot(degrees, share, color=colour, linestyle=style, linewidth=2, label=_label(name))
    angles = np.linspace(0, 180, 181)
    radians = np.radians(angles)
    axes.plot(angles, (radians - np.sin(radians)) / math.pi, color=_FAINT, linewidth=1, linestyle=":", label="chance")
    for threshold in scores["thresholds_deg"]:
        if threshold > limit:
            continue
        axes.axvline(threshold, color=_INK, linewidth=0.8, linestyle=(0, (4, 3)))
        place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "xytext": (3, -3), "va": "top"}
        _annotate(axes, f"{threshold:.4g}°", (threshold, 1.0), fontsize=8, color=_INK, **place)
    axes.set_xlim(0, limit)
    axes.set_ylim(0, 1.0)
    axes.set_xlabel("pose error (degrees)")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xticks(np.arange(0, limit + 1, 5 if limit <= 60 else 30))
    _plain(axes, "both")


def categories_plot(scores: Scores) -> Figure:
    """Draw the accuracy of each category with its interval and count, the best at the top.

    One system: a dot for each threshold. Several: the first threshold, a dot a system, ordered by the first system.
    """
    systems, accuracies = scores["systems"], list(scores["chance"])
    by_system = {name: system["groups"]["category"] for name, system in systems.items()}
    first = next(iter(by_system.values()))
    order = sorted(first, key=lambda name: (-first[name][accuracies[0]]["value"], name))
    panels = max(1, math.ceil(len(order) / _ROWS_A_PANEL))
    rows = math.ceil(len(order) / panels)
    row_height = 0.19 + 0.05 * max(0, len(systems) - 1)
    figure = Figure(figsize=(max(6.4, 4.6 * panels), 1.5 + row_height * max(rows, 3)), layout="constrained")
    series = [(name, accuracies[0], groups) for name, groups in by_system.items()]
    if len(systems) == 1:
        series = [(_spoken(accuracy), accuracy, first) for accuracy in accuracies]
    for panel, axes in enumerate(figure.subplots(1, panels, squeeze=False)[0]):
        names = order[panel * rows : (panel + 1) * rows]
        for number, (label, accuracy, groups) in enumerate(series):
            offset = _spread(number, len(series), 0.6) if len(systems) > 1 else 0.0
            values = [groups[name][accuracy] for name in names]
            look: dict[str, Any] = {"fmt": "o", "markersize": 4.5, "linewidth": 1.1}
            _draw_dots(axes, np.arange(len(names)) + offset, values, "x", number, label, **look)
        _name_categories(axes, names, [first[name]["n"] for name in names], rows)
    if len(series) > 1:
        columns = min(4, len(series))
        _legend(figure, figure.axes[0], loc="outside lower center", ncols=columns)
    what = f"Accuracy by category ({_spoken(accuracies[0])})" if len(systems) > 1 else "Accuracy by category"
    figure.suptitle(f"{what}, 95% intervals, {scores['n']:,} objects", fontsize=12, color=_INK)
    return figure


def _name_categories(axes: Axes, names: Sequence[str], counts: Sequence[int], rows: int) -> None:
    axes.set_yticks(np.arange(len(names)), [_label(name.replace("_", " ")) for name in names], fontsize=8)
    for row, count in enumerate(counts):
        place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "xytext": (8, 0), "va": "center"}
        _annotate(axes, f"n = {count:,}", (1.0, row), fontsize=7.5, color=_FAINT, **place)
    axes.set_ylim(rows - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    _plain(axes, "x")
    axes.hlines(np.arange(len(names)), 0, 1, color="#f0f0f0", linewidth=0.7, zorder=0)


def meta_classes_plot(table: Scores) -> Figure:
    """Draw the columns of a report's table, of ``report_tables``: a dot a system with its interval, a panel a threshold."""
    columns, systems, names = table["columns"], table["systems"], table["scores"]
    height = 3.1 * len(names) + 0.9 + 0.22 * math.ceil(len(systems) / 3)
    figure = Figure(figsize=(10.5, height), layout="constrained")
    for axes, name in zip(figure.subplots(len(names), 1, squeeze=False)[:, 0], names, strict=True):
        for number, (system, entry) in enumerate(systems.items()):
            there = {p: s[name] for p, c in enumerate(columns) if name in (s := scores_of_column(entry, c))}
            places = np.array(list(there)) + _spread(number, len(systems), 0.72)
            look: dict[str, Any] = {
                "fmt": "D" if entry["oracle"] else "os^vP"[number // len(PALETTE) % 5],
                "markersize": 5,
            }
            look |= {"markerfacecolor": "white" if entry["oracle"] else None, "linewidth": 1.3}
            label = f"{system} (oracle)" if entry["oracle"] else system
            _draw_dots(axes, places, list(there.values()), "y", number, label, **look)
        axes.axvline(0.5, color=_FAINT, linewidth=0.8)
        for border in range(1, len(columns) - 1):
            axes.axvline(border + 0.5, color="#ececec", linewidth=0.8)
        axes.set_xticks(range(len(columns)), [f"{_label(c['name'])}\nn = {c['n']:,}" for c in columns])
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_title(_spoken(name), fontsize=10, color=_INK)
        _plain(axes, "y")
        axes.tick_params(axis="x", length=0)
    _legend(figure, figure.axes[0], loc="outside lower center", ncols=3)
    title = f"Table {table['table']}: {table['title']}, 95% intervals, {table['n']:,} objects"
    figure.suptitle(title, fontsize=12, color=_INK)
    return figure


def confidence_plot(answers: Mapping[str, tuple[np.ndarray, np.ndarray]], threshold: float) -> Figure:
    """Draw how far confidences can be believed: accuracy of the surest answers over their share, and hits over confidence.

    Args:
        answers: name of a system -> confidences (n,) and hits (n,) of its answers.
        threshold: of a hit, degrees.
    """
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    coverage, kept = figure.subplots(1, 2)
    for number, (name, (confidence, hits)) in enumerate(answers.items()):
        look: dict[str, Any] = {
            "color": PALETTE[number % len(PALETTE)],
            "linestyle": LINE_STYLES[number // len(PALETTE) % len(LINE_STYLES)],
            "linewidth": 2,
        }
        share, accuracy = accuracy_by_coverage(confidence, hits)
        coverage.plot(share, accuracy, label=_label(name), **look)
        promised, came, _ = reliability(confidence, hits).T
        kept.plot(promised, came, marker="o", markersize=4, **look)
    kept.plot([0, 1], [0, 1], color=_FAINT, linewidth=1, linestyle=":")
    coverage.set_xlabel("share of the objects, the surest first")
    coverage.set_ylabel(f"error under {threshold:.4g}°")
    kept.set_xlabel("confidence, in 15 bins")
    coverage.set_title("accuracy against coverage", fontsize=10, color=_INK)
    kept.set_title("what the confidence promises, and what came of it", fontsize=10, color=_INK)
    for axes in (coverage, kept):
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        _plain(axes, "both")
    _legend(coverage, coverage, loc="lower left")
    return figure


def _draw_dots(
    axes: Axes, places: Any, values: Sequence[Scores], along: str, number: int, label: str, **look: Any
) -> None:
    """Draw scores as dots with their intervals, along one axis at places on the other."""
    share = np.array([value["value"] for value in values])
    reach = np.array([[v["value"] - v["low"], v["high"] - v["value"]] for v in values]).T.reshape(2, -1)
    points = {along: share, "y" if along == "x" else "x": places, f"{along}err": np.maximum(reach, 0)}
    style: dict[str, Any] = {
        "color": PALETTE[number % len(PALETTE)],
        "label": _label(label),
        "clip_on": False,
        "zorder": 3,
    }
    axes.errorbar(**points, **style, **look)


def _spread(number: int, count: int, width: float) -> float:
    """Return where the dots of one system of several stand beside a whole place."""
    return width * ((number + 0.5) / count - 0.5)


def _annotate(axes: Axes, text: str, at: tuple[float, float], **style: Any) -> None:
    axes.annotate(text, at, textcoords="offset points", **style)


def _spoken(score: str) -> str:
    under = f"error under {score.removeprefix('3d_').removeprefix('acc@')}°"
    return f"class right and {under}" if score.startswith("3d_") else under


def _label(name: str) -> str:
    """Return a name as matplotlib draws it to the letter: not too long, no formula, not hidden by a leading underscore."""
    short = name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
    escaped = printable_line(short).replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def _legend(where: Figure | Axes, axes: Axes, **options: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    where.legend(handles, labels, frameon=False, fontsize=8.5, **options)


def _plain(axes: Axes, grid: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_FAINT)
    axes.tick_params(colors=_INK, labelsize=8.5, color=_FAINT)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=_GRID, linewidth=0.7)
