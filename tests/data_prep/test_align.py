"""`llava-pose align`: models and annotations are turned together, exactly, and everything else stays."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from data_prep.align import CONFIG_FILE, TABLE_FILES, main
from data_prep.raw.alignment import (
    AlignmentTable,
    builtin_table,
    parse_table,
    read_table,
    rotation_of_turns,
    turned_angles,
)
from data_prep.raw.imagenet3d import plain, read_annotation
from llava_pose.errors import InputError
from llava_pose.pose import categories
from llava_pose.pose.categories import Category
from llava_pose.pose.geometry import canonicalize, geodesic_angle_of_poses, project_points, rotation_matrix
from llava_pose.pose.meshes import read_off

TABLE_FILE = TABLE_FILES["both"]
TABLE = {
    "slipper": {"turns": [["x", -90], ["z", 180]], "rule": "semantic parts", "reason": "as the shoe", "front": "toe"},
    "billbard_table": {"turns": [["z", 90]]},
    "cup": {"turns": [["y", 33.3]], "cads": {"2": {"turns": [["x", 180], ["z", 12.5]], "reason": "upside down"}}},
}


@pytest.fixture
def table() -> AlignmentTable:
    return parse_table(TABLE, where="test")


def projections(vertices: np.ndarray, raw: dict) -> np.ndarray:
    fields = ("azimuth", "elevation", "theta", "distance", "px", "py", "viewport", "focal")
    return project_points(vertices, **{name: raw[name] for name in fields})


class TestTable:
    @pytest.mark.parametrize(
        ("turns", "expected"),
        [
            ([], np.eye(3)),
            ([["z", 90]], [[0, -1, 0], [1, 0, 0], [0, 0, 1]]),
            ([["x", -90]], [[1, 0, 0], [0, 0, 1], [0, -1, 0]]),
            ([["y", 180]], np.diag([-1, 1, -1])),
            ([["z", 450]], [[0, -1, 0], [1, 0, 0], [0, 0, 1]]),
            ([["x", 90], ["z", 90]], [[0, 0, 1], [1, 0, 0], [0, 1, 0]]),  # x first
        ],
    )
    def test_turns_by_right_angles_are_exact(self, turns, expected):
        rotation = rotation_of_turns([tuple(turn) for turn in turns])
        np.testing.assert_array_equal(rotation, expected)
        assert not np.signbit(rotation[rotation == 0]).any()

    def test_turns_are_right_handed_rotations(self):
        rotation = rotation_of_turns([("z", 30.0), ("y", -200.0), ("x", 77.7)])
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-15)
        assert np.linalg.det(rotation) == pytest.approx(1)
        x, y, _ = rotation_of_turns([("z", 30.0)]) @ [1, 0, 0]
        assert (x, y) == pytest.approx((math.cos(math.pi / 6), 0.5))

    def test_who_is_turned(self, table):
        np.testing.assert_array_equal(table.rotation("billiard_table"), rotation_of_turns([("z", 90)]))  # by its alias
        assert table.rotation("car") is None
        assert table.names("billbard_table")
        assert not table.names("car")
        of_category = rotation_of_turns([("y", 33.3)])
        np.testing.assert_array_equal(table.rotation("cup"), of_category)
        np.testing.assert_array_equal(table.rotation("cup", 1), of_category)
        # the single model first comes into the frame of its category
        single = rotation_of_turns([("x", 180), ("z", 12.5)])
        np.testing.assert_array_equal(table.rotation("cup", 2), of_category @ single)

    def test_a_table_of_single_models_leaves_the_others(self):
        table = parse_table({"cup": {"cads": {"2": {"turns": [["z", 180]]}}}}, where="test")
        assert table.names("cup")
        assert table.rotation("cup", 1) is None
        np.testing.assert_array_equal(table.rotation("cup", 2), np.diag([-1, -1, 1]))

    def test_the_inverse_takes_everything_back(self, table):
        back = table.inverted()
        for name, cad_index in (("slipper", 1), ("billiard_table", 0), ("cup", 0), ("cup", 1), ("cup", 2)):
            product = back.rotation(name, cad_index) @ table.rotation(name, cad_index)
            np.testing.assert_allclose(product, np.eye(3), atol=1e-15)

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            ([], "the table must be an object"),
            ({"cup": []}, "cup: expected an object with turns, rule"),
            ({"cup": {"turn": []}}, "cup: there is no field 'turn'; known fields: turns, rule"),
            ({"cup": {}}, "neither 'turns' nor 'cads'"),
            ({"cup": {"turns": [["w", 90]]}}, "'turns' must be a list such as"),
            ({"cup": {"turns": [["x", "90"]]}}, "'turns' must be a list such as"),
            ({"cup": {"turns": [["x", math.inf]]}}, "'turns' must be a list such as"),
            ({"cup": {"turns": [["x", True]]}}, "'turns' must be a list such as"),
            ({"cup": {"turns": {"x": 90}}}, "'turns' must be a list such as"),
            ({"cup": {"turns": [], "rule": "because"}}, "'rule' must be one of semantic parts, similar shapes"),
            ({"cup": {"turns": [], "reason": 3}}, "'reason' must be text"),
            ({"cup": {"cads": {"one": {"turns": []}}}}, "keys are numbers of CAD models"),
            ({"cup": {"cads": {"0": {"turns": []}}}}, "keys are numbers of CAD models"),
            ({"cup": {"cads": {"1": {}}}}, "cads 1: 'turns' must be a list"),
            ({"cup": {"cads": {"1": {"turns": [], "rule": "x"}}}}, "cup, cads 1: there is no field 'rule'"),
            ({"trolleybus": {"turns": []}, "trolley_bus": {"turns": []}}, "trolleybus stands in the table twice"),
        ],
    )
    def test_a_wrong_table_is_one_sentence(self, tmp_path, value, said):
        path = tmp_path / "table.json"
        path.write_text(json.dumps(value))
        with pytest.raises(InputError) as error:
            read_table(path)
        assert said in str(error.value)
        assert str(path) in str(error.value)

    def test_files_that_are_no_table(self, tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_table(tmp_path / "none.json")
        (tmp_path / "half.json").write_text('{"cup": ')
        with pytest.raises(InputError, match=r"half\.json: not valid JSON"):
            read_table(tmp_path / "half.json")


class TestBuiltinTable:
    def test_it_names_categories_of_the_taxonomy_and_says_why(self):
        table = builtin_table()
        assert table.entries
        for name, entry in table.entries.items():
            assert categories.get(name).name == name
            assert entry.rule
            assert len(entry.reason) > 20
            assert np.linalg.det(entry.rotation) == 1
            if not np.array_equal(entry.rotation, np.eye(3)):
                assert entry.front
                assert entry.up

    def test_the_taxonomys_symmetries_and_flips_stay_true(self):
        """Flips and symmetric errors of aligned data go by the taxonomy, which speaks of the frame before."""
        table = builtin_table()
        for name in table.entries:
            category, turned = categories.get(name), table.in_common_frame(categories.get(name))
            assert turned.symmetry == category.symmetry
            if category.mirror_axis == "x":  # what training flips
                assert turned.mirror_axis == "x"

    def test_words_of_the_common_frame(self):
        hammer, turned = categories.get("hammer"), builtin_table().in_common_frame(categories.get("hammer"))
        assert (hammer.mirror_axis, turned.mirror_axis) == ("y", "x")
        assert turned.front == "the striking face, the claw or pick reaching to the rear"
        assert f"the front is {turned.front}, and up points to {turned.up}." in turned.description
        assert hammer.front not in turned.description
        car = categories.get("car")
        assert builtin_table().in_common_frame(car) is car


class TestInCommonFrame:
    def test_symmetries_go_with_the_axes(self):
        table = parse_table({"barbell": {"turns": [["z", 90]]}, "bottle": {"turns": [["x", 90]]}}, where="test")
        barbell = table.in_common_frame(categories.get("barbell"))
        assert barbell.symmetry == ("2-fold", "continuous", "2-fold")
        assert barbell.mirror_axis == "y"
        bottle = table.in_common_frame(categories.get("bottle"))
        assert bottle.symmetry == ("none", "continuous", "none")
        assert bottle.mirror_axis == "x"

    def test_a_level_mirror_plane_is_none_and_slanting_turns_are_refused(self):
        table = parse_table({"car": {"turns": [["y", 90]]}, "cup": {"turns": [["z", 10]]}}, where="test")
        assert table.in_common_frame(categories.get("car")).mirror_axis is None
        with pytest.raises(ValueError, match="other than right angles"):
            table.in_common_frame(categories.get("cup"))
        custom = Category.custom("gadget")
        assert table.in_common_frame(custom) is custom


class TestTurnedAngles:
    def test_the_turned_model_looks_as_before(self):
        rng = np.random.default_rng(0)
        vertices = rng.uniform(-0.5, 0.5, (200, 3))
        for _ in range(50):
            rotation = rotation_of_turns([(axis, rng.uniform(-360, 360)) for axis in "xyzx"])
            camera = {"distance": rng.uniform(1.5, 8), "px": 130.0, "py": 90.0, "viewport": 2000.0}
            angles = rng.uniform(-6, 6, 3)
            turned = turned_angles(angles, rotation)
            names = ("azimuth", "elevation", "theta")
            before = project_points(vertices, **dict(zip(names, angles, strict=True)), **camera)
            after = project_points(vertices @ rotation.T, **dict(zip(names, turned, strict=True)), **camera)
            assert np.abs(before - after).max() < 1e-9  # pixels
            back = turned_angles(turned, rotation, inverse=True)
            assert geodesic_angle_of_poses(back, angles) < 1e-12
            np.testing.assert_allclose(turned, np.stack(canonicalize(*turned)), atol=1e-12)

    def test_gimbal_lock(self):
        """A slipper seen from the front is, turned, seen from straight above: only theta - azimuth is defined."""
        rotation = rotation_of_turns([("x", 90)])
        azimuth, elevation, theta = turned_angles((0.0, 0.0, 0.4), rotation)
        assert abs(elevation) == pytest.approx(math.pi / 2)
        assert theta == 0
        np.testing.assert_allclose(
            rotation_matrix(azimuth, elevation, theta), rotation_matrix(0, 0, 0.4) @ rotation.T, atol=1e-15
        )


@pytest.fixture
def raw(raw_dataset) -> Path:
    """Objects of turned and of other categories, with CAD models."""
    rng = np.random.default_rng(0)

    def cad(category: str, index: int) -> None:
        path = raw_dataset.layout.cad(category, index)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [" ".join(f"{x:.4f}" for x in vertex) for vertex in rng.uniform(-0.5, 0.5, (30, 3))]
        path.write_text("OFF\n30 1 0\n" + "\n".join(lines) + "\n3 0 1 2\n")

    for category in ("slipper", "car", "billbard_table"):
        cad(category, 1)
    for index in (1, 2):
        cad("cup", index)
    make = raw_dataset.object
    raw_dataset.add("a_slipper", category="slipper", objects=[make(**{"class": "slipper"})])
    raw_dataset.add(
        "two_cups",
        category="cup",
        split="val",
        objects=[
            make(**{"class": "cup", "azimuth": 5.0}),
            make(**{"class": "cup", "cad_index": 2, "note": "kept"}),
            make(),  # a car in the picture of the cups
        ],
    )
    raw_dataset.add("a_table", category="billbard_table", objects=[make(**{"class": ...})])  # by its folder
    raw_dataset.add("a_car")
    raw_dataset.add("a_bad_slipper", category="slipper", objects=[make(**{"class": "slipper", "azimuth": ...})])
    return raw_dataset.root


def run(raw: Path, out: Path, *options: str) -> int:
    return main(["--data-root", str(raw), "--out", str(out), "--workers", "1", *options])


@pytest.fixture
def table_file(tmp_path) -> str:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(TABLE))
    return str(path)


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


class TestAlign:
    def test_every_vertex_stays_on_its_pixel(self, raw, tmp_path, table_file):
        out = tmp_path / "aligned"
        assert run(raw, out, "--table", table_file) == 0
        turned = 0
        for path in sorted((raw / "annotations").glob("*/*.npz")):
            before, after = read_annotation(path), read_annotation(out / path.relative_to(raw))
            assert len(before) == len(after)
            for old, new in zip(before, after, strict=True):
                assert list(old) == list(new)
                changed = {name for name in old if plain(old[name]) != plain(new[name])}
                assert changed <= {"azimuth", "elevation", "theta"}
                turned += bool(changed)
                if "azimuth" not in old:
                    continue
                category = old.get("class", path.parent.name)
                model = Path("CAD") / category / f"{old['cad_index']:02d}.off"
                vertices_before, vertices_after = read_off(raw / model).vertices, read_off(out / model).vertices
                difference = projections(vertices_before, old) - projections(vertices_after, new)
                assert np.abs(difference).max() < 1e-9
        assert turned == 4

    def test_what_is_not_turned_is_the_same_file(self, raw, tmp_path, table_file):
        out = tmp_path / "aligned"
        assert run(raw, out, "--table", table_file) == 0
        before, after = tree(raw), tree(out)
        assert set(after) == {*before, CONFIG_FILE, TABLE_FILE}
        changed = {name for name in before if before[name] != after[name]}
        assert changed == {
            "CAD/slipper/01.off",
            "CAD/cup/01.off",
            "CAD/cup/02.off",
            "CAD/billbard_table/01.off",
            "annotations/slipper/a_slipper.npz",
            "annotations/cup/two_cups.npz",
            "annotations/billbard_table/a_table.npz",
        }
        assert json.loads(after[TABLE_FILE]) == TABLE
        assert os.path.samefile(raw / "CAD/car/01.off", out / "CAD/car/01.off")

    def test_copies(self, raw, tmp_path, table_file):
        out = tmp_path / "aligned"
        assert run(raw, out, "--table", table_file, "--files", "copy") == 0
        assert not os.path.samefile(raw / "CAD/car/01.off", out / "CAD/car/01.off")
        assert (raw / "CAD/car/01.off").read_bytes() == (out / "CAD/car/01.off").read_bytes()

    def test_there_and_back(self, raw, tmp_path, table_file):
        out, back = tmp_path / "aligned", tmp_path / "back"
        assert run(raw, out, "--table", table_file) == 0
        assert run(out, back, "--inverse") == 0
        assert not (back / TABLE_FILE).exists()
        for path in sorted(raw.glob("CAD/*/*.off")):
            then, now = read_off(path), read_off(back / path.relative_to(raw))
            np.testing.assert_allclose(now.vertices, then.vertices, atol=1e-15)
            np.testing.assert_array_equal(now.faces, then.faces)
        for path in sorted(raw.glob("annotations/*/*.npz")):
            pairs = zip(read_annotation(path), read_annotation(back / path.relative_to(raw)), strict=True)
            for then, now in pairs:
                if "azimuth" in then:
                    angles = [[raw["azimuth"], raw["elevation"], raw["theta"]] for raw in (then, now)]
                    assert geodesic_angle_of_poses(*angles) < 1e-12

    def test_a_stopped_run_goes_on(self, raw, tmp_path, table_file, caplog):
        out, whole = tmp_path / "aligned", tmp_path / "whole"
        assert run(raw, out, "--table", table_file) == 0
        assert run(raw, whole, "--table", table_file) == 0
        for name in ("annotations/cup/two_cups.npz", "CAD/cup/02.off", "lists/car_imagenet_train.txt", TABLE_FILE):
            (out / name).unlink()
        (out / "CAD" / "cup" / ".02.off.99.tmp").write_text("half of a model")  # of a run that was killed
        untouched = (out / "CAD/cup/01.off").stat().st_mtime_ns
        caplog.clear()
        caplog.set_level("INFO")
        assert run(raw, out, "--table", table_file) == 0
        assert "1 CAD models turned" in caplog.text
        assert "2 objects turned" in caplog.text
        assert tree(out) == tree(whole)
        assert (out / "CAD/cup/01.off").stat().st_mtime_ns == untouched

    def test_a_source_that_changed_is_done_again(self, raw, tmp_path, table_file):
        out = tmp_path / "aligned"
        assert run(raw, out, "--table", table_file) == 0
        model = raw / "CAD/slipper/01.off"
        model.write_text("OFF\n3 1 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 2\n")
        later = (out / "CAD/slipper/01.off").stat().st_mtime_ns + 10**9
        os.utime(model, ns=(later, later))
        assert run(raw, out, "--table", table_file) == 0
        np.testing.assert_array_equal(read_off(out / "CAD/slipper/01.off").vertices[1], [0, 0, -1])

    def test_the_number_of_workers_makes_no_difference(self, raw, tmp_path, table_file):
        for workers in ("1", "2"):
            out = tmp_path / f"by_{workers}"
            assert main(["--data-root", str(raw), "--out", str(out), "--table", table_file, "--workers", workers]) == 0
        assert tree(tmp_path / "by_1") == tree(tmp_path / "by_2")

    def test_what_could_not_be_turned_is_said(self, raw, tmp_path, table_file, caplog):
        caplog.set_level("INFO")
        assert run(raw, tmp_path / "aligned", "--table", table_file) == 0
        assert "1 objects of turned categories left as they are: azimuth missing" in caplog.text

    def test_labels_of_another_frame(self, raw, tmp_path, table_file):
        """Only the annotations are turned, and may be aligned with their models afterwards."""
        fix = tmp_path / "fix.json"
        fix.write_text(json.dumps({"cup": {"turns": [["z", 90]], "reason": "labelled with the handle to the front"}}))
        mended, aligned, back = tmp_path / "mended", tmp_path / "aligned", tmp_path / "back"
        assert run(raw, mended, "--table", str(fix), "--turn", "annotations") == 0
        name = Path("annotations/cup/two_cups.npz")
        before, after = read_annotation(raw / name)[0], read_annotation(mended / name)[0]
        # the handle that the label has at -y is the model's at +x
        handle_before, handle_after = (
            projections(np.array([[0.0, -0.3, 0.1]]), before),
            projections(np.array([[0.3, 0, 0.1]]), after),
        )
        np.testing.assert_allclose(handle_before, handle_after, atol=1e-9)
        assert after["azimuth"] == pytest.approx((before["azimuth"] + math.pi / 2) % (2 * math.pi))
        assert tree(raw / "CAD") == tree(mended / "CAD")
        assert run(mended, tmp_path / "twice", "--table", str(fix), "--turn", "annotations") == 2
        assert run(mended, aligned, "--table", table_file) == 0
        assert (aligned / TABLE_FILES["annotations"]).read_bytes() == (mended / TABLE_FILES["annotations"]).read_bytes()
        assert run(mended, back, "--inverse", "--turn", "annotations") == 0
        restored = read_annotation(back / name)[0]
        assert restored["azimuth"] == pytest.approx(before["azimuth"])
        cad = tmp_path / "cad"
        assert run(raw, cad, "--table", table_file, "--turn", "cad") == 0
        assert tree(raw / "annotations") == tree(cad / "annotations")
        assert tree(raw / "CAD") != tree(cad / "CAD")

    def test_refusals(self, raw, tmp_path, table_file, capsys):
        out = tmp_path / "aligned"

        def refused(*arguments) -> str:
            assert run(*arguments) == 2
            said = capsys.readouterr().err.strip()
            assert said.count("\n") == 0
            return said

        assert "there is no such folder" in refused(tmp_path / "none", out)
        (tmp_path / "empty").mkdir()
        assert "neither annotations/ nor CAD/" in refused(tmp_path / "empty", out)
        assert "read; name another" in refused(raw, raw)
        assert "read; name another" in refused(raw, raw / "aligned")
        assert "holds something that align did not write, for align.yaml is not there" in refused(raw, tmp_path)
        assert "leave --inverse out" in refused(raw, out, "--inverse")
        assert "leave --table out" in refused(raw, out, "--inverse", "--table", table_file)
        assert run(raw, out, "--table", table_file) == 0
        capsys.readouterr()
        (out / TABLE_FILE).rename(tmp_path / "put_aside")
        assert "was stopped in it" in refused(out, tmp_path / "twice")
        (tmp_path / "put_aside").rename(out / TABLE_FILE)
        assert "aligned already" in refused(out, tmp_path / "twice")
        assert "was begun before the table changed" in refused(raw, out)
        (raw / "CAD/slipper/01.off").write_text("OFF\n9 9 9\n")
        assert "01.off: it is cut off" in refused(raw, tmp_path / "other", "--table", table_file)
