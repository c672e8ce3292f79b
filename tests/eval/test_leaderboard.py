"""`llava-pose leaderboard`: one page from files that others have sent, each refusal in words, annotations from the data."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.leaderboard import LeaderboardConfig, leaderboard, main
from eval.score import ScoreConfig, score
from llava_pose.data.jsonl import write_jsonl
from llava_pose.data.records import Pose, Prediction, read_predictions, read_records
from llava_pose.errors import InputError
from tests.data_prep.made_scenes import make_prepared, make_record


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    return make_prepared(tmp_path / "prepared", [make_record("car", i, 0, rng) for i in range(4)], "val")


def lines(prepared: Path, system: str, errors: list[float], **changes: Any) -> list[dict[str, Any]]:
    """A system's lines, off by so many degrees of in-plane rotation each."""
    found = []
    for record, error in zip(read_records(prepared, "val"), errors, strict=False):
        azimuth, elevation, theta = record.pose.angles
        pose = Pose(azimuth, elevation, theta + math.radians(error))
        answer = Prediction.of(record, system=system, pose=pose, pred_category=None, confidence=None)
        found.append({**answer.to_dict(), **changes})
    return found


def send(folder: Path, name: str, values: list[dict[str, Any]]) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(path, values)


def page_of(tmp_path: Path, prepared: Path) -> str:
    out = leaderboard(LeaderboardConfig(folder=str(tmp_path / "sent"), data=str(prepared), out=str(tmp_path / "site")))
    assert out == tmp_path / "site" / "index.html"
    return out.read_text()


def test_systems_stand_in_the_order_of_their_accuracy_with_the_figures_of_score(tmp_path, prepared):
    send(tmp_path / "sent", "worse.jsonl", lines(prepared, "worse", [0, 90, 90, 90]))
    send(tmp_path / "sent", "better/predictions.jsonl", lines(prepared, "better", [0, 0, 0, 90]))
    page = page_of(tmp_path, prepared)
    assert page.index("better") < page.index("worse")
    scores = json.loads((tmp_path / "site" / "scores.json").read_text())
    sent = [str(tmp_path / "sent" / name) for name in ("better/predictions.jsonl", "worse.jsonl")]
    expected = score(ScoreConfig(predictions=sent, out=str(tmp_path / "own.json"), data=str(prepared)))
    assert scores["systems"] == json.loads(json.dumps(expected["systems"]))
    for name in ("better", "worse"):
        assert f'<a href="predictions/{name}.jsonl">' in page
        assert len(read_predictions(tmp_path / "site" / "predictions" / f"{name}.jsonl")) == 4
    assert "a line for each of the 4 objects of &#39;val&#39;" in page
    assert "not scored" not in page


def test_each_refusal_is_listed_in_words_and_stops_nothing(tmp_path, prepared, caplog):
    sent = tmp_path / "sent"
    send(sent, "good.jsonl", lines(prepared, "good", [0] * 4))
    send(sent, "part.jsonl", lines(prepared, "part", [0] * 2))
    send(sent, "same.jsonl", lines(prepared, "good", [0] * 4))
    send(sent, "others.jsonl", [{**value, "id": f"bus/{i}/0"} for i, value in enumerate(lines(prepared, "o", [0] * 4))])
    send(sent, "judge.jsonl", lines(prepared, "judge", [0] * 4, true={"azimuth": 0.0, "elevation": 0.0, "theta": 0.0}))
    (sent / "text.jsonl").write_text("my predictions")
    page = page_of(tmp_path, prepared)
    for sentence in (
        "&#39;part&#39; answers 2 of 4 objects; answer all",
        "names its system &#39;good&#39;, as good does; give it another name",
        "answers the id &#39;bus/0/0&#39;, which is no object of the split",
        "degrees from the data&#39;s; predict anew on this data",
        "text.jsonl:1: ",
    ):
        assert sentence in page, sentence
    assert str(tmp_path) not in page
    assert list(json.loads((tmp_path / "site" / "scores.json").read_text())["systems"]) == ["good"]
    assert "part: is not scored" in caplog.text


def test_a_file_that_would_take_the_page_down_is_listed_like_any_other(tmp_path, prepared, monkeypatch):
    sent = tmp_path / "sent"
    send(sent, "good.jsonl", lines(prepared, "good", [0] * 4))
    send(sent, "twice.jsonl", lines(prepared, "twice", [0] * 2) + lines(prepared, "", [0] * 2))
    send(sent, "many.jsonl", [line for n in range(51) for line in lines(prepared, f"many {n}", [0] * 4)])
    send(sent, "long.jsonl", lines(prepared, "long", [0] * 4, note="x" * (1 << 20)))
    monkeypatch.setattr("eval.leaderboard.MOST_BYTES", 1 << 20)
    page = page_of(tmp_path, prepared)
    assert "&#39;twice&#39; answers &#39;car/n000/0&#39; twice" in page
    assert "names 51 systems; send 50 at most in a file" in page
    assert "has more than 1 MiB; send the answers for this data alone" in page
    assert list(json.loads((tmp_path / "site" / "scores.json").read_text())["systems"]) == ["good"]


def test_what_a_file_says_of_the_annotations_is_not_believed(tmp_path, prepared):
    """It may not make objects occluded, nor one instance of many; names are escaped."""
    name = "<script>alert(1)</script>"
    claims = {"object_status": "status_bad", "source": name, "instance": "one", "dense": "dense_yes", "note": name}
    send(tmp_path / "sent", "claims.jsonl", lines(prepared, name, [0] * 4, **claims))
    page = page_of(tmp_path, prepared)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    truth = {record.id: record for record in read_records(prepared, "val")}
    for answer in read_predictions(tmp_path / "site" / "predictions" / "claims.jsonl"):
        expected = Prediction.of(truth[answer.id], system=name, pose=answer.pose, pred_category=None, confidence=None)
        assert answer == expected


def test_what_cannot_be_made_is_one_sentence(tmp_path, prepared, capsys):
    sent, site = tmp_path / "sent", tmp_path / "site"
    words = [str(sent), "--data", str(prepared), "--out", str(site)]
    for expected in ("sent: there is no such folder", "sent: there is no prediction file in it"):
        assert main(words) == 2
        assert expected in capsys.readouterr().err
        sent.mkdir(exist_ok=True)
    send(sent, "part.jsonl", lines(prepared, "part", [0] * 2))
    send(sent, "part/predictions.jsonl", lines(prepared, "part", [0] * 4))
    assert main(words) == 2
    assert "sent: part.jsonl and part/predictions.jsonl have one name; rename one" in capsys.readouterr().err
    (sent / "part" / "predictions.jsonl").unlink()
    assert main(words) == 2
    assert "sent: none of 1 files can be scored; the first, part: 'part' answers 2 of 4" in capsys.readouterr().err
    assert not site.exists()
    send(sent / "predictions", "part.jsonl", lines(prepared, "part", [0] * 4))
    with pytest.raises(InputError, match="--out"):
        leaderboard(LeaderboardConfig(folder=str(sent / "predictions"), data=str(prepared), out=str(sent)))
