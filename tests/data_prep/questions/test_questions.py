"""The kinds of questions: what is asked is true, in the mirror too; answers are even; nothing is told before it is asked."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from functools import cache

import pytest

from data_prep.instruct.command import InstructConfig, SampleMaker, deal, instruct, main
from data_prep.questions import boxes, captioned, given, relative, single
from data_prep.questions.base import LETTERS, Balance, Turn, told
from data_prep.questions.kinds import KIND_NAMES
from data_prep.scene.scenes import noun
from llava_pose.data.conversation import POSE_TOKEN, mirror_sides, object_words
from llava_pose.data.records import ObjectRecord, category_of
from tests.data_prep.made_scenes import make_prepared, make_records
from tests.data_prep.questions.reading import slots_of, split_listing


@cache
def everything() -> tuple[SampleMaker, list[tuple[ObjectRecord, list[list[Turn]], list[dict]]]]:
    """All kinds, asked of 100 objects."""
    records = make_records(40)
    config = InstructConfig("", "", kinds=["all"], questions_per_object=10, turns_per_conversation=4, seed=2)
    writer = SampleMaker(config, records, None)
    made = []
    for record in writer.order:
        hands = writer.hands(record)
        made.append((record, hands, writer.samples(record, hands)))
    return writer, made


def turns_of(kind: str) -> list[Turn]:
    return [turn for _, hands, _ in everything()[1] for hand in hands for turn in hand if turn.kind == kind]


def test_what_may_be_mirrored_is_about_objects_that_mirror_about_x():
    for record, hands, samples in everything()[1]:
        for hand, sample in zip(hands, samples, strict=True):
            about = [category_of(other) for turn in hand for other in turn.about]
            if sample["flippable"]:
                assert {category.mirror_axis for category in about} == {"x"}
            elif {category.mirror_axis for category in about} == {"x"}:
                # words that no swap of left and right mirrors
                assert {turn.kind for turn in hand if not turn.flippable} <= {"described"}, record.id


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_nothing_is_left_of_the_templates(kind):
    for turn in turns_of(kind):
        for text in (turn.question, turn.answer):
            assert not re.search(r"[{}]|  |\bNone\b|\ba [aeio]|\ban [^aeiouhAEIOHX]", text), text
        assert turn.answer[0].isupper()
        assert turn.answer.endswith((".", "!")) or turn.kind in ("choice", "given")
        assert (turn.question + turn.answer).count(POSE_TOKEN) == len(turn.poses)


def test_all_phrasings_come_up():
    """Whatever stands in a room of kinds is used."""
    for kind, room in (("box", boxes.BoxKind), ("box_joint", boxes.BoxJointKind), ("locate", boxes.LocateKind)):
        used = {p for t in turns_of(kind) for p in room.questions if slots_of(p, t.question) is not None}
        assert used == set(room.questions), kind
    for kind, room in (("described", single.DescribedKind), ("listed", single.ListedKind), ("which", given.WhichKind)):
        used = {p for t in turns_of(kind) for p in room.questions if slots_of(p, t.question) is not None}
        assert used == set(room.questions), kind
    asked = {t.topic for t in turns_of("relative")}
    assert asked == set(relative.RELATIONS)


# Single kinds


def test_in_a_picture_of_several_the_pose_question_says_which():
    writer, made = everything()
    for record, hands, _ in made:
        scene = writer.scenes[record.id]
        same = [other for other in scene.objects if noun(other) == noun(record)]
        for turn in (turn for hand in hands for turn in hand if turn.kind == "pose"):
            if len(same) > 1:
                assert re.search(r"on the (left|right)|in the box", turn.question), turn.question


def test_questions_about_the_one_object_are_not_asked_where_there_are_several():
    writer, made = everything()
    for record, hands, _ in made:
        asked = {turn.kind for hand in hands for turn in hand}
        if len(writer.scenes[record.id].owners) > 1:
            assert not asked & {"joint", "listed"}
        else:
            assert not asked & {"several", "relative", "which"}


def test_a_closed_list_holds_the_answer_once_and_in_every_place():
    places: dict[int, Counter[int]] = defaultdict(Counter)
    for turn in turns_of("listed"):
        (options,) = (
            slots["options"] for p in single.ListedKind.questions if (slots := slots_of(p, turn.question)) is not None
        )
        names = split_listing(options, "or", "an? ")
        right = object_words(category_of(turn.about[0]))["an_object"]
        assert names.count(right) == 1
        assert len(set(names)) == len(names)
        assert LETTERS[names.index(right)] == turn.letter
        places[len(names)][names.index(right)] += 1
    for length, counts in places.items():
        assert max(counts.values()) - min(counts[i] for i in range(length)) <= 1


def test_a_description_is_that_of_the_category_known_or_novel():
    topics = set()
    for turn in turns_of("described"):
        category = category_of(turn.about[0])
        assert category.description in turn.question
        topics.add((turn.topic, category.known))
    assert topics == {("known category", True), ("novel category", False)}


# Balance


def balance_of(kind: str) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for turn in turns_of(kind):
        counts[turn.topic][turn.outcome] += 1
    return counts


@pytest.mark.parametrize("kind", ["yesno", "verify", "relative"])
def test_two_answers_are_even_within_one(kind):
    counts = balance_of(kind)
    assert counts
    for topic, answers in counts.items():
        options = {option for turn in turns_of(kind) if turn.topic == topic for option in turn.options}
        assert len(options) == 2
        assert abs(answers[min(options)] - answers[max(options)]) <= 1, (topic, answers)


@pytest.mark.parametrize("kind", ["choice", "given"])
def test_no_option_wins_oftener_than_another_that_stood_beside_it(kind):
    wins: Counter[tuple[str, str, str]] = Counter()
    letters: dict[int, Counter[str]] = defaultdict(Counter)
    for turn in turns_of(kind):
        wins.update((turn.topic, turn.outcome, other) for other in turn.options if other != turn.outcome)
        if turn.letter:
            letters[len(turn.options)][turn.letter] += 1
            assert turn.options[LETTERS.index(turn.letter)] == turn.outcome
    assert wins
    for (topic, a, b), count in wins.items():
        assert count - wins[topic, b, a] <= 1
    for length, counts in letters.items():
        assert max(counts.values()) - min(counts[letter] for letter in LETTERS[:length]) <= 1


def test_balance_holds_where_the_data_is_one_sided():
    """Every object is seen from above: nothing may be learned from that without looking."""
    records = [
        ObjectRecord(**{**vars(r), "pose": type(r.pose)(r.pose.azimuth, 0.5, 0.0, 5.0, r.pose.px, r.pose.py)})
        for r in make_records(60, most=1)
    ]
    writer = SampleMaker(InstructConfig("", "", kinds=["yesno"], questions_per_object=4), records, None)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for record in writer.order:
        for hand in writer.hands(record):
            counts[hand[0].topic][hand[0].outcome] += 1
    assert sum(map(Counter.total, counts.values())) > 50, "of other things there is enough to ask"
    assert counts["from above"].total() <= 1
    assert all(abs(c["yes"] - c["no"]) <= 1 for c in counts.values())


def test_a_balance_counts_pairs():
    balance = Balance()
    balance.count("t", "a", ["b", "c"])
    assert (balance.lead("t", "a", "b"), balance.lead("t", "b", "a"), balance.lead("u", "a", "b")) == (1, -1, 0)
    assert not balance.allows("t", "a", "b")
    assert balance.allows("t", "b", "a")


def test_a_wrong_pose_is_as_likely_as_a_true_one():
    """All cars are seen from about the same height: a pose from another height would be wrong at a glance."""
    records = [
        ObjectRecord(**{**vars(r), "category": "car", "pose": type(r.pose)(r.pose.azimuth, 0.2, 0.1, 5.0, 9.0, 9.0)})
        for r in make_records(40, most=1)
    ]
    writer = SampleMaker(InstructConfig("", "", kinds=["verify"], questions_per_object=2), records, None)
    poses = [turn.poses[0] for record in writer.order for hand in writer.hands(record) for turn in hand]
    assert len(poses) > 60
    assert {(pose.elevation, pose.theta) for pose in poses} == {(0.2, 0.1)}


# Conversations


def test_no_question_comes_after_an_answer_that_tells_it():
    several = 0
    for _, hands, _ in everything()[1]:
        for hand in hands:
            known: set = set()
            for turn in hand:
                assert not turn.asks & known, [t.kind for t in hand]
                known |= turn.tells
            several += len(hand) > 1
            assert len(hand) <= 4
            ranks = [everything()[0].kinds[turn.kind].rank for turn in hand]
            assert ranks == sorted(ranks)
    assert several > 50


def test_what_was_told_is_asked_elsewhere():
    record = make_records(1)[0]
    words = Turn("yesno", "q", "a", (), (record,), told([record], "height"), told([record], "height"))
    other = Turn("choice", "q", "a", (), (record,), told([record], "tilt"), told([record], "tilt"))
    assert deal([words, words, other, words], 4) == [[words, other], [words], [words]]
    assert deal([words, other, words, other], 2) == [[words], [other], [words], [other]] or deal(
        [words, other, words, other], 2
    ) == [[words], [other], [words, other]]


def test_the_order_of_the_records_changes_nothing(tmp_path):
    records = make_records(12)
    texts = []
    for order in (records, list(reversed(records))):
        prepared = make_prepared(tmp_path / str(len(texts)), order)
        out = tmp_path / f"{len(texts)}.json"
        instruct(InstructConfig(data=str(prepared), out=str(out), kinds=["all"], questions_per_object=5))
        texts.append(out.read_bytes())
    assert texts[0] == texts[1]


def test_handed_words_are_not_mirrored():
    assert captioned.HANDED.search("It turns clockwise at <pose6D>.")
    assert mirror_sides("It turns clockwise.") == "It turns clockwise."


# The report


def test_the_report_counts_what_is_in_the_file(tmp_path, capsys):
    prepared = make_prepared(tmp_path / "prepared", make_records(20))
    out = tmp_path / "train.json"
    argv = ["--data", str(prepared), "--out", str(out), "--kinds", "all", "--questions-per-object", "8"]
    assert main([*argv, "--turns-per-conversation", "3"]) == 0
    samples = json.loads(out.read_text(encoding="utf-8"))
    report = json.loads((tmp_path / "train_report.json").read_text(encoding="utf-8"))
    kinds = Counter(kind for sample in samples for kind in sample["kinds"])
    assert report["conversations"] == len(samples)
    assert {kind: count for kind, count in report["questions"].items() if count} == kinds
    assert sum(report["not_asked"].values()) + kinds.total() == 8 * report["objects"]
    assert report["flippable_conversations"] == sum(sample["flippable"] for sample in samples)
    assert report["images"] == 20
    turns = report["lengths"]["turns of a conversation"]
    assert (turns["most"], turns["least"]) == (3, 1)
    said = Counter(
        sample["conversations"][2 * i + 1]["value"].split(",")[0].strip(".").lower()
        for sample in samples
        for i, kind in enumerate(sample["kinds"])
        if kind == "yesno"
    )
    right = Counter()
    for answers in report["answers"]["yesno"].values():
        right.update({outcome: counts["right"] for outcome, counts in answers.items()})
    assert right == said
    for topics in report["answers"].values():
        for answers in topics.values():
            assert sum(a["right"] for a in answers.values()) > 0
            assert all(0 <= a["right"] <= a["offered"] for a in answers.values())
    assert set(report["answers"]) == {"yesno", "choice", "relative", "verify", "given"}
    assert capsys.readouterr().out == ""
