"""Statistics as people read them: a page of text, and one picture of plots."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

WIDTH = 100
_BARS = " ▁▂▃▄▅▆▇█"
_LONGEST_TABLE = 40  # categories that are named; the JSON has all
_SENTENCE = 160


def report_text(found: Mapping[str, Any]) -> str:
    """The statistics of :func:`data_prep.inspect.statistics.statistics` as text."""
    return "\n".join(_lines(found)) + "\n"


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"{found['path']}: {found['what']}"
    yield (
        f"{found['entries']:,} {_noun(found['kind'])}, {found['pictures']:,} pictures, {found['poses']:,} poses, "
        f"{found['categories']} categories"
    )
    for key, title in (
        ("by_split", "split"),
        ("by_status", "status"),
        ("by_source", "source"),
        ("by_meta_class", "meta class"),
    ):
        if found[key]:
            yield f"{title + ':':<12}" + ", ".join(f"{name} {count:,}" for name, count in found[key].items())
    yield from _categories(found["by_category"])
    yield from _histograms(found["angles"])
    yield from _sizes(found)
    if "texts" in found:
        yield from _texts(found["texts"])
    if "systems" in found:
        yield from _systems(found["systems"])
    yield from _counted("missing fields", found["missing"])
    yield from _examples("problems", found["problems"])
    yield from _examples("duplicates", found["duplicates"])


def _noun(kind: str) -> str:
    names = {"instructions": "conversations", "captions": "captions", "predictions": "predictions"}
    return names.get(kind, "objects")


def _categories(by_category: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    if not by_category:
        return
    splits = sorted({split for counts in by_category.values() for split in counts})
    yield ""
    yield f"{'category':<28}" + "".join(f"{split:>10}" for split in splits)
    order = sorted(by_category, key=lambda name: (-sum(by_category[name].values()), name))
    for name in order[:_LONGEST_TABLE]:
        yield f"{name:<28}" + "".join(f"{by_category[name].get(split, 0):>10,}" for split in splits)
    if len(order) > _LONGEST_TABLE:
        yield f"and {len(order) - _LONGEST_TABLE} categories more, in the JSON"


def _histograms(angles: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, angle in angles.items():
        if not angle["counts"]:
            continue
        most = max(angle["counts"]) or 1
        # what is there at all is seen
        bars = "".join(
            _BARS[0 if not count else max(1, round(count / most * (len(_BARS) - 1)))] for count in angle["counts"]
        )
        high = angle["low"] + angle["bin_degrees"] * len(angle["counts"])
        yield ""
        yield f"{name:<10} |{bars}| {angle['low']}° to {high}°, {angle['bin_degrees']}° a bar"
        yield (
            f"{'':<10} mean {angle['mean_degrees']:.1f}°, concentration {angle['concentration']:.2f} (1: all the same), "
            f"{angle['empty_bins']} of {len(angle['counts'])} bars empty"
        )


def _sizes(found: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        ("distance", found["distance"]),
        ("picture width", found["picture_size"].get("width")),
        ("picture height", found["picture_size"].get("height")),
        ("box, longer side", found["box"].get("longer_side")),
        ("box, width/height", found["box"].get("width_by_height")),
        ("box, of the picture", found["box"].get("share_of_picture")),
    ]
    rows = [(name, values) for name, values in rows if values]
    if rows:
        yield ""
        yield f"{'':<22}" + "".join(f"{name:>10}" for name in ("least", "5%", "25%", "median", "75%", "95%", "most"))
    for name, values in rows:
        yield f"{name:<22}" + "".join(f"{value:>10.4g}" for value in values.values())
    if found["box"].get("over_the_edge"):
        yield f"{found['box']['over_the_edge']:,} boxes reach over the edge of their picture"


def _texts(texts: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    if texts["words"]:
        yield f"words of a text: median {texts['words']['p50']:g}, from {texts['words']['p0']:g} to {texts['words']['p100']:g}"
    yield f"{texts['different_texts']:,} different texts; turns: {_listed(texts['turns'])}"
    yield f"<pose6D> in a text: {_listed(texts['tokens_of_poses'])}"
    if texts["kinds"]:
        yield f"kinds: {_listed(texts['kinds'])}"
    for item in texts["most_frequent_last_turns"]:
        yield f"{item['count']:>8,} times: {_short(item['text'])}"


def _systems(systems: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield ""
    yield f"{'system':<28}{'answers':>10}{'no pose':>10}{'median':>10}{'< 30°':>10}{'category':>10}"
    for name, counts in systems.items():
        named = counts["with_category"]
        category = f"{counts['category_right'] / named:.1%}" if named else "-"
        yield (
            f"{name[:27]:<28}{counts['predictions']:>10,}{counts['without_pose']:>10,}"
            f"{counts['median_error_degrees']:>9.1f}°{counts['within_30_degrees']:>10.1%}{category:>10}"
        )
    yield "a first look; llava-pose score says it with intervals"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count:,}" for name, count in list(counts.items())[:12]) or "none"


def _counted(title: str, counts: Mapping[str, int]) -> Iterator[str]:
    yield ""
    yield f"{title}: " + (", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none")


def _examples(title: str, groups: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield f"{title}: " + ("" if groups else "none")
    for name, group in groups.items():
        first = group["examples"][0]
        text = " = ".join(first) if isinstance(first, list) else first
        yield f"{group['count']:>8,} {name}, such as {_short(text)}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SENTENCE else line[: _SENTENCE - 1] + "…"


def report_plots(found: Mapping[str, Any]) -> bytes:
    """Angles, box sizes and categories as one PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    categories = sorted(found["by_category"], key=lambda name: sum(found["by_category"][name].values()))
    shown = categories[-_LONGEST_TABLE:]
    figure = Figure(figsize=(12, 6.5 + max(0, len(shown) - 12) * 0.16), layout="constrained", dpi=110)
    figure.suptitle(f"{found['path']}: {found['entries']:,} {_noun(found['kind'])}", fontsize=12)
    grid = figure.add_gridspec(2, 3)
    _plot_azimuth(figure.add_subplot(grid[0, 0], projection="polar"), found["angles"]["azimuth"])
    for place, name in (((0, 1), "elevation"), ((1, 0), "theta")):
        _plot_angle(figure.add_subplot(grid[place]), name, found["angles"][name])
    _plot_sizes(figure.add_subplot(grid[1, 1]), found)
    _plot_categories(figure.add_subplot(grid[:, 2]), shown, found["by_category"], len(categories))
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream)
    return stream.getvalue()


_BLUE = "#3b6fb6"


def _plot_azimuth(axes: Any, angle: Mapping[str, Any]) -> None:
    import numpy as np

    axes.set_title("azimuth (0°: the front)", fontsize=10)
    axes.set_theta_zero_location("S")  # the camera stands before the front, below on the page
    axes.tick_params(labelsize=7)
    if angle["counts"]:
        width = np.radians(angle["bin_degrees"])
        centres = (np.arange(len(angle["counts"])) + 0.5) * width
        axes.bar(centres, angle["counts"], width=width, color=_BLUE)


def _plot_angle(axes: Any, name: str, angle: Mapping[str, Any]) -> None:
    axes.set_title(f"{name} (degrees)", fontsize=10)
    axes.tick_params(labelsize=8)
    counts = angle["counts"]
    if counts:
        step = angle["bin_degrees"]
        lefts = [angle["low"] + step * number for number in range(len(counts))]
        axes.bar(lefts, counts, width=step, align="edge", color=_BLUE)
        axes.set_xlim(angle["low"], angle["low"] + step * len(counts))
        axes.set_xticks(
            range(angle["low"], angle["low"] + step * len(counts) + 1, 3 * step if len(counts) < 20 else 90)
        )


def _plot_sizes(axes: Any, found: Mapping[str, Any]) -> None:
    """Quantiles: the statistics keep no single sizes."""
    axes.set_title("sizes: median, half and 90% of all (pixels)", fontsize=10)
    rows = [
        ("box, longer side", found["box"].get("longer_side")),
        ("picture height", found["picture_size"].get("height")),
        ("picture width", found["picture_size"].get("width")),
    ]
    rows = [(name, values) for name, values in rows if values]
    for number, (_, values) in enumerate(rows):
        axes.plot([values["p5"], values["p95"]], [number, number], color=_BLUE, linewidth=2, solid_capstyle="butt")
        axes.plot([values["p25"], values["p75"]], [number, number], color=_BLUE, linewidth=9, solid_capstyle="butt")
        axes.plot([values["p50"]], [number], "|", color="white", markersize=9, markeredgewidth=2)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
    axes.set_ylim(-0.6, max(len(rows), 1) - 0.4)
    axes.tick_params(axis="x", labelsize=8)


def _plot_categories(axes: Any, shown: Sequence[str], by_category: Mapping[str, Mapping[str, int]], total: int) -> None:
    axes.set_title(
        "categories" if len(shown) == total else f"the {len(shown)} most frequent of {total} categories", fontsize=10
    )
    colours = ("#3b6fb6", "#e0923d", "#4f9d69", "#9367b4", "#888888")
    splits = sorted({split for name in shown for split in by_category[name]})
    lefts = [0] * len(shown)
    for number, split in enumerate(splits):
        counts = [by_category[name].get(split, 0) for name in shown]
        axes.barh(range(len(shown)), counts, left=lefts, label=split, color=colours[min(number, len(colours) - 1)])
        lefts = [left + count for left, count in zip(lefts, counts, strict=True)]
    for place, total_of in enumerate(lefts):  # the rare ones have no bar that is seen
        axes.text(total_of, place, f" {total_of:,}", va="center", fontsize=7)
    axes.margins(x=0.12)
    axes.set_yticks(range(len(shown)), [name[:22] for name in shown], fontsize=7 if len(shown) > 12 else 8)
    axes.tick_params(axis="x", labelsize=8)
    if len(splits) > 1:
        axes.legend(fontsize=8, loc="lower right")
