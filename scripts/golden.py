"""Compare what the pipeline computes with what it computed before: losses, crops, records, scores and files of an export.

    python scripts/golden.py --out golden.json                                   # write the values of this checkout
    python scripts/golden.py --against scripts/golden.json --photos ../shared/data/photos

A change of layout, names or machinery must not change one of these values. A change that means to, such as another loss,
writes the file anew and says so in its commit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CATEGORIES = ["bed", "car", "chair", "teapot"]
STEPS = 20
LOSS_TOLERANCE = 2e-4  # relative: kernels of another CPU add in another order


def digest_of(paths: Iterable[Path], base: Path) -> str:
    """Return one digest of the names, relative to ``base``, and contents of files."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(paths):
        digest.update(path.relative_to(base).as_posix().encode() + b"\0")
        digest.update(hashlib.blake2b(path.read_bytes()).digest())
    return digest.hexdigest()


def run(*words: object) -> None:
    """Run one command of this checkout.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "llava_pose.cli", *map(str, words)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdin=subprocess.DEVNULL)


def losses(log: Path) -> list[dict[str, float]]:
    """Return the loss and its terms of each step, as metrics.jsonl has them."""
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    return [{name: value for name, value in entry.items() if "loss" in name} for entry in entries]


def prepared_digest(folder: Path) -> str:
    return digest_of([*folder.glob("*/metadata.jsonl"), *folder.glob("*/*/*.JPEG")], folder)


def small_run(folder: Path) -> dict[str, Any]:
    """Go through the quickstart's stages at a hundredth of their size."""
    recipes = ROOT / "scripts" / "recipes"
    raw, prepared, tower, base = (folder / name for name in ("raw", "prepared", "tower", "base"))
    run(
        *("render", "--config", recipes / "quickstart_render.yaml", "--out", raw),
        *("--categories", *CATEGORIES, "--train-instances", 8, "--val-instances", 2),
    )
    run("prepare", "--data-root", raw, "--out", prepared, "--crop", "box", "--size", 112)
    run("caption", "--data", prepared, "--out", folder / "captions.jsonl")
    run(
        *("instruct", "--data", prepared, "--out", folder / "train.json", "--kinds", "joint", "pose"),
        *("--weights", 3, 2, "--questions-per-object", 1),
    )
    run("export", "--data", prepared, "--out", folder / "exported")
    run(
        *("classifier", "--config", recipes / "quickstart_tower.yaml", "--data", prepared, "--output-dir", tower),
        *("--system", "tower-alone", "--max-steps", STEPS, "--logging-steps", 1),
    )
    run(
        *("assemble", "--preset", "tiny", "--vision", tower / "backbone", "--vision-merge", 3, "--out", base),
    )
    run(
        *("train", "--config", recipes / "quickstart.yaml", "--model", base, "--data", prepared),
        *("--train-json", folder / "train.json", "--output-dir", folder / "checkpoint"),
        *("--max-steps", STEPS, "--logging-steps", 1),
    )
    run(
        *("predict", "--checkpoint", folder / "checkpoint", "--data", prepared, "--task", "joint", "--flip"),
        *("--system", "golden", "--out", folder / "predictions.jsonl"),
    )
    return {
        "rendered": digest_of(raw.rglob("*.JPEG"), raw),
        "prepared": prepared_digest(prepared),
        "captions": digest_of([folder / "captions.jsonl"], folder),
        "train_json": digest_of([folder / "train.json"], folder),
        "exported": digest_of((folder / "exported").rglob("*.npz"), folder / "exported"),
        "tower_losses": losses(tower / "metrics.jsonl"),
        "losses": losses(folder / "checkpoint" / "metrics.jsonl"),
        "predictions": [
            {name: line[name] for name in ("id", "pred_category", "pose", "confidence")}
            for line in map(json.loads, (folder / "predictions.jsonl").read_text().splitlines()[:8])
        ],
    }


def scores_of_given_predictions(folder: Path) -> Any:
    """Score two made-up systems, whose lines are arithmetic, so that nothing but the scorer decides the scores."""
    for system, error in (("one", 0.3), ("two", 0.5)):
        lines = []
        for number in range(120):
            angle = 0.05 * number
            turned = angle + error * (1 if number % 3 else 0.2) * (-1) ** number
            pose = {"azimuth": turned, "elevation": 0.1, "theta": 0.0}
            true = {"azimuth": angle, "elevation": 0.1, "theta": 0.05}
            category = CATEGORIES[number % 4]
            lines.append(
                {"id": f"{category}/{number}/0", "system": system, "category": category, "pred_category": category}
                | {"pose": pose, "true": true, "confidence": 0.5, "instance": f"{number // 2}"}
            )
        (folder / f"{system}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run("score", folder / "one.jsonl", folder / "two.jsonl", "--out", folder / "scores.json")
    return json.loads((folder / "scores.json").read_text().replace(str(folder), ""))


def golden(folder: Path, photos: Path | None) -> dict[str, Any]:
    """Return all values of this checkout."""
    values = {**small_run(folder), "scores": scores_of_given_predictions(folder)}
    if photos is not None:
        run("prepare", "--data-root", photos, "--out", folder / "photos", "--crop", "box", "--size", 112)
        values["photos"] = prepared_digest(folder / "photos")
    return values


def differences(found: Any, expected: Any, place: str = "") -> list[str]:
    """Return the places where two JSON values differ; numbers of a loss or a pose may differ by rounding."""
    if isinstance(expected, dict) and isinstance(found, dict):
        names = [name for name in expected if name in found or name != "photos"]
        missing = [f"{place}/{name}: is not there" for name in names if name not in found]
        return missing + [
            line
            for name in names
            if name in found
            for line in differences(found[name], expected[name], f"{place}/{name}")
        ]
    if isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        pairs = enumerate(zip(found, expected, strict=True))
        return [line for index, (one, other) in pairs for line in differences(one, other, f"{place}/{index}")]
    if isinstance(expected, float) and isinstance(found, float | int):
        close = abs(found - expected) <= LOSS_TOLERANCE * max(1.0, abs(expected))
        return [] if close else [f"{place}: {found}, not {expected}"]
    return [] if found == expected else [f"{place}: {found!r}, not {expected!r}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="Write the values of this checkout there.")
    parser.add_argument("--against", type=Path, help="Compare with these values; exit 1 where one differs.")
    parser.add_argument("--photos", type=Path, help="A raw dataset whose crops and records are compared as well.")
    parser.add_argument("--keep", type=Path, help="Work in this folder and keep it; by default in a temporary one.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        values = golden(folder, options.photos)
    if options.out:
        options.out.write_text(json.dumps(values, separators=(",", ":")) + "\n")
    found = differences(values, json.loads(options.against.read_text())) if options.against else []
    sys.stdout.write("".join(f"{line}\n" for line in found) or "the same\n")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
