"""Hostile requests to llava-pose annotate, and hostile folders under it: each gets a sentence, and the page stays."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_prep.annotate.labels import Label, Labels
from data_prep.annotate.server import Application
from llava_pose.data.records import Pose
from llava_pose.errors import InputError
from llava_pose.inference.answers import PoseAnswer
from llava_pose.inference.pipeline import PosePipeline
from llava_pose.inference.wires import list_models
from tests.hostile.test_server_requests import require_broken_off_is_answered

testclient = pytest.importorskip(
    "starlette.testclient", reason="the page needs starlette: pip install 'llava-pose[serve]'"
)

GOOD = {"category": "car", "bbox": [4, 4, 20, 20], "azimuth": 0.1, "elevation": 0.2, "theta": 0.3}
GOOD |= {"distance": 4.0, "px": 12.0, "py": 12.0, "viewport": 100.0}
CUBE = "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n"


class Sure:
    """A predictor that answers whatever it is asked with one pose."""

    categories = ("car", "cup")

    def predict(self, pictures: Any, objects: Any, **options: Any) -> list[PoseAnswer]:
        assert all(len(name) < 1000 for name in objects)
        return [PoseAnswer(Pose(0.1, 0.2, 0.3, 1.0, 2.0, 3.0), 0.5, name, viewport=10.0) for name in objects]

    def classify(self, pictures: Any, candidates: Any, **options: Any) -> list[PoseAnswer]:
        return self.predict(pictures, [next(iter(candidates))] * len(pictures))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 48)).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def page(photos: Path, *, cad: Path | None = None, host: str = "127.0.0.1", custom: bool = True) -> Any:
    labels = Labels(photos, photos.parent / "raw", split="train", allow_custom_categories=custom)
    pipe = PosePipeline(Sure(), allow_custom_categories=custom)  # type: ignore[arg-type]
    application = Application(labels, list_models(cad), pipe=pipe, host=host)
    return testclient.TestClient(application.build(), base_url="http://127.0.0.1")


def with_objects(*objects: Any) -> bytes:
    return json.dumps({"objects": objects}).encode()


BODIES: dict[str, bytes] = {
    "a number beyond every float": with_objects({**GOOD, "px": 10**4000}),
    "a number of more digits than are read": b'{"objects": [' + b"9" * 5000 + b"]}",
    "infinity": with_objects({**GOOD, "px": float("inf")}),
    "a distance that is all but none": with_objects({**GOOD, "distance": 1e-320}),
    "an angle beyond all measure": with_objects({**GOOD, "azimuth": 1e300}),
    "a box beyond all measure": with_objects({**GOOD, "bbox": [-1e308, -1e308, 1e308, 1e308]}),
    "a model of no number": with_objects({**GOOD, "cad_index": 10**30}),
    "half a letter": with_objects({**GOOD, "category": "\ud800"}),
    "a field of half a letter": with_objects({**GOOD, "\ud800": 1}),
    "a category without an end": with_objects({**GOOD, "category": "a" * 900_000}),
    "a category that leads out": with_objects({**GOOD, "category": "../../out"}),
    "a category of lines": with_objects({**GOOD, "category": "car\nbus"}),
    "a category of terminal codes": with_objects({**GOOD, "category": "\x1b[2J"}),
    "a category that is a folder above": with_objects({**GOOD, "category": ".."}),
    "too many objects": with_objects(*[GOOD] * 501),
    "no list": b'{"objects": {}}',
    "nested without an end": b'{"objects": ' + b"[" * 200_000,
    "no UTF-8": b'{"objects": "\xff"}',
    "nothing": b"",
    "longer than any label": b" " * (1 << 20) + b"{}  ",
}


@pytest.mark.parametrize("kind", BODIES)
def test_a_label_that_is_none_is_a_sentence_and_nothing_is_written(kind: str, photos: Path) -> None:
    with page(photos) as client:
        answer = client.post("/api/labels/0", content=BODIES[kind], headers={"content-type": "application/json"})
        assert answer.status_code in (400, 413)
        assert 5 < len(answer.json()["error"]) < 500
        assert not {"\x1b", "\n"} & set(answer.json()["error"])
        assert client.get("/api/state").json()["pictures"][0]["count"] is None
    assert not (photos.parent / "raw").exists() or not list((photos.parent / "raw").rglob("*.*"))
    assert sorted(path.name for path in photos.parent.iterdir()) in (["photos"], ["photos", "raw"])


ASKED: dict[str, Any] = {
    "a box beyond all measure": {"bbox": [-1.7e308, -1.7e308, 1.7e308, 1.7e308]},
    "a box of no numbers": {"bbox": [float("nan")] * 4},
    "a box without an end": {"bbox": [0, 0, float("inf"), 10]},
    "a box beyond every float": {"bbox": [0, 0, 10**400, 10]},
    "a category without an end": {"category": "a" * 900_000},
    "a category of lines": {"category": "car\nbus"},
    "a category of the model's own words": {"category": "car <pose6D>"},
}


@pytest.mark.parametrize("kind", ASKED)
def test_a_question_to_the_checkpoint_that_is_none_is_a_sentence(kind: str, photos: Path) -> None:
    with page(photos) as client:
        content = json.dumps(ASKED[kind]).encode()
        answer = client.post("/api/predict/0", content=content, headers={"content-type": "application/json"})
        assert answer.status_code in (200, 400)
        if answer.status_code == 400:
            assert 5 < len(answer.json()["error"]) < 500
        else:
            assert kind == "a box beyond all measure"


def test_a_label_that_is_broken_off_is_none(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    require_broken_off_is_answered(page(photos).app, "/api/labels/0")
    assert "Traceback" not in caplog.text
    assert not (photos.parent / "raw").exists()


@pytest.mark.parametrize("index", ["9" * 5000, "9" * 30, "-1", "%00", "..", "0%2f..", "²", "1e0", " 0"])
@pytest.mark.parametrize("place", ["pictures", "labels"])
def test_a_photograph_of_no_number_is_not_found(place: str, index: str, photos: Path) -> None:
    with page(photos) as client:
        assert client.get(f"/api/{place}/{index}").status_code == 404


@pytest.mark.parametrize("place", ["car/" + "9" * 5000, "car/1", "../1", "%00/1", "%2e%2e/1"])
def test_a_model_that_was_not_listed_is_not_found(place: str, photos: Path) -> None:
    with page(photos) as client:
        assert client.get(f"/api/models/{place}").status_code == 404


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "evil.example:7870", "[", "", "localhost@evil.example", "127.0.0.1\xa0"],
)
def test_a_host_that_is_another_is_not_answered(host: str, photos: Path) -> None:
    with page(photos) as client:
        for path in ("/", "/annotate.js", "/api/state", "/api/pictures/0", "/api/labels/0"):
            answer = client.get(path, headers={"host": host.encode("latin-1")})
            assert answer.status_code == 421
        assert (
            client.post("/api/labels/0", json={"objects": []}, headers={"host": host.encode("latin-1")}).status_code
            == 421
        )


def test_the_host_that_was_asked_for_is_answered_in_any_case(photos: Path) -> None:
    with page(photos, host="Labels.example") as client:
        assert client.get("/", headers={"host": "labels.example:7870"}).status_code == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonx", ""]
)
def test_what_a_page_of_another_site_can_send_changes_nothing(kind: str, photos: Path) -> None:
    with page(photos) as client:
        answer = client.post("/api/labels/0", content=with_objects(GOOD), headers={"content-type": kind})
        assert answer.status_code == 415
        assert client.options("/api/labels/0", headers={"origin": "http://evil.example"}).status_code == 405
    assert not (photos.parent / "raw").exists()


def test_other_sites_cannot_show_a_photograph(photos: Path) -> None:
    with page(photos) as client:
        assert client.get("/api/pictures/0").headers["cross-origin-resource-policy"] == "same-origin"


MODELS: dict[str, str] = {
    "no OFF file": "<html>",
    "numbers that are none": CUBE.replace("1 0 0", "nan 0 0"),
    "numbers without an end": CUBE.replace("1 0 0", "inf 0 0"),
    "numbers beyond all measure": CUBE.replace("1 0 0", "1e308 1e308 1e308").replace("0 1 0", "-1e308 1e308 -1e308"),
    "a corner that is not there": CUBE.replace("3 0 1 2", "3 0 1 9"),
    "more corners than it holds": CUBE.replace("3 1 0", "3000000000 1 0"),
    "nothing": "",
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_a_model_that_is_none_is_a_sentence(kind: str, photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    cad = photos.parent / "cad"
    (cad / "car").mkdir(parents=True)
    (cad / "car" / "01.off").write_text(MODELS[kind])
    with page(photos, cad=cad) as client:
        answer = client.get("/api/models/car/1")
    assert answer.status_code in (200, 400)
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("name", [b"\xff\xfe", b"\x1b[2J", "\u202ecar".encode()])
def test_a_folder_of_models_whose_name_is_no_text_is_left_out(name: bytes, photos: Path) -> None:
    cad = photos.parent / "cad"
    for folder in (name, b"car"):
        place = cad / os.fsdecode(folder)
        place.mkdir(parents=True)
        (place / "01.off").write_text(CUBE)
    with page(photos, cad=cad) as client:
        assert client.get("/api/state").json()["models"] == {"car": [1]}


@pytest.mark.parametrize(
    "kind", ["a FIFO", "a FIFO as a model", "a link to a device", "a link to itself", "a text", "a panorama"]
)
def test_what_is_no_photograph_is_a_sentence(kind: str, photos: Path) -> None:
    bad = photos / "a.png"
    if kind != "a FIFO as a model":
        bad.unlink()
    if kind == "a FIFO":
        os.mkfifo(bad)
    elif kind == "a link to a device":
        bad.symlink_to("/dev/zero")
    elif kind == "a link to itself":
        bad.symlink_to(bad)
    elif kind == "a panorama":
        Image.new("RGB", (70_000, 4)).save(bad)
    elif kind == "a text":
        bad.write_text("root:x:0:0")
    else:
        (photos.parent / "cad" / "car").mkdir(parents=True)
        os.mkfifo(photos.parent / "cad" / "car" / "01.off")
    with page(photos, cad=photos.parent / "cad") as client:
        if kind == "a FIFO as a model":
            answers = [client.get("/api/models/car/1")]
        else:
            answers = [client.get("/api/pictures/0"), client.post("/api/labels/0", json={"objects": [GOOD]})]
        assert {answer.status_code for answer in answers} <= {400, 404}
        assert client.get("/api/pictures/1").status_code == 200


INDEXES: dict[str, str] = {
    "a count beyond all": '{"a.png": {"name": "a", "category": "car", "count": 1e400}}',
    "a count of digits without an end": '{"a.png": {"name": "a", "category": "car", "count": ' + "9" * 5000 + "}}",
    "a name that leads out": '{"a.png": {"name": "../a", "category": "car", "count": 1}}',
    "a name of half a letter": '{"a.png": {"name": "\\ud800", "category": "car", "count": 1}}',
    "a category that leads out": '{"a.png": {"name": "a", "category": "../car", "count": 1}}',
    "a category of lists": '{"a.png": {"name": "a", "category": ["car"], "count": 1}}',
    "nested without an end": "[" * 200_000,
    "two photographs of one name": '{"a.png": {"name": "a", "category": "car", "count": 1}, '
    '"b.png": {"name": "a", "category": "car", "count": 1}}',
    "no mapping": "[]",
}


@pytest.mark.parametrize("kind", INDEXES)
def test_an_index_that_is_none_is_named(kind: str, photos: Path) -> None:
    raw = photos.parent / "raw"
    raw.mkdir()
    (raw / "annotated.json").write_text(INDEXES[kind])
    with pytest.raises(InputError, match="begin in another folder"):
        Labels(photos, raw, split="train")
    assert [path.name for path in raw.iterdir()] == ["annotated.json"]


def test_saves_at_once_leave_the_labels_of_one_of_them(photos: Path) -> None:
    labels = Labels(photos, photos.parent / "raw", split="train")
    cars, cups = ([Label(**{**GOOD, "category": name})] * count for name, count in (("car", 2), ("cup", 3)))
    threads = [threading.Thread(target=labels.save, args=(0, of)) for of in (cars, cups) * 8]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    again = Labels(photos, photos.parent / "raw", split="train")
    kept = again.objects(0)
    assert again.counts() == [len(kept), None]
    assert {one["category"] for one in kept} in ({"car"}, {"cup"})
    assert len(list((photos.parent / "raw" / "annotations").rglob("*.npz"))) == 1
    assert len(list((photos.parent / "raw" / "images").rglob("*.png"))) == 1


def test_photographs_are_decoded_a_few_at_a_time(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any page may ask for pictures a hundred times at once, though it does not see them."""
    now, most, lock, picture = 0, 0, threading.Lock(), Labels.picture

    def counted(labels: Labels, index: int) -> Image.Image:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        threading.Event().wait(0.05)
        try:
            return picture(labels, index)
        finally:
            with lock:
                now -= 1

    monkeypatch.setattr(Labels, "picture", counted)
    with page(photos) as client:
        threads = [threading.Thread(target=client.get, args=("/api/pictures/0",)) for _ in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert 1 <= most <= 4
