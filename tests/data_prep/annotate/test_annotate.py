"""llava-pose annotate: the real server and page in a real browser, and its labels through the real prepare."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image, ImageDraw

from data_prep.annotate.labels import Label, Labels
from data_prep.prepare.command import PrepareConfig, prepare
from data_prep.raw.imagenet3d import RawLayout, read_annotation, read_list
from llava_pose.data.records import read_records
from llava_pose.errors import InputError
from llava_pose.inference.pipeline import pipeline
from llava_pose.inference.wires import list_models, wires_of
from llava_pose.pose.geometry import project_points
from llava_pose.pose.metrics import pose_error
from tests.browser import Page
from tests.forked import free_port
from tests.forked import start as run_beside

TRUE = {"azimuth": math.radians(217.0), "elevation": math.radians(24.0), "theta": math.radians(-13.0)}
PLACE = {"distance": 9.0, "px": 300.0, "py": 210.0, "viewport": 2000.0}
CORNERS = np.array([(x, y, z) for z in (-1, 1) for y in (-1, 1) for x in (-1, 1)]) * 0.5 / math.sqrt(3)
CUBE = """OFF
8 6 0
-0.2 -0.4 -0.1
0.2 -0.4 -0.1
-0.2 0.4 -0.1
0.2 0.4 -0.1
-0.2 -0.4 0.1
0.2 -0.4 0.1
-0.2 0.4 0.1
0.2 0.4 0.1
4 0 1 3 2
4 4 5 7 6
4 0 1 5 4
4 2 3 7 6
4 0 2 6 4
4 1 3 7 5
"""
MODIFIERS = {"alt": 1, "ctrl": 2, "shift": 8}


def label(**changes: Any) -> Label:
    values = {"category": "car", "bbox": (10, 20, 200, 150), **TRUE, **PLACE}
    return Label(**{**values, **changes})


def photograph(path: Path, *, size: tuple[int, int] = (640, 480), orientation: int | None = None) -> Path:
    """A picture of a cube in the pose of the tests."""
    image = Image.new("RGB", size, (90, 110, 90))
    ImageDraw.Draw(image).polygon(
        [tuple(p) for p in project_points(CORNERS, **TRUE, **PLACE)[[0, 1, 3, 2]]], fill="white"
    )
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, exif=exif)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.png", "deeper/c.jpg"):
        photograph(tmp_path / "photos" / name)
    return tmp_path / "photos"


@dataclass
class Running:
    url: str
    process: Any
    log: Path

    def end(self) -> str:
        os.kill(self.process.pid, signal.SIGINT)
        self.process.join(60)
        assert self.process.exitcode == 0, self.log.read_text()
        return self.log.read_text()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def serve(photos: Path, out: Path, *words: str) -> Running:
        port, log = free_port(), tmp_path / f"log{len(started)}"
        process = run_beside(["annotate", str(photos), "--out", str(out), "--port", port, *words], log)
        running = Running(f"http://127.0.0.1:{port}", process, log)
        started.append(running)
        for _ in range(1200):
            assert process.is_alive(), log.read_text()
            try:
                httpx.get(f"{running.url}/")
                return running
            except httpx.TransportError:
                time.sleep(0.1)
        raise AssertionError(log.read_text())

    yield serve
    for running in started:
        running.process.kill()
        running.process.join()


def visit(page: Page, server: Running) -> None:
    page.go_to(server.url, width=1200, height=800)
    page.wait_until("typeof state !== 'undefined' && state.ready && state.objects.length")


def press(page: Page, key: str, *, times: int = 1, hold: tuple[str, ...] = ()) -> None:
    modifiers = sum(MODIFIERS[name] for name in hold)
    text = {"text": key} if len(key) == 1 and not hold else {"text": "\r"} if key == "Enter" else {}
    for _ in range(times):
        page.send("Input.dispatchKeyEvent", type="keyDown", key=key, modifiers=modifiers, **text)
        page.send("Input.dispatchKeyEvent", type="keyUp", key=key, modifiers=modifiers)


def mouse(page: Page, kind: str, x: float, y: float, **more: Any) -> None:
    page.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)


def drag(page: Page, start: tuple[float, float], end: tuple[float, float], *, modifiers: int = 0) -> None:
    held = {"button": "left", "buttons": 1, "modifiers": modifiers}
    mouse(page, "mousePressed", *start, clickCount=1, **held)
    for part in (0.5, 1.0):
        mouse(page, "mouseMoved", *(a + (b - a) * part for a, b in zip(start, end, strict=True)), **held)
    mouse(page, "mouseReleased", *end, clickCount=1, **held)


def on_screen(page: Page, u: float, v: float) -> tuple[float, float]:
    """Where a pixel of the photograph stands in the window."""
    corner = page.evaluate("(({ x, y }) => [x, y])(canvas.getBoundingClientRect())")
    return tuple(np.add(corner, page.evaluate(f"toScreen([{u}, {v}])")).tolist())


def misfit(page: Page) -> float:
    """How far the corners on the page are from where the photograph shows them, pixels."""
    shown = page.evaluate("project(CUBOID.vertices, current()).map(([u, v]) => [u, v])")
    return float(np.linalg.norm(np.array(shown) - project_points(CORNERS, **TRUE, **PLACE), axis=1).mean())


def fit_by_keys(page: Page) -> None:
    """Do what a person does: press the key that makes it fit better, coarse first, until none does."""
    turns = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"]
    places = [(key, ("alt",)) for key in turns]
    coarse = [*((key, ("shift",)) for key in turns), ("{", ()), ("}", ()), ("+", ()), ("-", ())]
    fine = [*((key, ()) for key in turns), ("[", ()), ("]", ()), ("+", ()), ("-", ())]
    for keys in ([*coarse, *((key, ("alt", "shift")) for key in turns)], [*fine, *places]):
        best, tried = misfit(page), 0
        while tried < len(keys):
            key, hold = keys[0]
            press(page, key, hold=hold)
            now = misfit(page)
            if now < best - 1e-6:
                best, tried = now, 0
            else:
                press(page, "u")
                keys.append(keys.pop(0))
                tried += 1


def saved(out: Path, category: str, name: str) -> list[dict[str, Any]]:
    return read_annotation(RawLayout(out).annotation(category, name))


# The page


def test_the_page_projects_as_the_library_does(photos, tmp_path, start, page):
    visit(page, start(photos, tmp_path / "raw"))
    rng = np.random.default_rng(0)
    for _ in range(20):
        pose = dict(zip(("azimuth", "elevation", "theta"), rng.uniform(-7, 7, 3).tolist(), strict=True))
        pose |= {
            "distance": float(rng.uniform(0.5, 9)),
            "px": 100.0,
            "py": -20.0,
            "viewport": float(rng.uniform(100, 3000)),
        }
        points = rng.normal(size=(6, 3))
        shown = page.evaluate(f"project({points.tolist()}, {json.dumps(pose)}).map(([u, v]) => [u, v])")
        shown = np.array([[math.nan if value is None else value for value in place] for place in shown], dtype=float)
        np.testing.assert_allclose(shown, project_points(points, **pose), rtol=1e-9, atol=1e-6)


def test_a_known_pose_is_reproduced_by_keys_and_goes_through_prepare(photos, tmp_path, start, page):
    out = tmp_path / "raw"
    server = start(photos, out)
    visit(page, server)
    assert page.text("#progress") == "0 of 3 labelled"
    for name, value in zip(("x1", "y1", "x2", "y2"), (180, 90, 430, 330), strict=True):
        page.evaluate(f"$('{name}').value = {value}; $('{name}').dispatchEvent(new Event('change'))")
    press(page, "k")
    page.send("Input.insertText", text="car")
    press(page, "Escape")
    fit_by_keys(page)
    press(page, "2")
    press(page, "d")
    press(page, "Enter")
    page.wait_until("state.index === 1 && state.ready")
    assert page.text("#progress") == "1 of 3 labelled"
    assert page.errors == []
    assert all(url.startswith((server.url, "data:")) for url in page.requests)

    [written] = saved(out, "car", "a")
    assert (written["object_status"], written["dense"], written["class"]) == ("status_partially", "dense_yes", "car")
    assert (written["width"], written["height"]) == (640, 480)
    prepare(PrepareConfig(str(out), str(tmp_path / "prepared"), splits="train", crop="box", size=64, workers=1))
    [record] = read_records(tmp_path / "prepared", "train")
    off = math.degrees(float(pose_error(record.pose.angles, tuple(TRUE.values()))))
    assert off < 2
    assert record.pose.distance == pytest.approx(PLACE["distance"], rel=0.05)
    raw = (np.array([record.pose.px, record.pose.py]) / record.crop["scale"]) + [
        record.crop["left"],
        record.crop["top"],
    ]
    np.testing.assert_allclose(raw, [PLACE["px"], PLACE["py"]], atol=4)


def test_the_mouse_turns_moves_zooms_and_draws_the_box(photos, tmp_path, start, page):
    visit(page, start(photos, tmp_path / "raw"))
    press(page, "b")
    drag(page, on_screen(page, 100, 80), on_screen(page, 300, 380))
    box = page.evaluate("current().bbox")
    np.testing.assert_allclose(box, [100, 80, 300, 380], atol=1.5)
    assert page.evaluate("[current().px, current().py]") == pytest.approx([200, 230], abs=2)

    def angles() -> list[float]:
        return page.evaluate("[current().azimuth, current().elevation, current().theta].map((a) => a / RADIANS)")

    press(page, "t")
    before = angles()
    drag(page, on_screen(page, 200, 200), tuple(np.add(on_screen(page, 200, 200), (50, 25))))
    assert angles() == pytest.approx([before[0] - 20, before[1] + 10, before[2]])
    drag(page, on_screen(page, 200, 200), tuple(np.add(on_screen(page, 200, 200), (-50, 0))), modifiers=8)
    assert angles() == pytest.approx([before[0] - 20, before[1] + 10, before[2] + 20])
    press(page, "u", times=2)
    assert angles() == pytest.approx(before), "a drag is one change"

    distance = page.evaluate("current().distance")
    mouse(page, "mouseWheel", *on_screen(page, 200, 200), deltaX=0, deltaY=-100)
    page.wait_until(f"current().distance < {distance}")
    press(page, "m")
    drag(page, on_screen(page, 200, 200), on_screen(page, 260, 150))
    assert page.evaluate("[current().px, current().py]") == pytest.approx([260, 180], abs=3)


def test_labels_are_kept_changed_undone_and_gone_on_with(photos, tmp_path, start, page):
    out = tmp_path / "raw"
    server = start(photos, out)
    visit(page, server)
    page.evaluate("setCategory('car'); addObject(); setCategory('cup')")
    assert page.evaluate("state.objects.map((one) => one.category)") == ["car", "cup"]
    press(page, "u")
    press(page, "u")
    assert page.evaluate("state.objects.map((one) => one.category)") == ["car"]
    press(page, "n")
    page.wait_until("state.index === 1 && state.ready")
    press(page, "p")
    page.wait_until("state.index === 0 && state.ready")
    assert page.evaluate("state.objects.map((one) => one.category)") == ["car"], "what was not saved is still there"
    assert "not saved" in page.text("#name")
    press(page, "Enter")
    page.wait_until("state.index === 1 && state.ready")
    press(page, "Delete")
    press(page, "Enter")  # nothing on it
    page.wait_until("state.index === 2 && state.ready")
    press(page, "Enter")
    assert "Choose the category" in page.text("#message")
    log = server.end()
    assert "llava-pose prepare --data-root" in log

    visit(page, start(photos, out))
    assert page.evaluate("state.index") == 2, "the first that nobody has looked at"
    assert page.text("#progress") == "2 of 3 labelled"
    page.evaluate("open(0)")
    page.wait_until("state.index === 0 && state.ready")
    page.evaluate("setCategory('cup')")
    press(page, "Enter")
    page.wait_until("state.index === 2 && state.ready")
    layout = RawLayout(out)
    assert read_list(layout.list_file("car", "train")) == []
    assert read_list(layout.list_file("cup", "train")) == ["a"]
    assert not layout.image("car", "a").exists()
    assert not layout.annotation("car", "a").exists()
    assert layout.image("cup", "a").samefile(photos / "a.jpg") or layout.image("cup", "a").is_file()


def test_models_are_laid_over_and_their_number_is_saved(photos, tmp_path, start, page):
    cad = tmp_path / "cad" / "car"
    cad.mkdir(parents=True)
    (cad / "03.off").write_text(CUBE)
    (cad / "04.off").write_text("no mesh")
    out = tmp_path / "raw"
    visit(page, start(photos, out, "--cad", str(tmp_path / "cad")))
    page.evaluate("setCategory('car')")
    page.wait_until("shapeOf(current()) !== CUBOID")
    assert page.evaluate("shapeOf(current()).edges.length") == 12
    press(page, "c")
    page.wait_until("document.getElementById('message').innerText.includes('04.off')")
    press(page, "c", times=2)
    press(page, "Enter")
    page.wait_until("state.index === 1 && state.ready")
    assert saved(out, "car", "a")[0]["cad_index"] == 3


def test_labels_start_from_the_checkpoint(taught, tmp_path, start, page):
    (tmp_path / "photos").mkdir()
    Image.open(taught.picture).save(tmp_path / "photos" / "car.png")
    out = tmp_path / "raw"
    server = start(tmp_path / "photos", out, "--checkpoint", str(taught.folder), "--device", "cpu")
    visit(page, server)
    page.evaluate("setCategory('car'); change((one) => { one.bbox = [0, 0, 160, 160]; })")
    press(page, "g")
    page.wait_until("document.getElementById('message').innerText.includes('sure')")
    angles = page.evaluate("[current().azimuth, current().elevation, current().theta]")
    assert math.degrees(float(pose_error(angles, taught.car.angles))) < 10
    press(page, "Enter")
    page.wait_until("document.getElementById('message').innerText.includes('All photographs')")
    [written] = saved(out, "car", "car")
    assert written["viewport"] == 2000.0, "the camera of all labels"
    answer = pipeline(str(taught.folder), device="cpu")(taught.picture, category="car", box=(0, 0, 160, 160))
    assert written["distance"] == pytest.approx(answer.pose.distance * 2000 / 160, rel=0.02), "as large as was answered"


def test_every_control_has_a_name_and_names_of_strangers_are_text(tmp_path, start, page):
    name = "<img src=x onerror='window.ran=1'>.jpg"
    photograph(tmp_path / "photos" / name)
    visit(page, start(tmp_path / "photos", tmp_path / "raw"))
    assert name in page.text("#name")
    assert page.evaluate("window.ran") is None
    tree = page.send("Accessibility.getFullAXTree")["nodes"]
    roles = (
        "button",
        "textbox",
        "spinbutton",
        "combobox",
        "radio",
        "checkbox",
        "application",
        "progressbar",
        "listbox",
    )
    controls = [node for node in tree if not node.get("ignored") and node["role"]["value"] in roles]
    assert len(controls) > 20
    assert [node for node in controls if not node.get("name", {}).get("value")] == []


# The server


def test_only_this_servers_name_and_json_are_answered(photos, tmp_path, start):
    server = start(photos, tmp_path / "raw")
    for path in ("/", "/api/state", "/api/pictures/0"):
        assert httpx.get(f"{server.url}{path}").status_code == 200
        refused = httpx.get(f"{server.url}{path}", headers={"host": "evil.example:80"})
        assert refused.status_code == 421
    assert httpx.post(f"{server.url}/api/labels/0", content=b'{"objects": []}').status_code == 415
    for path in (
        "/api/pictures/99",
        "/api/pictures/..%2f..%2fetc%2fpasswd",
        "/api/models/car/1",
        "/etc/passwd",
        "/../x",
    ):
        assert httpx.get(f"{server.url}{path}").status_code == 404
    bad = label().model_dump() | {"bbox": [5, 5, 5, 5]}
    answer = httpx.post(f"{server.url}/api/labels/0", json={"objects": [bad]})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("object 1: 'bbox'")
    for body in (
        {"objects": [{"category": "car"}]},
        {"objects": "none"},
        {"objects": [bad | {"category": "carr"}]},
        [1],
    ):
        assert httpx.post(f"{server.url}/api/labels/0", json=body).status_code == 400
    assert httpx.post(f"{server.url}/api/predict/0", json={}).status_code == 404
    assert not (tmp_path / "raw" / "lists").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["{photos}/nowhere", "--out", "{root}/raw"], "there is no such folder; give the folder of your photographs"),
        (["{photos}", "--out", "{photos}/raw"], "is in a folder of files that are read"),
        (["{root}/empty", "--out", "{root}/raw"], "there is no picture in this folder"),
        (["{photos}", "--out", "{root}/raw", "--cad", "{root}/nowhere"], "--cad"),
        (["{photos}", "--out", "{root}/full"], "holds something that annotate did not write"),
    ],
)
def test_what_cannot_be_labelled_is_one_sentence(photos, tmp_path, words, sentence, capsys):
    from data_prep.annotate.command import main

    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    assert main([word.format(photos=photos, root=tmp_path) for word in words]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.splitlines()) == 1


# The labels


def test_photographs_are_written_as_everybody_sees_them(tmp_path):
    photos = tmp_path / "photos"
    photograph(photos / "turned.jpg", orientation=6)
    photograph(photos / "plain.png")
    photograph(photos / "old.bmp")
    out = tmp_path / "raw"
    out.mkdir()
    labels = Labels(photos, out, split="val")
    assert labels.names == ["old.bmp", "plain.png", "turned.jpg"]
    for index in range(3):
        assert labels.save(index, [label()]) == 1
    layout = RawLayout(out)
    assert layout.image("car", "plain").samefile(photos / "plain.png")
    with Image.open(layout.image("car", "turned")) as image:
        assert (image.format, image.size, dict(image.getexif())) == ("PNG", (480, 640), {})
    assert saved(out, "car", "turned")[0]["width"] == 480
    with Image.open(layout.image("car", "old")) as image:
        assert image.format == "PNG"
    assert read_list(layout.list_file("car", "val")) == ["old", "plain", "turned"]
    prepare(PrepareConfig(str(out), str(tmp_path / "prepared"), splits="val", crop="box", size=64, workers=1))
    assert len(list(read_records(tmp_path / "prepared", "val"))) == 3


def test_photographs_of_one_name_stay_apart(tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "raw"
    for name in ("a/b.jpg", "a_b.jpg", "a_b.png"):
        photograph(photos / name)
    labels = Labels(photos, out, split="train")
    for index in range(3):
        labels.save(index, [label()])
    names = read_list(RawLayout(out).list_file("car", "train"))
    assert len(set(names)) == 3
    assert Labels(photos, out, split="train").counts() == [1, 1, 1]


def test_what_is_saved_is_read_back_in_canonical_angles(photos, tmp_path):
    labels = Labels(photos, tmp_path / "raw", split="train")
    labels.save(0, [label(), label(category="cup", azimuth=TRUE["azimuth"] + 4 * math.pi, theta=math.pi)])
    first, second = Labels(photos, tmp_path / "raw", split="train").objects(0)
    assert Label(**first) == label(**{name: first[name] for name in TRUE})
    assert [first[name] for name in TRUE] == pytest.approx(list(TRUE.values()))
    assert second["azimuth"] == pytest.approx(TRUE["azimuth"])
    assert second["category"] == "cup"


def test_a_save_that_was_stopped_is_made_right_at_the_next_start(photos, tmp_path):
    out = tmp_path / "raw"
    labels = Labels(photos, out, split="train")
    labels.save(0, [label()])
    labels.save(1, [label()])
    layout = RawLayout(out)
    layout.list_file("car", "train").unlink()  # killed before the list
    layout.annotation("car", "b").unlink()
    again = Labels(photos, out, split="train")
    assert again.counts() == [1, None, None]
    assert read_list(layout.list_file("car", "train")) == ["a"]


def test_a_category_of_ones_own_needs_the_option(photos, tmp_path):
    labels = Labels(photos, tmp_path / "raw", split="train")
    with pytest.raises(InputError, match="object 2: the category: unknown category"):
        labels.save(0, [label(), label(category="flux capacitor")])
    assert labels.counts()[0] is None
    own = Labels(photos, tmp_path / "raw", split="train", allow_custom_categories=True)
    assert own.save(0, [label(category="flux capacitor")]) == 1
    with pytest.raises(InputError, match="cannot name a folder"):
        own.save(0, [label(category="../x")])


def test_a_damaged_index_is_named(photos, tmp_path):
    for text in ("no json", '{"a.jpg": 3}', '{"a.jpg": {"name": "../x", "category": "car", "count": 1}}'):
        (tmp_path / "annotated.json").write_text(text)
        with pytest.raises(InputError, match=r"annotated\.json"):
            Labels(photos, tmp_path, split="train")


def test_wires_are_the_sharp_edges_of_a_model(tmp_path):
    (tmp_path / "car").mkdir()
    path = tmp_path / "car" / "02.off"
    path.write_text(CUBE)
    (tmp_path / "car" / "notes.off").write_text("")
    assert list_models(tmp_path) == {"car": {2: path}}
    wires = wires_of(path)
    lengths = [np.linalg.norm(wires.vertices[a] - wires.vertices[b]) for a, b in wires.edges]
    assert sorted(lengths) == pytest.approx(sorted([0.4] * 4 + [0.8] * 4 + [0.2] * 4)), "no diagonal of a face"
