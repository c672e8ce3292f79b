"""The benchmark of predictions runs, and all its ways find the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmarks" / "predict.py"
SMALL = "--categories 3 9 --pictures 2 --words 3 --rounds 1 --vocabulary 64 --hidden-size 32 --layers 1"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True)


def test_each_way_finds_the_same(tmp_path: Path):
    out = tmp_path / "figures.json"
    done = run(*SMALL.split(), "--out", str(out))
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())["figures"]
    assert list(figures) == ["joint over 3", "joint over 9", "pose"]
    for task in ("joint over 3", "joint over 9"):
        assert figures[task]["same winners"]
        assert figures[task]["is searched"]
        assert figures[task]["scored by"] == "tree_scores"
        assert figures[task]["search"]["times_ours"] == 1
    assert figures["pose"]["tokens"] == 3
    # libraries may write lines before
    assert [line.split(":")[0] for line in done.stdout.splitlines()[-4:-1]] == list(figures)
    assert done.stdout.splitlines()[-1].startswith("the process took ")


def test_more_candidates_than_there_are_is_a_sentence():
    done = run("--categories", "100000", *SMALL.split()[3:])
    assert done.returncode == 2
    assert "to choose from; give fewer" in done.stderr
