"""Tables, plots and contact sheets from real scores and real pictures."""

import math
import re

import numpy as np
import pytest
from PIL import Image

from eval.compared import align
from eval.report.contact_sheet import ContactSheetConfig, SheetItem, choose, main, render_sheet
from eval.report.plots import categories_plot, curve_plot, save_plot
from eval.report.printing import as_text, section
from eval.report.score_tables import MOST_CATEGORIES, score_notes, score_sections
from eval.scoring import score_comparison
from llava_pose.data.jsonl import read_jsonl, write_jsonl
from llava_pose.data.records import ObjectRecord, Pose, Prediction, write_records
from llava_pose.errors import InputError
from llava_pose.inference.drawing import AXIS_COLOURS

TRUE = Pose(1.0, 0.0, 0.0, 5.0, 48.0, 32.0)


def prediction(number, error_degrees, *, system="mine", category="car", **values):
    pose = Pose(TRUE.azimuth + math.radians(error_degrees), 0.0, 0.0)
    values = {"pred_category": None, "pose": pose, **values}
    return Prediction(f"{category}/{number}/0", system, category, true=TRUE, **values)


def scores_of(*systems):
    return score_comparison(align({predictions[0].system: predictions for predictions in systems}))


def many(system="mine", categories=("car", "bus", "chair"), per_category=8, seed=0, **values):
    rng = np.random.default_rng(seed)
    return [
        prediction(i, rng.exponential(15), system=system, category=category, **values)
        for category in categories
        for i in range(per_category)
    ]


def score_text(scores):
    """What ``llava-pose score`` prints."""
    return as_text(score_sections(scores), score_notes(scores), beside=True)


def cells(text, first):
    """The words of the line that begins with ``first``."""
    return next(row for row in text.splitlines() if row.strip().startswith(first)).split()


# ------------------------------------------------------------------ tables


def test_columns_are_aligned_and_titles_stand_alone():
    text = as_text([section("group", ["name", "n"], [["a", "1"], ["longer", "1234"], ["short", ""]])], ["a note"])
    assert text.splitlines() == [
        "group",
        "name       n",
        "────────────",
        "a          1",
        "longer  1234",
        "short",
        "",
        "a note",
    ]


def test_a_table_is_as_wide_as_it_is_wherever_it_is_printed():
    names = [f"a rather long name of column {i}" for i in range(40)]
    text = as_text([section("", names, [["x" * 300, *names[1:]]])])
    assert len(text.splitlines()) == 3
    assert text.splitlines()[-1].endswith(names[-1])


def test_names_of_strangers_cannot_write_to_the_terminal():
    text = as_text([section("", ["name", "n"], [["\x1b[31mred\nnext [bold]x[/bold] :smile:", "1"]])])
    assert "\x1b" not in text
    assert "[bold]x[/bold] :smile:" in text
    assert len(text.splitlines()) == 3


def test_one_system_is_shown_in_full():
    predictions = [
        prediction(0, 5, pred_category="car"),
        prediction(1, 45, pred_category="bus"),
        prediction(2, 0, pose=None),
    ]
    text = score_text(scores_of(predictions))
    assert text.startswith("3 objects of 1 category.")
    header, row = cells(text, "mine"), cells(text, "all objects")
    assert header[1:] == [
        "n",
        "acc@30",
        "acc@10",
        "mean",
        "median",
        "sym@30",
        "sym@10",
        "class",
        "3D@30",
        "3D@10",
        "failed",
    ]
    assert row[2:4] == ["3", "33.3"]
    assert row[-1] == "1"
    assert row[-4:-1] == ["33.3", "33.3", "33.3"]
    assert "mine: 1 failure (1 no pose), each counted as an error of 180 degrees." in text
    assert cells(text, "chance")[-2:] == ["0.75", "0.028"]


def test_groups_of_one_are_left_out_and_others_shown():
    text = score_text(scores_of(many(object_status="status_good")))
    assert "by category" in text
    assert "by meta class" in text
    assert "by occlusion" not in text
    assert "by source" not in text


def test_a_column_without_figures_is_left_out():
    text = score_text(scores_of([prediction(0, 1, category="flux capacitor")]))
    assert "sym@" not in text
    assert "class" not in text


def test_of_many_categories_the_worst_are_shown_and_it_says_so():
    names = [f"thing {i:03d}" for i in range(MOST_CATEGORIES + 10)]
    predictions = [prediction(0, 60 if i < 3 else 1, category=name) for i, name in enumerate(names)]
    text = score_text(scores_of(predictions))
    assert "by category: the 20 lowest of 50, all of them in the JSON file" in text
    assert all(f"thing_00{i}" in text for i in range(3))
    assert "thing_049" not in text


def test_several_systems_stand_side_by_side():
    systems = [many(system=name, seed=seed) for seed, name in enumerate(["one", "two", "three"])]
    scores = scores_of(*systems)
    text = score_text(scores)
    titles = [part.title for part in score_sections(scores)]
    assert titles[1:] == [
        "acc@30 by meta class",
        "acc@30 by category",
        "against one on the same objects, in points; p by McNemar, exact",
    ]
    by_meta = scores["systems"]["two"]["groups"]["meta_class"]["Vehicles"]["acc@30"]["value"]
    groups = text.split("acc@30 by meta class")[1].split("acc@30 by category")[0]
    assert cells(groups, "group") == ["group", "n", "one", "two", "three"]
    assert [row.split()[0] for row in groups.splitlines()[3:5]] == ["Furniture", "Vehicles"]
    assert float(cells(groups, "Vehicles")[4]) == pytest.approx(100 * by_meta, abs=0.05)
    tests = text.split("against one on the same objects")[1].splitlines()[3:7]
    assert [row.split()[0] for row in tests] == ["two", "two", "three", "three"]


# ------------------------------------------------------------------ plots


def test_the_band_of_a_curve_goes_by_instance_and_rises_with_it():
    """Sixteen pictures of an instance are hit together: the band is that of the bootstrap over instances, not of pictures."""
    rng = np.random.default_rng(0)
    errors = np.repeat(np.degrees(np.arccos(rng.uniform(-1, 1, 60))), 16) + rng.uniform(-1, 1, 960)
    lines = [prediction(i, e, instance=f"car {i // 16}") for i, e in enumerate(errors)]
    system = scores_of(lines)["systems"]["mine"]
    share, low, high = (np.array(system["curve"][name]) for name in ("share", "low", "high"))
    assert (low <= share).all()
    assert (share <= high).all()
    assert (np.diff(low) >= 0).all()
    assert (np.diff(high) >= 0).all()
    at_90 = system["curve"]["degrees"].index(90)
    inside = float(share[at_90])
    alone = 2 * 1.96 * math.sqrt(inside * (1 - inside) / 960)
    assert high[at_90] - low[at_90] > 3 * alone


@pytest.mark.parametrize("systems", [1, 3, 9])
def test_plots_hold_what_the_scores_say(tmp_path, systems):
    scores = scores_of(*[many(system=f"system {i}", seed=i) for i in range(systems)])
    curve = curve_plot(scores)
    near = curve.axes[0]
    name = "system 0"
    drawn = next(drawn for drawn in near.lines if drawn.get_label() == name)
    at_30 = np.interp(30, drawn.get_xdata(), drawn.get_ydata())
    assert at_30 == pytest.approx(scores["systems"][name]["overall"]["acc@30"]["value"], abs=1e-4)
    assert [text.get_text() for text in near.texts] == ["30°", "10°"]
    assert (
        len({(d.get_color(), d.get_linestyle()) for d in near.lines if d.get_label().startswith("system")}) == systems
    )

    bars = categories_plot(scores)
    labels = [label.get_text() for label in bars.axes[0].get_yticklabels()]
    accuracy = {c: f["acc@30"]["value"] for c, f in scores["systems"][name]["groups"]["category"].items()}
    assert [accuracy[label] for label in labels] == sorted(accuracy.values(), reverse=True)
    assert [text.get_text() for text in bars.axes[0].texts] == ["n = 8"] * 3

    for number, figure in enumerate((curve, bars)):
        save_plot(figure, tmp_path / f"{number}.png")
        with Image.open(tmp_path / f"{number}.png") as image:
            assert image.format == "PNG"
            assert image.width > 600
            assert image.height > 200


def test_names_that_mean_something_to_matplotlib_are_drawn_to_the_letter(tmp_path):
    names = ["_hidden", "a $\\frac{ b", "x" * 200, "two\nlines"]
    scores = scores_of(*[many(system=name, categories=("car", "$x^")) for name in names])
    for number, figure in enumerate((curve_plot(scores), categories_plot(scores))):
        save_plot(figure, tmp_path / f"{number}.png")
    legend = [text.get_text() for text in curve_plot(scores).axes[1].get_legend().get_texts()]
    assert [label.strip()[:7] for label in legend] == ["_hidden", r"a \$\fr", "xxxxxxx", "two?lin", "chance"]


def test_many_categories_get_several_panels(tmp_path):
    predictions = [prediction(0, i, category=f"thing {i}") for i in range(150)]
    figure = categories_plot(scores_of(predictions))
    assert len(figure.axes) == 3
    assert sum(len(axes.get_yticklabels()) for axes in figure.axes) == 150


# ------------------------------------------------------------------ contact sheets


@pytest.fixture
def prepared(tmp_path):
    """Four pictures and the predictions of two systems, one of them without a pose."""
    errors = {"a": (3.0, 170.0, 25.0, 50.0), "b": (1.0, 2.0, 3.0, 4.0)}
    records, predictions = [], []
    for number in range(4):
        file_name = f"car/{number}.png"
        (tmp_path / "val" / "car").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (96, 64), (60, 60, 60)).save(tmp_path / "val" / file_name)
        records.append(ObjectRecord(file_name, f"car/{number}/0", "car", TRUE, 500.0, 96, 64, (0.0, 0.0, 96.0, 64.0)))
        for system, values in errors.items():
            predictions.append(prediction(number, values[number], system=system))
    write_records(tmp_path, "val", records)
    write_jsonl(tmp_path / "predictions.jsonl", [p.to_dict() for p in predictions])
    return tmp_path


def run(prepared, *options):
    words = ["--data", prepared, "--predictions", prepared / "predictions.jsonl", "--out", prepared / "sheet.png"]
    return main([str(word) for word in (*words, *options)])


def test_a_sheet_from_files(prepared):
    assert run(prepared, "--system", "a", "--select", "worst", "--count", "3", "--columns", "2", "--tile", "120") == 0
    with Image.open(prepared / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"), dtype=int)
    assert 250 < pixels.shape[1] < 320
    assert pixels.shape[0] > 2 * 120
    for colour in AXIS_COLOURS.values():
        assert (np.abs(pixels - colour).sum(-1) < 30).sum() > 50


def test_names_of_strangers_are_drawn_on_one_line(prepared):
    strange = prediction(0, 3.0, system="a\nb").to_dict() | {"pred_category": "b\nu\x1bs"}
    write_jsonl(prepared / "predictions.jsonl", [strange])
    assert run(prepared) == 0
    assert (prepared / "sheet.png").is_file()


def test_predictions_of_another_annotation_are_not_drawn_over_this_one(prepared, capsys):
    (line, *_) = read_jsonl(prepared / "predictions.jsonl")
    value = line[1] | {"system": "mine"}
    value["true"] = value["true"] | {"azimuth": value["true"]["azimuth"] + 0.5}
    write_jsonl(prepared / "predictions.jsonl", [value])
    assert run(prepared) == 2
    error = capsys.readouterr().err
    assert re.search(
        r"predictions.jsonl: the line of '.*' says that its true pose is \d+\.\d degrees from the data.s", error
    )
    write_jsonl(prepared / "predictions.jsonl", [line[1] | {"system": "mine", "category": "cup"}])
    assert run(prepared) == 2
    assert "is of the category 'cup', and the data's object is 'car'; predict anew" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "holds several systems (a, b); choose one with --system"),
        (("--system", "c"), "--system c: not in"),
        (("--system", "a", "--split", "train"), "there is no split train in it, but val"),
        (("--system", "a", "--count", "0"), "--count: must be over 0"),
        (("--system", "a", "--seed", "-1"), "--seed: must be at least 0"),
        (("--system", "a", "--out", "sheet.jpg"), "--out sheet.jpg: the sheet is a PNG"),
    ],
)
def test_wrong_options_are_named(prepared, capsys, options, sentence):
    assert run(prepared, *options) == 2
    assert sentence in capsys.readouterr().err


def test_predictions_of_other_data_are_refused(prepared, capsys):
    write_jsonl(prepared / "predictions.jsonl", [prediction(99, 1).to_dict()])
    assert run(prepared) == 2
    assert "none of its 1 ids is in" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["missing", "cut", "text"])
def test_a_bad_picture_is_named(prepared, capsys, damage):
    path = prepared / "val" / "car" / "1.png"
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"no picture")
    assert run(prepared, "--system", "a") == 2
    assert f"{path}: cannot read the picture" in capsys.readouterr().err


def test_choosing_the_worst_the_best_and_some():
    predictions = [prediction(0, 30), prediction(1, 0, pose=None), prediction(2, 5), prediction(3, 90)]
    assert [p.id.split("/")[1] for p in choose(predictions, "worst", 2)] == ["1", "3"]
    assert [p.id.split("/")[1] for p in choose(predictions, "best", 2)] == ["2", "0"]
    some = choose(predictions, "random", 3, seed=4)
    assert some == choose(predictions, "random", 3, seed=4)
    assert len({p.id for p in some}) == 3
    assert choose(predictions, "random", 99) == predictions


def sheet_item(image, pose, *, category="car", pred_category=None, viewport=2000.0, true=TRUE):
    width, height = image.size
    record = ObjectRecord(
        "0.png", f"{category}/0/0", category, true, viewport, width, height, (0.0, 0.0, width, height)
    )
    return SheetItem(image, Prediction("0", "mine", category, pred_category, pose, true), record)


def test_any_picture_and_any_pose_find_their_place():
    items = [
        sheet_item(
            Image.new("L", (1, 900)), Pose(1.0, 0.2, 0.1), category="a_very_long_category_name_that_does_not_fit"
        ),
        sheet_item(Image.new("RGBA", (900, 2)), None, pred_category="bus"),
        sheet_item(Image.new("CMYK", (64, 64)), Pose(math.nan, 0.0, 0.0)),
        sheet_item(Image.new("P", (64, 64)), TRUE, pred_category="car"),
    ]
    sheet = render_sheet(items, title="a title " * 50, columns=3, tile=100)
    assert sheet.width == 3 * 110 + 10
    assert sheet.height > 2 * 110
    assert [item.error for item in items][1:] == [math.pi, math.pi, 0.0]
    with pytest.raises(ValueError, match="at least one picture"):
        render_sheet([])


def test_poses_are_scaled_with_the_picture():
    """The same object in a picture of twice the size gives the same tile."""
    small, large = (
        sheet_item(
            Image.new("RGB", (96 * k, 64 * k), (60, 60, 60)),
            Pose(2.0, 0.3, 0.1, 5.0, 30.0 * k, 40.0 * k),
            true=Pose(1.0, 0.0, 0.0, 5.0, 48.0 * k, 32.0 * k),
            viewport=500.0 * k,
        )
        for k in (1, 2)
    )
    sheets = [np.asarray(render_sheet([item], tile=192), dtype=int) for item in (small, large)]
    assert np.abs(sheets[0] - sheets[1]).max() <= 2


def test_unknown_data_folder_is_named():
    assert main(["--data", "nowhere", "--predictions", "nothing.jsonl"]) == 2
    with pytest.raises(InputError, match="--tile: must be at least 64, not 5"):
        ContactSheetConfig(data="d", predictions="p", tile=5)
