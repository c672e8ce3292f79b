"""Commands pass on what other packages say, but for a few lines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def said(program: str) -> tuple[int, list[str]]:
    """Exit code and lines of stderr of a new process, which has imported nothing yet."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode, done.stderr.splitlines()


def test_a_command_starts_with_no_line_of_another_package():
    code, lines = said("import sys, llava_pose.cli as cli; sys.exit(cli.main(['train', '--data', 'prepared']))")
    assert (code, lines) == (
        2,
        ["error: the options --model, --train-json and --output-dir are needed; see llava-pose train --help"],
    )


def test_everything_else_is_heard():
    """From the same loggers and of the same kind; the real packages are loaded, and say their lines in vain."""
    code, lines = said(
        "import logging, warnings\n"
        "from llava_pose.utils.other_packages import quiet_others\n"
        "quiet_others()\n"
        "quiet_others()\n"
        "import bitsandbytes\n"
        "from transformers import ViTImageProcessor\n"
        "ViTImageProcessor()\n"
        "for name in ('bitsandbytes.backends.cpu.ops', 'transformers.utils.import_utils'):\n"
        "    assert len(logging.getLogger(name).filters) == 1\n"
        "    logging.getLogger(name).warning('something new')\n"
        "warnings.warn('`is_gradient_checkpointing` is deprecated and will be removed', FutureWarning)\n"
        "warnings.warn('another thing is deprecated', FutureWarning)\n"
    )
    assert code == 0, lines
    heard = [line for line in lines if "warnings.warn(" not in line]
    assert len(heard) == 3, lines
    assert [line.endswith("something new") for line in heard] == [True, True, False]
    assert heard[2].endswith("FutureWarning: another thing is deprecated")
