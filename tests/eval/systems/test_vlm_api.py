"""llava-pose vlm-api: what the prompt says of the convention, and models behind a server that misbehaves in every way."""

from __future__ import annotations

import base64
import json
import math
import sys

import numpy as np
import pytest

from eval.systems.vlm_api import VlmApiConfig, main, run
from eval.systems.vlm_prompt import (
    CONVENTION,
    EXAMPLES,
    RANGES,
    SIDES,
    box_words,
    candidate_words,
    first_messages,
    read_answer,
)
from llava_pose.data.records import read_predictions, read_records
from llava_pose.errors import InputError
from llava_pose.pose import categories
from llava_pose.pose.geometry import camera_center, canonicalize, rotation_matrix
from llava_pose.pose.metrics import pose_error
from llava_pose.utils.openai_client import BadAnswer
from llava_pose.utils.output_folder import settings_file
from tests.data_prep.made_scenes import make_prepared, make_record
from tests.misbehaving import Script, kill_at_line, serving

GOOD = {"azimuth": 90, "elevation": 10.5, "rotation": -20}
# in the camera's frame: x right, y up, z to the viewer
DIRECTIONS = {
    "to the right": (1, 0, 0),
    "to the left": (-1, 0, 0),
    "up": (0, 1, 0),
    "down": (0, -1, 0),
    "towards the viewer": (0, 0, 1),
    "away from the viewer": (0, 0, -1),
}
FRONT, LEFT, TOP = (0, -1, 0), (1, 0, 0), (0, 0, 1)  # of the object, docs/POSE.md

# ------------------------------------------------------------------ the convention in words


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_the_worked_examples_agree_with_the_geometry(example):
    """Each axis points in every direction that is named, and in no other."""
    angles = np.radians([example.azimuth, example.elevation, example.rotation])
    rotation = rotation_matrix(*angles)
    for axis, words in ((FRONT, example.front), (TOP, example.top)):
        seen = rotation @ np.array(axis)
        named = {word for word, direction in DIRECTIONS.items() if seen @ np.array(direction) > 1e-9}
        assert named == set(words)


@pytest.mark.parametrize(("azimuth", "side"), SIDES.items())
def test_the_sides_that_the_camera_looks_at_agree_with_the_geometry(azimuth, side):
    outward = {"front": FRONT, "own left side": LEFT, "back": (0, 1, 0), "own right side": (-1, 0, 0)}
    camera = camera_center(math.radians(azimuth), 0.0, 1.0)
    np.testing.assert_allclose(camera, outward[side], atol=1e-12)
    assert f"{azimuth}: the camera looks at the object's {side}" in CONVENTION


def test_the_sentences_of_the_convention_agree_with_the_geometry():
    def seen(axis, azimuth=0.0, elevation=0.0, rotation=0.0):
        return rotation_matrix(*np.radians([azimuth, elevation, rotation])) @ np.array(axis)

    assert "Between 0 and 180 its own left side is visible, between 180 and 360 its own right side" in CONVENTION
    for azimuth in range(1, 180):
        assert seen(LEFT, azimuth)[2] > 0
        assert seen(LEFT, azimuth + 180)[2] < 0
    assert "positive: the camera looks down on it and sees its top" in CONVENTION
    assert seen(TOP, 70, 25)[2] > 0 > seen(TOP, 70, -25)[2]
    assert camera_center(0.0, math.pi / 2, 1.0) == pytest.approx([0, 0, 1]), "90: straight from above"
    assert "positive: turned counter-clockwise, so that its top leans to the left of the picture" in CONVENTION
    assert seen(TOP, 70, 0, 25)[0] < 0 < seen(TOP, 70, 0, -25)[0]
    assert "who stands before the front and looks at it has the object's own left on the right" in CONVENTION
    assert seen(LEFT)[0] == pytest.approx(1)


def test_the_prompt_holds_what_the_model_must_know():
    record = make_record("cup", 0, 0, np.random.default_rng(0), bbox=(-24, 60, 120, 180))
    cup = categories.get("cup")
    system, user = first_messages(record, cup, None, None)
    assert all(f"azimuth {example.azimuth}, elevation {example.elevation}" in system["content"] for example in EXAMPLES)
    (part,) = user["content"]
    assert "a cup in the box from 0% to 50% of its width and 25% to 75% of its height" in part["text"]
    assert f"the front is {cup.front}" in part["text"], "whatever a cup's front may be, the model is told"
    assert '{"azimuth": …, "elevation": …, "rotation": …}' in part["text"]
    words = candidate_words([categories.get(name) for name in ("car", "diningtable")])
    text = first_messages(record, cup, words, None)[1]["content"][0]["text"]
    assert "cup" not in text, "the joint task does not give the category away"
    assert "one of these: car; dining table." in text
    assert '{"category": …, "azimuth": …' in text


# ------------------------------------------------------------------ the answer


def test_an_answer_is_read_into_radians():
    pose = read_answer(json.dumps(GOOD), None).pose
    assert pose.angles == pytest.approx([math.pi / 2, math.radians(10.5), -math.pi / 9])
    assert read_answer(f"```json\n{json.dumps(GOOD)}\n```", None).pose == pose
    words = candidate_words([categories.get(name) for name in ("car", "diningtable")])
    assert read_answer(json.dumps({"category": " Dining Table", **GOOD}), words).category == "diningtable"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "the answer is empty"),
        ("  ", "the answer is empty"),
        (f"The pose is {json.dumps(GOOD)}.", "not one JSON object and nothing else"),
        (json.dumps([GOOD]), "a JSON object with exactly the keys azimuth, elevation, rotation"),
        ("3", "a JSON object with exactly the keys"),
        ("[]", "a JSON object with exactly the keys"),
        ('{"azimuth": 1, "elevation": 2}', "exactly the keys"),
        (json.dumps({**GOOD, "confidence": 1}), "exactly the keys"),
        ('{"azimuth": 1, "azimuth": 2, "elevation": 2, "rotation": 0}', "exactly the keys"),
        ('{"azimuth": NaN, "elevation": 2, "rotation": 0}', "'azimuth' must be a finite number"),
        ('{"azimuth": 1, "elevation": Infinity, "rotation": 0}', "'elevation' must be a finite number"),
        (json.dumps({**GOOD, "rotation": "20"}), "'rotation' must be a finite number"),
        (json.dumps({**GOOD, "rotation": True}), "'rotation' must be a finite number"),
        (json.dumps({**GOOD, "azimuth": 361}), "'azimuth' must be from 0 to 360 degrees"),
        (json.dumps({**GOOD, "azimuth": 10**400}), "'azimuth' must be from 0 to 360 degrees"),
        (json.dumps({**GOOD, "azimuth": -1}), "'azimuth' must be from 0 to 360 degrees"),
        (json.dumps({**GOOD, "elevation": 90.5}), "'elevation' must be from -90 to 90 degrees"),
        (json.dumps({**GOOD, "rotation": 1e400}), "'rotation' must be a finite number"),
        ("[" * 100_000, "not one JSON object"),
    ],
)
def test_a_bad_answer_is_told_from_a_good_one(text, reason):
    with pytest.raises(BadAnswer, match=reason):
        read_answer(text, None)


def test_a_category_outside_the_list_is_a_bad_answer():
    words = candidate_words([categories.get("car")])
    for named in ("bus", "", None, ["car"]):
        with pytest.raises(BadAnswer, match="'category' must be one of the list"):
            read_answer(json.dumps({"category": named, **GOOD}), words)
    with pytest.raises(BadAnswer, match="exactly the keys category, azimuth"):
        read_answer(json.dumps(GOOD), words)


def test_every_category_of_the_taxonomy_has_a_word_of_its_own():
    every = categories.all_categories()
    assert sorted(candidate_words(every).values()) == sorted(category.name for category in every)
    assert len({word.casefold() for word in candidate_words(every)}) == len(every)


# ------------------------------------------------------------------ a model behind a server


@pytest.fixture
def prepared(tmp_path):
    rng = np.random.default_rng(0)
    names = ("car", "car", "cup", "chair", "airship")
    records = [make_record(name, picture, 0, rng) for picture, name in enumerate(names)]
    return make_prepared(tmp_path / "prepared", records, "val")


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(Script(lambda body: json.dumps(GOOD))) as script:
        yield script


def options(prepared, script, **changes):
    values = {"concurrency": 1, "timeout": 30.0, "api_base": script.url, "model": "tester"}
    return {"data": str(prepared), "output_dir": str(prepared.parent / "run"), **values, **changes}


def ask(prepared, script, **changes):
    """The lines of a run."""
    path = run(VlmApiConfig(**options(prepared, script, **changes)))
    assert path == prepared.parent / "run" / "predictions.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def summary_of(prepared):
    return json.loads((prepared.parent / "run" / "predictions_summary.json").read_text())


def test_a_line_for_each_object_in_the_order_of_the_records(prepared, server, caplog):
    caplog.set_level("INFO")
    lines = ask(prepared, server, price_in=5.0, price_out=15.0)
    assert [line["id"] for line in lines] == [
        f"{n}/n{i:03d}/0" for i, n in enumerate(("car", "car", "cup", "chair", "airship"))
    ]
    predictions = read_predictions(prepared.parent / "run" / "predictions.jsonl")
    assert {p.system for p in predictions} == {"tester"}
    assert all(p.pose.angles == pytest.approx(np.radians([90, 10.5, -20])) for p in predictions)
    assert all(p.pred_category is None for p in predictions)
    _, _, body = server.requests[0]
    text, image = body["messages"][1]["content"]
    assert text["type"] == "text"
    kind, data = image["image_url"]["url"].split(";base64,")
    assert kind == "data:image/jpeg"
    assert base64.b64decode(data)[:2] == b"\xff\xd8"
    assert (body["max_tokens"], "temperature" in body) == (400, False)
    assert summary_of(prepared) == {
        **{"answered": 5, "failed": 0, "failed_because": {}, "attempts": 5},
        **{"prompt_tokens": 500, "completion_tokens": 100, "cost": 0.004},
    }
    assert "5 answers of tester are in" in caplog.messages[-2]
    assert "500 tokens sent and 100 received, cost 0.004" in caplog.messages[-2]
    assert caplog.messages[-1].startswith("next: llava-pose score")


def test_a_model_that_knows_makes_no_error(prepared, server):
    """From the annotation through the degrees of an answer to the error."""
    records = {box_words(record): record for record in read_records(prepared, "val")}

    def knows(body):
        text = body["messages"][1]["content"][0]["text"]
        (record,) = [record for box, record in records.items() if box in text]
        return json.dumps(dict(zip(RANGES, np.degrees(canonicalize(*record.pose.angles)).tolist(), strict=True)))

    server.good = knows
    ask(prepared, server)
    predictions = read_predictions(prepared.parent / "run" / "predictions.jsonl")
    errors = pose_error([p.pose.angles for p in predictions], [p.true.angles for p in predictions])
    assert len(errors) == len(records) == 5
    assert errors.max() < 1e-9


def test_newer_models_get_the_options_they_know(prepared, server):
    ask(prepared, server, token_limit="max_completion_tokens", max_tokens=3000, temperature=0.0, sample=1)
    _, _, body = server.requests[0]
    assert (body["max_completion_tokens"], body["temperature"]) == (3000, 0.0)
    assert "max_tokens" not in body


def test_the_joint_task_asks_for_the_category(prepared, server):
    server.good = lambda body: json.dumps({"category": "airship", **GOOD})
    lines = ask(prepared, server, task="joint", categories=["cup", "airship"])
    assert [(line["category"], line["pred_category"]) for line in lines] == [("cup", "airship"), ("airship", "airship")]
    assert "one of these: airship; car; chair; cup." in server.requests[0][2]["messages"][1]["content"][0]["text"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (f"Sure! {json.dumps(GOOD)}", "the answer is not one JSON object and nothing else"),
        (None, "the answer is empty"),
        ('{"azimuth": NaN, "elevation": 0, "rotation": 0}', "'azimuth' must be a finite number of degrees"),
        (json.dumps({**GOOD, "elevation": 135}), "'elevation' must be from -90 to 90 degrees"),
        ('{"azimuth": 10, "rotation": 0}', "exactly the keys azimuth, elevation, rotation"),
    ],
)
def test_a_bad_answer_is_asked_again_with_the_reason(prepared, server, bad, reason):
    server.steps = [bad]
    (line,) = ask(prepared, server, sample=1)
    assert line["pose"] is not None
    assert line["request"] == {"attempts": 2, "prompt_tokens": 200, "completion_tokens": 40, "reason": ""}
    again = server.requests[1][2]["messages"]
    assert reason in again[-1]["content"]
    assert again[-2]["content"] == (bad or "(nothing)")


def test_endless_bad_answers_become_failures_with_their_reasons(prepared, server):
    far = json.dumps({**GOOD, "azimuth": 400})
    server.steps = ["no", "no", "good", far, far]
    lines = ask(prepared, server, attempts=2)
    assert [line["pose"] is None for line in lines] == [True, False, True, False, False]
    assert [line["request"]["attempts"] for line in lines] == [2, 1, 2, 1, 1]
    assert summary_of(prepared)["failed_because"] == {
        "the answer is not one JSON object and nothing else": 1,
        "'azimuth' must be from 0 to 360 degrees": 1,
    }
    # what failed stays so, until it is asked for again
    before = len(server.requests)
    assert ask(prepared, server) == lines
    assert len(server.requests) == before
    spent = summary_of(prepared)
    server.steps = [*[500] * 3]
    with pytest.raises(InputError, match="nothing is lost"):
        ask(prepared, server, retry_failed=True, tries=3)
    assert [json.loads(line) for line in (prepared.parent / "run" / "predictions.jsonl").open()] == lines
    before = len(server.requests)
    again = ask(prepared, server, retry_failed=True)
    assert all(line["pose"] for line in again)
    assert [line["id"] for line in again] == [line["id"] for line in lines]
    assert len(server.requests) == before + 2
    assert summary_of(prepared)["prompt_tokens"] == spent["prompt_tokens"] + 2 * 100
    assert summary_of(prepared)["attempts"] == spent["attempts"] + 2


@pytest.mark.parametrize("trouble", [500, 429, "cut", "no json"])
def test_trouble_passes(prepared, server, trouble):
    server.steps = [trouble, trouble]
    lines = ask(prepared, server, sample=2)
    assert all(line["pose"] and line["request"]["attempts"] == 1 for line in lines)
    assert len(server.requests) == 4


def test_a_slow_answer_is_given_up_and_asked_for_again(prepared, server):
    server.steps = ["slow"]
    (line,) = ask(prepared, server, timeout=1.0, sample=1)
    assert line["pose"]
    assert len(server.requests) >= 2


def test_a_server_that_is_gone_stops_the_run_and_nothing_is_lost(prepared, server):
    server.steps = ["good", "good", *[500] * 3]
    with pytest.raises(InputError, match=r"gave no answer \(InternalServerError.*nothing is lost"):
        ask(prepared, server, tries=3)
    assert len((prepared.parent / "run" / "predictions.jsonl").read_text().splitlines()) == 2
    assert len(ask(prepared, server)) == 5
    assert len(server.requests) == 2 + 3 + 3, "what was there is not asked for again"


def test_one_refused_picture_is_a_failure_and_a_refusal_of_all_stops_the_run(tmp_path, server):
    rng = np.random.default_rng(0)
    prepared = make_prepared(tmp_path / "prepared", [make_record("car", i, 0, rng) for i in range(12)], "val")
    server.steps = ["good", *[400] * 6]
    lines = ask(prepared, server)
    assert sum(line["pose"] is None for line in lines) == 6, "the server is known to answer"
    server.steps = [400] * 30
    before = len(server.requests)
    with pytest.raises(InputError, match="the server gave no answer \\(BadRequestError"):
        ask(prepared, server, output_dir=str(tmp_path / "other"))
    assert len(server.requests) - before == 5


def test_an_answer_that_was_cut_off_says_so(prepared, server):
    server.finish_reason = "length"
    server.steps = ['{"azimuth": 9', '{"azimuth": 9']
    (line,) = ask(prepared, server, sample=1, attempts=2, max_tokens=7)
    assert line["request"]["reason"].endswith("(it was cut off after 7 tokens; raise --max-tokens)")


def test_a_sample_grows_and_is_the_same_for_the_same_seed(prepared, server):
    two = {line["id"] for line in ask(prepared, server, sample=2)}
    four = {line["id"] for line in ask(prepared, server, sample=4)}
    assert (len(two), len(four), len(server.requests)) == (2, 4, 4)
    assert two < four
    assert ask(prepared, server, sample=2, output_dir=str(prepared.parent / "run")) is not None
    assert len(server.requests) == 4
    assert len(ask(prepared, server)) == 5


def test_a_killed_run_loses_and_doubles_nothing(tmp_path, server):
    rng = np.random.default_rng(0)
    prepared = make_prepared(tmp_path / "prepared", [make_record("car", i, 0, rng) for i in range(16)], "val")
    server.delay = 0.1
    out = tmp_path / "run" / "predictions.jsonl"
    argv = ["--data", str(prepared), "--output-dir", str(out.parent), "--api-base", server.url, "--model", "tester"]
    command = [sys.executable, "-m", "eval.systems.vlm_api", *argv, "--concurrency", "2"]
    kill_at_line(command, out, 4)
    done = out.read_bytes().count(b"\n")
    with open(out, "ab") as file:
        file.write(b'{"id": "car/n0')  # what a writer leaves that is killed in the middle of a line
    before, server.delay = len(server.requests), 0.0
    assert main([*argv, "--concurrency", "2"]) == 0
    assert len(server.requests) - before == 16 - done
    assert [p.id for p in read_predictions(out)] == [f"car/n{i:03d}/0" for i in range(16)]


def test_other_settings_and_other_data_do_not_go_on_with_a_file(prepared, server):
    ask(prepared, server, sample=1)
    for changes, match in (
        ({"temperature": 1.0}, "was begun with temperature None, not 1.0"),
        ({"model": "another"}, "was begun with model 'tester', not 'another'"),
        ({"task": "joint"}, "was begun with task 'pose', not 'joint'"),
        ({"categories": ["cup"]}, r"was begun with categories \[\], not \['cup'\]"),
    ):
        with pytest.raises(InputError, match=match):
            ask(prepared, server, **changes)
    metadata = prepared / "val" / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("status_partially", "status_good"))
    with pytest.raises(InputError, match="was begun before the records changed"):
        ask(prepared, server)


@pytest.mark.parametrize("content", [b'{"id": "mine"}\n{"id": "torn', b'{"mine": 1}\nand more', b"years of work"])
def test_a_file_that_is_not_its_own_is_left_byte_for_byte(prepared, server, content):
    ask(prepared, server, sample=1)
    out = prepared.parent / "run" / "predictions.jsonl"
    out.write_bytes(content)
    with pytest.raises(InputError, match=r"predictions\.jsonl"):
        ask(prepared, server)
    assert out.read_bytes() == content
    settings_file(out, "vlm-api").unlink()
    with pytest.raises(InputError, match=r"holds something that vlm-api did not write.*; choose another --output-dir"):
        ask(prepared, server)
    assert out.read_bytes() == content


def test_the_key_is_written_nowhere(prepared, server, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server.steps = [400, 500]  # their bodies hold the key
    ask(prepared, server)
    assert {headers["authorization"] for _, headers, _ in server.requests} == {"Bearer sk-secret"}
    written = "".join(path.read_text() for path in (prepared.parent / "run").iterdir() if path.is_file())
    captured = capsys.readouterr()
    assert "***" in written
    assert "sk-secret" not in written + captured.out + captured.err


def test_a_dry_run_prints_the_prompts_and_sends_nothing(prepared, server, capsys):
    assert main(["--data", str(prepared), "--dry-run", "--sample", "2"]) == 0
    prompts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(prompts) == 2
    assert "azimuth, from 0 to 360" in prompts[0]["messages"][0]["content"]
    assert [path.name for path in prepared.parent.iterdir()] == ["prepared"]
    assert server.requests == []


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"concurrency": 0}, "--concurrency: must be over 0"),
        ({"sample": -1}, "--sample: must be at least 0"),
        ({"temperature": -1.0}, "--temperature: must be at least 0"),
        ({"timeout": 0.0}, "--timeout: must be over 0"),
    ],
)
def test_options_that_make_no_sense_are_named(changes, match):
    with pytest.raises(InputError, match=match):
        VlmApiConfig(data="prepared", **changes)


def test_what_is_missing_is_named(prepared, server, capsys):
    for changes, match in (
        ({"api_base": None}, "the option --api-base is needed"),
        ({"output_dir": None}, "the option --output-dir is needed"),
        ({"categories": ["piano"]}, "--categories piano: no object of it in"),
    ):
        with pytest.raises(InputError, match=match):
            run(VlmApiConfig(**options(prepared, server, **changes)))
    assert main(["--output-dir", str(prepared.parent / "run")]) == 2
    assert "the option --data is needed" in capsys.readouterr().err
    (prepared / "val" / "cup" / "n002_whole.JPEG").unlink()
    with pytest.raises(InputError, match=r"1 objects cannot be used .*n002_whole\.JPEG: cannot read the picture"):
        ask(prepared, server)
    assert server.requests  # for all others


def test_ranges_in_the_prompt_are_those_that_are_checked():
    for name, (low, high) in RANGES.items():
        assert f"{name}, from {low} to {high}:" in CONVENTION
