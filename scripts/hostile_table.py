"""Run tests/hostile and write how many inputs of each kind were tried and survived into docs/RESULTS.md.

    python scripts/hostile_table.py                              # some minutes; the slow tests are among them
    python scripts/hostile_table.py --report report.xml          # of scripts/test --slow --junitxml=report.xml

A kind is a test module, its name the first line of the module's docstring; an input is a test. A test that this machine
cannot run (such as one that needs to mount a small disk) is counted as left out, not as survived.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import os
import platform
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / "hostile"
RESULTS = ROOT / "docs" / "RESULTS.md"
BEGIN, END = "<!-- hostile table -->", "<!-- end of the hostile table -->"


def kinds() -> dict[str, str]:
    """Return the name of each test module's kind, by the module's name."""
    found = {}
    for path in sorted(FOLDER.glob("test_*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or path.stem
        found[path.stem] = text.partition("\n")[0].rstrip(".")
    return found


def run_tests(report: Path) -> None:
    """Run all tests of the folder, the slow ones too, and leave pytest's JUnit report."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    words = [sys.executable, "-m", "pytest", "-q", "--slow", "-n", "2", "--dist", "loadscope", str(FOLDER)]
    ended = subprocess.run([*words, f"--junitxml={report}"], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL)
    if ended.returncode not in (0, 1):
        raise SystemExit(ended.returncode)


def counts(report: Path) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Return the tried, survived and left-out inputs of each module."""
    tried, survived, left_out = Counter[str](), Counter[str](), Counter[str]()
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        package, _, module = case.attrib.get("classname", "").rpartition(".")
        if package != "tests.hostile":
            continue
        if case.find("skipped") is not None:
            left_out[module] += 1
            continue
        tried[module] += 1
        survived[module] += case.find("failure") is None and case.find("error") is None
    return tried, survived, left_out


def table(report: Path) -> str:
    """Return the Markdown table of a report."""
    tried, survived, left_out = counts(report)
    rows = [f"| {name} | {tried[m]} | {survived[m]} | {left_out[m] or ''} |" for m, name in kinds().items()]
    rows.append(f"| **all** | {tried.total()} | {survived.total()} | {left_out.total() or ''} |")
    made = f"`python scripts/hostile_table.py`, {platform.machine()}, {os.cpu_count()} cores, {datetime.date.today()}"
    return "\n".join([made, "", "| kind | tried | survived | left out here |", "|---|---|---|---|", *rows])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--report", type=Path, help="Take a JUnit report that pytest has left; by default run the tests."
    )
    given = parser.parse_args().report
    with tempfile.TemporaryDirectory() as folder:
        report = given or Path(folder) / "report.xml"
        if given is None:
            run_tests(report)
        text = table(report)
        tried, survived, _ = counts(report)
    before, _, rest = RESULTS.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    RESULTS.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
    sys.stdout.write(f"{text}\n")
    return 0 if tried == survived else 1


if __name__ == "__main__":
    raise SystemExit(main())
