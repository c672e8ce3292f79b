"""`llava-pose inspect diff A B`: what two outputs of the same stage have in common, and where they differ."""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from data_prep.inspect.entries import KINDS, Dataset, Entry
from data_prep.inspect.reading import open_dataset
from data_prep.inspect.subcommand import Subcommand
from llava_pose.data.records import Pose
from llava_pose.errors import InputError
from llava_pose.pose.geometry import geodesic_angle_of_poses
from llava_pose.utils.files import write_json
from llava_pose.utils.output_folder import own_file, require_other

logger = logging.getLogger(__name__)

EXAMPLES = 5
ANGLES = ("azimuth", "elevation", "theta")  # last names of fields that are angles: compared by the shorter way round
ROTATION = "rotation (degrees)"
_ALIKE = ({"raw"}, {"prepared", "records"}, {"instructions"}, {"captions"}, {"predictions"})
_TEXT = 60


@dataclass
class DiffConfig:
    """Options of ``llava-pose inspect diff``."""

    data: list[str] = field(metadata={"help": "the two datasets or files, A and B"})
    out: str | None = field(default=None, metadata={"help": "a JSON file for the whole comparison"})
    tolerance: float = field(default=0.0, metadata={"help": "numbers that differ by no more are the same"})

    def __post_init__(self) -> None:
        if len(self.data) != 2:
            raise InputError(f"give two datasets to compare, not {len(self.data)}: llava-pose inspect diff A B")
        if not 0 <= self.tolerance < math.inf:
            raise InputError(f"--tolerance {self.tolerance}: give 0 or a small number")


def inspect_diff(config: DiffConfig) -> str:
    """Compare two datasets, and write the comparison to a file where that is asked for.

    Returns:
        the comparison as text.

    Raises:
        InputError: one of them cannot be inspected, or they are not of the same kind.
    """
    if config.out is not None:
        require_other("--out", [config.out], config.data)
    with nullcontext() if config.out is None else own_file(config.out, "--out", "inspect"):
        return _diff(config)


def _diff(config: DiffConfig) -> str:
    a, b = (open_dataset(path) for path in config.data)
    if not any({a.kind, b.kind} <= kinds for kinds in _ALIKE):
        raise InputError(f"{a.path} is {KINDS[a.kind]} and {b.path} is {KINDS[b.kind]}: compare two of the same kind")
    found = compare(a, b, tolerance=config.tolerance)
    if config.out is not None:
        write_json(config.out, found)
        logger.info("comparison: %s", config.out)
    return "\n".join(diff_lines(found)) + "\n"


def compare(a: Dataset, b: Dataset, *, tolerance: float = 0.0) -> dict[str, Any]:
    """The differences of two datasets, in plain JSON types. Entries are matched by id (predictions: by system and id)."""
    of_a, of_b = _by_key(a), _by_key(b)
    both = [key for key in of_a if key in of_b]
    fields: dict[str, list[tuple[float, str, Any, Any]]] = defaultdict(list)
    changed = 0
    for key in both:
        differences = list(_differences(of_a[key], of_b[key], tolerance))
        changed += bool(differences)
        for name, size, before, after in differences:
            fields[name].append((size, _name(of_a[key]), before, after))
    only_a, only_b = [k for k in of_a if k not in of_b], [k for k in of_b if k not in of_a]
    return {
        "a": str(a.path),
        "b": str(b.path),
        "kind": a.kind,
        "entries": {"a": len(a.entries), "b": len(b.entries)},
        "repeated_ids": {"a": len(a.entries) - len(of_a), "b": len(b.entries) - len(of_b)},
        "in_both": len(both),
        "only_a": {"count": len(only_a), "ids": [_name(of_a[key]) for key in only_a]},
        "only_b": {"count": len(only_b), "ids": [_name(of_b[key]) for key in only_b]},
        "changed": changed,
        "changed_fields": {name: _field(fields[name]) for name in sorted(fields, key=lambda n: (-len(fields[n]), n))},
        "categories": _counts(a, b, lambda entry: entry.category),
        "splits": _counts(a, b, lambda entry: entry.split),
        "statuses": _counts(a, b, lambda entry: entry.status),
    }


def _by_key(dataset: Dataset) -> dict[Hashable, Entry]:
    """The first entry of every id: what comes again is counted, not compared."""
    found: dict[Hashable, Entry] = {}
    for entry in dataset.entries:
        found.setdefault((entry.system, entry.id), entry)
    return found


def _name(entry: Entry) -> str:
    return f"{entry.system}: {entry.id}" if entry.system else entry.id


def _differences(a: Entry, b: Entry, tolerance: float) -> Iterator[tuple[str, float, Any, Any]]:
    """Name of the field, how large the difference is (infinite for what is no number), and both values."""
    before, after = dict(_flat(a.fields)), dict(_flat(b.fields))
    for name in dict.fromkeys([*before, *after]):
        if name not in before or name not in after:
            yield name, math.inf, before.get(name, "(missing)"), after.get(name, "(missing)")
            continue
        size = _distance(name, before[name], after[name])
        if size > tolerance:
            yield name, size, before[name], after[name]
    if len(a.poses) == len(b.poses):
        turn = max(map(_turn, a.poses, b.poses), default=0.0)
        if turn > max(1e-6, tolerance):  # the rounding of the angles themselves is no turn
            yield ROTATION, turn, None, None
    if a.predicted is not None and b.predicted is not None:
        turn = _turn(a.predicted, b.predicted)
        if turn > max(1e-6, tolerance):
            yield f"predicted {ROTATION}", turn, None, None


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested mappings and lists; an empty one stands for itself."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple) and value:
        for number, item in enumerate(value):
            yield from _flat(item, f"{name}[{number}]")
    else:
        yield name, value


def _distance(name: str, before: Any, after: Any) -> float:
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (before, after))
    if not numbers:
        return 0.0 if before == after and isinstance(before, bool) == isinstance(after, bool) else math.inf
    if math.isnan(before) or math.isnan(after):
        return 0.0 if math.isnan(before) and math.isnan(after) else math.inf
    difference = abs(before - after) if before != after else 0.0  # of two infinities, too
    if name.rpartition(".")[2] in ANGLES and math.isfinite(difference):
        difference = abs(math.remainder(difference, 2 * math.pi)) if difference >= math.pi else difference
    return difference


def _turn(a: Pose, b: Pose) -> float:
    """Degrees between two rotations; none where an angle is not finite."""
    if not all(map(math.isfinite, (*a.angles, *b.angles))):
        return 0.0
    return math.degrees(float(geodesic_angle_of_poses(a.angles, b.angles)))


def _field(changes: Sequence[tuple[float, str, Any, Any]]) -> dict[str, Any]:
    """How many entries a field changed in, and the largest changes; of what is no number, the first."""
    order = sorted(changes, key=lambda change: -change[0])
    finite = [change[0] for change in order if math.isfinite(change[0])]
    examples = [
        {"id": name, "a": _json(before), "b": _json(after), **({"difference": size} if math.isfinite(size) else {})}
        for size, name, before, after in order[:EXAMPLES]
    ]
    if examples and examples[0]["a"] is examples[0]["b"] is None:  # rotations, which have no values of their own
        examples = [{"id": example["id"], "difference": example["difference"]} for example in examples]
    return {"count": len(changes), "largest": max(finite, default=None), "examples": examples}


def _json(value: Any) -> Any:
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def _counts(a: Dataset, b: Dataset, key: Any) -> dict[str, dict[str, int]]:
    """Counts of both where they differ."""
    in_a, in_b = Counter(map(key, a.entries)), Counter(map(key, b.entries))
    names = sorted(name for name in in_a.keys() | in_b.keys() if in_a[name] != in_b[name])
    return {
        name or "(none)": {"a": in_a[name], "b": in_b[name], "difference": in_b[name] - in_a[name]} for name in names
    }


def diff_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """A comparison as people read it."""
    yield f"A {found['a']}: {found['entries']['a']:,}    B {found['b']}: {found['entries']['b']:,}"
    repeated = found["repeated_ids"]
    if any(repeated.values()):
        yield f"ids that come again and are not compared: A {repeated['a']:,}, B {repeated['b']:,}"
    for side in ("a", "b"):
        only = found[f"only_{side}"]
        examples = f", such as {', '.join(only['ids'][:3])}" if only["count"] else ""
        yield f"only in {side.upper()}: {only['count']:,}{examples}"
    yield f"in both: {found['in_both']:,}, of which {found['changed']:,} differ"
    if found["changed_fields"]:
        yield ""
        yield f"{'field':<28}{'differs in':>11}{'largest':>12}  where"
    for name, change in found["changed_fields"].items():
        largest = "" if change["largest"] is None else f"{change['largest']:.4g}"
        yield f"{name:<28}{change['count']:>11,}{largest:>12}  {_example(change['examples'][0])}"
    for title in ("categories", "splits", "statuses"):
        if found[title]:
            yield ""
            yield f"{title:<28}{'A':>11}{'B':>12}  difference"
        for name, counts in found[title].items():
            yield f"{name:<28}{counts['a']:>11,}{counts['b']:>12,}  {counts['difference']:+,}"


def _example(example: Mapping[str, Any]) -> str:
    if "a" not in example:
        return example["id"]
    return f"{example['id']}: {_short(example['a'])} → {_short(example['b'])}"


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split())
    return text if len(text) <= _TEXT else text[: _TEXT - 1] + "…"


SUBCOMMAND = Subcommand(
    DiffConfig,
    inspect_diff,
    prog="llava-pose inspect diff",
    description="Compare two datasets or files of the same stage: entries of one alone, changed fields, counts.",
    example="llava-pose inspect diff prepared_before prepared_after --out diff.json",
    positional="data",
)
