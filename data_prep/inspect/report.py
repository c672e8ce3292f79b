"""Statistics as people read them: a page of text, and an HTML page with plots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment, FileSystemLoader, select_autoescape

_BARS = " ▁▂▃▄▅▆▇█"
_LONGEST_TABLE = 40  # categories that are named; the JSON has all
_NOUNS = {"instructions": "conversations", "captions": "captions", "predictions": "predictions"}


def _bars(counts: Sequence[int]) -> str:
    """Return a histogram in one line, where what is there at all is seen."""
    return "".join(_BARS[math.ceil(count / max(counts) * (len(_BARS) - 1))] for count in counts)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 160 else f"{line[:159]}…"


def _environment() -> Environment:
    """Return the templates of the room; in HTML, whatever comes from data is text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=select_autoescape(["html"]),
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(bars=_bars, short=_short)
    return environment


def fill(template: str, **values: Any) -> str:
    """Fill one of the templates.

    Args:
        template: the file in ``templates/``.
    """
    return _environment().get_template(template).render(**values)


def _for_people(found: Mapping[str, Any]) -> dict[str, Any]:
    counts = {name: sum(of_split.values()) for name, of_split in found["by_category"].items()}
    return {
        **found,
        "noun": _NOUNS.get(found["kind"], "objects"),
        "splits": sorted({split for of_split in found["by_category"].values() for split in of_split}),
        "frequent": sorted(counts, key=lambda name: (-counts[name], name))[:_LONGEST_TABLE],
        "most": max(counts.values(), default=0),
    }


def statistics_text(found: Mapping[str, Any]) -> str:
    """Return the statistics of :func:`data_prep.inspect.statistics.statistics` as text."""
    return fill("statistics.txt", **_for_people(found))


def statistics_page(found: Mapping[str, Any]) -> str:
    """Return the statistics as an HTML page: histograms of the angles, bars of the categories, and the text."""
    values = _for_people(found)
    summary = f"{found['what']}, {found['entries']:,} {values['noun']}"
    return fill(
        "statistics.html", title=found["path"], summary=summary, text=statistics_text(found), column=320, **values
    )
