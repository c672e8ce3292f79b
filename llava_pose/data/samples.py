"""The samples of a train.json as they are read, each checked; :mod:`llava_pose.data.dataset` makes training samples of them."""

from __future__ import annotations

import json
import os
from typing import Any

from llava_pose.data.conversation import validate_sample
from llava_pose.data.jsonl import parse_json
from llava_pose.errors import InputError, joined
from llava_pose.utils.files import read_text

_MOST_BYTES = 1 << 36  # of a train.json: 69 thousand million


def read_samples(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The samples of a train.json, each checked.

    Raises:
        InputError: the file cannot be read, is no JSON array, is empty, or a sample is malformed.
    """
    text = read_text(path, remedy="make it with llava-pose instruct", most=_MOST_BYTES)
    try:
        samples = parse_json(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: not valid JSON ({error.msg} at line {error.lineno}); the file may be cut off"
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); make it with llava-pose instruct") from error
    if not isinstance(samples, list) or not samples:
        raise InputError(
            f"{path}: expected a JSON array of samples that is not empty; make it with llava-pose instruct"
        )
    faults: list[InputError] = []
    for index, sample in enumerate(samples):
        where = f"{path}, sample {index}"
        try:
            if not isinstance(sample, dict):
                raise InputError(f"{where} is no JSON object")
            validate_sample(sample, where=where)
        except InputError as error:
            faults.append(error)
    if faults:
        raise joined(faults, f"{path}: {len(faults)} of {len(samples)} samples cannot be learned from")
    return samples
