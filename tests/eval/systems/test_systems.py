"""Prediction files joined: names, samples that differ, annotations that disagree."""

import json
import logging
import math

import pytest

from eval.compared import align, canonical_category, read_systems
from llava_pose.data.records import Pose, Prediction
from llava_pose.errors import InputError

POSE = Pose(0.1, 0.2, 0.3)


def prediction(id_="car/1", system="a", category="car", true=POSE, **values):
    return Prediction(id_, system, category, None, POSE, true, **values)


def write(path, *predictions, drop=()):
    lines = [{k: v for k, v in p.to_dict().items() if k not in drop} for p in predictions]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_systems_come_from_one_file_each_or_mixed(tmp_path):
    mixed = write(tmp_path / "mixed.jsonl", prediction(), prediction(system="b"))
    other = write(tmp_path / "other.jsonl", prediction(system="c"))
    assert list(read_systems([mixed, other])) == ["a", "b", "c"]


def test_a_file_that_names_no_system_lends_its_own_name(tmp_path):
    paths = [write(tmp_path / f"{name}.jsonl", prediction(), drop=("system",)) for name in ("resnet", "swin")]
    assert list(read_systems(paths)) == ["resnet", "swin"]


def test_shards_of_one_system_are_joined(tmp_path):
    paths = [write(tmp_path / f"{i}.jsonl", prediction(f"car/{i}")) for i in range(2)]
    assert [p.id for p in read_systems(paths)["a"]] == ["car/0", "car/1"]


def test_one_name_for_two_checkpoints_is_refused_and_names_mend_it(tmp_path):
    paths = [write(tmp_path / f"{name}.jsonl", prediction()) for name in ("old", "new")]
    with pytest.raises(InputError, match=r"new\.jsonl: system 'a' answers the id 'car/1' that .*old\.jsonl.*--names"):
        read_systems(paths)
    assert list(read_systems(paths, ["before", "after"])) == ["before", "after"]


def test_the_same_file_twice_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", prediction())
    with pytest.raises(InputError, match="answers already"):
        read_systems([path, path])


def test_names_must_fit_the_files(tmp_path):
    mixed = write(tmp_path / "mixed.jsonl", prediction(), prediction(system="b"))
    with pytest.raises(InputError, match="2 names for 1"):
        read_systems([mixed], ["x", "y"])
    with pytest.raises(InputError, match="holds 2 systems"):
        read_systems([mixed], ["x"])


def test_degrees_are_suspected_but_large_radians_of_a_few_are_not(tmp_path, caplog):
    degrees = write(tmp_path / "d.jsonl", *[prediction(str(i), true=Pose(200.0, 10.0, 0.0)) for i in range(4)])
    wound = write(tmp_path / "w.jsonl", prediction("0", true=Pose(20 * math.pi, 0.0, 0.0)), *map(prediction, "123"))
    with caplog.at_level(logging.WARNING):
        read_systems([wound])
        assert not caplog.messages
        read_systems([degrees])
    assert "were these written in degrees?" in caplog.text


def test_different_samples_are_refused_with_names_and_counts():
    a = [prediction(str(i)) for i in range(6)]
    b = [prediction("5", "b"), prediction("9", "b")]
    with pytest.raises(InputError) as error:
        align({"a": a, "b": b})
    assert "'a' has no answer for 1 sample ('9')" in str(error.value)
    assert "'b' has no answer for 5 samples ('0', '1', '2' and 2 more)" in str(error.value)
    assert "--samples common" in str(error.value)


def test_common_samples_and_all_samples(caplog):
    systems = {"a": [prediction("0"), prediction("1")], "b": [prediction("1", "b"), prediction("2", "b")]}
    common = align(systems, "common")
    assert [sample.id for sample in common.samples] == ["1"]
    assert "scored over 1 sample " in caplog.text
    everything = align(systems, "all")
    assert [sample.id for sample in everything.samples] == ["0", "1", "2"]
    assert [answer and answer.id for answer in everything.answers["b"]] == [None, "1", "2"]


def test_nothing_in_common_is_refused():
    with pytest.raises(InputError, match="no sample is common"):
        align({"a": [prediction("0")], "b": [prediction("1", "b")]}, "common")


def test_answers_are_put_in_the_order_of_the_first_system():
    systems = {"a": [prediction("0"), prediction("1")], "b": [prediction("1", "b"), prediction("0", "b")]}
    assert [answer.id for answer in align(systems).answers["b"]] == ["0", "1"]


def test_disagreement_about_the_annotation_is_refused():
    with pytest.raises(InputError, match=r"disagree about the true category of '1': 'car'.*'bus' in 'b'"):
        align({"a": [prediction("1")], "b": [prediction("1", "b", "bus")]})
    with pytest.raises(InputError, match=r"disagree about the true pose of '1' by 57\.3 degrees"):
        align({"a": [prediction("1")], "b": [prediction("1", "b", true=Pose(1.1, 0.2, 0.3), category="car")]})


def test_rounding_aliases_and_wound_angles_are_no_disagreement():
    a = prediction("1", category="diningtable", true=Pose(0.12345678, 0.2, 0.0))
    b = prediction("1", "b", category="dining table", true=Pose(0.1235 + 2 * math.pi, 0.2, 0.0))
    assert len(align({"a": [a], "b": [b]}).samples) == 1


def test_what_one_file_leaves_out_another_may_say():
    a = prediction("1")
    b = prediction("1", "b", object_status="status_partially", source="eth80")
    for systems in ({"a": [a], "b": [b]}, {"b": [b], "a": [a]}):
        (sample,) = align(systems).samples
        assert sample.occluded
        assert sample.source == "eth80"


def test_categories_outside_the_taxonomy_keep_a_name():
    assert canonical_category("Flux  capacitor") == canonical_category("flux_capacitor") == "flux_capacitor"
    assert canonical_category("dining table") == "diningtable"
