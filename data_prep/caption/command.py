"""``llava-pose caption``: a caption for each prepared picture, with `<pose6D>` after each object that it names.

By default a grammar writes them from the poses; with ``--api-base`` a model behind any OpenAI-compatible server does. Each
line is on disk before the next picture's is awaited, and the same command goes on with what has no line yet.
"""

from __future__ import annotations

import json
import logging
import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt
from tqdm import tqdm

from data_prep.caption.adopt import WRITER, Adopted, Match, adopt
from data_prep.caption.check import ModelCaption, read_answer
from data_prep.caption.grammar import scene_caption
from data_prep.caption.lines import FAILED, GRAMMAR, OK, CaptionLine
from data_prep.caption.prompt import first_messages
from data_prep.scene.scenes import Scene, make_scenes
from llava_pose.data.images import check_picture
from llava_pose.data.jsonl import append_jsonl, resume_jsonl, write_jsonl
from llava_pose.data.records import METADATA_FILE, read_records
from llava_pose.errors import InputError, left_out
from llava_pose.utils.command import command, say_next
from llava_pose.utils.config import require, require_folder
from llava_pose.utils.files import printable, write_json
from llava_pose.utils.openai_client import (
    NotNegative,
    Reply,
    ServedModel,
    ServerOptions,
    map_threads,
    require_client,
    token_account,
)
from llava_pose.utils.output_folder import keep_settings, own_file, require_other

logger = logging.getLogger(__name__)
_EXAMPLES = 20
_LINES_AT_ONCE = 256  # of the grammar's, which need no saving one by one


@dataclass(kw_only=True)
class CaptionConfig(ServerOptions):
    """The options of ``llava-pose caption``."""

    data: str = field(metadata={"help": "The prepared folder, as llava-pose prepare writes it."})
    out: str | None = field(default=None, metadata={"help": "The file to write, such as captions.jsonl."})
    split: str = field(default="train", metadata={"help": "The split of the prepared folder."})
    seed: int = field(default=0, metadata={"help": "Draws the grammar's sentences, for each picture by its name."})
    temperature: NotNegative | None = field(
        default=0.7, metadata={"help": "The temperature of the model's sampling; null leaves it to the server."}
    )
    send_images: bool = field(default=True, metadata={"help": "Send the pictures to the model beside the text."})
    adopt: str | None = field(
        default=None,
        metadata={
            "help": "Take the captions of this JSON or JSON Lines file, by picture, which somebody else wrote (docs/DATA.md)."
        },
    )
    match: Match = field(
        default="auto",
        metadata={
            "help": "With --adopt, how a <pose6D> finds its object: by the order of the annotation, by the category that is "
            "named before it, or by a box or other mark in the file; auto takes the mark, else the category."
        },
    )
    any_nouns: bool = field(
        default=False,
        metadata={"help": "With --adopt, take captions with words for objects that the records do not have."},
    )
    strict: bool = field(
        default=False, metadata={"help": "With --adopt, refuse the file for one caption that cannot be used."}
    )
    most: NonNegativeInt = field(default=0, metadata={"help": "Stop after so many pictures; 0 is all."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.api_base is None) != (self.model is None):
            raise InputError("--api-base and --model: give both, or neither for captions of the grammar")
        if self.adopt is None and (self.match != "auto" or self.any_nouns or self.strict):
            raise InputError(
                "--match, --any-nouns and --strict: are for captions of others; name their file with --adopt"
            )
        if self.adopt is not None and (self.model is not None or self.most):
            raise InputError("--adopt: takes captions that are written; leave out --model and --most")


@dataclass(frozen=True)
class CaptionResult:
    """The file that was written, and how many of its captions are usable and how many failed."""

    path: Path
    ok: int
    failed: int


def caption(config: CaptionConfig) -> CaptionResult | None:
    """Write a line for each picture of a split; nothing and None for a dry run.

    Raises:
        InputError: the prepared folder or an earlier file is unusable, the server refuses or does not answer, or records or
            pictures cannot be used: all others have their line.
    """
    if config.api_base is not None and not config.dry_run:
        require_client()
    prepared = require_folder(config.data, "--data", "make it with: llava-pose prepare --data-root … --out …")
    faults: list[InputError] = []
    scenes = _pictures(prepared, config.split, faults)
    if config.dry_run:
        _print_prompts(scenes, config)
        return None
    out = Path(require(config.out, "--out"))
    adopted = None
    if config.adopt is not None:
        require_other("--out", (out, _summary_path(out)), [config.adopt])
        adopted = adopt(config.adopt, scenes, config.match, any_nouns=config.any_nouns, strict=config.strict)
    with own_file(out, "--out", "caption"):
        keep_settings(out, "--out", "caption", _settings(config))
        known = _earlier_lines(out, config)
        if adopted is not None:
            others = {image: line for image, line in known.items() if not image.startswith(f"{config.split}/")}
            _put_in_order(out, others | adopted.lines)
            return _report(out, others | adopted.lines, config, adopted)
        wanted = [image for image in scenes if image not in known]
        if config.most:
            wanted = wanted[: config.most]
        _write_lines(out, wanted, scenes, prepared, config, known)
        _put_in_order(out, known)
        result = _report(out, known, config)
    if faults:
        raise left_out(faults, f"{out}: {len(faults)} records or pictures cannot be used and have no caption")
    return result


def _pictures(prepared: Path, split: str, faults: list[InputError]) -> dict[str, Scene]:
    """Return the scene of each picture, by its path below the prepared folder; what cannot be used goes to ``faults``."""
    records = read_records(prepared, split, faults=faults)
    if not records and not faults:
        raise InputError(f"{prepared / split / METADATA_FILE}: there is no record in it; run llava-pose prepare")
    scenes = make_scenes(records)
    pictures = {}
    for file_name, scene in {record.file_name: scenes[record.id] for record in records}.items():
        try:
            check_picture(prepared / split, file_name)
            pictures[f"{split}/{file_name}"] = scene
        except InputError as error:
            faults.append(error)
    return pictures


def _earlier_lines(out: Path, config: CaptionConfig) -> dict[str, CaptionLine]:
    """Return the lines that an earlier run has left, without those that are to be asked for again."""
    known: dict[str, CaptionLine] = {}
    for where, value in resume_jsonl(out, "image"):
        line = CaptionLine.from_dict(value, where=where)
        if line.image in known:
            raise InputError(f"{where}: the picture {line.image!r} stands on two lines; delete one of them")
        known[line.image] = line
    if config.retry_failed:
        known = {image: line for image, line in known.items() if line.status == OK}
        write_jsonl(out, (line.to_dict() for line in known.values()))
    return known


def _settings(config: CaptionConfig) -> dict[str, Any]:
    """Return what all captions of one file have in common; several splits may share a file."""
    if config.adopt is not None:
        return {"writer": WRITER, "match": config.match, "any_nouns": config.any_nouns}
    if config.model is None:
        return {"writer": GRAMMAR, "seed": config.seed}
    return {"writer": config.model, "temperature": config.temperature, "send_images": config.send_images}


def _write_lines(
    out: Path,
    wanted: Sequence[str],
    scenes: dict[str, Scene],
    prepared: Path,
    config: CaptionConfig,
    known: dict[str, CaptionLine],
) -> None:
    """Append a line for each picture, and add it to ``known``."""
    bar = tqdm(total=len(wanted), desc=f"caption {config.split}", unit="image", mininterval=1.0)
    with bar:
        for lines in _made(wanted, scenes, prepared, config):
            append_jsonl(out, (line.to_dict() for line in lines))
            known.update((line.image, line) for line in lines)
            bar.update(len(lines))


def _made(
    wanted: Sequence[str], scenes: dict[str, Scene], prepared: Path, config: CaptionConfig
) -> Iterator[list[CaptionLine]]:
    if config.api_base is None:
        for start in range(0, len(wanted), _LINES_AT_ONCE):
            yield [grammar_line(image, scenes[image], config.seed) for image in wanted[start : start + _LINES_AT_ONCE]]
        return
    model = ServedModel(config)

    def ask(image: str) -> CaptionLine:
        scene = scenes[image]
        messages = first_messages(scene, prepared / image if config.send_images else None)
        return _line(image, model.ask(messages, lambda text: read_answer(text, scene.distinct)), config)

    try:
        for line in map_threads(ask, iter(wanted), threads=config.concurrency, stop=model.stop):
            yield [line]
    finally:
        model.close()


def _line(image: str, reply: Reply[ModelCaption], config: CaptionConfig) -> CaptionLine:
    found = reply.value
    return CaptionLine(
        image,
        FAILED if found is None else OK,
        "" if found is None else found.caption,
        () if found is None else tuple(record.id for record in found.objects),
        str(config.model),
        reply.attempts,
        reply.prompt_tokens,
        reply.completion_tokens,
        reply.reason,
    )


def grammar_line(image: str, scene: Scene, seed: int) -> CaptionLine:
    """Write the grammar's caption of one picture: the same for the same seed and name, whatever other pictures there are."""
    text, objects = scene_caption(scene, random.Random(f"{seed}:{image}"))
    return CaptionLine(image, OK, text, tuple(record.id for record in objects), GRAMMAR)


def _put_in_order(out: Path, known: dict[str, CaptionLine]) -> None:
    """Sort the finished file by picture, since several requests at a time end in any order."""
    write_jsonl(out, (known[image].to_dict() for image in sorted(known)))


def _print_prompts(scenes: dict[str, Scene], config: CaptionConfig) -> None:
    for image in list(scenes)[: config.most or None]:
        messages = first_messages(scenes[image], None)
        line = json.dumps({"image": image, "messages": messages}, ensure_ascii=False)
        sys.stdout.write(f"{printable(line)}\n")


def _summary_path(out: Path) -> Path:
    return out.with_name(f"{out.stem}_summary.json")


def _report(
    out: Path, known: dict[str, CaptionLine], config: CaptionConfig, adopted: Adopted | None = None
) -> CaptionResult:
    summary = summarize(known.values(), config)
    if adopted is not None:
        left_out = {"captions": sum(adopted.left_out.values()), "because": dict(adopted.left_out.most_common())}
        summary["left_out"] = {**left_out, "examples": adopted.examples[:_EXAMPLES]}
        for reason, count in adopted.left_out.most_common(_EXAMPLES):
            logger.warning("%d captions of %s are left out: %s", count, config.adopt, reason)
    write_json(_summary_path(out), summary)
    result = CaptionResult(out, summary["ok"], summary["failed"])
    account = ""
    if config.api_base is not None:
        account = f"; {summary['prompt_tokens']} tokens sent and {summary['completion_tokens']} received"
        if config.price_in or config.price_out:
            account += f", cost {summary['cost']}"
    logger.info("%d captions are in %s, %d pictures failed%s", result.ok, out, result.failed, account)
    say_next(f"llava-pose instruct --data {config.data} --split {config.split} --captions {out} --out train.json")
    return result


def summarize(lines: Iterable[CaptionLine], options: ServerOptions) -> dict[str, Any]:
    """Return the account of a file: captions, failures by reason, tokens and cost, over all runs that wrote it."""
    lines = list(lines)
    sent, received = sum(line.prompt_tokens for line in lines), sum(line.completion_tokens for line in lines)
    good = [line for line in lines if line.status == OK]
    return {
        "ok": len(good),
        "failed": len(lines) - len(good),
        "failed_because": dict(Counter(line.reason for line in lines if line.status != OK).most_common()),
        "objects_named": sum(len(line.objects) for line in good),
        "different_captions": len({line.caption for line in good}),
        "attempts": sum(line.attempts for line in lines),
        **token_account(sent, received, options),
    }


main = command(
    CaptionConfig,
    caption,
    prog="llava-pose caption",
    description="Write a caption for each prepared picture, with <pose6D> after each object that it names.",
    example="llava-pose caption --data prepared --out captions.jsonl",
)

if __name__ == "__main__":
    raise SystemExit(main())
