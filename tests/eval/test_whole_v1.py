"""A made-up folder of ImageNet3D v1, of all 189 categories and with every quirk that its annotations have, goes all the way:
prepare, export as the published loader reads it, instruct, linear probing; and every object is accounted for.
"""

from __future__ import annotations

import io
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from data_prep.export import ExportConfig, export
from data_prep.instruct.command import InstructConfig, instruct
from data_prep.instruct.validate import ValidateConfig, validate
from data_prep.prepare.command import PrepareConfig, prepare
from data_prep.raw.imagenet3d import RawLayout, read_annotation, read_list, write_annotation, write_list
from eval.score import ScoreConfig, score
from eval.systems.linear_probe.options import LinearProbeOptions
from eval.systems.linear_probe.system import run
from llava_pose.data.jsonl import read_jsonl
from llava_pose.data.records import ObjectRecord, read_records
from llava_pose.pose import categories

V1 = [category.name for category in categories.all_categories() if category.in_v1]
WIDTH, HEIGHT = 64, 48
# what an annotation of the real folder may be, by the category that has it here: changes of a good one; ... takes a field out
QUIRKS: dict[str, list[dict[str, Any]]] = {
    "car": [{"object_status": "status_bad"}, {"distance": 0.0}, {"distance": -1.0}],
    "bus": [{"object_status": ..., "ignore": False}, {"object_status": ..., "ignore": True}, {"object_status": ...}],
    "bed": [{"bbox": np.array([50.0, 40.0, 10.0, 8.0])}, {"bbox": np.array([10.0, 8.0, 10.0, 40.0])}],
    "chair": [{"class": "armchair of grandmother"}, {"class": ...}, {"class": "sofa"}],
    "bottle": [{"distance": 1500.0, "px": 32.0, "py": 24.0}],  # a box of far more than 20 times the crop
    "cup": [{"px": 2000.0}, {"bbox": np.array([-9.0, -9.0, -2.0, -2.0])}],
    "boat": [{"principal": ..., "cad_index": ..., "dense": ..., "viewport": ..., "focal": ...}],
    "train": [{"px": ..., "py": ...}],  # principal stands in
    "sign": [{"azimuth": math.nan}, {"elevation": ...}],
    "harp": [{"elevation": 2 * math.pi - 0.3, "theta": 6.28}],  # angles are written in [0, 2 pi]
    "iron": [{"width": np.uint16(100), "height": np.uint16(30)}],  # alone in its image, which is of another size
    "sofa": [{"object_status": "status_partially"}, {"object_status": "status_barely", "dense": "dense_yes"}],
}


def annotation(rng: np.random.Generator, category: str, changes: dict[str, Any]) -> dict[str, Any]:
    px, py = float(rng.uniform(25, 39)), float(rng.uniform(19, 29))
    values: dict[str, Any] = {
        "azimuth": float(rng.uniform(0, 2 * math.pi)),
        "elevation": float(rng.uniform(0, 0.6)),
        "theta": float(rng.choice([0.02, 6.27])),
        "distance": float(rng.uniform(30, 50)),
        "focal": 1.0,
        "viewport": 2000,
        "px": px,
        "py": py,
        "principal": np.array([px, py]),
        "cad_index": int(rng.integers(1, 9)),
        "height": np.uint16(HEIGHT),
        "width": np.uint16(WIDTH),
        "bbox": np.array([px - 15.0, py - 12.0, px + 15.0, py + 12.0]),
        "class": category,
        "object_status": "status_good",
        "dense": "dense_no",
    }
    return {name: value for name, value in {**values, **changes}.items() if value is not ...}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> RawLayout:
    """The folder as the archive unpacks, one folder deeper: a good object a category and split, and the quirks in train."""
    layout = RawLayout(tmp_path_factory.mktemp("download") / "imagenet3d" / "imagenet3d_v1")
    rng = np.random.default_rng(0)
    for category in V1:
        for split in ("train", "val"):
            names = []
            quirks = QUIRKS.get(category, []) if split == "train" else []
            groups: list[list[dict[str, Any]]] = [[{}], quirks] if quirks else [[{}]]
            for group in groups:
                names.append(name := f"n{V1.index(category):08d}_{split}{len(names)}")
                stream = io.BytesIO()
                small = Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
                small.resize((WIDTH, HEIGHT)).save(stream, "JPEG")
                path = layout.root / "images" / category / f"{name}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(stream.getvalue())
                write_annotation(layout.annotation(category, name), [annotation(rng, category, one) for one in group])
            write_list(layout.list_file(category, split), names)
    layout.list_file("yurt", "val").write_text("")  # an empty file is an empty list
    names = read_list(layout.list_file("whisk", "train"))
    write_list(layout.list_file("whisk", "train"), [*names, "n99999999_0"])  # listed, and not in the archive
    return layout


def objects_of(layout: RawLayout, split: str) -> dict[str, dict[str, Any]]:
    """id -> annotation of every object that the lists of a split name."""
    return {
        f"{category}/{name}/{index}": one
        for category, file in layout.list_files()[split].items()
        for name in read_list(file)
        if layout.annotation(category, name).is_file()
        for index, one in enumerate(read_annotation(layout.annotation(category, name)))
    }


def test_all_categories_of_v1_are_here(raw: RawLayout) -> None:
    assert len(V1) == 189
    assert set(QUIRKS) <= set(V1)
    assert {"air_hammer", "hovercraft"} <= set(V1)


@pytest.fixture(scope="module", params=["ours", "published"])
def profile(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def prepared(raw: RawLayout, profile: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp(profile) / "prepared"
    options: dict[str, Any] = {"profile": profile} if profile == "published" else {"size": 64}
    return prepare(PrepareConfig(data_root=str(raw.root.parent), out=str(out), workers=1, **options))


def test_every_object_is_written_filtered_or_rejected(raw: RawLayout, prepared: Path, profile: str) -> None:
    summary = json.loads((prepared / "summary.json").read_text())
    rejects = [reject for _, reject in read_jsonl(prepared / "rejects.jsonl")]
    assert sum(reject["reason"] == "annotation missing" for reject in rejects) == 1
    for split in ("train", "val"):
        account, objects = summary["splits"][split], objects_of(raw, split)
        missing = split == "train"  # the image that is listed and not there counts as one
        assert account["read"] == len(objects) + missing
        assert account["written"] + account["filtered"] + account["rejected"] == account["read"]
        records = {record.id for record in read_records(prepared, split)}
        assert records <= objects.keys()
        names = {categories.canonical_name(one["category"]) for one in map(vars, read_records(prepared, split))}
        assert names == set(V1) - ({"yurt"} if split == "val" else set()), "every category is there"
        if profile == "published":
            finite = {i for i, one in objects.items() if math.isfinite(one["azimuth"]) and "elevation" in one}
            kept = {i for i in finite if objects[i].get("object_status", "status_bad") != "status_bad"}
            assert records == {i for i in kept if objects[i]["distance"] > 0}
    train = summary["splits"]["train"]
    if profile == "ours":
        assert train["classes_by_folder"] == {"armchair of grandmother": 1}
        assert train["kept_faults"] == {}
        assert train["filtered_by_reason"] == {"object_status missing": 1, "status_bad": 2}
        assert train["rejected_by_reason"] == {
            **{"annotation missing": 1, "azimuth not finite": 1, "bbox malformed": 2, "bbox outside image": 1},
            **{
                "crop shows nothing": 1,
                "crop shows too little": 1,
                "distance not positive": 2,
                "elevation missing": 1,
                "image size differs": 1,
            },
        }
    else:
        assert train["kept_faults"]["bbox malformed"] == 2
        assert train["filtered_by_reason"] == {"distance not positive": 2, "object_status missing": 3, "status_bad": 1}
        assert train["rejected_by_reason"] == {"annotation missing": 1, "azimuth not finite": 1, "elevation missing": 1}


class PublishedTerms:
    """What the published dataset class asks of a folder: names by lists, labels by position, numbers as floats."""

    def __init__(self, root: Path, mode: str) -> None:
        self.folder = root / mode
        self.categories = sorted(os.listdir(self.folder / "images"))
        self.samples = [
            (label, category, name)
            for label, category in enumerate(self.categories)
            for name in (self.folder / "lists" / category / "mesh01.txt").read_text().strip().split("\n")
        ]

    def __getitem__(self, item: int) -> dict[str, Any]:
        label, category, name = self.samples[item]
        image = np.array(Image.open(self.folder / "images" / category / f"{name}.JPEG").convert("RGB"))
        flat = dict(np.load(self.folder / "annotations" / category / f"{name}.npz"))
        numbers = {field: float(flat[field]) for field in ("azimuth", "elevation", "theta", "distance")}
        return {"image": image, "label": label, "category": category, "name": str(flat["name"]), **numbers}


def test_the_export_is_read_on_the_published_loaders_terms(prepared: Path, profile: str, tmp_path: Path) -> None:
    exported = export(ExportConfig(data=str(prepared), out=str(tmp_path / "exported"), profile=profile))  # type: ignore[arg-type]
    for split in ("train", "val"):
        loaded = PublishedTerms(exported, split)
        records: dict[tuple[str, str], ObjectRecord] = {}
        for record in read_records(prepared, split):
            folder, name, index = record.id.split("/")
            category = folder if profile == "published" else record.category
            records[category, f"{name}_{int(index):02d}"] = record
        assert {(category, name) for _, category, name in loaded.samples} == records.keys()
        for item, (label, category, name) in enumerate(loaded.samples):
            sample, record = loaded[item], records[category, name]
            assert sample["name"] == name
            assert loaded.categories[label] == category
            assert sample["image"].shape == (record.height, record.width, 3)
            assert (sample["azimuth"], sample["elevation"], sample["theta"]) == record.pose.angles
            assert sample["distance"] == (4.0 if profile == "published" else record.pose.distance)


def test_conversations_are_about_every_object_and_are_sound(prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "train.json"
    instruct(
        InstructConfig(data=str(prepared), out=str(out), kinds=["joint", "pose", "described"], questions_per_object=1)
    )
    asked = {sample["record"] for sample in json.loads(out.read_text())}
    assert asked == {record.id for record in read_records(prepared, "train")}
    validate(ValidateConfig(data=str(prepared), train_json=str(out)))


def test_probing_answers_every_object_over_all_names_of_v1(prepared: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**shape, image_size=32, patch_size=8)).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    options = {"backbone": str(tmp_path / "vit"), "learning_rates": [0.05], "epochs": 1}
    answers = run(LinearProbeOptions(data=str(prepared), output_dir=str(tmp_path / "run"), **options))
    scores = score(ScoreConfig(predictions=[str(answers)], out=str(tmp_path / "scores.json")))
    assert scores["n"] == len(read_records(prepared, "val"))
    assert scores["names"] == {"in_v1": 188, "v1": 189, "not_in_v1": []}, "yurt's list of val is empty"
