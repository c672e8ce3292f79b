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
    assert list((tmp_path / ".venv").glob(".installed*")) == []


# pip asks it for an editable wheel: a project of nothing but its name and two extras, which need nothing
_BACKEND = """
import zipfile
def build_editable(folder, settings=None, metadata=None):
    name = "nothing-1-py3-none-any.whl"
    extras = "".join(f"Provides-Extra: {extra}\\n" for extra in ("render", "demo", "dev"))
    info = f"Metadata-Version: 2.1\\nName: nothing\\nVersion: 1\\n{extras}"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        wheel.writestr("nothing-1.dist-info/METADATA", info)
        wheel.writestr("nothing-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("nothing-1.dist-info/RECORD", "")
    return name
"""


def test_two_commands_in_turn_install_once_each(tmp_path: Path):
    """quickstart and test want other extras; a real venv, and a real pip that needs no network for this project."""
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    (tmp_path / "backend.py").write_text(_BACKEND)
    (tmp_path / "constraints.txt").write_text("")
    turns = "for extras in render,demo dev render,demo dev; do make_environment $extras; done"
    command = ["bash", "-c", f'set -euo pipefail; source "$1"; {turns}', "bash", str(SCRIPT)]
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "PIP_NO_INDEX": "1"}

    def installed() -> list[str]:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return [line for line in done.stdout.splitlines() if line.startswith("== installing")]

    assert ["render,demo" in line for line in installed()] == [True, False]
    assert installed() == []
    (tmp_path / "constraints.txt").write_text("# another version\n")
    assert len(installed()) == 2
