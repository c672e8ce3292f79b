"""`llava-pose vlm-api`: poses from any vision-language model behind an OpenAI-compatible server, as one row of the tables.

Each object's prepared picture is sent with the convention in words (``vlm_prompt``). What cannot be read is asked for again
with the reason, then recorded as a failure: a line without a pose. A line also holds what the answer cost, under ``request``,
which the scorer leaves alone. ``OUTPUT_DIR/predictions_summary.json`` counts answers, failures by reason, tokens and cost over
all runs that wrote the file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeInt
from tqdm import tqdm

from eval.systems.record_choice import select_records
from eval.systems.vlm_prompt import VlmAnswer, candidate_words, first_messages, read_answer
from llava_pose.data.images import check_picture
from llava_pose.data.jsonl import append_jsonl, resume_jsonl, write_jsonl
from llava_pose.data.records import METADATA_FILE, ObjectRecord, Prediction, read_predictions, read_records
from llava_pose.errors import InputError, joined, left_out
from llava_pose.pose import categories
from llava_pose.pose.categories import Category
from llava_pose.utils.command import command, say_next
from llava_pose.utils.config import require, require_folder
from llava_pose.utils.distributed import from_first_process, is_first_process
from llava_pose.utils.files import file_digest, printable, write_json
from llava_pose.utils.openai_client import Reply, ServedModel, ServerOptions, map_threads, token_account
from llava_pose.utils.output_folder import keep_settings, own_file

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class VlmApiConfig(ServerOptions):
    """The options of ``llava-pose vlm-api``."""

    data: str = field(metadata={"help": "The prepared folder."})
    output_dir: str | None = field(default=None, metadata={"help": "The folder for predictions.jsonl and its account."})
    system: str | None = field(default=None, metadata={"help": "The name in the tables; by default the model's."})
    task: Literal["pose", "joint"] = field(
        default="pose", metadata={"help": "Give the category (pose), or ask for category and pose (joint)."}
    )
    candidates: list[str] | None = field(
        default=None,
        metadata={"help": "The candidates of the joint task; by default every category of the prepared folder."},
    )
    split: str = field(default="val", metadata={"help": "The split to predict."})
    categories: list[str] | None = field(
        default=None, metadata={"help": "Ask for objects of these categories alone; by default all of the split."}
    )
    sample: NonNegativeInt = field(
        default=0,
        metadata={"help": "Ask for so many objects, drawn by --seed; 0 is all, and a larger number adds to them."},
    )
    seed: int = field(default=0, metadata={"help": "Draws the sample."})


def run(config: VlmApiConfig) -> Path | None:
    """Ask for each object that has no line yet, and return ``OUTPUT_DIR/predictions.jsonl``; None for a dry run.

    Raises:
        InputError: the data or an earlier file is unusable, or the server refuses or does not answer.
    """
    prepared = require_folder(config.data, "--data", "make it with: llava-pose prepare --data-root … --out …")
    faults: list[InputError] = []
    records = _records(prepared, config, faults)
    words = candidate_words(_candidates(prepared, config)) if config.task == "joint" else None
    wanted = _drawn(records, config)
    if config.dry_run:
        for record in wanted:
            messages = first_messages(record, _category(record.category), words, None)
            line = json.dumps({"id": record.id, "messages": messages}, ensure_ascii=False)
            sys.stdout.write(f"{printable(line)}\n")
        return None
    require(config.api_base, "--api-base")
    system = config.system or require(config.model, "--model")
    out = Path(require(config.output_dir, "--output-dir")) / "predictions.jsonl"
    with own_file(out, "--output-dir", "vlm-api"):
        keep_settings(out, "--output-dir", "vlm-api", _settings(config, records, words, prepared, system))
        known = _earlier_lines(out, records, system)
        done = {id_ for id_, line in known.items() if line.get("pose") is not None or not config.retry_failed}
        if done:
            logger.info("%s: %d of %d objects are answered already", out, len(done), len(records))
        left = [record for record in wanted if record.id not in done]
        try:
            if left:
                _ask_for(left, prepared, words, system, config, out, known)
        finally:  # of an object that was asked for again, the last line alone
            if known:
                write_jsonl(out, (known[record.id] for record in records if record.id in known))
        _report(out, list(known.values()), system, config)
    if faults:
        raise left_out(faults, f"{out}: {len(faults)} objects cannot be used and have not been asked for")
    return out


def _records(prepared: Path, config: VlmApiConfig, faults: list[InputError]) -> list[ObjectRecord]:
    """Return the records whose pictures can be sent; what is wrong with the others goes to ``faults``."""
    split = config.split
    usable = []
    for record in select_records(prepared, split, config.categories, "--categories", faults=faults):
        try:
            check_picture(prepared / split, record.file_name)
            usable.append(record)
        except InputError as error:
            faults.append(error)
    if not usable:
        raise joined(faults, f"{prepared / split}: none of its objects can be used")
    return usable


def _category(name: str) -> Category:
    return categories.get(name, allow_custom=True)


def _candidates(prepared: Path, config: VlmApiConfig) -> list[Category]:
    """Return the candidates of the joint task, in alphabetical order of their canonical names."""
    names: Iterable[str] | None = config.candidates
    if not names:
        splits = [path.parent.name for path in prepared.glob(f"*/{METADATA_FILE}")]
        names = {record.category for split in splits for record in read_records(prepared, split, faults=[])}
    found = {category.name: category for category in map(_category, names)}
    return [found[name] for name in sorted(found)]


def _drawn(records: Sequence[ObjectRecord], config: VlmApiConfig) -> list[ObjectRecord]:
    """Draw a sample, in the order of the records; a larger sample of the same seed holds a smaller one."""
    if not config.sample or config.sample >= len(records):
        return list(records)
    ranks = sorted(records, key=lambda record: hashlib.blake2b(f"{config.seed}:{record.id}".encode()).digest())
    chosen = {record.id for record in ranks[: config.sample]}
    return [record for record in records if record.id in chosen]


def _settings(
    config: VlmApiConfig,
    records: Sequence[ObjectRecord],
    words: dict[str, str] | None,
    prepared: Path,
    system: str,
) -> dict[str, Any]:
    """Return what decides an answer, which the server's address, the sample and how long is waited do not."""
    prompt = first_messages(records[0], _category(records[0].category), words, None)
    metadata = prepared / config.split / METADATA_FILE
    return {
        "model": config.model,
        "temperature": config.temperature,
        "max_tokens": config.max_tokens,
        "data": str(prepared.resolve()),
        "split": config.split,
        "task": config.task,
        "candidates": sorted(words.values()) if words else [],
        "categories": sorted({_category(name).name for name in config.categories or []}),
        "system": system,
        "records_digest": file_digest(metadata),
        "prompt_digest": hashlib.blake2b(json.dumps(prompt).encode(), digest_size=16).hexdigest(),
    }


def _earlier_lines(out: Path, records: Sequence[ObjectRecord], system: str) -> dict[str, dict[str, Any]]:
    """Return the lines that an earlier run has left, by id; the last one where a failure has been asked for again."""
    known: dict[str, dict[str, Any]] = {}
    ids = {record.id for record in records}
    for where, value in resume_jsonl(out, "id"):
        line = Prediction.from_dict(value, where=where)
        if line.system != system or line.id not in ids:
            raise InputError(f"{where}: is no answer of '{system}' for this split; choose another --output-dir")
        if line.id in known and known[line.id].get("pose") is not None:
            raise InputError(f"{where}: the id {line.id!r} stands on two lines; delete one of them")
        known[line.id] = value
    return known


def _ask_for(
    left: Sequence[ObjectRecord],
    prepared: Path,
    words: dict[str, str] | None,
    system: str,
    config: VlmApiConfig,
    out: Path,
    known: dict[str, dict[str, Any]],
) -> None:
    """Append a line for each object as its answer comes, and put it into ``known``; a failure stands until then."""
    model = ServedModel(config)

    def ask(record: ObjectRecord) -> dict[str, Any]:
        picture = prepared / config.split / record.file_name
        messages = first_messages(record, _category(record.category), words, picture)
        return _line(record, model.ask(messages, lambda text: read_answer(text, words)), system)

    bar = tqdm(total=len(left), desc=f"ask {config.model}", unit="object", mininterval=1.0)
    try:
        with bar:
            for line in map_threads(ask, iter(left), threads=config.concurrency, stop=model.stop):
                _add_requests(line["request"], known.get(line["id"], {}).get("request") or {})
                append_jsonl(out, [line])
                known[line["id"]] = line
                bar.update()
    finally:
        model.close()


def _line(record: ObjectRecord, reply: Reply[VlmAnswer], system: str) -> dict[str, Any]:
    answer = reply.value
    prediction = Prediction.of(
        record,
        system=system,
        pose=None if answer is None else answer.pose,
        pred_category=None if answer is None else answer.category,
        confidence=None,
    )
    request = {name: getattr(reply, name) for name in ("attempts", "prompt_tokens", "completion_tokens", "reason")}
    return {**prediction.to_dict(), "request": request}


def _add_requests(request: dict[str, Any], earlier: dict[str, Any]) -> None:
    """Add what the failures before have cost, which stays in the account."""
    for name in ("attempts", "prompt_tokens", "completion_tokens"):
        if earlier.get(name):
            request[name] = (request.get(name) or 0) + earlier[name]


def _report(out: Path, lines: Sequence[dict[str, Any]], system: str, config: VlmApiConfig) -> None:
    summary = summarize(lines, config)
    write_json(out.with_name(f"{out.stem}_summary.json"), summary)
    cost = f", cost {summary['cost']}" if config.price_in or config.price_out else ""
    logger.info(
        "%d answers of %s are in %s, %d failed; %d tokens sent and %d received%s",
        summary["answered"],
        system,
        out,
        summary["failed"],
        summary["prompt_tokens"],
        summary["completion_tokens"],
        cost,
    )
    say_next(f"llava-pose score {out} --out {out.with_name('scores.json')}")


def summarize(lines: Sequence[dict[str, Any]], options: ServerOptions) -> dict[str, Any]:
    """Return the account of a file's lines: answers, failures by reason, tokens and cost, over all runs that wrote it."""
    requests = [line.get("request") or {} for line in lines]
    sent, received = (sum(r.get(name) or 0 for r in requests) for name in ("prompt_tokens", "completion_tokens"))
    failed = [r.get("reason") or "unknown" for r, line in zip(requests, lines, strict=True) if line.get("pose") is None]
    return {
        "answered": len(lines) - len(failed),
        "failed": len(failed),
        "failed_because": dict(Counter(failed).most_common()),
        "attempts": sum(r.get("attempts") or 0 for r in requests),
        **token_account(sent, received, options),
    }


class VlmApi:
    """A served model as a system."""

    def __init__(self, config: VlmApiConfig):
        self.config = config

    def answer(self, records: Sequence[ObjectRecord]) -> list[Prediction]:
        """Ask for each object that has no line yet, on the first process of a run; each answer is kept as it comes."""
        out = from_first_process(lambda: run(self.config))
        if out is None or not is_first_process():
            return []
        answers = {prediction.id: prediction for prediction in read_predictions(out)}
        return [answers[record.id] for record in records if record.id in answers]


main = command(
    VlmApiConfig,
    run,
    prog="llava-pose vlm-api",
    description="Ask a vision-language model behind an OpenAI-compatible server for the poses of a prepared split.",
    example="llava-pose vlm-api --api-base http://localhost:8000/v1 --model NAME --data prepared --output-dir runs/vlm",
)

if __name__ == "__main__":
    raise SystemExit(main())
