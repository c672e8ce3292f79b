"""`llava-pose linear-probing`: the linear probes of several frozen backbones, one after another, from one YAML file.

Each backbone has its own folder with predictions.jsonl, the figures of all cells of its grid (probe_grid.json), the chosen
probe and the features. A backbone that has been probed with the same settings is left as it is.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from eval.systems.linear_probe.settings import (
    GRID_FILE,
    LinearProbeConfig,
    ProbeSettings,
    predict_records,
    training_records,
)
from llava_pose.errors import InputError
from llava_pose.utils.config import command, require_folder
from llava_pose.utils.distributed import first_process_holds
from llava_pose.utils.files import printable
from llava_pose.utils.output_folder import own_folder

logger = logging.getLogger(__name__)


@dataclass
class LinearProbingConfig(ProbeSettings):
    """Backbones, and what holds for all of them."""

    backbones: list[str] = field(
        default_factory=list, metadata={"help": "NAME=HUB_ID_OR_FOLDER each; NAME is the system in the tables"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.backbones:
            raise InputError("the option --backbones is needed; see --help")

    def probes(self) -> list[LinearProbeConfig]:
        """A run for each backbone, in a folder of its name inside of ``output_dir``.

        Raises:
            InputError: a backbone is not written NAME=HUB_ID_OR_FOLDER, or two have one name.
        """
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(ProbeSettings)}
        runs: dict[str, LinearProbeConfig] = {}
        for word in self.backbones:
            name, _, path = (part.strip() for part in word.partition("="))
            folder = re.sub(r"[^\w.+-]+", "-", name).strip("-.")
            if not folder or not path:
                raise InputError(f"--backbones {word}: write NAME=HUB_ID_OR_FOLDER, such as DINO=facebook/dino-vitb16")
            if folder in runs:
                raise InputError(f"--backbones {word}: {runs[folder].system} has the same folder; give another name")
            values = {**shared, "output_dir": str(Path(self.output_dir) / folder)}
            runs[folder] = LinearProbeConfig(**values, backbone=path, system=name)
        return list(runs.values())


def linear_probing(config: LinearProbingConfig) -> list[Path]:
    """Probe every backbone; returns the predictions files.

    Raises:
        InputError: bad data or settings; backbones are looked at before the first is run.
    """
    from accelerate import PartialState  # seconds, which --help does without

    from eval.systems.linear_probe.backbone import read_backbone_config
    from eval.systems.linear_probe.probe import run

    probes = config.probes()
    require_folder(config.data, "--data", "make it with llava-pose prepare")
    training_records(config)
    predict_records(config)
    for probe in probes:
        read_backbone_config(probe.backbone)
    PartialState()  # joins the processes of a launcher
    with ExitStack() as owned:
        for probe in probes:
            folder = own_folder(probe.output_dir, "--output-dir", "linear-probing")
            owned.enter_context(first_process_holds(folder))
        files = [run(probe) for probe in probes]
    if PartialState().is_main_process:
        sys.stdout.write(printable(_summary(probes, config.predict_split)))
        words = " ".join(f"'{file}'" if " " in str(file) else str(file) for file in files)
        logger.info(f"next: llava-pose tables --table 1 {words}")
    return files


def _summary(probes: list[LinearProbeConfig], split: str) -> str:
    """Of each backbone the cell that the hold-out chose, and beside it what choosing on the predicted split would give."""
    titles = "chosen on the hold-out", f"chosen on {split} (published way)"
    lines = [f"{'':24}{titles[0]:34}{'acc@30':>7}{'acc@10':>8}    {titles[1]:34}{'acc@30':>7}"]
    for probe in probes:
        grid = json.loads((Path(probe.output_dir) / GRID_FILE).read_text(encoding="utf-8"))
        own, published = (
            (f"{c['layers']}, {c['pooling']}, {c['learning_rate']:g}", c["predicted"])
            for c in (grid["selected"], grid["selected_on_predicted"])
        )
        lines.append(
            f"{probe.system:24}{own[0]:34}{100 * own[1]['acc@30']:7.1f}{100 * own[1]['acc@10']:8.1f}    "
            f"{published[0]:34}{100 * published[1]['acc@30']:7.1f}"
        )
    return "\n".join(lines) + "\n"


main = command(
    LinearProbingConfig,
    linear_probing,
    prog="llava-pose linear-probing",
    description="Linear probing of frozen backbones: the whole grid of ImageNet3D's report for each, chosen on a hold-out.",
    example=(
        "llava-pose linear-probing --config scripts/recipes/linear_probing.yaml --data prepared --output-dir runs/probing"
    ),
)

if __name__ == "__main__":
    raise SystemExit(main())
