"""The model card of a checkpoint: README.md, as people and the hub read it, made of what the folder itself says."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from llava_pose.errors import InputError
from llava_pose.model.checkpoint_files import ADAPTER_CONFIG, MOST_BYTES
from llava_pose.model.configuration import LlavaPoseConfig
from llava_pose.utils import yaml_files
from llava_pose.utils.files import printable, read_text, write_atomic

MODEL_CARD = "README.md"
TAG = "llava-pose"  # by which a card of ours is known
_NO_SCORES = "None yet: `llava-pose score predictions.jsonl --model-card FOLDER` writes them here."


def write_card(
    folder: str | os.PathLike[str],
    bases: Sequence[str],
    *,
    name: str | None = None,
    learning: str = "",
    scores: str = _NO_SCORES,
) -> None:
    """Write the card of a base or a checkpoint, in place of any that is there.

    Args:
        bases: the models of the hub that it was made of; see :func:`bases_of`.
        name: by which it is loaded; that of the folder by default.
        learning: data and recipe, of :func:`learning_of`.
        scores: Markdown.
    """
    folder = Path(folder)
    name = _words(name or folder.absolute().name)
    taught = LlavaPoseConfig.load(folder)
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    front: dict[str, Any] = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": [TAG, "6d-pose-estimation"],
        **({"base_model": list(bases)} if bases else {}),
    }
    made_of = " and ".join(f"`{_words(base)}`" for base in bases) or "no model of the hub"
    if taught.categories:
        example = taught.categories[0]
        knows = (
            f"{len(taught.categories)} categories: {', '.join(map(_words, taught.categories))}.\n\n"
            f"Kinds of questions: {', '.join(map(_words, taught.kinds)) or 'not recorded'}.\n\n"
            "Of other objects and to other questions its answers are guesses, whatever confidence stands beside them."
        )
    else:
        example, knows = "car", "Nothing: its pose parts are as they were drawn at random, to be trained."
    text = f"""---
{yaml.safe_dump(front, sort_keys=False)}---

# {name}

A vision-language model that says how the objects of a picture are turned and where they are, by LLaVA-pose.
{"It is an adapter, which needs its base; `llava-pose merge` makes one checkpoint of the two." if is_adapter else ""}

## How to load it

```python
import llava_pose
pipe = llava_pose.pipeline({json.dumps(name)})
print(pipe("picture.jpg", category={json.dumps(_words(example))}).to_dict())
```

## What it was taught

{knows}

## What it was made of

Base: {made_of}.

{_marked("learning", learning)}
## Scores

{_marked("scores", scores)}
## Licence

This card grants none. The licence of the base and that of the data hold for what was made of them.
"""
    write_atomic(folder / MODEL_CARD, text)


def bases_of(path: str | os.PathLike[str]) -> list[str]:
    """Return the models of the hub that a model goes back to: itself, or for a folder those that its card names."""
    if not Path(path).is_dir():
        return [os.fspath(path)]
    text = _own_card(Path(path))
    found = [] if text is None else _front(text).get("base_model")
    return [base for base in found if isinstance(base, str)] if isinstance(found, list) else []


def learning_of(data: str, recipe: Mapping[str, Any]) -> str:
    """Return what a card says of a run: its data, in words, and the settings that are not the defaults."""
    lines = yaml.safe_dump(dict(recipe), sort_keys=True, allow_unicode=True).splitlines() if recipe else []
    settings = "\n".join(f"    {printable(line)}" for line in lines) or "All settings are the defaults."
    return f"Data: {_words(data)}\n\nSettings of `llava-pose train` that differ from the defaults:\n\n{settings}"


def part_of(folder: str | os.PathLike[str], part: str) -> str | None:
    """Return a part ("learning", "scores") of a folder's card, if it has one of ours."""
    found = _split(_own_card(Path(folder)) or "", part)
    return None if found is None else found[1].strip()


def put_part(folder: str | os.PathLike[str], part: str, text: str) -> None:
    """Replace a part of a folder's card; the rest stays as it is, whoever has written on it.

    Raises:
        InputError: as :func:`require_part`.
    """
    before, _, behind = require_part(folder, part)
    write_atomic(Path(folder) / MODEL_CARD, f"{before}{_marked(part, text)}{behind}")


def require_part(folder: str | os.PathLike[str], part: str) -> tuple[str, str, str]:
    """Return what stands in a folder's card before a part, in it and behind it.

    Raises:
        InputError: the folder has no card of ours, or the marks of the part are gone from it.
    """
    found = _split(_own_card(Path(folder)) or "", part)
    if found is None:
        raise InputError(
            f"{Path(folder) / MODEL_CARD}: there is no model card with <!-- {part} --> and <!-- /{part} --> in it; give a "
            "checkpoint of llava-pose train or merge"
        )
    return found


def _marked(part: str, text: str) -> str:
    return f"<!-- {part} -->\n{text}\n<!-- /{part} -->\n"


def _split(card: str, part: str) -> tuple[str, str, str] | None:
    before, _, rest = card.partition(f"<!-- {part} -->\n")
    inside, closed, behind = rest.partition(f"<!-- /{part} -->\n")
    return (before, inside, behind) if closed else None


def _own_card(folder: Path) -> str | None:
    """Return the text of a folder's card, where there is one and it has our tag; one that cannot be read is none of ours."""
    file = folder / MODEL_CARD
    with suppress(InputError):
        if file.is_file():
            text = read_text(file, most=MOST_BYTES)
            tags = _front(text).get("tags")
            return text if isinstance(tags, list) and TAG in tags else None
    return None


def _front(text: str) -> dict[str, Any]:
    """Return the YAML that a card begins with; nothing where there is none, or more than any card's.

    Raises:
        InputError: it is no YAML.
    """
    opened, _, rest = text.partition("---\n")
    front, closed, _ = rest.partition("\n---\n")
    if opened or not closed or len(front) > yaml_files.MOST_BYTES:
        return {}
    return yaml_files.parse_yaml(front, MODEL_CARD)


def _words(text: str) -> str:
    """Return a name of somebody else's as text on a line of Markdown, without markup of its own."""
    return re.sub(r"[`<>|\[\]*\\]", "?", printable(" ".join(text.split())))


__all__ = ["MODEL_CARD", "bases_of", "learning_of", "part_of", "put_part", "require_part", "write_card"]
