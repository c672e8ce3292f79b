"""A small prepared folder with good and hostile lines, and every command that reads one, as the command line starts it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from llava_pose.data.poses.posed_object import PosedObject
from llava_pose.data.records import Pose

GOOD = 2
POSE = {"azimuth": 0.7, "elevation": 0.2, "theta": -0.1, "distance": 4.0, "px": 30.0, "py": 30.0}


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise TimeoutError where a command waits for a FIFO, or reads a device that has no end."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    earlier = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)


def record(number: int, **changes: Any) -> dict[str, Any]:
    """A good line of metadata.jsonl, changed; a change of ... takes the field out."""
    values = {
        "file_name": f"car/n{number}_00.JPEG",
        "id": f"car/n{number}/0",
        "category": "car",
        "pose": POSE,
        "viewport": 200.0,
        "width": 64,
        "height": 64,
        "bbox": [8.0, 8.0, 56.0, 56.0],
        "crop": {"left": 0.0, "top": 0.0, "scale": 1.0},
        "source": {
            "image": f"images/car/n{number}.JPEG",
            "annotation": f"annotations/car/n{number}.npz",
            "width": 64,
            "height": 64,
        },
        **changes,
    }
    return {name: value for name, value in values.items() if value is not ...}


def picture(path: Path, colour: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), (colour, 10, 200)).save(path, "JPEG")
    return path


def prepared_with(folder: Path, *hostile: dict[str, Any] | str) -> Path:
    """A prepared folder with two good records and these lines behind them; text stands in the file as it is."""
    lines: list[dict[str, Any] | str] = [record(number) for number in range(GOOD)]
    for number in range(GOOD):
        picture(folder / "val" / f"car/n{number}_00.JPEG", 50 * number)
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in [*lines, *hostile])
    (folder / "val" / "metadata.jsonl").write_text(text, encoding="utf-8")
    return folder


@dataclass(frozen=True)
class Command:
    """One command over a prepared folder.

    Attributes:
        words: of its command line, given the prepared folder and a folder to write in.
        main: name of its module, "package.module".
        code: its exit code where a record cannot be used and the others are done.
        done: whether the good objects are done, given the folder that it wrote in.
    """

    module: str
    words: Callable[[Path, Path], Sequence[Any]]
    done: Callable[[Path], bool]
    code: int = 2
    before: Callable[[Path, Path], None] = field(default=lambda prepared, out: None)

    def run(self, prepared: Path, out: Path) -> int:
        from importlib import import_module

        out.mkdir(exist_ok=True)
        self.before(prepared, out)
        with time_limit(60):
            return import_module(self.module).main([str(word) for word in self.words(prepared, out)])


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def predictions_of(prepared: Path, out: Path) -> None:
    """A prediction of each good object, and of the one that stands behind them."""
    angles = {name: POSE[name] for name in ("azimuth", "elevation", "theta")}
    lines = []
    for number in range(GOOD + 1):
        lines.append({"id": f"car/n{number}/0", "system": "ours", "category": "car", "pose": angles, "true": angles})
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (out / "p.jsonl").write_text(text, encoding="utf-8")


COMMANDS = {
    "export": Command(
        "data_prep.export",
        lambda prepared, out: ["--data", prepared, "--out", out / "processed"],
        lambda out: lines_of(out / "processed/val/lists/car/mesh01.txt") == GOOD,
    ),
    "caption": Command(
        "data_prep.caption.command",
        lambda prepared, out: ["--data", prepared, "--split", "val", "--out", out / "captions.jsonl"],
        lambda out: lines_of(out / "captions.jsonl") == GOOD,
    ),
    "instruct": Command(
        "data_prep.instruct.command",
        lambda prepared, out: ["--data", prepared, "--split", "val", "--out", out / "train.json", "--kinds", "pose"],
        lambda out: (
            {sample["record"] for sample in json.loads((out / "train.json").read_text())}
            == {f"car/n{number}/0" for number in range(GOOD)}
        ),
    ),
    "sheet": Command(
        "eval.report.contact_sheet",
        lambda prepared, out: [
            "--data",
            prepared,
            "--predictions",
            out / "p.jsonl",
            "--out",
            out / "sheet.png",
            "--tile",
            "64",
        ],
        lambda out: (out / "sheet.png").is_file(),
        before=predictions_of,
    ),
    "report": Command(
        "eval.report.html_report",
        lambda prepared, out: [out / "p.jsonl", "--data", prepared, "--out", out / "report.html", "--tile", "64"],
        lambda out: (out / "report.html").read_text().count("<figure") == GOOD,
        before=predictions_of,
    ),
    "inspect": Command(
        "data_prep.inspect.command",
        lambda prepared, out: [prepared],
        lambda out: True,  # its text is looked at in the tests
        code=0,
    ),
    "inspect-page": Command(
        "data_prep.inspect.command",
        lambda prepared, out: ["page", prepared, "--out", out / "page.html"],
        lambda out: (out / "page.html").read_text().count("data:image/jpeg") == GOOD,
        code=0,
    ),
}


def fifo(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    return path


def device(path: Path) -> Path:
    """A link to a file without an end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("/dev/zero")
    return path


def sparse(path: Path) -> Path:
    """Ten thousand million bytes that take no room on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.truncate(10**10)
    return path


def posed_object(**changes: Any) -> PosedObject:
    """A good object in its picture, with changes."""
    values = {"id": "a", "picture": "p.jpg", "category": "car", "pose": Pose(0.1, 0.2, 0.3, 4.0, 30.0, 40.0)}
    more = {"camera": (200.0, 200.0, 32.0, 32.0), "width": 64.0, "height": 64.0, "size": (1.0, 2.0, 1.0)}
    return PosedObject(**{**values, **more, **changes})
