"""The prepared records that a system is trained on or asked about. Nothing heavy is imported here, for ``--help``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llava_pose.data.images import check_picture
from llava_pose.data.records import ObjectRecord, read_records
from llava_pose.errors import InputError, joined
from llava_pose.pose import categories


def select_records(
    data: str | Path,
    split: str,
    names: Sequence[str] | None,
    option: str,
    *,
    faults: list[InputError] | None = None,
) -> list[ObjectRecord]:
    """Return the records of a split; with ``names``, of these categories alone.

    Args:
        option: that gave the names, for messages.
        faults: as :func:`llava_pose.data.records.read_records`.

    Raises:
        InputError: there is no such split, no object in it, or none of one of the names.
    """
    records = read_records(data, split, faults=faults)
    if not records and faults:
        raise joined(faults, f"{data}/{split}: none of its lines can be used")
    if not records:
        raise InputError(f"{data}/{split}: there is no object in it; run llava-pose prepare, or choose another split")
    if names:
        records = categories.only_of(names, records, option=option, place=f"{data}/{split}")
    return records


def require_pictures(records: Sequence[ObjectRecord], folder: Path) -> None:
    """Look at each picture's header, so that a missing one is found before the first step and not hours into a training.

    Raises:
        InputError: pictures are not there, or are none; the message names the first ten.
    """
    faults: list[InputError] = []
    for name in dict.fromkeys(record.file_name for record in records):
        try:
            check_picture(folder, name)
        except InputError as error:
            faults.append(error)
    if faults:
        raise joined(faults, f"{folder}: {len(faults)} pictures cannot be used")
