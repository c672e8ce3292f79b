"""Commands whose extra is not installed say which one, and all others run without it."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WITHOUT = "import sys; sys.modules[sys.argv[1]] = None; from llava_pose.cli import main; sys.exit(main(sys.argv[2:]))"


def free_port() -> str:
    with socket.socket() as candidate:
        candidate.bind(("127.0.0.1", 0))
        return str(candidate.getsockname()[1])


def run_without(module: str, *words: str) -> subprocess.CompletedProcess[str]:
    """``llava-pose WORDS`` in a process that cannot import ``module``."""
    return subprocess.run([sys.executable, "-c", WITHOUT, module, *words], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("module", "extra", "words"),
    [
        ("embreex", "render", ["render", "--out", "{folder}/set", "--workers", "1"]),
        ("trimesh", "render", ["render", "--out", "{folder}/set", "--sources", "sweethome3d"]),
        (
            "openai",
            "caption",
            ["caption", "--data", "{folder}", "--api-base", "http://127.0.0.1:{port}", "--model", "m"],
        ),
        (
            "ai_edge_litert",
            "objectron",
            ["objectron", "--models", "{folder}", "--data", "{folder}", "--output-dir", "{folder}/out"],
        ),
        ("gradio", "demo", ["demo", "--checkpoint", "{folder}/none", "--port", "{port}"]),
        ("uvicorn", "serve", ["annotate", "docs/images", "--out", "{folder}/raw", "--port", "{port}"]),
        ("uvicorn", "serve", ["serve", "--checkpoint", "{folder}/none", "--port", "{port}"]),
    ],
)
def test_a_missing_extra_is_one_sentence_and_exit_2(tmp_path: Path, module: str, extra: str, words: list[str]) -> None:
    ended = run_without(module, *(word.format(folder=tmp_path, port=free_port()) for word in words))
    assert ended.returncode == 2, ended.stderr
    (sentence,) = ended.stderr.splitlines()
    assert sentence.startswith("error: ")
    assert f"needs {module}" in sentence
    assert f"pip install 'llava-pose[{extra}]'" in sentence
    assert not list(tmp_path.iterdir())


def test_help_needs_no_extra() -> None:
    ended = run_without("embreex", "render", "--help")
    assert ended.returncode == 0, ended.stderr
    assert "llava-pose render --out" in ended.stdout
