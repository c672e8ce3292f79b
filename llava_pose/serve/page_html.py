"""The HTML of the demo's page: its head, the legend, the poses as table and files. What visitors and models say is escaped."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llava_pose.inference.drawing import AXIS_COLOURS
from llava_pose.inference.pose_lines import csv_text, pose_line
from llava_pose.serve.session import ChatSession, angles_in_degrees, possible_words, shown_name

if TYPE_CHECKING:
    from llava_pose.inference.answers import PoseAnswer

ANGLES_EXPLAINED = """
- **Azimuth**: from which side the camera sees the object. 0° is its front; 90° is the side that is on the right for
  somebody who looks at the front.
- **Elevation**: how high the camera stands. 0° is level, 90° looks straight down.
- **In-plane**: how far the picture is tilted, counter-clockwise.
- **Distance**: in lengths of the object, for a camera of ordinary field of view (53°). The cube has this length from corner
  to corner. The object's own proportions are not known: a CAD model that is drawn in its place is one of its kind, not itself.
- **Sure**: the model's own estimate that it is less than 30° wrong.
"""


def head(names: Sequence[str], known: Sequence[Sequence[str]]) -> str:
    """Return the page's head: what it is for, and what each checkpoint is called and was taught."""
    told = []
    for name, taught in zip(names, known, strict=True):
        listed = ", ".join(html.escape(shown_name(category)) for category in taught)
        count = (
            f"was taught {len(taught)} categor{'y' if len(taught) == 1 else 'ies'}"
            if taught
            else "does not say what it was taught"
        )
        said = f"<b>{html.escape(name)}</b> {count}"
        told.append(
            f"<details><summary>{said}</summary>It was taught {listed}.</details>" if taught else f"<div>{said}</div>"
        )
    return (
        '<div class="head"><h1>LLaVA-pose</h1><p>Show a picture and ask how an object in it is turned. The angles '
        f"come from the model's pose head, and are drawn on the picture.</p>{''.join(told)}</div>"
    )


def legend() -> str:
    """Return what the colours of the axes mean."""
    names = {"front": "front", "up": "up", "left": "its left"}
    parts = [
        f'<span style="color: rgb{AXIS_COLOURS[name]}; font-weight: 600" aria-hidden="true">&#9632;</span> '
        f"{words} ({colour})"
        for (name, words), colour in zip(names.items(), ("green", "blue", "red"), strict=True)
    ]
    return f'<p class="legend">{" &nbsp; ".join(parts)}</p>'


def table(objects: Sequence[PoseAnswer]) -> str:
    """Return the poses of an answer as a table; nothing where there are none."""
    if not objects:
        return ""
    rows = "".join(_rows(number, one, len(objects)) for number, one in enumerate(objects, start=1))
    heads = "".join(
        f'<th scope="col">{name}</th>' for name in ("Object", "Azimuth", "Elevation", "In-plane", "Distance", "Sure")
    )
    return f'<table class="poses"><caption>Poses of the latest answer</caption><thead><tr>{heads}</tr></thead>{rows}</table>'


def _rows(number: int, one: PoseAnswer, count: int) -> str:
    name = html.escape(shown_name(one.category))
    angles = "".join(f"<td>{angle:.1f}°</td>" for angle in angles_in_degrees(one.pose))
    distance = "" if one.pose.distance is None else f"{one.pose.distance:.2f}"
    words = html.escape(possible_words(one))
    return (
        f"<tbody><tr><td>{f'{number} ' if count > 1 else ''}{name}</td>{angles}<td>{distance}</td>"
        f"<td>{one.confidence:.0%}</td></tr>"
        + (f'<tr><td colspan="6" class="words">{words}</td></tr>' if words else "")
        + "</tbody>"
    )


def files(chat: ChatSession, objects: Sequence[PoseAnswer], name: str) -> str:
    """Return links to the poses as files, which the page itself holds; nothing where there are none."""
    if not objects:
        return ""
    lines = [pose_line(f"{name}#{index}", name, chat.picture.size, chat.box, one) for index, one in enumerate(objects)]
    links = [
        _link("poses.csv", "text/csv", csv_text(lines)),
        _link("poses.jsonl", "application/jsonl", "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)),
    ]
    return f'<p class="poses-files">Download: {"".join(links)}</p>'


def _link(name: str, kind: str, content: str) -> str:
    data = base64.b64encode(content.encode()).decode()
    return f'<a download="{name}" href="data:{kind};base64,{data}">{name}</a>'
