"""The end of `llava-pose prepare`: metadata, rejects and the account of every object that was read.

Results are read from the journals one after the other, and none is kept: the memory that this takes does not depend on what
the annotations hold.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from data_prep.prepare.image import ImageJob, ImageResult
from data_prep.prepare.journal import OutputFolder
from data_prep.raw.imagenet3d import RawLayout, read_list
from llava_pose.utils.files import atomic_file, write_json

logger = logging.getLogger(__name__)
_EXAMPLES = 20
_TOTALS = ("images", "read", "written", "filtered", "rejected")


def write_results(folder: OutputFolder, layout: RawLayout, plan: Mapping[str, Sequence[ImageJob]]) -> dict[str, int]:
    """Write metadata.jsonl of the planned splits, rejects.jsonl and summary.json of the whole folder.

    Returns:
        the totals: images, read, written, filtered, rejected.
    """
    # a split that an earlier run prepared stays in the account
    others = [split for split in folder.splits() if split not in plan and folder.metadata_file(split).is_file()]
    splits = [*plan, *others]
    accounts: dict[str, dict[str, Any]] = {}
    with atomic_file(folder.rejects_file) as rejects:
        for split in splits:
            account = _Account()
            if split in plan:
                with atomic_file(folder.metadata_file(split)) as metadata:
                    for result in _results(folder, split, plan):
                        _write_lines(metadata, result.records)
                        _write_lines(rejects, ({"split": split, **reject} for reject in result.rejects))
                        account.add(result)
                _remove_strays(folder, split, plan[split])
            else:
                for result in _results(folder, split, plan):
                    _write_lines(rejects, ({"split": split, **reject} for reject in result.rejects))
                    account.add(result)
            accounts[split] = account.as_dict()
    totals = {name: sum(account[name] for account in accounts.values()) for name in _TOTALS}
    leaks = _leaks(folder, splits, plan)
    summary = {
        "settings": folder.settings,
        "total": totals,
        "splits": accounts,
        "in_several_splits": {"images": len(leaks), "examples": leaks[:_EXAMPLES]},
        "annotations_not_listed": _count_unlisted(layout),
    }
    write_json(folder.summary_file, summary)
    _report(folder, accounts, leaks)
    return totals


def _results(folder: OutputFolder, split: str, plan: Mapping[str, Sequence[ImageJob]]) -> Iterator[ImageResult]:
    """Of the listed images in the order of the lists, or, of a split that is not planned, of all images done."""
    journal = folder.journal(split)
    if split not in plan:
        yield from journal.results()
        return
    for job in plan[split]:
        result = journal.get(job.key)
        if result is None:
            raise RuntimeError(f"the journal of {split} has no line for {job.key}")
        yield result


def _write_lines(file: IO[str], values: Iterable[Mapping[str, Any]]) -> None:
    for value in values:
        file.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


class _Account:
    """Counts of one split."""

    def __init__(self) -> None:
        self.images = 0
        self.filtered: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.categories: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()
        self.absent: Counter[str] = Counter()

    def add(self, result: ImageResult) -> None:
        self.images += 1
        self.filtered.update(result.filtered)
        self.rejected.update(reject["reason"] for reject in result.rejects)
        self.categories.update(record["category"] for record in result.records)
        self.statuses.update(record["object_status"] for record in result.records)
        for record in result.records:
            self.absent.update(record["source"]["absent"].split())

    def as_dict(self) -> dict[str, Any]:
        written = self.categories.total()
        return {
            "images": self.images,
            # an image whose objects could not be read counts as one
            "read": written + self.filtered.total() + self.rejected.total(),
            "written": written,
            "filtered": self.filtered.total(),
            "rejected": self.rejected.total(),
            "filtered_by_reason": dict(sorted(self.filtered.items())),
            "rejected_by_reason": dict(sorted(self.rejected.items())),
            "written_by_category": dict(sorted(self.categories.items())),
            "written_by_status": dict(sorted(self.statuses.items())),
            "absent_fields": dict(sorted(self.absent.items())),
        }


def _leaks(folder: OutputFolder, splits: Sequence[str], plan: Mapping[str, Sequence[ImageJob]]) -> list[dict[str, Any]]:
    """Images, by name or by the bytes of the file, that stand in more than one split."""
    if len(splits) < 2:
        return []
    seen: set[bytes] = set()
    repeated: set[bytes] = set()
    for split in splits:
        of_split = {identity for result in _results(folder, split, plan) for identity in _identities(result)}
        repeated |= seen & of_split
        seen |= of_split
    places: dict[bytes, dict[str, str]] = {}
    for split in splits if repeated else ():
        for result in _results(folder, split, plan):
            for identity in repeated.intersection(_identities(result)):
                places.setdefault(identity, {})[split] = result.key
    return [dict(place) for place in sorted({tuple(sorted(place.items())) for place in places.values()})]


def _identities(result: ImageResult) -> list[bytes]:
    """What an image is known again by, shortened: there are many."""
    if not result.records:
        return []
    return [hashlib.blake2b(name.encode(), digest_size=10).digest() for name in (result.key, result.digest)]


def _count_unlisted(layout: RawLayout) -> int:
    listed: dict[str, list[Path]] = {}
    for lists in layout.list_files().values():
        for category, path in lists.items():
            listed.setdefault(category, []).append(path)
    folders = (layout.root / "annotations").glob("*/")
    count = 0
    for folder in folders:
        names = {name for path in listed.get(folder.name, ()) for name in read_list(path)}
        count += sum(path.stem not in names for path in folder.glob("*.npz"))
    return count


def _remove_strays(folder: OutputFolder, split: str, jobs: Sequence[ImageJob]) -> None:
    """Crops of objects that are no longer listed, and what a killed writer left: they would be loaded as data."""
    root = folder.path / split
    of_category: dict[str, list[ImageJob]] = {}
    for job in jobs:
        of_category.setdefault(job.category, []).append(job)
    removed = 0
    for category in sorted(path for path in root.glob("*/") if path.is_dir()):
        results = _results(folder, split, {split: of_category.get(category.name, [])})
        kept = {record["file_name"] for result in results for record in result.records}
        for path in category.iterdir():
            if path.suffix in (".JPEG", ".tmp") and path.relative_to(root).as_posix() not in kept:
                path.unlink()
                removed += 1
    if removed:
        logger.info("%s: %d files that belong to no object any more were removed", split, removed)


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
