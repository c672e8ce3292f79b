"""The benchmark of predictions runs, and all its ways find the same."""

from __future__ import annotations

import json
from pathlib import Path

from tests.forked import run

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmarks" / "predict.py"
SMALL = "--categories 3 9 --pictures 2 --words 3 --rounds 1 --vocabulary 64 --hidden-size 32 --layers 1"


def test_each_way_finds_the_same(tmp_path: Path):
    out = tmp_path / "figures.json"
    done = run([str(SCRIPT), *SMALL.split(), "--out", str(out)], tmp_path / "log")
    assert done.returncode == 0, done.said
    figures = json.loads(out.read_text())["figures"]
    assert list(figures) == ["joint over 3", "joint over 9", "pose"]
    for task in ("joint over 3", "joint over 9"):
        assert figures[task]["same winners"]
        assert figures[task]["is searched"]
        assert figures[task]["scored by"] == "tree_scores"
        assert figures[task]["search"]["times_ours"] == 1
    assert figures["pose"]["tokens"] == 3
    # libraries may write lines before
    assert [line.split(":")[0] for line in done.said.splitlines()[-4:-1]] == list(figures)
    assert done.said.splitlines()[-1].startswith("the process took ")


def test_more_candidates_than_there_are_is_a_sentence(tmp_path: Path):
    done = run([str(SCRIPT), "--categories", "100000", *SMALL.split()[3:]], tmp_path / "log")
    assert done.returncode == 2
    assert "to choose from; give fewer" in done.said
