"""`llava-pose inspect page`: pictures with box, wireframe and axes at the right pixels, in one file."""

from __future__ import annotations

import base64
import io
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import maximum_filter

from data_prep.inspect.command import main
from data_prep.inspect.outline import Models, caster_of, outline
from data_prep.inspect.page import PageConfig, choose
from data_prep.inspect.reading import open_dataset
from data_prep.prepare.command import main as prepare
from data_prep.render.scene import Camera
from llava_pose.data.jsonl import write_jsonl
from llava_pose.data.records import Pose, Prediction, read_records
from llava_pose.pose.geometry import project_points
from llava_pose.pose.meshes import OffMesh, read_off

CUBE_CORNERS = np.array([[x, y, z] for x in (-0.3, 0.3) for y in (-0.3, 0.3) for z in (-0.3, 0.3)])
CUBE_FACES = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
CAMERA = {"distance": 5.0, "px": 128.0, "py": 120.0}
VIEWPORT = 1200.0


def cube(*, seams: bool = False, turned: bool = False) -> OffMesh:
    """Twelve triangles. With seams every triangle has corners of its own; turned, some look inwards."""
    faces = np.array([f for a, b, c, d in CUBE_FACES for f in ((a, b, c), (a, c, d))], dtype=np.int32)
    if turned:
        faces[::3] = faces[::3, ::-1]
    if seams:
        return OffMesh(CUBE_CORNERS[faces].reshape(-1, 3), np.arange(3 * len(faces), dtype=np.int32).reshape(-1, 3))
    return OffMesh(CUBE_CORNERS, faces)


def pose(azimuth: float, elevation: float, theta: float = 0.0) -> Pose:
    return Pose(azimuth, elevation, theta, **CAMERA)


def pixels(points: np.ndarray, at: Pose) -> np.ndarray:
    angles = {"azimuth": at.azimuth, "elevation": at.elevation, "theta": at.theta}
    return project_points(points, **angles, **CAMERA, viewport=VIEWPORT)


def drawn(mesh: OffMesh, at: Pose) -> np.ndarray:
    """The lines of a model, (256, 256) from 0 to 1."""
    return outline(caster_of(mesh), Camera(*at.angles, **CAMERA, width=256, height=256, viewport=VIEWPORT))


def covered(lines: np.ndarray, start: np.ndarray, end: np.ndarray) -> float:
    """The share of a segment that lies under the lines, from the middles of many small pieces of it."""
    places = start + (end - start) * ((np.arange(100) + 0.5) / 100)[:, None]
    near = maximum_filter(lines, 3) > 0.5
    x, y = np.floor(places).astype(int).T
    return float(near[y, x].mean())


class TestOutline:
    @pytest.mark.parametrize("seams", [False, True], ids=["joined", "seams"])
    @pytest.mark.parametrize("turned", [False, True], ids=["wound alike", "wound both ways"])
    def test_a_cube_shows_nine_of_its_twelve_edges(self, seams, turned):
        at = pose(0.6, 0.5, 0.2)
        lines = drawn(cube(seams=seams, turned=turned), at)
        corners = pixels(CUBE_CORNERS, at)
        centre = 5.0 * np.array([math.cos(0.5) * math.sin(0.6), -math.cos(0.5) * math.cos(0.6), math.sin(0.5)])
        hidden_corner = int(np.argmax(np.linalg.norm(CUBE_CORNERS - centre, axis=1)))
        seen = {
            (a, b): covered(lines, corners[a], corners[b])
            for a in range(8)
            for b in range(a)
            if np.count_nonzero(CUBE_CORNERS[a] != CUBE_CORNERS[b]) == 1
        }
        assert len(seen) == 12
        for (a, b), share in seen.items():
            assert (share < 0.15) if hidden_corner in (a, b) else (share > 0.95), (a, b, share)
        # nothing else is drawn: no diagonals of the faces
        expected = sum(np.linalg.norm(corners[a] - corners[b]) for (a, b) in seen if hidden_corner not in (a, b))
        assert lines.sum() == pytest.approx(expected, rel=0.4)

    def test_a_ball_is_its_outline(self):
        """A smooth body has no sharp edges: a circle is drawn, of the radius that perspective gives."""
        n, radius = 48, 0.4
        around, down = np.meshgrid(2 * np.pi * np.arange(n) / n, np.pi * (np.arange(n - 1) + 1) / n)
        points = radius * np.stack([np.sin(down) * np.cos(around), np.sin(down) * np.sin(around), np.cos(down)], -1)
        vertices = np.concatenate([points.reshape(-1, 3), [[0, 0, radius], [0, 0, -radius]]])
        index = np.arange(n * (n - 1)).reshape(n - 1, n)
        right = np.roll(index, -1, axis=1)
        faces = [np.stack([index[:-1], index[1:], right[1:]], -1), np.stack([index[:-1], right[1:], right[:-1]], -1)]
        caps = [np.stack([np.full(n, len(vertices) - 2), index[0], right[0]], -1)]
        caps += [np.stack([np.full(n, len(vertices) - 1), right[-1], index[-1]], -1)]
        mesh = OffMesh(vertices, np.concatenate([f.reshape(-1, 3) for f in (*faces, *caps)]).astype(np.int32))
        lines = drawn(mesh, pose(0.3, 0.2))
        y, x = np.nonzero(lines > 0.3)
        away = np.hypot(x + 0.5 - CAMERA["px"], y + 0.5 - CAMERA["py"])
        expected = VIEWPORT * math.tan(math.asin(radius / CAMERA["distance"]))
        np.testing.assert_allclose(away, expected, rtol=0.03)
        assert 0.7 < lines.sum() / (2 * math.pi * expected) < 1.6  # once round

    def test_a_rough_surface_is_not_filled_with_lines(self):
        """Corrugated iron with a thousand ridges, seen from above: no more lines than can be told apart."""
        x = np.linspace(-0.4, 0.4, 1001)
        z = np.where(np.arange(1001) % 2, 0.0008, 0.0)
        ridges = np.stack([x, np.full(1001, -0.3), z], -1), np.stack([x, np.full(1001, 0.3), z], -1)
        near, far = np.arange(1000), np.arange(1000) + 1001
        faces = np.concatenate([np.stack([near, near + 1, far + 1], -1), np.stack([near, far + 1, far], -1)])
        lines = drawn(OffMesh(np.concatenate(ridges), faces.astype(np.int32)), pose(0, 1.57))
        covered_pixels = 0.8 * 0.6 * (VIEWPORT / 5) ** 2
        assert lines.sum() < 0.1 * covered_pixels
        corners = pixels(np.array([[-0.4, -0.3, 0], [-0.4, 0.3, 0], [0.4, -0.3, 0], [0.4, 0.3, 0]]), pose(0, 1.57))
        for a, b in ((0, 1), (2, 3), (0, 2), (1, 3)):
            assert covered(lines, corners[a], corners[b]) > 0.95

    def test_what_has_no_place_has_no_lines(self, raw):
        entry = open_dataset(raw).entries[0]
        models = Models(raw / "CAD")
        assert models.outline(entry, (64, 48), 0.1) is not None
        for changes in (
            {"poses": ()},
            {"poses": (Pose(0.1, 0.2, 0.3),)},
            {"poses": entry.poses * 2},
            {"viewport": None},
            {"category": "boat"},
        ):
            assert models.outline(replace(entry, **changes), (64, 48), 0.1) is None


@pytest.fixture
def raw(raw_dataset) -> Path:
    """Cars and cups seen in known poses, with a cube for a CAD model."""
    for number in range(6):
        raw_dataset.add(f"car_{number}", objects=[raw_dataset.object(azimuth=0.5 * number, elevation=0.3, theta=0.1)])
    raw_dataset.add(
        "mug", category="cup", split="val", objects=[raw_dataset.object(**{"class": "cup", "cad_index": 2})]
    )
    path = raw_dataset.layout.cad("car", 1)
    path.parent.mkdir(parents=True)
    mesh = cube()
    lines = [" ".join(map(repr, vertex)) for vertex in mesh.vertices.tolist()]
    lines += [f"3 {a} {b} {c}" for a, b, c in mesh.faces]
    path.write_text(f"OFF\n8 {len(mesh.faces)} 0\n" + "\n".join(lines) + "\n")
    return raw_dataset.root


def run(*words: object) -> int:
    return main(["page", *map(str, words)])


def figures(page: Path) -> dict[str, str]:
    """The HTML of every sample by its id."""
    text = page.read_text()
    found = re.findall(r"<figure>.*?</figure>", text, re.DOTALL)
    return {re.search(r"<b>(.*?)</b>", figure)[1]: figure for figure in found}


def picture_of(figure: str, kind: str) -> np.ndarray:
    """One of the pictures of a sample, as numbers."""
    (data,) = re.findall(rf"data:image/{kind};base64,([^\"]+)", figure)
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        return np.asarray(image).astype(int)


def extent(mask: np.ndarray) -> tuple[float, ...]:
    """The least and the greatest x and y of what is set, as (x1, y1, x2, y2)."""
    y, x = np.nonzero(mask)
    return (x.min(), y.min(), x.max() + 1, y.max() + 1)


class TestPage:
    def test_what_is_drawn_lies_where_it_should(self, raw, tmp_path):
        page = tmp_path / "page.html"
        Image.new("RGB", (640, 480)).save(raw / "images/car/car_2.JPEG")  # on which all colours are told apart
        assert run(raw, "--out", page, "--size", 320) == 0
        figure = figures(page)["car/car_2/0"]
        scale = 320 / 640
        plain, drawn = picture_of(figure, "jpeg"), picture_of(figure, "png")
        assert plain.shape == (240, 320, 3)
        assert drawn.shape == (240, 320, 4)
        opaque = drawn[..., 3] == 255
        # the box of RawDataset.object: 0.3 and 0.8 of the width, 0.3 and 0.7 of the height
        assert extent(opaque & (drawn[..., :3] == (255, 213, 0)).all(-1)) == pytest.approx((96, 72, 257, 169), abs=1)
        camera = {"azimuth": 1.0, "elevation": 0.3, "theta": 0.1, "distance": 5.0, "viewport": 2000.0}
        place = {"px": 0.52 * 640, "py": 0.47 * 480}
        corners = project_points(read_off(raw / "CAD/car/01.off").vertices, **camera, **place) * scale
        magenta = opaque & (drawn[..., 0] > 150) & (drawn[..., 1] < 60) & (drawn[..., 2] > 120)
        assert extent(magenta) == pytest.approx((*corners.min(0), *corners.max(0)), abs=1.5)
        front = project_points(np.array([[0.0, -1e-6, 0.0], [0.0, -0.1, 0]]), **camera, **place) * scale
        y, x = np.nonzero(opaque & (drawn[..., :3] == (0, 200, 83)).all(-1))  # green: the front
        along, expected = np.array([x.mean(), y.mean()]) - front[0], front[1] - front[0]
        assert along @ expected / np.linalg.norm(along) / np.linalg.norm(expected) > 0.98

    def test_one_file_without_scripts_or_requests(self, raw, tmp_path):
        page = tmp_path / "page.html"
        assert run(raw, "--out", page) == 0
        text = page.read_text()
        assert "<script" not in text
        assert set(re.findall(r'(?:src|href)="([^"]{5})', text)) <= {"data:"}
        assert "7 of 7 shown (spread), 6 with a wireframe" in text  # the cup has no model
        assert text.count("<figure>") == 7
        assert "Statistics" in text

    def test_names_are_text_whatever_they_hold(self, raw_dataset, tmp_path):
        raw_dataset.add("<b>&amp;", objects=[raw_dataset.object(**{"class": "<script>alert(1)</script>"})])
        page = tmp_path / "page.html"
        assert run(raw_dataset.root, "--out", page) == 0
        text = page.read_text()
        assert "<script" not in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
        assert "car/&lt;b&gt;&amp;amp;/0" in text

    def test_prepared_records_find_the_models_they_were_made_of(self, raw, tmp_path):
        prepared, page = tmp_path / "prepared", tmp_path / "page.html"
        assert prepare(["--data-root", str(raw), "--out", str(prepared), "--size", "128", "--workers", "1"]) == 0
        assert run(prepared, "--out", page, "--categories", "car", "--size", 128) == 0
        assert "6 of 7 shown (spread), 6 with a wireframe" in page.read_text()
        assert run(prepared, "--out", page, "--no-wireframes") == 0
        assert "0 with a wireframe" in page.read_text()
        assert run(prepared, "--out", page, "--cad", raw, "--splits", "val") == 0
        assert "1 of 7 shown" in page.read_text()

    def test_predictions_with_their_pictures(self, raw, tmp_path):
        prepared, page, file = tmp_path / "prepared", tmp_path / "page.html", tmp_path / "predictions.jsonl"
        assert prepare(["--data-root", str(raw), "--out", str(prepared), "--size", "128", "--workers", "1"]) == 0
        records = read_records(prepared, "train")
        off = [0.0, 0.2, 0.4, 0.8, 1.0]
        answers = [
            Pose(r.pose.azimuth + turn, r.pose.elevation, r.pose.theta) for r, turn in zip(records, off, strict=False)
        ]
        lines = [
            Prediction(r.id, "net", r.category, "cup", answer, r.pose).to_dict()
            for r, answer in zip(records, [*answers, None], strict=True)
        ]
        write_jsonl(file, lines)
        assert run(file, "--prepared", prepared, "--out", page, "--select", "worst", "--count", 3) == 0
        found = figures(page)
        assert set(found) == {records[5].id, records[4].id, records[3].id}
        assert "no pose, error 180.0°" in found[records[5].id]
        assert "called cup" in found[records[4].id]
        drawn = picture_of(found[records[4].id], "png")
        assert 0.03 < (drawn[..., 3] == 255).mean() < 0.5
        assert run(file, "--out", page) == 0  # without pictures
        assert "no picture is known; give --prepared" in page.read_text()

    def test_a_missing_or_damaged_picture_is_said(self, raw, tmp_path):
        (raw / "images/car/car_1.JPEG").unlink()
        (raw / "images/car/car_2.JPEG").write_bytes(b"no picture")
        page = tmp_path / "page.html"
        assert run(raw, "--out", page) == 0
        found = figures(page)
        assert "cannot read the picture" in found["car/car_1/0"]
        assert "no picture of a known format" in found["car/car_2/0"]
        assert "data:image/jpeg" in found["car/car_3/0"]

    def test_a_damaged_model_is_said_once(self, raw, tmp_path, caplog):
        (raw / "CAD/car/01.off").write_text("OFF\n9 9 9\n")
        page = tmp_path / "page.html"
        assert run(raw, "--out", page) == 0
        assert "0 with a wireframe" in page.read_text()
        assert sum("01.off: it is cut off" in record.message for record in caplog.records) == 1

    def test_choices(self, raw):
        dataset = open_dataset(raw)
        spread = choose(dataset, PageConfig(data="", count=3))
        assert sorted(entry.category for entry in spread) == ["car", "car", "cup"]
        assert spread == choose(dataset, PageConfig(data="", count=3))
        assert len({tuple(e.id for e in choose(dataset, PageConfig(data="", count=3, seed=s))) for s in range(8)}) > 1
        [entry] = choose(dataset, PageConfig(data="", ids=["cup/mug/0"]))
        assert entry.id == "cup/mug/0"

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--categories", "boat"], "--categories leave nothing to show"),
            (["--splits", "test", "--ids", "a"], "--splits and --ids leave nothing to show"),
            (["--select", "worst"], "is a dataset in the raw layout and has no errors"),
            (["--count", "0"], "--count: must be over 0, not '0'"),
            (["--cad", "nowhere"], "--cad nowhere: there is no such folder"),
        ],
    )
    def test_refusals(self, raw, tmp_path, capsys, words, said):
        assert run(raw, "--out", tmp_path / "page.html", *words) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "page.html").exists()
