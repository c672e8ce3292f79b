"""Copies of the project's scripts whose recipes are cut down to seconds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import REPOSITORY


def copy_scripts(folder: Path, cut: Mapping[str, Mapping[str, Any]]) -> Path:
    """Copy scripts/ into a folder, all options of its recipes kept but those of ``cut``, which must be there."""
    shutil.copytree(REPOSITORY / "scripts", folder / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    for name, values in cut.items():
        recipe = folder / "scripts" / "recipes" / f"{name}.yaml"
        options = yaml.safe_load(recipe.read_text())
        assert set(values) <= set(options)
        recipe.write_text(yaml.safe_dump({**options, **values}))
    return folder


def start(folder: Path, script: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script of a copy in the environment of the tests, on one thread."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(folder / "scripts" / script), *words],
        env={**os.environ, "PATH": path, "NO_VENV": "1", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
