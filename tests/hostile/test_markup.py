"""What data say is text: HTML of it is shown as it stands in every page, and no control character reaches a terminal."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from data_prep.caption.command import main as caption_main
from data_prep.inspect.command import main as inspect_main
from eval.leaderboard import main as leaderboard_main
from eval.report.html_report import main as report_main
from eval.score import main as score_main
from eval.systems.vlm_api import main as vlm_main
from eval.tables import main as tables_main
from llava_pose.data.convert import main as convert_main
from llava_pose.utils.files import printable
from tests.hostile.data_commands import POSE, device, fifo, picture, prepared_with, record, sparse, time_limit

HTML = {
    "script": "<script>alert(1)</script>",
    "picture": "<img src=x onerror=alert(1)>",
    "quote": '" onmouseover="alert(1)',
    "single_quote": "' onmouseover='alert(1)",
    "comment": "<!-- ",
    "end_of_pre": "</pre></details><script>alert(1)</script>",
    "template": "${title} $summary {{7*7}} {% raw %}",
    "entity": "&lt;script&gt;",
    "svg": "<svg onload=alert(1)>",
    "link": "[a](javascript:alert(1))",
}
CONTROLS = {
    "clear": "\x1b[2J",
    "title": "\x1b]0;owned\x07",
    "one_byte_csi": "\x9b31m",
    "delete": "\x7f",
    "backspace": "car\b\b\bbus",
    "carriage_return": "car\rbus",
    "reversed": "\u202egnp",
    "isolated": "\u2066car",
    "line_separator": "a\u2028b",
}
_HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class Tags(HTMLParser):
    """Collects what a browser would take for markup."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add(tag)
        self.found |= {name for name, _ in attrs if name.startswith("on")}
        self.found |= {value for name, value in attrs if name in ("href", "src") and "script" in (value or "")}


def folder_that_says(tmp_path: Path, text: str) -> Path:
    """A prepared folder with the text wherever a record may hold one, beside captions, conversations and predictions of it."""
    says = record(
        2, object_status=text, source={"source": text, "instance": text, "absent": text, "class": text, "image": text}
    )
    prepared = prepared_with(tmp_path / "prepared", says)
    picture(prepared / "val/car/n2_00.JPEG")
    image = "val/car/n2_00.JPEG"
    caption = {"image": image, "status": "ok", "caption": f"A car at <pose6D> {text}", "objects": ["car/n2/0"]}
    failed = {"image": "val/car/n1_00.JPEG", "status": "failed", "caption": "", "objects": [], "reason": text}
    captions = "".join(f"{json.dumps({**line, 'writer': text})}\n" for line in (caption, failed))
    (prepared / "captions.jsonl").write_text(captions)
    turns = [{"from": "human", "value": f"<image>\n{text}"}, {"from": "gpt", "value": f"At <pose6D> {text}"}]
    sample = {"id": text, "image": image, "conversations": turns, "poses": [POSE], "category": text, "kinds": [text]}
    (prepared / "train.json").write_text(json.dumps([sample, {**sample, "poses": text}, {text: 1}]))
    angles = {name: POSE[name] for name in ("azimuth", "elevation", "theta")}
    line = {"id": text, "system": text, "category": text, "pred_category": text, "pose": angles, "true": angles}
    others = {**line, "system": f"other {text}", "source": text, "instance": text}
    (prepared / "predictions.jsonl").write_text("".join(f"{json.dumps(value)}\n" for value in (line, others)))
    return prepared


SOURCES = ["", "val/metadata.jsonl", "captions.jsonl", "train.json", "predictions.jsonl"]


@pytest.mark.parametrize("text", [*HTML.values(), *CONTROLS.values()], ids=[*HTML, *CONTROLS])
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source or "folder")
def test_pages_show_markup_as_text(tmp_path: Path, source: str, text: str, capsys: Any) -> None:
    prepared, page = folder_that_says(tmp_path, text), tmp_path / "page.html"
    words = [str(prepared / source), "--out", str(page), "--prepared", str(prepared), "--no-wireframes"]
    assert inspect_main(["page", *words]) == 0
    tags = Tags()
    tags.feed(page.read_text(encoding="utf-8"))
    assert not tags.found & {"script", "onerror", "onmouseover", "onload"}
    assert not any("javascript" in found for found in tags.found)
    assert page.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert inspect_main([str(prepared / source), "--prepared", str(prepared)]) == 0
    said = capsys.readouterr()
    assert not _HARMFUL.search(said.out)
    assert not _HARMFUL.search(
        "\n".join(line.rsplit("\r", 1)[-1] for line in said.err.split("\n")).replace("\x1b[A", "")
    )


def test_scores_and_tables(tmp_path: Path, capsys: Any) -> None:
    """Drawing takes a second: all texts are systems of one file."""
    texts = [*HTML.values(), *CONTROLS.values()]
    angles = {name: POSE[name] for name in ("azimuth", "elevation", "theta")}
    lines = [
        {"id": f"car/n{n}/0", "system": text, "category": "car", "pred_category": text, "pose": angles, "true": angles}
        for text in texts
        for n in range(2)
    ]
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert score_main([str(path), "--out", str(tmp_path / "scores.json")]) == 0
    assert tables_main(["--table", "3", str(path), "--out", str(tmp_path / "table.md")]) == 0
    assert not _HARMFUL.search(capsys.readouterr().out)
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "script" in table
    assert not re.search(r"(?<!\\)[<\[]", table)
    assert not _HARMFUL.search(table)


def systems_that_say(texts: list[str], records: list[dict[str, Any]]) -> str:
    """The lines of systems whose every name is one of the texts."""
    angles = {name: POSE[name] for name in ("azimuth", "elevation", "theta")}
    lines = []
    for text in texts:
        says = {"system": text, "pred_category": text, "source": text, "instance": text, "dense": text, "note": text}
        for of in records:
            own = {"id": of["id"], "category": of["category"], "object_status": of.get("object_status")}
            lines.append({**own, **says, "pose": angles, "true": angles, "confidence": 0.5})
    return "".join(f"{json.dumps(line)}\n" for line in lines)


def require_no_markup(page: str, scripts: int) -> None:
    tags = Tags()
    tags.feed(page)
    assert page.count("<script") == scripts
    assert not tags.found & {"onerror", "onmouseover", "onload", "svg", "i"}
    assert not any("javascript:" in found for found in tags.found)
    assert page.rstrip().endswith("</html>")
    assert not _HARMFUL.search(page)


def test_reports_and_leaderboards(tmp_path: Path, capsys: Any) -> None:
    texts = [*HTML.values(), *CONTROLS.values(), "</script><script>alert(1)</script>", "$\\frac$", "x" * 100_000]
    records = [record(0), record(1)]
    for number, text in enumerate(HTML.values(), start=2):
        name = text.replace("/", "").strip()
        records.append(record(number, category=name, object_status=text, source={"source": text, "instance": text}))
        picture(tmp_path / "prepared" / "val" / f"car/n{number}_00.JPEG")
    prepared, sent = prepared_with(tmp_path / "prepared", *records[2:]), tmp_path / "sent"
    sent.mkdir()
    (sent / "all.jsonl").write_text(systems_that_say(texts, records))
    words = [sent / "all.jsonl", "--data", prepared, "--out", tmp_path / "report.html", "--tile", "64", "--cases", "1"]
    assert report_main(list(map(str, words))) == 0
    require_no_markup((tmp_path / "report.html").read_text(encoding="utf-8"), scripts=1)
    (sent / "all.jsonl").write_text(systems_that_say(texts[:-1], records))
    (sent / "long.jsonl").write_text(systems_that_say(texts[-1:], records))
    (sent / "quoted.jsonl").write_text(systems_that_say(["quoted"], [record(0, id=f"car/{'x' * 1_000_000}/0")]))
    for text in [*HTML.values(), *CONTROLS.values()]:
        (sent / f"{text}.jsonl".replace(os.sep, "")).write_text(systems_that_say([f"of {text}"], records[:1]))
    (sent / os.fsdecode(b"\xff.jsonl")).write_text(systems_that_say(["bytes"], records))
    for make in (fifo, device, sparse):
        make(sent / f"{make.__name__}.jsonl")
    with time_limit(120):
        assert leaderboard_main([str(sent), "--data", str(prepared), "--out", str(tmp_path / "site")]) == 0
    board = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    require_no_markup(board, scripts=0)
    assert len(board) < 500_000
    said = capsys.readouterr()
    assert not _HARMFUL.search(said.out + said.err.replace("\r", "").replace("\x1b[A", ""))


@pytest.mark.parametrize("text", CONTROLS.values(), ids=CONTROLS)
def test_prompts_that_are_printed(tmp_path: Path, text: str, capsys: Any) -> None:
    category = {"class": text}
    prepared = prepared_with(tmp_path / "prepared", record(2, category="my\u00a0car", source=category))
    picture(prepared / "val/car/n2_00.JPEG")
    for main, words in ((caption_main, ["--split", "val"]), (vlm_main, ["--split", "val"])):
        assert main(["--data", str(prepared), *words, "--dry-run"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len([json.loads(line) for line in lines]) == 3
        assert not any(map(_HARMFUL.search, lines))


@pytest.mark.parametrize("text", CONTROLS.values(), ids=CONTROLS)
def test_text_that_is_shown(text: str) -> None:
    assert not _HARMFUL.search(printable(text))
    assert json.loads(printable(json.dumps(text, ensure_ascii=False))) == text
    assert printable("Élan 汽车\n\tü") == "Élan 汽车\n\tü"


@pytest.mark.parametrize("text", CONTROLS.values(), ids=CONTROLS)
def test_names_of_files_in_messages(tmp_path: Path, text: str, capsys: Any) -> None:
    path = tmp_path / f"{text}.jsonl".replace(os.sep, "")
    path.write_text("no json\n")
    assert score_main([str(path), "--out", str(tmp_path / "scores.json")]) == 2
    assert not _HARMFUL.search(capsys.readouterr().err)


def test_a_name_without_an_end_is_cut_in_messages(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "poses.jsonl"
    poses = {"pose": {"azimuth": 0, "elevation": 0, "theta": 0}}
    path.write_text("".join(f"{json.dumps({'id': 'x' * 100_000, **poses})}\n" for _ in range(2)))
    words = [str(path), "--to-format", "colmap", "--out", str(tmp_path / "images.txt")]
    assert convert_main(words) == 2
    assert 1000 < len(capsys.readouterr().err) < 20_000


@pytest.mark.parametrize("mark", ["\u061c", "\u200e", "\u200f", "\ufeff", "\U000e0041"])
def test_marks_that_are_not_seen_are_written_out(mark: str) -> None:
    assert mark not in printable(f"a{mark}b")
