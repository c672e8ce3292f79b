"""scripts/environment.sh: what scripts/quickstart and scripts/test stand on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "environment.sh"


def test_an_environment_that_was_stopped_while_it_was_made_is_made_again(tmp_path: Path):
    """A real venv; installing takes a network, and ends here at a requirement that pip cannot read."""
    (tmp_path / "pyproject.toml").write_text("no project\n")
    (tmp_path / "constraints.txt").write_text("")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", ".venv"], cwd=tmp_path, check=True)
    command = ["bash", "-c", 'set -euo pipefail; source "$1"; make_environment dev', "bash", str(SCRIPT)]
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable}
    runs = [subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True) for _ in range(2)]
    assert "making .venv" in runs[0].stdout
    assert "making .venv" not in runs[1].stdout
    assert (tmp_path / ".venv" / "bin" / "pip").exists()
    assert all(run.returncode != 0 for run in runs)
    assert not (tmp_path / ".venv" / ".installed").exists()
