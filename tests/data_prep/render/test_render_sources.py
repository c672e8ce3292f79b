"""Folders of meshes and Sweet Home 3D libraries: which instances there are, in which split, and how they stand."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh

from data_prep.raw.safe_npz import read_npz
from data_prep.render import sweethome3d
from data_prep.render.generate import render
from data_prep.render.mesh_files import MeshError
from data_prep.render.mesh_folder import MeshFolderSource, shape_instances
from data_prep.render.options import RenderConfig
from data_prep.render.plan import Selection, companions, plan
from data_prep.render.sources import Instance, MeshSource, ParametricSource
from data_prep.render.sweethome3d import SweetHome3DSource, read_table
from llava_pose.errors import InputError
from llava_pose.pose import categories

PACKAGE = Path(sweethome3d.DEFAULT_FOLDER)
SHARED_CAD = Path(__file__).resolve().parents[4] / "shared" / "data" / "photos" / "CAD"


def write_box(path: Path, *extents: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    trimesh.creation.box(extents=extents).export(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "meshes"
    for number in range(1, 6):
        write_box(root / "car" / f"{number:02d}.off", 1, 2, number)
    write_box(root / "trolley_bus" / "01.off", 1, 4, 1)
    write_box(root / "trolleybus" / "01.off", 1, 4, 1)  # the same file under the other name
    write_box(root / "trolleybus" / "02.obj", 1, 5, 1)
    write_box(root / "widget" / "only one.glb", 1, 1, 2)
    (root / "car" / "notes.txt").write_text("not a mesh")
    (root / "car" / "._01.off").write_bytes(b"\0\5\x16\7")  # as macOS leaves them on other disks
    return root


def source(folder: Path, **other) -> MeshFolderSource:
    return MeshFolderSource(folder, folder.name, **other)


def by_split(instances: list[Instance], category: str) -> dict[str, list[str]]:
    return {
        split: [i.file for i in instances if (i.category, i.split) == (category, split)] for split in ("train", "val")
    }


def test_a_folder_is_listed_by_category_with_aliases_joined_and_copies_left_out(folder: Path) -> None:
    instances = source(folder).instances()
    assert [i.category for i in instances] == ["car"] * 5 + ["trolleybus"] * 2 + ["widget"]
    assert [i.file for i in instances[5:]] == ["trolley_bus/01.off", "trolleybus/02.obj", "widget/only one.glb"]
    assert instances[-1].name == "widget_meshes_only-one"
    assert len({i.name for i in instances}) == len({i.key for i in instances}) == len(instances)
    assert {i.source for i in instances} == {"meshes"}


def test_a_file_name_that_is_no_text_is_named(folder: Path) -> None:
    write_box(folder / "car" / os.fsdecode(b"caf\xe9.off"), 1, 2, 9)
    with pytest.raises(InputError, match=r"car: the file name 'caf.*off' cannot stand in a data set; rename it"):
        source(folder).instances()


def test_names_that_come_out_alike_are_told_apart() -> None:
    names = [i.name for i in shape_instances("s", "car", ["car/a b.off", "car/a?b.off", "car/c.off", "car/c.obj"])]
    assert names == ["car_s_a-b", "car_s_a-b~2", "car_s_c", "car_s_c~2"]


@pytest.mark.parametrize(("share", "in_val"), [(0.0, 0), (0.01, 1), (0.2, 1), (0.4, 2), (0.99, 4), (1.0, 5)])
def test_val_holds_its_share_and_neither_split_is_empty_unless_asked(folder: Path, share: float, in_val: int) -> None:
    planned = plan([source(folder)], Selection(val_share=share))
    assert len(by_split(planned, "car")["val"]) == in_val
    assert len(by_split(planned, "car")["train"]) == 5 - in_val


def test_a_single_mesh_is_in_train_and_said_so(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    planned = plan([source(folder)], Selection())
    assert by_split(planned, "widget") == {"train": ["widget/only one.glb"], "val": []}
    assert "in train only, because there is one mesh of each: widget" in caplog.text


def test_several_sources_share_one_numbering_and_splits_stay_by_instance(folder: Path) -> None:
    both: list[MeshSource] = [ParametricSource(("car",), 2, 1), source(folder)]
    planned = plan(both, Selection(categories=("car",)))
    assert [i.cad_index for i in planned] == list(range(1, 9))
    assert [i.source for i in planned] == ["parametric"] * 3 + ["meshes"] * 5
    alone = plan([source(folder)], Selection(categories=("car",)))
    assert by_split(planned, "car")["val"][1:] == by_split(alone, "car")["val"]  # whatever else there is


def test_selection_by_number(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    planned = plan([source(folder)], Selection(meshes_per_category=3, min_meshes=2))
    assert [i.category for i in planned] == ["car"] * 3 + ["trolleybus"] * 2
    assert "left out, with fewer than 2 meshes: widget" in caplog.text
    with pytest.raises(InputError, match="--min-meshes 9 leaves no category"):
        plan([source(folder)], Selection(min_meshes=9))
    with pytest.raises(InputError, match=r"--categories tank.*choose from car, trolleybus, widget"):
        plan([source(folder)], Selection(categories=("tank",)))


def test_companions_are_of_the_same_split_and_of_other_categories(folder: Path) -> None:
    planned = plan([source(folder)], Selection(val_share=0.4))
    for instance, others in zip(planned, companions(planned, seed=3), strict=True):
        assert others or {i.category for i in planned if i.split == instance.split} == {instance.category}
        assert all(other.split == instance.split and other.category != instance.category for other in others)
    assert companions(planned, seed=3) == companions(planned, seed=3)


def test_axes_and_scale_are_changed_only_when_asked(folder: Path) -> None:
    instance = next(i for i in source(folder).instances() if i.file == "car/05.off")
    np.testing.assert_allclose(np.ptp(source(folder).mesh(instance).vertices, axis=0), [1, 2, 5])
    turned = source(folder, up="y", front="z").mesh(instance)
    np.testing.assert_allclose(np.ptp(turned.vertices, axis=0), [1, 5, 2])
    unit = source(folder, normalize=True).mesh(instance)
    assert np.linalg.norm(np.ptp(unit.vertices, axis=0)) == pytest.approx(1)
    assert unit.reach == pytest.approx(0.5)


def test_folders_without_meshes_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder of meshes"):
        source(tmp_path / "none").instances()
    write_box(tmp_path / "flat" / "a.off", 1, 1, 1)
    with pytest.raises(InputError, match=r"one folder a category, such as car/01\.off"):
        source(tmp_path / "flat").instances()


# --- the whole stage on meshes -------------------------------------------------------------------------------------


def small(out: Path, **other) -> RenderConfig:
    return RenderConfig(**{"out": str(out), "views": 2, "size": 64, "workers": 1, **other})


def entries(out: Path) -> list[dict]:
    return [read_npz(path)["annotations"].tolist()[0] for path in sorted(out.glob("annotations/*/*.npz"))]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_broken_meshes_are_listed_and_the_rest_is_rendered(folder: Path, tmp_path: Path) -> None:
    (folder / "car" / "03.off").write_text("OFF\n3 1 0\n0 0 0\n1 0 0\nnan 0 0\n3 0 1 2\n")
    (folder / "trolleybus" / "02.obj").write_text("")
    result = render(small(tmp_path / "set", sources=[str(folder)]))
    assert result.rendered == 2 * 6
    assert len(result.unusable) == 2
    lines = [json.loads(line) for line in (tmp_path / "set" / "meshes.jsonl").read_text().splitlines()]
    bad = {line["file"]: line["unusable"] for line in lines if line["unusable"]}
    assert set(bad) == {"car/03.off", "trolleybus/02.obj"}
    assert "not finite" in bad["car/03.off"]
    assert str(folder / "car" / "03.off") in bad["car/03.off"]
    listed = [name for path in (tmp_path / "set").glob("lists/*.txt") for name in path.read_text().split()]
    assert sorted(listed) == sorted(path.stem for path in (tmp_path / "set").glob("images/*/*.JPEG"))
    assert not any("car_meshes_03" in name for name in listed)


def test_when_no_mesh_can_be_used_the_run_says_so(tmp_path: Path) -> None:
    (tmp_path / "m" / "car").mkdir(parents=True)
    (tmp_path / "m" / "car" / "a.off").write_text("")
    with pytest.raises(InputError, match=r"none of the 1 meshes can be used; .*meshes\.jsonl"):
        render(small(tmp_path / "set", sources=[str(tmp_path / "m")]))


def test_mixed_sources_with_everything_on_are_the_same_for_any_number_of_workers(folder: Path, tmp_path: Path) -> None:
    options = {
        "sources": ["parametric", str(folder)],
        "categories": ["car", "widget", "trolley_bus", "cup"],
        **{"train_instances": 1, "val_instances": 1, "val_share": 0.4, "normalize": True},
        **{"poses": "uniform", "lights": "varied", "materials": "random", "distractors": 1.0, "occlusion": 0.5},
    }
    render(small(tmp_path / "one", **options))
    render(small(tmp_path / "two", workers=2, **options))
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    found = entries(tmp_path / "one")
    assert {entry["source"] for entry in found} == {"parametric", "meshes"}
    assert {entry["class"] for entry in found} == {"car", "widget", "trolleybus", "cup"}
    assert all(entry["visible_fraction"] >= 0.35 for entry in found if entry["visible_fraction"] < 0.7)
    assert min(entry["visible_fraction"] for entry in found) < 1


def test_meshes_of_any_scale_and_place_are_in_the_picture(tmp_path: Path) -> None:
    box = trimesh.creation.box(extents=(300, 500, 200))
    box.apply_translation((90, 0, 100))
    (tmp_path / "m" / "car").mkdir(parents=True)
    box.export(tmp_path / "m" / "car" / "a.off")
    render(small(tmp_path / "set", sources=[str(tmp_path / "m")], occlusion=0, truncation=0))
    for entry in entries(tmp_path / "set"):
        x1, y1, x2, y2 = entry["bbox"]
        assert max((x2 - x1) / entry["width"], (y2 - y1) / entry["height"]) > 0.5
        assert entry["visible_fraction"] == 1
        assert entry["distance"] > 500


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sources": []}, "--sources names nothing"),
        ({"sources": ["parametric", "parametric"]}, "--sources names one twice"),
        ({"sources": ["/no/such/folder"]}, "/no/such/folder: there is no such folder"),
        ({"val_share": 1.5}, "--val-share: must be at most 1, not 1.5"),
        ({"distractors": -1.0}, "--distractors: must be at least 0, not -1.0"),
        ({"min_meshes": 0}, "--min-meshes: must be over 0, not 0"),
        ({"up": "x", "front": "minus-x"}, "along one line"),
        ({"poses": "fitted"}, "--poses-from FOLDER go together"),
        ({"poses_from": "somewhere"}, "--poses-from FOLDER go together"),
    ],
)
def test_options_that_cannot_work_are_named(change: dict, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=sentence):
        render(replace(small(tmp_path / "set"), **change))
    assert not (tmp_path / "set").exists()


def test_two_folders_of_one_name_are_refused(tmp_path: Path) -> None:
    for parent in "ab":
        write_box(tmp_path / parent / "CAD" / "car" / "1.off", 1, 1, 1)
    with pytest.raises(InputError, match="two of them are called CAD"):
        render(small(tmp_path / "set", sources=[str(tmp_path / "a" / "CAD"), str(tmp_path / "b" / "CAD")]))


# --- Sweet Home 3D -------------------------------------------------------------------------------------------------


def fake_library(path: Path, model: str, properties: str) -> None:
    """A library with one model: a red box of 1 x 2 x 4 whose blue plate is at +z, the library's front."""
    box = "".join(f"v {x} {y} {z}\n" for z in (0, 4) for y in (0, 2) for x in (0, 1))
    faces = "f 1 2 4 3\nf 5 6 8 7\nf 1 2 6 5\nf 3 4 8 7\nf 1 3 7 5\nf 2 4 8 6\n"
    plate = "v 0 0 4.01\nv 1 0 4.01\nv 1 2 4.01\nv 0 2 4.01\n"
    obj = f"mtllib a.mtl\n{box}{plate}usemtl red\n{faces}usemtl blue\nf 9 10 11 12\n"
    with zipfile.ZipFile(path, "w") as library:
        library.writestr(sweethome3d.CATALOGUE, properties)
        library.writestr(model, obj)
        library.writestr(str(Path(model).parent / "a.mtl"), "newmtl red\nKd 1 0 0\nnewmtl blue\nKd 0 0 1\n")


def properties_of(model: str, **more: str) -> str:
    fields = {"model": f"/{model}", "width": "50", "depth": "100", "height": "200", "creator": "Somebody", **more}
    return "".join(f"{field}#7={value}\n" for field, value in fields.items())


def plain_entry() -> sweethome3d.Entry:
    return next(entry for entry in read_table() if entry.library == "Scopia.sh3f" and not entry.turns)


def test_a_library_model_stands_in_the_canonical_frame(tmp_path: Path) -> None:
    entry = plain_entry()
    fake_library(tmp_path / entry.library, entry.model, properties_of(entry.model))
    made = SweetHome3DSource(tmp_path)
    instances = made.instances()
    assert {i.file.split("/")[0] for i in instances} == {"Scopia.sh3f"}
    instance = next(i for i in instances if i.file == entry.file)
    assert (instance.category, instance.credit) == (entry.category, "Somebody, CC BY 3.0")
    mesh = made.mesh(instance)
    size = np.ptp(mesh.vertices, axis=0)
    np.testing.assert_allclose(size / size[0], [1, 2, 4], rtol=1e-6)  # width, depth, height
    assert np.linalg.norm(size) == pytest.approx(1)
    blue = mesh.colors[:, 2] == 1
    assert mesh.vertices[mesh.faces[blue]][..., 1].max() == pytest.approx(mesh.vertices[:, 1].min())  # the front is -y

    other = next(i for i in instances if i.file != entry.file)
    with pytest.raises(MeshError, match="has no such model"):
        made.mesh(other)


def test_a_librarys_own_rotation_goes_before_its_size(tmp_path: Path) -> None:
    entry = plain_entry()
    quarter = "0 0 1 0 1 0 -1 0 0"  # about y: the plate at +z goes to +x, the viewer's right
    fake_library(tmp_path / entry.library, entry.model, properties_of(entry.model, modelRotation=quarter))
    made = SweetHome3DSource(tmp_path)
    mesh = made.mesh(next(i for i in made.instances() if i.file == entry.file))
    size = np.ptp(mesh.vertices, axis=0)
    np.testing.assert_allclose(size / size[0], [1, 2, 4], rtol=1e-6)
    blue = mesh.colors[:, 2] == 1
    assert mesh.vertices[mesh.faces[blue]][..., 0].min() == pytest.approx(mesh.vertices[:, 0].max())


def test_libraries_that_are_missing_or_damaged_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="apt-get install sweethome3d-furniture"):
        SweetHome3DSource(tmp_path).instances()
    (tmp_path / "Scopia.sh3f").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match=r"Scopia\.sh3f: cannot read the library"):
        SweetHome3DSource(tmp_path).instances()


def test_the_table_names_categories_of_the_taxonomy_and_licensed_libraries() -> None:
    entries = read_table()
    assert len(entries) > 390
    assert len({entry.file for entry in entries}) == len(entries)
    for entry in entries:
        assert entry.library in sweethome3d.LICENCES
        found = categories.find(entry.category)
        assert found is not None
        assert found.name == entry.category


@pytest.mark.skipif(not PACKAGE.is_dir(), reason="needs Debian's package sweethome3d-furniture")
def test_every_model_of_the_real_package_is_there_and_some_are_read() -> None:
    real = SweetHome3DSource(PACKAGE)
    instances = real.instances()
    assert len(instances) == len(read_table())
    assert all(", CC" in instance.credit for instance in instances)
    for file, tall in (
        ("KatorLegaz.sh3f/katorlegaz/fridge/fridge.obj", 2),
        ("Scopia.sh3f/scopia/tournevis/tournevis.obj", 2),  # it lies in the library and stands here
        ("Scopia.sh3f/scopia/skateboard/skateboard.obj", 1),
    ):
        mesh = real.mesh(next(i for i in instances if i.file == file))
        assert mesh.painted
        assert int(np.argmax(np.ptp(mesh.vertices, axis=0))) == tall


@pytest.mark.skipif(not SHARED_CAD.is_dir(), reason="needs the CAD folder of the shared photographs")
def test_a_real_cad_folder_renders(tmp_path: Path) -> None:
    config = small(tmp_path / "set", sources=[str(SHARED_CAD)], categories=["car", "trolley_bus"], views=1)
    result = render(config)
    assert not result.unusable
    assert {entry["class"] for entry in entries(tmp_path / "set")} == {"car", "trolleybus"}
