"""What is prepared and exported as the published ImageNet3D code does it: which objects are kept, their pixels, their fields.

The rules are written here a second time, from the published preprocessing's own steps.
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.export import ExportConfig, export
from data_prep.prepare.command import PrepareConfig, main, prepare
from data_prep.raw.imagenet3d import read_annotation
from data_prep.raw.processed import raw_annotation, read_processed
from llava_pose.data.records import read_jsonl, read_records
from llava_pose.errors import InputError


def published_keeps(annotation: dict[str, Any]) -> bool:
    """The two conditions of the published preprocessing."""
    return annotation.get("object_status", "status_bad") != "status_bad" and annotation["distance"] > 0


def prepared(dataset: Any, out: Path, **options: Any) -> Path:
    return prepare(PrepareConfig(data_root=str(dataset.root), out=str(out), splits="train", workers=1, **options))


@pytest.fixture
def quirky(raw_dataset: Any) -> Any:
    """Objects of every quirk that ImageNet3D's annotations have, four of them not kept by the published preprocessing."""
    make = raw_dataset.object
    raw_dataset.add(
        "n1",
        objects=[
            make(),
            make(bbox=np.array([500.0, 100.0, 100.0, 300.0])),  # swapped
            make(bbox=np.array([100.0, 100.0, 100.0, 300.0])),  # empty
            make(bbox=np.array([-90.0, -90.0, -5.0, -5.0])),  # outside of the image
            make(px=5000.0),  # a crop that shows nothing
            make(distance=400.0),  # a box of 50 times the crop
            make(object_status="status_of_its_own"),
            make(object_status="status_bad"),
            make(object_status=..., ignore=False),  # the older field counts for nothing
            make(distance=0.0),
            make(distance=-3.0),
        ],
    )
    raw_dataset.add("n2", image=raw_dataset.picture(600, 400), objects=[make()])  # annotated at 640 x 480
    raw_dataset.add("n3", objects=[make(), make(width=np.uint16(320), height=np.uint16(240))])
    turned = raw_dataset.picture(640, 480)
    turned.getexif()[0x0112] = 6
    stream = io.BytesIO()
    turned.save(stream, "JPEG", exif=turned.getexif())
    raw_dataset.add("n4", image=stream.getvalue(), objects=[make(width=..., height=...)])
    raw_dataset.add("n5", category="boat", objects=[make(**{"class": "yacht"})])
    return raw_dataset


def kept_ids(dataset: Any) -> set[str]:
    """The ids of all objects that the published preprocessing keeps."""
    return {
        f"{path.parent.name}/{path.stem}/{index}"
        for path in dataset.root.glob("annotations/*/*.npz")
        for index, annotation in enumerate(read_annotation(path))
        if published_keeps(annotation)
    }


def test_the_published_filter_keeps_exactly_what_the_published_preprocessing_keeps(quirky: Any, tmp_path: Path) -> None:
    out = prepared(quirky, tmp_path / "out", published_filter=True)
    assert {record.id for record in read_records(out, "train")} == kept_ids(quirky)
    assert list(read_jsonl(out / "rejects.jsonl")) == []
    account = json.loads((out / "summary.json").read_text())["splits"]["train"]
    assert account["filtered_by_reason"] == {
        **{"distance not positive": 2, "object_status missing": 1, "status_bad": 1}
    }
    assert account["kept_faults"] == {
        "bbox malformed": 2,
        "bbox outside image": 1,
        "crop shows nothing": 1,
        "crop shows too little": 1,
        "image orientation unknown": 1,
        "image size differs": 3,
    }
    assert account["classes_by_folder"] == {"yacht": 1}


def test_without_it_what_has_a_fault_is_rejected_with_the_same_reason(quirky: Any, tmp_path: Path) -> None:
    lenient = json.loads((prepared(quirky, tmp_path / "a", published_filter=True) / "summary.json").read_text())
    strict = json.loads((prepared(quirky, tmp_path / "b") / "summary.json").read_text())["splits"]["train"]
    by_reason = strict["rejected_by_reason"]
    assert by_reason.pop("distance not positive") == 2
    assert by_reason == lenient["splits"]["train"]["kept_faults"]


def test_a_swapped_box_is_put_in_order_and_comes_back_as_it_was_annotated(quirky: Any, tmp_path: Path) -> None:
    out = prepared(quirky, tmp_path / "out", published_filter=True)
    records = {record.id: record for record in read_records(out, "train")}
    x1, y1, x2, y2 = records["car/n1/1"].bbox
    assert x1 < x2
    assert y1 < y2
    assert raw_annotation(records["car/n1/1"])["bbox"].tolist() == [500.0, 100.0, 100.0, 300.0]
    exported = export(ExportConfig(data=str(out), out=str(tmp_path / "exported")))
    again = {record.id: record for record in read_processed(exported, "train")}
    assert raw_annotation(again["car/n1/1"])["bbox"].tolist() == [500.0, 100.0, 100.0, 300.0]


def test_what_would_end_the_published_preprocessing_is_still_rejected(raw_dataset: Any, tmp_path: Path) -> None:
    make = raw_dataset.object
    changes = [{"bbox": ...}, {"distance": 1e-6}, {"distance": 1e6}, {"px": math.nan}, {"azimuth": ...}]
    raw_dataset.add("n1", objects=[make(), *(make(**change) for change in changes)])
    out = prepared(raw_dataset, tmp_path / "out", published_filter=True)
    reasons = [reject["reason"] for _, reject in read_jsonl(out / "rejects.jsonl")]
    assert sorted(reasons) == [
        *("azimuth missing", "bbox missing", "distance out of range", "distance out of range", "px not finite")
    ]


def test_the_published_filter_belongs_to_the_published_crop(
    raw_dataset: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--data-root",
        str(raw_dataset.root),
        "--out",
        str(tmp_path / "out"),
        "--published-filter",
        "--crop",
        "box",
    ]
    assert main(words) == 2
    assert "give --crop pose" in capsys.readouterr().err


def test_an_output_without_the_filter_is_not_gone_on_with(quirky: Any, tmp_path: Path) -> None:
    out = prepared(quirky, tmp_path / "out")
    with pytest.raises(InputError, match="published_filter"):
        prepared(quirky, out, published_filter=True)
