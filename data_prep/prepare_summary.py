"""The end of `llava-pose prepare`: metadata, rejects and the account of every object that was read."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_prep.imagenet3d import RawLayout, read_list
from data_prep.journal import OutputFolder
from data_prep.prepare_image import ImageJob, ImageResult
from llava_pose.config import write_json
from llava_pose.records import write_jsonl

logger = logging.getLogger(__name__)
_EXAMPLES = 20


def write_results(folder: OutputFolder, layout: RawLayout, plan: Mapping[str, Sequence[ImageJob]]) -> dict[str, int]:
    """Write metadata.jsonl of the planned splits, rejects.jsonl and summary.json of the whole folder.

    Returns:
        the totals: images, read, written, filtered, rejected.
    """
    results = {split: list(_results(folder, jobs)) for split, jobs in plan.items()}
    # a split that an earlier run prepared stays in the account
    for split in folder.splits():
        if split not in plan and folder.metadata_file(split).is_file():
            results[split] = list(folder.journal(split).results())
    for split in plan:
        of_split = results[split]
        write_jsonl(folder.metadata_file(split), (record for result in of_split for record in result.records))
        _remove_strays(folder, split, of_split)
    rejects = [
        {"split": split, **reject} for split, of_split in results.items() for r in of_split for reject in r.rejects
    ]
    write_jsonl(folder.rejects_file, rejects)
    splits = {split: _account(of_split) for split, of_split in results.items()}
    totals = {name: sum(account[name] for account in splits.values()) for name in _TOTALS}
    leaks = _leaks(results)
    summary = {
        "settings": folder.settings,
        "total": totals,
        "splits": splits,
        "in_several_splits": {"images": len(leaks), "examples": leaks[:_EXAMPLES]},
        "annotations_not_listed": _count_unlisted(layout),
    }
    write_json(folder.summary_file, summary)
    _report(folder, splits, leaks)
    return totals


_TOTALS = ("images", "read", "written", "filtered", "rejected")


def _results(folder: OutputFolder, jobs: Sequence[ImageJob]) -> Iterator[ImageResult]:
    for job in jobs:
        result = folder.journal(job.split).get(job.key)
        if result is None:
            raise RuntimeError(f"the journal of {job.split} has no line for {job.key}")
        yield result


def _account(results: Sequence[ImageResult]) -> dict[str, Any]:
    filtered = Counter(reason for result in results for reason in result.filtered)
    rejected = Counter(reject["reason"] for result in results for reject in result.rejects)
    records = [record for result in results for record in result.records]
    defaults = Counter(name for record in records for name in record["source"]["absent"].split())
    written = len(records)
    return {
        "images": len(results),
        # an image whose objects could not be read counts as one
        "read": written + filtered.total() + rejected.total(),
        "written": written,
        "filtered": filtered.total(),
        "rejected": rejected.total(),
        "filtered_by_reason": dict(sorted(filtered.items())),
        "rejected_by_reason": dict(sorted(rejected.items())),
        "written_by_category": dict(sorted(Counter(record["category"] for record in records).items())),
        "written_by_status": dict(sorted(Counter(record["object_status"] for record in records).items())),
        "absent_fields": dict(sorted(defaults.items())),
    }


def _leaks(results: Mapping[str, Sequence[ImageResult]]) -> list[dict[str, Any]]:
    """Images, by name or by the bytes of the file, that stand in more than one split."""
    seen: dict[str, dict[str, str]] = {}
    for split, of_split in results.items():
        for result in of_split:
            if not result.records:
                continue
            for identity in (result.key, result.digest):
                seen.setdefault(identity, {})[split] = result.key
    leaks = {tuple(sorted(places.items())) for places in seen.values() if len(places) > 1}
    return [dict(places) for places in sorted(leaks)]


def _count_unlisted(layout: RawLayout) -> int:
    listed = {
        (category, name)
        for lists in layout.list_files().values()
        for category, path in lists.items()
        for name in read_list(path)
    }
    found = {(path.parent.name, path.stem) for path in (layout.root / "annotations").glob("*/*.npz")}
    return len(found - listed)


def _remove_strays(folder: OutputFolder, split: str, results: Sequence[ImageResult]) -> None:
    """Crops of objects that are no longer listed, and what a killed writer left: they would be loaded as data."""
    kept = {record["file_name"] for result in results for record in result.records}
    root = folder.path / split
    strays = [
        path
        for path in root.glob("*/*")
        if path.suffix in (".JPEG", ".tmp") and path.relative_to(root).as_posix() not in kept
    ]
    for path in strays:
        path.unlink()
    if strays:
        logger.info("%s: %d files that belong to no object any more were removed", split, len(strays))


def _report(folder: OutputFolder, splits: Mapping[str, Mapping[str, Any]], leaks: Sequence[Mapping[str, str]]) -> None:
    for split, account in splits.items():
        for kind in ("filtered", "rejected"):
            for reason, count in account[f"{kind}_by_reason"].items():
                logger.info("%s: %d %s: %s", split, count, kind, reason)
    if leaks:
        logger.warning(
            "%d images stand in several splits, such as %s; scores on them mean little, see %s",
            *(len(leaks), " and ".join(f"{k}:{v}" for k, v in leaks[0].items()), folder.summary_file),
        )
