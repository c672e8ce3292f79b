"""llava-pose score on files: figures worked out by hand, groups, failures, paired tests, hostile files."""

import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from eval.score import main, plot_paths
from eval.scoring import chance_accuracy, mean_over_categories
from llava_pose.model.card import part_of, write_card
from llava_pose.model.configuration import LlavaPoseConfig
from llava_pose.pose.categories import all_categories

TRUE = {"azimuth": 1.0, "elevation": 0.0, "theta": 0.0}


def line(number, error_degrees=0.0, *, category="car", **fields):
    """A prediction with exactly this error: at elevation 0 a change of azimuth is the rotation's angle."""
    pose = {**TRUE, "azimuth": TRUE["azimuth"] + math.radians(error_degrees)}
    return {"id": f"{category}/{number}", "system": "mine", "category": category, "pose": pose, "true": TRUE, **fields}


def write(path, lines):
    path.write_text("".join(json.dumps(value) + "\n" for value in lines))
    return str(path)


def scored(tmp_path, *files, options=()):
    """scores.json of files of lines; asserts that the command succeeds."""
    paths = [write(tmp_path / f"{number}.jsonl", lines) for number, lines in enumerate(files)]
    out = tmp_path / "scores.json"
    assert main(["--predictions", *paths, "--out", str(out), *options]) == 0
    return json.loads(out.read_text())


def overall(scores, system="mine"):
    return scores["systems"][system]["overall"]


def test_figures_worked_out_by_hand(tmp_path):
    errors = [0, 5, 9.99, 10.01, 20, 29.99, 30.01, 60, 90, 175]
    figures = overall(scored(tmp_path, [line(i, error) for i, error in enumerate(errors)]))
    assert figures["n"] == 10
    assert figures["acc@30"]["value"] == pytest.approx(0.6)
    assert figures["acc@10"]["value"] == pytest.approx(0.3)
    assert figures["mean_deg"]["value"] == pytest.approx(43.0, abs=1e-6)
    assert figures["median_deg"]["value"] == pytest.approx((20 + 29.99) / 2, abs=1e-6)
    assert figures["acc@30"]["low"] < 0.6 < figures["acc@30"]["high"]
    assert "class_accuracy" not in figures


def test_thresholds_are_degrees_and_strict(tmp_path):
    lines = [line(0, 14.9), line(1, 15.1), line(2, 44)]
    scores = scored(tmp_path, lines, options=["--thresholds", "15", "7.5", "15"])
    assert overall(scores)["acc@15"]["value"] == pytest.approx(1 / 3)
    assert overall(scores)["acc@7.5"]["value"] == 0
    assert scores["thresholds_deg"] == [pytest.approx(15), pytest.approx(7.5)]


def test_three_d_aware_accuracy_needs_class_and_pose(tmp_path):
    lines = [
        line(0, 5, pred_category="car"),
        line(1, 5, pred_category="bus"),
        line(2, 50, pred_category="car"),
        line(3, 5, pred_category=None),
        line(4, 5, category="diningtable", pred_category="dining table"),
    ]
    figures = overall(scored(tmp_path, lines))
    assert figures["class_accuracy"]["value"] == pytest.approx(3 / 5)
    assert figures["3d_acc@30"]["value"] == pytest.approx(2 / 5)
    assert figures["acc@30"]["value"] == pytest.approx(4 / 5)
    assert figures["mean_deg"]["value"] == pytest.approx(14.0)  # a wrong class adds nothing


def test_symmetry_aware_figures_stand_beside_the_plain_ones(tmp_path):
    lines = [line(0, 180, category="diningtable"), line(1, 77, category="bottle"), line(2, 180)]
    scores = scored(tmp_path, lines)
    by_category = scores["systems"]["mine"]["groups"]["category"]
    assert by_category["diningtable"]["mean_deg"]["value"] == pytest.approx(180)
    assert by_category["diningtable"]["symmetric"]["mean_deg"]["value"] == pytest.approx(0, abs=1e-6)
    assert by_category["bottle"]["symmetric"]["acc@10"]["value"] == 1
    assert by_category["car"]["symmetric"]["mean_deg"]["value"] == pytest.approx(180)
    assert overall(scores)["symmetric"]["acc@30"]["value"] == pytest.approx(2 / 3)
    assert overall(scores)["acc@30"]["value"] == 0


def test_a_category_outside_the_taxonomy_has_no_symmetric_figures(tmp_path):
    scores = scored(tmp_path, [line(0, 180, category="flux capacitor"), line(1, 180, category="diningtable")])
    groups = scores["systems"]["mine"]["groups"]
    assert "symmetric" not in groups["category"]["flux_capacitor"]
    assert overall(scores)["symmetric"]["n_known"] == 1
    assert overall(scores)["symmetric"]["mean_deg"]["value"] == pytest.approx(90)
    assert set(groups["meta_class"]) == {"Furniture", "Other"}


def test_failures_count_as_half_a_turn_and_are_told_apart(tmp_path):
    lines = [
        line(0, 0),
        {**line(1), "pose": None},
        {k: v for k, v in line(2).items() if k != "pose"},
        {**line(3), "pose": {**TRUE, "azimuth": None}},
        {**line(4), "pose": {**TRUE, "theta": math.nan}},
        {**line(5), "pose": {**TRUE, "elevation": math.inf}},
    ]
    figures = overall(scored(tmp_path, lines))
    assert figures["failures"] == {"no_answer": 0, "no_pose": 2, "not_finite": 3}
    assert figures["mean_deg"]["value"] == pytest.approx(5 * 180 / 6)
    assert figures["symmetric"]["mean_deg"]["value"] == pytest.approx(5 * 180 / 6)
    assert figures["acc@30"]["value"] == pytest.approx(1 / 6)


def test_groups_by_source_and_occlusion(tmp_path):
    lines = [
        line(0, 0, source="cars", object_status="status_good"),
        line(1, 60, source="cars", object_status="status_partially"),
        line(2, 60, source="toys", object_status="status_barely"),
        line(3, 0, source="toys"),
        line(4, 0),
    ]
    groups = scored(tmp_path, lines)["systems"]["mine"]["groups"]
    accuracy = {
        kind: {name: (f["n"], f["acc@30"]["value"]) for name, f in groups[kind].items()}
        for kind in ("source", "occlusion", "source_occlusion")
    }
    assert accuracy["source"] == {"cars": (2, 0.5), "toys": (2, 0.5), "unknown": (1, 1.0)}
    assert accuracy["occlusion"] == {"occluded": (2, 0.0), "unoccluded": (3, 1.0)}
    assert accuracy["source_occlusion"]["cars, occluded"] == (1, 0.0)
    assert accuracy["source_occlusion"]["toys, unoccluded"] == (1, 1.0)


def test_groups_by_scene_density_and_visual_quality_where_the_annotation_says_them(tmp_path, capsys):
    qualities = ("status_good", "status_partially", "status_barely", "status_barely")
    densities = ("dense_yes", "dense_no", "dense_no", "")
    lines = [
        line(i, error, object_status=quality, dense=density)
        for i, (error, quality, density) in enumerate(zip((0, 0, 60, 0), qualities, densities, strict=True))
    ]
    groups = scored(tmp_path, lines)["systems"]["mine"]["groups"]
    found = {k: {n: (f["n"], f["acc@30"]["value"]) for n, f in groups[k].items()} for k in ("density", "quality")}
    assert found["density"] == {"dense": (1, 1.0), "not dense": (2, 0.5), "unknown": (1, 1.0)}
    assert found["quality"] == {"good": (1, 1.0), "partially": (1, 1.0), "barely": (2, 0.5)}
    said = capsys.readouterr().out
    assert "by scene density" in said
    assert "by visual quality" in said
    two = scored(tmp_path, [line(0, object_status="status_good"), line(1, object_status="status_barely")])
    assert not {"density", "quality"} & set(two["systems"]["mine"]["groups"]), "of two, occlusion says as much"


def test_orient_anything_v2_is_judged_by_the_turns_that_it_calls_the_same_in_a_column_of_its_own(tmp_path, capsys):
    """Order 2 forgives half a turn, order 4 a quarter, 0 and 1 nothing; an error of the threshold itself is a hit."""
    errors_and_orders = [(180, 2), (90, 2), (90, 4), (270, 4), (180, 1), (180, 0), (180, None), (0, 4)]
    lines = [line(i, error, symmetry_order=order) for i, (error, order) in enumerate(errors_and_orders)]
    figures = overall(scored(tmp_path, lines))
    assert figures["acc@30"]["value"] == pytest.approx(1 / 8)
    assert figures["orient_anything_v2"]["acc@30"]["value"] == pytest.approx(4 / 8)
    assert "OA-V2@30" in capsys.readouterr().out
    plain, own = overall(scored(tmp_path, [line(0)])), [{**line(0, symmetry_order=1), "pose": {**TRUE, "theta": 0.5}}]
    assert "orient_anything_v2" not in plain
    exact = scored(tmp_path, own, options=["--thresholds", repr(math.degrees(0.5))])
    name = next(iter(exact["chance"]))
    assert (overall(exact)[name]["value"], overall(exact)["orient_anything_v2"][name]["value"]) == (0, 1)


def test_an_order_of_symmetry_that_is_none_is_named(tmp_path, capsys):
    for order in (-1, 1.5, "two", True, 10**9):
        assert main(["--predictions", write(tmp_path / "p.jsonl", [line(0, symmetry_order=order)])]) == 2
        assert re.search(r"p\.jsonl:1: 'symmetry_order' must be null or a whole number to 360", capsys.readouterr().err)


def test_the_mean_over_categories_counts_each_category_once(tmp_path):
    lines = [line(i, 0) for i in range(9)] + [line(0, 90, category="bus"), line(1, 0, category="boat")]
    scores = scored(tmp_path, lines)
    mean = scores["systems"]["mine"]["mean_over_categories"]
    assert mean["n_categories"] == 3
    assert mean["acc@30"]["value"] == pytest.approx(2 / 3)
    assert mean["mean_deg"]["value"] == pytest.approx(30)
    assert overall(scores)["acc@30"]["value"] == pytest.approx(10 / 11)


def test_the_interval_of_the_mean_over_categories_covers_what_resampling_gives():
    rng = np.random.default_rng(1)
    hits = [rng.random(n) < p for n, p in ((400, 0.9), (30, 0.5), (80, 0.2))]
    figures = {
        str(i): {"n": len(h), "acc@30": {"value": float(h.mean()), "low": 0, "high": 1}} for i, h in enumerate(hits)
    }
    interval = mean_over_categories(figures)["acc@30"]
    resampled = [np.mean([rng.choice(h, len(h)).mean() for h in hits]) for _ in range(3000)]
    assert interval["low"] == pytest.approx(np.quantile(resampled, 0.025), abs=0.01)
    assert interval["high"] == pytest.approx(np.quantile(resampled, 0.975), abs=0.01)


def test_where_instances_are_shared_the_mean_over_categories_resamples_categories(tmp_path):
    """Ten categories of one instance each, half of them hit: no spread within any, and much among them."""
    names = ["car", "bus", "boat", "cup", "chair", "sofa", "bed", "laptop", "clock", "train"]
    lines = [
        line(i, 0 if n % 2 else 90, category=name, instance=name) for n, name in enumerate(names) for i in range(8)
    ]
    mean = scored(tmp_path, lines)["systems"]["mine"]["mean_over_categories"]["acc@30"]
    assert mean["value"] == 0.5
    assert 0.5 < mean["high"] - mean["low"] < 0.7


def test_other_peoples_files_are_taken(tmp_path):
    """Only id, category and true are needed; extra fields, numeric ids, wound angles and a BOM do no harm."""
    lines = [
        {"id": 7, "category": "car", "true": {**TRUE, "note": "x"}, "pose": {**TRUE, "azimuth": 1.0 - 40 * math.pi}},
        {"id": 8, "category": "Unheard Of", "true": TRUE, "pose": {k: str(v) for k, v in TRUE.items()}, "logits": [1]},
        {"id": 9, "category": "car", "true": TRUE},
    ]
    path = tmp_path / "theirs.jsonl"
    path.write_text("\n\n".join(json.dumps(value) for value in lines), encoding="utf-8-sig")
    out = tmp_path / "scores.json"
    assert main([str(path), "--out", str(out)]) == 0
    figures = overall(json.loads(out.read_text()), "theirs")
    assert figures["n"] == 3
    assert figures["acc@10"]["value"] == pytest.approx(2 / 3)


def test_two_systems_are_compared_on_the_same_objects(tmp_path):
    """12 objects that only a hits, 3 that only b hits: McNemar's exact p is 2 P(Bin(15, 1/2) <= 3)."""
    a = [line(i, 0 if i < 17 else 60, system="a") for i in range(20)]
    b = [line(i, 0 if i < 5 or i >= 17 else 60, system="b") for i in range(20)]
    scores = scored(tmp_path, a, b)
    assert scores["reference"] == "a"
    test = scores["paired_tests"][0]
    assert (test["system"], test["reference"], test["score"]) == ("b", "a", "acc@30")
    assert (test["only_system"], test["only_reference"]) == (3, 12)
    assert test["difference"]["value"] == pytest.approx(-9 / 20)
    assert test["p_value"] == pytest.approx(2 * sum(math.comb(15, k) for k in range(4)) / 2**15)
    assert scored(tmp_path, a, b, options=["--reference", "b"])["paired_tests"][0]["system"] == "a"


def test_pictures_of_one_instance_go_together(tmp_path, capsys):
    """Ten pictures of each of four cars: a hits two of the cars, b one of these."""
    a = [line(i, 0 if i < 20 else 60, system="a", instance=f"car {i // 10}") for i in range(40)]
    b = [line(i, 0 if i < 10 else 60, system="b") for i in range(40)]  # one file that names them is enough
    scores = scored(tmp_path, a, b)
    alone = scored(tmp_path, [{**value, "instance": ""} for value in a], b)
    assert (scores["n"], scores["n_instances"], alone["n_instances"]) == (40, 4, 40)
    accuracy = {name: s["systems"]["a"]["overall"]["acc@30"] for name, s in (("four", scores), ("forty", alone))}
    assert accuracy["four"]["value"] == accuracy["forty"]["value"] == 0.5
    assert accuracy["four"]["high"] - accuracy["four"]["low"] > 0.8
    assert accuracy["forty"]["high"] - accuracy["forty"]["low"] < 0.35
    assert scores["paired_tests"][0]["p_value"] == 1.0, "of one car alone nothing can be said"
    assert alone["paired_tests"][0]["p_value"] < 0.01
    said = capsys.readouterr().out
    assert "the 40 objects show 4 instances, which intervals and tests resample" in said
    assert "p by permuting instances" in said
    assert "p by McNemar, exact" in said


def test_three_d_aware_pairs_need_classes_of_both(tmp_path):
    a = [line(i, 0, system="a", pred_category="car") for i in range(4)]
    b = [line(i, 0, system="b", pred_category="bus") for i in range(4)]
    c = [line(i, 0, system="c") for i in range(4)]
    tests = {(t["system"], t["score"]): t for t in scored(tmp_path, a, b, c)["paired_tests"]}
    assert tests["b", "3d_acc@30"]["difference"]["value"] == -1
    assert tests["b", "acc@30"]["p_value"] == 1
    assert ("c", "3d_acc@30") not in tests


def test_a_missing_answer_can_count_as_a_failure(tmp_path):
    a = [line(i, 0, system="a") for i in range(4)]
    b = [line(i, 0, system="b") for i in range(3)]
    scores = scored(tmp_path, a, b, options=["--samples", "all"])
    assert overall(scores, "b")["failures"]["no_answer"] == 1
    assert overall(scores, "b")["acc@30"]["value"] == pytest.approx(0.75)
    assert overall(scored(tmp_path, a, b, options=["--samples", "common"]), "b")["acc@30"]["value"] == 1


def test_scores_say_over_which_names_they_are(tmp_path, capsys):
    """Whole ImageNet3D v1 has 189 categories; the taxonomy has 13 more, and people have their own."""
    scores = scored(
        tmp_path, [line(i, category=name) for i, name in enumerate(("car", "hovercraft", "chime", "my cup"))]
    )
    assert scores["names"] == {"in_v1": 2, "v1": 189, "not_in_v1": ["chime", "my_cup"]}
    sentence = "2 of the 189 categories of ImageNet3D v1, and 2 that are not in it (chime, my_cup)."
    assert sentence in capsys.readouterr().out
    released = [category.name for category in all_categories() if category.in_v1]
    scored(tmp_path, [line(i, category=name) for i, name in enumerate(released)])
    assert "Names: all 189 categories of ImageNet3D v1, and no others." in capsys.readouterr().out


def test_plots_and_a_table_come_with_the_scores(tmp_path, capsys):
    lines = [line(i, 10 * i, category=name) for i in range(3) for name in ("car", "bus", "boat")]
    scored(tmp_path, lines)
    text = capsys.readouterr().out
    assert "9 objects of 3 categories" in text
    assert any(row.split()[:2] == ["all", "objects"] and "100.0 (100.0–100.0)" in row for row in text.splitlines())
    assert str(tmp_path / "scores.json") in text.splitlines()[-1]
    for path in plot_paths(tmp_path / "scores.json"):
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 150
            assert len(set(image.convert("L").resize((64, 64)).getdata())) > 5


def test_the_tables_go_into_a_model_card_in_the_place_of_those_before(tmp_path, capsys):
    sizes = {"hidden_size": 8, "embedding_size": 8, "pooled_size": 8}
    LlavaPoseConfig(pose_token_id=4, image_token_id=3, **sizes).save(tmp_path)
    write_card(tmp_path, [])
    card = tmp_path / "README.md"
    card.write_text(card.read_text() + "\nOur own words.\n")
    for error in (0, 90):
        scored(tmp_path, [line(0, error)], options=["--model-card", str(tmp_path)])
    assert "| mine |" in part_of(tmp_path, "scores")
    assert "None yet" not in card.read_text()
    assert card.read_text().count("| mine |") == part_of(tmp_path, "scores").count("| mine |")
    assert card.read_text().endswith("\nOur own words.\n")
    card.unlink()
    (tmp_path / "scores.json").unlink()
    capsys.readouterr()
    assert main([str(tmp_path / "0.jsonl"), "--out", str(tmp_path / "scores.json"), "--model-card", str(tmp_path)]) == 2
    assert "README.md: there is no model card with <!-- scores -->" in capsys.readouterr().err
    assert not (tmp_path / "scores.json").exists()


def test_the_same_seed_gives_the_same_file_and_another_moves_the_intervals_only(tmp_path):
    rng = np.random.default_rng(0)
    lines = [line(i, float(rng.uniform(0, 60))) for i in range(50)]
    first, again, other = (scored(tmp_path, lines, options=["--seed", seed]) for seed in ("1", "1", "2"))
    assert first == again
    assert overall(first)["mean_deg"]["value"] == overall(other)["mean_deg"]["value"]
    assert overall(first)["mean_deg"]["low"] != overall(other)["mean_deg"]["low"]


def test_chance_is_the_share_of_random_rotations():
    from scipy.spatial.transform import Rotation

    angles = Rotation.random(200_000, random_state=0).magnitude()
    assert chance_accuracy(math.pi / 6) == pytest.approx((angles < math.pi / 6).mean(), abs=1e-3)
    assert chance_accuracy(math.pi / 6) == pytest.approx(0.0075, abs=1e-4)
    assert chance_accuracy(math.pi / 18) == pytest.approx(0.00028, abs=1e-5)


GOOD = json.dumps(line(0))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "there is no prediction in it"),
        ("\n\n", "there is no prediction in it"),
        (GOOD + "\n" + GOOD[:40], r"bad\.jsonl:2: not valid JSON"),
        (GOOD + "\n" + GOOD, "stands on two lines"),
        ("[1, 2]\n", r"bad\.jsonl:1: expected a JSON object"),
        ("\x00\x01\x02", r"bad\.jsonl:1: not valid JSON"),
        (json.dumps({**line(0), "true": {**TRUE, "azimuth": math.nan}}), "true pose is not finite"),
        (json.dumps({**line(0), "true": {**TRUE, "azimuth": None}}), "true pose is not finite"),
        (json.dumps({**line(0), "true": None}), "the prediction has no 'true'"),
        (json.dumps({**line(0), "true": [1, 0, 0]}), "a pose must be an object with azimuth"),
        (json.dumps({**line(0), "pose": "north"}), "a pose must be an object with azimuth"),
        (json.dumps({**line(0), "pose": {"azimuth": 1}}), "the pose has no 'elevation'"),
        (json.dumps({**line(0), "pose": {**TRUE, "theta": "much"}}), "'theta' must be a number"),
        (json.dumps({**line(0), "pose": {**TRUE, "theta": 10**400}}), "'theta' must be a number"),
        (json.dumps({"category": "car", "true": TRUE}), "the prediction has no 'id'"),
        ("[" * 100_000, r"bad\.jsonl:1: not valid JSON \(nested too deeply\)"),
        (json.dumps({**line(0), "system": "\ud800"}), r"bad\.jsonl:1: not valid JSON \(it escapes half of a letter"),
        (json.dumps({"id": "1", "true": TRUE}), "the prediction has no 'category'"),
    ],
)
def test_a_hostile_file_gets_one_sentence_and_exit_code_2(tmp_path, capsys, content, sentence):
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    out = tmp_path / "scores.json"
    assert main([str(path), "--out", str(out)]) == 2
    message = capsys.readouterr().err
    assert "bad.jsonl" in message
    assert re.search(sentence, message)
    assert message.count("\n") == 1
    assert "Traceback" not in message
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl: cannot read the file"),
        (["GOOD", "--thresholds", "0"], "--thresholds: must be over 0, not ['0']"),
        (["GOOD", "--thresholds", "181"], "--thresholds: must be at most 180"),
        (["GOOD", "--thresholds", "nan"], "--thresholds: must be a finite number"),
        (["GOOD", "--out", "scores"], "ends in .json"),
        (["GOOD", "--seed", "-1"], "--seed: must be at least 0"),
        (["GOOD", "--reference", "theirs"], "no such system; there are mine"),
        (["GOOD", "--names", "x", "y"], "2 names for 1"),
    ],
)
def test_wrong_options_get_one_sentence_and_exit_code_2(tmp_path, capsys, monkeypatch, options, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.jsonl").write_text(GOOD)
    assert main([word.replace("GOOD", "good.jsonl") for word in options]) == 2
    assert sentence in capsys.readouterr().err


def test_files_are_given_as_bare_words_or_by_option(tmp_path):
    paths = [write(tmp_path / f"{name}.jsonl", [line(0, 0, system=name)]) for name in "ab"]
    out = tmp_path / "scores.json"
    for words in (paths, ["--predictions", *paths]):
        assert main([*words, "--out", str(out)]) == 0
        assert list(json.loads(out.read_text())["systems"]) == ["a", "b"]


def test_without_a_file_it_says_what_it_needs(capsys):
    assert main([]) == 2
    assert "the option --predictions is needed" in capsys.readouterr().err
