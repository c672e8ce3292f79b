"""llava-pose tables: the report's three tables from tiny files, with figures worked out by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image

from eval.report.printing import Cell, as_markdown, as_page, as_text, section
from eval.report.table_kinds import ABBREVIATIONS, published_rows
from eval.tables import TablesConfig, main, output_paths, tables
from llava_pose.errors import InputError
from llava_pose.pose import categories

TRUE = {"azimuth": 1.0, "elevation": 0.0, "theta": 0.0}
# a category of each meta class, in the columns' order, known ones and novel ones
KNOWN = ("laptop", "chair", "cup", "guitar", "skateboard", "car", "hammer")
COLUMNS = ["Avg", "Elec", "Furn", "Hou", "Mus", "Spo", "Veh", "Work"]


def line(number, error=0.0, *, category="car", system="mine", **fields):
    """A prediction with exactly this error in degrees: at elevation 0 a change of azimuth is the rotation's angle."""
    pose = {**TRUE, "azimuth": TRUE["azimuth"] + math.radians(error)}
    return {
        **{"id": f"{category}/{number}", "system": system, "category": category, "pose": pose, "true": TRUE},
        **fields,
    }


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in lines))
    return str(path)


def made(tmp_path, *files, **options):
    """The table of files of lines."""
    paths = [write(tmp_path / f"{number}" / "predictions.jsonl", lines) for number, lines in enumerate(files)]
    return tables(TablesConfig(predictions=paths, out=str(tmp_path / "table.md"), **options))


def shares(table, system, figure="acc@30"):
    """Column -> percent, as printed; None for an empty column."""
    entry = table["systems"][system]
    groups = [
        entry["overall"] if column["meta_class"] is None else entry["meta_class"].get(column["meta_class"])
        for column in table["columns"]
    ]
    return [None if group is None else round(100 * group[figure]["value"], 1) for group in groups]


def rows_of(text, name):
    """The cells of the lines that begin with a system's name, split at two spaces and more."""
    lines = text.splitlines()
    return [[cell.strip() for cell in row.split("  ") if cell.strip()] for row in lines if row.startswith(name)]


# ------------------------------------------------------------------ columns


def test_the_categories_of_these_tests_are_what_they_are_taken_for():
    metas = [categories.get(name).meta_class for name in KNOWN]
    assert metas == list(ABBREVIATIONS)
    assert list(ABBREVIATIONS.values()) == COLUMNS[1:]


def test_columns_are_the_average_and_the_seven_meta_classes(tmp_path):
    """Two objects of each of four meta classes: 2, 1, 1 and 0 of them hit; four columns stay empty."""
    errors = {"laptop": (0, 29.9), "chair": (0, 30.1), "car": (31, 5), "hammer": (90, 180)}
    table = made(
        tmp_path, [line(i, e, category=name) for name, pair in errors.items() for i, e in enumerate(pair)], table=1
    )
    assert [column["name"] for column in table["columns"]] == COLUMNS
    assert [column["n"] for column in table["columns"]] == [8, 2, 2, 0, 0, 0, 2, 2]
    assert shares(table, "mine") == [50.0, 100.0, 50.0, None, None, None, 50.0, 0.0]
    accuracy = table["systems"]["mine"]["overall"]["acc@30"]
    assert accuracy["low"] < 0.5 < accuracy["high"]
    markdown = (tmp_path / "table.md").read_text()
    assert (
        "| mine | 50.0 (12.5–87.5) | 100.0 (100.0–100.0) | 50.0 (0.0–100.0) | - | - | - | 50.0 (0.0–100.0) |"
        in markdown
    )
    assert "| n | 8 | 2 | 2 | 0 | 0 | 0 | 2 | 2 |" in markdown


def test_a_table_says_over_which_names_it_is(tmp_path):
    table = made(tmp_path, [line(0), line(0, category="oboe")], table=1)
    assert table["names"] == {"in_v1": 1, "v1": 189, "not_in_v1": ["oboe"]}
    sentence = "1 of the 189 categories of ImageNet3D v1, and 1 that are not in it (oboe)."
    assert sentence in (tmp_path / "table.md").read_text()


def test_averages_are_over_objects_and_the_mean_over_categories_stands_beside(tmp_path):
    """Three cars hit, one bus missed: 75% of the objects, half of the categories."""
    lines = [*(line(i, 1) for i in range(3)), line(0, 90, category="bus")]
    table = made(tmp_path, lines, table=1)
    assert shares(table, "mine")[0] == 75.0
    assert table["systems"]["mine"]["mean_over_categories"]["acc@30"]["value"] == 0.5
    assert "| mine | 50.0 (" in (tmp_path / "table.md").read_text().split("The same at 30°")[1]


def test_instances_are_counted_beside_the_objects(tmp_path):
    lines = [line(i, 0, category=c, instance=f"{c} {i // 2}") for c in ("car", "chair") for i in range(4)]
    table = made(tmp_path, lines, table=1)
    assert (table["n"], table["n_instances"]) == (8, 4)
    markdown = (tmp_path / "table.md").read_text()
    assert "| instances | 4 | 0 | 2 | 0 | 0 | 0 | 2 | 0 |" in markdown
    assert "The objects show 4 instances, which intervals and tests resample." in markdown


def test_ten_degrees_on_request(tmp_path):
    table = made(tmp_path, [line(0, 9.9), line(1, 10.1), line(2, 40)], table=1, thresholds=[30, 10])
    assert table["scores"] == ["acc@30", "acc@10"]
    assert shares(table, "mine", "acc@30")[0] == 66.7
    assert shares(table, "mine", "acc@10")[0] == 33.3


def test_categories_of_ones_own_get_a_column_of_their_own(tmp_path):
    table = made(tmp_path, [line(0), line(0, 90, category="flux capacitor")], table=1)
    assert [column["name"] for column in table["columns"]] == [*COLUMNS, "Other"]
    assert shares(table, "mine")[-1] == 0.0
    assert "plain errors for 1 objects of unknown categories" in (tmp_path / "table.md").read_text()


def test_symmetric_errors_and_failures_have_columns(tmp_path, capsys):
    """A dining table half a turn off is right by symmetry; a null and a NaN are failures of 180 degrees."""
    lines = [
        line(0, 180, category="diningtable"),
        line(1, 0, category="diningtable"),
        {**line(2, category="diningtable"), "pose": None},
        {**line(3, category="diningtable"), "pose": {**TRUE, "theta": math.nan}},
    ]
    path = write(tmp_path / "p.jsonl", lines)
    assert main([path, "--table", "1", "--out", str(tmp_path / "t.md")]) == 0
    text = capsys.readouterr().out
    assert rows_of(text, "mine")[1] == ["mine", "25.0", "50.0", "135.0", "180.0", "2"]
    assert "mine: failures (1 no pose, 1 not finite), each counted as an error of 180 degrees." in text


# ------------------------------------------------------------------ table 3


def test_table_3_needs_the_class_and_the_pose(tmp_path, capsys):
    """Of four cars: right and near, wrong class, too far, unnamed: 25% 3D-aware, 50% class, 75% pose."""
    lines = [
        line(0, 5, pred_category="car"),
        line(1, 5, pred_category="bus"),
        line(2, 50, pred_category="Car"),
        line(3, 5, pred_category=None),
    ]
    path = write(tmp_path / "p.jsonl", lines)
    assert main([path, "--table", "3", "--out", str(tmp_path / "t.md")]) == 0
    text = capsys.readouterr().out
    main_row, beside = rows_of(text, "mine")[:2]
    assert main_row == ["mine", "25.0", "-", "-", "-", "-", "-", "25.0", "-"]
    assert beside[:6] == ["mine", "25.0", "50.0", "75.0", "75.0", "16.2"]
    header = next(row for row in text.splitlines() if row.startswith("all objects"))
    assert header.split()[5:8] == ["class", "pose", "alone"]
    assert "chance" not in text, "chance of a class depends on the candidates"


def test_table_3_refuses_a_system_that_names_no_category(tmp_path):
    files = [[line(0, pred_category="car", system="a")], [line(0, system="b")]]
    with pytest.raises(InputError, match=r"--table 3: 'b' names no category.*predict with --task joint"):
        made(tmp_path, *files, table=3)


# ------------------------------------------------------------------ table 2


def test_table_2_is_scored_on_novel_categories_and_marks_the_oracle(tmp_path):
    known, novel = "car", "airship"
    assert categories.get(known).known
    assert not categories.get(novel).known
    ours = [line(0, 0, category=novel, system="ours"), line(1, 90, category=novel, system="ours")]
    oracle = [
        *(line(i, 0, category=novel, system="net (oracle)") for i in range(2)),
        line(0, 0, category=known, system="net (oracle)"),
    ]
    table = made(tmp_path, ours, oracle, table=2)
    assert table["n"] == 2, "the oracle's answer for a known category is left out"
    assert shares(table, "ours")[0] == 50.0
    assert [entry["oracle"] for entry in table["systems"].values()] == [False, True]
    markdown = (tmp_path / "table.md").read_text()
    assert "**" not in markdown, "an oracle is never the best, and one system alone neither"
    assert "trained on the novel categories as well" in markdown


def test_the_accuracy_on_known_categories_stands_beside_that_on_novel_ones(tmp_path):
    """Of systems that answer some: three cars, two of them hit; the table itself is of the novel oboes alone."""
    cars, oboes = [line(i, error) for i, error in enumerate((0, 0, 90))], [line(i, 90, category="oboe") for i in (0, 1)]
    others = [{**value, "system": "other"} for value in oboes]
    table = made(tmp_path, [*cars, *oboes], others, table=2)
    assert table["n"] == 2
    assert shares(table, "mine")[0] == 0.0
    assert table["systems"]["mine"]["known"]["acc@30"]["value"] == pytest.approx(2 / 3)
    assert "known" not in table["systems"]["other"]
    markdown = (tmp_path / "table.md").read_text()
    assert "| known categories |" in markdown
    assert "known categories: pose accuracy over the 3 objects of categories that were trained on." in markdown


def test_novel_categories_and_oracles_can_be_named(tmp_path):
    files = [[line(0, system=name), line(0, 90, category="bus", system=name)] for name in ("a", "b")]
    table = made(tmp_path, *files, table=2, novel=["bus"], oracle=["b"])
    assert (table["n"], shares(table, "a")[0]) == (1, 0.0)
    assert table["systems"]["b"]["oracle"]
    assert made(tmp_path, *files, table=2, novel=["all"])["n"] == 2
    with pytest.raises(InputError, match="--oracle c: there is no such system; there are a, b"):
        made(tmp_path, *files, table=2, oracle=["c"])


def test_the_default_reference_is_no_oracle(tmp_path):
    names = ("llava-pose-oracle", "net", "llava-pose-small")
    files = [[line(i, category="airship", system=name) for i in range(2)] for name in names]
    assert made(tmp_path, *files, table=2)["reference"] == "llava-pose-small"


def test_table_2_refuses_a_file_without_novel_categories(tmp_path):
    with pytest.raises(InputError, match="--table 2: 'mine' answers no object of a novel category"):
        made(tmp_path, [line(0)], table=2)


# ------------------------------------------------------------------ table 1


def test_the_probe_chosen_on_test_stands_beside_the_selected_one(tmp_path):
    grid = {"selected": {"predicted": {"acc@30": 0.5}}, "selected_on_predicted": {"predicted": {"acc@30": 0.625}}}
    write(tmp_path / "0" / "probe_grid.json", [grid])
    files = [[line(i, 20 * i, system="DINOv2") for i in range(4)], [line(i, 60, system="MAE") for i in range(4)]]
    table = made(tmp_path, *files, table=1)
    assert table["systems"]["DINOv2"]["test_selected"] == {"acc@30": 0.625}
    assert table["systems"]["MAE"]["test_selected"] == {}
    beside = (tmp_path / "table.md").read_text().split("The same at 30°")[1]
    assert "| all objects | mean over categories | probe chosen on test |" in beside
    assert "| DINOv2 | 50.0 (0.0–100.0) | 62.5 |" in beside
    assert "| MAE | 0.0 (0.0–0.0) | - |" in beside


def test_a_probe_grid_that_is_none_is_named(tmp_path):
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "probe_grid.json").write_text("[]")
    with pytest.raises(InputError, match=r"probe_grid\.json: cannot be read as linear probing writes it"):
        made(tmp_path, [line(0)], table=1)


# ------------------------------------------------------------------ comparisons


def test_every_system_is_tested_against_ours(tmp_path):
    """10 objects that only LLaVA-pose hits, none that only the other does: p = 2 / 2^10."""
    ours = [line(i, 0, system="LLaVA-pose-tiny") for i in range(12)]
    other = [line(i, 0 if i < 2 else 90, system="A-net") for i in range(12)]
    table = made(tmp_path, other, ours, table=1)
    assert table["reference"] == "LLaVA-pose-tiny"
    (test,) = table["paired_tests"]
    assert (test["system"], test["only_system"], test["only_reference"]) == ("A-net", 0, 10)
    assert test["p_value"] == pytest.approx(2 / 2**10)
    assert test["difference"]["value"] == pytest.approx(-10 / 12)
    markdown = (tmp_path / "table.md").read_text()
    assert "Against LLaVA-pose-tiny on the same objects" in markdown
    assert "| LLaVA-pose-tiny | **100.0** (100.0–100.0) |" in markdown
    assert made(tmp_path, other, ours, table=1, reference="A-net")["paired_tests"][0]["system"] == "LLaVA-pose-tiny"
    nobody = [line(i, system="B-net") for i in range(12)]
    assert made(tmp_path, other, nobody, table=1)["reference"] == "A-net"


def test_all_of_the_best_are_marked(tmp_path):
    files = [[line(i, e, system=name) for i in range(4)] for name, e in (("a", 5), ("b", 90), ("c", 5))]
    made(tmp_path, *files, table=1)
    markdown = (tmp_path / "table.md").read_text()
    assert [f"| {name} | **100.0** (" in markdown for name in "abc"] == [True, False, True]


def test_table_3_tests_the_3d_aware_figure(tmp_path):
    a = [line(i, 0, system="a", pred_category="car") for i in range(6)]
    b = [line(i, 0, system="b", pred_category="bus") for i in range(6)]
    tests = made(tmp_path, a, b, table=3)["paired_tests"]
    assert [(test["score"], test["difference"]["value"]) for test in tests] == [("3d_acc@30", -1.0)]


def test_files_over_different_objects_are_refused_with_the_remedy(tmp_path):
    a, b = [line(i, system="a") for i in range(3)], [line(i, system="b") for i in range(2)]
    with pytest.raises(
        InputError, match=r"'b' has no answer for 1 sample \('car/2'\); score them with --samples common"
    ):
        made(tmp_path, a, b, table=1)
    assert made(tmp_path, a, b, table=1, samples="common")["n"] == 2
    table = made(tmp_path, a, b, table=1, samples="all")
    assert (table["n"], table["systems"]["b"]["overall"]["failures"]["no_answer"]) == (3, 1)


# ------------------------------------------------------------------ published rows


def test_published_rows_are_those_of_the_paper():
    """Spot values, and an average that is an average: it lies between the least and the greatest column."""
    assert published_rows(1)["rows"]["DINOv2 ViT-B/14"][0] == 56.3
    assert published_rows(2)["rows"]["NMM-Sphere"] == [29.5, 31.7, 25.4, 21.7, 25.6, 19.8, 33.4, 19.3]
    assert published_rows(3)["rows"]["LLaVA-pose"] == [49.1, 58.0, 65.6, 41.6, 41.0, 26.1, 61.8, 32.1]
    for number, count in ((1, 6), (2, 4), (3, 5)):
        published = published_rows(number)
        assert published["columns"] == COLUMNS
        assert len(published["rows"]) == count
        for values in published["rows"].values():
            assert len(values) == len(COLUMNS)
            assert min(values[1:]) <= values[0] <= max(values[1:])


def test_caveats_stand_under_the_rows_that_they_concern(tmp_path, capsys):
    made(tmp_path, [line(0)], table=1)
    _, published = (tmp_path / "table.md").read_text().split("Published, on ImageNet3D")
    table, below = published.split("\n\n", 2)[1:]
    assert "| published | Avg | Elec (1) | Furn (1) |" in table
    (mae,) = [row for row in table.splitlines() if row.startswith("| MAE")]
    number = mae.split("|")[1].split("(")[1].strip(" )")
    assert f"- ({number}) MAE ran with its default mask of 75%" in below
    assert "- (1) The list of which categories belong to which meta class was never released" in below
    assert "- Each score is that of the probe" in below, "of the whole table, so that no row is marked"


@pytest.mark.parametrize("number", [1, 2, 3])
def test_every_caveat_names_rows_that_are_there_and_is_a_sentence(number):
    published = published_rows(number)
    for caveat in published["caveats"]:
        says = published.get(caveat["says"], caveat["says"])
        assert says[0].isupper()
        assert says.endswith(".")
        assert set(caveat.get("rows", ())) <= set(published["rows"])
        assert caveat.get("columns", "meta") == "meta"
    assert any("columns" in caveat for caveat in published["caveats"]), "the meta classes are never quite those of ours"


def test_table_2_says_that_its_columns_cannot_be_compared(tmp_path, capsys):
    path = write(tmp_path / "p.jsonl", [line(0, category="airship")])
    assert main([path, "--table", "2", "--out", str(tmp_path / "t.md")]) == 0
    published = capsys.readouterr().out.split("Published, on ImageNet3D")[1]
    assert "(1) Not comparable: the published script sorts the errors of novel categories" in published
    assert "(1) Not comparable" in (tmp_path / "t.html").read_text()


# ------------------------------------------------------------------ another partition into meta classes


def test_a_partition_of_ones_own_makes_the_columns(tmp_path):
    file = tmp_path / "metas.json"
    file.write_text(json.dumps({"Wheeled": ["car", "trolley bus"], "Vehicles": ["flux capacitor"]}))
    lines = [line(0), line(0, 90, category="trolleybus"), line(0, category="flux capacitor"), line(0, category="cup")]
    table = made(tmp_path, lines, table=1, meta_classes=str(file))
    assert [(c["name"], c["n"]) for c in table["columns"]] == [("Avg", 4), ("Wheeled", 2), ("Veh", 1), ("Other", 1)]
    assert shares(table, "mine") == [75.0, 50.0, 100.0, 100.0]
    assert "Meta classes: those of metas.json" in (tmp_path / "table.md").read_text()
    made(tmp_path, lines, table=1)
    assert "Meta classes: this project's own" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[]", r"must be an object, meta class -> list of categories"),
        ('{"A": "car"}', r"must be an object, meta class -> list of categories"),
        ('{"A": ["car"], "B": ["Car"]}', r"'Car' stands in 'A' and in 'B'; take it out of one"),
        ('{"Other": ["car"]}', r"'Other' cannot name a meta class"),
        ("{", r"not valid JSON .*; mend the meta classes"),
    ],
)
def test_a_partition_that_is_none_is_named(text, match, tmp_path):
    file = tmp_path / "metas.json"
    file.write_text(text)
    with pytest.raises(InputError, match=rf"metas\.json: {match}"):
        made(tmp_path, [line(0)], table=1, meta_classes=str(file))


def test_published_rows_stand_apart_and_are_never_the_best(tmp_path, capsys):
    files = [[line(i, e, system=name, pred_category="car") for i in range(4)] for name, e in (("a", 5), ("b", 90))]
    paths = [write(tmp_path / f"{number}.jsonl", lines) for number, lines in enumerate(files)]
    assert main([*paths, "--table", "3", "--out", str(tmp_path / "t.md")]) == 0
    ours, published = capsys.readouterr().out.split("Published, on ImageNet3D")
    assert "for orientation, not ranked" in published
    assert "arXiv 2406.09613" in published
    assert "NOVUM" not in ours
    assert "*" not in published.split("\ntable:")[0].split("The best")[0]
    assert "100.0*" in ours
    assert "0.0*" not in ours.replace("100.0*", "")
    markdown = (tmp_path / "t.md").read_text()
    assert "**" not in markdown.split("Published, on ImageNet3D")[1]


# ------------------------------------------------------------------ output


def test_markdown_json_and_plot_are_written_whichever_is_named(tmp_path):
    for name in ("t.md", "t.json"):
        out = tmp_path / name
        assert output_paths(out) == tuple(tmp_path / f"t{suffix}" for suffix in (".md", ".json", ".png", ".html"))
    lines = [line(i, 8 * i, category=name) for name in KNOWN for i in range(6)]
    table = made(tmp_path, lines, table=1, thresholds=[30, 10])
    assert json.loads((tmp_path / "table.json").read_text()) == json.loads(json.dumps(table))
    assert len((tmp_path / "table.json").read_text()) < 40_000, "it is committed with the results"
    pixels = np.asarray(Image.open(tmp_path / "table.png").convert("RGB"))
    assert pixels.shape[0] > 600
    assert (pixels == (0x00, 0x72, 0xB2)).all(-1).sum() > 100, "the first system's dots"


def test_names_of_strangers_do_no_harm_in_text_and_markdown():
    table = section("t", ["s|x", "v"], [[Cell("a|b*\x1b[31m\n"), Cell("1.0", "0–2", best=True)]])
    markdown = as_markdown("T", [table], ["a note on _this_"])
    assert "| a\\|b\\*?\\[31m? | **1.0** (0–2) |" in markdown
    assert "\x1b" not in as_text([table], [])
    assert "1.0*" in as_text([table], [])
    assert "- a note on \\_this\\_" in markdown
    page = as_page("<T>", [section("<i>", ["<b>"], [["<script>\x1b"]])], ["<u>"], [])
    assert "\x1b" not in page
    assert not any(tag in page for tag in ("<T>", "<i>", "<b>", "<script>", "<u>"))
    assert "&lt;script&gt;?" in page


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"predictions": []}, "--predictions: must be a list"),
        ({"table": 4}, "--table: must be at most 3, not 4"),
        ({"out": "t.csv"}, r"--out t\.csv: .* ends in \.md or \.json"),
        ({"thresholds": [0.0]}, "--thresholds: must be over 0"),
        ({"thresholds": []}, "--thresholds: must be a list"),
        ({"seed": -1}, "--seed: must be at least 0"),
        ({"novel": ["car"]}, "--novel: belongs to --table 2"),
        ({"oracle": ["a"]}, "--oracle: belongs to --table 2"),
    ],
)
def test_options_that_make_no_sense_are_named(options, match):
    with pytest.raises(InputError, match=match):
        TablesConfig(**{"predictions": ["p.jsonl"], **options})


def test_bad_files_end_with_one_sentence_and_exit_code_2(tmp_path, capsys):
    """What the readers refuse (tests of eval.compared and the records) reaches the user of tables too."""
    empty, no_truth, no_id = (tmp_path / f"{name}.jsonl" for name in ("empty", "no_truth", "no_id"))
    empty.write_text("")
    write(no_truth, [{"id": "1", "category": "car"}])
    write(no_id, [line(0), {"category": "car", "true": TRUE}])
    for path, sentence in (
        (empty, "there is no prediction in it"),
        (no_truth, "the prediction has no 'true'"),
        (no_id, "no_id.jsonl:2: the prediction has no 'id'"),
        (tmp_path / "absent.jsonl", "cannot read the file"),
    ):
        assert main([str(path), "--table", "1", "--out", str(tmp_path / "t.md")]) == 2
        error = capsys.readouterr().err
        assert str(path) in error
        assert sentence in error
    assert not (tmp_path / "t.md").exists()
