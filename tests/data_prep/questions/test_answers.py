"""Every kind of question over pictures that hypothesis makes up: what is asked is true, in the mirror too."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.caption.command import grammar_line
from data_prep.instruct.command import InstructConfig, SampleMaker
from data_prep.questions.kinds import KIND_NAMES
from llava_pose.data.conversation import POSE_TOKEN
from llava_pose.data.records import ObjectRecord, Pose
from tests.data_prep.made_scenes import CATEGORIES, SIDE, VIEWPORT, make_records
from tests.data_prep.questions.oracle import rederive

PROPERTY = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
# angles of all kinds, and those on which facts have their edges
_angles = st.one_of(st.floats(-7, 7), st.integers(-72, 72).map(lambda step: math.radians(5 * step)))
_upright = st.one_of(st.floats(-0.2, 0.2), st.sampled_from([0.0, math.radians(10), math.radians(-10)]))


@st.composite
def objects(draw: st.DrawFn) -> list[ObjectRecord]:
    """The objects of one picture: often of one category, often upright, sometimes in each other's place."""
    count = draw(st.integers(1, 4))
    names = st.sampled_from(draw(st.lists(st.sampled_from(CATEGORIES), min_size=1, max_size=3)))
    places: list[tuple[int, int, int, int]] = []
    records = []
    for index in range(count):
        corner = st.integers(-10, SIDE - 10)
        x, y, width, height = draw(st.tuples(corner, corner, st.integers(4, 200), st.integers(4, 200)))
        if places and draw(st.integers(0, 3)) == 0:
            x, y, width, height = places[0]
        places.append((x, y, width, height))
        pose = Pose(
            draw(_angles),
            draw(st.one_of(_angles, st.floats(-0.3, 1.0))),
            draw(st.one_of(_upright, _angles)),
            draw(st.floats(0.5, 20)),
            x + width / 2,
            y + height / 2,
        )
        records.append(
            ObjectRecord(
                file_name="car/n0.JPEG",
                id=f"car/n0/{index}",
                category=draw(names),
                pose=records[0].pose if records and draw(st.integers(0, 7)) == 0 else pose,
                viewport=VIEWPORT / 2,
                focal=2.0,
                width=SIDE,
                height=SIDE,
                bbox=(float(x), float(y), float(x + width), float(y + height)),
                object_status=draw(st.sampled_from(["status_good", "status_partially"])),
                source={"image": "images/car/n0.JPEG"},
            )
        )
    return records


def hold(records: list[ObjectRecord], config: InstructConfig) -> Counter[str]:
    """Hold all samples of some pictures against the records; how often each kind was asked."""
    writer = SampleMaker(config, records, None)
    asked: Counter[str] = Counter()
    for record in writer.order:
        for sample in writer.samples(record, writer.hands(record)):
            rederive(sample, record, writer.scenes[record.id])
            asked.update(sample["kinds"])
    assert writer.faults == {}
    return asked


@pytest.mark.parametrize("kind", KIND_NAMES)
@PROPERTY
@given(records=objects(), seed=st.integers(0, 99))
def test_every_answer_follows_from_the_records(kind: str, records: list[ObjectRecord], seed: int) -> None:
    hold(records, InstructConfig("", "", kinds=[kind], questions_per_object=6, seed=seed))


@PROPERTY
@given(records=objects(), turns=st.integers(1, 5), seed=st.integers(0, 99))
def test_answers_stay_true_where_kinds_share_a_conversation(records: list[ObjectRecord], turns: int, seed: int) -> None:
    hold(
        records, InstructConfig("", "", kinds=["all"], questions_per_object=20, turns_per_conversation=turns, seed=seed)
    )


@PROPERTY
@given(records=objects(), seed=st.integers(0, 99))
def test_every_caption_of_the_grammar_follows_from_the_records(records: list[ObjectRecord], seed: int) -> None:
    from data_prep.caption.grammar import check_caption
    from data_prep.scene.scenes import make_scenes

    scene = make_scenes(records)[records[0].id]
    line = grammar_line("train/car/n0.JPEG", scene, seed)
    assert line.caption.count(POSE_TOKEN) == len(line.objects) >= 1
    check_caption(line.caption, [scene.by_id[name] for name in line.objects])


def test_every_kind_comes_up() -> None:
    asked = hold(
        make_records(40),
        InstructConfig("", "", kinds=["all"], questions_per_object=10, turns_per_conversation=4, seed=2),
    )
    assert set(asked) == set(KIND_NAMES)
    assert min(asked.values()) >= 5, asked


@pytest.mark.parametrize("name", ["picture", "The", "degrees", "theta", "left", "a|b"])
def test_categories_of_peoples_own_may_have_any_name(name: str) -> None:
    records = [replace(record, category=name) for record in make_records(6)]
    assert hold(records, InstructConfig("", "", kinds=["all"], questions_per_object=40))
