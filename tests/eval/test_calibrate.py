"""`llava-pose calibrate` on a real checkpoint of random weights, and its arithmetic on answers whose truth is known."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.calibrate import Asked, fit, main
from eval.compared import align
from eval.predict import PredictConfig, predict
from eval.scoring import score_comparison
from llava_pose.data.records import ObjectRecord, Pose, Prediction, read_predictions, write_records
from llava_pose.errors import InputError
from llava_pose.inference.predictor import PosePredictor
from llava_pose.model.calibration import Calibration, Neighbours, least_masses
from llava_pose.model.checkpoint_files import CALIBRATION
from llava_pose.pose.metrics import calibration_error

SIDE = 32


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve cars, two pictures of each."""
    folder = tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(0)
    records = []
    for index in range(24):
        record = ObjectRecord(
            file_name=f"car/{index:02d}.png",
            id=f"car/{index:02d}/0",
            category="car",
            pose=Pose(float(rng.uniform(0, 2 * math.pi)), 0.1, 0.0, 4.0, SIDE / 2, SIDE / 2),
            viewport=200.0,
            width=SIDE,
            height=SIDE,
            bbox=(4.0, 4.0, 28.0, 28.0),
            source={"instance": f"car {index // 2}"},
        )
        path = folder / "val" / record.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((SIDE, SIDE)).save(path)
        records.append(record)
    write_records(folder, "val", records)
    return folder


@pytest.fixture
def checkpoint(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "checkpoint"))


def _asked(count: int, *, pictures: int = 1, overconfident: float = 3.0, seed: int = 0) -> Asked:
    """Answers whose logits are three times too large, with a first mode that is right as often as the logit's third says, a
    second that is right otherwise, but for one object in twenty.
    """
    rng = np.random.default_rng(seed)
    logits = np.repeat(rng.normal(0.5, 1.5, count), pictures)
    first = np.repeat(rng.uniform(size=count), pictures) < 1 / (1 + np.exp(-logits))
    second = ~first & (np.repeat(rng.uniform(size=count), pictures) > 0.05)
    share = (1 / (1 + np.exp(-logits))).clip(0.5, 0.99)
    shares = np.stack([share, 1 - share], -1)
    return Asked(logits * overconfident, shares, np.stack([first, second], -1), np.repeat(np.arange(count), pictures))


def test_confidences_come_true_on_instances_that_were_not_used():
    found, unseen = fit(_asked(600), 0.9, ""), _asked(2000, seed=1)
    hits = unseen.covering[:, 0]
    before, after = 1 / (1 + np.exp(-unseen.logits)), found.confidences(unseen.logits)
    assert calibration_error(before, hits) > 0.08
    assert calibration_error(after, hits) < 0.03
    assert found.scale == pytest.approx(1 / 3, rel=0.2)


@pytest.mark.parametrize("pictures", [1, 8])
def test_prediction_sets_hold_the_truth_in_the_promised_share_of_new_instances(pictures: int):
    held = []
    for seed in range(40):
        found, unseen = fit(_asked(60, pictures=pictures, seed=seed), 0.8, ""), _asked(500, seed=1000 + seed)
        sizes = found.set_sizes(unseen.shares)
        held.append((unseen.covering & (np.arange(2) < sizes[:, None])).any(1).mean())
    assert 0.78 < np.mean(held) < 0.9, "as promised, and not by sets of everything"


def test_pictures_of_one_instance_count_as_one():
    few, many = _asked(50), _asked(50, pictures=6)
    once, often = fit(few, 0.8, ""), fit(many, 0.8, "")
    assert (often.scale, often.shift, often.mass) == pytest.approx((once.scale, once.shift, once.mass), abs=1e-4)
    assert (often.objects, often.instances) == (300, 50)


def test_where_all_modes_hold_too_few_all_are_in_the_set():
    asked = _asked(50)
    never = Asked(asked.logits, asked.shares, np.zeros_like(asked.covering), asked.instances)
    found = fit(never, 0.9, "")
    assert found.mass == 1
    assert found.set_sizes(asked.shares).tolist() == [2] * 50
    assert found.confidences(asked.logits).max() < 0.1


def test_confidences_that_tell_the_contrary_tell_nothing():
    asked = _asked(400)
    found = fit(Asked(-asked.logits, asked.shares, asked.covering, asked.instances), 0.9, "")
    assert found.scale == 0
    share = asked.covering[:, 0].mean()
    assert found.confidences(asked.logits) == pytest.approx(np.full(400, share), abs=0.02)


def _strange(count: int, seed: int = 0) -> Asked:
    """Answers that are as sure of pictures unlike those of training as of others, and right about half as many of them."""
    rng = np.random.default_rng(seed)
    strangeness = rng.normal(-2.0, 1.0, count)
    hits = rng.uniform(size=count) < 1 / (1 + np.exp(1.5 * (strangeness + 2.0)))
    ones = np.ones((count, 1))
    return Asked(np.full(count, 1.0) + rng.normal(0, 0.1, count), ones, hits[:, None], np.arange(count), strangeness)


def test_what_is_unlike_the_pictures_of_training_is_less_sure():
    found, unseen = fit(_strange(2000), 0.9, ""), _strange(2000, seed=1)
    assert found.strangeness == pytest.approx(1.5, abs=0.2)
    hits, unlike = unseen.covering[:, 0], unseen.strangeness > -1.5
    plain = fit(Asked(unseen.logits, unseen.shares, unseen.covering, unseen.instances), 0.9, "")
    assert calibration_error(plain.confidences(unseen.logits)[unlike], hits[unlike]) > 0.2
    assert calibration_error(found.confidences(unseen.logits, unseen.strangeness)[unlike], hits[unlike]) < 0.04


def test_strangeness_that_tells_the_contrary_tells_nothing():
    asked = _strange(500)
    assert fit(replace(asked, strangeness=-asked.strangeness), 0.9, "").strangeness == 0


def test_neighbours_find_what_is_unlike_them_and_are_kept_whole():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(8, 40))
    features = [rng.normal(size=(count, 8)) @ mixing + 3 for count in (900, 50)]
    neighbours, others = Neighbours.of(features[0]), rng.normal(size=(50, 40)) * 3 + 3
    like, unlike = neighbours.strangeness(features[1]), neighbours.strangeness(others)
    assert like.max() < unlike.min()
    again = Neighbours.unpacked(neighbours.packed())
    np.testing.assert_array_equal(again.strangeness(others), unlike)
    assert neighbours.strangeness(features[0]).max() < unlike.min()


def test_a_checkpoint_answers_less_surely_about_what_is_unlike_its_neighbours(checkpoint: Path, prepared: Path):
    predictor = PosePredictor.from_checkpoint(checkpoint, device="cpu")
    pictures = [Image.open(file).convert("RGB") for file in sorted((prepared / "val" / "car").glob("*.png"))]
    features = predictor.features(pictures)
    values = {"scale": 0.5, "shift": 0.1, "coverage": 0.9, "mass": 0.5, "objects": 9, "instances": 9}
    found = Calibration(**values, strangeness=0.3, neighbours=Neighbours.of(features[:12]).packed())
    found.save(checkpoint)
    plain = predictor.predict(pictures, ["car"] * len(pictures))
    again = PosePredictor.from_checkpoint(checkpoint, device="cpu").predict(pictures, ["car"] * len(pictures))
    logits = np.array([math.log(answer.confidence / (1 - answer.confidence)) for answer in plain])
    confidences = [answer.confidence for answer in again]
    assert confidences == pytest.approx(
        found.confidences(logits, found.pictures.strangeness(features)).tolist(), abs=1e-4
    )
    assert confidences != pytest.approx(Calibration(**values).confidences(logits).tolist(), abs=1e-3)


def test_calibrate_compares_with_the_pictures_of_training(checkpoint: Path, prepared: Path, tmp_path: Path):
    data = Path(shutil.copytree(prepared, tmp_path / "data"))
    shutil.copytree(data / "val", data / "train")
    argv = ["--checkpoint", str(checkpoint), "--data", str(data), "--device", "cpu", "--neighbours"]
    assert main([*argv, "7"]) == 0
    found = Calibration.load(checkpoint)
    assert found is not None
    assert (found.pictures is None) == (found.strangeness == 0)
    if found.pictures is not None:
        assert len(found.pictures.features) == 7
    assert main([*argv, "0"]) == 0
    found = Calibration.load(checkpoint)
    assert found is not None
    assert (found.strangeness, found.neighbours) == (0, "")


def test_neighbours_of_another_model_are_a_sentence(checkpoint: Path):
    others = Neighbours.of(np.random.default_rng(0).normal(size=(5, 3))).packed()
    Calibration(scale=1, shift=0, coverage=0.9, mass=1, objects=9, instances=9, neighbours=others).save(checkpoint)
    with pytest.raises(
        InputError, match=r"have 3 channels, which are not this model's; run llava-pose calibrate again"
    ):
        PosePredictor.from_checkpoint(checkpoint, device="cpu")


@pytest.mark.parametrize("damage", ["cut", "letters", "parts", "nan"])
def test_damaged_neighbours_are_a_sentence(checkpoint: Path, damage: str):
    whole = Neighbours.of(np.random.default_rng(0).normal(size=(5, 3)))
    parts = {
        "cut": whole.packed()[:-8],
        "letters": "!" + whole.packed(),
        "parts": replace(whole, mean=whole.mean[:2]).packed(),
        "nan": replace(whole, spread=whole.spread * np.nan).packed(),
    }
    values = {"scale": 1, "shift": 0, "coverage": 0.9, "mass": 1, "objects": 9, "instances": 9}
    (checkpoint / CALIBRATION).write_text(json.dumps({**values, "neighbours": parts[damage]}))
    with pytest.raises(InputError, match=r"neighbours: cannot be read .*; run llava-pose calibrate again"):
        PosePredictor.from_checkpoint(checkpoint, device="cpu")


def test_the_least_mass_is_that_of_the_first_mode_that_covers():
    shares = np.array([[0.6, 0.3, 0.1], [0.6, 0.3, 0.1], [0.6, 0.4, 0.0], [0.6, 0.3, 0.1]])
    covering = np.array([[1, 0, 0], [0, 0, 1], [0, 0, 1], [0, 1, 1]], dtype=bool)
    least = least_masses(shares, covering)
    assert least == pytest.approx([0, 0.9, math.inf, 0.6])
    for mass, size in ((0, 1), (0.5, 1), (0.6, 2), (0.8, 2), (0.9, 3), (1, 3)):
        calibration = Calibration(scale=1, shift=0, coverage=0.9, mass=mass, objects=1, instances=1)
        assert calibration.set_sizes(shares[:2]).tolist() == [size, size]
    assert calibration.set_sizes(shares[2:3]).tolist() == [2], "a mode of no probability is none"


def test_a_calibrated_checkpoint_answers_with_its_calibration(checkpoint: Path, prepared: Path, tmp_path: Path, caplog):
    argv = ["--checkpoint", str(checkpoint), "--data", str(prepared), "--device", "cpu", "--coverage", "0.8"]

    def lines(name: str) -> list[Prediction]:
        out = tmp_path / f"{name}.jsonl"
        return read_predictions(predict(PredictConfig(checkpoint=str(checkpoint), data=str(prepared), out=str(out))))

    plain = lines("plain")
    assert {line.prediction_set for line in plain} == {None}
    with caplog.at_level("INFO"):
        assert main(argv) == 0
    found = Calibration.load(checkpoint)
    assert found is not None
    assert (found.coverage, found.objects, found.instances) == (0.8, 24, 12)
    assert "24 objects of 12 instances" in caplog.text
    again = lines("calibrated")
    assert [line.pose for line in again] == [line.pose for line in plain]
    logits = np.array([math.log(line.confidence / (1 - line.confidence)) for line in plain])
    assert [line.confidence for line in again] == pytest.approx(found.confidences(logits).tolist(), abs=1e-5)
    for line in again:
        assert line.prediction_set[0] == pytest.approx(line.pose.angles, abs=1e-4), "the answer stands first"
    answer = PosePredictor.from_checkpoint(checkpoint, device="cpu").chat(
        Image.new("RGB", (SIDE, SIDE)), [{"role": "user", "content": "What is this and what is its pose?"}]
    )
    assert len(answer.prediction_sets) == len(answer.poses)
    before = (checkpoint / CALIBRATION).read_bytes()
    assert main(argv) == 0, "it is made of the head's own confidence, not of the calibrated one"
    assert (checkpoint / CALIBRATION).read_bytes() == before


def test_lines_of_before_are_not_gone_on_with(checkpoint: Path, prepared: Path, tmp_path: Path):
    config = PredictConfig(checkpoint=str(checkpoint), data=str(prepared), out=str(tmp_path / "p.jsonl"), limit=1)
    predict(config)
    Calibration(scale=1, shift=0, coverage=0.9, mass=1, objects=9, instances=9).save(checkpoint)
    with pytest.raises(InputError, match="the calibration changed"):
        predict(config)


def test_too_few_instances_are_refused(checkpoint: Path, prepared: Path, tmp_path: Path, capsys):
    few = tmp_path / "few"
    shutil.copytree(prepared, few)
    file = few / "val" / "metadata.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:10]))
    assert main(["--checkpoint", str(checkpoint), "--data", str(few), "--device", "cpu"]) == 2
    assert "10 objects show 5 instances, and a calibration needs 10 at least" in capsys.readouterr().err
    assert not (checkpoint / CALIBRATION).exists()


def test_an_instance_of_a_name_is_another_in_another_category(checkpoint: Path, prepared: Path, tmp_path: Path):
    both = Path(shutil.copytree(prepared, tmp_path / "both"))
    lines = [json.loads(line) for line in (both / "val" / "metadata.jsonl").read_text().splitlines()]
    lines = [
        {**line, "category": "cup", "id": line["id"].replace("car/", "cup/")} if number % 2 else line
        for number, line in enumerate(lines)
    ]
    (both / "val" / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["--checkpoint", str(checkpoint), "--data", str(both), "--device", "cpu"]) == 0
    found = Calibration.load(checkpoint)
    assert found is not None
    assert found.instances == 24, "of each pair of pictures one is of a cup"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "calibration.json"),
        ("[]", "calibration.json"),
        ('{"scale": 1}', "calibration.json.*needed"),
        ('{"scale": -1, "shift": 0, "coverage": 0.9, "mass": 1, "objects": 1, "instances": 1}', "scale"),
        ('{"scale": 1, "shift": NaN, "coverage": 0.9, "mass": 1, "objects": 1, "instances": 1}', "shift"),
        ('{"scale": 1, "shift": 0, "coverage": 0.9, "mass": 2, "objects": 1, "instances": 1}', "mass"),
        ('{"scale": 1, "shift": 0, "coverage": 0.9, "mass": 1, "objects": 1, "instances": 1, "x": 1}', "x"),
    ],
)
def test_a_damaged_calibration_is_a_sentence(checkpoint: Path, text: str, match: str):
    (checkpoint / CALIBRATION).write_text(text)
    with pytest.raises(InputError, match=match):
        PosePredictor.from_checkpoint(checkpoint, device="cpu")


def test_score_says_what_confidences_and_sets_are_worth():
    true = Pose(0.0, 0.0, 0.0)

    def line(number: int, azimuth: float, confidence: float | None, held: list[float] | None) -> Prediction:
        sets = None if held is None else [[other, 0.0, 0.0] for other in held]
        return Prediction(
            f"car/{number}/0", "s", "car", None, Pose(azimuth, 0, 0), true, confidence, prediction_set=sets
        )

    answers = [
        line(0, 0.1, 0.9, [0.1]),
        line(1, 3.0, 0.7, [3.0, 0.2]),
        line(2, 3.0, 0.1, [3.0, 1.5]),
        line(3, 0.2, None, None),
    ]
    scores = score_comparison(align({"s": answers}))["systems"]["s"]["overall"]
    assert scores["confidence"]["n"] == 3
    assert scores["confidence"]["ece"] == pytest.approx((0.1 + 0.7 + 0.1) / 3)
    assert scores["confidence"]["surest"] == pytest.approx({"100%": 1 / 3, "80%": 1 / 3, "50%": 1 / 2})
    assert scores["prediction_sets"] == pytest.approx({"n": 3, "holds": 2 / 3, "mean_size": 5 / 3})


@pytest.mark.parametrize(
    "value", [[], [[0, 0]], [[0, 0, "1"]], [[0, 0, math.inf]], "x", {"0": [0, 0, 0]}, [[0, 0, 0]] * 101]
)
def test_a_wrong_prediction_set_is_a_sentence(value: object):
    line = Prediction("car/0/0", "s", "car", None, Pose(0, 0, 0), Pose(0, 0, 0)).to_dict()
    with pytest.raises(InputError, match=r"p:1: .*'prediction_set' must be"):
        Prediction.from_dict({**line, "prediction_set": value}, where="p:1")
    kept = Prediction.from_dict(json.loads(json.dumps({**line, "prediction_set": [[1, 2, 3]]})), where="p:1")
    assert kept.prediction_set == [[1.0, 2.0, 3.0]]
