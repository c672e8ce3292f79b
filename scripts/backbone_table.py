"""Put every language model, tower and vision-language model of transformers through the door, and write what comes of each.

    python scripts/backbone_table.py                       # about half an hour; goes on where it was stopped
    python scripts/backbone_table.py --only tower/vit      # these alone, to the screen

Each is built small and at random in a process of its own (tests/llava_pose/through_the_door.py says what is asked of it). The
results are docs/results/backbones.json, which is brought up to date after each, and the table in docs/BACKBONES.md.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from llava_pose.utils.files import write_atomic  # noqa: E402

RESULTS = ROOT / "docs" / "results" / "backbones.json"
PAGE = ROOT / "docs" / "BACKBONES.md"
PARTS = {
    "language": "language models, joined with a small tower",
    "tower": "vision towers, joined with a small language model",
    "whole": "vision-language models as they are",
}
HEADS = {
    "right": "right",
    "slower": "right by a slower way",
    "refused": "refused",
    "not here": "not built here",
    "wrong": "wrong",
    "crashed": "crashed",
    "not tried": "not tried yet",
}
NOT_TRIED = {"result": "not tried", "said": ""}
SENTENCES = {  # what is in a sentence -> how the page has it
    "looks ahead": "looks ahead",
    "more than a language model": "is more than a language model",
    "is_encoder_decoder": "an encoder and a decoder",
    "has no image tokens": "no image tokens that its language model reads beside the words",
    "no output layer or no vision tower": "no output layer or no tower of its own",
    "in their order": "its tokens do not end with those of the patches",
    "no such map of patches": "gives no map of patches of a picture alone",
    "Unrecognized configuration class": "AutoModel does not know its inner part by itself",
    "requires the .* library|PIL": "wants a package that is not here",
    "otherwise than with pixels": "answers otherwise with image tokens handed over",
    "does not take a picture and a question": "does not take embeddings in the place of words",
}
BEGIN, END = "<!-- table of backbones -->", "<!-- end of the table of backbones -->"


def read_results(version: str) -> dict[str, dict[str, str]]:
    """Return what is known of each model with this version of transformers; nothing where it was found out with another."""
    known: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    return known["models"] if known.get("transformers") == version else {}


def table(models: dict[str, dict[str, str]], version: str) -> str:
    """Return the Markdown of the results: how many of each part, and which."""
    lines = [
        f"`python scripts/backbone_table.py`, transformers {version}; `docs/results/backbones.json` has what is said of each.",
        "",
        f"| part | {' | '.join(HEADS.values())} |",
        f"|---|{'---|' * len(HEADS)}",
    ]
    for what, title in PARTS.items():
        results = [model["result"] for name, model in models.items() if name.startswith(f"{what}/")]
        lines.append(f"| {title} | {' | '.join(str(results.count(result)) for result in HEADS)} |")
    for what, title in PARTS.items():
        lines += ["", f"**{title[0].upper()}{title[1:]}**", ""]
        groups: dict[str, list[str]] = defaultdict(list)
        for result, head in HEADS.items():
            if result == NOT_TRIED["result"]:
                continue
            for name, model in sorted(models.items()):
                part, _, kind = name.partition("/")
                if part == what and model["result"] == result:
                    groups[head + _reason(result, model["said"], kind)].append(kind)
        lines += [f"- {head[0].upper()}{head[1:]}: {', '.join(kinds)}." for head, kinds in groups.items()]
    return "\n".join(lines)


def _reason(result: str, said: str, kind: str) -> str:
    """Return what follows the head of a group: the way, or the sentence without what is of one model alone."""
    if result == "right":
        return ""
    if result == "slower":
        return f" ({said})"
    for pattern, short in SENTENCES.items():
        if re.search(pattern, said):
            return f" ({short})"
    return ""


def write(models: dict[str, dict[str, str]], version: str) -> None:
    """Write the results, and the table of them into the page."""
    write_atomic(RESULTS, json.dumps({"transformers": version, "models": models}, indent=1) + "\n")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    write_atomic(PAGE, f"{before}{BEGIN}\n{table(models, version)}\n{END}{after}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="Try these alone, such as tower/vit, and print what comes of them.")
    parser.add_argument(
        "--again", nargs="+", default=[], help="Results, such as crashed, whose models are tried again."
    )
    parser.add_argument("--seconds", type=float, default=float("inf"), help="Stop after so long, to be gone on with.")
    given = parser.parse_args()
    import transformers

    from tests.llava_pose.through_the_door import every, make_shared, outcome

    started, version = time.monotonic(), transformers.__version__
    models = read_results(version) or {name: dict(NOT_TRIED) for name in every()}
    to_do = given.only or [name for name in models if models[name]["result"] in (NOT_TRIED["result"], *given.again)]
    with tempfile.TemporaryDirectory() as folder:
        shared = make_shared(Path(folder))
        for name in to_do:
            if time.monotonic() - started > given.seconds:
                break
            found = outcome(name, shared)
            if given.only:
                sys.stdout.write(f"{name}: {found.result}\n{found.said}\n{found.trace}\n")
            else:
                models[name] = {"result": found.result, "said": found.said}
                write(models, version)
    return 0 if all(models[name]["result"] not in ("not tried", "wrong", "crashed") for name in models) else 1


if __name__ == "__main__":
    raise SystemExit(main())
