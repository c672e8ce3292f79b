"""`llava-pose inspect align`: CAD models of a meta class side by side, front and up plain to see."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.inspect.align_views import FRONT_VIEW, OBLIQUE_VIEW, draw_view, standing
from data_prep.inspect.command import main
from data_prep.render.mesh import off_text
from data_prep.render.parametric import build
from llava_pose.pose.meshes import OffMesh, read_off

GREEN = np.array([0, 200, 83])


def write_model(path: Path, category: str, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(off_text(build(category, np.random.default_rng(seed))))


@pytest.fixture
def cad(tmp_path) -> Path:
    root = tmp_path / "CAD"
    for category, models in (("car", 2), ("bus", 1), ("chair", 1), ("hammer", 1)):
        for number in range(1, models + 1):
            write_model(root / category / f"{number:02d}.off", category, number)
    write_model(root / "gadget" / "01.off", "cup")
    return root


def run(cad: Path, out: Path, *options: str) -> int:
    return main(["align", "--cad", str(cad), "--out", str(out), "--tile", "64", *options])


def views(sheet: Path) -> dict[str, list[np.ndarray]]:
    """The pictures of each category of a sheet."""
    found = {}
    for strip in sheet.read_text().split("<h2>")[1:]:
        data = re.findall(r"data:image/png;base64,([^\"]+)", strip)
        images = [Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB") for content in data]
        found[strip.split(" ")[0]] = [np.asarray(image).astype(int) for image in images]
    return found


def is_green(picture: np.ndarray) -> np.ndarray:
    return np.abs(picture - GREEN).max(axis=-1) < 40


def test_a_sheet_for_each_meta_class(cad, tmp_path):
    assert run(cad, tmp_path / "sheets") == 0
    names = {path.name for path in (tmp_path / "sheets").iterdir()}
    assert names == {"Vehicles.html", "Furniture.html", "Work.html", "Other.html"}
    found = views(tmp_path / "sheets" / "Vehicles.html")
    assert {name: len(pictures) for name, pictures in found.items()} == {"bus": 2, "car": 4}  # one bus, two cars
    for picture in (*found["bus"], *found["car"]):
        assert picture.shape == (64, 64, 3)
        assert is_green(picture).any()  # an arrow to the front
        assert (picture < 150).any()  # and a model


def test_options(cad, tmp_path):
    assert run(cad.parent, tmp_path / "sheets", "--categories", "car", "bus", "--models", "1") == 0
    assert [path.name for path in (tmp_path / "sheets").iterdir()] == ["Vehicles.html"]
    assert [len(pictures) for pictures in views(tmp_path / "sheets" / "Vehicles.html").values()] == [2, 2]


def test_a_table_turns_what_is_drawn(cad, tmp_path):
    table = tmp_path / "table.json"
    table.write_text(json.dumps({"hammer": {"turns": [["y", 180]], "front": "its face", "up": "its handle"}}))
    for name in ("none", "builtin", str(table)):
        out = tmp_path / Path(name).stem
        assert run(cad, out, "--table", name, "--categories", "hammer", "chair", "--models", "1") == 0
    turned = [views(tmp_path / name / "Work.html")["hammer"][0] for name in ("none", "builtin", "table")]
    assert (turned[0] != turned[1]).any()
    assert (turned[1] != turned[2]).any()
    chairs = [views(tmp_path / name / "Furniture.html")["chair"] for name in ("none", "table")]
    np.testing.assert_array_equal(*chairs)


def test_a_damaged_model_stops_nothing(cad, tmp_path, caplog):
    (cad / "car" / "01.off").write_text("OFF\n3 4\n")
    assert run(cad, tmp_path / "sheets") == 0
    assert "01.off: it is cut off" in caplog.text
    sheet = tmp_path / "sheets" / "Vehicles.html"
    assert "cannot be read" in sheet.read_text()
    assert [len(pictures) for pictures in views(sheet).values()] == [2, 2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--categories", "boat"], "--categories boat: there is no"),
        (["--models", "0"], "--models: must be over 0, not '0'"),
        (["--table", "nowhere.json"], "nowhere.json: cannot be read"),
    ],
)
def test_refusals(cad, tmp_path, capsys, options, said):
    assert run(cad, tmp_path / "sheets", *options) == 2
    assert said in capsys.readouterr().err


def test_folders_without_models(tmp_path, capsys):
    assert run(tmp_path / "none", tmp_path / "sheets") == 2
    assert "there is no such folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", tmp_path / "sheets") == 2
    assert "there is no <category>/NN.off in it" in capsys.readouterr().err


class TestViews:
    """A slab with a post at its front left corner (its own left, +x), seen as people see it."""

    @pytest.fixture(scope="class")
    def slab(self, tmp_path_factory) -> OffMesh:
        path = tmp_path_factory.mktemp("cad") / "slab.off"
        boxes = [((-0.3, -0.3, -0.05), (0.3, 0.3, 0.05)), ((0.2, -0.3, 0.05), (0.3, -0.2, 0.4))]
        corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
        quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
        vertices = np.concatenate([np.array(low) + corners * (np.array(high) - low) for low, high in boxes])
        lines = [" ".join(map(str, vertex)) for vertex in vertices.tolist()]
        lines += [f"4 {a + shift} {b + shift} {c + shift} {d + shift}" for shift in (0, 8) for a, b, c, d in quads]
        path.write_text(f"OFF\n{len(vertices)} 12 0\n" + "\n".join(lines) + "\n")
        return read_off(path)

    def drawn(self, slab: OffMesh, view: tuple[float, float]) -> np.ndarray:
        return np.asarray(draw_view(standing(slab), view, 200)).astype(int)

    @staticmethod
    def material(picture: np.ndarray) -> np.ndarray:
        """Pixels of the model: bluish, unlike floor, paper and arrows."""
        return (picture[..., 2] - picture[..., 0] > 8) & ~is_green(picture)

    def test_the_front_is_seen_from_the_front(self, slab):
        picture = self.drawn(slab, FRONT_VIEW)
        rows, columns = np.nonzero(self.material(picture))
        top = rows < rows.min() + 40
        assert columns[top].min() > 115  # the post stands at the viewer's right: +x
        assert rows[~top].max() > 100  # and above the slab
        arrow_rows, arrow_columns = np.nonzero(is_green(picture))
        assert arrow_rows.mean() > rows.max() - 12  # before the model, below it on the picture
        assert abs(arrow_columns.mean() - 100) < 4

    def test_the_oblique_view_is_from_the_objects_left(self, slab):
        picture = self.drawn(slab, OBLIQUE_VIEW)
        rows, columns = np.nonzero(self.material(picture))
        top = rows < rows.min() + 20
        assert abs(columns[top].mean() - 100) < 12  # the corner of front and left is the nearest: in the middle
        arrow_columns = np.nonzero(is_green(picture))[1]
        assert arrow_columns.mean() < 80  # the front is at the viewer's left
        assert OBLIQUE_VIEW[0] == pytest.approx(math.radians(45))

    def test_a_shadow_lies_on_the_floor(self, slab):
        lifted = slab._replace(vertices=np.concatenate([slab.vertices[:8] + np.array([0, 0, 0.5]), slab.vertices[8:]]))
        picture = self.drawn(lifted, FRONT_VIEW)
        grey = (np.ptp(picture, axis=-1) < 10) & (picture.mean(-1) > 150) & (picture.mean(-1) < 200)
        assert grey.sum() > 100
