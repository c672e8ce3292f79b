"""The end of ``llava-pose prepare``: metadata, rejects and the account of every object that was read.

Results are read one after the other, and none is kept: the memory that this takes does not depend on what the annotations
hold.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from data_prep.prepare.image import RESULTS_FOLDER, ImageJob, ImageOptions, ImageResult, read_result, result_of
from data_prep.raw.imagenet3d import RawLayout, read_list
from llava_pose.data.jsonl import parse_json, read_jsonl
from llava_pose.data.records import METADATA_FILE
from llava_pose.errors import InputError
from llava_pose.utils.files import atomic_file, read_text, write_json

logger = logging.getLogger(__name__)
REJECTS_FILE, SUMMARY_FILE = "rejects.jsonl", "summary.json"
_EXAMPLES = 20
_TOTALS = ("images", "read", "written", "filtered", "rejected")


def write_results(
    plan: Mapping[str, Sequence[ImageJob]], options: ImageOptions, settings: Mapping[str, Any]
) -> dict[str, int]:
    """Write metadata.jsonl of the planned splits, and rejects.jsonl and summary.json of all that the folder holds.

    Returns:
        the totals: images, read, written, filtered, rejected.
    """
    out = options.out
    # a split that an earlier run prepared stays in the account
    accounts = _earlier_accounts(out, plan)
    places: dict[bytes, tuple[str, str]] = {}
    leaks: dict[bytes, dict[str, str]] = {}
    with atomic_file(out / REJECTS_FILE) as rejects:
        for split in sorted({*plan, *accounts}):
            if split in plan:
                results: Iterator[ImageResult] = _write_split(split, plan[split], options, rejects, accounts)
            else:
                lines = read_jsonl(out / REJECTS_FILE)
                _write_lines(rejects, (line for _, line in lines if line.get("split") == split))
                results = filter(None, map(read_result, sorted((out / RESULTS_FOLDER / split).glob("*/*.json"))))
            for result in results:
                for identity in _identities(result):
                    first = places.setdefault(identity, (split, result.key))
                    if first[0] != split:
                        leaks.setdefault(identity, dict([first]))[split] = result.key
    totals = {name: sum(account[name] for account in accounts.values()) for name in _TOTALS}
    several = [dict(found) for found in sorted({tuple(sorted(found.items())) for found in leaks.values()})]
    summary = {
        "settings": dict(settings),
        "total": totals,
        "splits": dict(sorted(accounts.items())),
        "in_several_splits": {"images": len(several), "examples": several[:_EXAMPLES]},
        "annotations_not_listed": _count_unlisted(RawLayout(options.data_root)),
    }
    write_json(out / SUMMARY_FILE, summary)
    _report(summary, out)
    return totals


def _earlier_accounts(out: Path, plan: Collection[str]) -> dict[str, dict[str, Any]]:
    path = out / SUMMARY_FILE
    if not path.exists():
        return {}
    try:
        splits = parse_json(read_text(path))["splits"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: is not as prepare wrote it; delete it, and prepare every split again") from error
    return {name: account for name, account in splits if name not in plan and (out / name / METADATA_FILE).is_file()}


def _write_split(
    split: str, jobs: Sequence[ImageJob], options: ImageOptions, rejects: IO[str], accounts: dict[str, dict[str, Any]]
) -> Iterator[ImageResult]:
    """Write a split's metadata, rejects and account, remove what is not of it, and yield what became of each image."""
    counts: Counter[tuple[str, str]] = Counter()
    pictures: set[str] = set()
    with atomic_file(options.out / split / METADATA_FILE) as metadata:
        for job in jobs:
            result = result_of(job, options)
            _write_lines(metadata, result.records)
            _write_lines(rejects, ({"split": split, **reject} for reject in result.rejects))
            counts.update(_counted(result))
            pictures.update(result.sizes)
            yield result
    accounts[split] = _account(counts)
    removed = _remove_strays(options.out / split, pictures)
    _remove_strays(options.out / RESULTS_FOLDER / split, {f"{job.key}.json" for job in jobs})
    if removed:
        logger.info("%s: %d files that belong to no object any more were removed", split, removed)


def _write_lines(file: IO[str], values: Any) -> None:
    for value in values:
        file.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


def _counted(result: ImageResult) -> Iterator[tuple[str, str]]:
    yield "images", ""
    yield from (("filtered", reason) for reason in result.filtered)
    yield from (("rejected", reject["reason"]) for reject in result.rejects)
    yield from (("folder", name) for name in result.classes_by_folder)
    yield from (("kept", reason) for reason in result.kept_faults)
    for record in result.records:
        yield "category", record["category"]
        yield "status", record["object_status"]
        yield from (("absent", name) for name in record["source"]["absent"].split())


def _account(counts: Counter[tuple[str, str]]) -> dict[str, Any]:
    kinds = ("filtered", "rejected", "category", "status", "absent", "folder", "kept")
    by: dict[str, dict[str, int]] = {kind: {} for kind in kinds}
    for (kind, name), count in sorted(counts.items()):
        by.setdefault(kind, {})[name] = count
    written, filtered, rejected = (sum(by[kind].values()) for kind in ("category", "filtered", "rejected"))
    return {
        "images": counts["images", ""],
        # an image whose objects could not be read counts as one
        "read": written + filtered + rejected,
        "written": written,
        "filtered": filtered,
        "rejected": rejected,
        "filtered_by_reason": by["filtered"],
        "rejected_by_reason": by["rejected"],
        "written_by_category": by["category"],
        "written_by_status": by["status"],
        "absent_fields": by["absent"],
        "classes_by_folder": by["folder"],
        "kept_faults": by["kept"],
    }


def _identities(result: ImageResult) -> list[bytes]:
    """Return what an image is known again by, its name and its bytes, shortened: there are many."""
    if not result.records:
        return []
    return [hashlib.blake2b(name.encode(), digest_size=10).digest() for name in (result.key, result.digest)]


def _count_unlisted(layout: RawLayout) -> int:
    listed = {
        (category, name)
        for lists in layout.list_files().values()
        for category, path in lists.items()
        for name in read_list(path)
    }
    return sum((path.parent.name, path.stem) not in listed for path in layout.root.glob("annotations/*/*.npz"))


def _remove_strays(folder: Path, kept: Collection[str]) -> int:
    """Remove crops of objects that are no longer listed, and what a killed writer left: they would be loaded as data."""
    strays = [
        path
        for path in folder.glob("*/*")
        if path.suffix in (".JPEG", ".json", ".tmp") and path.relative_to(folder).as_posix() not in kept
    ]
    for path in strays:
        path.unlink()
    return len(strays)


def _report(summary: Mapping[str, Any], out: Path) -> None:
    for split, account in summary["splits"].items():
        for kind in ("filtered", "rejected"):
            for reason, count in account[f"{kind}_by_reason"].items():
                remedy = ", which --allow-custom-categories takes" if reason == "unknown category" else ""
                logger.info("%s: %d %s: %s%s", split, count, kind, reason, remedy)
        for name, count in account.get("classes_by_folder", {}).items():
            logger.info("%s: %d of the class %s, which is not known, go by their folder", split, count, name)
        for reason, count in account.get("kept_faults", {}).items():
            logger.info("%s: %d kept by --published-filter in spite of: %s", split, count, reason)
    leaks = summary["in_several_splits"]
    if leaks["images"]:
        logger.warning(
            "%d images stand in several splits, such as %s; scores on them mean little, see %s",
            *(leaks["images"], " and ".join(f"{k}:{v}" for k, v in leaks["examples"][0].items()), out / SUMMARY_FILE),
        )
