"""`llava-pose benchmark`: train and predict the systems of one YAML, and make the table of the report that compares them.

Table 1 is linear probing: probes of frozen backbones, asked for the pose. Table 2 is open vocabulary: what trains does so on
known categories, and novel ones are predicted; a system with ``oracle: true`` is trained on all. Table 3 is joint: all are
trained on every category, and class and pose are predicted. ``linear-probing``, ``open-vocabulary`` and ``joint`` are its
names for one table each.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated

from pydantic import Field

from eval.benchmark.scope import BenchmarkConfig, scope_of
from eval.systems.linear_probe.options import ProbeOptions
from llava_pose.errors import InputError
from llava_pose.utils.command import command


def benchmark(config: BenchmarkConfig) -> Path:
    """Run, or go on with, the systems; return the output folder.

    Raises:
        InputError: bad data or settings, or at the end, some systems did not run.
    """
    from eval.benchmark.entries import build_entries  # seconds, which --help does without
    from eval.benchmark.run import run_entries

    run_entries(config, build_entries(config, scope_of(config)))
    return Path(config.output_dir)


main = command(
    BenchmarkConfig,
    benchmark,
    prog="llava-pose benchmark",
    description="Train and predict the systems of one YAML, and make the table of the report that compares them.",
    example="llava-pose benchmark --table 3 --config scripts/recipes/benchmark_joint.yaml --data prepared "
    "--output-dir runs/joint",
)


@dataclass(kw_only=True)
class OpenVocabularyConfig(BenchmarkConfig):
    """The options of ``llava-pose open-vocabulary``, the benchmark of table 2."""

    table: Annotated[int, Field(ge=2, le=2)] = field(
        default=2, metadata={"help": "The table of the report, which is 2."}
    )


open_vocabulary = command(
    OpenVocabularyConfig,
    benchmark,
    prog="llava-pose open-vocabulary",
    description="Train systems on known categories and predict poses of novel ones: Table 2, from one YAML.",
    example="llava-pose open-vocabulary --config scripts/recipes/benchmark_open_vocabulary.yaml --data prepared "
    "--output-dir runs/open",
)


@dataclass(kw_only=True)
class JointConfig(BenchmarkConfig):
    """The options of ``llava-pose joint``, the benchmark of table 3."""

    table: Annotated[int, Field(ge=3, le=3)] = field(
        default=3, metadata={"help": "The table of the report, which is 3."}
    )


joint = command(
    JointConfig,
    benchmark,
    prog="llava-pose joint",
    description="Train systems on all categories and predict class and pose of unseen objects: Table 3, from one YAML.",
    example="llava-pose joint --config scripts/recipes/benchmark_joint.yaml --data prepared --output-dir runs/joint",
)


@dataclass(kw_only=True)
class LinearProbingConfig(ProbeOptions):
    """The options of ``llava-pose linear-probing``, the benchmark of table 1 of backbones that are probed alike."""

    backbones: Annotated[list[str], Field(min_length=1)] = field(
        metadata={"help": "The backbones, NAME=HUB_ID_OR_FOLDER each; NAME is the system in the tables."}
    )

    def benchmark(self) -> BenchmarkConfig:
        """Return the benchmark of a probe for each backbone.

        Raises:
            InputError: a backbone is not written NAME=HUB_ID_OR_FOLDER, or two have one folder.
        """
        where = ("data", "output_dir", "split", "categories")
        options = {f.name: getattr(self, f.name) for f in fields(ProbeOptions) if f.name not in (*where, "system")}
        systems: dict[str, dict] = {}
        for word in self.backbones:
            title, _, path = (part.strip() for part in word.partition("="))
            name = re.sub(r"[^\w.+-]+", "-", title).strip("-.+")
            if not name or not path:
                raise InputError(f"--backbones {word}: write NAME=HUB_ID_OR_FOLDER, such as DINO=facebook/dino-vitb16")
            if name in systems:
                raise InputError(f"--backbones {word}: {systems[name]['title']} has the same folder; give another name")
            systems[name] = {
                "name": name,
                "title": title,
                "kind": "linear-probe",
                "options": {**options, "backbone": path},
            }
        return BenchmarkConfig(table=1, systems=list(systems.values()), **{name: getattr(self, name) for name in where})


linear_probing = command(
    LinearProbingConfig,
    lambda config: benchmark(config.benchmark()),
    prog="llava-pose linear-probing",
    description="Probe frozen backbones over the whole grid of ImageNet3D's report, chosen on a hold-out: Table 1.",
    example=(
        "llava-pose linear-probing --config scripts/recipes/table1_ours.yaml --data prepared --output-dir runs/probing"
    ),
)

if __name__ == "__main__":
    raise SystemExit(main())
