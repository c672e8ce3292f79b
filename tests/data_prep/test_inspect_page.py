"""`llava-pose inspect page`: pictures with box, wireframe and axes at the right pixels, in one file."""

from __future__ import annotations

import base64
import io
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.inspect.command import main
from data_prep.inspect.page import PageConfig, choose
from data_prep.inspect.reading import open_dataset
from data_prep.inspect.wireframe import Wireframe
from data_prep.prepare.command import main as prepare
from llava_pose.data.records import Pose, Prediction, read_records, write_jsonl
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


def covered(lines: np.ndarray, start: np.ndarray, end: np.ndarray) -> float:
    """The share of a segment that lies under the lines, from the middles of many small pieces of it."""
    places = start + (end - start) * ((np.arange(100) + 0.5) / 100)[:, None]
    a, along = lines[:, 0], lines[:, 1] - lines[:, 0]
    share = np.einsum("pnk,nk->pn", places[:, None] - a, along) / np.maximum(np.einsum("nk,nk->n", along, along), 1e-12)
    nearest = a + np.clip(share, 0, 1)[..., None] * along
    return float((np.linalg.norm(places[:, None] - nearest, axis=-1).min(axis=1) < 0.7).mean())


class TestWireframe:
    @pytest.mark.parametrize("seams", [False, True], ids=["joined", "seams"])
    @pytest.mark.parametrize("turned", [False, True], ids=["wound alike", "wound both ways"])
    def test_a_cube_shows_nine_of_its_twelve_edges(self, seams, turned):
        at = pose(0.6, 0.5, 0.2)
        lines = Wireframe(cube(seams=seams, turned=turned)).lines(at, VIEWPORT)
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
            assert (share < 0.15) if hidden_corner in (a, b) else (share == 1.0), (a, b, share)
        # nothing else is drawn: no diagonals of the faces
        length = np.linalg.norm(lines[:, 1] - lines[:, 0], axis=1).sum()
        expected = sum(np.linalg.norm(corners[a] - corners[b]) for (a, b) in seen if hidden_corner not in (a, b))
        assert length == pytest.approx(expected, rel=0.06)

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
        lines = Wireframe(mesh).lines(pose(0.3, 0.2), VIEWPORT)
        away = np.linalg.norm(lines.reshape(-1, 2) - [CAMERA["px"], CAMERA["py"]], axis=1)
        expected = VIEWPORT * math.tan(math.asin(radius / CAMERA["distance"]))
        np.testing.assert_allclose(away, expected, rtol=0.03)
        length = np.linalg.norm(lines[:, 1] - lines[:, 0], axis=1).sum()
        assert 0.9 < length / (2 * math.pi * expected) < 1.6  # once round, in zigzag

    def test_lines_are_thinned(self):
        """Corrugated iron with a thousand ridges, seen from above: no more lines than can be told apart."""
        x = np.linspace(-0.4, 0.4, 1001)
        z = np.where(np.arange(1001) % 2, 0.0008, 0.0)
        ridges = np.stack([x, np.full(1001, -0.3), z], -1), np.stack([x, np.full(1001, 0.3), z], -1)
        near, far = np.arange(1000), np.arange(1000) + 1001
        faces = np.concatenate([np.stack([near, near + 1, far + 1], -1), np.stack([near, far + 1, far], -1)])
        lines = Wireframe(OffMesh(np.concatenate(ridges), faces.astype(np.int32))).lines(pose(0, 1.57), VIEWPORT)
        assert 200 <= len(lines) <= 300
        lengths = np.linalg.norm(lines[:, 1] - lines[:, 0], axis=1)
        assert np.median(lengths) == pytest.approx(0.6 * VIEWPORT / 5, rel=0.02)  # the longest: whole ridges

    def test_a_pose_without_a_place_has_no_lines(self):
        with pytest.raises(ValueError, match="distance, px and py"):
            Wireframe(cube()).lines(Pose(0.1, 0.2, 0.3), VIEWPORT)


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


class TestPage:
    def test_what_is_drawn_lies_where_it_should(self, raw, tmp_path):
        page = tmp_path / "page.html"
        assert run(raw, "--out", page, "--size", 320) == 0
        figure = figures(page)["car/car_2/0"]
        scale = 320 / 640
        with Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", figure)[1]))) as thumbnail:
            assert thumbnail.size == (320, 240)
        # the box of RawDataset.object: 0.3 and 0.8 of the width, 0.3 and 0.7 of the height
        assert '<rect x="96" y="72" width="160" height="96"/>' in figure
        path = re.search(r'<g class="wire"><path class="halo" d="([^"]+)"', figure)[1]
        drawn = np.array(re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path), dtype=float).reshape(-1, 2, 2)
        camera = {"azimuth": 1.0, "elevation": 0.3, "theta": 0.1, "distance": 5.0, "viewport": 2000.0}
        corners = (
            project_points(read_off(raw / "CAD/car/01.off").vertices, **camera, px=0.52 * 640, py=0.47 * 480) * scale
        )
        ends = drawn.reshape(-1, 2)
        assert ends.min(0) == pytest.approx(corners.min(0), abs=0.1)
        assert ends.max(0) == pytest.approx(corners.max(0), abs=0.1)
        front = (
            project_points(np.array([[0.0, -1e-6, 0.0], [0.0, -0.1, 0]]), **camera, px=0.52 * 640, py=0.47 * 480)
            * scale
        )
        arrow = re.search(
            r'x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)" stroke="#00c853"', figure
        )  # green: the front
        start, tip = np.array(arrow.groups(), dtype=float).reshape(2, 2)
        assert start == pytest.approx(front[0], abs=0.1)
        along, expected = tip - start, front[1] - front[0]
        assert along @ expected / np.linalg.norm(along) / np.linalg.norm(expected) > 0.99

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
        assert found[records[4].id].count('<g class="axes') == 2
        assert 'class="axes dashed"' in found[records[4].id]
        assert 'class="wire"' in found[records[4].id]
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
            (["--count", "0"], "--count 0: must be at least 1"),
            (["--cad", "nowhere"], "--cad nowhere: there is no such folder"),
        ],
    )
    def test_refusals(self, raw, tmp_path, capsys, words, said):
        assert run(raw, "--out", tmp_path / "page.html", *words) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "page.html").exists()
