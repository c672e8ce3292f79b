"""Plots of scores, made from what scores.json holds and nothing else.

Figures are built with matplotlib's object-oriented interface and rendered by Agg: no display, no global state.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from llava_pose.utils.files import write_atomic

# Okabe and Ito's palette, told apart by colour-blind readers too; more systems go on with other line styles
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", "-.", ":")
_INK = "#333333"
_FAINT = "#8a8a8a"
_ZOOM_DEGREES = 45  # the left panel of the curve: where systems differ
_LONGEST_NAME = 36  # letters of a system's or category's name
_ROWS_A_PANEL = 65  # categories under one another before a further panel is begun

Scores = Mapping[str, Any]


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, atomically."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=130, facecolor="white")
    write_atomic(path, buffer.getvalue())


def curve_figure(scores: Scores) -> Figure:
    """The share of objects with an error under each angle, a curve a system, the thresholds and chance marked."""
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
        colour, style = _look(number)
        axes.fill_between(degrees, low, high, color=colour, alpha=0.13, linewidth=0)
        axes.plot(degrees, share, color=colour, linestyle=style, linewidth=2, label=_label(name))
    angles = np.linspace(0, 180, 181)
    radians = np.radians(angles)
    axes.plot(angles, (radians - np.sin(radians)) / math.pi, color=_FAINT, linewidth=1, linestyle=":", label="chance")
    for threshold in scores["thresholds_deg"]:
        if threshold > limit:
            continue
        axes.axvline(threshold, color=_INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.annotate(
            f"{threshold:.4g}°",
            (threshold, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(3, -3),
            textcoords="offset points",
            va="top",
            fontsize=8,
            color=_INK,
        )
    axes.set_xlim(0, limit)
    axes.set_ylim(0, 1.0)
    axes.set_xlabel("pose error (degrees)")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xticks(np.arange(0, limit + 1, 5 if limit <= 60 else 30))
    _plain(axes)
    axes.grid(color="#e6e6e6", linewidth=0.7)


def categories_figure(scores: Scores) -> Figure:
    """The accuracy of each category with its interval and count, the best at the top.

    One system: a dot for each threshold. Several: the first threshold, a dot a system, ordered by the first system.
    """
    systems = scores["systems"]
    figures = list(scores["chance"])
    first = next(iter(systems.values()))["groups"]["category"]
    order = sorted(first, key=lambda name: (-first[name][figures[0]]["value"], name))
    panels = max(1, math.ceil(len(order) / _ROWS_A_PANEL))
    rows = math.ceil(len(order) / panels)
    row_height = 0.19 + 0.05 * max(0, len(systems) - 1)
    figure = Figure(figsize=(max(6.4, 4.6 * panels), 1.5 + row_height * max(rows, 3)), layout="constrained")
    series = _category_series(scores, figures)
    for panel, axes in enumerate(figure.subplots(1, panels, squeeze=False)[0]):
        _draw_categories(axes, first, order[panel * rows : (panel + 1) * rows], rows, series)
    if len(series) > 1:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False, fontsize=8.5
        )
    what = f"Accuracy by category ({_spoken(figures[0])})" if len(systems) > 1 else "Accuracy by category"
    figure.suptitle(f"{what}, 95% intervals, {scores['n']:,} objects", fontsize=12, color=_INK)
    return figure


def _category_series(scores: Scores, figures: list[str]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """(label, figure, groups by category) of each set of dots."""
    systems = scores["systems"]
    if len(systems) == 1:
        groups = next(iter(systems.values()))["groups"]["category"]
        return [(_spoken(name), name, groups) for name in figures]
    return [(name, figures[0], system["groups"]["category"]) for name, system in systems.items()]


def _draw_categories(
    axes: Axes,
    counts: Mapping[str, Any],
    names: list[str],
    rows: int,
    series: list[tuple[str, str, Mapping[str, Any]]],
) -> None:
    for number, (label, figure, groups) in enumerate(series):
        same_figure = len({entry[1] for entry in series}) == 1
        offset = 0.6 * ((number + 0.5) / len(series) - 0.5) if same_figure else 0.0
        values = [groups[name][figure] for name in names]
        share = np.array([value["value"] for value in values])
        reach = np.array([[v["value"] - v["low"], v["high"] - v["value"]] for v in values]).T.reshape(2, -1)
        axes.errorbar(
            share,
            np.arange(len(names)) + offset,
            xerr=np.maximum(reach, 0),
            fmt="o",
            markersize=4.5,
            linewidth=1.1,
            color=_look(number)[0],
            label=_label(label),
            clip_on=False,
            zorder=3,
        )
    axes.set_yticks(np.arange(len(names)), [_label(name.replace("_", " ")) for name in names], fontsize=8)
    for row, name in enumerate(names):
        axes.annotate(
            f"n = {counts[name]['n']:,}",
            (1.0, row),
            xycoords=("axes fraction", "data"),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color=_FAINT,
        )
    axes.set_ylim(rows - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    _plain(axes)
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.7)
    axes.hlines(np.arange(len(names)), 0, 1, color="#f0f0f0", linewidth=0.7, zorder=0)


def meta_classes_figure(table: Scores) -> Figure:
    """The columns of a report's table (``eval.report.report_table``): a dot a system with its interval, a panel a threshold."""
    columns, systems, figures = table["columns"], table["systems"], table["figures"]
    height = 3.1 * len(figures) + 0.9 + 0.22 * math.ceil(len(systems) / 3)
    figure = Figure(figsize=(10.5, height), layout="constrained")
    for axes, name in zip(figure.subplots(len(figures), 1, squeeze=False)[:, 0], figures, strict=True):
        for number, (system, entry) in enumerate(systems.items()):
            groups = [
                entry["overall"] if c["meta_class"] is None else entry["meta_class"].get(c["meta_class"])
                for c in columns
            ]
            there = [place for place, group in enumerate(groups) if group and name in group]
            values = [groups[place][name] for place in there]
            share = np.array([value["value"] for value in values])
            reach = np.array([[v["value"] - v["low"], v["high"] - v["value"]] for v in values]).T.reshape(2, -1)
            axes.errorbar(
                np.array(there) + 0.72 * ((number + 0.5) / len(systems) - 0.5),
                share,
                yerr=np.maximum(reach, 0),
                fmt="D" if entry["oracle"] else "os^vP"[number // len(PALETTE) % 5],
                markerfacecolor="white" if entry["oracle"] else None,
                markersize=5,
                linewidth=1.3,
                color=_look(number)[0],
                label=_label(f"{system} (oracle)" if entry["oracle"] else system),
                clip_on=False,
                zorder=3,
            )
        axes.axvline(0.5, color=_FAINT, linewidth=0.8)
        for border in range(1, len(columns) - 1):
            axes.axvline(border + 0.5, color="#ececec", linewidth=0.8)
        axes.set_xticks(range(len(columns)), [f"{_label(c['name'])}\nn = {c['n']:,}" for c in columns])
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_title(_spoken(name), fontsize=10, color=_INK)
        _plain(axes)
        axes.tick_params(axis="x", length=0)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.7)
    _legend(figure, figure.axes[0], loc="outside lower center", ncols=3)
    figure.suptitle(
        f"Table {table['table']}: {table['title']}, 95% intervals, {table['n']:,} objects", fontsize=12, color=_INK
    )
    return figure


def _spoken(figure: str) -> str:
    under = f"error under {figure.removeprefix('3d_').removeprefix('acc@')}°"
    return f"class right and {under}" if figure.startswith("3d_") else under


def _label(name: str) -> str:
    """A name as matplotlib draws it to the letter: not too long, no formula, not hidden by a leading underscore."""
    short = name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
    printable = "".join(sign if sign.isprintable() else "?" for sign in short)
    escaped = printable.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def _legend(where: Figure | Axes, axes: Axes, **options: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    where.legend(handles, labels, frameon=False, fontsize=8.5, **options)


def _look(number: int) -> tuple[str, str]:
    return PALETTE[number % len(PALETTE)], LINE_STYLES[number // len(PALETTE) % len(LINE_STYLES)]


def _plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_FAINT)
    axes.tick_params(colors=_INK, labelsize=8.5, color=_FAINT)
    axes.set_axisbelow(True)
