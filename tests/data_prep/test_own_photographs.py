"""What docs/DATA.md tells its readers to write for their own photographs, as it stands there."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.inspect.command import main as inspect
from data_prep.prepare.command import main as prepare
from llava_pose.data.records import read_records

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "DATA.md"


def test_the_guide_to_own_photographs_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = GUIDE.read_text(encoding="utf-8").split("## Your own photographs")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (1200, 900), "grey").save("IMG_0042.jpg")
    exec(textwrap.dedent(code), {})
    commands = {words[1]: words[2:] for words in (c.split() for c in re.findall(r"`(llava-pose [^`]+)`", section))}
    assert prepare(commands["prepare"]) == 0
    (record,) = read_records("mine_prepared", "train")
    assert record.category == "car"
    assert np.rad2deg(record.pose.angles) == pytest.approx([40, 12, 0], abs=0.1)
    # the box's middle is the crop's, and so is the object's
    assert (record.pose.px, record.pose.py) == pytest.approx((record.width / 2, record.height / 2), abs=1)
    assert inspect(commands["inspect"]) == 0
    assert "IMG_0042" in Path("labels.html").read_text(encoding="utf-8")
