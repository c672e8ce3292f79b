"""llava-pose report: the page in a real browser without a network, its filters, its figures and hostile names."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.compared import align
from eval.report.html_report import chosen_cases, confident, main, view_confusions, view_of
from eval.score import main as score_main
from eval.scoring import outcomes_by_system
from llava_pose.data.jsonl import write_jsonl
from llava_pose.data.records import ObjectRecord, Pose, Prediction, write_records
from llava_pose.pose.metrics import accuracy_by_coverage, calibration_error
from tests.browser import Page

CATEGORIES = ("car", "bottle", "chair")
PER_CATEGORY = 8
HOSTILE = "<script>window.ran = 1</script>"
MARKUP = '"><img src=x onerror="window.ran = 1">'


def write(folder: Path, *, names: tuple[str, ...] = ("one", "two"), named: str | None = None) -> list[Path]:
    """A prepared split of small pictures, and a file of predictions a system; errors grow along the file."""
    records, files = [], []
    for category in CATEGORIES:
        (folder / "val" / category).mkdir(parents=True)
        for number in range(PER_CATEGORY):
            name = f"{category}/{number}.png"
            Image.new("RGB", (96, 64), (60, 90, 60)).save(folder / "val" / name)
            true = Pose(number * math.pi / 4, 0.1, 0.0, 5.0, 48.0, 32.0)
            records.append(
                ObjectRecord(name, f"{category}/{number}/0", category, true, 500.0, 96, 64, (0.0, 0.0, 96.0, 64.0))
            )
    write_records(folder, "val", records)
    for system, name in enumerate(names):
        lines = []
        for row, record in enumerate(records):
            off = math.radians((row + 1) * (system + 1) * 3.5)
            pose = Pose(record.pose.azimuth + off, 0.1, 0.0, 5.0, 48.0, 32.0) if row != 3 else None
            answer = {"pred_category": named, "confidence": 1 - row / 24}
            lines.append(Prediction.of(record, system=name, pose=pose, **answer).to_dict())
        files.append(folder / f"{system}.jsonl")
        write_jsonl(files[-1], lines)
    return files


def run(folder: Path, files: list[Path], *options: str) -> int:
    return main([*map(str, files), "--data", str(folder), "--out", str(folder / "report.html"), *options])


@pytest.fixture
def page(page: Page) -> Page:
    """The browser without a network."""
    page.send("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
    return page


def open_report(page: Page, file: Path) -> None:
    page.go_to(file.as_uri(), width=1200, height=900)
    page.wait_until("document.readyState === 'complete' && document.getElementById('shown')?.textContent")


def shown(page: Page) -> list[dict[str, str]]:
    """What is said of each case that is to be seen, in the order of the page."""
    return page.evaluate(
        "[...document.querySelectorAll('#cases figure')].filter((f) => f.offsetParent !== null).map((f) => ({...f.dataset}))"
    )


def choose(page: Page, name: str, value: str) -> None:
    page.evaluate(
        f"(() => {{ const e = document.getElementById({json.dumps(name)}); e.value = {json.dumps(value)};"
        " e.dispatchEvent(new Event('input')); })()"
    )


def test_the_page_opens_offline_and_its_filters_work(tmp_path, page):
    files = write(tmp_path)
    assert run(tmp_path, files, "--cases", "5") == 0
    open_report(page, tmp_path / "report.html")
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith("data:")] == [(tmp_path / "report.html").as_uri()]
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    everything = shown(page)
    assert {case["system"] for case in everything} == {"one", "two"}
    assert page.text("#shown") == f"{len(everything)} of {len(everything)} answers"

    choose(page, "system", "two")
    choose(page, "category", "bottle")
    assert {(case["system"], case["category"]) for case in shown(page)} == {("two", "bottle")}
    choose(page, "category", "")
    choose(page, "kind", "best")
    assert len(shown(page)) == 5
    choose(page, "kind", "worst of its category")
    assert sorted(case["category"] for case in shown(page)) == sorted(CATEGORIES)
    page.click("#filters button[type=reset]")
    page.wait_until(f"document.getElementById('shown').textContent.startsWith('{len(everything)} ')")

    choose(page, "least", "20")
    choose(page, "most", "90.5")
    errors = [float(case["error"]) for case in shown(page)]
    assert errors
    assert all(20 <= error <= 90.5 for error in errors)
    assert len(errors) == sum(20 <= float(case["error"]) <= 90.5 for case in everything)
    choose(page, "order", "worst")
    assert [float(case["error"]) for case in shown(page)] == sorted(errors, reverse=True)
    labels = page.evaluate("[...document.querySelectorAll('select, input')].map((e) => e.labels[0]?.innerText ?? '')")
    assert all(labels)

    page.resize(390, 844)
    page.wait_until("window.innerWidth == 390")
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), (
        "on a telephone"
    )


def test_the_figures_are_those_of_score(tmp_path, page):
    files = write(tmp_path)
    assert run(tmp_path, files) == 0
    words = [*map(str, files), "--data", str(tmp_path), "--out", str(tmp_path / "scores.json")]
    assert score_main(words) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    open_report(page, tmp_path / "report.html")
    rows = page.evaluate("[...document.querySelector('table').rows].map((r) => [...r.cells].map((c) => c.innerText))")
    header = rows[0]
    for name, row in zip(scores["systems"], rows[1:], strict=False):
        overall = scores["systems"][name]["overall"]
        assert row[0] == name
        for accuracy in ("acc@30", "acc@10"):
            value, interval = row[header.index(accuracy)].split()
            assert value == f"{100 * overall[accuracy]['value']:.1f}"
            assert interval == f"{100 * overall[accuracy]['low']:.1f}–{100 * overall[accuracy]['high']:.1f}"
        assert row[header.index("median")] == f"{overall['median_deg']['value']:.1f}"
        assert row[header.index("failed")] == "1"
    in_page = page.evaluate("[...document.querySelectorAll('table')].map((t) => t.innerText)")
    of_score = (tmp_path / "scores.html").read_text()
    assert of_score.count("<table>") + 2 == len(in_page), "score's tables, and two of sides"


def test_a_prepared_folder_is_needed_and_the_rules_of_outputs_hold(tmp_path, capsys):
    files = write(tmp_path)
    assert main([str(files[0]), "--out", str(tmp_path / "r.html")]) == 2
    assert "--data" in capsys.readouterr().err
    assert run(tmp_path, files, "--out", str(tmp_path / "report.png")) == 2
    assert "give a name that ends in .html" in capsys.readouterr().err
    assert run(tmp_path, files, "--out", str(tmp_path / "val" / "report.html")) == 2
    assert "is in a folder of files that are read" in capsys.readouterr().err
    assert run(tmp_path / "nowhere", files) == 2
    assert list(tmp_path.glob("*.html")) == []


def test_names_of_strangers_are_text(tmp_path, page):
    files = write(tmp_path, names=(HOSTILE, MARKUP), named=MARKUP)
    assert run(tmp_path, files) == 0
    open_report(page, tmp_path / "report.html")
    assert page.evaluate("window.ran") is None
    assert page.evaluate("document.querySelectorAll('script').length") == 1
    assert page.evaluate("document.querySelectorAll('img:not([src^=\"data:\"])').length") == 0
    assert HOSTILE in page.text("h1")
    assert "<img" in page.text("#cases figcaption .bad")
    assert [url for url in page.requests if not url.startswith("data:")] == [(tmp_path / "report.html").as_uri()]
    assert page.errors == []
    choose(page, "system", HOSTILE)
    assert {case["system"] for case in shown(page)} == {HOSTILE}


def test_even_markup_that_came_through_would_run_nothing(tmp_path, page):
    """The page's own policy knows one script, by its digest."""
    assert run(tmp_path, write(tmp_path)) == 0
    file = tmp_path / "report.html"
    file.write_text(file.read_text().replace("<main>", f"<main>{HOSTILE}<img src=x onerror='window.ran = 2'>"))
    open_report(page, file)
    assert page.evaluate("window.ran") is None


def test_a_bad_picture_is_named_and_the_others_are_on_the_page(tmp_path, capsys):
    files = write(tmp_path)
    (tmp_path / "val" / "car" / "0.png").write_bytes(b"no picture")
    assert run(tmp_path, files) == 2
    assert "car/0.png: cannot read the picture" in capsys.readouterr().err
    assert (tmp_path / "report.html").read_text().count("<figure") > 10


def test_sides_are_counted_where_there_is_a_front():
    def at(number: int, category: str, true: float, predicted: float | None) -> Prediction:
        pose = None if predicted is None else Pose(math.radians(predicted), 0.0, 0.0)
        return Prediction(f"{category}/{number}/0", "s", category, None, pose, Pose(math.radians(true), 0.0, 0.0))

    answers = [
        at(0, "car", 10, 350),
        at(1, "car", 95, 100),
        at(2, "car", 180, 20),
        at(3, "car", 268, None),
        at(4, "car", 268, math.nan),
        at(5, "bottle", 0, 180),  # which has no front
    ]
    counts = view_confusions(align({"s": answers}))["s"]
    assert counts.tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 2]]
    assert [view_of((math.radians(a), 0.0, 0.0)) for a in (-44, 44, 46, 134, 136, 226, 316)] == [0, 0, 1, 1, 2, 3, 0]
    assert view_of((math.pi, math.pi, math.pi)) == 0, "the same rotation as no turn at all"


def test_confidence_is_measured_where_it_is_given():
    true = Pose(0.0, 0.0, 0.0)
    given = [(0.9, 0), (0.8, 0), (0.8, 90), (0.1, 90), (None, 0)]
    answers = [
        Prediction(f"car/{n}/0", "s", "car", None, Pose(math.radians(off), 0.0, 0.0), true, confidence)
        for n, (confidence, off) in enumerate(given)
    ]
    confidence, hits = confident(outcomes_by_system(align({"s": answers})), math.pi / 6)["s"]
    assert confidence.tolist() == [0.9, 0.8, 0.8, 0.1]
    assert hits.tolist() == [True, True, False, False]
    coverage, accuracy = accuracy_by_coverage(confidence, hits)
    assert coverage.tolist() == [0.25, 0.75, 1.0]
    assert accuracy.tolist() == pytest.approx([1, 2 / 3, 1 / 2])
    # bins of 1/15: 0.1 alone, the two of 0.8 together, 0.9 alone
    assert calibration_error(confidence, hits) == pytest.approx((0.1 + 2 * 0.3 + 0.1) / 4)
    assert np.isnan(calibration_error([], []))


def test_cases_are_the_best_the_worst_and_the_worst_of_each_category():
    answers = [
        Prediction(f"{c}/{n}/0", "s", c, None, Pose(math.radians(10 * n + k), 0.0, 0.0), Pose(0.0, 0.0, 0.0))
        for k, c in enumerate(("car", "Cup", "bus"))
        for n in range(4)
    ]
    kinds = chosen_cases(answers, 2)
    assert [i for i, kind in kinds.items() if "best" in kind] == ["car/0/0", "Cup/0/0"]
    assert [i for i, kind in kinds.items() if "worst" in kind] == ["bus/3/0", "Cup/3/0"]
    assert {i for i, kind in kinds.items() if "worst of its category" in kind} == {"car/3/0", "Cup/3/0", "bus/3/0"}
